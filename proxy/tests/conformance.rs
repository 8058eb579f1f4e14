//! The scenario tables (`tests/cases/proxy/*.yaml` at the top of the repository): objects through
//! the real pipeline, packets through the tracer of each backend, in both families.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed test panics")]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::cidr::{Family, parse_cidr, parse_ip};
use api::core::Node;
use api::watch::Event;
use proxy::backend::iptables::desired::Desired;
use proxy::backend::{DetectLocal, Settings};
use proxy::config::NodePortAddresses;
use proxy::manifests::{Object, parse_documents};
use proxy::model::{NodeView, Policy, Protocol};
use proxy::node::node_port_scope;
use proxy::store::{Input, Store};
use proxy::trace::iptables::{Tracer, has_localnet_rule};
use proxy::trace::{Packet, World};
use serde::Deserialize;
use serde_json::Value;

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What the table is about.
    about: String,
    /// Objects of all cases.
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    settings: Option<Setting>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    settings: Option<Setting>,
    /// In addition to the file's.
    #[serde(default)]
    objects: Vec<Value>,
    /// `source -> address:port[/protocol] [remembers endpoint] => fates`.
    rows: Vec<String>,
    /// Whether the rule against martians on loopback is there.
    #[serde(default)]
    localnet_rule: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Setting {
    /// Run in IPv6 as well, with addresses mapped.
    ipv6: bool,
    /// Run in IPv4.
    ipv4: bool,
    node_ips: Vec<String>,
    cluster_cidr: Option<String>,
    pod_interface: Option<String>,
    masquerade_all: bool,
    localhost_nodeports: bool,
    nodeport_addresses: Vec<String>,
    cluster_dns: Vec<String>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            ipv6: true,
            ipv4: true,
            node_ips: vec!["192.168.0.2".to_owned()],
            cluster_cidr: Some("10.0.0.0/8".to_owned()),
            pod_interface: None,
            masquerade_all: false,
            localhost_nodeports: true,
            nodeport_addresses: Vec::new(),
            cluster_dns: Vec::new(),
        }
    }
}

const NODE: &str = "node";

#[test]
fn tables() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/proxy");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut rows = BTreeMap::new();
    let mut failures = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "yaml"))
    {
        let text = fs::read_to_string(file).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy();
        for family in Family::BOTH {
            let text = match family {
                Family::V4 => text.clone(),
                Family::V6 => in_ipv6(&text),
            };
            let parsed: File =
                serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            assert!(!parsed.about.is_empty());
            for case in &parsed.cases {
                let at = format!("{name}/{} {family}", case.name);
                *rows.entry(family).or_insert(0) +=
                    run_case(&parsed, case, family, &at, &mut failures);
            }
        }
    }
    println!("rows on the iptables plan: {rows:?}");
    assert!(
        failures.is_empty(),
        "{} rows fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(rows[&Family::V4] > 200);
}

fn run_case(
    file: &File,
    case: &Case,
    family: Family,
    at: &str,
    failures: &mut Vec<String>,
) -> usize {
    let setting = case
        .settings
        .as_ref()
        .or(file.settings.as_ref())
        .cloned()
        .unwrap_or_default();
    let setting = match family {
        Family::V4 => setting,
        Family::V6 => defaults_in_ipv6(setting),
    };
    let runs = match family {
        Family::V4 => setting.ipv4,
        Family::V6 => setting.ipv6,
    };
    if !runs {
        return 0;
    }
    let (desired, world) = plan(file, case, &setting, family);
    let tracer = Tracer::new(&desired);
    for row in &case.rows {
        let (question, expect) = row
            .split_once("=>")
            .unwrap_or_else(|| panic!("{at}: {row}"));
        let (packet, remembered) = question_of(question, &setting, at);
        let mut world = world.clone();
        world.remembered.extend(remembered);
        let got = match tracer.trace(&packet, &world) {
            Ok(outcome) => outcome.to_string(),
            Err(error) => error.to_string(),
        };
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(normal).collect();
            words.sort();
            words.join(" ")
        };
        if sorted(&got) != sorted(expect) {
            failures.push(format!(
                "{at}: {} => expected {}, got {got}",
                question.trim(),
                expect.trim()
            ));
        }
    }
    if let Some(expect) = case.localnet_rule
        && has_localnet_rule(&desired) != (expect && family == Family::V4)
    {
        failures.push(format!("{at}: rule against martians on loopback"));
    }
    case.rows.len()
}

