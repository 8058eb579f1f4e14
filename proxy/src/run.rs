//! Wiring: from a valid [`Config`] to running tasks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use api::cidr::{Family, parse_cidr};
use api::core::Node;
use api::watch::Event;
use linux::Kernel;
use linux::rules_monitor::RulesMonitor;
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::oneshot;

use crate::backend::{self, DetectLocal, Settings};
use crate::cluster_dns::{self, Feed};
use crate::config::watch::ConfigFile;
use crate::config::{Config, Detect, From};
use crate::conntrack::KernelFlows;
use crate::health::{self, Health, Pages};
use crate::metrics::Metrics;
use crate::model::{NodeView, Policy};
use crate::node;
use crate::store::{Input, Store};
use crate::sync::{Engine, Message, Pace};
use crate::watch::{self, Sink};

/// Messages that wait for the loop; whoever sends more waits.
const MESSAGES_MAX: usize = 64;

/// How long the end waits for a sync that is under way.
const STOP_TIMEOUT: Duration = Duration::from_millis(900);

/// Everything about the rules that does not come from objects.
#[derive(Clone)]
struct Local {
    config: Config,
    primary: Vec<IpAddr>,
    all: Vec<IpAddr>,
}

impl Local {
    fn observe(config: &Config) -> Result<Self> {
        let mut host = Kernel::open().context("open the kernel's door")?;
        let all = node::addresses(&mut host).context("list the node's addresses")?;
        Ok(Self {
            primary: node::primary_ips(config.node_ip, &all),
            config: config.clone(),
            all,
        })
    }

    fn settings(&self, family: Family, detect_local: Option<DetectLocal>) -> Settings {
        let config = &self.config;
        let wanted = &config.node_port_addresses;
        let dns = config.dns_ips.iter().copied();
        Settings {
            family,
            mark: config.mark,
            detect_local,
            node_ports: node::node_port_scope(wanted, family, &self.primary, &self.all),
            localhost_node_ports: config.localhost_node_ports,
            random_fully: true,
            drop_invalid: config.drop_invalid,
            dns_ips: dns.filter(|ip| Family::of(*ip) == family).collect(),
        }
    }

    fn fixed_settings(&self, family: Family) -> Settings {
        let detect = match &self.config.detect {
            Detect::Fixed(all) => all.iter().find(|(of, _)| *of == family),
            Detect::NodeCidr => None,
        };
        self.settings(family, detect.map(|(_, detect)| detect.clone()))
    }
}

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

/// Takes away all rules, and the addresses of cluster DNS.
///
/// # Errors
/// Programs are missing, or the kernel's refusal.
pub fn cleanup(config: &Config) -> Result<()> {
    let local = Local::observe(config)?;
    for (family, mut plane) in backend::open(config.mode, |of| local.fixed_settings(of))? {
        plane
            .cleanup()
            .with_context(|| format!("take away {family} rules"))?;
    }
    let mut host = Kernel::open().context("open the kernel's door")?;
    node::remove_dns_addresses(&mut host, &config.dns_ips).context("take DNS addresses away")
}

/// Runs until SIGTERM or SIGINT. The rules stay.
///
/// # Errors
/// Something that is needed from the start is not there.
pub async fn run(config: Config, file: Option<ConfigFile>) -> Result<()> {
    // First what may be wrong in the flags, so that a refusal has changed nothing on the node.
    let source = Source::open(&config.from, config.server.as_deref()).await?;
    let changed = file.map(ConfigFile::changed).transpose();
    let changed = changed.context("watch the file of --config")?;
    let local = Local::observe(&config)?;
    let health = Arc::new(Health::new(config.sync_period * 2));
    let metrics = Arc::new(Metrics::default());
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
    };
    serve_pages(&config, &pages).await?;

    prepare(&local)?;
    let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
    let engine = start_engine(&local, inbox, health.clone(), metrics)?;
    let sink = Sink {
        messages: messages.clone(),
        also: Some(Arc::new(side_effects(
            &local,
            health,
            feed,
            messages.clone(),
        ))),
    };
    tokio::spawn(rescan(local, messages.clone()));
    match source {
        Source::Manifests(dir) => watch::manifests(&dir, sink)?,
        Source::ApiServer(client) => {
            let node = config.node_name.clone();
            let for_dns = !config.dns_ips.is_empty();
            tokio::spawn(async move { watch::api_server(client, &node, for_dns, sink).await });
        }
    }
    stopped(&engine, changed).await?;
    let _gone = messages.try_send(Message::Stop);
    drop(messages);
    let deadline = std::time::Instant::now() + STOP_TIMEOUT;
    while !engine.is_finished() && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Makes the settings of this process and of the kernel that need all rights, and nothing else.
