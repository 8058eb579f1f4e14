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
