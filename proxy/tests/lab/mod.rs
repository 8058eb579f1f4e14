//! A node with two pods, a remote pod and a client, each a network namespace of the test's own, and
//! the real binary on the node.
//!
//! ```text
//!   cli 192.168.0.9 ---- eth0 192.168.0.2 [node] cni0 10.180.0.254 ---- p1 .1, p2 .2
//!                                            rem0 10.180.1.254 -------- p3 10.180.1.1
//! ```
//! IPv6 beside it: 2001:db8::9 and ::2, fd00:180::fe with ::1 and ::2, fd00:180:1::fe with ::1.

pub(crate) mod asking;
pub(crate) mod place;
pub(crate) mod talk;
pub(crate) mod udp;
mod wire;

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::sockets::Sockets;
use linux::NetNs;
use linux::exec::Exec;
use linux::iptables::{Family, Iptables};
use linux::nftables::{self, Nftables};
use linux::process::Daemon;
use proxy::backend::Mode;
use proxy::backend::nftables::dump;

use place::Place;
use talk::{PORT, patience};

/// How long a condition is waited for. After it has compared all rules the proxy rests ten times as
/// long as that took, which on a busy machine is a second or two.
fn patience_for_conditions() -> Duration {
    patience() * 2
}

/// The whole lab.
pub(crate) struct Lab {
    pub(crate) node: Place,
    pub(crate) p1: Place,
    pub(crate) p2: Place,
    pub(crate) p3: Place,
    pub(crate) cli: Place,
    pub(crate) manifests: PathBuf,
    log: PathBuf,
    mode: Mode,
    more: Vec<String>,
    proxy: Option<Child>,
    /// A proxy beside it.
    other: Option<Child>,
    sockets: Option<Sockets>,
    _dir: tempfile::TempDir,
}

/// Why a test of nf_tables cannot run.
pub(crate) const NO_NF_TABLES: &str = "this kernel has no tables of nf_tables for IP";

/// Whether the kernel has tables of nf_tables for both families.
pub(crate) fn has_nf_tables() -> bool {
    let families = [nftables::Family::Ipv4, nftables::Family::Ipv6];
    let has = |family| Nftables::has_family(family).unwrap();
    let netns = NetNs::anonymous().unwrap();
    netns.run(|| families.into_iter().all(has)).unwrap()
}

