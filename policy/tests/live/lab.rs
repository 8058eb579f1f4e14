//! Two nodes with nine pods in three namespaces, joined by routes, each with its enforcer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::watch::Event;
use linux::exec::Exec;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::nftables::{Family, Nftables};
use linux::{Host, Kernel, NetNs};
use policy::enforcer::{Input, Report};
use policy::{Bridged, Enforcer, Options};
use serde_json::{Value, json};

use crate::probe::Servers;
use crate::worker::Worker;

pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    /// Index of its node.
    pub(crate) node: usize,
    pub(crate) ips: [IpAddr; 2],
    pub(crate) object: Value,
    pub(crate) worker: Worker<()>,
    _servers: Servers,
    _netns: NetNs,
}

impl Pod {
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

pub(crate) struct Node {
    pub(crate) netns: NetNs,
    pub(crate) enforcer: Worker<Enforcer>,
}

pub(crate) struct Lab {
    pub(crate) pods: Vec<Pod>,
    pub(crate) nodes: Vec<Node>,
    /// Policies as they were set, by namespace and name.
    pub(crate) policies: BTreeMap<(String, String), Value>,
}

/// Packets between pods of one node are routed.
pub(crate) const ROUTED: Options = Options {
    bridged: Bridged::Route,
    deny_unknown: false,
};

pub(crate) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];

fn kernel(netns: &NetNs) -> Kernel {
    Kernel::open_in(NetNs::open(netns.path()).unwrap()).unwrap()
}

fn ip(netns: &NetNs, lines: &str) {
    let exec = Exec::new("ip").args(["-b", "-"]).stdin(lines.to_owned());
    let output = netns.run(|| exec.output()).unwrap().unwrap();
    assert!(output.status.success(), "{lines}\n{}", output.text());
}

pub(crate) fn nft(netns: &NetNs, words: &[&str]) -> String {
    let exec = Exec::new("nft").args(words);
    let output = netns.run(|| exec.output()).unwrap().unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {} {} {}",
        output.status,
        output.text(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Without the rights, and without tables of nf_tables, there is no lab; that is said.
pub(crate) fn can_run(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return false;
    }
    let netns = NetNs::anonymous().unwrap();
    let has = netns.run(|| Nftables::has_family(Family::Inet).unwrap());
    let has = has.unwrap();
    if !has {
        println!("SKIPPED {test}: this kernel has no tables of nf_tables for IP");
    }
    has
}

/// As on a kernel without br_netfilter: nothing that crosses a bridge meets the hooks of IP.
fn without_netfilter() {
    for setting in policy::bridge::SETTINGS {
        if linux::sysctl::read(setting).is_ok() {
            linux::sysctl::write(setting, "0").unwrap();
        }
    }
}

fn node_netns(n: usize, other: Option<&NetNs>) -> NetNs {
    let netns = NetNs::anonymous().unwrap();
    let mut host = kernel(&netns);
    // Nobody else has a link's own address; until the kernel is sure, it asks for no neighbour from it.
    let duplicates = "net/ipv6/conf/default/accept_dad";
    host.set_sysctl(duplicates, "0").unwrap();
    host.set_link("lo", &LinkChange::up()).unwrap();
    host.add_bridge(&NewBridge {
        name: "cni0".into(),
        ..NewBridge::default()
    })
    .unwrap();
    if let Some(other) = other {
        let veth = NewVeth {
            name: "eth0".into(),
            peer_name: "eth0".into(),
            peer_netns: Some(other.reference()),
            ..NewVeth::default()
        };
        host.add_veth(&veth).unwrap();
    }
    let run = || {
        linux::sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        linux::sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
    };
    netns.run(run).unwrap();
    ip(
        &netns,
        &format!(
            "addr add 10.244.{n}.1/24 dev cni0\naddr add fd00:10:244:{n}::1/64 dev cni0 nodad\n\
             link set cni0 up\n"
        ),
    );
    netns
}

fn join(n: usize, netns: &NetNs) {
    let other = 3 - n;
    ip(
        netns,
        &format!(
            "addr add 172.31.250.1{n}/24 dev eth0\naddr add fd00:31:250::1{n}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add 10.244.{other}.0/24 via 172.31.250.1{other}\n\
             route add fd00:10:244:{other}::/64 via fd00:31:250::1{other}\n"
        ),
    );
}

fn pod(i: usize, node: &NetNs) -> Pod {
    let n = i % 2 + 1;
    let (namespace, name) = (NAMESPACES[i / 3], NAMES[i % 3]);
    let host = 10 + i;
    let netns = NetNs::anonymous().unwrap();
    let mut kernel = kernel(node);
    let veth = NewVeth {
        name: format!("veth{i}"),
        master: Some("cni0".into()),
        peer_name: "eth0".into(),
        peer_netns: Some(netns.reference()),
        ..NewVeth::default()
    };
    kernel.add_veth(&veth).unwrap();
    kernel
        .set_link(&format!("veth{i}"), &LinkChange::up())
        .unwrap();
    ip(
        &netns,
        &format!(
            "link set lo up\naddr add 10.244.{n}.{host}/24 dev eth0\n\
             addr add fd00:10:244:{n}::{host}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.244.{n}.1\nroute add default via fd00:10:244:{n}::1\n"
        ),
    );
    let ips = [
        format!("10.244.{n}.{host}"),
        format!("fd00:10:244:{n}::{host}"),
    ];
    let web = if name == "a" { 80 } else { 81 };
    let mut ports = vec![json!({"name": "web", "containerPort": web})];
    for port in [80, 81] {
        for protocol in ["TCP", "UDP", "SCTP"] {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            ports.push(json!({"name": name, "containerPort": port, "protocol": protocol}));
        }
    }
    let object = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"pod": name}},
        "spec": {"nodeName": format!("n{n}"), "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ips[0]}, {"ip": ips[1]}]},
    });
    Pod {
        namespace,
        name,
        node: n - 1,
        ips: ips.map(|ip| ip.parse().unwrap()),
        object,
        worker: Worker::start(&netns, || ()),
        _servers: Servers::start(&netns),
        _netns: netns,
    }
}

