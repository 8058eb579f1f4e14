//! The lab of the tables: a node, pods on it, everything elsewhere, clients outside.
//!
//! ```text
//!  cli 203.0.113.2 ------ ext0 [node] cni0 --- pod 10.0.0.2, p1 10.180.0.1, p2 10.180.0.2: pods that call
//!  bad 203.0.113.130 ---- bad0   |    cni0 --- loc: all other endpoints on this node
//!  void ----------------- eth0   +--- rem0 --- rem: endpoints on other nodes
//! ```
//! The node's addresses are on eth0. `void` is its default route, and answers on every address that
//! is asked for: what arrives there was for no service. All links have host addresses only, so every
//! packet goes through the node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use api::cidr::{Family, parse_ip};
use ebpf_common::xdp::event as xdp_event;
use linux::Host;
use linux::link::{LinkChange, NewBridge};
use linux::process::Daemon;
use nix::sys::signal::Signal;

use super::site::Site;
use crate::cases::{Setting, word_in_ipv6};
use crate::sockets::{Sockets, enter};

/// Where connections of `pod` come from where each must be a client of its own.
pub(crate) const STRANGERS: u8 = 24;

/// The place of an endpoint that is always there, to see that packets flow.
pub(crate) const FENCE: &str = "10.199.0.1";

/// Where it listens.
pub(crate) const FENCE_PORT: u16 = 9;

/// An address in each of `families`.
pub(crate) fn both(ip: &str, families: &[Family]) -> Vec<IpAddr> {
    let of = |family: &Family| parse_ip(&mapped(ip, *family)).unwrap();
    families.iter().map(of).collect()
}

/// An address or network in a family.
pub(crate) fn mapped(text: &str, family: Family) -> String {
    match family {
        Family::V4 => text.to_owned(),
        Family::V6 => word_in_ipv6(text),
    }
}

/// Source ports, each used once in a lab, so that no connection meets another's state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ports(Arc<AtomicU16>);

impl Ports {
    /// What the kernel chooses from in a lab (both families).
    const KERNEL: &str = "61000 65535";
    /// Below that, above all ports of the tables.
    const FIRST: u16 = 33_000;
    const N: u16 = 61_000 - Self::FIRST;

    /// The next one.
    pub(crate) fn next(&self) -> u16 {
        Self::FIRST + self.0.fetch_add(1, Ordering::Relaxed) % Self::N
    }
}

/// All namespaces, and the proxy on the node.
pub(crate) struct Lab {
    pub(crate) node: Site,
    pub(crate) pods: Vec<(&'static str, Site)>,
    pub(crate) loc: Site,
    pub(crate) rem: Site,
    pub(crate) cli: Site,
    pub(crate) bad: Site,
    pub(crate) void: Site,
    /// All addresses of the node.
    pub(crate) own: Vec<IpAddr>,
    /// Source ports of what is asked here.
    pub(crate) ports: Ports,
    pub(crate) dir: tempfile::TempDir,
    families: Vec<Family>,
    pod_link: String,
    proxy: Option<Child>,
    sockets: Option<Sockets>,
}

impl Lab {
    /// Makes it. `settings` are those of each family.
    pub(crate) fn new(settings: &[(Family, Setting)]) -> Self {
        let families: Vec<Family> = settings.iter().map(|(family, _)| *family).collect();
        let pods = [
            ("10.0.0.2", "pod"),
            ("10.180.0.1", "p1"),
            ("10.180.0.2", "p2"),
        ];
        let mut lab = Self {
            node: Site::new("node"),
            pods: pods.map(|(ip, name)| (ip, Site::new(name))).into(),
            loc: Site::new("loc"),
            rem: Site::new("rem"),
            cli: Site::new("cli"),
            bad: Site::new("bad"),
            void: Site::new("void"),
            own: Vec::new(),
            ports: Ports::default(),
            dir: tempfile::tempdir().unwrap(),
            families,
            pod_link: "cni0".to_owned(),
            proxy: None,
            sockets: None,
        };
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            lab.node.kernel.set_sysctl(key, "1").unwrap();
        }
        let pods = lab.pods.iter_mut().map(|(_, site)| site);
        let others = [&mut lab.node, &mut lab.loc, &mut lab.rem, &mut lab.cli];
        let rest = [&mut lab.bad, &mut lab.void];
        for site in pods.chain(others).chain(rest) {
            let key = "net/ipv4/ip_local_port_range";
            site.kernel.set_sysctl(key, Ports::KERNEL).unwrap();
        }
        let node_ips: Vec<IpAddr> = settings.iter().flat_map(|(_, s)| s.ips()).collect();
        lab.outside(&node_ips);
        let prefix = settings.iter().find_map(|(_, s)| s.pod_interface.clone());
        lab.inside(prefix.as_deref());
        std::fs::create_dir(lab.manifests()).unwrap();
        lab
    }

