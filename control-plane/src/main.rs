//! `control-plane`: `init` writes keys and kubeconfigs, `run` is the API server with its store,
//! controllers and scheduler.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use control_plane::pki;
use control_plane::server::{Options, Server, server_names};
use ipnetwork::IpNetwork;
use tokio::signal::unix::{SignalKind, signal};

/// Time running requests have at the end.
const STOP_TIMEOUT: Duration = Duration::from_millis(800);
/// Threads that serve requests; the store has one of its own.
const WORKER_THREADS: usize = 2;

/// The Kubernetes control plane of Seaway in one process.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// What is logged, e.g. `info` or `info,control_plane=debug`.
    #[arg(long, global = true, default_value = "info")]
    log_level: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write keys, certificates and kubeconfigs; what is there already stays.
    Init(Init),
    /// Serve the API and run controllers and scheduler.
    Run(Run),
}

#[derive(Args)]
struct Init {
    /// Folder of everything that is kept.
    #[arg(long)]
    data_dir: PathBuf,
    /// URL the kubeconfigs point at, e.g. https://172.31.250.1:6443.
    #[arg(long)]
    server: String,
    /// Addresses under which nodes and pods reach the server.
    #[arg(long, value_delimiter = ',', required = true)]
    advertise_address: Vec<IpAddr>,
    /// Further names and addresses for the server's certificate.
    #[arg(long)]
    san: Vec<String>,
    /// A node to write kubeconfigs and a serving certificate for: NAME=IP[,IP6].
    #[arg(long, value_parser = parse_node)]
    node: Vec<pki::Node>,
    /// Address ranges of services, as given to `run`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    service_cidr: Vec<IpNetwork>,
}

#[derive(Args)]
struct Run {
    /// Folder of everything that is kept.
    #[arg(long)]
    data_dir: PathBuf,
    /// Address and port to listen on; may be given several times.
    #[arg(long, default_value = "[::]:6443")]
    bind: Vec<SocketAddr>,
    /// Addresses under which nodes and pods reach the server; by default the address of the default route.
    #[arg(long, value_delimiter = ',')]
    advertise_address: Vec<IpAddr>,
    /// Address ranges of services: one, or one for each family.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    service_cidr: Vec<IpNetwork>,
    /// Address ranges of pods: one, or one for each family.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.244.0.0/16,fd00:10:244::/56"
    )]
    cluster_cidr: Vec<IpNetwork>,
    /// Prefix lengths of the pod ranges of one node, IPv4 and IPv6.
    #[arg(long, value_delimiter = ',', default_value = "24,64")]
    node_cidr_mask_size: Vec<u8>,
    /// Ports of NodePort services.
    #[arg(long, default_value = "30000-32767", value_parser = parse_ports)]
    service_node_port_range: RangeInclusive<u16>,
    /// Where objects live: embedded, memory, or etcd://HOST:PORT.
    #[arg(long, default_value = "embedded")]
    store: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the one line that says why it did not start"
            )]
            {
                eprintln!("control-plane: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log_level)
        .with_context(|| format!("--log-level {}", cli.log_level))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match cli.command {
        Command::Init(init) => initialise(init),
        Command::Run(run) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .enable_all()
            .build()
            .context("starting the runtime")?
            .block_on(serve(run)),
    }
}

fn initialise(init: Init) -> Result<()> {
    if !init.server.starts_with("https://") {
        bail!("--server {}: must begin with https://", init.server);
    }
    let mut names = server_names(&init.advertise_address, &init.service_cidr);
    names.extend(init.san);
    let host = init
        .server
        .trim_start_matches("https://")
        .split('/')
        .next()
        .unwrap_or("");
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    names.push(host.trim_matches(['[', ']']).to_owned());
    let request = pki::Request {
        default_server: init.server.clone(),
        server: Some(init.server),
        names,
        nodes: init.node,
    };
    pki::init(&init.data_dir, &request)?;
    Ok(())
}

async fn serve(run: Run) -> Result<()> {
    let [v4, v6] = match run.node_cidr_mask_size[..] {
        [v4] => [v4, 64],
        [v4, v6] => [v4, v6],
        _ => bail!("--node-cidr-mask-size: give one or two prefix lengths"),
    };
    let mut advertise = run.advertise_address;
    if advertise.is_empty() {
        advertise.push(default_address());
    }
    let options = Options {
        data_dir: run.data_dir,
        bind: without_ipv6_when_missing(run.bind),
        advertise,
        service_cidrs: run.service_cidr,
        cluster_cidrs: run.cluster_cidr,
        node_masks: (v4, v6),
        node_ports: run.service_node_port_range,
        store: run.store,
        controllers: true,
    };
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let server = Server::start(options).await?;
    for address in &server.addresses {
        tracing::info!(%address, "serving");
    }
    linux::notify::ready()?;
    let broken = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = server.app.shutdown.cancelled() => true,
    };
    tracing::info!("stopping");
    if tokio::time::timeout(STOP_TIMEOUT, server.stop())
        .await
        .is_err()
    {
        tracing::warn!("some requests were still running");
    }
    if broken {
        bail!("a part of the control plane ended, see the log");
    }
    Ok(())
}

/// The address the default route would use. No packet is sent for this.
fn default_address() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // TEST-NET-1 (RFC 5737): never a real host.
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// On a kernel without IPv6 the default `[::]` becomes `0.0.0.0`.
fn without_ipv6_when_missing(bind: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let has_ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    let change = |address: SocketAddr| match address.ip() {
        IpAddr::V6(ip) if ip == Ipv6Addr::UNSPECIFIED && !has_ipv6 => {
            SocketAddr::from(([0, 0, 0, 0], address.port()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    };
    bind.into_iter().map(change).collect()
}

fn parse_node(text: &str) -> Result<pki::Node, String> {
    let (name, ips) = text.split_once('=').ok_or("must look like NAME=IP[,IP6]")?;
    let ips = ips
        .split(',')
        .map(|ip| {
            ip.parse()
                .map_err(|_not_an_address| format!("{ip:?} is no address"))
        })
        .collect::<Result<Vec<IpAddr>, String>>()?;
    if name.is_empty() || name.contains('/') {
        return Err(format!("{name:?} is no node name"));
    }
    Ok(pki::Node {
        name: name.to_owned(),
        ips,
    })
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').ok_or("must look like 30000-32767")?;
    let port = |text: &str| text.parse::<u16>().map_err(|e| format!("{text:?}: {e}"));
    Ok(port(first)?..=port(last)?)
}
