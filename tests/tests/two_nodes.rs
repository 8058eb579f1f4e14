//! Two kernels as two nodes: two guests on one segment, each with the overlay daemon, the proxy in
//! mode ipvs and one pod. `cargo xtask test --only vm` starts the guests and runs this in both, with
//! `SEAWAY_NODE` = 1 and 2. The first also serves the API to both.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use client::fake::{FakeApi, kubeconfig};
use linux::addr::Addr;
use linux::exec::Exec;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::process::Daemon;
use linux::route::Route;
use linux::{Host, Kernel, NetNs};
use seaway_tests::bin_dir;
use serde_json::{Value, json};

/// The nodes' card.
const CARD: &str = "eth0";
/// Where the first node serves the API, and where it waits for the second to be done.
const API_PORT: u16 = 6443;
const DONE_PORT: u16 = 6444;
/// Every pod's servers.
const POD_PORT: u16 = 8080;
/// Bytes that do not fit one packet of the overlay, nor a thousand.
const MANY: usize = 200_000;
/// Syncs of the overlay that change something: it comes to rest.
const SYNCS_MAX: usize = 20;
/// Nothing takes longer: the guests are slow, and start at different times.
const PATIENCE: Duration = Duration::from_secs(240);

/// Addresses in both families.
type Two = [IpAddr; 2];

fn two(v4: &str, v6: &str) -> Two {
    [v4.parse().unwrap(), v6.parse().unwrap()]
}

fn node_ips(n: u8) -> Two {
    two(&format!("172.31.0.{n}"), &format!("fd00:31::{n}"))
}

fn pod_ips(n: u8) -> Two {
    two(&format!("10.244.{n}.1"), &format!("fd00:244:0:{n}::1"))
}

fn gateways(n: u8) -> Two {
    two(&format!("10.244.{n}.254"), &format!("fd00:244:0:{n}::fe"))
}

/// The cluster IPs and the node port of the service whose only endpoint is on node `n`.
fn service_of(n: u8) -> (Two, u16) {
    let ips = two(&format!("10.96.0.{n}"), &format!("fd00:96::{n}"));
    (ips, 30080 + u16::from(n))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(50));
    }
}

/// One node, in a whole kernel of its own.
struct Node {
    number: u8,
    dir: tempfile::TempDir,
    kernel: Kernel,
    pod: PathBuf,
    daemons: Vec<Child>,
}

