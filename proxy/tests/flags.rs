//! What is wrong in the flags is said in one line, before anything on the node is touched.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux::NetNs;
use linux::ipvs::Ipvs;
use linux::process::Daemon;

/// What systemd starts.
const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/systemd");

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "what the program prints when it fails is what is tested"
)]
fn a_source_that_is_not_there_is_one_line() -> Result<()> {
    for (flag, word) in [
        ("--kubeconfig", "kubeconfig /nowhere/at/all"),
        ("--manifests", "--manifests /nowhere/at/all"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_proxy"))
            .args([flag, "/nowhere/at/all"])
            .output()
            .context("run the proxy")?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(word), "{told}");
    }
    Ok(())
}

#[test]
fn a_bad_file_is_one_line_that_names_the_key() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.yaml");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    for (text, expect) in [
        (
            "conntrack: {maxPerCor: 1}",
            "conntrack.maxPerCor: unknown key",
        ),
        ("oomScoreAdj: 5000", "oomScoreAdj: 5000 is not within"),
    ] {
        std::fs::write(&file, format!("{head}{text}\n"))?;
        let (code, told) = run(&["--config", &file.to_string_lossy()])?;
        assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
        assert!(told.contains(expect), "{told}");
    }
    Ok(())
}

#[test]
fn the_configuration_is_written_with_what_was_asked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name).display().to_string());
    let flags = [
        "--write-config-to",
        &from,
        "--cluster-cidr=10.0.0.0/8",
        "--v=2",
        "--feature-gates",
        "A=true",
    ];
    let (code, told) = run(&flags)?;
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("without effect here: --feature-gates"),
        "{told}"
    );
    let written = std::fs::read_to_string(&from)?;
    assert!(written.contains("clusterCIDR: 10.0.0.0/8"), "{written}");
    // What was written is understood, and flags beside it are not heeded.
    let flags = [
        "--config",
        &from,
        "--write-config-to",
        &to,
        "--cluster_cidr=11.0.0.0/8",
    ];
    let (code, told) = run(&flags)?;
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("since --config is given: --cluster-cidr"),
        "{told}"
    );
    assert_eq!(std::fs::read_to_string(&to)?, written);
    Ok(())
}

fn run(flags: &[&str]) -> Result<(Option<i32>, String)> {
    run_program(env!("CARGO_BIN_EXE_proxy"), flags)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what the program prints is what is tested"
)]
fn run_program(program: &str, flags: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(program)
        .args(flags)
        .output()
        .context("run the proxy")?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), told))
}

#[test]
fn mode_ipvs_on_a_kernel_without_it_is_one_line() -> Result<()> {
    const TEST: &str = "mode_ipvs_on_a_kernel_without_it_is_one_line";
    if !nix::unistd::geteuid().is_root() {
        skipped(TEST, "needs root");
        return Ok(());
    }
    // A namespace of its own: settings of this machine stay as they are.
    let netns = NetNs::anonymous()?;
    if netns.run(Ipvs::open)?.is_ok() {
        skipped(TEST, "this kernel has ip_vs");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let dir = dir.path().display().to_string();
    let flags = [
        "--manifests",
        &dir,
        "--healthz-bind-address=127.0.0.1:0",
        "--metrics-bind-address=127.0.0.1:0",
    ];
    let (code, told) = netns.run(|| {
        let all = [&["--mode", "ipvs", "--oom-score-adj=0"], &flags[..]].concat();
        run(&all)
    })??;
    assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("--mode ipvs does not work"), "{told}");
    assert!(told.contains("no IPVS (module ip_vs)"), "{told}");
    // Each that it names works; iptables is on every machine that runs this.
    let (_, rest) = told
        .split_once("modes that work here: ")
        .context("no other mode")?;
    let (modes, _) = rest.split_once(')').context("no end")?;
    assert!(modes.split(", ").any(|mode| mode == "iptables"), "{told}");
    for mode in modes.split(", ") {
        let log = dir.clone() + "/log";
        let daemon = Daemon {
            program: env!("CARGO_BIN_EXE_proxy").into(),
            args: [&["--mode", mode, "--log-level=info"], &flags[..]]
                .concat()
                .into_iter()
                .map(Into::into)
                .collect(),
            log: Some(log.clone().into()),
            ..Daemon::default()
        };
        let mut child = netns.run(|| daemon.spawn())??;
        let deadline = Instant::now() + Duration::from_secs(60);
        let synced = || {
            std::fs::read_to_string(&log)
                .unwrap_or_default()
                .matches("full sync")
                .count()
                >= 2
        };
        while !synced() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let good = synced();
        child.kill()?;
        child.wait()?;
        assert!(good, "mode {mode}: {}", std::fs::read_to_string(&log)?);
        std::fs::remove_file(&log)?;
    }
    Ok(())
}

