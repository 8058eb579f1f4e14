//! Host ports, masquerading and the check of hardware addresses, with packets.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use api::cni::ErrorCode;
use linux::addr::Addr;
use linux::exec::Exec;
use linux::link::{LinkChange, NewVeth};
use linux::nftables::{Family, Nftables};
use linux::route::Route;
use linux::{Host, Kernel, Mac, NetNs};
use serde_json::{Value, json};

use crate::lab::{Node, Pod, V4, V6, refused};

/// Answers come within milliseconds; this is for a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long it is waited for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The node's addresses on the wire to the client, and the client's.
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const NODE_OTHER: &str = "192.0.2.9";
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A machine beside the node, which routes to pods through it.
fn client_of(node: &Node) -> NetNs {
    let client = NetNs::anonymous().unwrap();
    let mut inside = node.kernel();
    inside
        .add_veth(&NewVeth {
            name: "up0".into(),
            peer_name: "eth0".into(),
            peer_netns: Some(client.reference()),
            ..NewVeth::default()
        })
        .unwrap();
    let mut outside = Kernel::open_in(NetNs::open(client.path()).unwrap()).unwrap();
    for (host, link, addresses) in [
        (&mut inside, "up0", vec![NODE[0], NODE[1], NODE_OTHER]),
        (&mut outside, "eth0", CLIENT.to_vec()),
    ] {
        host.set_link("lo", &LinkChange::up()).unwrap();
        host.set_link(link, &LinkChange::up()).unwrap();
        for address in addresses {
            let length = if address.contains(':') { 64 } else { 24 };
            let net = format!("{address}/{length}").parse().unwrap();
            host.add_addr(link, &Addr::new(net)).unwrap();
        }
    }
    for (pods, gateway) in [(V4, NODE[0]), (V6, NODE[1])] {
        let route = Route::to(pods.parse().unwrap())
            .via(ip(gateway))
            .dev("eth0");
        outside.add_route(&route).unwrap();
    }
    client
}

