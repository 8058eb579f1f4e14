//! Debian's containerd runs pods on our plugin: sandboxes made and removed through its CRI, from an
//! image made here. Without a CRI client at hand, requests are written by hand (gRPC is a frame
//! around a protobuf message) and sent by curl.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use linux::Host;
use linux::NetNs;
use linux::exec::{Exec, which};
use serde_json::json;

use crate::lab::{Node, PLUGIN, V4, V6, wait_until};
use crate::ports::firewall;

/// The image of sandboxes.
const IMAGE: &str = "localhost/pause:1";

/// containerd, and where it keeps things. It ends when this is dropped.
struct Containerd {
    dir: tempfile::TempDir,
    thread: Option<thread::JoinHandle<()>>,
}

impl Containerd {
    fn start(node: &Node) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("net.d")).unwrap();
        let ranges: Vec<_> = [V4, V6].map(|r| json!([{"subnet": r}])).into();
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{
            "type": "seaway-cni", "bridge": "cni0",
            "capabilities": {"portMappings": true, "bandwidth": true},
            "ipam": {"type": "seaway", "dataDir": node.leases.path(), "ranges": ranges}
        }]});
        fs::write(at("pods.conflist"), list.to_string()).unwrap();
        let install = Exec::new(PLUGIN)
            .args(["install", "--name", "loopback", "--bin-dir"])
            .arg(at("bin"))
            .arg("--conf-dir")
            .arg(at("net.d"))
            .arg("--conf")
            .arg(at("pods.conflist"));
        install.run().unwrap();
        fs::write(at("config.toml"), config(dir.path())).unwrap();
        let netns = NetNs::open(node.netns.path()).unwrap();
        let (conf, pid) = (at("config.toml"), at("pid"));
        let thread = thread::spawn(move || {
            // The shell tells its own number, which is containerd's after `exec`.
            let script = "echo $$ > \"$0\"; exec containerd -c \"$1\"";
            let exec = Exec::new("sh").args(["-c", script]).arg(pid).arg(conf);
            let exec = exec.timeout(Duration::from_secs(600));
            drop(netns.run(|| exec.output()));
        });
        Self {
            dir,
            thread: Some(thread),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ctr(&self, args: &[&str]) -> Exec {
        let exec = Exec::new("ctr").arg("-a").arg(self.at("c.sock"));
        exec.args(["-n", "k8s.io"]).args(args)
    }

    /// One call of the CRI; the answer's message.
    fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        fs::write(self.at("request"), &frame).unwrap();
        fs::write(self.at("answer"), "").unwrap();
        let exec = Exec::new("curl")
            .args([
                "-sS",
                "--http2-prior-knowledge",
                "--max-time",
                "60",
                "--unix-socket",
            ])
            .arg(self.at("c.sock"))
            .args([
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
                "-D",
            ])
            .arg(self.at("headers"))
            .arg("-o")
            .arg(self.at("answer"))
            .arg("--data-binary")
            .arg(format!("@{}", self.at("request").display()))
            .arg(format!(
                "http://localhost/runtime.v1.RuntimeService/{method}"
            ));
        exec.run().map_err(|e| e.to_string())?;
        let headers = fs::read_to_string(self.at("headers")).unwrap();
        if !headers.lines().any(|line| line.trim() == "grpc-status: 0") {
            return Err(headers);
        }
        let answer = fs::read(self.at("answer")).unwrap();
        Ok(answer.get(5..).unwrap_or_default().to_vec())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.at("pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            let pid = nix::unistd::Pid::from_raw(pid);
            // It may have ended by itself.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        // What a sandbox that was not removed has mounted.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = self.dir.path().display().to_string();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if point.starts_with(&below) {
                drop(Exec::new("umount").args(["-l", point]).run());
            }
        }
    }
}

fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
         [grpc]\naddress = \"{dir}/c.sock\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\n\
         disable_tcp_service = true\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"{dir}/bin\"\nconf_dir = \"{dir}/net.d\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
         default_runtime_name = \"runc\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n"
    )
}

