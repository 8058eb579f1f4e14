//! `bench overlay`: the daemon with up to 1 000 other nodes from an API server in memory, beside the
//! same netlink messages alone; how fast it mends; and the throughput between two pods beside a VXLAN
//! device made by hand.

mod repair;
mod stream;

use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::fake::{FakeApi, kubeconfig};
use linux::addr::Addr;
use linux::fdb::FdbEntry;
use linux::link::{LinkChange, NewVeth, NewVxlan};
use linux::neigh::Neigh;
use linux::netlink::{Group, Monitor};
use linux::process::Daemon;
use linux::route::Route;
use linux::{Host, Kernel, Mac, NetNs};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Figure, ms};
use crate::program;

const NODES: &str = "/api/v1/nodes";

/// Other nodes in all.
const SIZES: [u16; 3] = [10, 100, 1000];

/// Changes of one node in each run.
const CHANGES: u16 = 100;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Namespaces and a directory, gone when dropped.
struct Lab {
    dir: PathBuf,
    spaces: Vec<PathBuf>,
    children: Vec<Child>,
}

impl Lab {
    fn new(name: &str) -> Result<Self> {
        let name = format!("seaway-bench-{}-overlay-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            spaces: Vec::new(),
            children: Vec::new(),
        })
    }

    fn space(&mut self, name: &str) -> Result<(PathBuf, Kernel)> {
        let path = self.dir.join(name);
        let netns = NetNs::create(&path)?;
        self.spaces.push(path.clone());
        let mut host = Kernel::open_in(netns)?;
        host.set_link("lo", &LinkChange::up())?;
        Ok((path, host))
    }

    /// Starts the daemon in a namespace; gives back how long it took to be ready.
    fn start(&mut self, api: &FakeApi, space: &Path, node: &str, more: &[&str]) -> Result<f64> {
        let netns = NetNs::open(space)?;
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = api.serve(listener)?;
        let dir = self.dir.join(format!("{node}.dir"));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("kubeconfig"), kubeconfig(address))?;
        let socket = dir.join("notify");
        // A start before may have left it.
        drop(std::fs::remove_file(&socket));
        let notified = UnixDatagram::bind(&socket)?;
        notified.set_read_timeout(Some(PATIENCE))?;
        let path = |name: &str| dir.join(name).display().to_string();
        let args = [
            "--kubeconfig",
            &path("kubeconfig"),
            "--node-name",
            node,
            "--cni-conf-dir",
            &path("net.d"),
            "--cni-state-dir",
            &path("leases"),
            "--cluster-cidr",
            "10.0.0.0/8",
        ];
        let daemon = Daemon {
            program: program("overlay")?,
            args: args.iter().chain(more).map(Into::into).collect(),
            env: vec![("NOTIFY_SOCKET".into(), socket.into())],
            netns: Some(space.to_owned()),
            log: Some(dir.join("log")),
            ..Daemon::default()
        };
        let start = Instant::now();
        self.children.push(daemon.spawn()?);
        let told = notified.recv(&mut [0; 64]);
        told.with_context(|| std::fs::read_to_string(dir.join("log")).unwrap_or_default())?;
        Ok(ms(start.elapsed()))
    }

    fn stop(&mut self) -> Result<()> {
        for mut child in self.children.drain(..) {
            let pid = i32::try_from(child.id())?;
            linux::process::signal(pid, Signal::SIGTERM)?;
            child.wait()?;
        }
        Ok(())
    }

    fn resident(&self) -> Result<f64> {
        let child = self.children.first().context("no daemon")?;
        let bytes = linux::process::resident_bytes(i32::try_from(child.id())?)?;
        // Megabytes: far below 2^52.
        Ok(f64::from(u32::try_from(bytes >> 10)?) / 1024.0)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::say(&format!("{error:#}"));
        }
        for path in &self.spaces {
            if let Err(error) = NetNs::remove(path) {
                crate::say(&format!("{error}"));
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            crate::say(&format!("remove {}: {error}", self.dir.display()));
        }
    }
}

/// What node `i` has: hardware address, outer address (another one while it is moved), network.
fn mac(i: u16) -> Mac {
    let [a, b] = i.to_be_bytes();
    Mac([0x0a, 0xbe, 0, 0, a, b])
}

fn public(i: u16, moved: bool) -> IpAddr {
    let [a, b] = i.to_be_bytes();
    [172, if moved { 21 } else { 20 }, a, b].into()
}

fn subnet(i: u16) -> String {
    let [a, b] = i.to_be_bytes();
    format!("10.{a}.{b}.0/24")
}

fn node(i: u16, moved: bool) -> serde_json::Value {
    json!({
        "metadata": {"name": format!("n{i}"), "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(i)),
            "flannel.alpha.coreos.com/public-ip": public(i, moved).to_string(),
        }},
        "spec": {"podCIDRs": [subnet(i)]},
    })
}

