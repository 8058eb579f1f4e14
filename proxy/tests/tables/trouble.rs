//! An API server that goes away, forgets, is slow, or keeps things to itself; a proxy that is killed
//! at any moment; new connections all the while, in most a thousand times a second.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::cidr::Family;
use client::fake::{FakeApi, kubeconfig};
use linux::NetNs;
use proxy::backend::Mode;
use proxy::model::Protocol;
use serde_json::{Value, json};

use super::lab::{FENCE, FENCE_PORT, Lab};
use super::probe::{Answer, Probe, scaled};
use super::serve::Servers;
use crate::cases::{NODE, Setting};

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Services that change.
const N: u8 = 24;
/// Their two possible endpoints, elsewhere.
const ENDPOINTS: [&str; 2] = ["10.181.0.1", "10.181.0.2"];
/// A service that never changes.
const STEADY: &str = "172.30.7.200";
/// From one new connection to the next.
const EVERY: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);
/// Kills in the loop.
const KILLS: u64 = 16;
/// How long the API server is away in its own test: what is asked for, so no faster elsewhere.
const AWAY: Duration = Duration::from_secs(60);
/// From one new connection to the next while it is: several modes do this beside other tests.
const EVERY_AWAY: Duration = Duration::from_millis(20);

/// A lab, the API server, and what should be programmed.
pub(crate) struct Trouble {
    lab: Lab,
    api: FakeApi,
    args: Vec<String>,
    /// By service: which endpoint; `None`: the service is gone.
    wanted: Vec<Option<usize>>,
    /// Steps of a generator of numbers.
    dice: u64,
    _servers: [Servers; 2],
}

impl Trouble {
    pub(crate) fn new(mode: Mode) -> Self {
        let mut lab = Lab::new(&[(Family::V4, Setting::default())]);
        let places = ENDPOINTS.map(|ip| (SocketAddr::new(ip.parse().unwrap(), 80), Protocol::Tcp));
        for (at, _) in &places {
            lab.rem.add_ips("lo", &[at.ip()]);
            lab.endpoint_route(at.ip(), false);
        }
        let fence = SocketAddr::new(FENCE.parse().unwrap(), FENCE_PORT);
        let servers = [
            Servers::start(&lab.rem, places),
            Servers::start(&lab.rem, [(fence, Protocol::Tcp)]),
        ];
        let api = FakeApi::default();
        api.put("/api/v1/nodes", json!({ "metadata": { "name": NODE } }));
        let listener = lab.node.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = api.serve(listener).unwrap();
        let config = lab.dir.path().join("kubeconfig");
        std::fs::write(&config, kubeconfig(address)).unwrap();
        let mut args = vec![
            format!("--mode={}", mode.name()),
            format!("--hostname-override={NODE}"),
            format!("--kubeconfig={}", config.display()),
            "--cluster-cidr=10.0.0.0/8".to_owned(),
            "--log-level=debug".to_owned(),
        ];
        if mode == Mode::Ebpf {
            args.extend(lab.group_sockets());
        }
        let mut trouble = Self {
            lab,
            api,
            args,
            wanted: vec![None; usize::from(N)],
            dice: 1,
            _servers: servers,
        };
        trouble.api.put(SERVICES, service("steady", STEADY));
        trouble.api.put(SLICES, slice("steady", 0));
        for i in 0..usize::from(N) {
            trouble.set(i, Some(i % 2));
        }
        trouble
    }

    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX generator; the upper bits are the good ones.
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn set(&mut self, i: usize, endpoint: Option<usize>) {
        let name = format!("s{i}");
        match endpoint {
            Some(endpoint) => {
                self.api.put(SLICES, slice(&name, endpoint));
                if self.wanted[i].is_none() {
                    self.api.put(SERVICES, service(&name, &vip(i)));
                }
            }
            None => {
                self.api.delete(SERVICES, &name);
                self.api.delete(SLICES, &name);
            }
        }
        self.wanted[i] = endpoint;
    }

    /// Changes some services.
    fn change(&mut self, n: usize) {
        for _ in 0..n {
            let i = usize::try_from(self.roll(u64::from(N))).unwrap();
            let endpoint = usize::try_from(self.roll(3)).ok().filter(|e| *e < 2);
            self.set(i, endpoint);
        }
    }

    /// Changes all services, and no watch is told.
    fn change_unseen(&mut self) {
        for i in 0..self.wanted.len() {
            if let Some(endpoint) = self.wanted[i] {
                self.api
                    .put_unseen(SLICES, slice(&format!("s{i}"), 1 - endpoint));
                self.wanted[i] = Some(1 - endpoint);
            }
        }
    }

    fn start(&mut self) {
        let args = self.args.clone();
        self.lab.start(&args);
    }

