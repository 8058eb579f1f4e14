//! `bench cni`: ADD and DEL of one pod by the real plugin and, where Debian's are installed, by the
//! reference plugins, in turns with the same netlink messages alone.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use linux::addr::Addr;
use linux::exec::Exec;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::route::Route;
use linux::{Host, Kernel, Mac, NetNs};
use serde_json::{Value, json};

use super::{Figure, ms};
use crate::program;

/// In the environment: the plugin's file, e.g. as it is given away.
pub const PLUGIN_VARIABLE: &str = "SEAWAY_CNI";

/// Pods one after the other.
const SEQUENTIAL: usize = 50;
/// Pods in all, and how many at a time.
const PARALLEL: (usize, usize) = (100, 8);
/// Debian's package `containernetworking-plugins`.
const REFERENCE_DIR: &str = "/usr/lib/cni";

/// The bridge of the bare messages.
const FLOOR_BRIDGE: &str = "floor0";

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
            let exec = Exec::new(&plugin).stdin(conf.to_string());
            let exec = call_env(exec, kind, verb, pod, &self.pods[pod]);
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

    /// The messages of an ADD, and the deletion, by bare netlink; milliseconds of each.
    fn floor(&self, node: &mut Kernel, pod: usize) -> Result<(f64, f64)> {
        let netns = NetNs::open(&self.pods[pod])?;
        let start = Instant::now();
        node.add_veth(&NewVeth {
            name: "floor1".into(),
            mac: None,
            mtu: Some(1450),
            master: Some(FLOOR_BRIDGE.into()),
            peer_name: "eth0".into(),
            peer_mac: None,
            peer_netns: Some(netns.reference()),
        })?;
        let port = LinkChange {
            hairpin: Some(true),
            ..LinkChange::up()
        };
        node.set_link("floor1", &port)?;
        let mut inside = Kernel::open_in(netns)?;
        inside.add_addr("eth0", &Addr::new("10.98.0.2/20".parse()?))?;
        inside.set_link("eth0", &LinkChange::up())?;
        let route = Route::to("0.0.0.0/0".parse()?).via("10.98.0.1".parse()?);
        inside.add_route(&route.dev("eth0"))?;
        let added = ms(start.elapsed());
        let start = Instant::now();
        node.delete_link("floor1")?;
        Ok((added, ms(start.elapsed())))
    }

    /// The bridge of the bare messages.
    fn make_bridge(&self) -> Result<()> {
        let mut node = Kernel::open_in(NetNs::open(self.node.path())?)?;
        node.add_bridge(&NewBridge {
            name: FLOOR_BRIDGE.into(),
            mac: Some(Mac::local([1, 2, 3, 4, 5])),
            mtu: None,
        })?;
        node.set_link(FLOOR_BRIDGE, &LinkChange::up())?;
        Ok(())
    }

    /// The most memory that the plugin has at any time of an ADD, in megabytes: asked when it is about to
    /// write its result into a pipe that is full.
    fn resident(&self, kind: &Kind, pod: usize) -> Result<f64> {
        let (plugin, conf) = self.chain(kind, pod).swap_remove(0);
        let (file, pipe) = (self.dir.join("conf"), self.dir.join("pipe"));
        std::fs::write(&file, conf.to_string())?;
        let script = r#"mkfifo "$2"; exec 9<>"$2"; head -c 65536 /dev/zero >&9
            "$0" <"$1" >&9 &
            until grep -q '^1 0x1 ' /proc/$!/syscall; do sleep 0.01; done
            sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' /proc/$!/status
            head -c 65536 <&9 >/dev/null; wait"#;
        let exec = Exec::new("sh")
            .args(["-c", script])
            .arg(&plugin)
            .arg(&file)
            .arg(&pipe);
        let exec = call_env(exec, kind, "ADD", pod, &self.pods[pod]);
        let text = self.node.run(|| exec.run())??.text();
        let kilobytes: u32 = text.trim().parse().context("VmHWM")?;
        self.call(kind, "DEL", pod)?;
        Ok(f64::from(kilobytes) / 1024.0)
    }
}

