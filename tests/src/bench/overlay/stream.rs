//! The throughput between two pods, beside a VXLAN device made by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::fake::FakeApi;
use linux::addr::Addr;
use linux::exec::{Exec, which};
use linux::fdb::FdbEntry;
use linux::link::{LinkChange, NewVeth, NewVxlan};
use linux::neigh::Neigh;
use linux::process::Daemon;
use linux::route::Route;
use linux::{Host, Kernel, NetNs};
use serde_json::{Value, json};

use super::{Figure, Lab, NODES, PATIENCE, mac, until};

/// Streams of each kind, and how long one lasts.
const STREAMS: usize = 60;
const STREAM: Duration = Duration::from_millis(400);

/// The same by iperf3, whose shortest stream is a second.
const IPERFS: usize = 20;

/// Where iperf3 listens.
const IPERF_PORT: &str = "5201";

/// Two nodes with a pod each, which are joined by the overlay and by a device made by hand.
pub(super) fn run() -> Result<Vec<Figure>> {
    let mut lab = Lab::new("stream")?;
    let api = FakeApi::default();
    let mut nodes = Vec::new();
    for i in 1..=2_u8 {
        let (path, mut host) = lab.space(&format!("n{i}"))?;
        let (pod_path, mut pod) = lab.space(&format!("p{i}"))?;
        host.add_veth(&NewVeth {
            name: "pod".into(),
            mtu: Some(1450),
            peer_name: "eth0".into(),
            peer_netns: Some(pod.netns()),
            ..NewVeth::default()
        })?;
        host.set_link("pod", &LinkChange::up())?;
        pod.set_link("eth0", &LinkChange::up())?;
        // One network for each way.
        for net in [format!("10.1.{i}"), format!("10.2.{i}")] {
            host.add_addr("pod", &Addr::new(format!("{net}.1/24").parse()?))?;
            pod.add_addr("eth0", &Addr::new(format!("{net}.2/24").parse()?))?;
        }
        for net in ["10.1", "10.2"] {
            let mut route = Route::to(format!("{net}.0.0/16").parse()?)
                .via(format!("{net}.{i}.1").parse()?)
                .dev("eth0");
            route.src = Some(format!("{net}.{i}.2").parse()?);
            pod.add_route(&route)?;
        }
        api.put(
            NODES,
            json!({
                "metadata": {"name": format!("n{i}")},
                "spec": {"podCIDRs": [format!("10.1.{i}.0/24")]},
                "status": {"addresses":
                    [{"type": "InternalIP", "address": format!("172.31.0.{i}")}]},
            }),
        );
        nodes.push((path, host, pod_path));
    }
    let peer = nodes[1].1.netns();
    nodes[0].1.add_veth(&NewVeth {
        name: "eth0".into(),
        mtu: Some(1500),
        peer_name: "eth0".into(),
        peer_netns: Some(peer),
        ..NewVeth::default()
    })?;
    for ((_, host, _), i) in nodes.iter_mut().zip(1_u8..) {
        host.set_link("eth0", &LinkChange::up())?;
        host.add_addr("eth0", &Addr::new(format!("172.31.0.{i}/24").parse()?))?;
        by_hand(host, i)?;
    }
    for i in 1..=2_u8 {
        let path = nodes[usize::from(i) - 1].0.clone();
        lab.start(&api, &path, &format!("n{i}"), &[])?;
    }
    for ((_, host, _), other) in nodes.iter_mut().zip(["10.1.2.2", "10.1.1.2"]) {
        let other = other.parse()?;
        until("the way to the other node", || {
            let route = host.route_to(other)?;
            Ok(route.and_then(|route| route.dev).as_deref() == Some("seaway.1"))
        })?;
    }
    let (from, to) = (&nodes[0].2, &nodes[1].2);
    let (mut ours, mut hands) = (Vec::new(), Vec::new());
    let targets = ["10.1.2.2".parse()?, "10.2.2.2".parse()?];
    let iperf = which("iperf3");
    let rounds = if iperf.is_some() { IPERFS } else { STREAMS };
    for round in 0..rounds {
        // Each is first as often as the other.
        for which in [round % 2, 1 - round % 2] {
            let speed = match &iperf {
                Some(program) => iperf3(program, from, to, targets[which])?,
                None => stream(from, to, targets[which])?,
            };
            [&mut ours, &mut hands][which].push(speed);
        }
    }
    let shares: Vec<f64> = ours.iter().zip(&hands).map(|(o, h)| o / h).collect();
    let by = if iperf.is_some() {
        "iperf3"
    } else {
        "own stream (no iperf3)"
    };
    let note =
        format!("one TCP stream by {by}, pod to pod; floor: a VXLAN device made by hand, in turns");
    let pairs = "the same, as a share of the hand-made device's, pair by pair";
    Ok(vec![
        Figure::of("overlay.stream_gbit", "Gb/s", &ours, note).floor(&hands),
        Figure::of("overlay.stream_share", "", &shares, pairs),
    ])
}

