//! Addresses from a DHCP server, by the reference plugin `dhcp` and its daemon.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use api::cni::AddResult;
use linux::addr::Addr;
use linux::exec::Exec;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::route::{Route, RouteFilter};
use linux::{Host, Kernel, NetNs};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::lab::{Node, PLUGIN, Pod, wait_until};

/// Where Debian's containernetworking-plugins has it.
const DHCP: &str = "/usr/lib/cni/dhcp";

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const LEASED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 77);

/// Options of RFC 2132: their numbers.
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const LEASE_TIME: u8 = 51;
const MESSAGE: u8 = 53;
const SERVER_ID: u8 = 54;

/// Kinds of messages (RFC 2132, 9.6).
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const RELEASE: u8 = 7;

/// What is before the options of a message (RFC 2131, 2), and where the client's own address is.
const HEAD: usize = 240;
const CLIENT: std::ops::Range<usize> = 12..16;
const YOURS: std::ops::Range<usize> = 16..20;

/// A server that has one address to give.
struct Server {
    heard: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// On the node's bridge, in a namespace of its own.
    fn start(node: &mut Kernel) -> Self {
        let netns = NetNs::anonymous().unwrap();
        let mut host = Kernel::open_in(NetNs::open(netns.path()).unwrap()).unwrap();
        node.add_bridge(&NewBridge {
            name: "cni0".into(),
            ..NewBridge::default()
        })
        .unwrap();
        node.set_link("cni0", &LinkChange::up()).unwrap();
        node.add_veth(&NewVeth {
            name: "server".into(),
            master: Some("cni0".into()),
            peer_name: "eth0".into(),
            peer_netns: Some(host.netns()),
            ..NewVeth::default()
        })
        .unwrap();
        node.set_link("server", &LinkChange::up()).unwrap();
        host.set_link("eth0", &LinkChange::up()).unwrap();
        let addr = Addr::new(format!("{SERVER}/24").parse().unwrap());
        host.add_addr("eth0", &addr).unwrap();
        // For what is sent to everybody.
        let all = Route::to("0.0.0.0/0".parse().unwrap()).dev("eth0");
        host.add_route(&all).unwrap();
        let (heard, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", 67)));
        let thread = thread::spawn({
            let (heard, stop) = (Arc::clone(&heard), Arc::clone(&stop));
            let socket = socket.unwrap().unwrap();
            move || serve(&socket, &heard, &stop)
        });
        Self {
            heard,
            stop,
            thread: Some(thread),
        }
    }

    /// Waits for a message of this kind.
    fn await_message(&self, kind: u8) {
        wait_until("a message to the server", || {
            let heard = self.heard.lock().unwrap().clone();
            heard
                .contains(&kind)
                .then_some(())
                .ok_or(format!("{heard:?}"))
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(socket: &UdpSocket, heard: &Mutex<Vec<u8>>, stop: &AtomicBool) {
    socket.set_broadcast(true).unwrap();
    let pause = Duration::from_millis(20);
    socket.set_read_timeout(Some(pause)).unwrap();
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::SeqCst) {
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let message = &buffer[..length];
        let Some(kind) = message.get(HEAD..).and_then(|all| option(all, MESSAGE)) else {
            continue;
        };
        let answer = match kind {
            [DISCOVER] => Some(OFFER),
            [REQUEST] => Some(ACK),
            [RELEASE] => {
                assert_eq!(message[CLIENT], LEASED.octets());
                None
            }
            _ => None,
        };
        heard.lock().unwrap().extend(kind);
        if let Some(kind) = answer {
            socket
                .send_to(&reply(message, kind), ("255.255.255.255", 68))
                .unwrap();
        }
    }
}

/// An option's value.
fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = options {
        let value = rest.get(..usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        options = &rest[value.len()..];
    }
    None
}

fn reply(to: &[u8], kind: u8) -> Vec<u8> {
    let mut message = to[..HEAD].to_vec();
    message[0] = 2;
    message[YOURS].copy_from_slice(&LEASED.octets());
    for (option, value) in [
        (MESSAGE, &[kind][..]),
        (SERVER_ID, &SERVER.octets()),
        (LEASE_TIME, &3600u32.to_be_bytes()),
        (MASK, &[255, 255, 255, 0]),
        (ROUTER, &SERVER.octets()),
    ] {
        message.extend([option, u8::try_from(value.len()).unwrap()]);
        message.extend(value);
    }
    message.push(255);
    message
}

/// The plugin's daemon, which keeps leases.
struct Daemon {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(node: &Node) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let netns = NetNs::open(node.netns.path()).unwrap();
        let exec = Exec::new(DHCP)
            .args(["daemon", "-socketpath"])
            .arg(dir.path().join("sock"))
            .arg("-pidfile")
            .arg(dir.path().join("pid"))
            .timeout(Duration::from_secs(600));
        let thread = thread::spawn(move || drop(netns.run(|| exec.output())));
        let daemon = Self {
            dir,
            thread: Some(thread),
        };
        wait_until("the daemon", || {
            let there = daemon.socket().exists();
            there.then_some(()).ok_or("no socket".to_owned())
        });
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            // It may have ended by itself.
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn call(node: &Node, verb: &str, pod: &Pod, conf: &Value) -> Result<String, String> {
    let env = [
        ("CNI_COMMAND", verb.to_owned()),
        ("CNI_CONTAINERID", pod.name.clone()),
        ("CNI_NETNS", pod.netns.path().display().to_string()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/usr/lib/cni".to_owned()),
    ];
    let exec = Exec::new(PLUGIN).env_only(env).stdin(conf.to_string());
    let output = node.netns.run(|| exec.output()).unwrap().unwrap();
    match output.status.success() {
        true => Ok(output.text()),
        false => Err(output.text()),
    }
}

#[test]
fn dhcp_gives_addresses_and_takes_them_back() {
    let test = "dhcp_gives_addresses_and_takes_them_back";
    let Some(node) = Node::new(test, &[]) else {
        return;
    };
    if !Path::new(DHCP).exists() {
        println!("SKIPPED {test}: {DHCP} is not installed (containernetworking-plugins)");
        return;
    }
    let server = Server::start(&mut node.kernel());
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "seaway-cni", "bridge": "cni0",
        "isGateway": false, "isDefaultGateway": false,
        "ipam": {"type": "dhcp", "daemonSocketPath": "/no/such/socket"}
    });
    let pod = Pod::new("pod");
    // Without the daemon there is no address, and nothing is left.
    let error = call(&node, "ADD", &pod, &conf).unwrap_err();
    assert!(error.contains("ADD of dhcp"), "{error}");
    assert_eq!(node.links(), ["cni0", "lo", "server"]);
    assert!(pod.kernel().link("eth0").unwrap().is_none());

    let daemon = Daemon::start(&node);
    conf["ipam"]["daemonSocketPath"] = json!(daemon.socket());
    let text = call(&node, "ADD", &pod, &conf).unwrap();
    let result: AddResult = serde_json::from_str(&text).unwrap();
    assert_eq!(result.ips[0].address.to_string(), format!("{LEASED}/24"));
    assert_eq!(result.ips[0].gateway, Some(SERVER.into()));
    let mut host = pod.kernel();
    let has = host.addrs("eth0").unwrap();
    assert!(has.iter().any(|addr| addr.net.ip() == LEASED));
    let routes = host.routes(&RouteFilter::default()).unwrap();
    let default = routes.iter().find(|route| route.is_default()).unwrap();
    assert_eq!(default.gateway, Some(SERVER.into()));
    let mac = host.link("eth0").unwrap().unwrap().mac.unwrap();
    assert_eq!(result.interfaces[2].mac, mac.to_string());
    server.await_message(REQUEST);
    // A second ADD takes nothing from the first.
    call(&node, "ADD", &pod, &conf).unwrap_err();
    assert!(pod.kernel().link("eth0").unwrap().is_some());
    let mut with_result = conf.clone();
    with_result["prevResult"] = json!(result);
    call(&node, "CHECK", &pod, &with_result).unwrap();

    call(&node, "DEL", &pod, &with_result).unwrap();
    server.await_message(RELEASE);
    assert_eq!(node.links(), ["cni0", "lo", "server"]);
    assert!(pod.kernel().link("eth0").unwrap().is_none());
    // Twice is fine.
    call(&node, "DEL", &pod, &with_result).unwrap();
}
