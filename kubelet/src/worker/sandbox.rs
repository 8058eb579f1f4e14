//! The sandbox and its network: network namespace, CNI plugins and the runtime's sandbox, up and down, and
//! what is left of a pod on disk.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::task::failed;
use super::{Outcome, Worker};
use crate::checkpoint::{self, Checkpoint};
use crate::cni::{self, Attachment};
use crate::context::{Context, host_file};
use crate::dns;
use crate::events::Severity;
use crate::pod::{self, PodId};
use crate::qos;
use crate::rt::SandboxSpec;
use crate::soft::Step;
use crate::volumes;

/// What pods with a network of their own get, as from containerd 2 and CRI-O: ports below 1024 and ping
/// need no privilege there.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

impl Worker {
    pub(super) fn begin_sandbox(&mut self) {
        self.soft.sandbox = Step::Running;
        self.tell_unread_wishes();
        let pod = Arc::clone(&self.pod);
        self.spawn(move |ctx| Outcome::SandboxUp(up(ctx, &pod)));
    }

    /// Tells of what the pod wants of its network and does not get.
    fn tell_unread_wishes(&self) {
        if !pod::host_network(&self.pod) {
            for text in cni::wishes(&self.pod).1 {
                self.event(None, Severity::Warning, "InvalidBandwidth", &text);
            }
        }
    }

    pub(super) fn begin_sandbox_removal(&mut self) {
        self.soft.sandbox = Step::Running;
        let id = self.id.clone();
        self.spawn(move |ctx| Outcome::SandboxDown(down(ctx, &id)));
    }

    pub(super) fn sandbox_is_up(&mut self, result: Result<Vec<IpAddr>, String>) {
        match result {
            Ok(ips) => {
                self.tries.remove("sandbox");
                if let Some(sandbox) = &mut self.observed.sandbox {
                    sandbox.ips.clone_from(&ips);
                }
                self.ips = ips;
                self.soft.sandbox = Step::Done;
            }
            Err(message) => {
                let text = format!("Failed to create pod sandbox: {message}");
                self.event(None, Severity::Warning, "FailedCreatePodSandBox", text);
                let tries = self.tries_of("sandbox");
                self.soft.sandbox = failed("FailedCreatePodSandBox", message, tries);
            }
        }
    }

    pub(super) fn sandbox_is_down(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.tries.remove("sandbox");
                self.ips.clear();
                self.soft.sandbox = Step::Idle;
            }
            Err(message) => {
                let text = format!("error killing pod: {message}");
                self.event(None, Severity::Warning, "FailedKillPod", text);
                let tries = self.tries_of("sandbox");
                self.soft.sandbox = failed("FailedKillPod", message, tries);
            }
        }
    }
}

/// Makes the sandbox with its network; the pod's addresses. What a failed or interrupted try left is
/// taken down first, and so is what this one made when it fails.
fn up(ctx: &Context, pod: &Pod) -> Result<Vec<IpAddr>, String> {
    let id = PodId::of(pod);
    let root = &ctx.node.root_dir;
    if checkpoint::load(root, &id.uid).is_some_and(|r| r.network.is_some()) {
        take_down_network(ctx, &id)?;
    }
    let save = |network: Option<Attachment>| {
        let mut pod = pod.clone();
        pod.metadata.managed_fields = None;
        let record = Checkpoint { pod, network };
        checkpoint::save(root, &id.uid, &record).map_err(|e| format!("write checkpoint: {e}"))
    };
    let dir = ctx.node.pod_dir(&id.uid);
    let etc = |ips: &[IpAddr]| etc_files(ctx, pod, &dir, ips);
    let make = || {
        let spec = sandbox_spec(ctx, pod);
        ctx.rt.create_sandbox(spec).map_err(|e| e.to_string())
    };
    if pod::host_network(pod) {
        save(None)?;
        etc(&[])?;
        make()?;
        return Ok(Vec::new());
    }
    let network = ctx.net.current().map_err(|e| e.to_string())?;
    let netns = ctx.node.netns(&id.uid);
    // On disk before anything is made, so that a kubelet killed here undoes it later.
    let planned = Attachment {
        network,
        netns: netns.clone(),
        result: serde_json::Value::Null,
        wishes: cni::wishes(pod).0,
    };
    save(Some(planned.clone()))?;
    ctx.net.make_namespace(&netns).map_err(|e| e.to_string())?;
    // The network and the runtime's processes need only the namespace, not each other.
    let (added, made) = std::thread::scope(|scope| {
        let add = scope.spawn(|| ctx.net.add(&planned, &id));
        let made = make();
        let added = add
            .join()
            .map_err(|_panic| "the call of the CNI plugin panicked".to_owned());
        (added, made)
    });
    let done = added
        .and_then(|added| added.map_err(|e| e.to_string()))
        .and_then(|attachment| {
            let ips = attachment.ips();
            save(Some(attachment))?;
            etc(&ips)?;
            Ok(ips)
        });
    match (done, made) {
        (Ok(ips), Ok(())) => Ok(ips),
        (done, made) => {
            let why = made.err().or(done.err()).unwrap_or_default();
            if let Err(e) = down(ctx, &id) {
                tracing::warn!(pod = %id, error = e, "a failed sandbox is not quite gone");
            }
            Err(why)
        }
    }
}

