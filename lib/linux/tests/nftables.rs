//! nf_tables over netlink against the real kernel, in network namespaces of the test's own: what
//! was written is what `nft` lists. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

use std::net::IpAddr;
use std::time::Duration;

use expect_test::{Expect, expect};
use linux::NetNs;
use linux::exec::Exec;
use linux::nftables::{
    Batch, Chain, ChainKind, CtKey, DataType, DynsetOp, Edit, Element, Expr, Family, FibResult,
    Hook, LimitUnit, MetaKey, Monitor, NatFlags, NatKind, Nftables, Notice, Reg, Reject, Rule, Set,
    Subject, TableRef, Value, Verdict, concat, fib, priority,
};

/// A namespace with a table, or `None` (said aloud) without the rights.
struct Bench {
    netns: NetNs,
    nft: Nftables,
    table: TableRef,
}

impl Bench {
    fn new(test: &str, family: Family) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let netns = NetNs::anonymous().unwrap();
        let has = || Nftables::has_family(family).unwrap();
        if !netns.run(has).unwrap() {
            println!("SKIPPED {test}: this kernel has no tables of the family {family:?}");
            return None;
        }
        let nft = netns.run(Nftables::open).unwrap().unwrap();
        Some(Self {
            netns,
            nft,
            table: TableRef::new(family, "bench"),
        })
    }

    fn commit(&mut self, fill: impl FnOnce(&mut Batch, &TableRef)) -> linux::Result<()> {
        let mut batch = Batch::new();
        batch.add_table(&self.table, Some("of a test"));
        fill(&mut batch, &self.table);
        self.nft.commit(&batch)
    }

    /// What `nft` says.
    fn nft(&self, words: &[&str]) -> String {
        let run = || Exec::new("nft").args(words).output();
        let output = self.netns.run(run).unwrap().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn check(&self, expect: &Expect) {
        expect.assert_eq(&self.nft(&["list", "ruleset"]));
    }
}

fn ip(text: &str) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn key(address: &str, port: u16) -> Vec<u8> {
    concat(&[&ip(address), &[6], &port.to_be_bytes()])
}

const R0: Reg = Reg::at(0);
const R4: Reg = Reg::at(4);
const R8: Reg = Reg::at(8);

/// Sets of every kind.
fn sets() -> [Set; 7] {
    use DataType::{InterfaceName, Ipv4, Mac, Mark, Port, Protocol};
    let services = Set {
        comment: Some("all services".to_owned()),
        ..Set::map("services", [Ipv4, Protocol, Port], [Mark, Mark])
    };
    let endpoints = Set::map("endpoints", [Mark, Mark], [Ipv4, Port]);
    let picks = Set::verdict_map("picks", [Mark]);
    let nets = Set {
        interval: true,
        ..Set::new("nets", [Ipv4])
    };
    let ports = Set {
        interval: true,
        ..Set::map("ports", [Protocol, Port], [Ipv4])
    };
    let seen = Set {
        dynamic: true,
        default_timeout: Some(Duration::from_secs(60)),
        size: Some(1000),
        ..Set::new("seen", [Ipv4])
    };
    let links = Set::new("links", [InterfaceName, Mac]);
    [services, endpoints, picks, nets, ports, seen, links]
}