/// What a runtime tells a plugin of the pod.
fn call_env(exec: Exec, kind: &Kind, verb: &str, pod: usize, netns: &Path) -> Exec {
    exec.env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("pod{pod}"))
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", &kind.dir)
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

impl Kind {
    /// Ours, and the reference plugins where they are.
    fn all(full: bool) -> Result<Vec<Self>> {
        let own = plugin()?;
        let reference = PathBuf::from(REFERENCE_DIR);
        let mut all = vec![Self {
            reference: false,
            full,
            dir: own.parent().context("a folder")?.to_owned(),
        }];
        if reference.join("bridge").is_file() {
            all.push(Self {
                reference: true,
                full,
                dir: reference,
            });
        }
        Ok(all)
    }

    fn figure(&self, what: &str) -> String {
        let whose = if self.reference { "reference." } else { "" };
        let full = if self.full { "full." } else { "" };
        format!("cni.{whose}{full}{what}")
    }

    fn note(&self) -> &'static str {
        match (self.reference, self.full) {
            (false, false) => "seaway-cni, start of the program included",
            (false, true) => "seaway-cni with masquerade and a host port",
            (true, false) => "reference plugins bridge + host-local",
            (true, true) => "reference plugins bridge with masquerade + host-local + portmap",
        }
    }
}

/// ADD and DEL of one kind of plugins, in milliseconds.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

/// All figures of one kind of plugins, in turns with the bare messages. The kinds come one after the other:
/// what the kernel does later for the one would be the other's.
fn measured(kind: &Kind, floor: &Lab) -> Result<Vec<Figure>> {
    let whose = if kind.reference { "reference" } else { "own" };
    let lab = Lab::new(&format!("{whose}{}", kind.full), PARALLEL.0)?;
    let mut bare = Kernel::open_in(NetNs::open(floor.node.path())?)?;
    let (mut times, mut floors) = (Times::default(), Times::default());
    for verb in ["ADD", "DEL"] {
        for pod in 0..SEQUENTIAL {
            let (add, del) = floor.floor(&mut bare, pod)?;
            floors.add.push(add);
            floors.del.push(del);
            let took = lab.call(kind, verb, pod)?;
            if verb == "ADD" {
                times.add.push(took);
            } else {
                times.del.push(took);
            }
        }
    }
    let figure = |what: &str, unit, samples: &[f64]| {
        Figure::of(&kind.figure(what), unit, samples, kind.note())
    };
    let all = lab.parallel(kind)?;
    let mut figures = vec![
        figure("add_ms", "ms", &times.add).floor(&floors.add),
        figure("del_ms", "ms", &times.del).floor(&floors.del),
        figure("add100x8_s", "s", &[all]).size(PARALLEL.0),
    ];
    if !kind.reference {
        figures.push(figure("resident_mb", "MB", &[lab.resident(kind, 0)?]));
    }
    Ok(figures)
}

/// The plugin that is measured: what the environment names, else the one beside this program.
fn plugin() -> Result<PathBuf> {
    std::env::var_os(PLUGIN_VARIABLE).map_or_else(|| program("seaway-cni"), |path| Ok(path.into()))
}

/// All figures of the CNI plugin.
///
/// # Errors
/// The plugin fails, or the kernel refuses something.
pub fn run() -> Result<Vec<Figure>> {
    let size = std::fs::metadata(plugin()?)?.len();
    let megabytes = f64::from(u32::try_from(size / 1000).unwrap_or(u32::MAX)) / 1000.0;
    let note = "the plugin's file";
    let mut figures = vec![Figure::of("cni.binary_mb", "MB", &[megabytes], note)];
    let floor = Lab::new("floor", SEQUENTIAL)?;
    floor.make_bridge()?;
    for full in [false, true] {
        for kind in Kind::all(full)? {
            figures.extend(measured(&kind, &floor)?);
        }
    }
    Ok(figures)
}
