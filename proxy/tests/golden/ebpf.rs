//! Plans and changes of mode ebpf as text: the bytes that are written to the maps, read back, with
//! names in the place of services' numbers.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_common::abi::{
    Endpoint, FLAG_MEMBERS, FLAG_OWN_ADDRESS, FLAG_RANGES, Frontend, FrontendKey, KIND_BALANCER,
    KIND_CLUSTER, KIND_EXTERNAL, MemberKey, PATH_CLUSTER, PATH_DROP, PATH_LOCAL, PATH_MASQUERADE,
    PATH_REJECT, Places, Plain, RANGE_BITS, RangeKey, SET_CLUSTER, SET_LOCAL, SET_SERVING, Service,
    SlotKey, TCP, TableKey, UDP, from_bytes, is_v4,
};
use ebpf_common::resolve::wildcard;
use proxy::backend::Settings;
use proxy::backend::ebpf::desired::Desired;
use proxy::backend::ebpf::diff::{Change, Entries, Known, MapName, full, touched};
use proxy::backend::ebpf::plan::{ip, socket};
use proxy::model::Decisions;

/// What services' numbers stand for.
type Names = BTreeMap<u32, String>;

fn names(known: &Known) -> Names {
    let each = known.ids.iter();
    each.map(|(name, id)| (*id, format!("{name}/{}", name.protocol)))
        .collect()
}

/// The whole plan, as it is written into empty maps.
pub(crate) fn plan(settings: &Settings, decisions: &Decisions) -> String {
    let desired = Desired::with(settings.clone(), decisions);
    let mut known = Known::default();
    let change = full(&desired, &mut known);
    let names = names(&known);
    let mut text = String::new();
    for (delete, map, entries) in change.steps() {
        assert!(!delete, "{} of empty maps", map.name());
        text += &format!("{}\n{}", map.name(), shown(map, entries, &names));
    }
    for name in desired.left_out() {
        text += &format!("left out: {name}/{}\n", name.protocol);
    }
    text
}

/// What each change writes, in order.
pub(crate) struct Changes {
    desired: Desired,
    known: Known,
    names: Names,
}

impl Changes {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            desired: Desired::new(settings.clone()),
            known: Known::default(),
            names: Names::new(),
        }
    }

    pub(crate) fn step(&mut self, before: &Decisions, after: &Decisions) -> String {
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            self.desired.set(name, None);
        }
        for (name, decision) in after {
            self.desired.set(name, Some(decision));
        }
        let (ports, fronts) = self.desired.take_touched();
        let change = touched(&self.desired, &mut self.known, &ports, &fronts);
        self.names.extend(names(&self.known));
        steps(&change, &self.names)
    }
}

fn steps(change: &Change, names: &Names) -> String {
    let each = change.steps().map(|(delete, map, entries)| {
        let word = if delete { "delete" } else { "put" };
        format!("{word} {}\n{}", map.name(), shown(map, entries, names))
    });
    each.collect()
}

/// One line for each entry, sorted.
fn shown(map: MapName, entries: &Entries, names: &Names) -> String {
    let name = |id: u32| names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"));
    let lines = match map {
        MapName::Frontends => lines(entries, |key: FrontendKey, value: Option<Frontend>| {
            let to = value.map(|v| format!("{} {}", name(v.service), kind(v.kind)));
            (frontend(&key), to)
        }),
        MapName::Services => lines(entries, |key: u32, value: Option<Service>| {
            (name(key), value.as_ref().map(service))
        }),
        MapName::Slots => lines(entries, |key: SlotKey, value: Option<Endpoint>| {
            let slot = format!("{} {} slot {}", name(key.service), set(key.set), key.index);
            (slot, value.map(|to| socket(&to).to_string()))
        }),
        MapName::Members => lines(entries, |key: MemberKey, _: Option<u32>| {
            let to = socket(&key.endpoint);
            (format!("{} {} {to}", name(key.service), set(key.set)), None)
        }),
        MapName::Ranges => lines(entries, |key: RangeKey, _: Option<u32>| {
            let mut bits = key.bits - RANGE_BITS;
            if is_v4(&key.addr) {
                bits -= 96;
            }
            let net = format!("{}/{bits}", ip(&key.addr));
            (format!("{} {net}", name(key.service)), None)
        }),
        MapName::Tables => lines(entries, |key: TableKey, _: Option<Places>| {
            let (of, set, part) = (name(key.service), set(key.set), key.part);
            (
                format!("{of} {set} table {} part {part}", key.generation),
                None,
            )
        }),
    };
    lines.iter().map(|line| format!("    {line}\n")).collect()
}

fn lines<K: Plain, V: Plain>(
    entries: &Entries,
    show: impl Fn(K, Option<V>) -> (String, Option<String>),
) -> BTreeSet<String> {
    let keys = entries.keys.chunks(size_of::<K>());
    assert_eq!(keys.len(), entries.count);
    let mut values = entries.values.chunks(size_of::<V>());
    keys.map(|key| {
        let value = values.next().map(|value| from_bytes(value).unwrap());
        match show(from_bytes(key).unwrap(), value) {
            (key, Some(value)) => format!("{key} : {value}"),
            (key, None) => key,
        }
    })
    .collect()
}

fn frontend(key: &FrontendKey) -> String {
    let protocol = match key.protocol {
        TCP => "tcp",
        UDP => "udp",
        other => panic!("protocol {other}"),
    };
    let port = u16::from_be_bytes(key.port);
    if key.addr == wildcard(true) || key.addr == wildcard(false) {
        return format!("node port {port}/{protocol}");
    }
    let at = std::net::SocketAddr::new(ip(&key.addr), port);
    format!("{at}/{protocol}")
}

fn kind(kind: u8) -> &'static str {
    match kind {
        KIND_CLUSTER => "cluster IP",
        KIND_EXTERNAL => "external",
        KIND_BALANCER => "balancer",
        other => panic!("kind {other}"),
    }
}

fn set(set: u32) -> &'static str {
    match set {
        SET_CLUSTER => "cluster",
        SET_LOCAL => "local",
        SET_SERVING => "serving",
        other => panic!("set {other}"),
    }
}

fn service(service: &Service) -> String {
    let mut text = format!("{} cluster, {} local", service.counts[0], service.counts[1]);
    for (what, paths) in [("inside", service.internal), ("outside", service.external)] {
        text += &format!("; {what}:");
        for (who, path) in ["pods", "node", "others"].iter().zip(paths) {
            let verdict = match path & !PATH_MASQUERADE {
                PATH_REJECT => "reject",
                PATH_DROP => "drop",
                PATH_CLUSTER => "cluster",
                PATH_LOCAL => "local",
                other => panic!("path {other}"),
            };
            let masquerade = path & PATH_MASQUERADE != 0;
            text += &format!(" {who} {verdict}{}", if masquerade { "/m" } else { "" });
        }
    }
    if service.affinity_seconds != 0 {
        text += &format!("; affinity {} s", service.affinity_seconds);
    }
    for (flag, word) in [
        (FLAG_RANGES, "; ranges"),
        (FLAG_OWN_ADDRESS, "; own address"),
        (FLAG_MEMBERS, "; members"),
    ] {
        if service.flags & flag != 0 {
            text += word;
        }
    }
    text
}
