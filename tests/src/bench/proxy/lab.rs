//! One node namespace with a fake API server, the proxy, and two pods of their own namespaces.
//!
//! ```text
//!   cli 10.99.0.3 --- [node, API server on loopback] --- srv 10.99.0.1 and 10.99.0.2
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::fake::{FakeApi, kubeconfig};
use linux::addr::Addr;
use linux::cgroup::Hierarchies;
use linux::iptables::{Backend, Family, Iptables};
use linux::link::{LinkChange, NewVeth};
use linux::process::{self, Daemon};
use linux::route::Route;
use linux::{Host, Kernel, NetNs};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Endpoints of each service.
pub(in crate::bench) const ENDPOINTS: usize = 10;
/// Both servers, on their own port; and on one that the service does not use, for direct connections.
pub(in crate::bench) const SERVERS: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const PORT: u16 = 8080;
const DIRECT_PORT: u16 = 8081;
/// The service whose traffic is looked at.
pub(in crate::bench) const VIP: &str = "10.96.0.99";
/// A service that sends everything back, and where its only endpoint listens.
pub(in crate::bench) const ECHO_VIP: &str = "10.96.0.98";
const ECHO_PORT: u16 = 8082;
/// The node port of the first one.
const NODE_PORT: u16 = 30099;
/// The node on every link.
const GATEWAY: &str = "10.99.0.254";
/// One connection; longer than the first retransmission of a lost SYN.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// One while nobody knows whether the service is there yet: a SYN that is lost is soon sent again.
const TRY_TIMEOUT: Duration = Duration::from_millis(50);
/// Programming takes at most this.
const TIMEOUT: Duration = Duration::from_secs(300);

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

pub(in crate::bench) struct Lab {
    dir: PathBuf,
    node: NetNs,
    cli: NetNs,
    api: FakeApi,
    /// Where the API server listens on the node, since it does.
    address: Option<SocketAddr>,
    proxy: Option<std::process::Child>,
    /// The control group that mode ebpf is attached to, where it is not the root.
    group: Option<PathBuf>,
    /// Clients are in there, as pods are.
    is_inside: bool,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// With a number of services.
    pub(in crate::bench) fn new(services: usize) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("seaway-bench-{}-proxy-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let node = NetNs::create(dir.join("node"))?;
        let (cli, srv) = (
            NetNs::create(dir.join("cli"))?,
            NetNs::create(dir.join("srv"))?,
        );
        let mut kernel = Kernel::open_in(NetNs::open(node.path())?)?;
        kernel.set_link("lo", &LinkChange::up())?;
        kernel.set_sysctl("net/ipv4/ip_forward", "1")?;
        join(&mut kernel, "cli0", &cli, &["10.99.0.3"])?;
        join(&mut kernel, "srv0", &srv, &SERVERS)?;
        for ip in SERVERS {
            for port in [PORT, DIRECT_PORT] {
                serve(&srv, SocketAddr::new(ip.parse()?, port))?;
            }
            echo(&srv, SocketAddr::new(ip.parse()?, ECHO_PORT))?;
        }
        // What is not translated must not leave by a default route that is not there.
        kernel.add_route(&Route::to("10.96.0.0/12".parse()?).dev("srv0"))?;
        let lab = Self {
            dir,
            node,
            cli,
            api: FakeApi::default(),
            address: None,
            proxy: None,
            group: None,
            is_inside: false,
        };
        lab.api
            .put("/api/v1/nodes", json!({ "metadata": { "name": "bench" } }));
        for i in 0..services {
            let ip = format!("10.{}.{}.{}", 97 + i / 65536, (i / 256) % 256, i % 256);
            let endpoints = (0..ENDPOINTS).map(|e| {
                format!(
                    "10.{}.{}.{}",
                    200 + i / 25_600,
                    i / 100 % 256,
                    i % 25 * 10 + e + 1
                )
            });
            lab.put(&format!("s{i}"), &ip, &endpoints.collect::<Vec<_>>());
        }
        lab.put("seen", VIP, &[SERVERS[0].to_owned()]);
        lab.api.compact();
        Ok(lab)
    }

    /// Makes it a node whose rules are in the tables of the legacy iptables.
    pub(in crate::bench) fn use_old_tables(&self) -> Result<()> {
        let theirs = "*filter\n:THEIRS - [0:0]\n-A THEIRS -j RETURN\nCOMMIT\n";
        let make = || {
            for family in [Family::V4, Family::V6] {
                Iptables::of(family, Backend::Legacy)?.restore(theirs)?;
            }
            Ok(())
        };
        self.node.run(make)?
    }

