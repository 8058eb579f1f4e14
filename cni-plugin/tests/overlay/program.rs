//! The real program against an API server over HTTP: killed at any time, and asked how it is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use client::fake::{FakeApi, kubeconfig};
use linux::NetNs;
use linux::process::Daemon;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::any;
use crate::lab::{Lab, Node, Pod, deadline, wait_until};

const NODES: &str = "/api/v1/nodes";

/// Where the pages are, in each node's namespace.
const HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10300);

/// The program on a node; killed when dropped.
pub(crate) struct Program {
    daemon: Daemon,
    child: Option<Child>,
}

impl Program {
    /// Prepared, not started.
    pub(crate) fn new(node: &Node, api: &FakeApi, more: &[&str]) -> Self {
        let dir = node.dir.path();
        let listener = node.netns.run(|| TcpListener::bind("127.0.0.1:0"));
        let address = api.serve(listener.unwrap().unwrap()).unwrap();
        let config = dir.join("kubeconfig");
        std::fs::write(&config, kubeconfig(address)).unwrap();
        let config = config.display().to_string();
        let flags = [&["--kubeconfig", &config], more].concat();
        Self::bare(node, &flags)
    }

    /// Without an API.
    pub(crate) fn bare(node: &Node, more: &[&str]) -> Self {
        let dir = node.dir.path();
        let path = |name: &str| dir.join(name).display().to_string();
        let args = [
            "--node-name",
            &node.settings.node_name,
            "--cni-conf-dir",
            &path("net.d"),
            "--cni-state-dir",
            &path("leases"),
            "--healthz-ip",
            "127.0.0.1",
            "--healthz-port",
            "10300",
        ];
        let args = args.iter().chain(more).map(Into::into).collect();
        Self {
            daemon: Daemon {
                program: env!("CARGO_BIN_EXE_overlay").into(),
                args,
                netns: Some(node.netns.path()),
                log: Some(dir.join("log")),
                ..Daemon::default()
            },
            child: None,
        }
    }

    pub(crate) fn start(&mut self) {
        self.child = Some(self.daemon.spawn().unwrap());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.daemon.log.as_ref().unwrap()).unwrap_or_default()
    }

    pub(crate) fn stop(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            let pid = i32::try_from(child.id()).unwrap();
            linux::process::signal(pid, signal).unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop(Signal::SIGKILL);
    }
}

/// Status and body of a page; none while nobody answers.
pub(crate) fn page(netns: &NetNs, path: &str) -> Option<(u16, String)> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(HEALTH)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = netns.run(ask).unwrap().ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

pub(crate) fn is_ready(node: &Node) -> bool {
    page(&node.netns, "/readyz").is_some_and(|(status, _)| status == 200)
}

/// Node objects of the lab, in a server.
pub(crate) fn served(lab: &Lab) -> FakeApi {
    let api = FakeApi::default();
    for object in lab.api.objects() {
        api.put(NODES, object);
    }
    api
}

/// Sends datagrams with ascending numbers, a few milliseconds apart, until it is stopped; gives back
/// how many were sent and how many arrived.
pub(crate) fn stream(from: &Pod, to: &Pod, family: usize, stop: &AtomicBool) -> (u32, u32) {
    let address = to.ips[family];
    let server = to.netns.run(|| UdpSocket::bind((any(address), 0)));
    let server = server.unwrap().unwrap();
    server.set_read_timeout(Some(deadline())).unwrap();
    let target = SocketAddr::new(address, server.local_addr().unwrap().port());
    let client = from.netns.run(|| UdpSocket::bind((any(address), 0)));
    let client = client.unwrap().unwrap();
    client.connect(target).unwrap();
    let sent = AtomicU32::new(0);
    let mut arrived = 0;
    std::thread::scope(|scope| {
        let send = || {
            while !stop.load(Ordering::Relaxed) {
                client
                    .send(&sent.load(Ordering::Relaxed).to_be_bytes())
                    .unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(4));
            }
            // The last one, so that nobody waits for nothing.
            client.send(&u32::MAX.to_be_bytes()).unwrap();
        };
        let sender = scope.spawn(send);
        let mut bytes = [0; 4];
        while server.recv(&mut bytes).is_ok_and(|n| n == 4) {
            if u32::from_be_bytes(bytes) == u32::MAX {
                break;
            }
            arrived += 1;
        }
        sender.join().unwrap();
    });
    (sent.into_inner(), arrived)
}

