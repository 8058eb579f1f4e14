//! `overlay`: joins the pods of all nodes. One daemon on each node.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::core::Node;
use client::{Client, Patch, Resource, Selection};
use cni_plugin::overlay::condition;
use cni_plugin::overlay::daemon::{self, Annotations};
use cni_plugin::overlay::flags::{self, Args};
use cni_plugin::overlay::health::{self, Health};
use cni_plugin::overlay::model::Settings;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The wait between attempts to write to this node's object.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

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
    let settings = flags::settings(&args, linux::kernel::release())?;
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

async fn serve(args: Args, settings: Settings) -> Result<()> {
    let client = Client::connect(args.kubeconfig.as_deref()).await?;
    let health = Arc::new(Health::default());
    if args.healthz_port > 0 {
        let address = SocketAddr::new(args.healthz_ip, args.healthz_port);
        let listener = health::listen(address).await?;
        tokio::spawn(health::serve(Arc::clone(&health), listener));
    }
    let nodes = client.watch::<Node>(Resource::NODES, Selection::default());
    let (sender, receiver) = watch::channel(Annotations::new());
    let node = settings.node_name.clone();
    tokio::spawn(publish(client.clone(), node.clone(), receiver));
    let publish = |annotations| drop(sender.send_replace(annotations));
    let ready = || {
        if let Err(error) = linux::notify::ready() {
            tracing::warn!("{error}");
        }
        if args.set_node_network_unavailable {
            tokio::spawn(set_condition(client, node));
        }
    };
    daemon::run(settings, nodes, publish, ready, health, stopped()?).await?;
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
        let mut wait = WRITE_RETRY.0;
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
            wait = (wait * 2).min(WRITE_RETRY.1);
        }
    }
}

/// Says in the Node's status that its network is there, until it is said.
async fn set_condition(client: Client, node: String) {
    let mut wait = WRITE_RETRY.0;
    loop {
        let patch = condition::patch(jiff::Timestamp::now());
        let result = client
            .patch_status::<Value>(Resource::NODES, None, &node, Patch::Strategic, &patch)
            .await;
        match result {
            Ok(_) => return,
            Err(error) => tracing::warn!("set the condition NetworkUnavailable: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WRITE_RETRY.1);
    }
}
