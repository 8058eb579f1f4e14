//! Nodes on a bridge, an API of a few lines, and daemons on threads inside the nodes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::cni::AddResult;
use api::core::Node as NodeObject;
use api::watch::Event;
use cni_plugin::overlay::backend::{Backend, Vxlan};
use cni_plugin::overlay::daemon::{self, Annotations};
use cni_plugin::overlay::firewall::Masquerader;
use cni_plugin::overlay::health::Health;
use cni_plugin::overlay::model::{IfaceChoice, Settings};
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use linux::addr::Addr;
use linux::exec::{Exec, Output};
use linux::iptables::{Family, Iptables};
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::route::{PROTOCOL_SEAWAY, Route, RouteFilter};
use linux::{Host, Kernel, NetNs};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// Everything here takes milliseconds; this is for a machine that is busy, and longer for one that
/// says that it is slow.
pub(crate) fn deadline() -> Duration {
    linux::patience::scaled(Duration::from_secs(60))
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < deadline(), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a packet with this payload gets through unfragmented.
pub(crate) fn ping(netns: &NetNs, address: IpAddr, size: usize) -> bool {
    ping_output(netns, address, size).status.success()
}

/// What `ping` says to it.
pub(crate) fn ping_text(netns: &NetNs, address: IpAddr, size: usize) -> String {
    ping_output(netns, address, size).text()
}

fn ping_output(netns: &NetNs, address: IpAddr, size: usize) -> Output {
    let size = size.to_string();
    let exec = Exec::new("ping")
        .args(["-c", "1", "-W", "5", "-M", "do", "-s", &size])
        .arg(address.to_string());
    netns.run(|| exec.output()).unwrap().unwrap()
}

/// Node objects, and those who watch them.
#[derive(Clone, Default)]
pub(crate) struct Api {
    inner: Arc<Mutex<Inner>>,
    /// Daemons pass it with each event.
    gate: Arc<Mutex<()>>,
    /// How many are at it.
    at_gate: Arc<AtomicUsize>,
}

/// Daemons that hear of anything wait until this goes, and do nothing else meanwhile.
pub(crate) struct Held<'a> {
    _gate: MutexGuard<'a, ()>,
    at_gate: &'a AtomicUsize,
}

impl Held<'_> {
    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.at_gate.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<String, Value>,
    watchers: Vec<UnboundedSender<Event<NodeObject>>>,
}

impl Api {
    fn watch(&self) -> UnboundedReceiver<Event<NodeObject>> {
        let (sender, receiver) = unbounded();
        let mut inner = self.inner.lock().unwrap();
        let send = |event| sender.unbounded_send(event).unwrap();
        send(Event::Init);
        for node in inner.nodes.values() {
            send(Event::InitApply(read(node)));
        }
        send(Event::InitDone);
        inner.watchers.push(sender);
        receiver
    }

    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut inner = self.inner.lock().unwrap();
        let node = inner.nodes.entry(name.to_owned()).or_default();
        change(node);
        let node = read(node);
        inner.tell(&Event::Apply(node));
    }

    /// From now on every daemon that hears of a change waits.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held {
            _gate: self.gate.lock().unwrap(),
            at_gate: &self.at_gate,
        }
    }

    /// A daemon takes an event.
    fn pass(&self) {
        self.at_gate.fetch_add(1, Ordering::SeqCst);
        drop(self.gate.lock().unwrap());
        self.at_gate.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        let node = read(&inner.nodes.remove(name).unwrap());
        inner.tell(&Event::Delete(node));
    }

    /// All nodes.
    pub(crate) fn objects(&self) -> Vec<Value> {
        self.inner.lock().unwrap().nodes.values().cloned().collect()
    }

    /// The annotations of a node.
    pub(crate) fn annotations(&self, name: &str) -> Value {
        self.inner.lock().unwrap().nodes[name]["metadata"]["annotations"].clone()
    }

    fn annotate(&self, name: &str, annotations: Annotations) {
        self.change(name, |node| {
            for (key, value) in annotations {
                node["metadata"]["annotations"][key] = json!(value);
            }
        });
    }
}

impl Inner {
    fn tell(&mut self, event: &Event<NodeObject>) {
        self.watchers
            .retain(|watcher| watcher.unbounded_send(event.clone()).is_ok());
    }
}

