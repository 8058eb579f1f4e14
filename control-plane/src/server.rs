//! The whole control plane in one process: store, API server, controllers, scheduler.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use tokio::task::JoinHandle;

use crate::app::{App, Settings};
use crate::auth::tokens::Tokens;
use crate::http::{inprocess, listen};
use crate::pki::{self, Layout};
use crate::streams::Kubelets;
use crate::{bootstrap, store, upkeep};

/// User name of the controllers and the scheduler.
pub const CONTROLLERS_USER: &str = "system:kube-controller-manager";

/// What `control-plane run` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of everything that is kept.
    pub data_dir: PathBuf,
    /// Addresses to listen on; port 0 takes a free one.
    pub bind: Vec<SocketAddr>,
    /// Addresses under which others reach this server.
    pub advertise: Vec<IpAddr>,
    /// Address ranges of services.
    pub service_cidrs: Vec<IpNetwork>,
    /// Address ranges of pods.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Prefix lengths of a node's pod ranges, IPv4 and IPv6.
    pub node_masks: (u8, u8),
    /// Ports of NodePort services.
    pub node_ports: RangeInclusive<u16>,
    /// `embedded`, `memory` or a URL.
    pub store: String,
    /// Whether controllers and scheduler run, too. Tests of the API alone do without.
    pub controllers: bool,
}

/// A running control plane.
pub struct Server {
    /// The API server.
    pub app: Arc<App>,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts everything; when this returns, requests are answered.
    pub async fn start(options: Options) -> Result<Self> {
        check(&options)?;
        let mut listeners = Vec::new();
        for address in &options.bind {
            listeners.push(listen::bind(*address).await?);
        }
        let addresses = listeners
            .iter()
            .map(|listener| listener.local_addr().context("the listener's address"))
            .collect::<Result<Vec<SocketAddr>>>()?;
        let port = addresses.first().context("--bind: no address")?.port();
        let layout = Layout::new(&options.data_dir);
        pki::init(&options.data_dir, &certificates(&options, port))?;
        let ca_pem = std::fs::read_to_string(layout.pki("ca.crt")).context("pki/ca.crt")?;
        let settings = Settings {
            service_cidrs: options.service_cidrs.clone(),
            node_ports: options.node_ports.clone(),
            advertise: options.advertise.clone(),
            port,
            ca_pem: ca_pem.clone(),
        };
        let store = store::open(&options.store, &options.data_dir)?;
        let tokens = Tokens::load(&layout.pki("sa.key"), &layout.pki("sa.pub"))?;
        let app = Arc::new(App::new(store, settings, tokens, Kubelets::load(&layout)?));
        bootstrap::ensure(&app).await?;
        let tls = listen::tls(&layout)?;
        let mut tasks = Vec::new();
        for listener in listeners {
            tasks.push(tokio::spawn(listen::serve(
                Arc::clone(&app),
                listener,
                tls.clone(),
            )));
        }
        tasks.push(tokio::spawn(upkeep::run(Arc::clone(&app))));
        if options.controllers {
            tasks.push(tokio::spawn(controllers(Arc::clone(&app), options, ca_pem)));
        }
        Ok(Self {
            app,
            addresses,
            tasks,
        })
    }

    /// Ends watches and streams, lets running requests finish, and stops.
    pub async fn stop(self) {
        self.app.shutdown.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!("a part of the control plane broke: {error}");
            }
        }
    }
}

async fn controllers(app: Arc<App>, options: Options, root_ca_pem: String) {
    let config = controllers::Config {
        cluster_cidrs: options.cluster_cidrs,
        node_mask_size_v4: options.node_masks.0,
        node_mask_size_v6: options.node_masks.1,
        service_cidrs: options.service_cidrs,
        root_ca_pem,
        ..controllers::Config::default()
    };
    let client = inprocess::client(&app, CONTROLLERS_USER);
    let stop = app.shutdown.clone();
    if let Err(error) = controllers::run(client, config, stop.clone()).await
        && !stop.is_cancelled()
    {
        tracing::error!("the controllers stopped: {error}");
        stop.cancel();
    }
}

fn check(options: &Options) -> Result<()> {
    for (flag, ranges) in [
        ("--service-cidr", &options.service_cidrs),
        ("--cluster-cidr", &options.cluster_cidrs),
    ] {
        match &ranges[..] {
            [_] => {}
            [first, second] if first.is_ipv4() != second.is_ipv4() => {}
            _ => bail!("{flag}: give one range, or one of IPv4 and one of IPv6"),
        }
        for range in ranges {
            let bits = if range.is_ipv4() { 32 } else { 128 };
            if range.prefix() + 2 > bits {
                let least = bits - 2;
                bail!("{flag} {range}: too small, the prefix length is at most /{least}");
            }
        }
    }
    if options.node_ports.is_empty() {
        bail!("--service-node-port-range: the first port is above the last");
    }
    if options.advertise.is_empty() {
        bail!("--advertise-address: at least one address is needed");
    }
    for ip in &options.advertise {
        if ip.is_unspecified() {
            bail!("--advertise-address {ip}: nobody can reach a server there");
        }
    }
    Ok(())
}

/// The certificates the server itself needs.
fn certificates(options: &Options, port: u16) -> pki::Request {
    let host = options
        .advertise
        .first()
        .map_or_else(String::new, |ip| SocketAddr::new(*ip, port).to_string());
    pki::Request {
        server: None,
        default_server: format!("https://{host}"),
        names: server_names(&options.advertise, &options.service_cidrs),
        nodes: Vec::new(),
    }
}

/// The addresses the API server's certificate must carry.
pub fn server_names(advertise: &[IpAddr], service_cidrs: &[IpNetwork]) -> Vec<String> {
    let first = service_cidrs.iter().map(crate::admit::allocate::first_ip);
    advertise
        .iter()
        .copied()
        .chain(first)
        .map(|ip| ip.to_string())
        .collect()
}