    /// Waits until each service leads where it should, and those that are gone nowhere.
    #[track_caller]
    fn settle(&self, what: &str) {
        let deadline = Instant::now() + scaled(PATIENCE);
        for (i, wanted) in self.wanted.iter().enumerate() {
            let wanted: Option<IpAddr> = wanted.map(|e| ENDPOINTS[e].parse().unwrap());
            loop {
                let got = self.ask(i);
                if got == wanted {
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "{what}: s{i} leads to {got:?}, not {wanted:?}\n{}",
                    self.lab.log()
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn ask(&self, i: usize) -> Option<IpAddr> {
        let probe = Probe {
            source: SocketAddr::new(self.lab.own[0], 0),
            to: SocketAddr::new(vip(i).parse().unwrap(), 80),
            protocol: Protocol::Tcp,
            fence: None,
            asks: false,
        };
        match self.lab.node.run(move || probe.run()) {
            Answer::Reached(who, _) => Some(who.ip()),
            _ => None,
        }
    }

    /// The API server's troubles, one after the other.
    pub(crate) fn of_the_server(mut self) {
        // What is for no service ends where the routes end.
        self.lab.void.add_ips("lo", &self.vips());
        self.start();
        self.settle("start");
        let traffic = Traffic::start(&self.lab, EVERY);

        self.api.cut();
        self.change(20);
        self.settle("watches cut");

        self.api.cut();
        self.change(20);
        self.api.compact();
        self.settle("410 Gone");

        self.api.set_list_delay(Duration::from_millis(300));
        self.api.compact();
        self.api.cut();
        self.change(20);
        std::thread::sleep(Duration::from_millis(400));
        self.change(20);
        self.settle("slow lists");
        self.api.set_list_delay(Duration::ZERO);

        self.change_unseen();
        self.api.compact();
        self.api.cut();
        self.settle("a watch that skipped");

        // Killed, and started again while the server is away: what was programmed serves on.
        self.api.set_away(true);
        self.lab.kill();
        self.start();
        std::thread::sleep(Duration::from_millis(500));
        self.settle("started without a server");
        self.change(20);
        self.api.set_away(false);
        self.settle("started, then a server");
        traffic.stop(1000);
    }

    /// The API server is away for a minute, and services change all the while. They serve on as they
    /// were, and soon after it is back they are as they should be.
    pub(crate) fn of_a_minute(mut self) {
        self.lab.void.add_ips("lo", &self.vips());
        self.start();
        self.settle("start");
        let traffic = Traffic::start(&self.lab, EVERY_AWAY);
        let before = self.wanted.clone();
        self.api.set_away(true);
        let back = Instant::now() + AWAY;
        while Instant::now() < back {
            self.change(4);
            std::thread::sleep(Duration::from_secs(1));
        }
        // Something else in each place than before, so that nothing is right by having been left.
        for (i, led) in before.iter().enumerate() {
            let other = led.map_or(Some(0), |e| (i % 3 != 0).then_some(1 - e));
            self.set(i, other);
        }
        for (i, endpoint) in before.iter().enumerate() {
            let led: Option<IpAddr> = endpoint.map(|e| ENDPOINTS[e].parse().unwrap());
            assert_eq!(
                self.ask(i),
                led,
                "s{i} without a server\n{}",
                self.lab.log()
            );
        }
        self.api.set_away(false);
        self.settle("a minute away");
        traffic.stop(500);
    }

    fn vips(&self) -> Vec<IpAddr> {
        let each = 0..self.wanted.len();
        each.map(|i| vip(i).parse().unwrap()).collect()
    }

    /// Killed at random moments, mostly in the middle of something.
    pub(crate) fn of_the_proxy(mut self) {
        self.lab.void.add_ips("lo", &self.vips());
        self.start();
        self.settle("start");
        let traffic = Traffic::start(&self.lab, EVERY);
        for _ in 0..KILLS {
            let first = Duration::from_millis(self.roll(60));
            std::thread::sleep(first);
            self.change(6);
            let then = Duration::from_millis(self.roll(40));
            std::thread::sleep(then);
            self.lab.kill();
            self.change(2);
            self.start();
        }
        self.settle("after the last start");
        traffic.stop(500);
    }
}

fn vip(i: usize) -> String {
    format!("172.30.7.{}", i + 1)
}

fn service(name: &str, ip: &str) -> Value {
    json!({ "metadata": { "namespace": "default", "name": name },
        "spec": { "clusterIP": ip, "ports": [{ "port": 80, "protocol": "TCP" }] } })
}

fn slice(name: &str, endpoint: usize) -> Value {
    json!({ "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": "TCP" }],
        "metadata": { "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": name } },
        "endpoints": [{ "addresses": [ENDPOINTS[endpoint]], "nodeName": "other" }] })
}

/// New connections to the steady service, and one that stays open.
struct Traffic {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Traffic {
    fn start(lab: &Lab, every: Duration) -> Self {
        let netns = NetNs::open(lab.cli.path()).unwrap();
        let (stop, good) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, counted) = (stop.clone(), good.clone());
        let work = move || {
            let mut bad = Vec::new();
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                match connect() {
                    Ok(()) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(e) => bad.push(e.to_string()),
                }
                next += every;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            bad
        };
        let thread = std::thread::spawn(move || netns.run(work).unwrap());
        Self { stop, good, thread }
    }

    /// Ends it: at least `least` connections came about, and none failed.
    #[track_caller]
    fn stop(self, least: usize) {
        let deadline = Instant::now() + scaled(PATIENCE);
        while self.good.load(Ordering::Relaxed) < least && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop.store(true, Ordering::Relaxed);
        let bad = self.thread.join().unwrap();
        let good = self.good.load(Ordering::Relaxed);
        assert!(
            bad.is_empty(),
            "{} of {} failed: {:?}",
            bad.len(),
            good + bad.len(),
            bad[0]
        );
        assert!(good >= least, "{good} connections");
        println!("COUNTED connections without a failure: {good}");
    }
}

/// One connection, answered.
fn connect() -> std::io::Result<()> {
    let to = SocketAddr::new(STEADY.parse().map_err(std::io::Error::other)?, 80);
    let stream = TcpStream::connect_timeout(&to, scaled(PATIENCE / 2))?;
    stream.set_read_timeout(Some(scaled(PATIENCE / 2)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.starts_with(ENDPOINTS[0]) {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("answered {line:?}")))
    }
}