    fn both(&self, ip: &str) -> Vec<IpAddr> {
        both(ip, &self.families)
    }

    /// Clients, the rest of the world, endpoints elsewhere.
    fn outside(&mut self, node_ips: &[IpAddr]) {
        let families = self.families.clone();
        let both = |ip: &str| both(ip, &families);
        let node = &mut self.node;
        let mut own = node_ips.to_vec();
        let joins = [
            (&mut self.void, "eth0", "100.64.0.1", "100.64.0.2"),
            (&mut self.cli, "ext0", "100.64.1.1", "203.0.113.2"),
            (&mut self.bad, "bad0", "100.64.2.1", "203.0.113.130"),
            (&mut self.rem, "rem0", "100.64.3.1", "100.64.3.2"),
        ];
        for (site, link, near, far) in joins {
            let (near, far) = (both(near), both(far));
            node.cable(link, None, site);
            node.up(link, &near);
            site.up("eth0", &far);
            let (there, here) = (site.mac("eth0"), node.mac(link));
            site.default_via("eth0", &near, here);
            node.on_link(link, &far, there);
            own.extend(near);
        }
        node.add_ips("eth0", node_ips);
        let void = self.void.mac("eth0");
        node.default_via("eth0", &both("100.64.0.2"), void);
        self.own = own;
        let fence = both(FENCE);
        self.rem.add_ips("lo", &fence);
        for ip in fence {
            self.endpoint_route(ip, false);
        }
    }

    /// Pods: on a bridge, or each on an interface of its own whose name begins with `prefix`.
    fn inside(&mut self, prefix: Option<&str>) {
        let gateways = self.both("10.180.0.254");
        self.own.extend(gateways.iter().copied());
        let mut sites: Vec<_> = self.pods.iter_mut().map(|(ip, site)| (*ip, site)).collect();
        sites.push(("10.180.0.253", &mut self.loc));
        if prefix.is_none() {
            let bridge = NewBridge {
                name: "cni0".into(),
                ..NewBridge::default()
            };
            self.node.kernel.add_bridge(&bridge).unwrap();
            // Said explicitly it stays, whatever ports come.
            let fixed = LinkChange {
                mac: Some(self.node.mac("cni0")),
                ..LinkChange::default()
            };
            self.node.kernel.set_link("cni0", &fixed).unwrap();
            self.node.up("cni0", &gateways);
        }
        for (i, (ip, site)) in sites.into_iter().enumerate() {
            let name = format!("{}{i}", prefix.unwrap_or("vp"));
            let ips = both(ip, &self.families);
            let link = match prefix {
                Some(_) => {
                    self.node.cable(&name, None, site);
                    self.node.up(&name, &gateways);
                    name.clone()
                }
                None => {
                    self.node.cable(&name, Some("cni0"), site);
                    let port = LinkChange {
                        up: Some(true),
                        hairpin: Some(true),
                        ..LinkChange::default()
                    };
                    self.node.kernel.set_link(&name, &port).unwrap();
                    "cni0".to_owned()
                }
            };
            site.up("eth0", &ips);
            let (there, here) = (site.mac("eth0"), self.node.mac(&link));
            site.default_via("eth0", &gateways, here);
            self.node.on_link(&link, &ips, there);
            self.pod_link = link;
        }
    }

