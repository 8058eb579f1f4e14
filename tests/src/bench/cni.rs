//! `bench cni`: ADD and DEL of one pod by the real plugin, beside the same netlink messages alone
//! and, where Debian's reference plugins are installed, beside them.

use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};
use linux::addr::Addr;
use linux::exec::Exec;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::route::Route;
use linux::{Host, Kernel, Mac, NetNs};
use serde_json::{Value, json};

use super::{Figure, ms};
use crate::bin_dir;

/// Pods one after the other.
const SEQUENTIAL: usize = 50;
/// Pods in all, and how many at a time.
const PARALLEL: (usize, usize) = (100, 8);
/// Debian's package `containernetworking-plugins`.
const REFERENCE_DIR: &str = "/usr/lib/cni";

/// Whose plugins, and how much they do.
struct Kind {
    /// The reference plugins, not ours.
    reference: bool,
    /// With masquerade and a host port for each pod.
    full: bool,
    /// Where the programs are.
    dir: PathBuf,
}

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

    /// The plugins that a runtime would call one after the other for pod number `pod`.
    fn chain(&self, kind: &Kind, pod: usize) -> Vec<(PathBuf, Value)> {
        let mut ipam = json!({
            "type": if kind.reference { "host-local" } else { "seaway" },
            "ranges": [[{ "subnet": "10.99.0.0/20" }]], "dataDir": self.dir.join("state"),
        });
        if kind.reference {
            ipam["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
        }
        let name = if kind.reference {
            "bridge"
        } else {
            "seaway-cni"
        };
        let mut link = json!({ "cniVersion": "1.0.0", "name": "bench", "type": name, "bridge": "cni0",
            "isGateway": true, "hairpinMode": true, "mtu": 1450, "ipam": ipam });
        let mut chain = Vec::new();
        let ports = json!({ "portMappings": [
            { "hostPort": 20_000 + pod, "containerPort": 80, "protocol": "tcp" }
        ] });
        if kind.full {
            link["ipMasq"] = json!(true);
            if kind.reference {
                let portmap = json!({ "cniVersion": "1.0.0", "name": "bench", "type": "portmap",
                    "snat": true, "runtimeConfig": ports });
                chain.push((kind.dir.join("portmap"), portmap));
            } else {
                link["runtimeConfig"] = ports;
            }
        }
        chain.insert(0, (kind.dir.join(name), link));
        chain
    }

    /// One verb for one pod, through the whole chain; the time it took in milliseconds.
    fn call(&self, kind: &Kind, verb: &str, pod: usize) -> Result<f64> {
        let mut chain = self.chain(kind, pod);
        if verb == "DEL" {
            chain.reverse();
        }
        let mut previous = Value::Null;
        let start = Instant::now();
        for (plugin, mut conf) in chain {
            if !previous.is_null() {
                conf["prevResult"] = previous;
            }
            let exec = Exec::new(&plugin)
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", format!("pod{pod}"))
                .env("CNI_NETNS", &self.pods[pod])
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", &kind.dir)
                .stdin(conf.to_string());
            let output = self.node.run(|| exec.output())??;
            if !output.status.success() {
                bail!(
                    "{verb} of pod{pod} by {}: {}",
                    plugin.display(),
                    output.text()
                );
            }
            previous = serde_json::from_str(&output.text()).unwrap_or(Value::Null);
        }
        Ok(ms(start.elapsed()))
    }

    fn sequential(&self, kind: &Kind) -> Result<(Vec<f64>, Vec<f64>)> {
        let all = |verb: &str| -> Result<Vec<f64>> {
            (0..SEQUENTIAL)
                .map(|pod| self.call(kind, verb, pod))
                .collect()
        };
        Ok((all("ADD")?, all("DEL")?))
    }

    /// All pods, some at a time; seconds until the last is done.
    fn parallel(&self, kind: &Kind) -> Result<f64> {
        let (pods, width) = PARALLEL;
        let each = |verb: &'static str| -> Result<f64> {
            let start = Instant::now();
            thread::scope(|scope| {
                let workers: Vec<_> = (0..width)
                    .map(|w| {
                        scope.spawn(move || -> Result<()> {
                            (w..pods)
                                .step_by(width)
                                .try_for_each(|pod| self.call(kind, verb, pod).map(|_| ()))
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
    let own = bin_dir()?;
    let lab = Lab::new("floor", SEQUENTIAL)?;
    let (floor_add, floor_del) = lab.floor()?;
    drop(lab);
    let size = std::fs::metadata(own.join("seaway-cni"))?.len();
    let megabytes = f64::from(u32::try_from(size / 1000).unwrap_or(u32::MAX)) / 1000.0;
    let note = "as built for this run";
    let mut figures = vec![Figure::of("cni.binary_mb", "MB", &[megabytes], note)];
    let reference = PathBuf::from(REFERENCE_DIR);
    for full in [false, true] {
        for (reference, dir) in [(false, &own), (true, &reference)] {
            let name = if reference { "bridge" } else { "seaway-cni" };
            if !dir.join(name).is_file() {
                continue;
            }
            let kind = Kind {
                reference,
                full,
                dir: dir.clone(),
            };
            let whose = if reference { "reference." } else { "" };
            let what = if full { "full." } else { "" };
            let lab = Lab::new(&format!("{name}{full}"), PARALLEL.0)?;
            let (add, del) = lab.sequential(&kind)?;
            let all = lab.parallel(&kind)?;
            let note = match (reference, full) {
                (false, false) => "seaway-cni, exec included",
                (false, true) => "seaway-cni with masquerade and a host port",
                (true, false) => "reference plugins bridge + host-local",
                (true, true) => "reference plugins bridge with masquerade + host-local + portmap",
            };
            let figure = |verb: &str, times: &[f64], floor: &[f64]| {
                let name = format!("cni.{whose}{what}{verb}_ms");
                Figure::of(&name, "ms", times, note).floor(floor)
            };
            figures.push(figure("add", &add, &floor_add));
            figures.push(figure("del", &del, &floor_del));
            let name = format!("cni.{whose}{what}add100x8_s");
            figures.push(Figure::of(&name, "s", &[all], note).size(PARALLEL.0));
        }
    }
    Ok(figures)
}
