//! Network policies of the real program: they hold, whatever becomes of it.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use client::fake::FakeApi;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::any;
use crate::lab::{Lab, Node, Pod, deadline, has_tables_of_ip, wait_until};
use crate::program::{Program, Stops, is_ready, page, served, stream};

/// How long an answer that must not come is waited for.
const NEVER: Duration = Duration::from_millis(40);
/// The same where its coming says that a policy does not hold yet: a busy machine is no policy.
const NOT_YET: Duration = Duration::from_millis(500);

const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/pods";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";

/// Tells the API of a pod.
fn tell(api: &FakeApi, name: &str, node: &Node, pod: &Pod) {
    let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
    api.put(
        PODS,
        json!({
            "metadata": {"namespace": "x", "name": name, "labels": {"pod": name}},
            "spec": {"nodeName": node.settings.node_name, "containers": []},
            "status": {"phase": "Running", "podIPs": ips},
        }),
    );
}

/// Only `friend` and `far-friend` may speak to `server`.
fn policy(api: &FakeApi) {
    let friends = json!({"key": "pod", "operator": "In", "values": ["friend", "far-friend"]});
    api.put(
        POLICIES,
        json!({
            "metadata": {"namespace": "x", "name": "friends"},
            "spec": {"podSelector": {"matchLabels": {"pod": "server"}},
                "ingress": [{"from": [{"podSelector": {"matchExpressions": [friends]}}]}]},
        }),
    );
}

/// A server that accepts, and one that hears datagrams, on one address of a pod.
struct Server {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Server {
    fn start(pod: &Pod, family: usize) -> Self {
        let to = SocketAddr::new(pod.ips[family], 0);
        let bind = || (TcpListener::bind(to).unwrap(), UdpSocket::bind(to).unwrap());
        let (tcp, udp) = pod.netns.run(bind).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { tcp, udp }
    }

    /// Whether a new connection comes about.
    fn accepts(&self, from: &Pod, patience: Duration) -> bool {
        let to = self.tcp.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&to, patience);
        let connected = from.netns.run(connect).unwrap().is_ok();
        while self.tcp.accept().is_ok() {}
        connected
    }

    /// Sends a datagram from a new port.
    fn shout(&self, from: &Pod) {
        let to = self.udp.local_addr().unwrap();
        let send = || UdpSocket::bind((any(to.ip()), 0))?.send_to(b"x", to);
        drop(from.netns.run(send).unwrap());
    }

    fn heard(&self) -> bool {
        self.udp.recv_from(&mut [0; 9]).is_ok()
    }
}

/// Two nodes with a program each, and the policy.
fn started(lab: &mut Lab) -> (FakeApi, Vec<Program>) {
    for i in 1..=2 {
        let node = lab.node(i, true);
        lab.nodes.push(node);
    }
    let api = served(lab);
    api.put(NAMESPACES, json!({"metadata": {"name": "x"}}));
    policy(&api);
    // Something of each kind has been there, or the server does not know the kind.
    api.put(
        PODS,
        json!({"metadata": {"namespace": "x", "name": "none"}}),
    );
    let start = |node: &Node| Program::new(node, &api, &["--network-policy"]);
    let mut programs: Vec<Program> = lab.nodes.iter().map(start).collect();
    for program in &mut programs {
        program.start();
    }
    for node in &lab.nodes {
        wait_until("the program to be ready", || {
            is_ready(node) && node.routes() == 2
        });
    }
    (api, programs)
}

