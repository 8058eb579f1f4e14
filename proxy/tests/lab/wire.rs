//! Links, addresses and routes of the lab.

use linux::Host;
use linux::link::{LinkChange, NewBridge, NewVeth};

use super::Lab;
use super::place::Place;

/// Joins the lab's places.
pub(super) fn wire(lab: &mut Lab) {
    let node = &mut lab.node;
    node.kernel
        .add_bridge(&NewBridge {
            name: "cni0".into(),
            ..NewBridge::default()
        })
        .unwrap();
    node.up("cni0", &["10.180.0.254/24", "fd00:180::fe/64"]);
    let pods = [
        (&mut lab.p1, "v1", "10.180.0.1/24", "fd00:180::1/64"),
        (&mut lab.p2, "v2", "10.180.0.2/24", "fd00:180::2/64"),
    ];
    for (pod, veth, v4, v6) in pods {
        pair(node, veth, Some("cni0"), pod);
        let hairpin = LinkChange {
            up: Some(true),
            hairpin: Some(true),
            ..LinkChange::default()
        };
        node.kernel.set_link(veth, &hairpin).unwrap();
        pod.up("eth0", &[v4, v6]);
        pod.default_route(&["10.180.0.254", "fd00:180::fe"]);
    }
    pair(node, "rem0", None, &mut lab.p3);
    node.up("rem0", &["10.180.1.254/24", "fd00:180:1::fe/64"]);
    lab.p3.up("eth0", &["10.180.1.1/24", "fd00:180:1::1/64"]);
    lab.p3.default_route(&["10.180.1.254", "fd00:180:1::fe"]);
    pair(node, "eth0", None, &mut lab.cli);
    node.up("eth0", &["192.168.0.2/24", "2001:db8::2/64"]);
    lab.cli.up("eth0", &["192.168.0.9/24", "2001:db8::9/64"]);
    lab.cli.default_route(&["192.168.0.2", "2001:db8::2"]);
    node.default_route(&["192.168.0.9", "2001:db8::9"]);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.kernel.set_sysctl(key, "1").unwrap();
    }
    // The client is the node's router, too, so service addresses would lead back to it. The kernel
    // counts redirects and unreachables against one limit, and would swallow a refusal.
    for link in ["all", "eth0"] {
        let key = format!("net/ipv4/conf/{link}/send_redirects");
        node.kernel.set_sysctl(&key, "0").unwrap();
    }
}

fn pair(node: &mut Place, name: &str, master: Option<&str>, peer: &mut Place) {
    let veth = NewVeth {
        name: name.into(),
        master: master.map(Into::into),
        peer_name: "eth0".into(),
        peer_netns: Some(peer.kernel.netns()),
        ..NewVeth::default()
    };
    node.kernel.add_veth(&veth).unwrap();
}