    /// A control group of its own for mode ebpf; with `is_inside` the clients are in it.
    pub(in crate::bench) fn use_group(&mut self, is_inside: bool) -> Result<()> {
        let root = Hierarchies::detect()?
            .v2
            .context("no cgroup v2 is mounted")?;
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        let name = self.dir.file_name().context("no name")?;
        let dir = root
            .join(own.unwrap_or("/").trim_start_matches('/'))
            .join(name);
        std::fs::create_dir(&dir)?;
        self.group = Some(dir.clone());
        self.is_inside = is_inside;
        // Single threads of this process are in it.
        std::fs::write(dir.join("cgroup.type"), "threaded")?;
        Ok(())
    }

    fn pins(&self) -> Option<PathBuf> {
        let name = self.group.as_ref()?.file_name()?;
        Some(PathBuf::from("/sys/fs/bpf").join(name))
    }

    /// Runs `work` on the node, on a thread of its own.
    pub(super) fn on_node<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.node.run(work)?
    }

    /// Runs `work` as a client, on a thread of its own.
    fn client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let group = self.group.as_ref().filter(|_| self.is_inside);
        let work = || -> Result<T> {
            if let Some(group) = group {
                let thread = nix::unistd::gettid().to_string();
                std::fs::write(group.join("cgroup.threads"), thread)?;
            }
            Ok(work())
        };
        self.cli.run(work)?
    }

    /// The service that sends everything back.
    pub(in crate::bench) fn add_echo(&self) {
        let service = json!({
            "metadata": { "name": "echo", "namespace": "default" },
            "spec": { "clusterIP": ECHO_VIP, "ports": [{ "port": ECHO_PORT, "protocol": "TCP" }] },
        });
        self.api.put(SERVICES, service);
        self.api
            .put(SLICES, slice("echo", ECHO_PORT, &[SERVERS[0].to_owned()]));
    }

    fn put(&self, name: &str, ip: &str, endpoints: &[String]) {
        let mut port = json!({ "port": 80, "targetPort": PORT, "protocol": "TCP" });
        if ip == VIP {
            port["nodePort"] = NODE_PORT.into();
        }
        let service = json!({
            "metadata": { "name": name, "namespace": "default", "uid": "c06e8f5e-0000-4000-8000-000000000000" },
            "spec": { "type": if ip == VIP { "NodePort" } else { "ClusterIP" }, "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "selector": { "app": name },
                "ports": [port] },
        });
        self.api.put(SERVICES, service);
        self.put_slice(name, endpoints);
    }

    fn put_slice(&self, name: &str, endpoints: &[String]) {
        self.api.put(SLICES, slice(name, PORT, endpoints));
    }

    /// The service whose traffic is looked at gets another endpoint.
    pub(in crate::bench) fn change(&self, server: &str) {
        self.put_slice("seen", &[server.to_owned()]);
    }

    /// Makes the client's link one to the outside, on which packets come with their checksums.
    pub(in crate::bench) fn be_outside(&self) -> Result<()> {
        let mut node = Kernel::open_in(NetNs::open(self.node.path())?)?;
        node.add_addr("cli0", &Addr::new("192.0.2.1/32".parse()?))?;
        let mut there = Kernel::open_in(NetNs::open(self.cli.path())?)?;
        Ok(there.set_tx_checksum("eth0", false)?)
    }

    /// A number that the proxy tells of itself.
    pub(in crate::bench) fn metric(&self, name: &str) -> Result<u64> {
        let text = self.on_node(|| {
            let mut stream = TcpStream::connect("127.0.0.1:10249")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.with_context(|| format!("no metric {name}"))?;
        Ok(value.trim().parse()?)
    }

    /// Starts the proxy.
    pub(in crate::bench) fn start(&mut self, mode: &str) -> Result<()> {
        self.start_with(mode, &[])
    }

    /// Starts the proxy with more flags.
    pub(in crate::bench) fn start_with(&mut self, mode: &str, flags: &[&str]) -> Result<()> {
        let address = match self.address {
            Some(address) => address,
            None => {
                let listener = self.node.run(|| TcpListener::bind("127.0.0.1:0"))??;
                *self.address.insert(self.api.serve(listener)?)
            }
        };
        let config = self.dir.join("kubeconfig");
        std::fs::write(&config, kubeconfig(address))?;
        let args = [
            "--mode",
            mode,
            "--hostname-override",
            "bench",
            "--kubeconfig",
            &config.to_string_lossy(),
            "--cluster-cidr",
            "10.99.0.0/16",
            "--healthz-bind-address",
            "127.0.0.1:10256",
            "--metrics-bind-address",
            "127.0.0.1:10249",
            "--log-level",
            "proxy=debug,info",
        ]
        .map(Into::into);
        let mut args = args.to_vec();
        args.extend(flags.iter().map(Into::into));
        if let Some((group, pins)) = self.group.as_ref().zip(self.pins()) {
            args.push(format!("--ebpf-cgroup={}", group.display()).into());
            args.push(format!("--ebpf-pin-dir={}", pins.display()).into());
        }
        let daemon = Daemon {
            program: crate::program("proxy")?,
            args,
            netns: Some(self.dir.join("node")),
            log: Some(self.dir.join("log")),
            ..Daemon::default()
        };
        self.proxy = Some(daemon.spawn()?);
        Ok(())
    }

    /// What the proxy said last, if it has ended.
    pub(in crate::bench) fn ended(&mut self) -> Option<String> {
        let proxy = self.proxy.as_mut()?;
        proxy.try_wait().ok()??;
        let log = self.log();
        Some(log.lines().last().unwrap_or_default().to_owned())
    }

    pub(in crate::bench) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Ends the proxy and takes its pins away, so that the next start is the first again.
    pub(in crate::bench) fn stop(&mut self) -> Result<()> {
        if let Some(mut proxy) = self.proxy.take() {
            process::signal(i32::try_from(proxy.id())?, Signal::SIGKILL)?;
            proxy.wait()?;
        }
        if let Some(pins) = self.pins() {
            std::fs::remove_dir_all(pins)?;
        }
        Ok(std::fs::remove_file(self.dir.join("log"))?)
    }

    /// Time that the proxy has used of processors.
    pub(in crate::bench) fn cpu_time(&self) -> Result<Duration> {
        let proxy = self.proxy.as_ref().context("no proxy")?;
        Ok(process::cpu_time(i32::try_from(proxy.id())?)?)
    }

    /// Resident memory of the proxy, in bytes.
    pub(in crate::bench) fn resident(&self) -> Result<u64> {
        let proxy = self.proxy.as_ref().context("no proxy")?;
        Ok(process::resident_bytes(i32::try_from(proxy.id())?)?)
    }

    /// Asks through the service until `server` answers; `None`: the proxy has ended.
    pub(in crate::bench) fn wait(
        &mut self,
        server: &str,
        start: Instant,
    ) -> Result<Option<Duration>> {
        let vip = SocketAddr::new(VIP.parse()?, 80);
        loop {
            let asked = || {
                let until = Instant::now() + Duration::from_millis(500);
                while Instant::now() < until {
                    if ask(vip, TRY_TIMEOUT).is_ok_and(|s| s == server) {
                        return Some(start.elapsed());
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                None
            };
            if let Some(time) = self.client(asked)? {
                return Ok(Some(time));
            }
            if self.ended().is_some() {
                return Ok(None);
            }
            if start.elapsed() > TIMEOUT {
                bail!("{server} never answered through {VIP}\n{}", self.log());
            }
        }
    }

    /// Seconds that each of `n` connections took, and how many were not made: through the service,
    /// or directly.
    pub(in crate::bench) fn connections(
        &self,
        server: Option<&str>,
        n: usize,
    ) -> Result<(Vec<f64>, usize)> {
        let to = match server {
            None => SocketAddr::new(VIP.parse()?, 80),
            Some(server) => SocketAddr::new(server.parse()?, DIRECT_PORT),
        };
        self.connections_to(to, n)
    }

    /// As `connections`, to the service's node port.
    pub(in crate::bench) fn node_port_connections(&self, n: usize) -> Result<(Vec<f64>, usize)> {
        self.connections_to(SocketAddr::new(GATEWAY.parse()?, NODE_PORT), n)
    }

    fn connections_to(&self, to: SocketAddr, n: usize) -> Result<(Vec<f64>, usize)> {
        self.client(|| {
            let mut seconds = Vec::new();
            for _ in 0..n {
                let start = Instant::now();
                match ask(to, ASK_TIMEOUT) {
                    Ok(_) => seconds.push(start.elapsed().as_secs_f64()),
                    // It is rare, and nothing tells of it later.
                    Err(error) => crate::say(&format!("{to}: {error:#}, {:?}", start.elapsed())),
                }
            }
            let lost = n - seconds.len();
            (seconds, lost)
        })
    }

    /// Seconds that each of `n` requests took on one connection, through the service that sends
    /// everything back or directly.
    pub(in crate::bench) fn requests(&self, direct: bool, n: usize) -> Result<Vec<f64>> {
        let ip = if direct { SERVERS[0] } else { ECHO_VIP };
        let to = SocketAddr::new(ip.parse()?, ECHO_PORT);
        self.client(|| -> Result<Vec<f64>> {
            let mut stream = TcpStream::connect_timeout(&to, ASK_TIMEOUT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ASK_TIMEOUT))?;
            let mut buffer = [7; 64];
            let mut seconds = Vec::new();
            for _ in 0..n {
                let start = Instant::now();
                stream.write_all(&buffer)?;
                stream.read_exact(&mut buffer)?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            Ok(seconds)
        })?
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            let pid = i32::try_from(proxy.id()).unwrap_or_default();
            if process::signal(pid, Signal::SIGKILL).is_ok() {
                drop(proxy.wait());
            }
        }
        self.api.set_away(true);
        let left = [self.pins(), self.group.clone()];
        if let [Some(pins), Some(group)] = left {
            let removed = std::fs::remove_dir_all(&pins).and_then(|()| std::fs::remove_dir(&group));
            if let Err(error) = removed {
                crate::say(&format!("remove {}: {error}", group.display()));
            }
        }
        for name in ["node", "cli", "srv"] {
            if let Err(error) = NetNs::remove(self.dir.join(name)) {
                crate::say(&error.to_string());
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            crate::say(&format!("remove {}: {error}", self.dir.display()));
        }
    }
}

fn slice(name: &str, port: u16, endpoints: &[String]) -> Value {
    let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|e| {
                json!({ "addresses": [e], "nodeName": "another", "zone": "z1",
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "targetRef": { "kind": "Pod", "name": format!("{name}-7d4b9c6f5d-x2x8k"), "namespace": "default" } })
            })
            .collect();
    json!({
        "addressType": "IPv4",
        "metadata": { "name": format!("{name}-x8zk4"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": name } },
        "ports": [{ "name": "", "port": port, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

/// Joins a namespace to the node: the node is 10.99.0.254 on every link.
fn join(node: &mut Kernel, link: &str, peer: &NetNs, ips: &[&str]) -> Result<()> {
    let mut there = Kernel::open_in(NetNs::open(peer.path())?)?;
    node.add_veth(&NewVeth {
        name: link.into(),
        peer_name: "eth0".into(),
        peer_netns: Some(there.netns()),
        ..NewVeth::default()
    })?;
    let gateway: IpAddr = GATEWAY.parse()?;
    node.add_addr(link, &Addr::new(gateway.into()))?;
    node.set_link(link, &LinkChange::up())?;
    there.set_link("lo", &LinkChange::up())?;
    there.set_link("eth0", &LinkChange::up())?;
    for ip in ips {
        let ip: IpAddr = ip.parse()?;
        there.add_addr("eth0", &Addr::new(ip.into()))?;
        node.add_route(&Route::to(ip.into()).dev(link))?;
    }
    there.add_route(&Route::to(gateway.into()).dev("eth0"))?;
    let all = Route::to("0.0.0.0/0".parse()?).via(gateway).dev("eth0");
    there.add_route(&all.onlink())?;
    Ok(())
}

/// A server that answers with its own address, until the namespace's end.
fn serve(netns: &NetNs, address: SocketAddr) -> Result<()> {
    let listener = netns.run(|| TcpListener::bind(address))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The client may be gone already.
            drop(stream.write_all(address.ip().to_string().as_bytes()));
        }
    });
    Ok(())
}

/// A server that sends back what it gets.
fn echo(netns: &NetNs, address: SocketAddr) -> Result<()> {
    let listener = netns.run(|| TcpListener::bind(address))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
            });
        }
    });
    Ok(())
}

/// Who answers at `address`, asked once over a new connection.
fn ask(address: SocketAddr, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout).context("connect")?;
    stream.set_read_timeout(Some(timeout))?;
    let mut text = String::new();
    let port = |stream: &TcpStream| stream.local_addr().map_or(0, |own| own.port());
    let read = stream.read_to_string(&mut text);
    read.with_context(|| format!("read, from port {}", port(&stream)))?;
    Ok(text)
}
