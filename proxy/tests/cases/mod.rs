//! The case files of `tests/cases/proxy`: what the tracer and the live runner read alike.
//!
//! A row is `source -> address:port[/protocol] [remembers endpoint] => fates`, and where modes
//! differ by specification ` | mode,mode: fates` for those. Fates are endpoints (`/m`:
//! masqueraded), `REJECT`, `DROP` or `NONE`. Every file is read once for each family, in IPv6 with
//! every IPv4 address mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use api::cidr::{Family, parse_cidr, parse_ip};
use proxy::backend::Mode;
use proxy::model::Protocol;
use serde::Deserialize;
use serde_json::{Value, json};

/// The node's name in all files.
pub(crate) const NODE: &str = "node";

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// What the table is about.
    pub(crate) about: String,
    /// Objects of all cases.
    #[serde(default)]
    pub(crate) objects: Vec<Value>,
    #[serde(default)]
    settings: Option<Setting>,
    pub(crate) cases: Vec<Case>,
}

/// Objects and rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    #[serde(default)]
    settings: Option<Setting>,
    /// In addition to the file's.
    #[serde(default)]
    pub(crate) objects: Vec<Value>,
    /// See the module.
    pub(crate) rows: Vec<String>,
    /// One service more, with this many endpoints that no row asks for.
    #[serde(default)]
    many: usize,
    /// Whether the rule against martians on loopback is there.
    #[serde(default)]
    pub(crate) localnet_rule: Option<bool>,
}

/// The node and the proxy's settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Setting {
    /// Run in IPv6 as well, with addresses mapped.
    ipv6: bool,
    /// Run in IPv4.
    ipv4: bool,
    pub(crate) node_ips: Vec<String>,
    pub(crate) cluster_cidr: Option<String>,
    pub(crate) pod_interface: Option<String>,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_nodeports: bool,
    pub(crate) nodeport_addresses: Vec<String>,
    pub(crate) cluster_dns: Vec<String>,
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

impl Setting {
    /// The node's addresses.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.node_ips.iter().filter_map(|ip| parse_ip(ip)).collect()
    }

    /// The addresses of cluster DNS.
    pub(crate) fn dns(&self) -> Vec<IpAddr> {
        let all = self.cluster_dns.iter();
        all.filter_map(|ip| parse_ip(ip)).collect()
    }
}

impl File {
    /// The settings of a case in `family`; `None`: it is not run in that family.
    pub(crate) fn setting(&self, case: &Case, family: Family) -> Option<Setting> {
        let own = case.settings.as_ref().or(self.settings.as_ref());
        let mut setting = own.cloned().unwrap_or_default();
        let runs = match family {
            Family::V4 => setting.ipv4,
            Family::V6 => setting.ipv6,
        };
        if family == Family::V6 {
            // Defaults stand in this file, not in the text that was mapped.
            for ip in &mut setting.node_ips {
                *ip = word_in_ipv6(ip);
            }
            setting.cluster_cidr = setting.cluster_cidr.map(|net| word_in_ipv6(&net));
        }
        // Equal settings are one group, in whichever families they run.
        (setting.ipv4, setting.ipv6) = (true, true);
        runs.then_some(setting)
    }
}

/// Where the case files are: in the source tree, or where `SEAWAY_CASES` says.
pub(crate) fn dir() -> PathBuf {
    let tree = || concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cases").into();
    std::env::var_os("SEAWAY_CASES").map_or_else(tree, PathBuf::from)
}

/// All files of the tables, by name, as `family` sees them.
pub(crate) fn files(family: Family) -> Vec<(String, File)> {
    let entries = fs::read_dir(dir().join("proxy")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    assert!(paths.len() > 10, "{paths:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let text = match family {
            Family::V4 => text,
            Family::V6 => in_ipv6(&text),
        };
        let mut file: File =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for case in &mut file.cases {
            case.objects.extend(many(case.many, family));
        }
        assert!(!file.about.is_empty(), "{}", path.display());
        let name = path.file_stem().unwrap().to_string_lossy();
        (name.into_owned(), file)
    };
    paths.into_iter().map(read).collect()
}

/// Name of the service with many endpoints.
pub(crate) const MANY: &str = "many";

