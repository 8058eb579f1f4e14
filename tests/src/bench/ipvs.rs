//! `bench ipvs`: the IPVS mode of the proxy in process: start, one endpoint more, memory; beside one
//! bare message to the kernel. Needs a kernel with IPVS: `cargo xtask bench ipvs` boots one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use api::cidr::Family;
use linux::ipvs::{Command, Ipvs, Options, Protocol as Transport, Scheduler, Server, ServerId};
use linux::link::LinkChange;
use linux::{Host, Kernel, NetNs, process};
use proxy::backend::ebpf::Place;
use proxy::backend::{self, DetectLocal, Mode, NodePortScope, Settings};
use proxy::model::decide::Target;
use proxy::model::{
    BySource, Decision, Path, PortName, Protocol, ServiceName, Set, SourceFilter, Verdict,
};
use proxy::store::PortChange;

use super::{Figure, ms};

/// Numbers of services.
const SIZES: [usize; 2] = [100, 5000];
/// Endpoints of each.
const ENDPOINTS: usize = 10;
/// Changes measured.
const CHANGES: usize = 100;
/// Numbers of destinations that are listed.
const LISTED: [usize; 2] = [10_000, 100_000];
/// Servers that they are spread over.
const LISTED_SERVERS: u8 = 100;
/// Lists measured.
const LISTS: usize = 5;

/// Measures in a namespace of its own.
pub fn run() -> Result<Vec<Figure>> {
    let netns = NetNs::anonymous()?;
    netns.run(|| {
        Kernel::open()?.set_link("lo", &LinkChange::up())?;
        match Ipvs::open() {
            Err(e) if e.is_not_found() => {
                crate::say(
                    "ipvs: left out, this kernel has no IPVS: cargo xtask bench ipvs boots one",
                );
                return Ok(Vec::new());
            }
            opened => drop(opened?),
        }
        let floor = floor()?;
        // The first use loads modules.
        measure(1, &floor)?;
        let mut figures = Vec::new();
        for size in SIZES {
            figures.extend(measure(size, &floor)?);
        }
        for size in LISTED {
            figures.push(listing(size)?);
        }
        Ok(figures)
    })?
}

/// One of the benchmark's own.
fn server(number: u8) -> Server {
    Server {
        id: ServerId::Address {
            protocol: Transport::Tcp,
            ip: [192, 0, 2, number].into(),
            port: 80,
        },
        scheduler: Some(Scheduler::Rr),
        options: Options::default(),
        persistence: None,
    }
}

/// Milliseconds for a list of `size` destinations, spread over servers.
fn listing(size: usize) -> Result<Figure> {
    let mut ipvs = Ipvs::open()?;
    let mut ids = Vec::new();
    for n in 0..LISTED_SERVERS {
        let server = server(n);
        let id = server.id;
        let mut commands = vec![Command::AddServer(server)];
        for e in 0..size / usize::from(LISTED_SERVERS) {
            let to = SocketAddr::new([10, 250, 0, n].into(), u16::try_from(e + 1)?);
            commands.push(Command::AddDestination(id, to, 1));
        }
        ipvs.apply(&commands)?;
        ids.push(id);
    }
    let mut samples = Vec::new();
    for _ in 0..LISTS {
        let start = Instant::now();
        let mut found = 0;
        for server in ipvs.servers()? {
            found += ipvs.destinations(server.id)?.len();
        }
        samples.push(ms(start.elapsed()));
        ensure!(found == size, "{found} destinations are listed, not {size}");
    }
    let all: Vec<Command> = ids.into_iter().map(Command::DeleteServer).collect();
    ipvs.apply(&all)?;
    let note = format!("all destinations of {LISTED_SERVERS} servers");
    Ok(Figure::of("linux.ipvs.list_ms", "ms", &samples, note).size(size))
}

/// Milliseconds for one destination more, by one message and nothing else.
fn floor() -> Result<Vec<f64>> {
    let mut ipvs = Ipvs::open()?;
    let server = server(1);
    let id = server.id;
    ipvs.apply(&[Command::AddServer(server)])?;
    let mut samples = Vec::new();
    for n in 0..CHANGES {
        let to = SocketAddr::new([10, 250, 0, u8::try_from(n)?].into(), 80);
        let start = Instant::now();
        ipvs.apply(&[Command::AddDestination(id, to, 1)])?;
        samples.push(ms(start.elapsed()));
    }
    ipvs.apply(&[Command::DeleteServer(id)])?;
    Ok(samples)
}

