//! Wiring: from a valid [`Config`] to running tasks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::cidr::Family;
use linux::Kernel;
use linux::netlink::{Group, Monitor};
use linux::nftables::{self, Nftables};
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::oneshot;

use crate::backend::{self, Backend, Mode};
use crate::cluster_dns::{self, Feed};
use crate::config::watch::ConfigFile;
use crate::config::{Config, Detect, From};
use crate::conntrack::KernelFlows;
use crate::events::Events;
use crate::health::checks::{Servers, Update};
use crate::health::pages::{self, Pages};
use crate::health::{Health, server};
use crate::kernel_settings::{self, Needs};
use crate::local::Local;
use crate::metrics::Metrics;
use crate::model::NodeView;
use crate::node::{self, Addresses};
use crate::store::Store;
use crate::sync::{Engine, Message, Parts};
use crate::watch::{self, Listener, Sink};

/// Messages that wait for the loop; whoever sends more waits.
const MESSAGES_MAX: usize = 64;

/// How long the end waits for a sync that is under way.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// The node's addresses are looked at this often even if the kernel tells of no change.
const ADDRESSES_PERIOD: Duration = Duration::from_secs(300);

/// Changes of addresses within this time are looked at together.
const ADDRESSES_REST: Duration = Duration::from_millis(50);

/// Where objects come from, found usable.
enum Source {
    Manifests(PathBuf),
    ApiServer(client::Client),
}

impl Source {
    async fn open(from: &From, server: Option<&str>) -> Result<Self> {
        match from {
            From::Manifests(dir) => {
                std::fs::read_dir(dir).with_context(|| format!("--manifests {}", dir.display()))?;
                Ok(Self::Manifests(dir.clone()))
            }
            From::ApiServer(kubeconfig) => {
                let client = client::Client::connect_to(kubeconfig.as_deref(), server)
                    .await
                    .context("use the kubeconfig")?;
                Ok(Self::ApiServer(client))
            }
        }
    }
}

/// Why the default mode is not nftables, where it is not; nothing where a mode was asked for.
pub type Choice = Option<Option<String>>;

/// Tells which mode was chosen where none was asked for, and what keeps the others from it.
pub fn tell_choice(config: &Config, choice: &Choice) {
    let Some(why_not_nftables) = choice else {
        return;
    };
    let mode = config.mode.name();
    if let Some(why) = why_not_nftables {
        tracing::warn!("mode {mode}, since nftables does not work: {why}");
    }
    let start = Instant::now();
    let why_not_ebpf = backend::ebpf::probe::probe(&config.ebpf).why_not_chosen();
    let asked = start.elapsed();
    tracing::info!(
        "mode {mode}, the default; mode ebpf {why_not_ebpf} (the kernel was asked, for {asked:?}; nothing was attached)"
    );
}

