//! `bench cni`: ADD and DEL of one pod by the real plugin, beside the same netlink messages alone
//! and, where Debian's reference plugins are installed, beside them.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use linux::addr::Addr;
use linux::exec::Exec;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::route::Route;
use linux::{Host, Kernel, Mac, NetNs};
use serde_json::json;

use super::{Figure, ms};
use crate::bin_dir;

/// Pods one after the other.
const SEQUENTIAL: usize = 50;
/// Pods in all, and how many at a time.
const PARALLEL: (usize, usize) = (100, 8);
/// Debian's package `containernetworking-plugins`.
const REFERENCE_DIR: &str = "/usr/lib/cni";

/// A node and its pods as namespaces, gone when dropped.
struct Lab {
    dir: PathBuf,
    node: NetNs,
    pods: Vec<PathBuf>,
}

impl Lab {
    fn new(name: &str, pods: usize) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("seaway-bench-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("state"))?;
        let node = NetNs::create(dir.join("node"))?;
        let mut lab = Self {
            dir,
            node,
            pods: Vec::new(),
        };
        for i in 0..pods {
            let path = lab.dir.join(format!("pod{i}"));
            NetNs::create(&path)?;
            lab.pods.push(path);
        }
        Ok(lab)
    }

    fn netconf(&self, reference: bool) -> String {
        let ranges = json!([[{ "subnet": "10.99.0.0/20" }]]);
        let state = self.dir.join("state");
        let (kind, ipam) = match reference {
            true => (
                "bridge",
                json!({ "type": "host-local", "ranges": ranges, "dataDir": state,
                "routes": [{ "dst": "0.0.0.0/0" }] }),
            ),
            false => (
                "seaway-cni",
                json!({ "type": "seaway", "ranges": ranges, "dataDir": state }),
            ),
        };
        json!({ "cniVersion": "1.0.0", "name": "bench", "type": kind, "bridge": "cni0",
            "isGateway": true, "hairpinMode": true, "mtu": 1450, "ipam": ipam })
        .to_string()
    }

    /// One verb for one pod; the time it took in milliseconds.
    fn call(&self, plugin: &Path, netconf: &str, verb: &str, pod: usize) -> Result<f64> {
        let exec = Exec::new(plugin)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("pod{pod}"))
            .env("CNI_NETNS", &self.pods[pod])
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin.parent().context("the plugin's folder")?)
            .stdin(netconf);
        let start = Instant::now();
        let output = self.node.run(|| exec.output())??;
        let took = ms(start.elapsed());
        if !output.status.success() {
            bail!("{verb} of pod{pod}: {}", output.text());
        }
        Ok(took)
    }

    fn sequential(&self, plugin: &Path, reference: bool) -> Result<(Vec<f64>, Vec<f64>)> {
        let netconf = self.netconf(reference);
        let all = |verb: &str| -> Result<Vec<f64>> {
            (0..SEQUENTIAL)
                .map(|pod| self.call(plugin, &netconf, verb, pod))
                .collect()
        };
        Ok((all("ADD")?, all("DEL")?))
    }

    /// All pods, some at a time; seconds until the last is done.
    fn parallel(&self, plugin: &Path, reference: bool) -> Result<f64> {
        let netconf = self.netconf(reference);
        let (pods, width) = PARALLEL;
        let each = |verb: &'static str| -> Result<f64> {
            let start = Instant::now();
            thread::scope(|scope| {
                let workers: Vec<_> = (0..width)
                    .map(|w| {
                        let netconf = &netconf;
                        scope.spawn(move || -> Result<()> {
                            (w..pods).step_by(width).try_for_each(|pod| {
                                self.call(plugin, netconf, verb, pod).map(|_| ())
                            })
                        })
                    })
                    .collect();
                for worker in workers {
                    let Ok(result) = worker.join() else {
                        bail!("a worker broke")
                    };
                    result?;
                }
                Ok(())
            })?;
            Ok(start.elapsed().as_secs_f64())
        };
        let took = each("ADD")?;
        each("DEL")?;
        Ok(took)
    }

    /// The messages of an ADD, and the deletion, by bare netlink.
    fn floor(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut node = Kernel::open_in(NetNs::open(self.node.path())?)?;
        let name = "floor0".to_owned();
        let mac = Some(Mac::local([1, 2, 3, 4, 5]));
        node.add_bridge(&NewBridge {
            name: name.clone(),
            mac,
            mtu: None,
        })?;
        node.set_link(&name, &LinkChange::up())?;
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for pod in 0..SEQUENTIAL {
            let netns = NetNs::open(&self.pods[pod])?;
            let start = Instant::now();
            node.add_veth(&NewVeth {
                name: "floor1".into(),
                mac: None,
                mtu: Some(1450),
                master: Some(name.clone()),
                peer_name: "eth0".into(),
                peer_mac: None,
                peer_netns: Some(netns.reference()),
            })?;
            node.set_link(
                "floor1",
                &LinkChange {
                    hairpin: Some(true),
                    ..LinkChange::up()
                },
            )?;
            let mut inside = Kernel::open_in(netns)?;
            inside.add_addr("eth0", &Addr::new("10.98.0.2/20".parse()?))?;
            inside.set_link("eth0", &LinkChange::up())?;
            inside.add_route(
                &Route::to("0.0.0.0/0".parse()?)
                    .via("10.98.0.1".parse()?)
                    .dev("eth0"),
            )?;
            adds.push(ms(start.elapsed()));
            let start = Instant::now();
            node.delete_link("floor1")?;
            dels.push(ms(start.elapsed()));
        }
        node.delete_link(&name)?;
        Ok((adds, dels))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in self.pods.iter().chain([&self.dir.join("node")]) {
            if let Err(error) = NetNs::remove(path) {
                crate::say(&format!("{error}"));
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            crate::say(&format!("remove {}: {error}", self.dir.display()));
        }
    }
}

/// All figures of the CNI plugin.
///
/// # Errors
/// The plugin fails, or the kernel refuses something.
pub fn run() -> Result<Vec<Figure>> {
    let plugin = bin_dir()?.join("seaway-cni");
    let lab = Lab::new("seaway", PARALLEL.0)?;
    let (floor_add, floor_del) = lab.floor()?;
    let (add, del) = lab.sequential(&plugin, false)?;
    let all = lab.parallel(&plugin, false)?;
    let mut figures = vec![
        Figure::of("cni.add_ms", "ms", &add, "seaway-cni, exec included").floor(&floor_add),
        Figure::of("cni.del_ms", "ms", &del, "seaway-cni, exec included").floor(&floor_del),
        Figure::of("cni.add100x8_s", "s", &[all], "100 pods, 8 at a time").size(PARALLEL.0),
    ];
    drop(lab);
    let bridge = Path::new(REFERENCE_DIR).join("bridge");
    if bridge.is_file() {
        let lab = Lab::new("reference", PARALLEL.0)?;
        let (add, del) = lab.sequential(&bridge, true)?;
        let all = lab.parallel(&bridge, true)?;
        let note = "reference plugins bridge + host-local";
        figures.push(Figure::of("cni.reference.add_ms", "ms", &add, note));
        figures.push(Figure::of("cni.reference.del_ms", "ms", &del, note));
        figures.push(Figure::of("cni.reference.add100x8_s", "s", &[all], note).size(PARALLEL.0));
    }
    Ok(figures)
}
