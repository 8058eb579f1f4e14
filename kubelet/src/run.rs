//! From the flags to everything running.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, Resource, Selection};
use runtime::{Runtime, RuntimeConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::cni::Plugins;
use crate::config::Config;
use crate::context::{Board, Context, Node, blocking, host_file};
use crate::dns;
use crate::events::{self, Recorder};
use crate::kube_api::objects::Objects;
use crate::kube_api::real::RealApi;
use crate::manager::{Inputs, Manager};
use crate::node::{Keeper, facts};
use crate::notice::Notice;
use crate::rt::PodRuntime;
use crate::rt::real::RealRuntime;
use crate::{server, services, tls};

/// Messages that may wait.
const QUEUE: usize = 64;
/// Loading an image changes several files; the last one makes it usable.
const IMAGES_QUIET: Duration = Duration::from_millis(50);

fn node(config: &Config) -> Node {
    let (cpu_milli, memory_bytes) = facts::capacity();
    let netns = config.netns_dir.clone();
    Node {
        name: config.node_name.clone(),
        ips: config.node_ip.clone(),
        root_dir: config.root_dir.clone(),
        logs_dir: config.pod_logs_dir.clone(),
        netns_dir: netns.unwrap_or_else(|| config.root_dir.join("netns")),
        cgroup_root: config.cgroup_root.clone(),
        dns: dns::Cluster {
            servers: config.cluster_dns.clone(),
            domain: config.cluster_domain.clone(),
            host_resolv_conf: host_file(&config.resolv_conf),
        },
        cpu_milli,
        memory_bytes,
    }
}

/// Makes a directory and gives its whole path: paths go into mounts and to plugins.
fn directory(path: &PathBuf, flag: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(path)
        .and_then(|()| fs::canonicalize(path))
        .with_context(|| format!("{flag} {}", path.display()))
}

/// Runs until SIGTERM or SIGINT. Pods go on without us.
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    config.check().map_err(anyhow::Error::msg)?;
    config.root_dir = directory(&config.root_dir, "--root-dir")?;
    config.pod_logs_dir = directory(&config.pod_logs_dir, "--pod-logs-dir")?;
    config.images_dir = directory(&config.images_dir, "--images-dir")?;
    config.cni_conf_dir = directory(&config.cni_conf_dir, "--cni-conf-dir")?;
    let mut node = node(&config);
    node.netns_dir = directory(&node.netns_dir, "--netns-dir")?;
    let node = Arc::new(node);
    let tls = tls::server_config(&config.tls_cert, &config.tls_key, &config.client_ca)?;
    let listener = server::bind(config.bind)
        .await
        .with_context(|| format!("--bind {}", config.bind))?;
    let client = Client::connect(Some(&config.kubeconfig)).await?;
    let open = RuntimeConfig {
        root: config.runtime_dir.clone(),
        images: config.images_dir.clone(),
        shim: None,
        cgroup_root: config.cgroup_root.clone(),
    };
    let opened = blocking(move || Runtime::open(open)).await;
    let rt: Arc<dyn PodRuntime> = Arc::new(RealRuntime::new(opened.context("--runtime-dir")?));
    let net = Arc::new(Plugins {
        conf_dir: config.cni_conf_dir.clone(),
        bin_dir: config.cni_bin_dir.clone(),
    });
    let (recorder, happened) = Recorder::new();
    let (object_changes, objects) = mpsc::channel(QUEUE);
    let (tell_services, services) = watch::channel(None);
    let ctx = Context {
        node: node.clone(),
        rt: rt.clone(),
        net: net.clone(),
        api: Arc::new(RealApi::new(
            client.clone(),
            Objects::new(client.clone(), object_changes),
        )),
        events: recorder.clone(),
        services,
        board: Arc::new(Board::default()),
    };
    // Begun before anything is looked at, so nothing is missed.
    let runtime = ctx.rt.watch()?;
    let (retry, retries) = mpsc::channel(1);
    let (wake_node, wake) = mpsc::channel(1);
    let dirs = [
        (&config.cni_conf_dir, "--cni-conf-dir", Duration::ZERO),
        (&config.images_dir, "--images-dir", IMAGES_QUIET),
    ];
    for (dir, flag, quiet) in dirs {
        let notice = Notice::watch(&[dir], false);
        let notice = notice.with_context(|| format!("watch {flag} {}", dir.display()))?;
        tokio::spawn(notify(notice, quiet, [retry.clone(), wake_node.clone()]));
    }
    tokio::spawn(events::run(client.clone(), node.name.clone(), happened));
    tokio::spawn(services::run(client.clone(), tell_services));
    let mut keeper = Keeper::new(
        client.clone(),
        node.clone(),
        net,
        rt,
        recorder,
        config.bind.port(),
    );
    let fields = format!("spec.nodeName={}", node.name);
    let inputs = Inputs {
        pods: client.watch(Resource::PODS, Selection::fields(fields)),
        runtime,
        objects,
        retry: retries,
    };
    tokio::spawn(server::run(listener, tls, ctx.clone()));
    tokio::spawn(async move {
        keeper.register().await;
        if let Err(e) = linux::notify::ready() {
            tracing::warn!(error = %e, "the supervisor was not told that we are ready");
        }
        keeper.run(wake).await;
    });
    tracing::info!(node = node.name, bind = %config.bind, "kubelet");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = Manager::new(ctx).run(inputs) => anyhow::bail!("watching containers has ended"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; the pods stay");
    Ok(())
}

/// Passes changes of a directory on, when it has been quiet for some time.
async fn notify(mut dir: Notice, quiet: Duration, listeners: [mpsc::Sender<()>; 2]) {
    while dir.changed().await.is_ok() {
        while let Ok(Ok(())) = tokio::time::timeout(quiet, dir.changed()).await {}
        for listener in &listeners {
            // A message that is waiting says the same.
            if let Err(mpsc::error::TrySendError::Closed(())) = listener.try_send(()) {
                return;
            }
        }
    }
}
