//! A cluster for one test program: started by `seaway up`, removed when dropped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, Output};
use linux::patience::scaled;
use linux::process::Daemon;
use serde_json::Value;

use crate::{bin_dir, kubectl};

/// `seaway up` with its proofs.
const UP_TIMEOUT: Duration = Duration::from_secs(300);
/// One kubectl command.
const KUBECTL_TIMEOUT: Duration = Duration::from_secs(180);

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    seaway: PathBuf,
    kubectl: PathBuf,
    /// What `seaway up` printed.
    pub said: String,
}

impl Cluster {
    /// Starts a cluster `name` with its own underlay `172.31.N.0` and API port.
    ///
    /// # Errors
    /// `seaway up` fails; its output is in the error.
    pub fn start(name: &str, underlay: u8, api_port: u16) -> Result<Self> {
        Self::start_with(name, underlay, api_port, &[])
    }

    /// With more flags for `seaway up`.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_with(name: &str, underlay: u8, api_port: u16, more: &[&str]) -> Result<Self> {
        let seaway = bin_dir()?.join("seaway");
        let kubectl = kubectl()?;
        let path = format!(
            "{}:{}",
            kubectl.parent().context("kubectl's folder")?.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        // A cluster left behind by a test that was killed.
        Exec::new(&seaway)
            .args(["down", "--name", name])
            .timeout(scaled(UP_TIMEOUT))
            .run()?;
        let up = Exec::new(&seaway)
            .args([
                "up",
                "--name",
                name,
                "--underlay",
                &format!("172.31.{underlay}.0"),
            ])
            .args(["--api-port", &api_port.to_string()])
            .args(more)
            .env("PATH", path)
            .timeout(scaled(UP_TIMEOUT))
            .output()?;
        let said = up.text();
        let cluster = Self {
            name: name.to_owned(),
            seaway,
            kubectl,
            said,
        };
        if !up.status.success() {
            bail!(
                "seaway up: {}\n{}\n{}",
                up.status,
                cluster.said,
                cluster.logs()
            );
        }
        Ok(cluster)
    }

    /// `/var/lib/seaway/NAME`.
    pub fn dir(&self) -> PathBuf {
        PathBuf::from("/var/lib/seaway").join(&self.name)
    }

    /// The cluster's control group.
    pub fn cgroup(&self) -> String {
        format!("/seaway/{}", self.name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("control-plane/admin.kubeconfig")
    }

    /// A kubectl command on this cluster.
    pub fn kubectl_command(&self, args: &[&str]) -> Exec {
        let home = self.dir().join("kubectl-home");
        Exec::new(&self.kubectl)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", home)
            .args(args)
            .timeout(scaled(KUBECTL_TIMEOUT))
    }

    /// A kubectl command that goes on until it is killed, and writes to `log`.
    pub fn kubectl_daemon(&self, args: &[&str], log: PathBuf) -> Daemon {
        let home = self.dir().join("kubectl-home");
        Daemon {
            program: self.kubectl.clone(),
            args: args.iter().map(Into::into).collect(),
            env: vec![
                ("KUBECONFIG".into(), self.kubeconfig().into()),
                ("HOME".into(), home.into()),
            ],
            log: Some(log),
            ..Daemon::default()
        }
    }

    /// Runs kubectl, wants success, returns its standard output.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        Ok(self.kubectl_command(args).run()?.text())
    }

    /// Runs kubectl with `stdin` and returns whatever came of it.
    ///
    /// # Errors
    /// kubectl cannot be started or does not end.
    pub fn kubectl_output(&self, args: &[&str], stdin: &str) -> Result<Output> {
        Ok(self.kubectl_command(args).stdin(stdin).output()?)
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        Ok(self
            .kubectl_command(&["apply", "-f", "-"])
            .stdin(manifest)
            .run()?
            .text())
    }

    /// `kubectl get ARGS -o json`, parsed.
    ///
    /// # Errors
    /// kubectl fails or prints no JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get"], args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("the output of kubectl get -o json")
    }

    /// Runs `seaway COMMAND --name NAME`.
    ///
    /// # Errors
    /// It fails.
    pub fn seaway(&self, command: &str) -> Result<String> {
        let seaway = Exec::new(&self.seaway).args([command, "--name", &self.name]);
        Ok(seaway.timeout(scaled(UP_TIMEOUT)).run()?.text())
    }

    /// The last lines of every daemon's log.
    pub fn logs(&self) -> String {
        let find = Exec::new("sh")
            .args([
                "-c",
                "for f in *.log nodes/*/logs/*.log; do echo \"== $f\"; tail -n 15 $f; done",
            ])
            .dir(self.dir());
        find.output().map(|o| o.text()).unwrap_or_default()
    }

    /// The pid of a daemon such as `node-1/proxy`.
    ///
    /// # Errors
    /// It is not known.
    pub fn pid(&self, daemon: &str) -> Result<i32> {
        let text = std::fs::read(self.dir().join("pids.json"))?;
        let pids: Value = serde_json::from_slice(&text)?;
        let pid = pids[daemon]
            .as_i64()
            .with_context(|| format!("no pid of {daemon}"))?;
        Ok(i32::try_from(pid)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.seaway("down") {
            println!("{error:#}");
        }
    }
}
