//! Rows for entries, and both forms as text.

use api::cni::Attachment;
use expect_test::expect;
use linux::iptables::Family;

use super::*;

fn tag() -> Tag {
    Tag::of(
        "pods",
        &Attachment {
            container_id: "c1".into(),
            ifname: "eth0".into(),
        },
    )
}

fn mapping(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> PortMapping {
    PortMapping {
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port: 80,
    }
}

fn entries(options: ForwardOptions) -> Entries {
    let pods = ["10.1.0.2".parse().unwrap(), "fd00:1::2".parse().unwrap()];
    let mappings = [
        mapping(Protocol::Tcp, None, 8080),
        mapping(Protocol::Udp, Some("192.0.2.1"), 53),
        mapping(Protocol::Sctp, Some("::"), 7),
    ];
    Entries {
        forwards: forwards(&mappings, &pods),
        options,
        masquerades: vec![Masquerade {
            pod: pods[0],
            bridge: "cni0".into(),
            network: "10.1.0.2/24".parse().unwrap(),
        }],
        guard: Some(("veth1".into(), Mac([2, 0, 0, 0, 0, 1]))),
        ..Entries::none(tag())
    }
}

fn snat() -> ForwardOptions {
    ForwardOptions {
        snat: true,
        ..ForwardOptions::default()
    }
}

#[test]
fn a_tag_is_read_as_it_is_written() {
    let comment = tag().to_string();
    assert_eq!(Tag::parse(&comment), Some(tag()));
    for other in [
        "",
        "x",
        "kube-proxy: a rule",
        &comment[..30],
        &comment.replace('a', "\u{e9}"),
    ] {
        assert_ne!(Tag::parse(other), Some(tag()), "{other}");
    }
    let owner = Attachment {
        container_id: "x".repeat(200),
        ifname: "eth0".into(),
    };
    let long = Tag::of("pods", &owner);
    let read = Tag::parse(&long.to_string()).unwrap();
    assert!(
        Whose::One(long.clone()).holds(&read),
        "the hashes count, not the text"
    );
    let all_but = |keep: Vec<u64>, network: &str| Whose::AllBut {
        network: fnv1a(&[network]),
        keep,
    };
    assert!(all_but(vec![], "pods").holds(&long));
    assert!(!all_but(vec![long.owner], "pods").holds(&long));
    assert!(!all_but(vec![], "others").holds(&long));
}

#[test]
fn a_mapping_leads_to_the_pods_address_of_its_family() {
    let text = entries(snat()).to_string();
    expect!["entries of pods/c1/eth0: tcp/*:8080->10.1.0.2:80 tcp/*:8080->fd00:1::2:80 udp/192.0.2.1:53->10.1.0.2:80 sctp/*:7->fd00:1::2:80 masquerade 10.1.0.2 unless by cni0 only 02:00:00:00:00:01 by veth1"]
        .assert_eq(&text);
    let only_v6 = forwards(
        &[mapping(Protocol::Tcp, Some("192.0.2.1"), 1)],
        &["fd00:1::2".parse().unwrap()],
    );
    assert!(only_v6.is_empty());
    assert_eq!(entries(snat()).udp_ports().len(), 1);
}

#[test]
fn each_part_goes_to_whom_it_is_meant_for() {
    let mut all = entries(snat());
    all.options.backend = Some(Backend::Iptables);
    let (nft, iptables) = all.split(Backend::Nftables);
    assert_eq!((nft.forwards.len(), iptables.forwards.len()), (0, 4));
    assert_eq!((nft.masquerades.len(), iptables.masquerades.len()), (1, 0));
    let (nft, iptables) = all.split(Backend::Iptables);
    assert_eq!((nft.masquerades.len(), iptables.masquerades.len()), (0, 1));
    assert!(
        nft.guard.is_some() && iptables.guard.is_none(),
        "frames are nftables' alone"
    );
}

#[test]
fn elements_of_a_pod_whatever_its_number_of_ports() {
    let of = |options| {
        let all = nft::elements(&entries(options));
        all.iter()
            .map(|e| e.set.name.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        of(snat()),
        "ports4-any pods4 ports6-any pods6 ports4 ports6-any masquerade4 own4 senders checked"
    );
    let everyone = ForwardOptions {
        masq_all: true,
        ..ForwardOptions::default()
    };
    assert!(of(everyone).starts_with("ports4-any everyone4 ports6-any everyone6 "));
}

#[test]
fn rules_of_iptables() {
    let text = |options, family| {
        Rules::default()
            .text_to_put(&entries(options), family)
            .unwrap()
    };
    let plain =
        |text: String| text.replace(&format!("-m comment --comment \"{}\"", tag()), "[tag]");
    expect![[r#"
        *nat
        :SEAWAY-HOSTPORTS - [0:0]
        -I PREROUTING -m addrtype --dst-type LOCAL -m comment --comment "pods of seaway-cni" -j SEAWAY-HOSTPORTS
        -I OUTPUT -m addrtype --dst-type LOCAL -m comment --comment "pods of seaway-cni" -j SEAWAY-HOSTPORTS
        :SEAWAY-HP-MASQ - [0:0]
        -I POSTROUTING -m comment --comment "pods of seaway-cni" -j SEAWAY-HP-MASQ
        :SEAWAY-IP-MASQ - [0:0]
        -I POSTROUTING -m comment --comment "pods of seaway-cni" -j SEAWAY-IP-MASQ
        -A SEAWAY-HOSTPORTS -p tcp --dport 8080 [tag] -j DNAT --to-destination 10.1.0.2:80
        -A SEAWAY-HOSTPORTS -p udp -d 192.0.2.1 --dport 53 [tag] -j DNAT --to-destination 10.1.0.2:80
        -A SEAWAY-HP-MASQ -s 10.1.0.2 -d 10.1.0.2 [tag] -j MASQUERADE --random-fully
        -A SEAWAY-HP-MASQ -s 127.0.0.0/8 -d 10.1.0.2 [tag] -j MASQUERADE --random-fully
        -A SEAWAY-IP-MASQ -s 10.1.0.2 -d 10.1.0.0/24 [tag] -j RETURN
        -A SEAWAY-IP-MASQ -s 10.1.0.2 -d 224.0.0.0/4 [tag] -j RETURN
        -A SEAWAY-IP-MASQ -s 10.1.0.2 [tag] -j MASQUERADE --random-fully
        COMMIT
    "#]]
    .assert_eq(&plain(text(snat(), Family::V4)));
    let marked = ForwardOptions {
        mark_chain: Some("KUBE-MARK-MASQ".into()),
        conditions: [vec![], vec!["!".into(), "-d".into(), "fd00::/8".into()]],
        ..snat()
    };
    let v6 = plain(text(marked, Family::V6));
    let lines: Vec<&str> = v6.lines().filter(|line| line.starts_with("-A")).collect();
    expect![[r#"
        -A SEAWAY-HOSTPORTS -p tcp --dport 8080 ! -d fd00::/8 -s fd00:1::2 [tag] -j KUBE-MARK-MASQ
        -A SEAWAY-HOSTPORTS -p tcp --dport 8080 ! -d fd00::/8 [tag] -j DNAT --to-destination [fd00:1::2]:80
        -A SEAWAY-HOSTPORTS -p sctp --dport 7 ! -d fd00::/8 -s fd00:1::2 [tag] -j KUBE-MARK-MASQ
        -A SEAWAY-HOSTPORTS -p sctp --dport 7 ! -d fd00::/8 [tag] -j DNAT --to-destination [fd00:1::2]:80"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn saved_rules_are_removed_by_their_owner() {
    let other = "-A SEAWAY-HOSTPORTS -p tcp -m tcp --dport 1 -j DNAT --to-destination 10.1.0.9:1";
    let own = format!(
        "-A SEAWAY-HOSTPORTS -p tcp -m tcp --dport 2 -m comment --comment \"{}\" -j DNAT \
         --to-destination 10.1.0.2:2",
        tag()
    );
    let saved = format!(":SEAWAY-HOSTPORTS - [0:0]\n:PREROUTING ACCEPT [0:0]\n{other}\n{own}\n");
    let rules = Rules::parse(&saved);
    let removed = rules.text_to_remove(&Whose::One(tag())).unwrap();
    assert_eq!(
        removed,
        format!("*nat\n-D{}\nCOMMIT\n", own.strip_prefix("-A").unwrap())
    );
    let empty = Rules::parse("");
    assert_eq!(empty.text_to_remove(&Whose::One(tag())), None);
    // What the owner had is replaced, and the chain that is there is not emptied.
    let again = rules.text_to_put(&entries(snat()), Family::V4).unwrap();
    assert!(!again.contains(":SEAWAY-HOSTPORTS") && again.contains(":SEAWAY-HP-MASQ"));
    assert!(again.contains(&removed["*nat\n".len()..removed.len() - "COMMIT\n".len()]));
    assert_eq!(rules.count(&entries(snat()), Family::V4), (1, 7));
}
