//! `overlay`: joins the pods of all nodes. One daemon on each node.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::core::Node;
use api::watch::Event;
use client::{Client, Patch, Resource, Selection};
use cni_plugin::overlay::condition;
use cni_plugin::overlay::daemon::{self, Annotations};
use cni_plugin::overlay::flags::{self, Args};
use cni_plugin::overlay::health::{self, Health};
use cni_plugin::overlay::model::Settings;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    if args.cleanup {
        let settings = flags::settings(&args, linux::kernel::release())?;
        let policies = policy::Enforcer::remove().map_err(|error| error.to_string());
        let others = daemon::cleanup(&settings);
        let failed = [others.err(), policies.err()];
        let failed: Vec<String> = failed.into_iter().flatten().collect();
        if !failed.is_empty() {
            bail!(failed.join("\n"));
        }
        return Ok(());
    }
    // One thread does it all: the daemon sleeps nearly always, and threads cost memory.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(serve(args))
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

/// Where nodes come from, and where this node's annotations go.
struct Source {
    settings: Settings,
    nodes: BoxStream<'static, Event<Node>>,
    annotations: watch::Sender<Annotations>,
    /// The API, where it is the source.
    client: Option<Client>,
    /// Ends when the source cannot go on.
    failed: JoinHandle<Result<()>>,
}

async fn serve(args: Args) -> Result<()> {
    let health = Arc::new(Health::default());
    if args.healthz_port > 0 {
        let address = SocketAddr::new(args.healthz_ip, args.healthz_port);
        let listener = health::listen(address).await?;
        tokio::spawn(health::serve(Arc::clone(&health), listener));
    }
    if args.network_policy && args.etcd_endpoints.is_empty() {
        hold_pods(&args)?;
    }
    let source = match args.etcd_endpoints.is_empty() {
        true => from_api(&args).await?,
        false => from_etcd(&args).await?,
    };
    let node = source.settings.node_name.clone();
    // Whether network policies hold; at once where they are not asked for.
    let (hold, holds) = watch::channel(!args.network_policy);
    match &source.client {
        Some(client) if args.network_policy => {
            health.expect_policies();
            let told = Arc::clone(&health);
            let options = flags::policy_options(&args);
            let told = move |what: policy::Told| {
                told.policies(&what);
                hold.send_if_modified(|held| {
                    let before = *held;
                    *held |= what.holds;
                    *held != before
                });
            };
            tokio::spawn(enforce(client.clone(), node.clone(), options, told));
        }
        None if args.network_policy => {
            bail!("--network-policy: needs the API, which --etcd-endpoints does without")
        }
        _ => {}
    }
    let publish = |annotations| drop(source.annotations.send_replace(annotations));
    let client = source.client.filter(|_| args.set_node_network_unavailable);
    let ready = || drop(tokio::spawn(tell_ready(client, node)));
    let run = daemon::run(
        source.settings,
        source.nodes,
        publish,
        holds,
        ready,
        health,
        stopped()?,
    );
    tokio::select! {
        ended = run => Ok(ended?),
        failed = source.failed => failed.context("the source of nodes")?,
    }
}

/// Without the table of an earlier run (a first start, a reboot) pods would be open: a CNI
/// configuration that is there goes before anything else, the API server may be far. With it they
/// are judged as before, and new ones may start.
fn hold_pods(args: &Args) -> Result<()> {
    if policy::Enforcer::is_there().unwrap_or(false) {
        return Ok(());
    }
    let settings = flags::settings(args, linux::kernel::release())?;
    for path in daemon::hold_pods(&settings)? {
        let path = path.display();
        tracing::warn!("deleted {path} until network policies hold: their table is not there");
    }
    Ok(())
}