    /// The way from the node to an endpoint.
    pub(crate) fn endpoint_route(&mut self, ip: IpAddr, local: bool) {
        let family = Family::of(ip);
        let (gateway, link) = if local {
            ("10.180.0.253", self.pod_link.clone())
        } else {
            ("100.64.3.2", "rem0".to_owned())
        };
        let gateway = parse_ip(&mapped(gateway, family)).unwrap();
        self.node.via(ip.into(), gateway, &link);
    }

    /// The node's way back to one of its calling pods.
    pub(crate) fn pod_route(&mut self, ip: IpAddr, pod: usize) {
        // Without a bridge each pod has its own link.
        let link = match self.pod_link.strip_suffix('3') {
            Some(prefix) => format!("{prefix}{pod}"),
            None => self.pod_link.clone(),
        };
        let mac = self.pods[pod].1.mac("eth0");
        self.node.on_link(&link, &[ip], mac);
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Puts the node and its pods in a control group of their own, for mode ebpf. Returns flags.
    pub(crate) fn group_sockets(&mut self) -> Vec<String> {
        let sockets = Sockets::new().unwrap();
        self.move_threads(&sockets.dir);
        let args = sockets.args();
        self.sockets = Some(sockets);
        args
    }

    /// Packets that XDP has translated on the node, in mode ebpf.
    pub(crate) fn translated_before_stack(&self) -> u64 {
        let Some(sockets) = &self.sockets else {
            return 0;
        };
        let nodes = std::fs::read_dir(&sockets.pins).unwrap();
        let layouts = nodes.flat_map(|node| std::fs::read_dir(node.unwrap().path()).unwrap());
        let pins = layouts.map(|layout| layout.unwrap().path().join("XDP_EVENTS"));
        pins.filter_map(|pin| linux::bpf::open_pinned(&pin).ok())
            .map(|map| {
                let map = linux::bpf::Map::new(map, "XDP_EVENTS").unwrap();
                let index = xdp_event::TRANSLATED.to_ne_bytes();
                let counts = map.lookup(&index).unwrap().unwrap();
                let counts = counts.chunks(8);
                counts
                    .map(|count| u64::from_ne_bytes(count.try_into().unwrap()))
                    .sum::<u64>()
            })
            .sum()
    }

    /// Moves the threads of the node and its pods into a control group.
    fn move_threads(&self, dir: &Path) {
        for site in [&self.node]
            .into_iter()
            .chain(self.pods.iter().map(|(_, pod)| pod))
        {
            let dir = dir.to_owned();
            site.run(move || enter(&dir));
        }
    }

    /// Starts the proxy on the node.
    pub(crate) fn start(&mut self, args: &[String]) {
        // At the root of all control groups it would translate for every test that runs meanwhile.
        let ebpf = args.iter().any(|arg| arg == "--mode=ebpf");
        assert!(
            self.sockets.is_some() || !ebpf,
            "no control group of its own"
        );
        let built = env!("CARGO_BIN_EXE_proxy");
        let program = std::env::var_os("SEAWAY_PROXY").unwrap_or_else(|| built.into());
        let daemon = Daemon {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
            netns: Some(self.node.path().to_owned()),
            log: Some(self.dir.path().join("log")),
            ..Daemon::default()
        };
        self.proxy = Some(daemon.spawn().unwrap());
    }

    /// Puts objects in the place of those before.
    pub(crate) fn feed(&self, objects: &serde_json::Value) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, objects.to_string()).unwrap();
        std::fs::rename(new, self.manifests().join("case.json")).unwrap();
    }
}

impl Lab {
    /// Ends the proxy on the spot.
    pub(crate) fn kill(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            let pid = i32::try_from(proxy.id()).unwrap_or_default();
            if linux::process::signal(pid, Signal::SIGKILL).is_ok() {
                drop(proxy.wait());
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
        // A group with threads in it cannot be removed.
        if let Some(sockets) = &self.sockets {
            self.move_threads(sockets.dir.parent().unwrap());
        }
    }
}