#[test]
fn sets_and_maps_read_well() {
    let Some(mut bench) = Bench::new("sets_and_maps_read_well", Family::Ipv4) else {
        return;
    };
    let all = sets();
    let [services, endpoints, picks, nets, ports, _, links] = &all;
    let n = |n: u32| n.to_ne_bytes();
    bench
        .commit(|batch, table| {
            batch.add_chain(table, &Chain::regular("one"));
            for set in &all {
                batch.add_set(table, set);
            }
            let web = Element::data(key("172.30.0.41", 80), concat(&[&n(7), &n(3)]));
            batch.add_elements(table, services, [&web.comment("shop/web:http")]);
            let to = concat(&[&ip("10.0.0.1"), &8080_u16.to_be_bytes()]);
            let slot = Element::data(concat(&[&n(7), &n(0)]), to);
            batch.add_elements(table, endpoints, [&slot]);
            let pick = Element::verdict(n(3), Verdict::Goto("one".to_owned()));
            batch.add_elements(table, picks, [&pick]);
            let ranges = [
                Element::range(ip("10.0.0.0"), ip("10.255.255.255")),
                Element::new(ip("192.0.2.7")),
                Element::range(ip("240.0.0.0"), ip("255.255.255.255")),
            ];
            batch.add_elements(table, nets, &ranges);
            let range = Element {
                value: Some(Value::Data(ip("10.0.0.2"))),
                ..Element::range(
                    concat(&[&[6], &8000_u16.to_be_bytes()]),
                    concat(&[&[6], &8999_u16.to_be_bytes()]),
                )
            };
            batch.add_elements(table, ports, [&range]);
            let mut name = b"veth7".to_vec();
            name.resize(16, 0);
            let link = Element::new(concat(&[&name, &[2, 0, 0, 0, 0, 1]]));
            batch.add_elements(table, links, [&link]);
        })
        .unwrap();
    bench.check(&expect![[r#"
        table ip bench {
        	comment "of a test"
        	map services {
        		type ipv4_addr . inet_proto . inet_service : mark . mark
        		comment "all services"
        		elements = { 172.30.0.41 . tcp . 80 comment "shop/web:http" : 0x00000007 . 0x00000003 }
        	}

        	map endpoints {
        		type mark . mark : ipv4_addr . inet_service
        		elements = { 0x00000007 . 0x00000000 : 10.0.0.1 . 8080 }
        	}

        	map picks {
        		type mark : verdict
        		elements = { 0x00000003 : goto one }
        	}

        	set nets {
        		type ipv4_addr
        		flags interval
        		elements = { 10.0.0.0/8, 192.0.2.7,
        			     240.0.0.0/4 }
        	}

        	map ports {
        		type inet_proto . inet_service : ipv4_addr
        		flags interval
        		elements = { tcp . 8000-8999 : 10.0.0.2 }
        	}

        	set seen {
        		type ipv4_addr
        		size 1000
        		flags dynamic,timeout
        		timeout 1m
        	}

        	set links {
        		type ifname . ether_addr
        		elements = { "veth7" . 02:00:00:00:00:01 }
        	}

        	chain one {
        	}
        }
    "#]]);

    read_back(&mut bench, &all);
}

fn read_back(bench: &mut Bench, all: &[Set; 7]) {
    let [services, endpoints, picks, nets, ..] = all;
    let n = |n: u32| n.to_ne_bytes();
    let table = bench.table.clone();
    let listed = bench.nft.sets(&table).unwrap();
    for set in all {
        assert!(
            listed.iter().any(|listed| listed.is_like(set)),
            "{}",
            set.name
        );
    }
    assert!(
        !listed
            .iter()
            .any(|listed| listed.is_like(&Set::new("nets", [DataType::Ipv4])))
    );
    let web = bench.nft.elements(&table, services).unwrap();
    for set in [services, endpoints, picks] {
        for element in bench.nft.elements(&table, set).unwrap() {
            let found = bench.nft.element(&table, set, &element.key).unwrap();
            assert_eq!(found, Some(element.clone()), "{}", set.name);
            let other: Vec<u8> = element.key.iter().map(|byte| !byte).collect();
            assert_eq!(bench.nft.element(&table, set, &other).unwrap(), None);
        }
    }
    assert_eq!(web[0].key, key("172.30.0.41", 80));
    assert_eq!(web[0].value, Some(Value::Data(concat(&[&n(7), &n(3)]))));
    assert_eq!(web[0].comment.as_deref(), Some("shop/web:http"));
    let picked = bench.nft.elements(&table, picks).unwrap();
    let goto = Value::Verdict(Verdict::Goto("one".to_owned()));
    assert_eq!(picked[0].value, Some(goto));
    let ranges = bench.nft.elements(&table, nets).unwrap();
    let ends: Vec<_> = ranges
        .iter()
        .map(|e| (e.key.clone(), e.key_end.clone().unwrap()))
        .collect();
    assert_eq!(
        ends,
        [
            (ip("10.0.0.0"), ip("10.255.255.255")),
            (ip("192.0.2.7"), ip("192.0.2.7")),
            (ip("240.0.0.0"), ip("255.255.255.255")),
        ]
    );
    let mut batch = Batch::new();
    batch.delete_elements(&table, nets, &ranges);
    batch.delete_elements(&table, services, &web);
    bench.nft.commit(&batch).unwrap();
    assert_eq!(bench.nft.elements(&table, nets).unwrap(), []);
    assert_eq!(bench.nft.elements(&table, services).unwrap(), []);
}

/// Rules with every expression there is, by chain.
fn rules(family: Family) -> Vec<(&'static str, Vec<Expr>)> {
    let v6 = family == Family::Ipv6;
    let l4 = Expr::Meta {
        key: MetaKey::L4Protocol,
        to: R0,
    };
    let tcp = Expr::equals(R0, [6]);
    let dynset = |op, timeout| Expr::Dynset {
        op,
        set: "affinity".to_owned(),
        key: R0,
        data: Some(R4),
        timeout,
    };
    let choose = Expr::Numgen {
        random: true,
        modulus: 3,
        offset: 0,
        to: R4,
    };
    let plain = NatFlags::default();
    let port = |port: u16| Expr::equals(R0, port.to_be_bytes());
    let translate = Expr::Nat {
        kind: NatKind::Destination,
        family,
        address: Some(R4),
        address_last: None,
        port: Some(R8),
        port_last: None,
        flags: plain,
    };
    let to = if v6 { "fd00::7" } else { "10.0.0.7" };
    let mut rules = vec![
        (
            "raw",
            vec![
                l4.clone(),
                Expr::equals(R0, [17]),
                Expr::destination_port(R0),
                port(4789),
                Expr::Notrack,
            ],
        ),
        (
            "in",
            vec![
                Expr::Fib {
                    flags: fib::DESTINATION,
                    result: FibResult::AddressType,
                    to: R0,
                },
                Expr::equals(R0, fib::LOCAL.to_ne_bytes()),
                l4.clone(),
                tcp.clone(),
                Expr::destination_port(R0),
                port(80),
                Expr::address(R4, to.parse().unwrap()),
                Expr::Immediate {
                    to: R8,
                    value: 8080_u16.to_be_bytes().to_vec(),
                },
                translate,
            ],
        ),
        (
            "in",
            vec![
                Expr::source(v6, R0),
                choose.clone(),
                dynset(DynsetOp::Update, Some(Duration::from_secs(10_800))),
            ],
        ),
        (
            "in",
            vec![
                Expr::source(v6, R0),
                choose,
                dynset(DynsetOp::Delete, None),
                Expr::Counter,
            ],
        ),
    ];
    rules.extend(more_rules(v6, l4, tcp));
    rules
}

fn more_rules(v6: bool, l4: Expr, tcp: Expr) -> Vec<(&'static str, Vec<Expr>)> {
    let mark = 0x4000_u32.to_ne_bytes();
    let port_unreachable = if v6 { 4 } else { 3 };
    let from_veth = Expr::Meta {
        key: MetaKey::InputInterface,
        to: R0,
    };
    vec![
        (
            "in",
            vec![
                from_veth,
                Expr::equals(R0, *b"veth"),
                Expr::Verdict(Verdict::Jump("more".to_owned())),
            ],
        ),
        (
            "in",
            vec![
                l4.clone(),
                tcp.clone(),
                Expr::Redirect {
                    port: None,
                    flags: NatFlags::default(),
                },
            ],
        ),
        (
            "more",
            vec![
                Expr::Meta {
                    key: MetaKey::Mark,
                    to: R0,
                },
                Expr::or(R0, mark),
                Expr::SetMeta {
                    key: MetaKey::Mark,
                    from: R0,
                },
                Expr::Verdict(Verdict::Return),
            ],
        ),
        ("more", vec![l4, tcp, Expr::Reject(Reject::TcpReset)]),
        ("more", vec![Expr::Reject(Reject::Icmp(port_unreachable))]),
        (
            "through",
            vec![
                Expr::Ct {
                    key: CtKey::State,
                    to: R0,
                },
                Expr::and(R0, 1_u32.to_ne_bytes()),
                Expr::differs(R0, [0; 4]),
                Expr::Limit {
                    rate: 10,
                    unit: LimitUnit::Second,
                    burst: 5,
                    over: false,
                },
                Expr::Log {
                    prefix: "invalid".to_owned(),
                },
                Expr::Verdict(Verdict::Drop),
            ],
        ),
        (
            "out",
            vec![
                Expr::Ct {
                    key: CtKey::OriginalPort,
                    to: R0,
                },
                Expr::equals(R0, 80_u16.to_be_bytes()),
                Expr::source(v6, R0),
                Expr::Hash {
                    from: R0,
                    length: 4,
                    modulus: 2,
                    seed: 7,
                    offset: 0,
                    to: R4,
                },
                Expr::equals(R4, 1_u32.to_ne_bytes()),
                Expr::Masquerade(NatFlags {
                    fully_random: true,
                    ..NatFlags::default()
                }),
            ],
        ),
    ]
}

#[track_caller]
fn check_rules(family: Family, address: DataType, expect: &Expect) {
    let Some(mut bench) = Bench::new("every_expression_is_taken", family) else {
        return;
    };
    let affinity = Set {
        dynamic: true,
        timeout: true,
        size: Some(65_536),
        ..Set::map("affinity", [address], [DataType::Mark])
    };
    let bases = [
        ("in", ChainKind::Nat, Hook::Prerouting, priority::DSTNAT),
        ("out", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
        ("raw", ChainKind::Filter, Hook::Prerouting, priority::RAW),
        (
            "through",
            ChainKind::Filter,
            Hook::Forward,
            priority::FILTER,
        ),
    ];
    bench
        .commit(|batch, table| {
            batch.add_set(table, &affinity);
            for (name, kind, hook, at) in bases {
                batch.add_chain(table, &Chain::base(name, kind, hook, at));
            }
            batch.add_chain(table, &Chain::regular("more"));
            for (chain, expressions) in rules(family) {
                batch.add_rule(table, chain, &Rule::new(expressions));
            }
        })
        .unwrap();
    bench.check(expect);
}

#[test]
fn every_expression_is_taken_in_ipv4() {
    check_rules(
        Family::Ipv4,
        DataType::Ipv4,
        &expect![[r#"
        table ip bench {
        	comment "of a test"
        	map affinity {
        		type ipv4_addr : mark
        		size 65536
        		flags dynamic,timeout
        	}

        	chain in {
        		type nat hook prerouting priority dstnat; policy accept;
        		fib daddr type local tcp dport 80 dnat to 10.0.0.7:8080
        		update @affinity { ip saddr timeout 3h : numgen random mod 3 }
        		delete @affinity { ip saddr : numgen random mod 3 } counter packets 0 bytes 0
        		iifname "veth*" jump more
        		meta l4proto tcp redirect
        	}

        	chain out {
        		type nat hook postrouting priority srcnat; policy accept;
        		ct original proto-dst 0x50 [invalid type] jhash ip saddr mod 2 seed 0x7 1 masquerade fully-random
        	}

        	chain raw {
        		type filter hook prerouting priority raw; policy accept;
        		udp dport 4789 notrack
        	}

        	chain through {
        		type filter hook forward priority filter; policy accept;
        		ct state invalid limit rate 10/second log prefix "invalid" drop
        	}

        	chain more {
        		meta mark set meta mark | 0x00004000 return
        		reject with tcp reset
        		reject
        	}
        }
    "#]],
    );
}

#[test]
fn every_expression_is_taken_in_ipv6() {
    check_rules(
        Family::Ipv6,
        DataType::Ipv6,
        &expect![[r#"
        table ip6 bench {
        	comment "of a test"
        	map affinity {
        		type ipv6_addr : mark
        		size 65536
        		flags dynamic,timeout
        	}

        	chain in {
        		type nat hook prerouting priority dstnat; policy accept;
        		fib daddr type local tcp dport 80 dnat to [fd00::7]:8080
        		update @affinity { ip6 saddr timeout 3h : numgen random mod 3 }
        		delete @affinity { ip6 saddr : numgen random mod 3 } counter packets 0 bytes 0
        		iifname "veth*" jump more
        		meta l4proto tcp redirect
        	}

        	chain out {
        		type nat hook postrouting priority srcnat; policy accept;
        		ct original proto-dst 0x50 [invalid type] jhash ip6 saddr mod 2 seed 0x7 1 masquerade fully-random
        	}

        	chain raw {
        		type filter hook prerouting priority raw; policy accept;
        		udp dport 4789 notrack
        	}

        	chain through {
        		type filter hook forward priority filter; policy accept;
        		ct state invalid limit rate 10/second log prefix "invalid" drop
        	}

        	chain more {
        		meta mark set meta mark | 0x00004000 return
        		reject with tcp reset
        		reject
        	}
        }
    "#]],
    );
}

#[test]
fn a_batch_is_all_or_nothing_and_its_error_names_the_object() {
    let test = "a_batch_is_all_or_nothing_and_its_error_names_the_object";
    let Some(mut bench) = Bench::new(test, Family::Ipv6) else {
        return;
    };
    let set = Set::map("web", [DataType::Port], [DataType::Mark]);
    let one = |value: u32| Element::data(80_u16.to_be_bytes(), value.to_ne_bytes());
    bench
        .commit(|batch, table| {
            batch.add_set(table, &set);
            batch.add_elements(table, &set, [&one(1)]);
        })
        .unwrap();
    let error = bench
        .commit(|batch, table| {
            batch.add_chain(table, &Chain::regular("new"));
            batch.add_elements(table, &set, [&one(2)]);
        })
        .unwrap_err();
    assert!(error.is_exists());
    let op = "add elements to set web of table ip6 bench: file exists";
    assert_eq!(error.to_string(), op);
    let table = bench.table.clone();
    assert_eq!(bench.nft.chains(&table).unwrap(), []);
    // Exchanging a value is deletion and addition in one transaction.
    bench
        .commit(|batch, table| {
            batch.delete_elements(table, &set, [&one(1)]);
            batch.add_elements(table, &set, [&one(2)]);
        })
        .unwrap();
    let read = bench.nft.elements(&table, &set).unwrap();
    assert_eq!(
        read[0].value,
        Some(Value::Data(2_u32.to_ne_bytes().to_vec()))
    );
    let error = bench
        .commit(|batch, table| batch.delete_chain(table, "nope"))
        .unwrap_err();
    assert!(error.is_not_found());
    assert!(
        error
            .to_string()
            .starts_with("delete chain nope of table ip6 bench: ")
    );

    // At another generation nothing is written.
    let generation = bench.nft.generation().unwrap();
    assert!(generation.pid != 0);
    let at = |id| {
        move |batch: &mut Batch, table: &TableRef| {
            batch.only_at(id);
            batch.add_chain(table, &Chain::regular("late"));
        }
    };
    let error = bench.commit(at(generation.id.wrapping_sub(1))).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ERESTART));
    assert_eq!(bench.nft.chains(&table).unwrap(), []);
    bench.commit(at(generation.id)).unwrap();
    assert_eq!(bench.nft.chains(&table).unwrap().len(), 1);
    assert!(bench.nft.has_table(&table).unwrap());
    assert!(!bench.nft.ensure_no_empty_table(&table).unwrap());
    assert!(bench.nft.ensure_no_table(&table).unwrap());
    assert!(!bench.nft.ensure_no_table(&table).unwrap());
    assert!(!bench.nft.has_table(&table).unwrap());
    bench
        .commit(|batch, table| batch.add_table(table, None))
        .unwrap();
    assert!(bench.nft.ensure_no_empty_table(&table).unwrap());
    assert!(!bench.nft.ensure_no_empty_table(&table).unwrap());
    assert_eq!(
        bench.nft("list ruleset".split(' ').collect::<Vec<_>>().as_slice()),
        ""
    );
}

#[test]
fn many_elements_need_many_messages() {
    let Some(mut bench) = Bench::new("many_elements_need_many_messages", Family::Ipv4) else {
        return;
    };
    let set = Set::map(
        "endpoints",
        [DataType::Mark, DataType::Mark],
        [DataType::Ipv4, DataType::Port],
    );
    let elements: Vec<Element> = (0..20_000_u32)
        .map(|i| {
            let to = concat(&[&i.to_be_bytes(), &80_u16.to_be_bytes()]);
            Element::data(concat(&[&1_u32.to_ne_bytes(), &i.to_ne_bytes()]), to)
        })
        .collect();
    bench
        .commit(|batch, table| {
            batch.add_set(table, &set);
            batch.add_elements(table, &set, &elements);
        })
        .unwrap();
    let table = bench.table.clone();
    let mut read = bench.nft.elements(&table, &set).unwrap();
    read.sort();
    let mut wanted = elements;
    wanted.sort();
    assert!(read == wanted, "{} of {}", read.len(), wanted.len());
    bench
        .commit(|batch, table| batch.flush_set(table, "endpoints"))
        .unwrap();
    assert_eq!(bench.nft.elements(&table, &set).unwrap(), []);
}

#[test]
fn rules_are_listed_in_order_and_deleted_by_handle() {
    let test = "rules_are_listed_in_order_and_deleted_by_handle";
    let Some(mut bench) = Bench::new(test, Family::Inet) else {
        return;
    };
    let rule = |text: &str| Rule::new([Expr::Counter]).comment(text);
    bench
        .commit(|batch, table| {
            batch.add_chain(table, &Chain::regular("c"));
            batch.add_rule(table, "c", &rule("second"));
            batch.add_rule(table, "c", &rule("third"));
            batch.insert_rule(table, "c", &rule("first"));
        })
        .unwrap();
    let table = bench.table.clone();
    let comments = |bench: &mut Bench| -> Vec<String> {
        let rules = bench.nft.rules(&bench.table.clone()).unwrap();
        rules.into_iter().filter_map(|rule| rule.comment).collect()
    };
    assert_eq!(comments(&mut bench), ["first", "second", "third"]);
    let handle = bench.nft.rules(&table).unwrap()[1].handle;
    bench
        .commit(|batch, table| batch.delete_rule(table, "c", handle))
        .unwrap();
    assert_eq!(comments(&mut bench), ["first", "third"]);
    bench
        .commit(|batch, table| batch.flush_chain(table, "c"))
        .unwrap();
    assert_eq!(comments(&mut bench), Vec::<String>::new());
}

#[test]
fn edits_of_others_are_told_from_our_own() {
    let Some(mut bench) = Bench::new("edits_of_others_are_told_from_our_own", Family::Ipv4) else {
        return;
    };
    let monitor = bench.netns.run(Monitor::open).unwrap().unwrap();
    let set = Set::new("web", [DataType::Ipv4]);
    bench
        .commit(|batch, table| {
            batch.add_set(table, &set);
            batch.add_elements(table, &set, [&Element::new(ip("10.0.0.1"))]);
        })
        .unwrap();
    let port = bench.nft.port();
    let told = |edit: &Edit<'_>| match edit.subject {
        Subject::Elements(elements) => {
            let each = elements.each().map(|(element, _)| element.key);
            (elements.set.to_owned(), each.collect::<Vec<_>>())
        }
        Subject::Table | Subject::Chain | Subject::Set => Default::default(),
    };
    let look = || {
        let (mut ours, mut theirs, mut last) = (0, Vec::new(), None);
        monitor.drain(|seen| match seen {
            Notice::Edit(edit) if edit.port == port => ours += 1,
            Notice::Edit(edit) => {
                theirs.push((edit.table.to_owned(), edit.deletes, told(&edit)));
            }
            Notice::Done(generation) => last = Some(generation),
            Notice::Lost => unreachable!("notifications were lost"),
        });
        (ours, theirs, last.map(|generation| generation.process))
    };
    let (ours, theirs, _) = look();
    assert_eq!((ours, theirs), (3, vec![]));
    bench.nft(&["delete", "element", "ip", "bench", "web", "{ 10.0.0.1 }"]);
    let (ours, theirs, who) = look();
    assert_eq!((ours, who.as_deref()), (0, Some("nft")));
    let gone = ("web".to_owned(), vec![ip("10.0.0.1")]);
    assert_eq!(theirs, [("bench".to_owned(), true, gone)]);

    // Those of our own can be left out from the start.
    monitor.ignore(&[1, port]).unwrap();
    bench
        .commit(|batch, table| batch.add_elements(table, &set, [&Element::new(ip("10.0.0.2"))]))
        .unwrap();
    assert_eq!(look(), (0, vec![], None));
    bench.nft(&["flush", "set", "ip", "bench", "web"]);
    assert_eq!(look().1.len(), 1);
}