/// Nodes of the API, with their podCIDRs.
async fn from_api(args: &Args) -> Result<Source> {
    let settings = flags::settings(args, linux::kernel::release())?;
    let client = Client::connect(args.kubeconfig.as_deref()).await?;
    let nodes = client.watch::<Node>(Resource::NODES, Selection::default());
    let (annotations, receiver) = watch::channel(Annotations::new());
    let publish = publish(client.clone(), settings.node_name.clone(), receiver);
    Ok(Source {
        settings,
        nodes: nodes.boxed(),
        annotations,
        client: Some(client),
        failed: tokio::spawn(async {
            publish.await;
            // Nobody publishes any more: the daemon ends.
            std::future::pending().await
        }),
    })
}

/// Leases of etcd.
#[cfg(feature = "etcd")]
async fn from_etcd(args: &Args) -> Result<Source> {
    use cni_plugin::overlay::{etcd, lease};
    let options = etcd::Options {
        endpoints: args.etcd_endpoints.clone(),
        prefix: args.etcd_prefix.clone(),
        ca: args.etcd_cafile.clone(),
        identity: args.etcd_certfile.clone().zip(args.etcd_keyfile.clone()),
        user: args.etcd_username.clone().zip(args.etcd_password.clone()),
    };
    let mut registry = etcd::Registry::connect(&options).await?;
    let conf = registry.config().await?;
    let settings = flags::settings_with(args, Some(conf.clone()), linux::kernel::release())?;
    let attrs = first_attrs(&settings).await?;
    let file = settings.subnet_file.as_ref();
    let last_run = file.and_then(|path| std::fs::read_to_string(path).ok());
    let previous = last_run.and_then(|text| lease::previous(&text));
    let held = registry.acquire(&conf, &attrs, previous).await?;
    let (sender, nodes) = futures::channel::mpsc::unbounded();
    let (annotations, receiver) = watch::channel(Annotations::new());
    let name = settings.node_name.clone();
    Ok(Source {
        settings,
        nodes: nodes.boxed(),
        annotations,
        client: None,
        failed: tokio::spawn(registry.run(held, name, sender, receiver, 0)),
    })
}

/// The addresses by which this node's lease is known; waits for a link that has them.
#[cfg(feature = "etcd")]
async fn first_attrs(settings: &Settings) -> Result<cni_plugin::overlay::lease::Attrs> {
    use cni_plugin::overlay::{lease, model::Own, plan, underlay};
    let mut host = linux::Kernel::open()?;
    let mut wait = WRITE_RETRY.0;
    loop {
        let own = Own::default();
        let found = underlay::find(&mut host, settings, &own);
        let attrs = found.map(|underlay| {
            let public = |family| {
                let local = underlay.ip(family)?;
                Some(plan::public(settings, family, &own, local))
            };
            lease::first(
                public,
                settings.cluster_cidrs.iter().any(|net| net.is_ipv6()),
            )
        });
        match attrs {
            Ok(Some(attrs)) => return Ok(attrs),
            Ok(None) => tracing::warn!("the link to the other nodes has no IPv4 address"),
            Err(error) => tracing::warn!("{error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WRITE_RETRY.1);
    }
}

#[cfg(not(feature = "etcd"))]
#[expect(clippy::unused_async, reason = "as with etcd")]
async fn from_etcd(_args: &Args) -> Result<Source> {
    bail!("--etcd-endpoints: this program was built without etcd (cargo feature `etcd`)")
}

/// Tells the supervisor, and the API through `client`, that pods can run here.
async fn tell_ready(client: Option<Client>, node: String) {
    if let Err(error) = linux::notify::ready() {
        tracing::warn!("{error}");
    }
    if let Some(client) = client {
        set_condition(client, node).await;
    }
    if let Err(error) = linux::memory::unmap_unused_code() {
        tracing::debug!("{error}");
    }
}

/// Keeps this node's network policies in the kernel, for ever. `told` hears of every sync.
async fn enforce(
    client: Client,
    node: String,
    options: policy::Options,
    mut told: impl FnMut(policy::Told),
) {
    let mut wait = WRITE_RETRY.0;
    loop {
        let inputs = policy::run::watch(&client, &node);
        let never = std::future::pending();
        if let Err(error) = policy::run(&node, options, inputs, &mut told, never).await {
            tracing::error!("network policies are not enforced: {error}");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WRITE_RETRY.1);
    }
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
