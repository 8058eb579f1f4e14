//! The CNI plugin: reads `CNI_*` variables and a configuration on standard input, prints a result
//! or an error on standard output.

#![expect(clippy::print_stdout, reason = "standard output is the protocol")]

use std::io::Read;
use std::process::ExitCode;

use api::cni::{Error, ErrorCode, Version};

/// No configuration is longer; what does not end is cut off.
const INPUT_BYTES_MAX: u64 = 16 << 20;

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        println!(
            "seaway-cni {}: a CNI plugin, called by a container runtime with CNI_COMMAND set; \
             speaks CNI {}",
            env!("CARGO_PKG_VERSION"),
            Version::ALL.map(Version::as_str).join(", "),
        );
        return ExitCode::from(u8::from(std::env::args_os().len() == 1));
    }
    let mut input = Vec::new();
    let read = std::io::stdin()
        .take(INPUT_BYTES_MAX)
        .read_to_end(&mut input);
    let answer = match read {
        Ok(_) => cni_plugin::verbs::run(&|name| std::env::var(name).ok(), &input),
        Err(e) => Err(Error::new(
            ErrorCode::IO,
            format!("read standard input: {e}"),
        )),
    };
    match answer {
        Ok(Some(result)) => println!("{result}"),
        Ok(None) => {}
        Err(mut error) => {
            if error.cni_version.is_empty() {
                error.cni_version = Version::NEWEST.to_string();
            }
            println!("{}", serde_json::json!(error));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