impl Lab {
    /// In mode iptables.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::in_mode(test, Mode::Iptables)
    }

    /// Without rights: says so, and is `None`.
    pub(crate) fn in_mode(test: &str, mode: Mode) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        if mode == Mode::Nftables && !has_nf_tables() {
            println!("SKIPPED {test}: {NO_NF_TABLES}");
            return None;
        }
        let mut lab = Self::places(mode);
        wire::wire(&mut lab);
        for (place, name) in [(&lab.p1, "p1"), (&lab.p2, "p2"), (&lab.p3, "p3")] {
            place.serve(name);
        }
        lab.settle();
        Some(lab)
    }

    /// Waits until everybody reaches everybody: links come up and neighbours are learnt by and by.
    fn settle(&self) {
        let pods = [
            "10.180.0.1",
            "10.180.0.2",
            "10.180.1.1",
            "[fd00:180::1]",
            "[fd00:180::2]",
            "[fd00:180:1::1]",
        ];
        for place in [&self.node, &self.p1, &self.p2, &self.p3, &self.cli] {
            for pod in pods {
                let to = format!("{pod}:{PORT}");
                self.wait(&to, |_| place.ask(&to).is_ok());
            }
        }
    }

    fn places(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let [node, p1, p2, p3, cli] = ["node", "p1", "p2", "p3", "cli"].map(Place::new);
        Self {
            node,
            p1,
            p2,
            p3,
            cli,
            log: dir.path().join("log"),
            manifests,
            mode,
            more: Vec::new(),
            proxy: None,
            other: None,
            sockets: None,
            _dir: dir,
        }
    }

    /// More flags for the proxy, or another value for one.
    #[must_use]
    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.more_flags(flags);
        self
    }

    /// As [`Lab::with`], from the next start on.
    pub(crate) fn more_flags(&mut self, flags: &[&str]) {
        if let Some(at) = self
            .more
            .iter()
            .position(|known| flags.first() == Some(&known.as_str()))
        {
            self.more.drain(at..at + flags.len());
        }
        self.more
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// In mode ebpf, with the node and its pods in a control group of their own.
    #[must_use]
    pub(crate) fn with_sockets(mut self) -> Self {
        let sockets = Sockets::new().unwrap();
        for place in [&mut self.node, &mut self.p1, &mut self.p2] {
            place.group = Some(sockets.dir.clone());
        }
        self.more.push("--mode=ebpf".to_owned());
        self.more.extend(sockets.args());
        self.sockets = Some(sockets);
        self
    }

    /// Where mode ebpf pins.
    pub(crate) fn pins(&self) -> Option<PathBuf> {
        Some(self.sockets.as_ref()?.pins.clone())
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = [
            "--hostname-override",
            "node",
            "--cluster-cidr",
            "10.180.0.0/16,fd00:180::/32",
            "--log-level",
            "debug",
        ]
        .map(str::to_owned)
        .into();
        if !self.more.iter().any(|flag| flag.starts_with("--master")) {
            args.extend([
                "--manifests".to_owned(),
                self.manifests.display().to_string(),
            ]);
        }
        args.extend(["--mode".to_owned(), self.mode.name().to_owned()]);
        args.extend(self.more.iter().cloned());
        args
    }

    fn daemon(&self, args: Vec<String>) -> Child {
        self.daemon_to(args, &self.log)
    }

    fn daemon_to(&self, args: Vec<String>, log: &std::path::Path) -> Child {
        let daemon = Daemon {
            program: env!("CARGO_BIN_EXE_proxy").into(),
            args: args.into_iter().map(Into::into).collect(),
            netns: Some(self.node.path.clone()),
            log: Some(log.to_owned()),
            ..Daemon::default()
        };
        daemon.spawn().unwrap()
    }

    /// Starts the proxy and waits for its first sync.
    pub(crate) fn start(&mut self) {
        let before = self.log_text().matches("full sync").count();
        self.proxy = Some(self.daemon(self.args()));
        self.wait("the first sync of both families", |lab| {
            lab.log_text().matches("full sync").count() >= before + 2
        });
    }

    /// Another proxy with the same flags and more, until it ends: its exit code and what it said.
    pub(crate) fn second(&self, more: &[&str]) -> (Option<i32>, String) {
        let log = self.log.with_extension("second");
        let mut args = self.args();
        args.extend(more.iter().map(|flag| (*flag).to_owned()));
        let status = self.daemon_to(args, &log).wait().unwrap();
        (status.code(), fs::read_to_string(log).unwrap_or_default())
    }

    /// Starts another proxy beside the first one, with the same flags and more.
    pub(crate) fn start_other(&mut self, more: &[&str]) {
        let mut args = self.args();
        args.extend(more.iter().map(|flag| (*flag).to_owned()));
        self.other = Some(self.daemon_to(args, &self.log.with_extension("other")));
    }

    pub(crate) fn other_log(&self) -> String {
        fs::read_to_string(self.log.with_extension("other")).unwrap_or_default()
    }

    /// The proxy's process.
    pub(crate) fn pid(&self) -> u32 {
        self.proxy.as_ref().unwrap().id()
    }

    /// Starts the proxy and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        self.proxy = Some(self.daemon(self.args()));
    }

    /// Waits until the proxy has ended by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let mut child = self.proxy.take().unwrap();
        let mut code = None;
        self.wait("the end of the proxy", |_| {
            match child.try_wait().unwrap() {
                Some(status) => {
                    code = status.code();
                    true
                }
                None => false,
            }
        });
        code
    }

    /// Runs the proxy with `--cleanup`.
    pub(crate) fn cleanup(&mut self) {
        let mut args = self.args();
        args.push("--cleanup".to_owned());
        let status = self.daemon(args).wait().unwrap();
        assert!(status.success(), "{}", self.log_text());
    }

    /// Stops the proxy.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) {
        if let Some(mut child) = self.proxy.take() {
            let pid = i32::try_from(child.id()).unwrap();
            linux::process::signal(pid, signal).unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Writes a manifest as editors and tools do: beside it, then moved.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.manifests.join(format!(".{name}"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.manifests.join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.manifests.join(name)).unwrap();
    }

    /// Waits for a condition; shows rules and log when it does not come.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + patience_for_conditions();
        while !done(self) {
            if Instant::now() > deadline {
                panic!(
                    "{what} did not come\n{}\n{}",
                    self.rules(Family::V4),
                    self.log_text()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The rules on the node, without what changes by itself.
    pub(crate) fn rules(&self, family: Family) -> String {
        // The program first reads the rules and then asks for the name of each set in them. When rules
        // and sets go in between, it fails; the next one is whole.
        let save = || Iptables::detect(family).unwrap().save(None);
        let deadline = Instant::now() + patience_for_conditions();
        let text = loop {
            match self.node.run(save) {
                Ok(text) => break text,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let own =
            |line: &&str| line.starts_with("-A") || (line.starts_with(':') && line.contains(" - "));
        text.lines()
            .filter(own)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// The table of nftables mode, as the kernel has it; empty where there is none.
    pub(crate) fn table(&self, family: api::cidr::Family) -> String {
        let list = move || {
            let mut nft = Nftables::open().unwrap();
            dump::kernel(&mut nft, family).unwrap().unwrap_or_default()
        };
        self.node.run(list)
    }

    /// Whether anything for a service is in the kernel.
    pub(crate) fn knows(&self, service: &str) -> bool {
        let text = match self.mode {
            Mode::Nftables => self.table(api::cidr::Family::V4),
            _ => self.rules(Family::V4),
        };
        text.contains(service)
    }

    /// From now on (after the next start) in another mode.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Runs a program on the node, as somebody else would.
    pub(crate) fn run_program(&self, program: &str, words: &[&str]) -> String {
        let run = || Exec::new(program).args(words).output().unwrap();
        let output = self.node.run(run);
        assert!(output.status.success(), "{program} {words:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Applies restore text on the node, as somebody else would.
    pub(crate) fn restore(&self, text: &str) {
        self.node
            .run(|| Iptables::detect(Family::V4).unwrap().restore(text).unwrap());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop(nix::sys::signal::Signal::SIGKILL);
        if let Some(mut other) = self.other.take() {
            drop(other.kill());
            drop(other.wait());
        }
        if std::thread::panicking() {
            println!("{}\n{}", self.log_text(), self.other_log());
        }
    }
}

/// A service and its endpoints.
pub(crate) fn service(name: &str, spec: &str, endpoints: &[(&str, &str)]) -> String {
    let v4: Vec<_> = endpoints
        .iter()
        .filter(|(ip, _)| !ip.contains(':'))
        .collect();
    let v6: Vec<_> = endpoints
        .iter()
        .filter(|(ip, _)| ip.contains(':'))
        .collect();
    let mut text = format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    for (kind, endpoints) in [("IPv4", v4), ("IPv6", v6)] {
        let list: Vec<String> = endpoints
            .iter()
            .map(|(ip, node)| format!("{{addresses: [\"{ip}\"], nodeName: {node}}}"))
            .collect();
        text.push_str(&format!(
            "---\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\nports: [{{port: {PORT}}}, {{name: udp, port: {PORT}, protocol: UDP}}]\nendpoints: [{}]\n",
            kind.to_lowercase(),
            list.join(", ")
        ));
    }
    text
}