/// Everything that is missing is told, not the first; and which modes would work.
#[test]
fn mode_ebpf_where_it_cannot_work_is_one_line() -> Result<()> {
    const TEST: &str = "mode_ebpf_where_it_cannot_work_is_one_line";
    if !nix::unistd::geteuid().is_root() {
        skipped(TEST, "needs root");
        return Ok(());
    }
    let netns = NetNs::anonymous()?;
    let dir = tempfile::tempdir()?;
    let dir = dir.path().display().to_string();
    let pins = format!("/sys/fs/bpf/seaway-test-{}-flags", std::process::id());
    let flags = [
        "--mode=ebpf",
        "--manifests",
        &dir,
        "--ebpf-cgroup=/nowhere",
        "--ebpf-pin-dir",
        &pins,
        "--healthz-bind-address=127.0.0.1:0",
        "--metrics-bind-address=127.0.0.1:0",
    ];
    let (code, told) = netns.run(|| run(&flags))??;
    assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
    let head = "--mode ebpf does not work on this machine (modes that work here: ";
    assert!(told.contains(head) && told.contains("iptables"), "{told}");
    assert!(
        told.contains("missing: cgroup v2 (/nowhere is no"),
        "{told}"
    );
    // Without the right to ask the kernel, and the rest beside that.
    let words = [
        &[
            "--bounding-set=-all,+net_admin,+net_raw",
            "--",
            env!("CARGO_BIN_EXE_proxy"),
        ],
        &flags[..],
    ]
    .concat();
    let (code, told) = netns.run(|| run_program("setpriv", &words))??;
    assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
    assert!(
        told.contains("missing: the right to load programs"),
        "{told}"
    );
    assert!(told.contains("; cgroup v2 (/nowhere is no"), "{told}");
    assert!(!std::path::Path::new(&pins).exists(), "{pins}");
    Ok(())
}

/// A mode that was chosen by itself says why it is not ebpf.
#[test]
fn the_default_mode_says_why_it_is_not_ebpf() -> Result<()> {
    const TEST: &str = "the_default_mode_says_why_it_is_not_ebpf";
    if !nix::unistd::geteuid().is_root() {
        skipped(TEST, "needs root");
        return Ok(());
    }
    let netns = NetNs::anonymous()?;
    let ask = |cgroup: &str| netns.run(|| run(&["--init-only", "--oom-score-adj=0", cgroup]));
    let (code, told) = ask("--ebpf-cgroup=/nowhere")??;
    assert_eq!(code, Some(0), "{told}");
    let why = "the default; mode ebpf does not work here: missing: cgroup v2 (/nowhere is no";
    assert_eq!(told.matches(why).count(), 1, "{told}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn skipped(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
}

/// The unit of `dist/systemd`: systemd has nothing to say, and the program knows the flags.
#[test]
fn the_unit_is_one_that_systemd_and_the_program_read() -> Result<()> {
    let test = "the_unit_is_one_that_systemd_and_the_program_read";
    let name = "seaway-proxy.service";
    let text = std::fs::read_to_string(format!("{UNITS}/{name}"))?;
    let built = env!("CARGO_BIN_EXE_proxy");
    let text = text.replace("=/usr/local/bin/proxy ", &format!("={built} "));
    let command = text.lines().find_map(|l| l.strip_prefix("ExecStart="));
    let command = command.context("ExecStart")?.replace("%l", "node-1");
    // By default systemd puts nothing where the variable is.
    let mut words: Vec<&str> = command.split(' ').filter(|w| !w.starts_with('$')).collect();
    assert_eq!(words.remove(0), built);
    let dir = tempfile::tempdir()?;
    let written = dir.path().join("written").display().to_string();
    words.extend(["--write-config-to", &written]);
    assert_eq!(run(&words)?, (Some(0), String::new()));
    let settings = std::fs::read_to_string(written)?;
    assert!(settings.contains("hostnameOverride: node-1"), "{settings}");
    if linux::exec::which("systemd-analyze").is_none() {
        skipped(test, "systemd-analyze is not installed (systemd)");
        return Ok(());
    }
    for (more, good) in [("", true), ("\n[Service]\nRestart=sometimes\n", false)] {
        let unit = dir.path().join(name);
        std::fs::write(&unit, format!("{text}{more}"))?;
        let verify = linux::exec::Exec::new("systemd-analyze").args(["verify", "--man=no"]);
        let output = verify.arg(unit).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &output.text();
        assert_eq!(output.status.success() && said.is_empty(), good, "{said}");
    }
    Ok(())
}
