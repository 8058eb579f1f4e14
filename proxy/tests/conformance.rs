//! The scenario tables (`tests/cases/proxy/*.yaml` at the top of the repository): objects through
//! the real pipeline, packets through the tracer of each backend, in both families.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed test panics")]

mod cases;
mod golden;
mod stale_flows;

use std::collections::{BTreeMap, BTreeSet};

use api::cidr::{Family, parse_cidr, parse_ip};
use api::watch::Event;
use cases::{Case, File, NODE, Row, Setting};
use proxy::backend::ipvs::Options;
use proxy::backend::ipvs::plan::Context;
use proxy::backend::{DetectLocal, Mode, Settings, ebpf, iptables, ipvs, nftables};
use proxy::config::NodePortAddresses;
use proxy::manifests::{Object, parse_documents};
use proxy::model::{Decisions, NodeView, Policy};
use proxy::node::node_port_scope;
use proxy::store::{Input, Store};
use proxy::trace::ebpf::Sender;
use proxy::trace::{self, Outcome, Packet, TraceError, World};
use serde_json::Value;

/// The plan of one mode, to send packets through.
enum Tracer {
    Iptables(trace::iptables::Tracer),
    Nftables(trace::nftables::Tracer),
    Ipvs(Box<ipvs::desired::Desired>),
    Ebpf(Box<ebpf::desired::Desired>, Family),
}

/// Modes with a tracer.
const MODES: [Mode; 4] = Mode::ALL;

impl Tracer {
    /// The node's addresses are those of the world.
    fn new(mode: Mode, settings: &Settings, decisions: &Decisions, world: &World) -> Self {
        let settings = settings.clone();
        match mode {
            Mode::Iptables => {
                let desired = iptables::desired::Desired::with(settings, decisions);
                Self::Iptables(trace::iptables::Tracer::new(&desired))
            }
            Mode::Nftables => {
                let desired = nftables::desired::Desired::with(settings, decisions);
                Self::Nftables(trace::nftables::Tracer::new(&desired))
            }
            Mode::Ipvs => {
                let context = Context {
                    node_ips: world.local.iter().copied().collect(),
                    settings,
                    options: Options::default(),
                };
                Self::Ipvs(Box::new(ipvs::desired::Desired::with(context, decisions)))
            }
            Mode::Ebpf => {
                let family = settings.family;
                let desired = ebpf::desired::Desired::with(settings, decisions);
                Self::Ebpf(Box::new(desired), family)
            }
        }
    }

    fn trace(&self, packet: &Packet, world: &World) -> Result<Outcome, TraceError> {
        match self {
            Self::Iptables(tracer) => tracer.trace(packet, world),
            Self::Nftables(tracer) => tracer.trace(packet, world),
            Self::Ipvs(plan) => Ok(trace::ipvs::Tracer::new(plan).trace(packet, world)),
            Self::Ebpf(plan, family) => {
                // A balancer's address as a source: the node has it.
                let sender = if is_pod(packet.source, *family) {
                    Sender::Pod
                } else if cases::is_outside(packet.source) {
                    Sender::Outside
                } else {
                    Sender::Node
                };
                Ok(trace::ebpf::Tracer::new(plan, world).trace(packet, sender))
            }
        }
    }
}

