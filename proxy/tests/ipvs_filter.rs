//! The rules and sets of the IPVS mode on the real kernel, both ways to keep them: what is written
//! is read back, a second time changes nothing, and nothing stays behind. Needs root, not IPVS.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::cidr::Family;
use linux::NetNs;
use linux::exec::Exec;
use proxy::backend::ipvs::filter::{Filter, ipset::IpSets, nft::Nft};
use proxy::backend::ipvs::sets::{Element, Entry, Key, SetId};
use proxy::backend::{DetectLocal, NodePortScope, Settings};
use proxy::model::Protocol;

fn settings(family: Family, detect: DetectLocal) -> Settings {
    Settings {
        family,
        mark: 0x4000,
        detect_local: Some(detect),
        node_ports: NodePortScope::All,
        localhost_node_ports: false,
        random_fully: true,
        drop_invalid: false,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    }
}

/// One of everything, and many of some.
fn entries(family: Family) -> BTreeSet<Entry> {
    let ip = |n: u8| -> IpAddr {
        match family {
            Family::V4 => [10, 96, 0, n].into(),
            Family::V6 => format!("fd00::{n:x}").parse().unwrap(),
        }
    };
    let nets = match family {
        Family::V4 => ["192.168.0.0/24", "203.0.113.7/32", "64.0.0.0/2"],
        Family::V6 => ["fd00:1::/64", "fd00:2::7/128", "4000::/2"],
    };
    let mut all = BTreeSet::new();
    for n in 1..=200 {
        let key = Key {
            ip: ip(n),
            protocol: Protocol::ALL[usize::from(n) % 3],
            port: 80,
        };
        all.insert((SetId::Addresses, Element::Ip(key.ip)));
        all.insert((SetId::Hairpin, Element::Ip(key.ip)));
        all.insert((
            SetId::Inside,
            Element::Mark(key, 0x5ea0_0000 + u32::from(n)),
        ));
        for set in SetId::ALL {
            let plain = !matches!(
                set,
                SetId::Addresses | SetId::Hairpin | SetId::Inside | SetId::Allowed
            );
            if plain {
                all.insert((set, Element::Key(key)));
            }
        }
        for net in nets {
            all.insert((SetId::Allowed, Element::From(key, net.parse().unwrap())));
        }
    }
    all
}

fn check(filter: &mut dyn Filter, family: Family) {
    let nets = match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:244::/32",
    };
    let by_net = settings(family, DetectLocal::Net(nets.parse().unwrap()));
    assert_eq!(filter.installed(&by_net).unwrap(), None);
    assert_eq!(filter.install(&by_net).unwrap(), BTreeSet::new());
    assert_eq!(filter.installed(&by_net).unwrap(), Some(BTreeSet::new()));
    let all = entries(family);
    let list: Vec<Entry> = all.iter().copied().collect();
    filter.change(&list, &[]).unwrap();
    assert_eq!(filter.entries().unwrap(), all);
    // Again, and with other rules: entries stay.
    assert_eq!(filter.install(&by_net).unwrap(), all);
    let by_name = settings(family, DetectLocal::InterfacePrefix("veth".to_owned()));
    assert_eq!(filter.install(&by_name).unwrap(), all);
    assert_eq!(filter.installed(&by_name).unwrap().as_ref(), Some(&all));
    // A value is replaced in one step, half goes.
    let mut left = all;
    let old: Vec<Entry> = list.iter().copied().step_by(2).collect();
    for entry in &old {
        left.remove(entry);
    }
    let new: Vec<Entry> = old
        .iter()
        .filter_map(|(set, element)| match element {
            Element::Mark(key, mark) => Some((*set, Element::Mark(*key, mark + 0x1000))),
            _ => None,
        })
        .collect();
    assert!(!new.is_empty());
    left.extend(&new);
    filter.change(&new, &old).unwrap();
    assert_eq!(filter.entries().unwrap(), left);
    filter.remove().unwrap();
    assert_eq!(filter.entries().unwrap(), BTreeSet::new());
    assert_eq!(filter.installed(&by_name).unwrap(), None);
    filter.remove().unwrap();
}

fn listing() -> String {
    let run = |program: &str, args: &[&str]| {
        let output = Exec::new(program).args(args).output();
        output.map(|o| o.text()).unwrap_or_default()
    };
    let saved = [
        run("nft", &["list", "ruleset"]),
        run("iptables-legacy-save", &[]),
        run("ip6tables-legacy-save", &[]),
        run("ipset", &["list", "-n"]),
    ];
    let text = saved.concat();
    let lines = text.lines().filter(|line| {
        line.starts_with("-A") || line.contains("seaway") || line.contains("SEAWAY")
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn run(name: &str, open: fn(Family) -> linux::Result<Box<dyn Filter>>) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root");
        return;
    }
    let netns = NetNs::anonymous().unwrap();
    if name.contains("ipset") {
        let has = |kind| {
            linux::ipset::IpSets::open().and_then(|mut sets| {
                sets.create("x", kind, false)
                    .and_then(|()| sets.destroy("x"))
            })
        };
        if let Err(error) = netns.run(|| has(linux::ipset::Kind::NetNet)).unwrap() {
            println!("SKIPPED {name}: {error}");
            return;
        }
    }
    netns
        .run(|| {
            for family in Family::BOTH {
                match open(family) {
                    Ok(mut filter) => check(filter.as_mut(), family),
                    Err(error) => {
                        println!("SKIPPED {name}: {error}");
                        return;
                    }
                }
            }
            assert_eq!(listing(), "");
        })
        .unwrap();
}

#[test]
fn ipvs_rules_in_nf_tables() {
    run("ipvs_rules_in_nf_tables", |family| {
        Ok(Box::new(Nft::open(family)?))
    });
}

#[test]
fn ipvs_rules_in_ipset_and_iptables() {
    run("ipvs_rules_in_ipset_and_iptables", |family| {
        Ok(Box::new(IpSets::open(family)?))
    });
}
