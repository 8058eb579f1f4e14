//! The units under `dist/systemd` of this package's programs, as systemd and the programs read them.

use std::path::Path;

use clap::Parser;
use cni_plugin::overlay::flags;
use linux::exec::{Exec, which};

/// Where the units look for the programs.
const BIN: &str = "/usr/local/bin/";

/// The units, by name, with the programs of this build.
fn units() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/systemd");
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    let files = files.filter(|file| file.file_name() != "seaway-proxy.service");
    let read = |file: std::fs::DirEntry| {
        let text = std::fs::read_to_string(file.path()).unwrap();
        let text = ["overlay", "seaway-cni"].iter().fold(text, |text, name| {
            let built = match *name {
                "overlay" => env!("CARGO_BIN_EXE_overlay"),
                _ => env!("CARGO_BIN_EXE_seaway-cni"),
            };
            text.replace(&format!("={BIN}{name} "), &format!("={built} "))
        });
        (file.file_name().into_string().unwrap(), text)
    };
    let mut units: Vec<_> = files.map(read).collect();
    units.sort();
    assert_eq!(units.len(), 2, "{units:?}");
    units
}

/// The command of a unit.
fn command(text: &str) -> Vec<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    line.unwrap().split(' ').map(str::to_owned).collect()
}

#[test]
fn systemd_has_nothing_to_say_to_the_units() {
    let test = "systemd_has_nothing_to_say_to_the_units";
    if which("systemd-analyze").is_none() {
        println!("SKIPPED {test}: systemd-analyze is not installed (systemd)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let verify = |units: &[(String, String)]| {
        let mut exec = Exec::new("systemd-analyze").args(["verify", "--man=no"]);
        for (name, text) in units {
            std::fs::write(dir.path().join(name), text).unwrap();
            exec = exec.arg(dir.path().join(name));
        }
        let output = exec.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &output.text();
        (output.status.success(), said)
    };
    let mut units = units();
    assert_eq!(verify(&units), (true, String::new()));
    // It does look.
    units[1].1 += "\n[Service]\nRestart=sometimes\n";
    assert!(verify(&units).1.contains("Failed to parse"), "{units:?}");
}

#[test]
fn the_programs_know_the_flags_of_their_units() {
    for (name, text) in units() {
        let command = command(&text);
        let program = Path::new(&command[0]);
        assert!(program.is_file(), "{name}: {}", command[0]);
        if program.ends_with("overlay") {
            // What systemd fills in: the host's name, and nothing by default.
            let words = command.iter().map(|word| word.replace("%l", "node-1"));
            let words = words.filter(|word| !word.starts_with('$'));
            let args = flags::Args::try_parse_from(words).unwrap();
            assert_eq!(args.node_name, "node-1");
            let settings = flags::settings(&args, linux::kernel::release()).unwrap();
            assert!(settings.masquerade);
        } else {
            // Another place, or it would be installed here.
            let dir = tempfile::tempdir().unwrap();
            let mut words = command.into_iter();
            let mut exec = Exec::new(words.next().unwrap());
            for word in words {
                let word = word.replace("/opt/cni/bin", &dir.path().display().to_string());
                exec = exec.arg(word);
            }
            exec.run().unwrap();
            assert!(dir.path().join("seaway-cni").is_file());
        }
    }
}
