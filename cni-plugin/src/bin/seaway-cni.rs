//! The CNI plugin: reads `CNI_*` variables and a configuration on standard input, prints a result
//! or an error on standard output. Without `CNI_COMMAND` it is a tool for a person: `install` and
//! `ipam audit`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "standard output is the protocol, and a person reads the tool's words"
)]

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use api::cni::{Error, ErrorCode, Version};
use cni_plugin::audit::{audit, repair};
use cni_plugin::install::{Install, install};
use cni_plugin::lease_store::LeaseStore;
use cni_plugin::role::Role;

/// No configuration is longer; what does not end is cut off.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// Where leases are kept as a rule.
const DATA_DIR: &str = "/var/lib/cni/networks";

const USAGE: &str = "\
usage: seaway-cni install [--bin-dir DIR] [--conf-dir DIR] [--conf FILE] [--name PLUGIN]... [--force]
       seaway-cni ipam audit [--network NAME] [--data-dir DIR] [--repair]

install     copies the program to the directory of plugins (/opt/cni/bin), links it under more names
            (bridge, host-local, portmap, bandwidth, loopback, flannel), and last copies a configuration
            list to /etc/cni/net.d
ipam audit  compares leases with what is really attached; --repair mends what it finds

A container runtime calls the program with CNI_COMMAND set.";

fn main() -> ExitCode {
    let mut args = std::env::args();
    let program = args.next().unwrap_or_default();
    if std::env::var_os("CNI_COMMAND").is_none() {
        return tool(&args.collect::<Vec<_>>());
    }
    let mut input = Vec::new();
    let read = std::io::stdin()
        .take(INPUT_BYTES_MAX)
        .read_to_end(&mut input);
    let answer = match read {
        Ok(_) => cni_plugin::verbs::run(&program, &|name| std::env::var(name).ok(), &input),
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

fn tool(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["install", rest @ ..] => parse_install(rest).and_then(run_install),
        ["ipam", "audit", rest @ ..] => parse_audit(rest).and_then(|asked| run_audit(&asked)),
        [] | ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        ["--version" | "-V"] => {
            let versions = Version::ALL.map(Version::as_str).join(", ");
            println!("seaway-cni {}, CNI {versions}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        [other, ..] => Err(Failure::Usage(format!("{other}: no such command"))),
    };
    match done {
        Ok(code) => code,
        Err(Failure::Usage(why)) => {
            eprintln!("seaway-cni: {why}; see seaway-cni --help");
            ExitCode::from(2)
        }
        Err(Failure::Work(why)) => {
            eprintln!("seaway-cni: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Why the tool did not do what it was asked to.
enum Failure {
    /// It was asked in the wrong words.
    Usage(String),
    /// It could not.
    Work(String),
}

/// Takes flags apart, with one value each where `valued` says so.
fn flags<'a>(
    args: &[&'a str],
    valued: &[&str],
    plain: &[&str],
) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let mut found = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (key, inline) = match arg.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (*arg, None),
        };
        if plain.contains(&key) && inline.is_none() {
            found.push((key, ""));
        } else if valued.contains(&key) {
            let value = inline.or_else(|| args.next().copied());
            let value = value.filter(|value| !value.is_empty());
            found.push((
                key,
                value.ok_or_else(|| Failure::Usage(format!("{key}: needs a value")))?,
            ));
        } else {
            return Err(Failure::Usage(format!("{arg}: no such flag")));
        }
    }
    Ok(found)
}

fn parse_install(args: &[&str]) -> Result<Install, Failure> {
    let mut wish = Install {
        bin_dir: "/opt/cni/bin".into(),
        conf_dir: "/etc/cni/net.d".into(),
        conf: None,
        names: Vec::new(),
        force: false,
    };
    let valued = ["--bin-dir", "--conf-dir", "--conf", "--name"];
    for (key, value) in flags(args, &valued, &["--force"])? {
        match key {
            "--bin-dir" => wish.bin_dir = value.into(),
            "--conf-dir" => wish.conf_dir = value.into(),
            "--conf" => wish.conf = Some(value.into()),
            "--name" => {
                let role = Role::ALL.into_iter().find(|role| role.name() == value);
                let why = || Failure::Usage(format!("--name: {value} is no plugin of ours"));
                wish.names.push(role.ok_or_else(why)?);
            }
            _ => wish.force = true,
        }
    }
    Ok(wish)
}

fn run_install(wish: Install) -> Result<ExitCode, Failure> {
    let work = |why: String| Failure::Work(why);
    let own = std::env::current_exe().map_err(|e| work(format!("find this program: {e}")))?;
    for path in install(&wish, &own).map_err(|e| work(e.to_string()))? {
        println!("installed {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

struct Audit {
    data_dir: PathBuf,
    network: Option<String>,
    repair: bool,
}

fn parse_audit(args: &[&str]) -> Result<Audit, Failure> {
    let mut asked = Audit {
        data_dir: DATA_DIR.into(),
        network: None,
        repair: false,
    };
    for (key, value) in flags(args, &["--network", "--data-dir"], &["--repair"])? {
        match key {
            "--network" => asked.network = Some(value.to_owned()),
            "--data-dir" => asked.data_dir = value.into(),
            _ => asked.repair = true,
        }
    }
    Ok(asked)
}

/// Prints a line for each finding. Exit code 1 while something is wrong.
fn run_audit(asked: &Audit) -> Result<ExitCode, Failure> {
    let work = |why: &dyn std::fmt::Display| Failure::Work(why.to_string());
    let networks = match &asked.network {
        Some(name) => vec![name.clone()],
        None => LeaseStore::networks(&asked.data_dir).map_err(|e| work(&e))?,
    };
    let mut wrong = 0;
    for network in networks {
        let store = LeaseStore::open(&asked.data_dir, &network).map_err(|e| work(&e))?;
        let findings = audit(&network, &store).map_err(|e| work(&e))?;
        let leases = store.taken().map_err(|e| work(&e))?.len();
        for finding in &findings {
            let mended = asked.repair && repair(&store, finding).map_err(|e| work(&e))?;
            wrong += usize::from(!mended);
            println!(
                "{network}: {finding}{}",
                if mended { "; mended" } else { "" }
            );
        }
        if asked.repair {
            store.know_boot().map_err(|e| work(&e))?;
        }
        println!("{network}: {leases} leases, {} findings", findings.len());
    }
    Ok(ExitCode::from(u8::from(wrong > 0)))
}