impl Node {
    fn new(number: u8) -> Self {
        Exec::new("modprobe").arg("virtio_net").run().unwrap();
        let mut kernel = Kernel::open().unwrap();
        until("the card", || kernel.link(CARD).unwrap().is_some());
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        let mut node = Self {
            number,
            dir,
            kernel,
            pod,
            daemons: Vec::new(),
        };
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.kernel.set_sysctl(key, "1").unwrap();
        }
        give(&mut node.kernel, CARD, node_ips(number), [24, 64]);
        let bridge = NewBridge {
            name: "cni0".into(),
            ..NewBridge::default()
        };
        node.kernel.add_bridge(&bridge).unwrap();
        give(&mut node.kernel, "cni0", gateways(number), [24, 64]);
        let mut inside = Kernel::open_in(NetNs::create(&node.pod).unwrap()).unwrap();
        inside.set_link("lo", &LinkChange::up()).unwrap();
        let cable = NewVeth {
            name: "pod0".into(),
            master: Some("cni0".into()),
            peer_name: CARD.into(),
            peer_netns: Some(inside.netns()),
            // As the CNI plugin takes it from the overlay's file.
            mtu: Some(1430),
            ..NewVeth::default()
        };
        node.kernel.add_veth(&cable).unwrap();
        // A pod that reaches itself through a service comes back the way it went.
        let port = LinkChange {
            hairpin: Some(true),
            ..LinkChange::up()
        };
        node.kernel.set_link("pod0", &port).unwrap();
        give(&mut inside, CARD, pod_ips(number), [24, 64]);
        for gateway in gateways(number) {
            let all = if gateway.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            let route = Route::to(all.parse().unwrap()).via(gateway);
            inside.add_route(&route).unwrap();
        }
        node
    }

    /// Runs `work` in the pod.
    fn in_pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NetNs::open(&self.pod).unwrap().run(work).unwrap()
    }

    /// The pod's servers: they say the node's number and the client's address, then repeat.
    fn serve(&self) {
        let number = self.number;
        let any = SocketAddr::new("::".parse().unwrap(), POD_PORT);
        let bind = || {
            (
                TcpListener::bind(any).unwrap(),
                UdpSocket::bind(any).unwrap(),
            )
        };
        let (tcp, udp) = self.in_pod(bind);
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                thread::spawn(move || {
                    let peer = stream.peer_addr()?.ip().to_canonical();
                    writeln!(stream, "{number} {peer}")?;
                    std::io::copy(&mut stream.try_clone()?, &mut stream)
                });
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let text = format!("{number} {}", peer.ip().to_canonical());
                drop(udp.send_to(text.as_bytes(), peer));
            }
        });
    }

    fn start(&mut self, program: &str, args: &[&str]) {
        let config = self.dir.path().join("kubeconfig");
        let api = SocketAddr::new(node_ips(1)[0], API_PORT);
        std::fs::write(&config, kubeconfig(api)).unwrap();
        let flag = format!("--kubeconfig={}", config.display());
        let daemon = Daemon {
            program: bin_dir().unwrap().join(program),
            args: args
                .iter()
                .chain(&[flag.as_str()])
                .map(Into::into)
                .collect(),
            log: Some(self.log(program)),
            ..Daemon::default()
        };
        self.daemons.push(daemon.spawn().unwrap());
    }

    fn log(&self, program: &str) -> PathBuf {
        self.dir.path().join(format!("{program}.log"))
    }

    fn start_all(&mut self) {
        let name = format!("n{}", self.number);
        let (net_d, leases) = (
            self.dir.path().join("net.d"),
            self.dir.path().join("leases"),
        );
        let text = |path: &Path| path.display().to_string();
        self.start(
            "overlay",
            &[
                "--node-name",
                &name,
                "--cni-conf-dir",
                &text(&net_d),
                "--cni-state-dir",
                &text(&leases),
                "--cluster-cidr",
                "10.244.0.0/16,fd00:244::/48",
            ],
        );
        self.start(
            "proxy",
            &[
                "--mode=ipvs",
                "--hostname-override",
                &name,
                "--cluster-cidr",
                "10.244.0.0/16,fd00:244::/48",
            ],
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in &mut self.daemons {
            drop(child.kill());
            drop(child.wait());
        }
        if thread::panicking() {
            for program in ["overlay", "proxy"] {
                let log = std::fs::read_to_string(self.log(program)).unwrap_or_default();
                println!("{program}:\n{log}");
            }
        }
        drop(NetNs::remove(&self.pod));
    }
}

/// Gives a link its addresses, and takes it up.
fn give(kernel: &mut Kernel, link: &str, ips: Two, lengths: [u8; 2]) {
    for (ip, length) in ips.into_iter().zip(lengths) {
        let net = ipnetwork::IpNetwork::new(ip, length).unwrap();
        kernel.add_addr(link, &Addr::new(net)).unwrap();
    }
    kernel.set_link(link, &LinkChange::up()).unwrap();
}

/// Both nodes, and a service for each node's pod.
fn objects(api: &FakeApi) {
    for n in [1, 2] {
        let addresses: Vec<Value> = node_ips(n)
            .iter()
            .map(|ip| json!({ "type": "InternalIP", "address": ip }))
            .collect();
        let nets = [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n}::/64")];
        api.put(
            "/api/v1/nodes",
            json!({ "metadata": { "name": format!("n{n}") }, "spec": { "podCIDRs": nets },
                "status": { "addresses": addresses } }),
        );
        let (ips, node_port) = service_of(n);
        let name = format!("only-{n}");
        let port = |protocol: &str| {
            json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 80,
                "targetPort": POD_PORT, "nodePort": node_port })
        };
        api.put(
            "/api/v1/services",
            json!({ "metadata": { "namespace": "default", "name": name },
                "spec": { "type": "NodePort", "clusterIP": ips[0], "clusterIPs": ips,
                    "ipFamilies": ["IPv4", "IPv6"], "ports": [port("TCP"), port("UDP")] } }),
        );
        for (ip, family) in pod_ips(n).iter().zip(["IPv4", "IPv6"]) {
            let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": POD_PORT });
            api.put(
                "/apis/discovery.k8s.io/v1/endpointslices",
                json!({ "addressType": family, "ports": [port("TCP"), port("UDP")],
                    "metadata": { "namespace": "default", "name": format!("{name}-{}", family.to_lowercase()),
                        "labels": { "kubernetes.io/service-name": name } },
                    "endpoints": [{ "addresses": [ip], "nodeName": format!("n{n}") }] }),
            );
        }
    }
}