/// A service with `n` endpoints, in slices of a hundred.
fn many(n: usize, family: Family) -> Vec<Value> {
    if n == 0 {
        return Vec::new();
    }
    let word = |ip: String| match family {
        Family::V4 => ip,
        Family::V6 => word_in_ipv6(&ip),
    };
    let endpoint =
        |i: usize| json!({ "addresses": [word(format!("10.182.{}.{}", i / 100, i % 100 + 1))] });
    let slice = |from: usize| {
        let endpoints: Vec<Value> = (from..n.min(from + 100)).map(endpoint).collect();
        json!({ "kind": "EndpointSlice", "addressType": format!("{family}"), "endpoints": endpoints, "ports": [{ "name": "", "port": 80 }],
            "metadata": { "namespace": "default", "name": format!("{MANY}-{from}"), "labels": { "kubernetes.io/service-name": MANY } } })
    };
    let service = json!({ "kind": "Service", "metadata": { "namespace": "default", "name": MANY },
        "spec": { "clusterIP": word("172.30.0.99".to_owned()), "ports": [{ "port": 80 }] } });
    [service]
        .into_iter()
        .chain((0..n).step_by(100).map(slice))
        .collect()
}

/// One packet and what becomes of it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// As it is written.
    pub(crate) text: String,
    pub(crate) source: IpAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: Protocol,
    /// The client has been sent there before.
    pub(crate) remembers: Option<SocketAddr>,
    fates: BTreeSet<String>,
    by_mode: BTreeMap<String, BTreeSet<String>>,
}

impl Row {
    /// Reads a row; `at` is for messages.
    pub(crate) fn parse(text: &str, at: &str) -> Self {
        let bad = || -> ! { panic!("{at}: {text}") };
        let (question, answer) = text.split_once("=>").unwrap_or_else(|| bad());
        let words: Vec<&str> = question.split_whitespace().collect();
        let (source, to, remembers) = match words.as_slice() {
            [source, "->", to] => (*source, *to, None),
            [source, "->", to, "remembers", endpoint] => {
                let endpoint = socket(endpoint).unwrap_or_else(|| bad());
                (*source, *to, Some(endpoint))
            }
            _ => bad(),
        };
        let (to, protocol) = to.split_once('/').unwrap_or((to, "TCP"));
        let mut answers = answer.split('|');
        let fates = fates(answers.next().unwrap_or_default());
        let mut by_mode = BTreeMap::new();
        for more in answers {
            let (modes, then) = more.split_once(": ").unwrap_or_else(|| bad());
            for mode in modes.trim().split(',') {
                assert!(Mode::ALL.iter().any(|m| m.name() == mode), "{at}: {mode}");
                by_mode.insert(mode.to_owned(), self::fates(then));
            }
        }
        Self {
            text: text.to_owned(),
            source: parse_ip(source).unwrap_or_else(|| bad()),
            destination: socket(to).unwrap_or_else(|| bad()),
            protocol: Protocol::parse(&protocol.to_uppercase()).unwrap_or_else(|| bad()),
            remembers,
            fates,
            by_mode,
        }
    }

    /// What is expected in a mode: fates as the tracer writes them.
    pub(crate) fn expect(&self, mode: Mode) -> BTreeSet<String> {
        if let Some(own) = self.by_mode.get(mode.name()) {
            return own.clone();
        }
        if mode != Mode::Ebpf || is_outside(self.source) {
            return self.fates.clone();
        }
        // Translated at the socket, before there is a source: nothing is to be masqueraded.
        let bare = self.fates.iter().map(|fate| fate.trim_end_matches("/m"));
        bare.map(str::to_owned).collect()
    }
}

fn fates(text: &str) -> BTreeSet<String> {
    let fates: BTreeSet<String> = text.split_whitespace().map(normal).collect();
    assert!(!fates.is_empty(), "{text:?}: no fate");
    fates
}

/// A fate as the tracer writes it.
fn normal(word: &str) -> String {
    let (address, masqueraded) = match word.strip_suffix("/m") {
        Some(address) => (address, "/m"),
        None => (word, ""),
    };
    match socket(address) {
        Some(address) => format!("{}:{}{masqueraded}", address.ip(), address.port()),
        None => {
            assert!(matches!(word, "REJECT" | "DROP" | "NONE"), "{word}");
            word.to_owned()
        }
    }
}

/// `address:port`, an IPv6 address without brackets.
pub(crate) fn socket(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    Some(SocketAddr::new(parse_ip(ip)?, port.parse().ok()?))
}

/// Whether this is one of the clients outside, in either family.
pub(crate) fn is_outside(ip: IpAddr) -> bool {
    ["203.0.113.2", "203.0.113.130"]
        .iter()
        .any(|text| [parse_ip(text), parse_ip(&word_in_ipv6(text))].contains(&Some(ip)))
}

/// The same text with every IPv4 address `a.b.c.d` as `fd00::a:b:c:d`, networks to match.
pub(crate) fn in_ipv6(text: &str) -> String {
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

/// An address or a network in IPv6, where it is one of IPv4.
pub(crate) fn word_in_ipv6(word: &str) -> String {
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

fn address_in_ipv6(ip: Ipv4Addr) -> String {
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