/// Runs until SIGTERM or SIGINT. The rules stay.
///
/// # Errors
/// Something that is needed from the start is not there.
pub async fn run(
    config: Config,
    choice: Choice,
    file: Option<ConfigFile>,
    flags: &[String],
) -> Result<()> {
    // First what may be wrong in the flags, or with the mode on this kernel, so that a refusal has
    // changed nothing on the node.
    let source = Source::open(&config.from, config.server.as_deref()).await?;
    let changed = file.map(ConfigFile::changed).transpose();
    let changed = changed.context("watch the file of --config")?;
    tell_choice(&config, &choice);
    let local = Local::new(config.clone(), observe()?);
    let planes = open_planes(&config, &local);
    let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
    let sink = |also| Sink {
        messages: messages.clone(),
        also,
    };
    // What is read meanwhile waits in the channel. With cluster DNS someone else is to hear of it
    // first, who changes the node.
    let mut source = Some(source);
    let events_to = match &source {
        Some(Source::ApiServer(client)) => Some(client.clone()),
        _ => None,
    };
    if config.dns_ips.is_empty() && events_to.is_some() {
        follow(source.take(), &config, sink(None))?;
    }
    let planes = planes.await.context("open the mode")??;
    let health = Arc::new(Health::new(config.sync_period * 2));
    let metrics = Arc::new(Metrics::new(config.mode));
    let events = match events_to {
        Some(client) => Events::to(client, &config.node_name, metrics.clone()),
        None => Events::log_only(),
    };
    let mut feed = None;
    let mut dns = None;
    if !config.dns_ips.is_empty() {
        let (zone, counters) = cluster_dns::start(&config).await?;
        let keep_all = matches!(config.from, From::Manifests(_));
        feed = Some(Mutex::new(Feed::new(zone, keep_all)));
        dns = Some(counters);
    }
    let pages = Pages {
        health: health.clone(),
        metrics: metrics.clone(),
        dns,
        mode: config.mode.name(),
        settings: Arc::new(config.settings.clone()),
        flags: pages::flags(flags),
        started: Instant::now(),
    };
    serve_pages(&config, &pages)?;
    prepare(&local);

    let (checks, updates) = mpsc::unbounded_channel();
    tokio::spawn(Servers::new(health.clone(), events.clone()).run(updates));
    let engine = start_engine(planes, local, inbox, health, metrics, events, checks)?;
    follow_addresses(messages.clone())?;
    follow(source, &config, sink(feed.map(feeder)))?;
    stopped(&engine, changed).await?;
    let _gone = messages.try_send(Message::Stop);
    drop(messages);
    let deadline = Instant::now() + STOP_TIMEOUT;
    while !engine.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The planes of a mode, one for each family.
type Planes = Vec<(Family, Box<dyn Backend>)>;

/// Opens the mode on a thread of its own: mode ebpf has the kernel check its programs meanwhile, which
/// takes as long as reading a large cluster's services.
fn open_planes(config: &Config, local: &Local) -> tokio::task::JoinHandle<Result<Planes>> {
    let (mode, ipvs, ebpf) = (config.mode, config.ipvs.clone(), config.ebpf.clone());
    let local = local.clone();
    tokio::task::spawn_blocking(move || {
        backend::open_with(mode, &ipvs, &ebpf, |of| local.settings(of))
    })
}

/// Follows the objects of a source, unless somebody does already.
fn follow(source: Option<Source>, config: &Config, sink: Sink) -> Result<()> {
    match source {
        None => {}
        Some(Source::Manifests(dir)) => watch::manifests(&dir, sink)?,
        Some(Source::ApiServer(client)) => {
            let node = config.node_name.clone();
            let for_dns = !config.dns_ips.is_empty();
            tokio::spawn(async move { watch::api_server(client, &node, for_dns, sink).await });
        }
    }
    Ok(())
}

fn observe() -> Result<Addresses> {
    let mut host = Kernel::open().context("open the kernel's door")?;
    Addresses::observe(&mut host).context("list the node's addresses")
}

/// Makes the settings of this process and of the kernel that need all rights, and nothing else.
///
/// # Errors
/// The kernel cannot be asked.
pub fn init(config: &Config) -> Result<()> {
    prepare(&Local::new(config.clone(), observe()?));
    Ok(())
}

fn prepare(local: &Local) {
    let config = local.config();
    if let Err(error) = linux::process::set_oom_score_adj(config.oom_score_adj) {
        tracing::info!("{error}");
    }
    // Other modes do not serve node ports there, or, as ebpf, at sockets, where there are no martians.
    let localhost = config.mode == Mode::Iptables && local.settings(Family::V4).serves_localhost();
    kernel_settings::ensure(&Needs::of(config, localhost));
}

/// Passes events on to cluster DNS.
fn feeder(feed: Mutex<Feed>) -> Listener {
    Arc::new(move |input| {
        if let Ok(mut feed) = feed.lock() {
            feed.apply(input);
        }
    })
}

/// Tells the loop of addresses that come and go, as the kernel notifies of them.
fn follow_addresses(messages: Sender<Message>) -> Result<()> {
    let groups = [
        Group::Ipv4Addr,
        Group::Ipv6Addr,
        Group::Ipv4Route,
        Group::Ipv6Route,
    ];
    let monitor = Monitor::open(&groups).context("follow the node's addresses")?;
    let mut host = Kernel::open().context("open the kernel's door")?;
    let follow = move || {
        loop {
            if !monitor.wait(ADDRESSES_PERIOD) && messages.is_closed() {
                return;
            }
            // A whole configuration changes within a moment, and pods come with routes of theirs.
            std::thread::park_timeout(ADDRESSES_REST);
            monitor.drain();
            match Addresses::observe(&mut host) {
                Ok(addresses) => {
                    if messages
                        .blocking_send(Message::Addresses(addresses))
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => tracing::warn!("list the node's addresses: {error}"),
            }
        }
    };
    std::thread::Builder::new()
        .name("addresses".to_owned())
        .spawn(follow)
        .map(drop)
        .context("follow the node's addresses")
}

/// Waits for a signal, for another content of the configuration's file, or for the engine to die.
async fn stopped(engine: &JoinHandle<()>, changed: Option<oneshot::Receiver<()>>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let died = async {
        while !engine.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let changed = async {
        if let Some(changed) = changed
            && changed.await.is_ok()
        {
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: rules stay"),
        _ = int.recv() => tracing::info!("SIGINT: rules stay"),
        () = changed => anyhow::bail!("the file of --config has changed: ends to be started again with it"),
        () = died => anyhow::bail!("the sync loop ended"),
    }
    Ok(())
}

fn serve_pages(config: &Config, pages: &Pages) -> Result<()> {
    let all = [
        (config.healthz, pages.health_only()),
        (config.metrics, pages.all()),
    ];
    for (address, answer) in all {
        let Some(address) = address else { continue };
        match server::listen(address, false) {
            Ok(listener) => {
                tokio::spawn(server::serve(listener, answer));
            }
            Err(error) if config.bind_hard_fail => {
                return Err(error).with_context(|| format!("listen on {address}"));
            }
            // As kube-proxy: services are more important than pages about them.
            Err(error) => tracing::error!("listen on {address}: {error}"),
        }
    }
    Ok(())
}

/// Starts the loop on a thread of its own, where waiting for a program harms nobody.
fn start_engine(
    planes: Planes,
    local: Local,
    inbox: mpsc::Receiver<Message>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    events: Events,
    checks: mpsc::UnboundedSender<Update>,
) -> Result<JoinHandle<()>> {
    let config = local.config().clone();
    let view = NodeView {
        name: config.node_name.as_str().into(),
        zone: None,
        ips: local.node_ips(),
        dns_ips: config.dns_ips.clone(),
    };
    let others = local.clone();
    tracing::info!("mode {}", config.mode.name());
    for (family, plane) in &planes {
        if let Some(more) = plane.metrics() {
            metrics.add(more);
        }
        if plane.settings().detect_local.is_none() && config.detect != Detect::NodeCidr {
            tracing::info!("{family}: no way to tell pods from others is set (--cluster-cidr)");
        }
    }
    let parts = Parts {
        planes,
        local,
        health,
        metrics,
        flows: Box::new(KernelFlows),
        events,
        checks,
        on_synced: Box::new(move || {
            if let Err(error) = linux::notify::ready() {
                tracing::warn!("{error}");
            }
            let clean = move || {
                let config = others.config();
                backend::remove_others(config.mode, &config.ipvs, &config.ebpf, |of| {
                    others.settings(of)
                });
                if let Err(error) = linux::memory::unmap_unused_code() {
                    tracing::debug!("{error}");
                }
            };
            std::thread::spawn(clean);
        }),
    };
    let mut engine = Engine::new(Store::new(view, BTreeMap::new()), parts);
    match nftables::Monitor::open() {
        Ok(monitor) => engine = engine.with_monitor(monitor),
        Err(error) => tracing::info!(
            "{error}; lost rules are noticed every {:?}",
            config.sync_period
        ),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .enable_io()
        .build()
        .context("start the sync loop")?;
    std::thread::Builder::new()
        .name("sync".to_owned())
        .spawn(move || runtime.block_on(engine.run(inbox)))
        .context("start the sync loop")
}

/// The tables of mode nftables as the kernel has them, for people.
///
/// # Errors
/// The kernel's refusal.
pub fn dump() -> Result<String> {
    let mut nft = Nftables::open()?;
    let mut out = String::new();
    for family in Family::BOTH {
        let table = backend::nftables::dump::kernel(&mut nft, family)?;
        out.push_str(
            &table.unwrap_or_else(|| format!("no table {}\n", backend::nftables::table(family))),
        );
    }
    Ok(out)
}

/// Takes away all rules, and the addresses of cluster DNS.
///
/// # Errors
/// Programs are missing, or the kernel's refusal.
pub fn cleanup(config: &Config) -> Result<()> {
    let local = Local::new(config.clone(), observe()?);
    backend::cleanup(&config.ipvs, &config.ebpf, |of| local.settings(of)).context("clean up")?;
    let mut host = Kernel::open().context("open the kernel's door")?;
    node::remove_dns_addresses(&mut host, &config.dns_ips).context("take DNS addresses away")
}
