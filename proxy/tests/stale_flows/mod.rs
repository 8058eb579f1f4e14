//! Table T10 (`tests/cases/conntrack`): stale flows, decided from objects, and deleted from a real
//! connection table. In both families.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use api::cidr::{Family, parse_ip};
use api::watch::Event;
use linux::addr::Addr;
use linux::conntrack::{Conntrack, Flow, SCTP, TCP, Tuple, UDP};
use linux::{Host, Kernel, NetNs};
use proxy::conntrack::{Changed, FlowTable, KernelFlows};
use proxy::manifests::{Object, parse_documents};
use proxy::model::NodeView;
use proxy::store::{Changes, Input, Store};
use serde::Deserialize;
use serde_json::Value;

use crate::cases;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    before: Vec<Value>,
    after: Vec<Value>,
    rows: Vec<String>,
}

/// A row: a flow, and whether it goes.
struct Row {
    text: String,
    flow: Flow,
    deleted: bool,
}

fn file(family: Family) -> File {
    let path = cases::dir().join("conntrack/t10-stale-udp.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let text = match family {
        Family::V4 => text,
        Family::V6 => cases::in_ipv6(&text),
    };
    let file: File = serde_saphyr::from_str(&text).unwrap();
    assert!(!file.about.is_empty());
    file
}

fn ip(text: &str, family: Family) -> IpAddr {
    match family {
        Family::V4 => parse_ip(text).unwrap(),
        Family::V6 => parse_ip(&cases::word_in_ipv6(text)).unwrap(),
    }
}

/// Reads `udp 192.0.2.1:53 via 10.0.0.1:53 => kept`; each row has a client port of its own.
fn row(text: &str, i: usize, family: Family) -> Row {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [protocol, to, "via", via, "=>", fate] = words[..] else {
        panic!("{text}");
    };
    let protocol = match protocol {
        "tcp" => TCP,
        "udp" => UDP,
        "sctp" => SCTP,
        other => panic!("{other}"),
    };
    let port = 40_000 + u16::try_from(i).unwrap();
    let client = SocketAddr::new(ip("203.0.113.2", family), port);
    let original = Tuple {
        source: client,
        destination: cases::socket(to).unwrap(),
    };
    let reply = Tuple {
        source: cases::socket(via).unwrap(),
        destination: client,
    };
    Row {
        text: text.to_owned(),
        flow: Flow::new(protocol, original, reply),
        deleted: match fate {
            "deleted" => true,
            "kept" => false,
            other => panic!("{other}"),
        },
    }
}

/// Lists `objects`; returns what changed by it.
fn relist(store: &mut Store, objects: &[Value]) -> Changes {
    let mut inputs = vec![Input::Service(Event::Init), Input::Slice(Event::Init)];
    for object in objects {
        let (found, complaints) = parse_documents(&object.to_string());
        assert_eq!(complaints, Vec::<String>::new());
        inputs.extend(found.into_iter().map(Object::listed));
    }
    inputs.push(Input::Slice(Event::InitDone));
    inputs.push(Input::Service(Event::InitDone));
    inputs.into_iter().for_each(|input| store.apply(input));
    assert_eq!(store.take_news(), []);
    store.take_changes()
}

fn changed(case: &Case, family: Family) -> Changed {
    let mut store = Store::new(NodeView::default(), BTreeMap::new());
    relist(&mut store, &case.before);
    let mut changed = Changed::default();
    for change in relist(&mut store, &case.after).of(family) {
        changed.add(change.old.as_ref(), change.new.as_ref());
    }
    changed
}

fn rows(case: &Case, family: Family) -> Vec<Row> {
    let rows = case.rows.iter().enumerate();
    rows.map(|(i, text)| row(text, i, family)).collect()
}

#[test]
fn decided() {
    for family in Family::BOTH {
        let mut count = 0;
        for case in file(family).cases {
            let changed = changed(&case, family);
            let local = ip("192.168.0.2", family);
            for row in rows(&case, family) {
                let stale = changed.stale(&row.flow, |ip| ip == local);
                assert_eq!(stale.is_some(), row.deleted, "{}: {}", case.name, row.text);
                count += 1;
            }
        }
        println!("rows of T10 decided: {count} ({family})");
        assert!(count > 150);
    }
}

#[test]
fn deleted_from_the_kernel() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED deleted_from_the_kernel: needs root");
        return;
    }
    for family in Family::BOTH {
        let mut count = 0;
        for case in file(family).cases {
            count += case.rows.len();
            NetNs::anonymous()
                .unwrap()
                .run(|| in_kernel(&case, family))
                .unwrap();
        }
        println!("rows of T10 in the kernel: {count} ({family})");
    }
}

/// The case in the calling thread's network namespace.
fn in_kernel(case: &Case, family: Family) {
    let own = Addr::new(ip("192.168.0.2", family).into());
    Kernel::open().unwrap().add_addr("lo", &own).unwrap();
    let mut table = Conntrack::open().unwrap();
    let rows = rows(case, family);
    for row in &rows {
        table
            .create(&row.flow, 600)
            .unwrap_or_else(|e| panic!("{}: {}: {e}", case.name, row.text));
    }
    let changed = changed(case, family);
    let deleted = if changed.is_empty() {
        BTreeMap::new()
    } else {
        KernelFlows.clean(family, &changed).unwrap()
    };
    let mut left = Vec::new();
    for protocol in [TCP, UDP, SCTP] {
        left.extend(table.list(family == Family::V6, protocol).unwrap());
    }
    for row in &rows {
        let there = left.iter().any(|flow| {
            (flow.protocol, flow.original, flow.reply)
                == (row.flow.protocol, row.flow.original, row.flow.reply)
        });
        assert_eq!(there, !row.deleted, "{}: {}", case.name, row.text);
    }
    let expect = rows.iter().filter(|row| row.deleted).count();
    assert_eq!(
        deleted.values().sum::<u64>(),
        expect as u64,
        "{}",
        case.name
    );
}
