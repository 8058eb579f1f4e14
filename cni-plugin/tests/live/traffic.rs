//! Pods that talk to each other and to their node.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use api::cni::AddResult;
use linux::link::LinkChange;
use linux::{Host, NetNs};

use crate::lab::{Node, Pod, V4, V6};

/// Answers come within microseconds; this is for a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(60);

fn addresses(result: &AddResult) -> Vec<IpAddr> {
    result
        .addresses_of("eth0")
        .iter()
        .map(|net| net.ip())
        .collect()
}

/// Sends over TCP and UDP from one namespace to an address of another; the other side sees `source`.
#[track_caller]
fn talk(from: &NetNs, to: &NetNs, address: IpAddr, source: IpAddr) {
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let listener = to.run(|| TcpListener::bind((any, 0))).unwrap().unwrap();
    let target = SocketAddr::new(address, listener.local_addr().unwrap().port());
    let client = from
        .run(|| TcpStream::connect_timeout(&target, TIMEOUT))
        .unwrap();
    let mut client = client.unwrap_or_else(|e| panic!("TCP to {target}: {e}"));
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), source);
    client.write_all(b"tcp").unwrap();
    let mut bytes = [0; 3];
    server.read_exact(&mut bytes).unwrap();

    let server = to.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    server.set_read_timeout(Some(TIMEOUT)).unwrap();
    let target = SocketAddr::new(address, server.local_addr().unwrap().port());
    let client = from.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    // As large as the MTU of 1450 allows without fragments.
    let payload = vec![7; if address.is_ipv4() { 1422 } else { 1402 }];
    client.send_to(&payload, target).unwrap();
    let mut bytes = [0; 2000];
    let (length, peer) = server.recv_from(&mut bytes).unwrap();
    assert_eq!((length, peer.ip()), (payload.len(), source));
}

#[test]
fn pods_and_node_reach_each_other_at_once() {
    let test = "pods_and_node_reach_each_other_at_once";
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (ra, rb) = (node.add(&a).unwrap(), node.add(&b).unwrap());
    for ((at_a, at_b), ip) in addresses(&ra).into_iter().zip(addresses(&rb)).zip(&ra.ips) {
        talk(&a.netns, &b.netns, at_b, at_a);
        let gateway = ip.gateway.unwrap();
        talk(&a.netns, &node.netns, gateway, at_a);
        talk(&node.netns, &b.netns, at_b, gateway);
    }
}

#[test]
fn an_address_that_is_used_again_is_reachable_at_once() {
    let test = "an_address_that_is_used_again_is_reachable_at_once";
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    let a = Pod::new("a");
    let from = addresses(&node.add(&a).unwrap());
    for round in 0..3 {
        let b = Pod::new(&format!("b{round}"));
        let mut conf = node.conf();
        conf["runtimeConfig"] = serde_json::json!({"ips": ["10.244.7.77", "fd00:10:244:7::77"]});
        node.call(&node.exec("ADD", &b.name, Some(b.netns.path()), &conf))
            .unwrap();
        // What `a` and the node remember of the last pod at this address still holds.
        for (at, to) in from.iter().zip(["10.244.7.77", "fd00:10:244:7::77"]) {
            talk(&a.netns, &b.netns, to.parse().unwrap(), *at);
        }
        node.del(&b).unwrap();
    }
}

#[test]
fn isolated_pods_reach_everyone_but_each_other() {
    let test = "isolated_pods_reach_everyone_but_each_other";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    let mut conf = node.conf();
    conf["portIsolation"] = serde_json::json!(true);
    let isolated = |pod: &Pod| -> AddResult {
        let add = node.exec("ADD", &pod.name, Some(pod.netns.path()), &conf);
        serde_json::from_str(&node.call(&add).unwrap()).unwrap()
    };
    let (a, b, c) = (Pod::new("a"), Pod::new("b"), Pod::new("c"));
    let (ra, rb, rc) = (isolated(&a), isolated(&b), node.add(&c).unwrap());
    let [at_a, at_b, at_c] = [&ra, &rb, &rc].map(|result| addresses(result)[0]);
    talk(&a.netns, &node.netns, ra.ips[0].gateway.unwrap(), at_a);
    talk(&a.netns, &c.netns, at_c, at_a);
    talk(&c.netns, &b.netns, at_b, at_c);
    // Somebody listens there, whom the packets do not reach.
    let listener = b.netns.run(|| TcpListener::bind((at_b, 0)));
    let listener = listener.unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let long = Duration::from_secs(1);
    let tried = a.netns.run(|| TcpStream::connect_timeout(&target, long));
    tried.unwrap().unwrap_err();
    // And would, were it not for that.
    let open = LinkChange {
        isolated: Some(false),
        ..LinkChange::default()
    };
    for result in [&ra, &rb] {
        node.kernel()
            .set_link(&result.interfaces[1].name, &open)
            .unwrap();
    }
    talk(&a.netns, &b.netns, at_b, at_a);
}
