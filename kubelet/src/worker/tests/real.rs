//! A pod on the real runtime, in the test machine's own kernel.

use std::fs;
use std::path::PathBuf;

use ::runtime::image::build::Archive;
use ::runtime::{ImageConfig, Runtime, RuntimeConfig};

use super::*;
use crate::cni::Plugins;
use crate::rt::real::RealRuntime;

/// A pod network of a bare namespace: its loopback, and an address that nobody asks for.
struct LoopbackNet;

impl Network for LoopbackNet {
    fn current(&self) -> Result<NetworkList, CniError> {
        FakeNet::default().current()
    }
    fn add(&self, planned: &Attachment, pod: &PodId) -> Result<Attachment, CniError> {
        FakeNet::default().add(planned, pod)
    }
    fn del(&self, _: &Attachment, _: &PodId) -> Result<(), CniError> {
        Ok(())
    }
    fn make_namespace(&self, path: &Path) -> linux::Result<()> {
        plugins().make_namespace(path)
    }
    fn remove_namespace(&self, path: &Path) -> linux::Result<()> {
        plugins().remove_namespace(path)
    }
}

fn plugins() -> Plugins {
    Plugins {
        conf_dir: PathBuf::new(),
        bin_dir: PathBuf::new(),
    }
}

/// `target/debug/seaway-shim`, when it was built.
fn shim() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let shim = test.parent()?.parent()?.join("seaway-shim");
    shim.is_file().then_some(shim)
}

/// Takes down what a failed test leaves.
struct Residue(PathBuf, String);

impl Drop for Residue {
    fn drop(&mut self) {
        let groups = linux::cgroup::Hierarchies::detect().unwrap();
        ::runtime::destroy_all(&self.0.join("runtime")).ok();
        groups.kill_all(&self.1).ok();
        linux::mount::unmount_below(&self.0).ok();
        groups.remove(&self.1).ok();
    }
}

fn load_image(runtime: &Runtime, dir: &Path) {
    let busybox = linux::exec::which("busybox").unwrap();
    let config = ImageConfig {
        env: vec![("PATH".into(), "/bin".into())],
        ..ImageConfig::default()
    };
    let image = Archive::new("sample:1")
        .config(config)
        .copy("bin/busybox", &busybox, 0o755)
        .link("bin/sh", "busybox")
        .link("bin/sleep", "busybox")
        .link("bin/cat", "busybox")
        .link("bin/test", "busybox");
    let archive = dir.join("sample.tar");
    image.write(&archive).unwrap();
    runtime.images().load(&archive).unwrap();
}

const POD: &str = "p: {terminationGracePeriodSeconds: 5, volumes: [{name: e, emptyDir: {}}],
    initContainers: [{name: i, IMAGE, command: [sh, -c, \"echo made > /e/file\"], volumeMounts: [{name: e, mountPath: /e}]}],
    containers: [{name: c, IMAGE, command: [sh, -c, \"cat /e/file; echo name-$HOSTNAME; trap 'echo bye > /dev/termination-log; exit 0' TERM; while :; do sleep 0.05; done\"],
     readinessProbe: {exec: {command: [test, -e, /e/file]}, periodSeconds: 1},
     resources: {limits: {cpu: 500m, memory: 32Mi}}, volumeMounts: [{name: e, mountPath: /e}]}]}";

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_real_runtime() {
    let name = "a_pod_on_the_real_runtime";
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED {name}: needs root");
    }
    let Some(shim) = shim() else {
        return println!("SKIPPED {name}: seaway-shim is not built");
    };
    if linux::exec::which("busybox").is_none() {
        return println!("SKIPPED {name}: busybox is not installed");
    }
    let mut lab = Lab::new(POD).await;
    lab.handle.task.take().unwrap().abort();
    let dir = lab.dir.path().canonicalize().unwrap();
    let cgroup = format!("/seaway-test-kubelet-{}", std::process::id());
    let _residue = Residue(dir.clone(), cgroup.clone());
    let runtime = Runtime::open(RuntimeConfig {
        root: dir.join("runtime"),
        images: dir.join("images"),
        shim: Some(shim),
        cgroup_root: cgroup.clone(),
    })
    .unwrap();
    load_image(&runtime, &dir);
    let rt = Arc::new(RealRuntime::new(runtime));
    let node = Node {
        cgroup_root: cgroup.clone(),
        root_dir: dir.join("root2"),
        ..(*lab.ctx.node).clone()
    };
    lab.ctx.node = Arc::new(node);
    lab.ctx.rt = rt.clone();
    lab.ctx.net = Arc::new(LoopbackNet);
    (lab.handle, lab.ended) = start(&lab.ctx, &lab.pod, &*rt);
    lab.wait("Running c+up(0)").await;
    let id = PodId::of(&lab.pod);
    let log = crate::spec::log_path(&lab.ctx.node.log_dir(&id), "c", 0);
    let logged =
        || fs::read_to_string(&log).is_ok_and(|t| t.contains("F made") && t.contains("F name-p"));
    assert!(until(logged).await);
    lab.delete().await;
    let api = lab.api.clone();
    assert!(until(|| !api.deleted.lock().unwrap().is_empty()).await);
    let patches = api.patches.lock().unwrap().clone();
    let text = serde_json::to_string(patches.last().unwrap()).unwrap();
    assert!(text.contains("bye") && text.contains("Succeeded"), "{text}");
    lab.handle.tell(Msg::Gone).await;
    assert_eq!(lab.ended.recv().await.as_deref(), Some("uid-p"));
    assert!(rt.pods().unwrap().is_empty());
    let below = |m: &linux::mount::Mount| m.target.starts_with(&dir);
    assert!(!linux::mount::mounts().unwrap().iter().any(below));
    let groups = linux::cgroup::Hierarchies::detect().unwrap();
    let pods = groups.dirs(&format!("{cgroup}/kubepods/poduid-p"));
    assert!(pods.iter().all(|d| !d.exists()));
}