pub(crate) fn pod_input(object: &Value) -> Input {
    Input::Pod(Event::Apply(
        serde_json::from_value(object.clone()).unwrap(),
    ))
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    /// With what an operator chose. Where packets are to be routed, br_netfilter does nothing.
    pub(crate) fn with(options: Options) -> Self {
        let first = node_netns(1, None);
        let second = node_netns(2, Some(&first));
        join(1, &first);
        join(2, &second);
        let mut nodes = Vec::new();
        for (i, netns) in [first, second].into_iter().enumerate() {
            if options.bridged == Bridged::Route {
                netns.run(without_netfilter).unwrap();
            }
            let name = format!("n{}", i + 1);
            let open = move || Enforcer::open(&name, options).unwrap();
            let enforcer = Worker::start(&netns, open);
            nodes.push(Node { netns, enforcer });
        }
        let pods = (0..9).map(|i| pod(i, &nodes[i % 2].netns)).collect();
        let lab = Self {
            pods,
            nodes,
            policies: BTreeMap::new(),
        };
        for i in 0..2 {
            let report = lab.list(i);
            assert!(report.objects > 0, "{report:?}");
        }
        lab
    }

    pub(crate) fn pod(&self, key: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.key() == key).unwrap()
    }

    /// Everything, as a list gives it.
    pub(crate) fn everything(&self, node: usize) -> Vec<Input> {
        let mut inputs = vec![
            Input::Policy(Event::Init),
            Input::Namespace(Event::Init),
            Input::Pod(Event::Init),
            Input::Node(Event::Init),
        ];
        for namespace in NAMESPACES {
            let labels = json!({"ns": namespace, "kubernetes.io/metadata.name": namespace});
            let object = json!({"metadata": {"name": namespace, "labels": labels}});
            let object = serde_json::from_value(object).unwrap();
            inputs.push(Input::Namespace(Event::InitApply(object)));
        }
        for pod in &self.pods {
            let object = serde_json::from_value(pod.object.clone()).unwrap();
            inputs.push(Input::Pod(Event::InitApply(object)));
        }
        for policy in self.policies.values() {
            let object = serde_json::from_value(policy.clone()).unwrap();
            inputs.push(Input::Policy(Event::InitApply(object)));
        }
        let n = node + 1;
        let nets = [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")];
        let object = json!({"metadata": {"name": format!("n{n}")}, "spec": {"podCIDRs": nets}});
        let object = serde_json::from_value(object).unwrap();
        inputs.push(Input::Node(Event::InitApply(object)));
        inputs.extend([
            Input::Policy(Event::InitDone),
            Input::Namespace(Event::InitDone),
            Input::Pod(Event::InitDone),
            Input::Node(Event::InitDone),
        ]);
        inputs
    }

    /// Tells a node's enforcer everything.
    pub(crate) fn list(&self, node: usize) -> Report {
        self.tell(node, self.everything(node))
    }

    /// Tells a node's enforcer, which acts.
    pub(crate) fn tell(&self, node: usize, inputs: Vec<Input>) -> Report {
        self.nodes[node].enforcer.call(move |enforcer| {
            for input in inputs {
                let problems = enforcer.take(input);
                assert_eq!(problems, Vec::<String>::new());
            }
            enforcer.sync().unwrap()
        })
    }

    /// Sets exactly these policies, on both nodes.
    pub(crate) fn set_policies(&mut self, policies: Vec<Value>) -> Vec<Report> {
        let key = |policy: &Value| {
            let text = |field: &str| policy["metadata"][field].as_str().unwrap().to_owned();
            (text("namespace"), text("name"))
        };
        let new: BTreeMap<_, _> = policies.into_iter().map(|p| (key(&p), p)).collect();
        let mut inputs = Vec::new();
        for (key, old) in &self.policies {
            if !new.contains_key(key) {
                let object = serde_json::from_value(old.clone()).unwrap();
                inputs.push(Input::Policy(Event::Delete(object)));
            }
        }
        for policy in new.values() {
            let object = serde_json::from_value(policy.clone()).unwrap();
            inputs.push(Input::Policy(Event::Apply(object)));
        }
        self.policies = new;
        (0..2).map(|node| self.tell(node, inputs.clone())).collect()
    }
}