fn read(node: &Value) -> NodeObject {
    serde_json::from_value(node.clone()).unwrap()
}

/// Nodes on a bridge.
pub(crate) struct Lab {
    pub(crate) nodes: Vec<Node>,
    pub(crate) api: Api,
    /// The bridge's namespace, which is outside of the cluster, and its addresses.
    pub(crate) fabric: NetNs,
    pub(crate) outside: Vec<IpAddr>,
}

/// A node: a namespace with `eth0` on the bridge, and its daemon.
pub(crate) struct Node {
    pub(crate) netns: NetNs,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) settings: Settings,
    daemon: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// A pod and its addresses.
pub(crate) struct Pod {
    pub(crate) netns: NetNs,
    pub(crate) ips: Vec<IpAddr>,
}

/// A pod whose namespace is mounted, until this goes.
pub(crate) struct MountedPod {
    pub(crate) pod: Pod,
    path: std::path::PathBuf,
}

impl Drop for MountedPod {
    fn drop(&mut self) {
        drop(NetNs::remove(&self.path));
    }
}

/// Whether the kernel has tables of nftables for both families.
pub(crate) fn takes_tables() -> bool {
    use linux::nftables::{Family as Nf, Nftables};
    let takes = |family| Nftables::has_family(family).unwrap();
    let both = || takes(Nf::Ipv4) && takes(Nf::Ipv6);
    NetNs::anonymous().unwrap().run(both).unwrap()
}

/// The same, said aloud where not; without the rights [`Lab`] says so.
pub(crate) fn has_tables_of_ip(test: &str) -> bool {
    let has = !nix::unistd::geteuid().is_root() || takes_tables();
    if !has {
        println!("SKIPPED {test}: this kernel has no tables of nf_tables for IP");
    }
    has
}

pub(crate) fn kernel(netns: &NetNs) -> Kernel {
    Kernel::open_in(NetNs::open(netns.path()).unwrap()).unwrap()
}

impl Lab {
    /// `count` nodes with running daemons; `None`, said aloud, without the rights.
    pub(crate) fn new(test: &str, count: u8, dual: bool) -> Option<Self> {
        Self::with(test, count, dual, &|_| {})
    }

    /// The same with other settings.
    pub(crate) fn with(
        test: &str,
        count: u8,
        dual: bool,
        set: &dyn Fn(&mut Settings),
    ) -> Option<Self> {
        let mut lab = Self::bare(test, dual)?;
        for i in 1..=count {
            let mut node = lab.node(i, dual);
            set(&mut node.settings);
            lab.nodes.push(node);
        }
        let api = lab.api.clone();
        for node in &mut lab.nodes {
            node.start(&api);
        }
        let others = usize::from(count) - 1;
        for node in &lab.nodes {
            wait_until("routes to all nodes", || {
                node.routes() == others * (1 + usize::from(dual))
            });
        }
        Some(lab)
    }

    /// No nodes yet.
    pub(crate) fn bare(test: &str, dual: bool) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        // What the daemons say stands beside a failure.
        let log = tracing_subscriber::fmt().with_test_writer().try_init();
        drop(log);
        let fabric = NetNs::anonymous().unwrap();
        let mut host = kernel(&fabric);
        host.add_bridge(&NewBridge {
            name: "br0".into(),
            ..NewBridge::default()
        })
        .unwrap();
        host.set_link("br0", &LinkChange::up()).unwrap();
        Some(Self {
            nodes: Vec::new(),
            api: Api::default(),
            outside: addresses(&mut host, "br0", 1, dual),
            fabric,
        })
    }

    /// A node, in the API too, whose daemon does not run.
    pub(crate) fn node(&self, i: u8, dual: bool) -> Node {
        let netns = NetNs::anonymous().unwrap();
        let mut host = kernel(&netns);
        // Nobody else has a link's own address; until the kernel is sure, it asks for no neighbour from it.
        let duplicates = "net/ipv6/conf/default/accept_dad";
        host.set_sysctl(duplicates, "0").unwrap();
        let port = format!("n{i}");
        let mut fabric = kernel(&self.fabric);
        fabric
            .add_veth(&NewVeth {
                name: port.clone(),
                mtu: Some(9000),
                master: Some("br0".into()),
                peer_name: "eth0".into(),
                peer_netns: Some(host.netns()),
                ..NewVeth::default()
            })
            .unwrap();
        fabric.set_link(&port, &LinkChange::up()).unwrap();
        host.set_link("lo", &LinkChange::up()).unwrap();
        let mut up = LinkChange::up();
        up.mtu = Some(1500);
        host.set_link("eth0", &up).unwrap();
        let ips = addresses(&mut host, "eth0", 10 + i, dual);
        let mut subnets = vec![format!("10.244.{i}.0/24")];
        if dual {
            subnets.push(format!("fd00:10:244:{i}::/64"));
        }
        let internal: Vec<_> = ips
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        let name = format!("n{i}");
        self.api.change(&name, |node| {
            *node = json!({
                "metadata": {"name": name},
                "spec": {"podCIDRs": subnets},
                "status": {"addresses": internal},
            });
        });
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            node_name: name,
            iface: IfaceChoice::default(),
            public: Vec::new(),
            subnet_file: Some(dir.path().join("subnet.env")),
            backend: Backend::Vxlan(Vxlan::default()),
            kernel: linux::kernel::release(),
            cni_conf_dir: dir.path().join("net.d"),
            cni_state_dir: dir.path().join("leases"),
            cluster_cidrs: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:10:244::/48".parse().unwrap(),
            ],
            masquerade: true,
            masquerader: Masquerader::Auto,
            // Where that is the question.
            pace: None,
        };
        Node {
            netns,
            ips,
            dir,
            settings,
            daemon: None,
        }
    }
}

