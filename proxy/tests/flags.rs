//! What is wrong in the flags is said in one line, before anything on the node is touched.

use std::process::Command;

use anyhow::{Context, Result};

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

#[expect(
    clippy::disallowed_methods,
    reason = "what the program prints is what is tested"
)]
fn run(flags: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_proxy"))
        .args(flags)
        .output()
        .context("run the proxy")?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), told))
}
