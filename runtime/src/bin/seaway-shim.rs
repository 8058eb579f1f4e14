//! The shim of one pod. The runtime starts it; people do not need to.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

/// The program file itself, however it was found.
const SELF: &str = "/proc/self/exe";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let line = format!("seaway-shim: {e:#}\n");
            drop(std::io::Write::write_all(
                &mut std::io::stderr(),
                line.as_bytes(),
            ));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", dir] => Ok(runtime::shim::serve(&PathBuf::from(dir))?),
        ["pause"] => Ok(runtime::shim::pause(
            Path::new(SELF),
            &mut std::io::stdout(),
        )?),
        ["pause-init"] => Ok(runtime::shim::pause_init()?),
        _ => bail!("usage: seaway-shim serve SANDBOX-DIRECTORY (started by the kubelet)"),
    }
}
