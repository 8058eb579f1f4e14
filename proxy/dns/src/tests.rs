//! Questions to a zone as rows, and packets of all kinds.

use api::core::Service;
use api::discovery::EndpointSlice;
use expect_test::{Expect, expect};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::answer::{Answer, Reply};
use crate::message::{self, Incoming};
use crate::zone::Zone;
use crate::{Handle, forward};

fn service(namespace: &str, name: &str, spec: Value) -> Service {
    let value = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    serde_json::from_value(value).unwrap()
}

fn slice(kind: &str, endpoints: Value, ports: Value) -> EndpointSlice {
    let value = json!({
        "metadata": {"name": "s"}, "addressType": kind, "endpoints": endpoints, "ports": ports,
    });
    serde_json::from_value(value).unwrap()
}

fn headless() -> (Service, Vec<EndpointSlice>) {
    let ports = json!([{"name": "peer", "port": 7000}, {"port": 9}]);
    let service = service("db", "maria", json!({"clusterIP": "None", "ports": ports}));
    let v4 = json!([
        {"addresses": ["10.244.1.5"], "hostname": "maria-0"},
        {"addresses": ["10.244.2.6"], "hostname": "maria-1"},
        {"addresses": ["10.244.2.7"], "conditions": {"ready": true}},
        {"addresses": ["10.244.2.8"], "conditions": {"ready": false}, "hostname": "maria-2"},
    ]);
    let v6 = json!([
        {"addresses": ["fd00:10:244:1::5"], "hostname": "maria-0"},
        {"addresses": ["fd00:10:244:2::7"]},
    ]);
    let slices = vec![slice("IPv4", v4, ports.clone()), slice("IPv6", v6, ports)];
    (service, slices)
}

fn zone() -> Zone {
    let mut zone = Zone::new(
        "Cluster.Local",
        &[
            "10.96.0.10".parse().unwrap(),
            "fd00:10:96::a".parse().unwrap(),
        ],
    )
    .unwrap();
    let web = service(
        "default",
        "web",
        json!({
            "clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77", "fd00:10:96::77"],
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"port": 99},
            ],
        }),
    );
    zone.set(&web, []);
    zone.set(
        &service("default", "old", json!({"clusterIP": "10.96.0.78"})),
        [],
    );
    let external = |to: &str| json!({"type": "ExternalName", "externalName": to});
    for (name, to) in [
        ("ext", "www.Example.com"),
        ("in", "web.default.svc.cluster.local."),
        ("gone", "nothing.default.svc.cluster.local"),
        ("circle", "round.default.svc.cluster.local"),
        ("round", "circle.default.svc.cluster.local"),
        ("bad", "a..b"),
    ] {
        zone.set(&service("default", name, external(to)), []);
    }
    let (maria, slices) = headless();
    zone.set(&maria, &slices);
    // Nobody is ready.
    let none = json!([{"addresses": ["10.244.9.9"], "conditions": {"ready": false}}]);
    let none = slice("IPv4", none, json!([]));
    zone.set(
        &service("db", "empty", json!({"clusterIP": "None"})),
        [&none],
    );
    let published = json!({"clusterIP": "None", "publishNotReadyAddresses": true});
    zone.set(&service("db", "published", published), [&none]);
    // No address is allocated yet.
    zone.set(
        &service("default", "pending", json!({"ports": [{"port": 1}]})),
        [],
    );
    zone.set_ready();
    zone
}

fn lines(answer: &Answer) -> String {
    let (reply, end) = match answer {
        Answer::Ours(reply) => (reply.clone(), String::new()),
        Answer::Elsewhere(reply, name) => (reply.clone(), format!("and from elsewhere: {name}\n")),
        Answer::NotOurs => return "not ours\n".to_owned(),
    };
    let Reply {
        code,
        answers,
        authorities,
        additionals,
    } = reply;
    let mut text = format!("{code:?}\n");
    for (mark, records) in [
        ("", answers),
        ("auth ", authorities),
        ("more ", additionals),
    ] {
        for record in records {
            let data = record.data.to_string();
            let kind = record.record_type();
            text += &format!("{mark}{} {} {kind} {data}\n", record.name, record.ttl);
        }
    }
    text + &end
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    lines(&zone.answer(&Name::from_ascii(name).unwrap(), kind, 0))
}

#[track_caller]
fn check(name: &str, kind: RecordType, expect: Expect) {
    expect.assert_eq(&ask(&zone(), name, kind));
}