/// A node with `eth0` on a wire to nowhere, and its objects.
fn one_node(lab: &mut Lab, others: u16) -> Result<(PathBuf, Kernel, FakeApi)> {
    let (_, mut far) = lab.space("far")?;
    let (path, mut host) = lab.space("node")?;
    far.add_veth(&NewVeth {
        name: "wire".into(),
        peer_name: "eth0".into(),
        peer_netns: Some(host.netns()),
        ..NewVeth::default()
    })?;
    far.set_link("wire", &LinkChange::up())?;
    host.set_link("eth0", &LinkChange::up())?;
    host.add_addr("eth0", &Addr::new("172.31.0.1/12".parse()?))?;
    let api = FakeApi::default();
    for i in 1..=others {
        api.put(NODES, node(i, false));
    }
    api.put(
        NODES,
        json!({
            "metadata": {"name": "self"},
            "spec": {"podCIDRs": ["10.255.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.1"}]},
        }),
    );
    Ok((path, host, api))
}

/// The same messages alone: a device, and three entries for each node.
fn floor(lab: &mut Lab, others: u16) -> Result<(f64, Vec<f64>)> {
    let (path, mut host, _) = one_node(lab, 0)?;
    let start = Instant::now();
    host.add_vxlan(&NewVxlan {
        name: "floor.1".into(),
        mac: Some(mac(0)),
        mtu: Some(1450),
        vni: 1,
        port: 8472,
        local: Some("172.31.0.1".parse()?),
        underlay: Some("eth0".into()),
        ..NewVxlan::default()
    })?;
    host.set_link("floor.1", &LinkChange::up())?;
    host.add_addr("floor.1", &Addr::new("10.255.0.0/32".parse()?))?;
    for i in 1..=others {
        let net: ipnetwork::IpNetwork = subnet(i).parse()?;
        let entry = FdbEntry {
            mac: mac(i),
            dst: Some(public(i, false)),
        };
        host.replace_fdb("floor.1", &entry)?;
        host.replace_neigh("floor.1", &Neigh::permanent(net.network(), mac(i)))?;
        host.replace_route(&Route::to(net).via(net.network()).dev("floor.1").onlink())?;
    }
    let took = ms(start.elapsed());
    let monitor = Monitor::open_in(&NetNs::open(&path)?, &[Group::Neigh])?;
    let mut changes = Vec::new();
    for round in 0..CHANGES {
        let start = Instant::now();
        let entry = FdbEntry {
            mac: mac(1),
            dst: Some(public(1, round % 2 == 0)),
        };
        host.replace_fdb("floor.1", &entry)?;
        heard(&monitor)?;
        changes.push(ms(start.elapsed()));
    }
    Ok((took, changes))
}

fn heard(monitor: &Monitor) -> Result<()> {
    if !monitor.wait(PATIENCE) {
        bail!("the kernel was told nothing");
    }
    Ok(())
}

/// Waits for a condition without a pause that would be measured.
fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<f64> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        thread::yield_now();
    }
    Ok(ms(start.elapsed()))
}

/// Start, changes of one node, and repairs, with `others` other nodes.
fn with_nodes(others: u16) -> Result<Vec<Figure>> {
    let mut lab = Lab::new(&format!("floor{others}"))?;
    let (floor_start, floor_change) = floor(&mut lab, others)?;
    drop(lab);
    let mut lab = Lab::new(&format!("nodes{others}"))?;
    let (path, mut host, api) = one_node(&mut lab, others)?;
    let iface = ["--iface", "eth0"];
    let start = lab.start(&api, &path, "self", &iface)?;
    let resident = lab.resident()?;
    lab.stop()?;
    let again = lab.start(&api, &path, "self", &iface)?;
    let monitor = Monitor::open_in(&NetNs::open(&path)?, &[Group::Neigh])?;
    let mut changes = Vec::new();
    for round in 0..CHANGES {
        // Another node each time.
        let i = 1 + round % others;
        let moved = (round / others).is_multiple_of(2);
        let patch = node(i, moved);
        let start = Instant::now();
        api.merge(NODES, &format!("n{i}"), &patch);
        heard(&monitor)?;
        changes.push(ms(start.elapsed()));
    }
    let repairs = repair::all(&path, &mut host, others)?;
    let n = usize::from(others);
    let figure = |name: &str, unit, samples: &[f64], note: &str| {
        Figure::of(&format!("overlay.{name}"), unit, samples, note).size(n)
    };
    let mut figures = vec![
        figure(
            "start_ms",
            "ms",
            &[start],
            "to ready, list included; floor: 3 messages a node",
        )
        .floor(&[floor_start]),
        figure(
            "restart_ms",
            "ms",
            &[again],
            "to ready, everything there already",
        ),
        figure(
            "change_ms",
            "ms",
            &changes,
            "one node moves: API to kernel; floor: the message",
        )
        .floor(&floor_change),
    ];
    for (kind, samples, note) in repairs {
        figures.push(figure(&format!("repair_{kind}_ms"), "ms", &samples, note));
    }
    figures.push(figure("resident_mb", "MB", &[resident], "after the start"));
    Ok(figures)
}

/// All figures of the overlay daemon.
///
/// # Errors
/// The daemon fails, or the kernel refuses something.
pub fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for others in SIZES {
        figures.extend(with_nodes(others)?);
    }
    figures.extend(stream::run()?);
    Ok(figures)
}