pub(crate) fn has_iptables() -> bool {
    Iptables::detect(Family::V4).is_ok()
}

fn addresses(host: &mut Kernel, link: &str, last: u8, dual: bool) -> Vec<IpAddr> {
    let mut nets = vec![format!("172.31.250.{last}/24")];
    if dual {
        nets.push(format!("fd00:31:250::{last:x}/64"));
    }
    let add = |net: String| {
        let addr = Addr::new(net.parse().unwrap());
        host.add_addr(link, &addr).unwrap();
        addr.net.ip()
    };
    nets.into_iter().map(add).collect()
}

impl Node {
    pub(crate) fn kernel(&self) -> Kernel {
        kernel(&self.netns)
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&mut self, api: &Api) {
        let netns = NetNs::open(self.netns.path()).unwrap();
        let settings = self.settings.clone();
        let api = api.clone();
        let (stop, stopped) = oneshot::channel();
        let (is_ready, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let serve = || {
                let name = settings.node_name.clone();
                let nodes = api.watch().inspect(|_| api.pass());
                let publish = |annotations| api.annotate(&name, annotations);
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let stop = async { drop(stopped.await) };
                let ready = || is_ready.send(()).unwrap();
                let health = Arc::new(Health::default());
                let (_hold, holds) = tokio::sync::watch::channel(true);
                let run = daemon::run(settings, nodes, publish, holds, ready, health, stop);
                runtime.block_on(run).unwrap();
            };
            netns.run(serve).unwrap();
        });
        self.daemon = Some((stop, thread));
        ready.recv_timeout(deadline()).unwrap();
    }

    /// Stops the daemon, which leaves everything as it is.
    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.daemon.take() {
            drop(stop);
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("the daemon panicked");
            }
        }
    }

    pub(crate) fn cleanup(&self) {
        let done = self.netns.run(|| daemon::cleanup(&self.settings));
        done.unwrap().unwrap();
    }

    pub(crate) fn routes(&self) -> usize {
        self.our_routes().len()
    }

    /// Our routes, sorted.
    pub(crate) fn our_routes(&self) -> Vec<Route> {
        let ours = RouteFilter {
            protocol: Some(PROTOCOL_SEAWAY),
            ..RouteFilter::default()
        };
        let mut routes = self.kernel().routes(&ours).unwrap();
        routes.sort();
        routes
    }

    /// Writes the configuration of pods where no daemon does.
    pub(crate) fn write_conflist(&self, subnet: &str, mtu: u32) {
        let pods = cni_plugin::overlay::model::Pods {
            mtu,
            subnets: vec![subnet.parse().unwrap()],
        };
        for (path, text) in cni_plugin::overlay::files::all(&self.settings, &pods) {
            cni_plugin::overlay::files::write(&path, &text).unwrap();
        }
    }

    pub(crate) fn conflist(&self) -> Value {
        let path = self.dir.path().join("net.d/10-seaway.conflist");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Makes a pod with the configuration that the daemon wrote.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        self.pod_in(name, NetNs::anonymous().unwrap())
    }

    /// The same in a namespace that is mounted, as runtimes mount it.
    pub(crate) fn mounted_pod(&self, name: &str) -> MountedPod {
        let path = self.dir.path().join("netns").join(name);
        let netns = NetNs::create(&path).unwrap();
        MountedPod {
            path,
            pod: self.pod_in(name, netns),
        }
    }

    fn pod_in(&self, name: &str, netns: NetNs) -> Pod {
        let conflist = self.conflist();
        let mut conf = conflist["plugins"][0].clone();
        conf["name"] = conflist["name"].clone();
        conf["cniVersion"] = conflist["cniVersion"].clone();
        let env = [
            ("CNI_COMMAND", "ADD".to_owned()),
            ("CNI_CONTAINERID", name.to_owned()),
            ("CNI_NETNS", netns.path().display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/nowhere".to_owned()),
        ];
        let exec = Exec::new(env!("CARGO_BIN_EXE_seaway-cni"))
            .env_only(env)
            .stdin(conf.to_string());
        let output = self.netns.run(|| exec.output()).unwrap().unwrap();
        let result: AddResult = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", output.text()));
        let nets = result.addresses_of("eth0");
        Pod {
            netns,
            ips: nets.iter().map(|net| net.ip()).collect(),
        }
    }

    /// Everything of a device that must be right, as text.
    pub(crate) fn state(&self, device: &str) -> String {
        let mut host = self.kernel();
        let Ok(Some(link)) = host.link(device) else {
            return String::new();
        };
        let vxlan = link.vxlan.clone().map(|v| (v.vni, v.port, v.local));
        let mut text = format!("{:?} {} {} {vxlan:?}\n", link.mac, link.mtu, link.up);
        let mut lines: Vec<String> = Vec::new();
        for addr in host.addrs(device).unwrap_or_default() {
            lines.push(format!("addr {}", addr.net));
        }
        for neigh in host.neighs(device).unwrap_or_default() {
            let mac = neigh.mac.unwrap_or_default();
            lines.push(format!("neigh {} {mac} {}", neigh.dst, neigh.permanent));
        }
        for entry in host.fdb(device).unwrap_or_default() {
            let dst = entry.dst.map(|ip| ip.to_string()).unwrap_or_default();
            lines.push(format!("fdb {} {dst}", entry.mac));
        }
        let filter = RouteFilter {
            dev: Some(device),
            protocol: Some(PROTOCOL_SEAWAY),
            ..RouteFilter::default()
        };
        let routes: Vec<Route> = host.routes(&filter).unwrap_or_default();
        lines.extend(routes.iter().map(|r| format!("route {r} {}", r.onlink)));
        lines.sort();
        for line in lines {
            writeln!(text, "{line}").unwrap();
        }
        text
    }

    /// All rules of iptables.
    pub(crate) fn rules(&self) -> String {
        if !has_iptables() {
            return String::new();
        }
        let save = |family| Iptables::detect(family)?.save(None);
        let text = self
            .netns
            .run(|| [Family::V4, Family::V6].map(|family| save(family).unwrap()));
        text.unwrap().concat()
    }

    /// Whether the table of nftables is there, for both families.
    pub(crate) fn has_tables(&self) -> bool {
        use linux::nftables::{Family as Nf, Nftables, TableRef};
        let look = || {
            let mut door = Nftables::open().unwrap();
            let mut has = |family| {
                let table = TableRef::new(family, "seaway-overlay");
                door.has_table(&table).unwrap() && door.rules(&table).unwrap().len() >= 3
            };
            has(Nf::Ipv4) && has(Nf::Ipv6)
        };
        self.netns.run(look).unwrap()
    }

    /// Deletes the table of nftables of one family.
    pub(crate) fn delete_table(&self) {
        use linux::nftables::{Family as Nf, Nftables, TableRef};
        let table = TableRef::new(Nf::Ipv4, "seaway-overlay");
        let delete = || Nftables::open().unwrap().ensure_no_table(&table).unwrap();
        assert!(self.netns.run(delete).unwrap());
    }

    pub(crate) fn iptables(&self, text: &str) {
        let restore = || Iptables::detect(Family::V4)?.restore(text);
        self.netns.run(restore).unwrap().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}
