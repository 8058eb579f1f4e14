//! One node namespace with a fake API server, the proxy, and two pods of their own namespaces.
//!
//! ```text
//!   cli 10.99.0.3 --- [node, API server on loopback] --- srv 10.99.0.1 and 10.99.0.2
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::fake::{FakeApi, kubeconfig};
use linux::addr::Addr;
use linux::iptables::{Backend, Family, Iptables};
use linux::link::{LinkChange, NewVeth};
use linux::process::{self, Daemon};
use linux::route::Route;
use linux::{Host, Kernel, NetNs};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Endpoints of each service.
pub(super) const ENDPOINTS: usize = 10;
/// Both servers, on their own port; and on one that the service does not use, for direct connections.
pub(super) const SERVERS: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const PORT: u16 = 8080;
const DIRECT_PORT: u16 = 8081;
/// The service whose traffic is looked at.
pub(super) const VIP: &str = "10.96.0.99";
/// One connection; longer than the first retransmission of a lost SYN.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Programming takes at most this.
const TIMEOUT: Duration = Duration::from_secs(300);

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

pub(super) struct Lab {
    dir: PathBuf,
    node: NetNs,
    cli: NetNs,
    api: FakeApi,
    proxy: Option<std::process::Child>,
}

impl Lab {
    /// With a number of services.
    pub(super) fn new(services: usize) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("seaway-bench-{}-proxy", std::process::id()));
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
        }
        // What is not translated must not leave by a default route that is not there.
        kernel.add_route(&Route::to("10.96.0.0/12".parse()?).dev("srv0"))?;
        let lab = Self {
            dir,
            node,
            cli,
            api: FakeApi::default(),
            proxy: None,
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
    pub(super) fn use_old_tables(&self) -> Result<()> {
        let theirs = "*filter\n:THEIRS - [0:0]\n-A THEIRS -j RETURN\nCOMMIT\n";
        let make = || {
            for family in [Family::V4, Family::V6] {
                Iptables::of(family, Backend::Legacy)?.restore(theirs)?;
            }
            Ok(())
        };
        self.node.run(make)?
    }

    fn put(&self, name: &str, ip: &str, endpoints: &[String]) {
        let service = json!({
            "metadata": { "name": name, "namespace": "default", "uid": "c06e8f5e-0000-4000-8000-000000000000" },
            "spec": { "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "selector": { "app": name },
                "ports": [{ "port": 80, "targetPort": PORT, "protocol": "TCP" }] },
        });
        self.api.put(SERVICES, service);
        self.put_slice(name, endpoints);
    }

    fn put_slice(&self, name: &str, endpoints: &[String]) {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|e| {
                json!({ "addresses": [e], "nodeName": "another", "zone": "z1",
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "targetRef": { "kind": "Pod", "name": format!("{name}-7d4b9c6f5d-x2x8k"), "namespace": "default" } })
            })
            .collect();
        let slice = json!({
            "addressType": "IPv4",
            "metadata": { "name": format!("{name}-x8zk4"), "namespace": "default",
                "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "name": "", "port": PORT, "protocol": "TCP" }], "endpoints": endpoints,
        });
        self.api.put(SLICES, slice);
    }

    /// The service whose traffic is looked at gets another endpoint.
    pub(super) fn change(&self, server: &str) {
        self.put_slice("seen", &[server.to_owned()]);
    }

    /// Starts the proxy.
    pub(super) fn start(&mut self, mode: &str) -> Result<()> {
        let listener = self.node.run(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = self.api.serve(listener)?;
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
        let daemon = Daemon {
            program: crate::program("proxy")?,
            args: args.to_vec(),
            netns: Some(self.dir.join("node")),
            log: Some(self.dir.join("log")),
            ..Daemon::default()
        };
        self.proxy = Some(daemon.spawn()?);
        Ok(())
    }

    /// What the proxy said last, if it has ended.
    pub(super) fn ended(&mut self) -> Option<String> {
        let proxy = self.proxy.as_mut()?;
        proxy.try_wait().ok()??;
        let log = self.log();
        Some(log.lines().last().unwrap_or_default().to_owned())
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Resident memory of the proxy, in bytes.
    pub(super) fn resident(&self) -> Result<u64> {
        let proxy = self.proxy.as_ref().context("no proxy")?;
        Ok(process::resident_bytes(i32::try_from(proxy.id())?)?)
    }

    /// Asks through the service until `server` answers; `None`: the proxy has ended.
    pub(super) fn wait(&mut self, server: &str, start: Instant) -> Result<Option<Duration>> {
        let vip = SocketAddr::new(VIP.parse()?, 80);
        loop {
            let asked = || {
                let until = Instant::now() + Duration::from_millis(500);
                while Instant::now() < until {
                    if ask(vip).is_ok_and(|s| s == server) {
                        return Some(start.elapsed());
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                None
            };
            if let Some(time) = self.cli.run(asked)? {
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

    /// Seconds that each of `n` connections took: through the service, or directly.
    pub(super) fn connections(&self, server: Option<&str>, n: usize) -> Result<(Vec<f64>, usize)> {
        let to = match server {
            None => SocketAddr::new(VIP.parse()?, 80),
            Some(server) => SocketAddr::new(server.parse()?, DIRECT_PORT),
        };
        Ok(self.cli.run(|| {
            let mut seconds = Vec::new();
            for _ in 0..n {
                let start = Instant::now();
                if ask(to).is_ok() {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
            let lost = n - seconds.len();
            (seconds, lost)
        })?)
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

/// Joins a namespace to the node: the node is 10.99.0.254 on every link.
fn join(node: &mut Kernel, link: &str, peer: &NetNs, ips: &[&str]) -> Result<()> {
    let mut there = Kernel::open_in(NetNs::open(peer.path())?)?;
    node.add_veth(&NewVeth {
        name: link.into(),
        peer_name: "eth0".into(),
        peer_netns: Some(there.netns()),
        ..NewVeth::default()
    })?;
    let gateway: IpAddr = "10.99.0.254".parse()?;
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

/// Who answers at `address`, asked once over a new connection.
fn ask(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
