//! Plans and results as golden texts.

use expect_test::{Expect, expect};
use linux::link::{Link, Port};
use serde_json::{Value, json};

use api::cni::{self, AddResult, Dns};

use super::*;
use crate::observe::{Attached, BridgeSeen, Observed};
use crate::request::{Command, Pod, Request, Verb, parse_input};
use crate::result::result;
use crate::role::Role;

const V4: &str = r#"[{"subnet": "10.1.0.0/24"}]"#;
const V6: &str = r#"[{"subnet": "fd00:1::/64"}]"#;

/// An ADD of container `c1` with these ranges and changes of the configuration.
fn request(ranges: &[&str], changes: &Value) -> (Net, Pod, Addresses) {
    let sets: Vec<Value> = ranges
        .iter()
        .map(|r| serde_json::from_str(r).unwrap())
        .collect();
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "seaway-cni", "mtu": 1450,
        "ipam": {"type": "seaway", "ranges": sets}
    });
    if ranges.is_empty() {
        conf["ipam"] = Value::Null;
    }
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    let env = |name: &str| {
        let value = match name {
            "CNI_CONTAINERID" => "c1",
            "CNI_NETNS" => "/run/netns/p",
            "CNI_IFNAME" => "eth0",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let conf = parse_input(conf.to_string().as_bytes()).unwrap();
    let request = Request::parse(Role::Seaway, Command::Add, &env, &conf).unwrap();
    let Verb::Add(pod) = request.verb else {
        panic!("not ADD")
    };
    let sets = request.net.ipam.as_ref().map_or(&[][..], |ipam| &ipam.sets);
    let leases = crate::ipam::allocate(sets, &pod.ips, &[].into(), &[]).unwrap();
    let addresses = Addresses::leased(&request.net, leases, Dns::default());
    (request.net, pod, addresses)
}

/// A node and a pod on which nothing was ever done.
fn fresh() -> Observed {
    Observed {
        pod_links: ["lo".to_owned()].into(),
        ..Observed::default()
    }
}

/// A node that has other pods already.
fn used(addrs: &[&str]) -> Observed {
    let bridge = BridgeSeen {
        kind: Some("bridge".into()),
        mac: Some(Mac([0x0a, 0x58, 10, 1, 0, 1])),
        mtu: 1450,
        up: true,
        promisc: false,
        vlan_filtering: false,
        addrs: addrs.iter().map(|a| a.parse().unwrap()).collect(),
        ports: 3,
    };
    Observed {
        bridge: Some(bridge),
        forwards_ipv4: true,
        forwards_ipv6: true,
        lo_up: true,
        ..fresh()
    }
}

#[track_caller]
fn planned(ranges: &[&str], changes: &Value, seen: &Observed, wants: &Expect) {
    let (net, pod, leases) = request(ranges, changes);
    let text = match plan_add(&net, &pod, &leases, seen) {
        Ok(plan) => plan.steps.iter().map(|step| format!("{step}\n")).collect(),
        Err(error) => format!("error {}: {error}\n", error.code.0),
    };
    wants.assert_eq(&text);
}

#[test]
fn first_pod_of_a_node_dual_stack() {
    planned(
        &[V4, V6],
        &json!({}),
        &fresh(),
        &expect![[r#"
        node: bridge cni0 address 0a:58:0a:01:00:01 mtu 1450
        node: sysctl net/ipv6/conf/cni0/accept_ra = 0
        node: cni0 up
        node: cni0 address 10.1.0.1/24
        node: cni0 address fd00:1::1/64 nodad
        node: sysctl net/ipv4/ip_forward = 1
        node: sysctl net/ipv6/conf/all/forwarding = 1
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:58:0a:01:00:02 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
        pod: lo up
        pod: eth0 up
        pod: eth0 address 10.1.0.2/24
        pod: eth0 address fd00:1::2/64 nodad
        pod: route default via 10.1.0.1 dev eth0
        pod: route default (IPv6) via fd00:1::1 dev eth0
        node: wait for vethf842bfb2cb4
    "#]],
    );
}

#[test]
fn further_pods_touch_only_their_own() {
    planned(
        &[V4],
        &json!({}),
        &used(&["10.1.0.1/24", "fe80::1/64"]),
        &expect![[r#"
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:58:0a:01:00:02 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
        pod: eth0 up
        pod: eth0 address 10.1.0.2/24
        pod: route default via 10.1.0.1 dev eth0
        node: wait for vethf842bfb2cb4
    "#]],
    );
}

#[test]
fn ipv6_alone_in_a_pod_that_comes_without() {
    let seen = Observed {
        pod_without_ipv6: true,
        ..used(&["fd00:1::1/64"])
    };
    planned(
        &[V6],
        &json!({}),
        &seen,
        &expect![[r#"
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:59:00:00:00:02 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
        pod: sysctl net/ipv6/conf/eth0/disable_ipv6 = 0
        pod: eth0 up
        pod: eth0 address fd00:1::2/64 nodad
        pod: route default (IPv6) via fd00:1::1 dev eth0
        node: wait for vethf842bfb2cb4
    "#]],
    );
}

#[test]
fn options_of_the_bridge() {
    let changes = json!({
        "bridge": "br7", "mtu": 0, "promiscMode": true, "portIsolation": true,
        "isGateway": false, "isDefaultGateway": false, "runtimeConfig": {"mac": "0a:00:00:00:00:07"}
    });
    planned(
        &[V4],
        &changes,
        &fresh(),
        &expect![[r#"
            node: bridge br7 address 0a:5e:75:89:37:33
            node: br7 promisc on up
            node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master br7, pod: eth0 address 0a:00:00:00:00:07
            node: vethf842bfb2cb4 isolated on alias seaway:pods:c1:eth0 up
            pod: lo up
            pod: sysctl net/ipv4/conf/eth0/arp_notify = 1
            pod: eth0 address 10.1.0.2/24
            pod: eth0 up
            node: wait for vethf842bfb2cb4
        "#]],
    );
}

#[test]
fn everything_that_a_pod_can_have() {
    let changes = json!({
        "ipMasq": true, "macspoofchk": true, "enabledad": true, "vlan": 100,
        "vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}], "preserveDefaultVlan": false,
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}],
            "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000,
                          "egressRate": 16000, "egressBurst": 8000}
        }
    });
    planned(
        &[V4, V6],
        &changes,
        &fresh(),
        &expect![[r#"
            node: bridge cni0 address 0a:58:0a:01:00:01 mtu 1450
            node: sysctl net/ipv6/conf/cni0/accept_ra = 0
            node: cni0 vlan filtering on up
            node: veth vg1d20cf6f518 master cni0, cni0.100
            node: vg1d20cf6f518 vlan 100-100 untagged
            node: cni0.100 up
            node: cni0.100 address 10.1.0.1/24
            node: cni0.100 address fd00:1::1/64 nodad
            node: sysctl net/ipv4/ip_forward = 1
            node: sysctl net/ipv6/conf/all/forwarding = 1
            node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:58:0a:01:00:02 mtu 1450
            node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
            node: vethf842bfb2cb4 vlan 100-100 untagged
            node: vethf842bfb2cb4 vlan 101-101
            node: vethf842bfb2cb4 vlan 200-210
            node: vethf842bfb2cb4 no vlan 1-1
            pod: lo up
            pod: eth0 up
            pod: eth0 address 10.1.0.2/24
            pod: eth0 address fd00:1::2/64
            pod: route default via 10.1.0.1 dev eth0
            pod: route default (IPv6) via fd00:1::1 dev eth0
            pod: wait for the addresses of eth0
            node: sysctl net/ipv4/conf/cni0.100/route_localnet = 1
            node: entries of pods/c1/eth0: udp/*:8080->10.1.0.2:80 udp/*:8080->fd00:1::2:80 masquerade 10.1.0.2 unless by cni0.100 masquerade fd00:1::2 unless by cni0.100 only 0a:58:0a:01:00:02 by vethf842bfb2cb4
            node: forget UDP connections of 2 ports
            node: vethf842bfb2cb4 rate 1000 burst 1000
            node: ifb ifbf842bfb2cb4 address 0a:5c:2b:fb:2c:b4 mtu 1450
            node: ifbf842bfb2cb4 alias seaway:pods:c1:eth0 up
            node: ifbf842bfb2cb4 rate 2000 burst 1000
            node: vethf842bfb2cb4 comes in through ifbf842bfb2cb4
            node: wait for vethf842bfb2cb4
        "#]],
    );
}

#[test]
fn a_link_that_somebody_else_will_use() {
    let changes = json!({"ipam": null, "disableContainerInterface": true});
    planned(
        &[],
        &changes,
        &used(&[]),
        &expect![[r#"
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:5a:2b:fb:2c:b4 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
    "#]],
    );
}

#[test]
fn a_link_without_addresses() {
    planned(
        &[],
        &json!({}),
        &used(&[]),
        &expect![[r#"
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:5a:2b:fb:2c:b4 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
        pod: eth0 up
        node: wait for vethf842bfb2cb4
    "#]],
    );
}

#[test]
fn routes_of_the_configuration() {
    let changes = json!({"ipam": {"type": "seaway", "ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [
        {"dst": "10.96.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.1.0.9"}, {"dst": "::/0"}
    ]}});
    planned(
        &[V4],
        &changes,
        &used(&["10.1.0.1/24"]),
        &expect![[r#"
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:58:0a:01:00:02 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
        pod: eth0 up
        pod: eth0 address 10.1.0.2/24
        pod: route 10.96.0.0/16 via 10.1.0.1 dev eth0
        pod: route default via 10.1.0.9 dev eth0
        node: wait for vethf842bfb2cb4
    "#]],
    );
}

#[test]
fn a_bridge_that_cannot_serve() {
    let other = used(&["10.2.0.1/24"]);
    planned(
        &[V4],
        &json!({}),
        &other,
        &expect![[r#"
        error 7: bridge: cni0 has address 10.2.0.1/24 and 3 pods, the network wants 10.1.0.1/24; set forceAddress to replace it
    "#]],
    );
    planned(
        &[V4],
        &json!({"forceAddress": true}),
        &other,
        &expect![[r#"
        node: cni0 no address 10.2.0.1/24
        node: cni0 address 10.1.0.1/24
        node: veth vethf842bfb2cb4 address 0a:5b:2b:fb:2c:b4 master cni0, pod: eth0 address 0a:58:0a:01:00:02 mtu 1450
        node: vethf842bfb2cb4 hairpin on alias seaway:pods:c1:eth0 up
        pod: eth0 up
        pod: eth0 address 10.1.0.2/24
        pod: route default via 10.1.0.1 dev eth0
        node: wait for vethf842bfb2cb4
    "#]],
    );
    let mut empty = other.clone();
    empty.bridge.as_mut().unwrap().ports = 0;
    let steps = |changes: &Value, seen: &Observed| {
        let (net, pod, leases) = request(&[V4], changes);
        let plan = plan_add(&net, &pod, &leases, seen).unwrap();
        plan.steps
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        steps(&json!({}), &empty),
        steps(&json!({"forceAddress": true}), &other)
    );
    let mut wrong = other;
    wrong.bridge.as_mut().unwrap().kind = Some("veth".into());
    planned(
        &[V4],
        &json!({}),
        &wrong,
        &expect![[r#"
        error 7: bridge: cni0 exists and is a veth, not a bridge
    "#]],
    );
    let twice = Observed {
        pod_links: ["eth0".to_owned()].into(),
        ..used(&[])
    };
    planned(
        &[V4],
        &json!({}),
        &twice,
        &expect![[r#"
        error 4: CNI_IFNAME: eth0 exists in /run/netns/p already
    "#]],
    );
}

#[test]
fn names_follow_from_the_owner() {
    let owner = |container: &str, ifname: &str| Attachment {
        container_id: container.into(),
        ifname: ifname.into(),
    };
    let name = host_link_name("pods", &owner("c1", "eth0"));
    assert_eq!(name.len(), 15);
    for other in [
        host_link_name("pod", &owner("sc1", "eth0")),
        host_link_name("pods", &owner("c1", "eth1")),
        host_link_name("pods", &owner("c1e", "th0")),
    ] {
        assert_ne!(name, other);
    }
    let long = alias("pods", &owner(&"x".repeat(400), "eth0"));
    assert_eq!(long.len(), 255);
}

#[test]
fn del_removes_what_is_there() {
    let (net, pod, _) = request(&[V4], &json!({}));
    let plan = |host_link, pod_link| {
        let steps = plan_del(
            &net,
            &pod.owner,
            &Leftover {
                host_link,
                pod_link,
                ifb: false,
            },
        );
        steps.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let entries = "node: no entries of pods/c1/eth0";
    assert_eq!(
        plan(true, false),
        [
            "node: vethf842bfb2cb4 down",
            entries,
            "node: no link vethf842bfb2cb4"
        ]
    );
    assert_eq!(plan(false, true), [entries, "pod: no link eth0"]);
    assert_eq!(plan(false, false), [entries]);
}

#[test]
fn gc_keeps_what_is_listed_and_what_is_not_ours() {
    let (net, pod, _) = request(&[V4], &json!({}));
    let links = [
        ("vethf842bfb2cb4", "seaway:pods:c1:eth0"),
        ("veth0000000dead", "seaway:pods:c2:eth0"),
        ("ifbf842bfb2cb4", "seaway:pods:c1:eth0"),
        ("ifb00000000dead", "seaway:pods:c2:eth0"),
        ("veth0000000beef", "seaway:others:c2:eth0"),
        ("eth0", "uplink"),
    ];
    let links = links
        .map(|(name, alias)| (name.to_owned(), alias.to_owned()))
        .into();
    let steps = plan_gc(&net, std::slice::from_ref(&pod.owner), &links);
    assert_eq!(
        steps,
        [
            Step::RemoveLink(Side::Node, "ifb00000000dead".into()),
            Step::RemoveLink(Side::Node, "veth0000000dead".into()),
            Step::RemoveEntries(Whose::AllBut {
                network: fnv1a(&["pods"]),
                keep: vec![Tag::of("pods", &pod.owner).owner],
            }),
        ]
    );
}

/// What CHECK finds when all is well.
fn attached() -> (Net, Pod, AddResult, Attached) {
    let (net, pod, leases) = request(&[V4], &json!({}));
    let plan = plan_add(&net, &pod, &leases, &fresh()).unwrap();
    let previous = result(&net, &pod, &leases, &plan);
    let port = Some(Port {
        hairpin: true,
        isolated: false,
        forwarding: true,
    });
    let seen = Attached {
        bridge: used(&["10.1.0.1/24"]).bridge,
        bridge_index: Some(4),
        host_link: Some(Link {
            up: true,
            master: Some(4),
            port,
            ..Link::default()
        }),
        pod_link: Some(Link {
            up: true,
            mac: Some(plan.pod_mac),
            mtu: 1450,
            ..Link::default()
        }),
        addrs: vec!["10.1.0.2/24".parse().unwrap()],
        routes: vec![(
            "0.0.0.0/0".parse().unwrap(),
            Some("10.1.0.1".parse().unwrap()),
        )],
        ..Attached::default()
    };
    (net, pod, previous, seen)
}

#[test]
fn check_tells_each_thing_that_is_wrong() {
    let leased: IpAddr = "10.1.0.2".parse().unwrap();
    let (net, pod, previous, seen) = attached();
    check(&net, &pod, &previous, &[leased], &seen).unwrap();
    let broken = |change: &dyn Fn(&mut Attached)| {
        let mut seen = attached().3;
        change(&mut seen);
        check(&net, &pod, &previous, &[leased], &seen)
            .unwrap_err()
            .details
    };
    let host = "vethf842bfb2cb4";
    let link = |seen: &mut Attached, change: &dyn Fn(&mut Link)| {
        change(seen.pod_link.as_mut().unwrap());
    };
    let port = |seen: &mut Attached, change: &dyn Fn(&mut Link)| {
        change(seen.host_link.as_mut().unwrap());
    };
    assert_eq!(
        broken(&|s| s.bridge = None),
        "bridge cni0 is not there; cni0 has no address 10.1.0.1"
    );
    assert_eq!(
        broken(&|s| s.bridge.as_mut().unwrap().up = false),
        "bridge cni0 is down"
    );
    assert_eq!(
        broken(&|s| s.host_link = None),
        format!("{host} is not there")
    );
    assert_eq!(
        broken(&|s| port(s, &|l| l.up = false)),
        format!("{host} is down")
    );
    assert_eq!(
        broken(&|s| port(s, &|l| l.master = Some(9))),
        format!("{host} is not a port of cni0")
    );
    assert_eq!(
        broken(&|s| port(s, &|l| l.port = None)),
        format!("{host} has hairpin off")
    );
    assert_eq!(broken(&|s| link(s, &|l| l.up = false)), "eth0 is down");
    assert_eq!(
        broken(&|s| link(s, &|l| l.mtu = 9)),
        "eth0 has mtu 9, not 1450"
    );
    assert_eq!(
        broken(&|s| link(s, &|l| l.mac = None)),
        "eth0 has hardware address , not 0a:58:0a:01:00:02"
    );
    assert_eq!(broken(&|s| s.pod_link = None), "eth0 is not there");
    assert_eq!(
        broken(&|s| s.addrs.clear()),
        "eth0 has no address 10.1.0.2/24"
    );
    assert_eq!(broken(&|s| s.routes.clear()), "no route to 0.0.0.0/0");
    let error = check(&net, &pod, &previous, &[], &attached().3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "c1 is not as ADD left it: 10.1.0.2 is not leased to this container"
    );
}

#[test]
fn results_of_every_version() {
    let (net, pod, leases) = request(&[V4, V6], &json!({"dns": {"nameservers": ["10.96.0.10"]}}));
    let plan = plan_add(&net, &pod, &leases, &fresh()).unwrap();
    let result = result(&net, &pod, &leases, &plan);
    let json = |version| serde_json::to_string_pretty(&result.clone().in_version(version)).unwrap();
    expect![[r#"
        {
          "cniVersion": "1.1.0",
          "interfaces": [
            {
              "name": "cni0",
              "mac": "0a:58:0a:01:00:01"
            },
            {
              "name": "vethf842bfb2cb4",
              "mac": "0a:5b:2b:fb:2c:b4",
              "mtu": 1450
            },
            {
              "name": "eth0",
              "mac": "0a:58:0a:01:00:02",
              "mtu": 1450,
              "sandbox": "/run/netns/p"
            }
          ],
          "ips": [
            {
              "address": "10.1.0.2/24",
              "gateway": "10.1.0.1",
              "interface": 2
            },
            {
              "address": "fd00:1::2/64",
              "gateway": "fd00:1::1",
              "interface": 2
            }
          ],
          "routes": [
            {
              "dst": "0.0.0.0/0",
              "gw": "10.1.0.1"
            },
            {
              "dst": "::/0",
              "gw": "fd00:1::1"
            }
          ],
          "dns": {
            "nameservers": [
              "10.96.0.10"
            ]
          }
        }"#]]
    .assert_eq(&json(cni::Version::V1_1_0));
    let middle = json(cni::Version::V1_0_0);
    assert_eq!(
        middle,
        json(cni::Version::V1_1_0)
            .replace("1.1.0", "1.0.0")
            .replace(",\n      \"mtu\": 1450", "")
    );
    assert!(json(cni::Version::V0_4_0).contains("\"version\": \"6\""));
}
