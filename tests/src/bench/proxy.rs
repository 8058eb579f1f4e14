//! `bench proxy`: the iptables mode fed from files: start, one changed endpoint, memory, new
//! connections through a Service against direct ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use linux::addr::Addr;
use linux::link::LinkChange;
use linux::process::{self, Daemon};
use linux::{Host, Kernel, NetNs};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Figure, ms};
use crate::bin_dir;

/// Numbers of services.
const SIZES: [usize; 2] = [100, 1000];
/// Endpoints of each.
const ENDPOINTS: usize = 10;
/// Changes measured.
const CHANGES: usize = 20;
/// Connections of one throughput sample, and samples.
const CONNECTIONS: usize = 500;
const THROUGHPUT_RUNS: usize = 5;
/// Where the servers are asked directly.
const DIRECT_PORT: u16 = 8081;
/// The service whose traffic is looked at.
const VIP: &str = "10.96.0.99:80";
/// One connection; longer than the first retransmission of a lost SYN.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Programming a size takes at most this.
const TIMEOUT: Duration = Duration::from_secs(120);

struct Lab {
    dir: PathBuf,
    node: NetNs,
    proxy: Option<std::process::Child>,
}

impl Lab {
    fn new(services: usize) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!(
            "seaway-bench-{}-proxy{services}",
            std::process::id()
        ));
        std::fs::create_dir_all(dir.join("manifests"))?;
        let node = NetNs::create(dir.join("node"))?;
        let mut kernel = Kernel::open_in(NetNs::open(node.path())?)?;
        kernel.set_link("lo", &LinkChange::up())?;
        let lab = Self {
            dir,
            node,
            proxy: None,
        };
        for ip in ["10.99.0.1", "10.99.0.2"] {
            kernel.add_addr("lo", &Addr::new(format!("{ip}/32").parse()?))?;
            lab.serve(format!("{ip}:8080").parse()?)?;
            // Another port for direct connections: their ports must not meet those behind the rules.
            lab.serve(format!("{ip}:{DIRECT_PORT}").parse()?)?;
        }
        // Any address works as destination once there is a route; the rules decide where it goes.
        kernel.add_addr("lo", &Addr::new("192.168.77.2/32".parse()?))?;
        kernel.add_route(&linux::route::Route::to("10.96.0.0/12".parse()?).dev("lo"))?;
        for i in 0..services {
            let ip = format!("10.{}.{}.{}", 97 + i / 65536, (i / 256) % 256, i % 256);
            let endpoints: Vec<_> = (0..ENDPOINTS)
                .map(|e| format!("10.200.{}.{}", i % 256, e + 1))
                .collect();
            lab.write(&format!("s{i}"), &ip, &endpoints)?;
        }
        Ok(lab)
    }

    /// A server that answers with its own address, until the namespace's end.
    fn serve(&self, address: SocketAddr) -> Result<()> {
        let listener = self.node.run(|| TcpListener::bind(address))??;
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // The client may be gone already.
                drop(stream.write_all(address.ip().to_string().as_bytes()));
            }
        });
        Ok(())
    }

    fn write(&self, name: &str, ip: &str, endpoints: &[String]) -> Result<()> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": { "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "port": 80, "targetPort": 8080, "protocol": "TCP" }] },
        });
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|e| json!({ "addresses": [e], "conditions": { "ready": true }, "nodeName": "bench" }))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": format!("{name}-x"), "namespace": "default",
                "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
        });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service, slice] });
        let path = self.dir.join("manifests").join(format!("{name}.json"));
        let new = self.dir.join("new");
        std::fs::write(&new, list.to_string())?;
        std::fs::rename(new, path)?;
        Ok(())
    }

    fn start(&mut self, program: &Path) -> Result<()> {
        let args = [
            "--mode",
            "iptables",
            "--hostname-override",
            "bench",
            "--manifests",
            &self.dir.join("manifests").to_string_lossy(),
            "--cluster-cidr",
            "10.99.0.0/16",
            "--healthz-bind-address",
            "127.0.0.1:10256",
            "--metrics-bind-address",
            "127.0.0.1:10249",
        ]
        .map(Into::into);
        let daemon = Daemon {
            program: program.to_owned(),
            args: args.to_vec(),
            netns: Some(self.dir.join("node")),
            log: Some(self.dir.join("log")),
            ..Daemon::default()
        };
        self.proxy = Some(daemon.spawn()?);
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

    /// Asks through the Service until `server` answers.
    fn wait(&self, server: &str, start: Instant) -> Result<Duration> {
        let vip: SocketAddr = VIP.parse()?;
        let asked = || -> Result<Duration> {
            loop {
                if Self::ask(vip).is_ok_and(|s| s == server) {
                    return Ok(start.elapsed());
                }
                if start.elapsed() > TIMEOUT {
                    bail!("{server} never answered through {VIP}");
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        let result = self.node.run(asked)?;
        result.with_context(|| std::fs::read_to_string(self.dir.join("log")).unwrap_or_default())
    }

    /// New connections per second to `address`, and how many did not come about.
    fn throughput(&self, address: SocketAddr) -> Result<(f64, usize)> {
        Ok(self.node.run(|| {
            let start = Instant::now();
            let made = (0..CONNECTIONS)
                .filter(|_| Self::ask(address).is_ok())
                .count();
            let seconds = start.elapsed().as_secs_f64();
            (
                u32::try_from(made).map(f64::from).unwrap_or_default() / seconds,
                CONNECTIONS - made,
            )
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
        if let Err(error) = NetNs::remove(self.dir.join("node")) {
            crate::say(&error.to_string());
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            crate::say(&format!("remove {}: {error}", self.dir.display()));
        }
    }
}

/// All figures of the iptables mode.
///
/// # Errors
/// The proxy does not start or does not program.
pub fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let program = bin_dir()?.join("proxy");
    let (ip, _) = VIP.split_once(':').context("the service's address")?;
    let ends = ["10.99.0.1".to_owned(), "10.99.0.2".to_owned()];
    for size in SIZES {
        let mut lab = Lab::new(size)?;
        lab.write("seen", ip, &ends[..1])?;
        let start = Instant::now();
        lab.start(&program)?;
        let cold = lab.wait(&ends[0], start)?;
        let note = "start of the process until a connection through a Service works";
        figures.push(
            Figure::of(
                "proxy.iptables.cold_start_s",
                "s",
                &[cold.as_secs_f64()],
                note,
            )
            .size(size),
        );
        let mut samples = Vec::new();
        for i in 0..CHANGES {
            let end = &ends[(i + 1) % 2];
            lab.write("seen", ip, std::slice::from_ref(end))?;
            samples.push(ms(lab.wait(end, Instant::now())?));
        }
        let note = "file changed until a new connection reaches the new endpoint";
        figures.push(Figure::of("proxy.iptables.change_ms", "ms", &samples, note).size(size));
        let pid = lab
            .proxy
            .as_ref()
            .map(std::process::Child::id)
            .context("no proxy")?;
        let kilobytes = u32::try_from(process::resident_bytes(i32::try_from(pid)?)? / 1000)?;
        let megabytes = f64::from(kilobytes) / 1e3;
        let note = format!("{ENDPOINTS} endpoints each");
        figures.push(Figure::of("proxy.iptables.rss_mb", "MB", &[megabytes], note).size(size));
        let direct: SocketAddr = format!("{}:{DIRECT_PORT}", ends[CHANGES % 2]).parse()?;
        let (mut ratios, mut lost) = (Vec::new(), [0, 0]);
        for _ in 0..THROUGHPUT_RUNS {
            let (through, lost_through) = lab.throughput(VIP.parse()?)?;
            let (directly, lost_directly) = lab.throughput(direct)?;
            ratios.push(through / directly);
            lost = [lost[0] + lost_through, lost[1] + lost_directly];
        }
        let note = format!(
            "new connections per second, one client; not made: {} through the Service, {} directly",
            lost[0], lost[1]
        );
        figures
            .push(Figure::of("proxy.iptables.vip_over_direct", "ratio", &ratios, note).size(size));
    }
    Ok(figures)
}