fn measure(services: usize, floor: &[f64]) -> Result<Vec<Figure>> {
    let settings = |family| Settings {
        family,
        mark: 0x4000,
        detect_local: "10.0.0.0/8".parse().ok().map(DetectLocal::Net),
        node_ports: NodePortScope::All,
        localhost_node_ports: false,
        random_fully: true,
        drop_invalid: false,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    };
    // What only mode ebpf needs.
    let place = Place {
        cgroup: None,
        pin_dir: PathBuf::new(),
        node: "bench".to_owned(),
        flows_max: None,
        attach: None,
        xdp: None,
    };
    let planes = backend::open(Mode::Ipvs, &place, settings)?;
    let mut planes = planes
        .into_iter()
        .filter(|(family, _)| *family == Family::V4);
    let (_, mut plane) = planes.next().context("no IPv4")?;
    let all: Vec<PortChange> = (0..services).map(|n| change(n, ENDPOINTS)).collect();
    let start = Instant::now();
    plane.set(&all);
    plane.sync()?;
    let started = ms(start.elapsed());
    let memory = process::resident_bytes(i32::try_from(std::process::id())?)?;
    let mut one = Vec::new();
    for n in 0..CHANGES {
        let more = change(n % services, ENDPOINTS + 1 + n / services);
        let start = Instant::now();
        plane.set(&[more]);
        plane.sync()?;
        one.push(ms(start.elapsed()));
    }
    plane.cleanup()?;
    let endpoint = Figure::of("proxy.ipvs.endpoint_ms", "ms", &one, "").floor(floor);
    let times = endpoint.p50 / endpoint.floor_p50.unwrap_or(1.0);
    let note = format!("one endpoint more; {times:.1} times the floor, one message");
    let mib = f64::from(u32::try_from(memory >> 10)?) / 1024.0;
    Ok(vec![
        Figure::of(
            "proxy.ipvs.start_ms",
            "ms",
            &[started],
            format!("{services} services x {ENDPOINTS}"),
        )
        .size(services),
        Figure { note, ..endpoint }.size(services),
        Figure::of(
            "proxy.ipvs.resident_mib",
            "MiB",
            &[mib],
            "of the process that measures",
        )
        .size(services),
    ])
}

/// Service `n` with `endpoints` endpoints.
fn change(n: usize, endpoints: usize) -> PortChange {
    let octets = |n: usize| {
        (
            u8::try_from(n / 256 % 256).unwrap_or(0),
            u8::try_from(n % 256).unwrap_or(0),
        )
    };
    let (high, low) = octets(n);
    let targets = (0..endpoints).map(|e| Target {
        ip: IpAddr::from([10, 200 + u8::try_from(e).unwrap_or(0), high, low]),
        port: 8080,
        in_cluster: true,
        in_local: false,
        local: false,
    });
    let path = |masquerade| Path {
        verdict: Verdict::Forward(Set::Cluster),
        masquerade,
    };
    let of = |pod| BySource {
        pod: path(pod),
        node: path(true),
        outside: path(true),
    };
    let name = PortName {
        service: ServiceName::new("bench", &format!("s{n}")),
        port: "".into(),
        protocol: Protocol::Tcp,
    };
    let decision = Decision {
        name: name.clone(),
        family: Family::V4,
        port: 80,
        cluster_ip: Some([10, 96, high, low].into()),
        external_ips: Vec::new(),
        balancer_ips: Vec::new(),
        source_filter: SourceFilter::Anybody,
        node_port: None,
        affinity_seconds: None,
        health_check_node_port: None,
        targets: targets.collect(),
        table_size: None,
        local_ready: 0,
        serving: Arc::default(),
        internal: of(false),
        external: of(true),
    };
    PortChange {
        name,
        old: None,
        new: Some(Arc::new(decision)),
    }
}