///
/// # Errors
/// The kernel cannot be asked.
pub fn init(config: &Config) -> Result<()> {
    prepare(&Local::observe(config)?)
}

fn prepare(local: &Local) -> Result<()> {
    let config = &local.config;
    if let Err(error) = linux::process::set_oom_score_adj(config.oom_score_adj) {
        tracing::info!("{error}");
    }
    let mut host = Kernel::open().context("open the kernel's door")?;
    let needs = node::Needs {
        localhost: local.fixed_settings(Family::V4).serves_localhost(),
        tcp_be_liberal: !config.drop_invalid,
    };
    node::ensure_settings(&mut host, needs);
    Ok(())
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

async fn serve_pages(config: &Config, pages: &Pages) -> Result<()> {
    for address in [config.healthz, config.metrics].into_iter().flatten() {
        match health::bind(address).await {
            Ok(listener) => {
                tokio::spawn(health::serve(listener, pages.clone()));
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
    local: &Local,
    inbox: mpsc::Receiver<Message>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<()>> {
    let config = &local.config;
    let view = NodeView {
        name: config.node_name.as_str().into(),
        zone: None,
        ips: local.primary.clone(),
        dns_ips: config.dns_ips.clone(),
    };
    let planes = backend::open(config.mode, |of| local.fixed_settings(of))?;
    let mut policies = BTreeMap::new();
    for (family, plane) in &planes {
        let settings = plane.settings();
        let policy = Policy {
            detect_local: settings.detect_local.is_some(),
            masquerade_all: config.masquerade_all,
        };
        if !policy.detect_local && config.detect != Detect::NodeCidr {
            tracing::info!("{family}: no way to tell pods from others is set (--cluster-cidr)");
        }
        policies.insert(*family, policy);
    }
    let pace = Pace {
        sync_period: config.sync_period,
        min_sync_period: config.min_sync_period,
    };
    let on_synced = Box::new(|| {
        if let Err(error) = linux::notify::ready() {
            tracing::warn!("{error}");
        }
    });
    let store = Store::new(view, policies);
    let flows = Box::new(KernelFlows);
    let mut engine = Engine::new(store, planes, pace, health, metrics, flows, on_synced);
    match RulesMonitor::open() {
        Ok(monitor) => engine = engine.with_monitor(monitor),
        Err(error) => tracing::info!(
            "{error}; lost rules are noticed every {:?}",
            config.sync_period
        ),
    }
    if config.detect == Detect::NodeCidr {
        engine = engine.wait_for_settings();
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

/// What events mean beside rules: names in DNS, the node's health, its pod networks.
fn side_effects(
    local: &Local,
    health: Arc<Health>,
    feed: Option<Mutex<Feed>>,
    messages: Sender<Message>,
) -> impl Fn(&Input) + Send + Sync + use<> {
    let local = local.clone();
    move |input| {
        if let Some(feed) = &feed
            && let Ok(mut feed) = feed.lock()
        {
            feed.apply(input);
        }
        if let Some(goes) = watch::node_goes(input) {
            health.node_goes(goes);
        }
        let Input::Node(Event::InitApply(node) | Event::Apply(node)) = input else {
            return;
        };
        if local.config.detect == Detect::NodeCidr && !node.spec.pod_networks().is_empty() {
            let settings = node_cidr_settings(&local, node);
            let messages = messages.clone();
            tokio::spawn(async move { messages.send(Message::Settings(settings)).await });
        }
    }
}

fn node_cidr_settings(local: &Local, node: &Node) -> Vec<Settings> {
    let nets: Vec<_> = node
        .spec
        .pod_networks()
        .into_iter()
        .filter_map(|text| parse_cidr(text).ok())
        .collect();
    let of = |family| nets.iter().find(|net| Family::of_net(net) == family);
    Family::BOTH
        .into_iter()
        .map(|family| local.settings(family, of(family).map(|net| DetectLocal::Net(*net))))
        .collect()
}

/// Notices addresses that come and go where node ports are served on some of them only.
async fn rescan(local: Local, messages: Sender<Message>) {
    let selective = local.config.node_port_addresses != crate::config::NodePortAddresses::All;
    if !selective || local.config.detect == Detect::NodeCidr {
        return;
    }
    let mut known = local;
    loop {
        tokio::time::sleep(known.config.sync_period).await;
        let Ok(new) = Local::observe(&known.config) else {
            continue;
        };
        if new.all == known.all {
            continue;
        }
        let settings = Family::BOTH.map(|family| new.fixed_settings(family));
        known = new;
        if messages
            .send(Message::Settings(settings.into()))
            .await
            .is_err()
        {
            return;
        }
    }
}
