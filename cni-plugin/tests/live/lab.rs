//! A node and its pods as network namespaces, and the plugin as a runtime calls it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use api::cni::{AddResult, Error, ErrorCode};
use linux::exec::Exec;
use linux::route::RouteFilter;
use linux::{Host, Kernel, NetNs};
use serde_json::{Value, json};

/// How long something may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The plugin.
pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_seaway-cni");

/// Where programs are looked for.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// `PATH` for the reference plugins, which take the kind of iptables that the machine calls so: where
/// that one makes no chains in this kernel, the old kind stands before it.
pub(crate) fn path() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let netns = NetNs::anonymous().unwrap();
        let probe = Exec::new("iptables").args(["-t", "nat", "-N", "PROBE"]);
        if netns.run(|| probe.run()).unwrap().is_ok() {
            return PATH.to_owned();
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("old-iptables");
        std::fs::create_dir_all(&dir).unwrap();
        for family in ["iptables", "ip6tables"] {
            for more in ["", "-save", "-restore"] {
                let link = dir.join(format!("{family}{more}"));
                // It may be there from before.
                let made = symlink("/usr/sbin/xtables-legacy-multi", &link);
                assert!(made.is_ok() || link.is_symlink(), "{made:?}");
            }
        }
        format!("{}:{PATH}", dir.display())
    })
}

/// Ranges of one family.
pub(crate) const V4: &str = "10.244.7.0/24";
/// Ranges of the other family.
pub(crate) const V6: &str = "fd00:10:244:7::/64";

/// A node. All of it goes when it is dropped: the namespaces with their last holder.
pub(crate) struct Node {
    pub(crate) netns: NetNs,
    pub(crate) leases: tempfile::TempDir,
    ranges: Vec<&'static str>,
}

/// A pod's namespace and its name.
pub(crate) struct Pod {
    pub(crate) netns: NetNs,
    pub(crate) name: String,
}

impl Pod {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            netns: NetNs::anonymous().unwrap(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel::open_in(NetNs::open(self.netns.path()).unwrap()).unwrap()
    }
}

impl Node {
    /// A node whose network has these ranges; `None`, said aloud, without the rights.
    pub(crate) fn new(test: &str, ranges: &[&'static str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let netns = NetNs::anonymous().unwrap();
        Some(Self {
            netns,
            leases: tempfile::tempdir().unwrap(),
            ranges: ranges.to_vec(),
        })
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel::open_in(NetNs::open(self.netns.path()).unwrap()).unwrap()
    }

    /// The network's configuration.
    pub(crate) fn conf(&self) -> Value {
        let sets: Vec<Value> = self.ranges.iter().map(|r| json!([{"subnet": r}])).collect();
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "seaway-cni", "bridge": "cni0",
            "mtu": 1450,
            "ipam": {"type": "seaway", "dataDir": self.leases.path(), "ranges": sets}
        })
    }

    /// The call, ready to run.
    pub(crate) fn exec(
        &self,
        verb: &str,
        name: &str,
        netns: Option<PathBuf>,
        conf: &Value,
    ) -> Exec {
        self.exec_by(Exec::new(PLUGIN), verb, name, netns, conf)
    }

    /// The same by another program, which runs the plugin.
    pub(crate) fn exec_by(
        &self,
        program: Exec,
        verb: &str,
        name: &str,
        netns: Option<PathBuf>,
        conf: &Value,
    ) -> Exec {
        let netns = netns
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", name),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
            ),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        program
            .env_only(env)
            .stdin(conf.to_string())
            .timeout(Duration::from_secs(60))
    }

    /// Runs a call in the node's namespace.
    pub(crate) fn call(&self, exec: &Exec) -> Result<String, Error> {
        let output = self.netns.run(|| exec.output()).unwrap().unwrap();
        let text = output.text();
        assert!(
            output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        if output.status.success() {
            return Ok(text);
        }
        assert_eq!(output.status.code(), Some(1));
        Err(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}")))
    }

    pub(crate) fn add(&self, pod: &Pod) -> Result<AddResult, Error> {
        let text = self.call(&self.exec("ADD", &pod.name, Some(pod.netns.path()), &self.conf()))?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    pub(crate) fn check(&self, pod: &Pod, previous: &AddResult) -> Result<(), Error> {
        let mut conf = self.conf();
        conf["prevResult"] = json!(previous);
        let text = self.call(&self.exec("CHECK", &pod.name, Some(pod.netns.path()), &conf))?;
        assert!(text.is_empty(), "{text}");
        Ok(())
    }

    pub(crate) fn del(&self, pod: &Pod) -> Result<(), Error> {
        self.del_by_name(&pod.name, Some(pod.netns.path()))
    }

    pub(crate) fn del_by_name(&self, name: &str, netns: Option<PathBuf>) -> Result<(), Error> {
        let text = self.call(&self.exec("DEL", name, netns, &self.conf()))?;
        assert!(text.is_empty(), "{text}");
        Ok(())
    }

    /// Leased addresses with their owners.
    pub(crate) fn leases(&self) -> BTreeMap<IpAddr, String> {
        let mut leases = BTreeMap::new();
        for entry in std::fs::read_dir(self.leases.path().join("pods"))
            .into_iter()
            .flatten()
        {
            let path = entry.unwrap().path();
            if let Ok(ip) = path.file_name().unwrap().to_str().unwrap().parse() {
                leases.insert(ip, std::fs::read_to_string(path).unwrap());
            }
        }
        leases
    }

    /// Names of the node's links.
    pub(crate) fn links(&self) -> Vec<String> {
        let mut links: Vec<_> = self
            .kernel()
            .links()
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        links.sort();
        links
    }

    /// Links, addresses and routes of the node, without what passes by itself.
    pub(crate) fn dump(&self) -> String {
        dump(&mut self.kernel())
    }

    /// A pod comes and goes: it makes the bridge, which stays. The kernel gives the bridge its link-local
    /// address some time after the pod's port has a carrier, and asks for others that have it, so the
    /// pod stays until then.
    pub(crate) fn make_bridge(&self) {
        let first = Pod::new("first");
        self.add(&first).unwrap();
        wait_until("the bridge's link-local address", || {
            let dump = self.dump();
            let addresses = self.kernel().addrs("cni0").unwrap();
            let is_there = dump.contains("fe80::/64 dev cni0");
            let usable = addresses.iter().all(|addr| !addr.tentative);
            (is_there && usable).then_some(()).ok_or(dump)
        });
        self.del(&first).unwrap();
    }
}

/// Asks until there is an answer. Errors say what there is instead.
pub(crate) fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < deadline, "{what}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Links, addresses and routes of a namespace.
pub(crate) fn dump(host: &mut Kernel) -> String {
    let mut lines = Vec::new();
    for link in host.links().unwrap() {
        lines.push(format!(
            "{} {:?} {} {:?} {}",
            link.name, link.kind, link.mtu, link.mac, link.up
        ));
        for addr in host.addrs(&link.name).unwrap() {
            lines.push(format!("{} {}", link.name, addr.net));
        }
    }
    for route in host.routes(&RouteFilter::default()).unwrap() {
        lines.push(format!("{route} {}", route.protocol));
    }
    lines.sort();
    lines.join("\n")
}

/// The code and the words of a refusal.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Error>, code: ErrorCode, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}