#[test]
fn tables() {
    let mut rows: BTreeMap<(Mode, Family), usize> = BTreeMap::new();
    let mut failures = Vec::new();
    for family in Family::BOTH {
        for (name, file) in cases::files(family) {
            for case in &file.cases {
                for mode in MODES {
                    let at = format!("{name}/{} {} {family}", case.name, mode.name());
                    *rows.entry((mode, family)).or_default() +=
                        run_case(&file, case, mode, family, &at, &mut failures);
                }
            }
        }
    }
    for mode in MODES {
        let count = |family| (family, rows[&(mode, family)]);
        let rows = BTreeMap::from(Family::BOTH.map(count));
        let name = mode.name();
        println!("COUNTED proxy table rows on the plan, {name}: {rows:?}");
        assert!(rows[&Family::V4] > 200);
    }
    assert!(
        failures.is_empty(),
        "{} rows fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn run_case(
    file: &File,
    case: &Case,
    mode: Mode,
    family: Family,
    at: &str,
    failures: &mut Vec<String>,
) -> usize {
    let Some(setting) = file.setting(case, family) else {
        return 0;
    };
    let (settings, decisions, world) = plan(file, case, &setting, family);
    let tracer = Tracer::new(mode, &settings, &decisions, &world);
    for row in &case.rows {
        let row = Row::parse(row, at);
        let mut world = world.clone();
        world.remembered.extend(row.remembers);
        let got = match tracer.trace(&packet(&row, &setting, family), &world) {
            Ok(outcome) => outcome.0.iter().map(ToString::to_string).collect(),
            Err(error) => BTreeSet::from([error.to_string()]),
        };
        if got != row.expect(mode) {
            failures.push(format!("{at}: {}: got {got:?}", row.text));
        }
    }
    if let (Some(expect), Mode::Iptables) = (case.localnet_rule, mode) {
        let desired = iptables::desired::Desired::with(settings, &decisions);
        let has = trace::iptables::has_localnet_rule(&desired);
        if has != (expect && family == Family::V4) {
            failures.push(format!("{at}: rule against martians on loopback"));
        }
    }
    case.rows.len()
}

fn plan(
    file: &File,
    case: &Case,
    setting: &Setting,
    family: Family,
) -> (Settings, Decisions, World) {
    let ips = setting.ips();
    let dns = setting.dns();
    let detect = match (&setting.pod_interface, &setting.cluster_cidr) {
        (Some(name), _) => Some(DetectLocal::InterfacePrefix(name.clone())),
        (None, Some(net)) => Some(DetectLocal::Net(parse_cidr(net).unwrap())),
        (None, None) => None,
    };
    let nets = setting
        .nodeport_addresses
        .iter()
        .map(|net| parse_cidr(net).unwrap())
        .collect();
    let mut local = ips.clone();
    local.extend(["127.0.0.1", "::1"].map(|ip| parse_ip(ip).unwrap()));
    let mut settings = Settings {
        family,
        mark: 0x4000,
        detect_local: detect,
        node_ports: node_port_scope(&NodePortAddresses::Within(nets), family, &ips, &local),
        localhost_node_ports: setting.localhost_nodeports,
        random_fully: true,
        drop_invalid: true,
        dns_ips: dns.clone(),
        service_cidrs: Vec::new(),
    };
    let policy = Policy {
        detect_local: settings.detect_local.is_some(),
        masquerade_all: setting.masquerade_all,
    };
    let view = NodeView {
        name: NODE.into(),
        zone: None,
        ips: ips.iter().take(1).copied().collect(),
        dns_ips: dns.clone(),
    };
    let mut store = Store::new(view, [(family, policy)].into());
    for input in inputs(file.objects.iter().chain(&case.objects)) {
        store.apply(input);
    }
    assert_eq!(store.take_news(), [], "{}", case.name);
    assert!(store.ready());
    store.take_changes();
    let decisions = store.snapshot().of(family).clone();
    let cidrs = store.service_cidrs();
    settings.service_cidrs = api::cidr::of_family(&cidrs, family).collect();
    let mut local = ips;
    local.extend(dns);
    let world = World {
        local,
        ..World::default()
    };
    (settings, decisions, world)
}

fn inputs<'a>(objects: impl Iterator<Item = &'a Value>) -> Vec<Input> {
    let mut inputs = vec![
        Input::Service(Event::Init),
        Input::Slice(Event::Init),
        Input::ServiceCidr(Event::Init),
    ];
    for object in objects {
        let (found, complaints) = parse_documents(&object.to_string());
        assert_eq!(complaints, Vec::<String>::new());
        inputs.extend(found.into_iter().map(Object::listed));
    }
    inputs.extend([
        Input::Service(Event::InitDone),
        Input::Slice(Event::InitDone),
        Input::ServiceCidr(Event::InitDone),
    ]);
    inputs
}

fn packet(row: &Row, setting: &Setting, family: Family) -> Packet {
    let pod = is_pod(row.source, family);
    let interface = match (&setting.pod_interface, pod) {
        (Some(name), true) => format!("{name}7"),
        _ => "eth0".to_owned(),
    };
    Packet {
        source: row.source,
        destination: row.destination.ip(),
        protocol: row.protocol,
        port: row.destination.port(),
        interface: Some(interface),
    }
}

fn is_pod(ip: std::net::IpAddr, family: Family) -> bool {
    let pods = match family {
        Family::V4 => "10.0.0.0/8".to_owned(),
        Family::V6 => cases::word_in_ipv6("10.0.0.0/8"),
    };
    parse_cidr(&pods).unwrap().contains(ip)
}