/// A server of a pod on `port` that tells each client which address it sees.
struct Server {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(netns: &NetNs, port: u16) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let any = SocketAddr::new("::".parse().unwrap(), port);
        let tcp = netns.run(|| TcpListener::bind(any)).unwrap().unwrap();
        let udp = netns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let told = |peer: SocketAddr| peer.ip().to_canonical().to_string();
        let ends = stop.clone();
        let ended = move || ends.load(std::sync::atomic::Ordering::Relaxed);
        let udp_ended = ended.clone();
        let udp = std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !udp_ended() {
                if let Ok((_, peer)) = udp.recv_from(&mut bytes) {
                    // Whoever asked may have gone.
                    drop(udp.send_to(told(peer).as_bytes(), peer));
                }
            }
        });
        let tcp = std::thread::spawn(move || {
            while !ended() {
                match tcp.accept() {
                    Ok((mut stream, peer)) => drop(stream.write_all(told(peer).as_bytes())),
                    Err(_none) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self {
            stop,
            threads: vec![udp, tcp],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// The address that the server at `target` sees when `from` connects.
fn seen_over_tcp(from: &NetNs, target: SocketAddr) -> Result<IpAddr, String> {
    let stream = from
        .run(|| TcpStream::connect_timeout(&target, TIMEOUT))
        .unwrap();
    let mut stream = stream.map_err(|e| format!("TCP to {target}: {e}"))?;
    let mut text = String::new();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
        .read_to_string(&mut text)
        .map_err(|e| format!("TCP from {target}: {e}"))?;
    Ok(ip(&text))
}

fn seen_over_udp(from: &NetNs, target: SocketAddr, patience: Duration) -> Result<IpAddr, String> {
    let any = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = from.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    ask_over_udp(&socket, target, patience)
}

fn ask_over_udp(socket: &UdpSocket, to: SocketAddr, patience: Duration) -> Result<IpAddr, String> {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket
        .send_to(b"who am I", to)
        .map_err(|e| format!("UDP to {to}: {e}"))?;
    let mut bytes = [0; 64];
    let (length, _) = socket
        .recv_from(&mut bytes)
        .map_err(|e| format!("UDP from {to}: {e}"))?;
    Ok(ip(std::str::from_utf8(&bytes[..length]).unwrap()))
}

/// The configuration with port mappings and other changes.
fn conf(node: &Node, mappings: &Value, changes: &Value) -> Value {
    let mut conf = node.conf();
    conf["runtimeConfig"] = json!({"portMappings": mappings});
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn add(node: &Node, pod: &Pod, conf: &Value) -> Value {
    let text = node.call(&node.exec("ADD", &pod.name, Some(pod.netns.path()), conf));
    serde_json::from_str(&text.unwrap()).unwrap()
}

fn del(node: &Node, pod: &Pod, conf: &Value) {
    let text = node.call(&node.exec("DEL", &pod.name, None, conf)).unwrap();
    assert_eq!(text, "");
}

fn address_of(result: &Value, at: usize) -> IpAddr {
    let text = result["ips"][at]["address"].as_str().unwrap();
    ip(text.split('/').next().unwrap())
}

/// Whether the kernel has the tables of `backend`; said aloud where it has not.
pub(crate) fn has(backend: &str, test: &str) -> bool {
    let has = backend != "nftables" || Nftables::has_family(Family::Inet).unwrap();
    if !has {
        println!("without {backend} in {test}: this kernel has no tables of nf_tables for IP");
    }
    has
}

/// Everything of nftables and iptables, without counters.
pub(crate) fn firewall(node: &Node) -> String {
    let run = |program: &str, args: &[&str]| {
        let exec = Exec::new(program).args(args);
        node.netns.run(|| exec.run().unwrap().text()).unwrap()
    };
    let legacy = |program: &str| -> String {
        let text = run(program, &[]);
        text.lines()
            .filter(|l| l.starts_with("-A"))
            .map(|l| format!("{l}\n"))
            .collect()
    };
    let nft = run("nft", &["-s", "list", "ruleset"]);
    nft + &legacy("iptables-legacy-save") + &legacy("ip6tables-legacy-save")
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere_and_go_with_it() {
    let test = "host_ports_lead_to_the_pod_from_everywhere_and_go_with_it";
    for backend in ["nftables", "iptables"] {
        let Some(node) = Node::new(test, &[V4, V6]) else {
            return;
        };
        if !has(backend, test) {
            continue;
        }
        let client = client_of(&node);
        let mappings = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "UDP"},
            {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": NODE_OTHER},
            {"hostPort": 7070, "containerPort": 80, "protocol": "sctp"},
            {"hostPort": 6060, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"}
        ]);
        let conf = conf(&node, &mappings, &json!({"backend": backend}));
        // The first ones make what stays: the bridge and the fixed part of the tables.
        node.make_bridge();
        let first = Pod::new("first");
        add(&node, &first, &conf);
        del(&node, &first, &conf);
        let before = (node.dump(), firewall(&node));

        let (web, other) = (Pod::new("web"), Pod::new("other"));
        let result = add(&node, &web, &conf);
        node.add(&other).unwrap();
        let server = Server::start(&web.netns, 80);
        let mut checked = conf.clone();
        checked["prevResult"] = result.clone();
        let exec = node.exec("CHECK", "web", Some(web.netns.path()), &checked);
        node.call(&exec).unwrap();

        for family in 0..2 {
            let (pod, host) = (address_of(&result, family), ip(NODE[family]));
            let target = SocketAddr::new(host, 8080);
            let from_client = seen_over_tcp(&client, target).unwrap();
            assert_eq!(
                from_client,
                ip(CLIENT[family]),
                "{backend}: the client's address is kept"
            );
            let over_udp = seen_over_udp(&client, target, TIMEOUT).unwrap();
            assert_eq!(over_udp, ip(CLIENT[family]), "{backend}");
            // The node itself by its address, the pod itself, a neighbour.
            seen_over_tcp(&node.netns, target).unwrap();
            let own = seen_over_tcp(&web.netns, target).unwrap();
            assert_ne!(own, pod, "{backend}: masqueraded");
            seen_over_tcp(&other.netns, target).unwrap();
        }
        let local = SocketAddr::new(ip("127.0.0.1"), 8080);
        seen_over_tcp(&node.netns, local).unwrap_or_else(|e| panic!("{backend}: {e}"));
        seen_over_udp(&node.netns, local, TIMEOUT).unwrap_or_else(|e| panic!("{backend}: {e}"));
        // One address only, and one family only.
        seen_over_tcp(&client, SocketAddr::new(ip(NODE_OTHER), 9090)).unwrap();
        seen_over_tcp(&client, SocketAddr::new(ip(NODE[0]), 9090)).unwrap_err();
        seen_over_tcp(&client, SocketAddr::new(ip(NODE[0]), 6060)).unwrap();
        seen_over_tcp(&client, SocketAddr::new(ip(NODE[1]), 6060)).unwrap_err();
        if backend == "nftables" {
            let dump = firewall(&node);
            assert!(dump.contains("7070"), "{dump}");
            let rules = dump
                .lines()
                .filter(|line| line.contains("fully-random"))
                .count();
            assert!(rules <= 7, "{rules} rules: none for each pod\n{dump}");
        }
        drop(server);
        del(&node, &web, &conf);
        node.del(&other).unwrap();
        assert_eq!((node.dump(), firewall(&node)), before, "{backend}");
        seen_over_tcp(&client, SocketAddr::new(ip(NODE[0]), 8080)).unwrap_err();
        del(&node, &web, &conf);
    }
}

#[test]
fn a_host_port_has_one_owner_until_that_is_gone() {
    let test = "a_host_port_has_one_owner_until_that_is_gone";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    // Rules of iptables know no owners.
    if !has("nftables", test) {
        println!("SKIPPED {test}: this kernel has no tables of nf_tables for IP");
        return;
    }
    let mappings = json!([{"hostPort": 53, "containerPort": 53, "protocol": "tcp"}]);
    let conf = conf(&node, &mappings, &json!({}));
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    add(&node, &one, &conf);
    let exec = node.exec("ADD", "two", Some(two.netns.path()), &conf);
    refused(
        node.call(&exec),
        ErrorCode::KERNEL,
        "map host port 53/tcp: pods/one/eth0 has it",
    );
    assert_eq!(node.leases().len(), 1, "the refused ADD has taken nothing");
    // The owner's link is gone, but nobody called DEL: the entry is nobody's.
    one.kernel().delete_link("eth0").unwrap();
    let result = add(&node, &two, &conf);
    let dump = firewall(&node);
    assert!(dump.contains(&address_of(&result, 0).to_string()), "{dump}");
    assert!(!dump.contains("pods/one/eth0"), "{dump}");
    // DEL of the old owner leaves the new one's alone.
    del(&node, &one, &conf);
    assert!(firewall(&node).contains("pods/two/eth0"));
}

#[test]
fn old_udp_connections_of_a_host_port_are_forgotten() {
    let test = "old_udp_connections_of_a_host_port_are_forgotten";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    let client = client_of(&node);
    let mappings = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let conf = conf(&node, &mappings, &json!({}));
    let target = SocketAddr::new(ip(NODE[0]), 5353);
    let socket = client
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    // Nobody is there yet: the connection is to the node itself.
    ask_over_udp(&socket, target, SILENCE).unwrap_err();
    for name in ["one", "two"] {
        let pod = Pod::new(name);
        add(&node, &pod, &conf);
        let server = Server::start(&pod.netns, 53);
        // From the same port as before, which conntrack would send where it went before.
        ask_over_udp(&socket, target, TIMEOUT).unwrap_or_else(|e| panic!("{name}: {e}"));
        drop(server);
        del(&node, &pod, &conf);
    }
}

#[test]
fn what_leaves_the_network_is_masqueraded_if_asked_for() {
    let test = "what_leaves_the_network_is_masqueraded_if_asked_for";
    for (backend, masquerade) in [("nftables", true), ("iptables", true), ("nftables", false)] {
        let Some(node) = Node::new(test, &[V4, V6]) else {
            return;
        };
        if masquerade && !has(backend, test) {
            continue;
        }
        let client = client_of(&node);
        let changes = json!({"ipMasq": masquerade, "ipMasqBackend": backend});
        let conf = conf(&node, &json!([]), &changes);
        let (pod, other) = (Pod::new("pod"), Pod::new("other"));
        let (result, neighbour) = (add(&node, &pod, &conf), add(&node, &other, &conf));
        let _servers = [Server::start(&client, 80), Server::start(&other.netns, 80)];
        for family in 0..2 {
            let own = address_of(&result, family);
            let outside = SocketAddr::new(ip(CLIENT[family]), 80);
            let wanted = if masquerade { ip(NODE[family]) } else { own };
            assert_eq!(
                seen_over_tcp(&pod.netns, outside).unwrap(),
                wanted,
                "{backend}"
            );
            let beside = SocketAddr::new(address_of(&neighbour, family), 80);
            assert_eq!(seen_over_tcp(&pod.netns, beside).unwrap(), own, "{backend}");
        }
        del(&node, &pod, &conf);
        del(&node, &other, &conf);
        let dump = firewall(&node);
        assert!(
            !dump.contains("pods/pod/eth0") && !dump.contains("pods/other/eth0"),
            "{dump}"
        );
    }
}

#[test]
fn a_pod_sends_from_its_own_hardware_address_only() {
    let test = "a_pod_sends_from_its_own_hardware_address_only";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    let conf = conf(&node, &json!([]), &json!({"macspoofchk": true}));
    let pod = Pod::new("pod");
    add(&node, &pod, &conf);
    let gateway = SocketAddr::new(ip("10.244.7.1"), 80);
    let _server = Server::start(&node.netns, 80);
    seen_over_udp(&pod.netns, gateway, TIMEOUT).unwrap();
    let mut kernel = pod.kernel();
    let own = kernel.link("eth0").unwrap().unwrap().mac;
    let change = |mac| LinkChange {
        mac,
        ..LinkChange::default()
    };
    let other = Some(Mac::local([0x5e, 1, 2, 3, 4]));
    kernel.set_link("eth0", &change(other)).unwrap();
    seen_over_udp(&pod.netns, gateway, SILENCE).unwrap_err();
    kernel.set_link("eth0", &change(own)).unwrap();
    seen_over_udp(&pod.netns, gateway, TIMEOUT).unwrap();
    del(&node, &pod, &conf);
    assert!(!firewall(&node).contains("pods/pod/eth0"));
}