/// A VXLAN device and entries for the other node, as one would make them with `ip` and `bridge`.
fn by_hand(host: &mut Kernel, i: u8) -> Result<()> {
    let other = 3 - i;
    host.add_vxlan(&NewVxlan {
        name: "hand".into(),
        mac: Some(mac(i.into())),
        mtu: Some(1450),
        vni: 2,
        port: 4789,
        local: Some(format!("172.31.0.{i}").parse()?),
        underlay: Some("eth0".into()),
        ..NewVxlan::default()
    })?;
    host.set_link("hand", &LinkChange::up())?;
    host.add_addr("hand", &Addr::new(format!("10.2.{i}.0/32").parse()?))?;
    let gateway: IpAddr = format!("10.2.{other}.0").parse()?;
    host.replace_neigh("hand", &Neigh::permanent(gateway, mac(other.into())))?;
    let entry = FdbEntry {
        mac: mac(other.into()),
        dst: Some(format!("172.31.0.{other}").parse()?),
    };
    host.replace_fdb("hand", &entry)?;
    let mut route = Route::to(format!("10.2.{other}.0/24").parse()?)
        .via(gateway)
        .dev("hand")
        .onlink();
    route.protocol = linux::route::PROTOCOL_BOOT;
    host.add_route(&route)?;
    Ok(())
}

/// Gigabits per second of one TCP stream.
fn stream(from: &Path, to: &Path, address: IpAddr) -> Result<f64> {
    let (from, to) = (NetNs::open(from)?, NetNs::open(to)?);
    let listener = to.run(|| TcpListener::bind((address, 0)))??;
    let target = SocketAddr::new(address, listener.local_addr()?.port());
    let mut client = from.run(|| TcpStream::connect_timeout(&target, PATIENCE))??;
    let (mut server, _) = listener.accept()?;
    let reader = thread::spawn(move || -> Result<(u64, Duration)> {
        let mut buffer = vec![0; 256 << 10];
        let start = Instant::now();
        let mut bytes = 0;
        loop {
            match server.read(&mut buffer)? {
                0 => return Ok((bytes, start.elapsed())),
                n => bytes += u64::try_from(n)?,
            }
        }
    });
    let buffer = vec![0; 128 << 10];
    let start = Instant::now();
    while start.elapsed() < STREAM {
        client.write_all(&buffer)?;
    }
    drop(client);
    let Ok(result) = reader.join() else {
        bail!("the reader broke");
    };
    let (bytes, took) = result?;
    let megabits = f64::from(u32::try_from(bytes / 125_000)?);
    Ok(megabits / 1000.0 / took.as_secs_f64())
}

/// The same by iperf3, as received.
fn iperf3(program: &Path, from: &Path, to: &Path, address: IpAddr) -> Result<f64> {
    let address = address.to_string();
    let server = Daemon {
        program: program.to_owned(),
        args: ["-s", "-1", "-B", &address, "-p", IPERF_PORT]
            .map(Into::into)
            .into(),
        netns: Some(to.to_owned()),
        ..Daemon::default()
    };
    let mut server = server.spawn()?;
    let from = NetNs::open(from)?;
    let ask = Exec::new(program).args(["-c", &address, "-p", IPERF_PORT, "-t", "1", "-J"]);
    let start = Instant::now();
    // Until the server listens. What went wrong is in the answer: the exit code says nothing.
    let report = loop {
        let output = from.run(|| ask.clone().output())??;
        let report: Value = serde_json::from_str(&output.text()).context("what iperf3 says")?;
        if report["error"].is_null() {
            break report;
        }
        if start.elapsed() > PATIENCE {
            server.kill()?;
            server.wait()?;
            bail!("iperf3: {}", report["error"]);
        }
        thread::sleep(Duration::from_millis(10));
    };
    server.wait()?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 measured nothing")? / 1e9)
}
