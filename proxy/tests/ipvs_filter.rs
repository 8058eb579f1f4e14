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
use ipnetwork::IpNetwork;
use linux::NetNs;
use linux::exec::Exec;
use proxy::backend::ipvs::filter::{Filter, ipset::IpSets, nft::Nft};
use proxy::backend::ipvs::sets::{Element, Entry, Key, SetId, Shape};
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
        for set in SetId::ALL {
            let host = IpNetwork::from(key.ip);
            let elements = match set.shape() {
                Shape::Ip => vec![Element::Ip(key.ip)],
                Shape::Port => vec![Element::Port(30_000 + u16::from(n))],
                Shape::Key => vec![Element::Key(key)],
                Shape::KeyMark => vec![Element::Mark(key, 0x5ea0_0000 + u32::from(n))],
                Shape::KeySource => vec![Element::From(key, host)],
                Shape::KeyNet => nets
                    .iter()
                    .map(|net| Element::From(key, net.parse().unwrap()))
                    .collect(),
            };
            all.extend(elements.into_iter().map(|element| (set, element)));
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
        ["seaway", "SEAWAY", "KUBE-"]
            .iter()
            .any(|word| line.contains(word))
            || line.starts_with("-A")
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// A namespace where it can be tried.
fn place(name: &str) -> Option<NetNs> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: needs root");
        return None;
    }
    let netns = NetNs::anonymous().unwrap();
    if name.contains("ipset") {
        let has = |kind| {
            linux::ipset::IpSets::open().and_then(|mut sets| {
                sets.create("x", kind, false)
                    .and_then(|()| sets.destroy("x"))
            })
        };
        if let Err(error) = netns.run(|| has(linux::ipset::Kind::IpPortIp)).unwrap() {
            println!("SKIPPED {name}: {error}");
            return None;
        }
    }
    Some(netns)
}

#[track_caller]
fn run(name: &str, open: fn(Family) -> linux::Result<Box<dyn Filter>>) {
    let Some(netns) = place(name) else {
        return;
    };
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

fn ipset(args: &[&str]) -> bool {
    Exec::new("ipset")
        .args(args)
        .output()
        .unwrap()
        .status
        .success()
}

/// What kube-proxy left behind: sets of its own size with their entries, and a rule that uses one.
#[test]
fn sets_of_kube_proxy_are_taken_over_by_ipset() {
    let name = "sets_of_kube_proxy_are_taken_over_by_ipset";
    let Some(netns) = place(name) else {
        return;
    };
    for program in ["ipset", "iptables-legacy-restore"] {
        if linux::exec::which(program).is_none() {
            println!("SKIPPED {name}: no program {program}");
            return;
        }
    }
    netns
        .run(|| {
            let nets = DetectLocal::Net("10.244.0.0/16".parse().unwrap());
            let settings = settings(Family::V4, nets);
            let small = ["hash:ip,port", "family", "inet", "maxelem", "65536"];
            assert!(ipset(
                &[&["create", "KUBE-CLUSTER-IP"], &small[..]].concat()
            ));
            assert!(ipset(&["add", "KUBE-CLUSTER-IP", "10.96.0.1,tcp:443"]));
            let ports = [
                "create",
                "KUBE-NODE-PORT-TCP",
                "bitmap:port",
                "range",
                "0-65535",
            ];
            assert!(ipset(&ports));
            assert!(ipset(&["add", "KUBE-NODE-PORT-TCP", "30080"]));
            // Of an earlier version of this program.
            let former = ["create", "SEAWAY4-addresses", "hash:ip"];
            assert!(ipset(&former));
            let rule = "-A OUTPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN";
            let change = |verb: &str| {
                let rule = rule.replacen("-A", verb, 1);
                let text = format!("*nat\n{rule}\nCOMMIT\n");
                let done = Exec::new("iptables-legacy-restore")
                    .arg("--noflush")
                    .stdin(text);
                assert!(done.output().unwrap().status.success());
            };
            change("-A");
            let mut filter = IpSets::open(Family::V4).unwrap();
            let key = Key {
                ip: [10, 96, 0, 1].into(),
                protocol: Protocol::Tcp,
                port: 443,
            };
            let found = BTreeSet::from([
                (SetId::ClusterIp, Element::Key(key)),
                (SetId::NodePort(Protocol::Tcp), Element::Port(30080)),
            ]);
            assert_eq!(filter.install(&settings).unwrap(), found);
            assert!(!ipset(&["list", "SEAWAY4-addresses"]));
            // More than kube-proxy's set had room for, and its rule sees it.
            let text = Exec::new("ipset")
                .args(["list", "KUBE-CLUSTER-IP"])
                .output();
            let text = text.unwrap().text();
            assert!(text.contains("maxelem 1048576"), "{text}");
            assert!(listing().contains(rule));
            // The rule of somebody else keeps its set, without our entries.
            filter.remove().unwrap();
            let sets = Exec::new("ipset")
                .args(["list", "-n"])
                .output()
                .unwrap()
                .text();
            assert_eq!(sets.trim(), "KUBE-CLUSTER-IP");
            assert_eq!(filter.entries().unwrap(), BTreeSet::new());
            change("-D");
            // No mark of ours is left: this set is nobody's but kube-proxy's.
            filter.remove().unwrap();
            assert!(ipset(&["destroy", "KUBE-CLUSTER-IP"]));
            // Of another type: the error says what to do, and nothing of it is touched.
            assert!(ipset(&["create", "KUBE-CLUSTER-IP", "hash:net"]));
            let error = filter.install(&settings).unwrap_err().to_string();
            assert!(error.contains("ipset destroy KUBE-CLUSTER-IP"), "{error}");
            assert!(ipset(&["destroy", "KUBE-CLUSTER-IP"]));
            filter.install(&settings).unwrap();
            filter.remove().unwrap();
            assert_eq!(listing(), "");
        })
        .unwrap();
}