use RecordType::{A, AAAA, ANY, CNAME, HTTPS, NS, PTR, SOA, SRV, TXT};

#[test]
fn services_with_cluster_addresses() {
    check(
        "web.default.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        web.default.svc.cluster.local. 5 A 10.96.0.77
    "#]],
    );
    check(
        "web.default.svc.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        web.default.svc.cluster.local. 5 AAAA fd00:10:96::77
    "#]],
    );
    check(
        "WEB.Default.svc.CLUSTER.local.",
        ANY,
        expect![[r#"
        NoError
        WEB.Default.svc.CLUSTER.local. 5 A 10.96.0.77
        WEB.Default.svc.CLUSTER.local. 5 AAAA fd00:10:96::77
    "#]],
    );
    check(
        "old.default.svc.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "web.default.svc.cluster.local.",
        HTTPS,
        expect![[r#"
        NoError
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "pending.default.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
}

#[test]
fn named_ports() {
    check(
        "_http._tcp.web.default.svc.cluster.local.",
        SRV,
        expect![[r#"
            NoError
            _http._tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local.
            more web.default.svc.cluster.local. 5 A 10.96.0.77
            more web.default.svc.cluster.local. 5 AAAA fd00:10:96::77
        "#]],
    );
    check(
        "_dns._udp.web.default.svc.cluster.local.",
        ANY,
        expect![[r#"
            NoError
            _dns._udp.web.default.svc.cluster.local. 5 SRV 0 100 53 web.default.svc.cluster.local.
            more web.default.svc.cluster.local. 5 A 10.96.0.77
            more web.default.svc.cluster.local. 5 AAAA fd00:10:96::77
        "#]],
    );
    check(
        "_dns._tcp.web.default.svc.cluster.local.",
        SRV,
        expect![[r#"
            NXDomain
            auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
        "#]],
    );
    check(
        "_http._tcp.web.default.svc.cluster.local.",
        A,
        expect![[r#"
            NoError
            auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
        "#]],
    );
    check(
        "_tcp.web.default.svc.cluster.local.",
        SRV,
        expect![[r#"
        NoError
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "_sctp.web.default.svc.cluster.local.",
        SRV,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "_peer._tcp.maria.db.svc.cluster.local.",
        SRV,
        expect![[r#"
        NoError
        _peer._tcp.maria.db.svc.cluster.local. 5 SRV 0 100 7000 10-244-2-7.maria.db.svc.cluster.local.
        _peer._tcp.maria.db.svc.cluster.local. 5 SRV 0 100 7000 fd00-10-244-2--7.maria.db.svc.cluster.local.
        _peer._tcp.maria.db.svc.cluster.local. 5 SRV 0 100 7000 maria-0.maria.db.svc.cluster.local.
        _peer._tcp.maria.db.svc.cluster.local. 5 SRV 0 100 7000 maria-1.maria.db.svc.cluster.local.
        more 10-244-2-7.maria.db.svc.cluster.local. 5 A 10.244.2.7
        more fd00-10-244-2--7.maria.db.svc.cluster.local. 5 AAAA fd00:10:244:2::7
        more maria-0.maria.db.svc.cluster.local. 5 A 10.244.1.5
        more maria-0.maria.db.svc.cluster.local. 5 AAAA fd00:10:244:1::5
        more maria-1.maria.db.svc.cluster.local. 5 A 10.244.2.6
    "#]],
    );
}

#[test]
fn headless_services() {
    check(
        "maria.db.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        maria.db.svc.cluster.local. 5 A 10.244.1.5
        maria.db.svc.cluster.local. 5 A 10.244.2.6
        maria.db.svc.cluster.local. 5 A 10.244.2.7
    "#]],
    );
    check(
        "maria.db.svc.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        maria.db.svc.cluster.local. 5 AAAA fd00:10:244:1::5
        maria.db.svc.cluster.local. 5 AAAA fd00:10:244:2::7
    "#]],
    );
    check(
        "maria-0.maria.db.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        maria-0.maria.db.svc.cluster.local. 5 A 10.244.1.5
    "#]],
    );
    check(
        "Maria-0.maria.db.svc.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        Maria-0.maria.db.svc.cluster.local. 5 AAAA fd00:10:244:1::5
    "#]],
    );
    check(
        "maria-1.maria.db.svc.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "maria-2.maria.db.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "10-244-2-7.maria.db.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        10-244-2-7.maria.db.svc.cluster.local. 5 A 10.244.2.7
    "#]],
    );
    check(
        "fd00-10-244-2--7.maria.db.svc.cluster.local.",
        AAAA,
        expect![[r#"
            NoError
            fd00-10-244-2--7.maria.db.svc.cluster.local. 5 AAAA fd00:10:244:2::7
        "#]],
    );
    check(
        "10-244-1-5.maria.db.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "empty.db.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "published.db.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        published.db.svc.cluster.local. 5 A 10.244.9.9
    "#]],
    );
}

#[test]
fn external_names() {
    check(
        "ext.default.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        ext.default.svc.cluster.local. 5 CNAME www.example.com.
        and from elsewhere: www.example.com.
    "#]],
    );
    check(
        "ext.default.svc.cluster.local.",
        CNAME,
        expect![[r#"
        NoError
        ext.default.svc.cluster.local. 5 CNAME www.example.com.
    "#]],
    );
    check(
        "in.default.svc.cluster.local.",
        A,
        expect![[r#"
        NoError
        in.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.
        web.default.svc.cluster.local. 5 A 10.96.0.77
    "#]],
    );
    check(
        "in.default.svc.cluster.local.",
        TXT,
        expect![[r#"
        NoError
        in.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "gone.default.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        gone.default.svc.cluster.local. 5 CNAME nothing.default.svc.cluster.local.
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "circle.default.svc.cluster.local.",
        A,
        expect![[r#"
        ServFail
    "#]],
    );
    check(
        "bad.default.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "x.ext.default.svc.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
}

#[test]
fn addresses_back_to_names() {
    check(
        "77.0.96.10.in-addr.arpa.",
        PTR,
        expect![[r#"
        NoError
        77.0.96.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local.
    "#]],
    );
    check(
        "77.0.96.10.in-addr.arpa.",
        A,
        expect![[r#"
        NoError
    "#]],
    );
    check(
        "5.1.244.10.IN-ADDR.arpa.",
        PTR,
        expect![[r#"
        NoError
        5.1.244.10.IN-ADDR.arpa. 5 PTR maria-0.maria.db.svc.cluster.local.
    "#]],
    );
    // Endpoints without a name of their own, networks and strangers: perhaps others know.
    for name in [
        "7.2.244.10.in-addr.arpa.",
        "96.10.in-addr.arpa.",
        "256.0.96.10.in-addr.arpa.",
        "a.0.96.10.in-addr.arpa.",
        "1.77.0.96.10.in-addr.arpa.",
        "ip6.arpa.",
        "arpa.",
    ] {
        assert_eq!(ask(&zone(), name, PTR), "not ours\n", "{name}");
    }
    let v6 = "7.7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.";
    check(
        v6,
        PTR,
        expect![[r#"
        NoError
        7.7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa. 5 PTR web.default.svc.cluster.local.
    "#]],
    );
    let endpoint = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa.";
    check(
        endpoint,
        PTR,
        expect![[r#"
        NoError
        5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa. 5 PTR maria-0.maria.db.svc.cluster.local.
    "#]],
    );
}

#[test]
fn pods_and_the_rest_of_the_zone() {
    check(
        "10-244-3-4.any.pod.cluster.local.",
        A,
        expect![[r#"
        NoError
        10-244-3-4.any.pod.cluster.local. 5 A 10.244.3.4
    "#]],
    );
    check(
        "10-244-3-4.any.pod.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "fd00--1.any.pod.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        fd00--1.any.pod.cluster.local. 5 AAAA fd00::1
    "#]],
    );
    check(
        "10-244-3.any.pod.cluster.local.",
        A,
        expect![[r#"
        NXDomain
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "dns-version.cluster.local.",
        TXT,
        expect![[r#"
        NoError
        dns-version.cluster.local. 5 TXT 1.1.0
    "#]],
    );
    check(
        "cluster.local.",
        SOA,
        expect![[r#"
        NoError
        cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
    check(
        "cluster.local.",
        NS,
        expect![[r#"
        NoError
        cluster.local. 5 NS ns.dns.cluster.local.
        more ns.dns.cluster.local. 5 A 10.96.0.10
        more ns.dns.cluster.local. 5 AAAA fd00:10:96::a
    "#]],
    );
    check(
        "ns.dns.cluster.local.",
        AAAA,
        expect![[r#"
        NoError
        ns.dns.cluster.local. 5 AAAA fd00:10:96::a
    "#]],
    );
    check(
        "cluster.local.",
        A,
        expect![[r#"
        NoError
        auth cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 10 7200 1800 86400 5
    "#]],
    );
}

#[test]
fn what_exists_without_records_and_what_does_not() {
    // Names between others exist, though nothing is there.
    for name in ["svc", "default.svc", "db.svc", "pod", "any.pod", "dns"] {
        let answer = ask(&zone(), &format!("{name}.cluster.local."), A);
        assert!(
            answer.starts_with("NoError\nauth cluster.local. 5 SOA"),
            "{name}: {answer}"
        );
    }
    for name in [
        "x",
        "other.svc",
        "x.default.svc",
        "web",
        "x.web.default.svc",
        "a.b.c.web.default.svc",
        "web.default.svc.cluster.local.default.svc",
        "x.dns",
        "web.default.svc.web.default.svc",
    ] {
        let answer = ask(&zone(), &format!("{name}.cluster.local."), A);
        assert!(
            answer.starts_with("NXDomain\nauth cluster.local. 5 SOA"),
            "{name}: {answer}"
        );
    }
    for name in [
        ".",
        "local.",
        "example.com.",
        "xcluster.local.",
        "cluster.local.com.",
    ] {
        assert_eq!(ask(&zone(), name, A), "not ours\n", "{name}");
    }
}

#[test]
fn answers_take_turns() {
    let zone = zone();
    let name = Name::from_ascii("maria.db.svc.cluster.local.").unwrap();
    let first = |turn| match zone.answer(&name, A, turn) {
        Answer::Ours(reply) => reply.answers[0].data.to_string(),
        other => panic!("{other:?}"),
    };
    let turns: Vec<String> = (0..4).map(first).collect();
    assert_eq!(
        turns,
        ["10.244.1.5", "10.244.2.6", "10.244.2.7", "10.244.1.5"]
    );
}

#[test]
fn changes_touch_one_service() {
    let mut zone = zone();
    let before = zone.serial();
    let (maria, slices) = headless();
    zone.set(&maria, &slices);
    assert_eq!(zone.serial(), before, "nothing changed");
    zone.set(&maria, &slices[1..]);
    assert!(zone.serial() > before);
    assert!(ask(&zone, "5.1.244.10.in-addr.arpa.", PTR).starts_with("not ours"));
    assert!(ask(&zone, "maria-0.maria.db.svc.cluster.local.", AAAA).contains("fd00:10:244:1::5"));
    zone.remove("db", "maria");
    zone.remove("db", "maria");
    assert!(ask(&zone, "maria.db.svc.cluster.local.", A).starts_with("NXDomain"));
    assert!(ask(&zone, "db.svc.cluster.local.", A).starts_with("NoError"));
    // A service that becomes another kind, and one that loses its address.
    zone.set(
        &service("default", "web", json!({"clusterIP": "10.96.0.79"})),
        [],
    );
    assert!(ask(&zone, "77.0.96.10.in-addr.arpa.", PTR).starts_with("not ours"));
    assert!(ask(&zone, "79.0.96.10.in-addr.arpa.", PTR).contains("web.default.svc"));
    zone.retain(|namespace, _| namespace == "default");
    assert!(ask(&zone, "db.svc.cluster.local.", A).starts_with("NXDomain"));
    zone.retain(|_, _| false);
    assert!(zone.is_empty());
    assert_eq!(zone.len(), 0);
}

#[test]
fn before_it_is_complete_nothing_is_denied() {
    let mut zone = Zone::new("cluster.local.", &[]).unwrap();
    assert_eq!(
        ask(&zone, "web.default.svc.cluster.local.", A),
        "ServFail\n"
    );
    zone.set_ready();
    assert!(ask(&zone, "web.default.svc.cluster.local.", A).starts_with("NXDomain"));
    for bad in ["", ".", "a..b", "cluster local"] {
        assert!(Zone::new(bad, &[]).is_err(), "{bad:?}");
    }
    assert!(Handle::new("", &[]).is_err());
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn read(bytes: &[u8]) -> message::Request {
    match message::read(bytes) {
        Incoming::Request(request) => *request,
        other => panic!("{other:?}"),
    }
}

/// The answer to what is no question.
fn refused(bytes: &[u8]) -> (u16, ResponseCode) {
    match message::read(bytes) {
        Incoming::Refusal(bytes, code) => {
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.metadata.message_type, MessageType::Response);
            // BADVERS and BADSIG are one number.
            let told = message.metadata.response_code;
            assert_eq!(u16::from(told), u16::from(code));
            (message.metadata.id, code)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_question_is_refused_or_dropped() {
    let good = query("a.b.", A).to_vec().unwrap();
    assert!(matches!(message::read(&[]), Incoming::Nothing));
    assert!(matches!(message::read(&good[..11]), Incoming::Nothing));
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert!(matches!(message::read(&answer), Incoming::Nothing));
    for op_code in [1, 2, 4, 5, 15] {
        let mut other = good.clone();
        other[2] = op_code << 3;
        assert_eq!(refused(&other), (7, ResponseCode::NotImp), "{op_code}");
    }
    for count in [0, 2, 255] {
        let mut other = good.clone();
        other[5] = count;
        assert_eq!(refused(&other), (7, ResponseCode::FormErr), "{count}");
    }
    assert_eq!(refused(&good[..good.len() - 1]), (7, ResponseCode::FormErr));
    let mut chaos = query("version.bind.", TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(
        refused(&chaos.to_vec().unwrap()),
        (7, ResponseCode::Refused)
    );
    let mut newer = query("a.b.", A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    assert_eq!(
        refused(&newer.to_vec().unwrap()),
        (7, ResponseCode::BADVERS)
    );
}

/// Writes the answer to `message` as if it came by UDP; tells whether something is missing.
fn udp(zone: &Zone, message: &Message) -> (Message, usize, bool) {
    let request = read(&message.to_vec().unwrap());
    let answer = zone.answer(request.query.name(), request.query.query_type(), 0);
    let Answer::Ours(reply) = answer else {
        panic!("{answer:?}");
    };
    let (bytes, missing) = request.write(reply, true, request.udp_bytes_max()).unwrap();
    (Message::from_vec(&bytes).unwrap(), bytes.len(), missing)
}

#[test]
fn answers_echo_the_question() {
    let mut question = query("wEb.default.svc.cluster.local.", A);
    question.metadata.checking_disabled = true;
    let (answer, _, _) = udp(&zone(), &question);
    let meta = answer.metadata;
    assert_eq!((meta.id, meta.message_type), (7, MessageType::Response));
    assert!(meta.recursion_desired && meta.recursion_available && meta.authoritative);
    assert!(meta.checking_disabled && !meta.truncation && answer.edns.is_none());
    assert!(answer.queries[0].name().eq_case(question.queries[0].name()));
    question.set_edns(Edns::new());
    let (answer, _, _) = udp(&zone(), &question);
    assert_eq!(answer.edns.unwrap().max_payload(), 1232);
}

#[test]
fn what_does_not_fit_is_truncated() {
    let mut zone = zone();
    let endpoints: Vec<Value> = (0..200)
        .map(|i| json!({"addresses": [format!("10.244.5.{i}")], "hostname": format!("pod-{i}")}))
        .collect();
    let many = slice("IPv4", json!(endpoints), json!([{"name": "p", "port": 1}]));
    zone.set(
        &service("db", "many", json!({"clusterIP": "None"})),
        [&many],
    );
    let mut question = query("many.db.svc.cluster.local.", A);
    let mut last = 0;
    for (payload, limit) in [
        (None, 512),
        (Some(600), 600),
        (Some(4096), 1232),
        (Some(0), 512),
    ] {
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            question.edns = Some(edns);
        }
        let (answer, length, missing) = udp(&zone, &question);
        assert!(missing && answer.metadata.truncation && length <= limit);
        // Nearly full all the same.
        assert!(
            answer.answers.len() * 16 > limit - 150,
            "{} of {limit}: {length}",
            answer.answers.len()
        );
        assert_eq!(answer.edns.is_some(), payload.is_some());
        last = answer.answers.len();
    }
    assert!(last < 200);
    // Whole over TCP.
    let request = read(&question.to_vec().unwrap());
    let Answer::Ours(reply) = zone.answer(request.query.name(), A, 0) else {
        panic!()
    };
    let (bytes, missing) = request.write(reply, true, 65535).unwrap();
    assert!(!missing && Message::from_vec(&bytes).unwrap().answers.len() == 200);
    // Without what was not asked for it fits: nothing is missing.
    let question = query("_peer._tcp.maria.db.svc.cluster.local.", SRV);
    let request = read(&question.to_vec().unwrap());
    let Answer::Ours(reply) = zone.answer(request.query.name(), SRV, 0) else {
        panic!()
    };
    let more = reply.additionals.len();
    let whole = request.write(reply.clone(), true, 65535).unwrap().0.len();
    let (bytes, missing) = request.write(reply, true, whole - 1).unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(more > 0 && !missing && answer.additionals.is_empty() && !answer.metadata.truncation);
}

#[test]
fn only_answers_to_the_question_are_taken() {
    let question = query("a.B.", A).to_vec().unwrap();
    let mut good = question.clone();
    good[2] |= 0x80;
    assert!(forward::answers(&good, &question));
    assert!(forward::answers(&[&good[..], b"more"].concat(), &question));
    let changed = |at: usize, value: u8| {
        let mut other = good.clone();
        other[at] = value;
        other
    };
    assert!(!forward::answers(&question, &question), "a question");
    assert!(
        !forward::answers(&changed(0, 9), &question),
        "another identity"
    );
    assert!(
        !forward::answers(&changed(13, b'x'), &question),
        "another name"
    );
    assert!(
        !forward::answers(&changed(18, 28), &question),
        "another type"
    );
    assert!(
        forward::answers(&changed(15, b'b'), &question),
        "another case"
    );
    assert!(!forward::answers(&good[..12], &question));
    assert!(!forward::answers(&good[..11], &question));
    let mut error = changed(5, 0);
    assert!(!forward::answers(&error, &question));
    error[3] |= 1;
    assert!(
        forward::answers(&error[..12], &question),
        "an error without the question"
    );
}

proptest! {
    #[test]
    fn no_packet_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        packet(&bytes);
    }

    /// Packets that are nearly good get further.
    #[test]
    fn no_damaged_packet_panics(
        name in prop::sample::select(vec![
            "web.default.svc.cluster.local.", "_peer._tcp.maria.db.svc.cluster.local.",
            "77.0.96.10.in-addr.arpa.", "10-1-1-1.x.pod.cluster.local.",
        ]),
        kind in any::<u16>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut message = query(name, RecordType::from(kind));
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        packet(&bytes);
    }

    /// However services came to be as they are, the zone is the same.
    #[test]
    fn only_the_last_state_counts(
        changes in prop::collection::vec((0..3_usize, 0..5_usize), 0..20),
    ) {
        let (maria, slices) = headless();
        let states = |name: &str, state: usize| -> Option<(Service, &[EndpointSlice])> {
            let of = |spec: Value| service("db", name, spec);
            match state {
                0 => None,
                1 => Some((of(json!({"clusterIP": "10.96.0.1"})), &[])),
                2 => Some((of(json!({"clusterIP": "10.96.0.1", "ports": [{"name": "x", "port": 1}]})), &[])),
                3 => Some((Service { metadata: of(json!({})).metadata, ..maria.clone() }, &slices)),
                _ => Some((Service { metadata: of(json!({})).metadata, ..maria.clone() }, &slices[1..])),
            }
        };
        let empty = || Zone::new("cluster.local", &[]).unwrap();
        let mut zone = empty();
        let mut last = std::collections::BTreeMap::new();
        for (name, state) in changes {
            let name = ["a", "b", "c"][name];
            last.insert(name, state);
            match states(name, state) {
                Some((service, slices)) => zone.set(&service, slices),
                None => zone.remove("db", name),
            }
        }
        let mut fresh = empty();
        for (name, state) in last {
            if let Some((service, slices)) = states(name, state) {
                fresh.set(&service, slices);
            }
        }
        fresh.set_serial(zone.serial());
        prop_assert_eq!(zone, fresh);
    }

    #[test]
    fn any_name_has_an_answer(labels in prop::collection::vec("[a-z_0-9-]{1,12}", 0..6), kind in 0_u16..300) {
        let labels = labels.iter().map(String::as_str).chain(["cluster", "local"]);
        let name = Name::from_labels(labels.map(str::as_bytes)).unwrap();
        lines(&zone().answer(&name, RecordType::from(kind), 1));
    }
}

/// Everything that happens to a packet but the sockets.
fn packet(bytes: &[u8]) {
    thread_local!(static ZONE: Zone = zone());
    if let Incoming::Request(request) = message::read(bytes) {
        let kind = request.query.query_type();
        let answer = ZONE.with(|zone| zone.answer(request.query.name(), kind, 3));
        if let Answer::Ours(reply) = answer {
            let limit = request.udp_bytes_max();
            if let Some((bytes, _)) = request.write(reply, false, limit) {
                assert!(bytes.len() <= limit);
                assert!(Message::from_vec(&bytes).is_ok());
            }
        }
    }
    forward::answers(bytes, bytes);
}