/// Stops those who look at it, also when a test fails: they are waited for.
pub(crate) struct Stops<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn killed_and_restarted_under_traffic_it_loses_no_packet() {
    let test = "killed_and_restarted_under_traffic_it_loses_no_packet";
    let Some(mut lab) = Lab::bare(test, true) else {
        return;
    };
    for i in 1..=2 {
        let node = lab.node(i, true);
        lab.nodes.push(node);
    }
    let api = served(&lab);
    let mut programs: Vec<Program> = lab
        .nodes
        .iter()
        .map(|node| Program::new(node, &api, &[]))
        .collect();
    for program in &mut programs {
        program.start();
    }
    for node in &lab.nodes {
        wait_until("the program to be ready", || {
            is_ready(node) && node.routes() == 2
        });
    }
    let before: Vec<String> = lab.nodes.iter().map(|n| n.state("seaway.1")).collect();
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    for address in &b.ips {
        crate::udp(&a.netns, &b, *address);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stops = Stops(&stop);
        let streams: Vec<_> = [(&a, &b, 0), (&b, &a, 0), (&a, &b, 1), (&b, &a, 1)]
            .into_iter()
            .map(|(from, to, family)| {
                let stop = &stop;
                scope.spawn(move || stream(from, to, family, stop))
            })
            .collect();
        for round in 0..6_u64 {
            let (program, node) = match round % 2 {
                0 => (&mut programs[0], &lab.nodes[0]),
                _ => (&mut programs[1], &lab.nodes[1]),
            };
            program.stop(Signal::SIGKILL);
            // Killed once more while it starts.
            program.start();
            std::thread::sleep(Duration::from_millis(3 * round));
            program.stop(Signal::SIGKILL);
            program.start();
            wait_until("the program to be ready again", || is_ready(node));
        }
        drop(stops);
        for stream in streams {
            let (sent, arrived) = stream.join().unwrap();
            assert!(sent > 20, "{sent}");
            assert_eq!(sent, arrived);
        }
    });
    for (node, before) in lab.nodes.iter().zip(before) {
        assert_eq!(node.state("seaway.1"), before);
    }
}

#[test]
fn the_program_says_when_it_is_ready_and_tells_the_api() {
    let test = "the_program_says_when_it_is_ready_and_tells_the_api";
    let Some(mut lab) = Lab::bare(test, false) else {
        return;
    };
    let node = lab.node(1, false);
    let api = FakeApi::default();
    // It exists, and has no network for pods yet.
    api.put(NODES, json!({"metadata": {"name": "n1"}}));
    let mut program = Program::new(&node, &api, &["--set-node-network-unavailable"]);
    program.start();
    let condition = |api: &FakeApi| -> Value {
        let node = api.get(NODES, "n1").unwrap();
        node["status"]["conditions"][0].clone()
    };
    wait_until("the pages", || page(&node.netns, "/healthz").is_some());
    wait_until("the reason", || {
        page(&node.netns, "/readyz").is_some_and(|page| {
            page == (
                503,
                "not ready\nwaiting for node n1 to exist and to have podCIDRs\n".to_owned(),
            )
        })
    });
    assert_eq!(
        page(&node.netns, "/healthz").unwrap(),
        (200, "ok\n".to_owned())
    );
    assert_eq!(page(&node.netns, "/").unwrap().0, 404);
    assert!(!node.dir.path().join("net.d").exists());
    assert_eq!(condition(&api), Value::Null);
    api.merge(NODES, "n1", &lab.api.objects()[0]);
    wait_until("the program to be ready", || is_ready(&node));
    assert!(node.dir.path().join("net.d/10-seaway.conflist").exists());
    wait_until("the condition", || {
        let condition = condition(&api);
        (condition["type"].as_str(), condition["status"].as_str())
            == (Some("NetworkUnavailable"), Some("False"))
    });
    wait_until("the annotations", || {
        let node = api.get(NODES, "n1").unwrap();
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] == "172.31.250.11"
    });
    let metrics = page(&node.netns, "/metrics").unwrap().1;
    assert!(metrics.contains("\nseaway_overlay_ready 1\n"), "{metrics}");
    // The end of the program is not the end of the network.
    program.stop(Signal::SIGTERM);
    assert!(program.log().contains("ready"), "{}", program.log());
    assert!(node.state("seaway.1").contains("addr 10.244.1.0/32"));
    lab.nodes.push(node);
}