fn plan(file: &File, case: &Case, setting: &Setting, family: Family) -> (Desired, World) {
    let ips: Vec<IpAddr> = setting
        .node_ips
        .iter()
        .filter_map(|ip| parse_ip(ip))
        .collect();
    let dns: Vec<IpAddr> = setting
        .cluster_dns
        .iter()
        .filter_map(|ip| parse_ip(ip))
        .collect();
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
    let settings = Settings {
        family,
        mark: 0x4000,
        detect_local: detect,
        node_ports: node_port_scope(&NodePortAddresses::Within(nets), family, &ips, &local),
        localhost_node_ports: setting.localhost_nodeports,
        random_fully: true,
        drop_invalid: true,
        dns_ips: dns.clone(),
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
    let desired = Desired::with(settings, store.snapshot().of(family));
    let mut local = ips;
    local.extend(dns);
    let world = World {
        local,
        ..World::default()
    };
    (desired, world)
}

fn inputs<'a>(objects: impl Iterator<Item = &'a Value>) -> Vec<Input> {
    let mut inputs = vec![Input::Service(Event::Init), Input::Slice(Event::Init)];
    for object in objects {
        let (found, complaints) = parse_documents(&object.to_string());
        assert_eq!(complaints, Vec::<String>::new());
        inputs.extend(found.into_iter().map(|object| match object {
            Object::Service(service) => Input::Service(Event::InitApply(service)),
            Object::Slice(slice) => Input::Slice(Event::InitApply(slice)),
            Object::Node(node) => Input::Node(Event::InitApply(Arc::<Node>::clone(&node))),
        }));
    }
    inputs.extend([
        Input::Service(Event::InitDone),
        Input::Slice(Event::InitDone),
    ]);
    inputs
}

fn question_of(text: &str, setting: &Setting, at: &str) -> (Packet, Vec<std::net::SocketAddr>) {
    let bad = || -> ! { panic!("{at}: {text}") };
    let words: Vec<&str> = text.split_whitespace().collect();
    let (source, to, more) = match words.as_slice() {
        [source, "->", to, more @ ..] => (*source, *to, more),
        _ => bad(),
    };
    let (to, protocol) = to.split_once('/').unwrap_or((to, "TCP"));
    let remembered = match more {
        [] => Vec::new(),
        ["remembers", endpoint] => vec![socket(endpoint).unwrap_or_else(|| bad())],
        _ => bad(),
    };
    let to = socket(to).unwrap_or_else(|| bad());
    let source = parse_ip(source).unwrap_or_else(|| bad());
    let pod = parse_cidr("10.0.0.0/8").unwrap().contains(source)
        || parse_cidr(&cidr_in_ipv6("10.0.0.0/8"))
            .unwrap()
            .contains(source);
    let interface = match (&setting.pod_interface, pod) {
        (Some(name), true) => format!("{name}7"),
        _ => "eth0".to_owned(),
    };
    let packet = Packet {
        source,
        destination: to.ip(),
        protocol: Protocol::parse(&protocol.to_uppercase()).unwrap_or_else(|| bad()),
        port: to.port(),
        interface: Some(interface),
    };
    (packet, remembered)
}

fn socket(text: &str) -> Option<std::net::SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    Some(std::net::SocketAddr::new(parse_ip(ip)?, port.parse().ok()?))
}

/// A fate as the tracer writes it.
fn normal(word: &str) -> String {
    let (address, masqueraded) = match word.strip_suffix("/m") {
        Some(address) => (address, "/m"),
        None => (word, ""),
    };
    match socket(address) {
        Some(address) => format!("{}:{}{masqueraded}", address.ip(), address.port()),
        None => word.to_owned(),
    }
}

/// The same text with every IPv4 address `a.b.c.d` as `fd00::a:b:c:d`, networks to match.
fn in_ipv6(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for letter in text.chars().chain(['\n']) {
        if letter.is_ascii_digit() || letter == '.' || letter == '/' {
            word.push(letter);
            continue;
        }
        out.push_str(&word_in_ipv6(&word));
        word.clear();
        out.push(letter);
    }
    out.replace("addressType: IPv4", "addressType: IPv6")
}

/// Defaults stand in this file, not in the text that was mapped.
fn defaults_in_ipv6(mut setting: Setting) -> Setting {
    for ip in &mut setting.node_ips {
        *ip = word_in_ipv6(ip);
    }
    setting.cluster_cidr = setting.cluster_cidr.map(|net| word_in_ipv6(&net));
    setting
}

fn word_in_ipv6(word: &str) -> String {
    if word.contains(':') {
        return word.to_owned();
    }
    if parse_cidr(word).is_ok() {
        return cidr_in_ipv6(word);
    }
    match parse_ip(word) {
        Some(IpAddr::V4(ip)) if ip.is_loopback() => "::1".to_owned(),
        Some(IpAddr::V4(ip)) => address_in_ipv6(ip),
        _ => word.to_owned(),
    }
}

fn address_in_ipv6(ip: std::net::Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("fd00:0:0:1:{a}:{b}:{c}:{d}")
}

fn cidr_in_ipv6(word: &str) -> String {
    let (ip, len) = word.split_once('/').unwrap();
    let Some(IpAddr::V4(ip)) = parse_ip(ip) else {
        panic!("{word}")
    };
    let len: u32 = len.parse().unwrap();
    if len == 0 {
        return "::/0".to_owned();
    }
    // An octet's decimal digits become a group of 16 bits.
    let rest = if len.is_multiple_of(8) {
        0
    } else {
        8 + len % 8
    };
    format!("{}/{}", address_in_ipv6(ip), 64 + 16 * (len / 8) + rest)
}