#[test]
fn policies_hold_while_the_program_is_killed_and_restarted_under_load() {
    let test = "policies_hold_while_the_program_is_killed_and_restarted_under_load";
    if !has_tables_of_ip(test) {
        return;
    }
    let Some(mut lab) = Lab::bare(test, true) else {
        return;
    };
    let (api, mut programs) = started(&mut lab);
    let (near, far) = (&lab.nodes[0], &lab.nodes[1]);
    let [server, friend, foe] = ["server", "friend", "foe"].map(|name| {
        let pod = near.pod(name);
        tell(&api, name, near, &pod);
        pod
    });
    let [far_friend, far_foe] = ["far-friend", "far-foe"].map(|name| {
        let pod = far.pod(name);
        tell(&api, name, far, &pod);
        pod
    });
    let servers = [0, 1].map(|family| Server::start(&server, family));
    for ears in &servers {
        for foe in [&foe, &far_foe] {
            wait_until("the policy", || !ears.accepts(foe, NOT_YET));
        }
        for friend in [&friend, &far_friend] {
            wait_until("the friend", || ears.accepts(friend, deadline()));
        }
    }
    let metrics = page(&near.netns, "/metrics").unwrap().1;
    for line in ["ready 1", "policies 1", "bridged_judged 1"] {
        assert!(
            metrics.contains(&format!("\nseaway_policy_{line}\n")),
            "{metrics}"
        );
    }
    let (stop, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (stop, opened) = (&stop, &opened);
        let stops = Stops(stop);
        let streams: Vec<_> = [
            (&friend, 0),
            (&far_friend, 0),
            (&friend, 1),
            (&far_friend, 1),
        ]
        .map(|(from, family)| {
            let server = &server;
            scope.spawn(move || stream(from, server, family, stop))
        })
        .into();
        let friends = [&friend, &far_friend];
        let foes = [&foe, &far_foe];
        let watch: Vec<_> = servers
            .iter()
            .map(|ears| {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for friend in friends {
                            assert!(ears.accepts(friend, deadline()), "a friend is shut out");
                            opened.fetch_add(1, Ordering::Relaxed);
                        }
                        for foe in foes {
                            ears.shout(foe);
                            assert!(!ears.accepts(foe, NEVER), "a foe came in");
                            assert!(!ears.heard(), "a foe was heard");
                        }
                    }
                })
            })
            .collect();
        for round in 0..6_u64 {
            let at = usize::from(round % 2 == 1);
            let (program, node) = (&mut programs[at], &lab.nodes[at]);
            program.stop(Signal::SIGKILL);
            // Killed once more while it starts.
            program.start();
            std::thread::sleep(Duration::from_millis(5 * round));
            program.stop(Signal::SIGKILL);
            program.start();
            wait_until("the program to be ready again", || is_ready(node));
        }
        drop(stops);
        for watch in watch {
            watch.join().unwrap();
        }
        for stream in streams {
            let (sent, arrived) = stream.join().unwrap();
            assert!(sent > 20, "{sent}");
            assert_eq!(sent, arrived);
        }
    });
    println!("{} new connections", opened.load(Ordering::Relaxed));
}

/// The runtime starts pods as soon as there is a CNI configuration.
#[test]
fn no_pod_starts_before_policies_hold() {
    let test = "no_pod_starts_before_policies_hold";
    if !has_tables_of_ip(test) {
        return;
    }
    let Some(mut lab) = Lab::bare(test, true) else {
        return;
    };
    let node = lab.node(1, true);
    lab.nodes.push(node);
    let node = &lab.nodes[0];
    let conflist = node.dir.path().join("net.d/10-seaway.conflist");
    // A server that knows of nodes, and of policies not yet.
    let waits = |what: &str| {
        wait_until(what, || {
            let page = page(&node.netns, "/readyz");
            page.is_some_and(|(status, text)| {
                status == 503 && text.contains("not written before network policies hold")
            })
        });
    };
    let silent = served(&lab);
    let mut program = Program::new(node, &silent, &["--network-policy"]);
    program.start();
    waits("the program to wait for policies");
    assert!(!conflist.exists());
    let knows = |api: &FakeApi| {
        api.put(NAMESPACES, json!({"metadata": {"name": "x"}}));
        policy(api);
        api.put(
            PODS,
            json!({"metadata": {"namespace": "x", "name": "none"}}),
        );
    };
    knows(&silent);
    wait_until("the program to be ready", || is_ready(node));
    assert!(conflist.exists());
    program.stop(Signal::SIGKILL);
    // Policies of the run before are in the kernel, whatever the server knows: pods may start.
    let mute = served(&lab);
    let mut program = Program::new(node, &mute, &["--network-policy"]);
    program.start();
    waits("the program with the table of before");
    assert!(conflist.exists());
    program.stop(Signal::SIGKILL);
    // As after a reboot: a configuration from before and no table.
    let removed = node.netns.run(policy::Enforcer::remove);
    assert!(removed.unwrap().unwrap());
    program.start();
    waits("the program without a table");
    assert!(!conflist.exists());
    knows(&mute);
    wait_until("the program to be ready again", || is_ready(node));
    assert!(conflist.exists());
}
