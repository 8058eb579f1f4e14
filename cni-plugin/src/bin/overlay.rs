//! `overlay`: joins the pods of all nodes. One daemon on each node.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::core::Node;
use clap::Parser;
use client::{Client, Patch, Resource, Selection};
use cni_plugin::overlay::daemon::{self, Annotations};
use cni_plugin::overlay::model::Settings;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The wait between attempts to publish this node's annotations.
const PUBLISH_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Joins the pods of all nodes by VXLAN, masquerades what leaves the cluster, and writes the CNI
/// configuration of this node.
#[derive(Debug, Parser)]
#[command(name = "overlay", version)]
struct Args {
    /// Kubeconfig file; without it, the service account of the pod this runs in
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// This node's name in the API
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// Link that leads to the other nodes [default: the one with the node's address, else the
    /// default route's]
    #[arg(long, value_name = "LINK")]
    iface: Option<String>,
    /// Directory for the CNI configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Directory in which the CNI plugin keeps the leases of pod addresses
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    cni_state_dir: PathBuf,
    /// VXLAN network identifier, equal on all nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vni: u32,
    /// UDP port of VXLAN, equal on all nodes
    #[arg(long, default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Networks of all pods of the cluster; traffic to anywhere else is masqueraded
    #[arg(
        long,
        value_name = "NETWORKS",
        value_delimiter = ',',
        value_parser = network,
        default_value = "10.244.0.0/16,fd00:10:244::/56"
    )]
    cluster_cidr: Vec<IpNetwork>,
    /// Keep iptables chains that masquerade what leaves the cluster and let pods' traffic pass
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    masquerade: bool,
    /// What to log (tracing's filter syntax)
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: String,
    /// Remove everything this daemon made on this node, and end
    #[arg(long)]
    cleanup: bool,
}

fn network(text: &str) -> Result<IpNetwork, String> {
    api::cidr::parse_cidr(text).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let args: Args = match client::flags::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    log_to_stderr(&args.log_level)?;
    let settings = settings(&args)?;
    if args.cleanup {
        return daemon::cleanup(&settings).map_err(anyhow::Error::msg);
    }
    // One thread does it all: the daemon sleeps nearly always, and threads cost memory.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(serve(args, settings))
}

fn log_to_stderr(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter);
    let (filter, error) = match filter {
        Ok(filter) => (filter, None),
        Err(error) => (tracing_subscriber::EnvFilter::new("info"), Some(error)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter.add_directive(client::LOG_DIRECTIVE.parse()?))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match error {
        Some(error) => bail!("--log-level: {error}"),
        None => Ok(()),
    }
}

fn settings(args: &Args) -> Result<Settings> {
    let absolute = |flag: &str, dir: &PathBuf| {
        std::path::absolute(dir).with_context(|| format!("--{flag} {}", dir.display()))
    };
    if args.node_name.is_empty() {
        bail!("--node-name must not be empty");
    }
    Ok(Settings {
        node_name: args.node_name.clone(),
        iface: args.iface.clone(),
        cni_conf_dir: absolute("cni-conf-dir", &args.cni_conf_dir)?,
        cni_state_dir: absolute("cni-state-dir", &args.cni_state_dir)?,
        vni: args.vni,
        port: args.port,
        cluster_cidrs: args.cluster_cidr.clone(),
        masquerade: args.masquerade,
    })
}

async fn serve(args: Args, settings: Settings) -> Result<()> {
    let client = Client::connect(args.kubeconfig.as_deref()).await?;
    let nodes = client.watch::<Node>(Resource::NODES, Selection::default());
    let (sender, receiver) = watch::channel(Annotations::new());
    tokio::spawn(publish(client, settings.node_name.clone(), receiver));
    let publish = |annotations| drop(sender.send_replace(annotations));
    let ready = || {
        if let Err(error) = linux::notify::ready() {
            tracing::warn!("{error}");
        }
    };
    daemon::run(settings, nodes, publish, ready, stopped()?).await?;
    Ok(())
}

/// Ends with SIGTERM or SIGINT. The data path stays as it is.
fn stopped() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Writes whatever annotations come in to this node's object, until each is written.
async fn publish(client: Client, node: String, mut wanted: watch::Receiver<Annotations>) {
    while wanted.changed().await.is_ok() {
        let mut wait = PUBLISH_RETRY.0;
        loop {
            let annotations = wanted.borrow_and_update().clone();
            let patch = json!({"metadata": {"annotations": annotations}});
            let result = client
                .patch::<Value>(Resource::NODES, None, &node, Patch::Merge, &patch)
                .await;
            match result {
                Ok(_) => break,
                Err(error) => tracing::warn!("publish how this node is reached: {error}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(PUBLISH_RETRY.1);
        }
    }
}