/// Takes the sandbox and its network down. Nothing there is fine.
pub(super) fn down(ctx: &Context, id: &PodId) -> Result<(), String> {
    // Both take their time in the kernel, and neither needs the other.
    std::thread::scope(|scope| {
        let network = scope.spawn(|| take_down_network(ctx, id));
        let sandbox = ctx.rt.remove_sandbox(&id.uid).map_err(|e| e.to_string());
        let network = network
            .join()
            .map_err(|_panic| "the call of the CNI plugin panicked".to_owned());
        sandbox.and(network?)
    })
}

fn take_down_network(ctx: &Context, id: &PodId) -> Result<(), String> {
    let root = &ctx.node.root_dir;
    let Some(mut record) = checkpoint::load(root, &id.uid) else {
        return Ok(());
    };
    let Some(attachment) = record.network.take() else {
        return Ok(());
    };
    ctx.net.del(&attachment, id).map_err(|e| e.to_string())?;
    let gone = ctx.net.remove_namespace(&attachment.netns);
    gone.map_err(|e| e.to_string())?;
    checkpoint::save(root, &id.uid, &record).map_err(|e| format!("write checkpoint: {e}"))
}

/// Removes the pod's volumes and files, and with `gone` its logs too.
pub(super) fn cleanup(ctx: &Context, id: &PodId, gone: bool) -> Result<(), String> {
    take_down_network(ctx, id)?;
    volumes::remove(&ctx.node.root_dir, &id.uid).map_err(|e| e.to_string())?;
    if gone {
        let dir = ctx.node.log_dir(id);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("remove {}: {e}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn sandbox_spec(ctx: &Context, pod: &Pod) -> SandboxSpec {
    let id = PodId::of(pod);
    let spec = pod::spec(pod);
    let host_network = pod::host_network(pod);
    let context = spec.security_context.as_ref();
    let sysctls = context.and_then(|c| c.sysctls.as_ref());
    let own = sysctls.into_iter().flatten();
    let own = own.map(|s| (s.name.clone(), s.value.clone()));
    let defaults = SYSCTLS.iter().filter(|_| !host_network);
    let defaults = defaults.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let sysctls: BTreeMap<_, _> = defaults.chain(own).collect();
    let hostname = match (
        spec.set_hostname_as_fqdn,
        pod::fqdn(pod, &ctx.node.dns.domain),
    ) {
        (Some(true), Some(fqdn)) => fqdn,
        _ => pod::hostname(pod),
    };
    SandboxSpec {
        id: id.uid.clone(),
        name: id.name,
        namespace: id.namespace,
        hostname,
        netns: (!host_network).then(|| ctx.node.netns(&id.uid)),
        cgroup_parent: ctx.node.cgroup(&id.uid),
        limits: qos::pod_limits(pod),
        sysctls,
        share_pid: spec.share_process_namespace == Some(true),
        host_network,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        ..SandboxSpec::default()
    }
}

/// The files below /etc that every container of the pod sees.
fn etc_files(ctx: &Context, pod: &Pod, dir: &Path, ips: &[IpAddr]) -> Result<(), String> {
    let cluster = &ctx.node.dns;
    let host = host_file(Path::new("/etc/hosts"));
    let files = [
        ("resolv.conf", dns::resolv_conf(pod, cluster)),
        ("etc-hosts", dns::hosts(pod, ips, &cluster.domain, &host)),
        ("hostname", format!("{}\n", pod::hostname(pod))),
    ];
    for (name, text) in files {
        let file = dir.join(name);
        fs::write(&file, text).map_err(|e| format!("write {}: {e}", file.display()))?;
    }
    Ok(())
}