/// Which node's pod answers, and which client it saw.
fn ask(to: SocketAddr) -> std::io::Result<(u8, IpAddr, TcpStream)> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let (number, peer) = parse(&line)?;
    Ok((number, peer, stream))
}

fn ask_udp(to: SocketAddr) -> std::io::Result<(u8, IpAddr)> {
    let any: IpAddr = if to.is_ipv4() {
        "0.0.0.0".parse().unwrap()
    } else {
        "::".parse().unwrap()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 64];
    let n = socket.recv(&mut buffer)?;
    parse(&String::from_utf8_lossy(&buffer[..n]))
}

fn parse(line: &str) -> std::io::Result<(u8, IpAddr)> {
    let parts = line.trim().split_once(' ');
    let parsed = parts.and_then(|(number, peer)| Some((number.parse().ok()?, peer.parse().ok()?)));
    parsed.ok_or_else(|| std::io::Error::other(format!("heard {line:?}")))
}

/// Sends much, and expects it back: packets of full size get through.
fn echo_much(mut stream: TcpStream) {
    let sent: Vec<u8> = (0..MANY).map(|i| (i % 251) as u8).collect();
    let mut heard = vec![0; MANY];
    thread::scope(|scope| {
        let mut out = stream.try_clone().unwrap();
        scope.spawn(move || out.write_all(&sent).unwrap());
        stream.read_exact(&mut heard).unwrap();
    });
    assert!(
        heard
            .iter()
            .enumerate()
            .all(|(i, byte)| *byte == (i % 251) as u8)
    );
}

/// What this node and its pod see of both; how many answers that were.
fn look(node: &Node) -> usize {
    let other = 3 - node.number;
    let mut answers = 0;
    for family in 0..2 {
        let own = pod_ips(node.number)[family];
        let far = SocketAddr::new(pod_ips(other)[family], POD_PORT);
        let reached = |to: SocketAddr| node.in_pod(move || ask(to));
        until(&format!("the pod {far}"), || reached(far).is_ok());
        // Pod to pod, over the overlay: nobody stands between.
        let (who, peer, stream) = reached(far).unwrap();
        assert_eq!((who, peer), (other, own));
        node.in_pod(move || echo_much(stream));
        for n in [1, 2] {
            let (ips, node_port) = service_of(n);
            let mut places = vec![SocketAddr::new(ips[family], 80)];
            // Node ports of both kernels, wherever the endpoint is.
            places.extend([1, 2].map(|n| SocketAddr::new(node_ips(n)[family], node_port)));
            for to in places {
                let pod = || reached(to).is_ok_and(|(who, ..)| who == n);
                until(&format!("{to} from the pod"), pod);
                let host = || ask(to).is_ok_and(|(who, ..)| who == n);
                until(&format!("{to} from the node"), host);
                let udp = || {
                    node.in_pod(move || ask_udp(to))
                        .is_ok_and(|(who, _)| who == n)
                };
                until(&format!("{to} by UDP"), udp);
                answers += 3;
            }
        }
        answers += 1;
    }
    answers
}

#[test]
fn two_kernels_are_two_nodes() {
    let number = std::env::var("SEAWAY_NODE").ok();
    let Some(number) = number.and_then(|text| text.parse().ok()) else {
        println!(
            "SKIPPED two_kernels_are_two_nodes: runs in two guests, cargo xtask test --only vm"
        );
        return;
    };
    let mut node = Node::new(number);
    node.serve();
    let done = TcpListener::bind(("0.0.0.0", DONE_PORT)).unwrap();
    if number == 1 {
        let api = FakeApi::default();
        objects(&api);
        api.serve(TcpListener::bind(("0.0.0.0", API_PORT)).unwrap())
            .unwrap();
    }
    let first = node_ips(1)[0];
    until("the API", || TcpStream::connect((first, API_PORT)).is_ok());
    node.start_all();
    let answers = look(&node);
    let log = std::fs::read_to_string(node.log("overlay")).unwrap();
    let syncs = log.matches(" changes ").count();
    assert!((1..SYNCS_MAX).contains(&syncs), "{syncs} syncs:\n{log}");
    // Each serves until both have seen everything.
    if number == 1 {
        done.set_nonblocking(true).unwrap();
        let mut other = None;
        until("the other node's end", || {
            other = done.accept().ok();
            other.is_some()
        });
        other.unwrap().0.write_all(b".").unwrap();
    } else {
        let mut first = TcpStream::connect((first, DONE_PORT)).unwrap();
        first.read_exact(&mut [0]).unwrap();
    }
    println!(
        "COUNTED connections between two kernels, node {number}: {answers} answered as they should"
    );
}