/// An OCI archive of one layer with busybox, which serves HTTP on port 80.
fn image(busybox: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("oci/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let tar = |from: &Path, what: &str, to: &Path| {
        let exec = Exec::new("tar").arg("-cf").arg(to).arg("-C").arg(from);
        exec.arg(what).run().unwrap();
    };
    let put = |bytes: &[u8]| {
        let file = dir.path().join("blob");
        fs::write(&file, bytes).unwrap();
        let text = Exec::new("sha256sum").arg(&file).run().unwrap().text();
        let digest = text.split(' ').next().unwrap().to_owned();
        fs::rename(&file, blobs.join(&digest)).unwrap();
        json!({"digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let described = |kind: &str, mut blob: serde_json::Value| {
        blob["mediaType"] = json!(format!("application/vnd.oci.image.{kind}"));
        blob
    };
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::copy(busybox, dir.path().join("root/busybox")).unwrap();
    let layer = dir.path().join("layer");
    tar(&dir.path().join("root"), "busybox", &layer);
    let layer = put(&fs::read(layer).unwrap());
    let command = ["/busybox", "httpd", "-f", "-p", "80", "-h", "/"];
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": command},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = put(config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", config),
        "layers": [described("layer.v1.tar", layer)]});
    let mut manifest = described("manifest.v1+json", put(manifest.to_string().as_bytes()));
    manifest["annotations"] = json!({"io.containerd.image.name": IMAGE});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    let oci = dir.path().join("oci");
    fs::write(oci.join("index.json"), index.to_string()).unwrap();
    fs::write(oci.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    tar(&oci, ".", &dir.path().join("image.tar"));
    dir
}

/// A number as protobuf writes it.
fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number > 127 {
        out.push(u8::try_from(number & 127).unwrap() | 128);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let length = u64::try_from(value.len()).unwrap();
    [varint(field << 3 | 2), varint(length), value.to_vec()].concat()
}

/// `RunPodSandboxRequest` of `runtime/v1/api.proto`.
fn sandbox(name: &str, host_port: u64) -> Vec<u8> {
    let metadata = [
        bytes(1, name),
        bytes(2, format!("uid-{name}")),
        bytes(3, "default"),
    ]
    .concat();
    let port = [number(2, 80), number(3, host_port)].concat();
    let config = [
        bytes(1, metadata),
        bytes(2, name),
        bytes(5, port),
        bytes(8, []),
    ];
    bytes(1, config.concat())
}

/// The first line of what a web server says.
fn get(from: &NetNs, target: SocketAddr) -> Result<String, String> {
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(5));
    let mut stream = from.run(connect).unwrap().map_err(|e| e.to_string())?;
    stream
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .map_err(|e| e.to_string())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn containerd_runs_pods_on_it() {
    let test = "containerd_runs_pods_on_it";
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    for program in ["containerd", "ctr", "runc", "curl", "busybox"] {
        if which(program).is_none() {
            println!("SKIPPED {test}: {program} is not installed (cargo xtask setup)");
            return;
        }
    }
    node.kernel()
        .set_link("lo", &linux::link::LinkChange::up())
        .unwrap();
    let image = image(&which("busybox").unwrap());
    let containerd = Containerd::start(&node);
    wait_until("containerd to answer", || containerd.call("Version", &[]));
    let archive = image.path().join("image.tar").display().to_string();
    let import = containerd.ctr(&["images", "import", &archive]);
    wait_until("the image to be there", || {
        import.run().map_err(|e| e.to_string())
    });
    // `NetworkReady`: the configuration is read, and the plugin found.
    wait_until("the network to be ready", || {
        let status = containerd.call("Status", &[])?;
        let text = String::from_utf8_lossy(&status).into_owned();
        let ready = text.contains("NetworkReady\u{10}\u{1}");
        if ready { Ok(()) } else { Err(text) }
    });
    let mut made = Vec::new();
    for (name, port) in [("web", 18_080), ("other", 18_081)] {
        let answer = containerd
            .call("RunPodSandbox", &sandbox(name, port))
            .unwrap();
        // `pod_sandbox_id` is the only field.
        made.push(String::from_utf8(answer[2..].to_vec()).unwrap());
    }
    let leases = node.leases();
    assert_eq!(leases.len(), 4, "{leases:?}");
    for (at, port) in [(2, 18_080), (3, 18_081)] {
        for target in [format!("10.244.7.{at}:80"), format!("127.0.0.1:{port}")] {
            let target = target.parse().unwrap();
            let said = wait_until("the pod to serve", || get(&node.netns, target));
            assert!(said.starts_with("HTTP/1"), "{said}");
        }
    }
    let status = containerd
        .call("PodSandboxStatus", &bytes(1, &made[0]))
        .unwrap();
    let status = String::from_utf8_lossy(&status).into_owned();
    assert!(
        status.contains("10.244.7.2") && status.contains("fd00:10:244:7::2"),
        "{status}"
    );
    for id in &made {
        containerd.call("StopPodSandbox", &bytes(1, id)).unwrap();
        containerd.call("RemovePodSandbox", &bytes(1, id)).unwrap();
    }
    assert!(node.leases().is_empty());
    assert_eq!(node.links(), ["cni0", "lo"]);
    let left = firewall(&node);
    assert!(!left.contains("18080") && !left.contains("18081"), "{left}");
}
