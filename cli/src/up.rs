//! `seaway up`: from nothing to a cluster that serves.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use linux::cgroup::Hierarchies;
use linux::exec::{Exec, which};
use linux::patience::scaled;
use linux::process::{self, Daemon};

use crate::layout::{Layout, STATE_DIR};
use crate::supervise::has_policies;
use crate::{api, daemons, down, image, network, prove, say};

/// Programs that must sit beside this one.
const PROGRAMS: [&str; 6] = [
    "control-plane",
    "kubelet",
    "overlay",
    "proxy",
    "seaway-cni",
    "seaway-shim",
];
/// The control plane's start.
const API_TIMEOUT: Duration = Duration::from_secs(30);
/// From the daemons' start until all nodes are Ready.
const NODES_TIMEOUT: Duration = Duration::from_secs(60);
/// The daemons' start.
const DAEMONS_TIMEOUT: Duration = Duration::from_secs(60);

/// The manifests of every cluster, and those of the sample.
const SYSTEM: &str = include_str!("../manifests/system.yaml");
const SAMPLE: &str = include_str!("../manifests/sample.yaml");

/// Starts the cluster; what was begun is taken away again when it fails.
pub(crate) async fn run(layout: &Layout, bare: bool) -> Result<()> {
    check(layout)?;
    let start = Instant::now();
    if let Err(error) = begin(layout, bare, start).await {
        say(&format!("seaway: {error:#}"));
        say(&format!(
            "seaway: logs stay in {} until `seaway down`",
            layout.dir().display()
        ));
        bail!("the cluster did not start");
    }
    if !bare {
        prove::run(layout, &layout.kubeconfig()).await?;
    }
    say("");
    say("The cluster is yours:");
    say(&format!(
        "  export KUBECONFIG={}",
        layout.kubeconfig().display()
    ));
    say("  kubectl get pods -o wide");
    let name = match layout.args.name.as_str() {
        "dev" => String::new(),
        name => format!(" --name {name}"),
    };
    say(&format!("  seaway status{name}    # daemons, memory, logs"));
    say(&format!("  seaway down{name}      # removes every trace"));
    Ok(())
}

/// What must hold before anything is touched.
fn check(layout: &Layout) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces, mounts and control groups need root");
    }
    for program in PROGRAMS {
        let path = process::sibling(program)?;
        if !path.is_file() {
            bail!(
                "{} is missing; all of Seaway's programs belong into one folder",
                path.display()
            );
        }
    }
    if which("iptables-restore").is_none() && layout.args.proxy_mode == "iptables" {
        bail!("iptables-restore is missing; please run: apt-get install iptables");
    }
    if layout.dir().exists() {
        bail!(
            "cluster {} is there already ({}); use it, or run `seaway down` first",
            layout.args.name,
            layout.dir().display()
        );
    }
    Ok(())
}

async fn begin(layout: &Layout, bare: bool, start: Instant) -> Result<()> {
    let dir = layout.dir();
    fs::create_dir_all(layout.run_dir()).with_context(|| dir.display().to_string())?;
    fs::write(layout.args_file(), serde_json::to_vec_pretty(&layout.args)?)?;
    for node in layout.nodes() {
        for sub in [
            "logs/pods",
            "cni/net.d",
            "cni/state",
            "kubelet",
            "runtime",
            "netns",
            "proxy",
        ] {
            fs::create_dir_all(node.dir.join(sub))?;
        }
    }
    let sample = {
        let layout = layout.clone();
        std::thread::spawn(move || image::load_sample(&layout))
    };
    Exec::new(process::sibling("control-plane")?)
        .args(daemons::init_args(layout))
        .run()?;
    network::create(layout).context("make the underlay")?;
    let groups = Hierarchies::detect()?;
    groups.create(&daemons::control_plane_cgroup(layout))?;
    for node in layout.nodes() {
        for daemon in daemons::NODE_DAEMONS {
            groups.create(&node.daemon_cgroup(daemon))?;
        }
    }
    if !bare && sample.join().map_or(true, |loaded| loaded.is_err()) {
        // Once more, for the error: a thread can only say that it failed.
        image::load_sample(layout)?;
    }
    if let Err(error) = has_policies() {
        say(&format!(
            "network policies are not enforced on this kernel: {error}"
        ));
    }
    let ready = supervise(layout)?;
    let client = api::connect(&layout.kubeconfig()).await?;
    api::wait_ready(&client, scaled(API_TIMEOUT)).await?;
    say(&format!(
        "API server is ready after {:.2} s: {}",
        start.elapsed().as_secs_f32(),
        layout.server()
    ));
    tokio::task::spawn_blocking(move || wait_daemons(&ready)).await??;
    // Pods are placed as soon as there is a node; the sample shall be spread over all of them.
    api::wait_nodes(
        &client,
        usize::from(layout.args.nodes),
        scaled(NODES_TIMEOUT),
    )
    .await?;
    say(&format!(
        "{} nodes are Ready after {:.2} s",
        layout.args.nodes,
        start.elapsed().as_secs_f32()
    ));
    let manifests: &[&str] = if bare { &[SYSTEM] } else { &[SYSTEM, SAMPLE] };
    let by = api::apply(&client, &layout.kubeconfig(), manifests).await?;
    say(&format!(
        "manifests applied with {by} after {:.2} s",
        start.elapsed().as_secs_f32()
    ));
    if !bare {
        let prover = prove::Prover {
            client,
            layout: layout.clone(),
        };
        prover.wait_pods("app=web", 3).await?;
        prover.wait_pods("app=client", 1).await?;
        say(&format!(
            "all pods are Running after {:.2} s",
            start.elapsed().as_secs_f32()
        ));
    }
    Ok(())
}

/// Starts the supervisor in the background; the socket hears when all daemons are ready.
fn supervise(layout: &Layout) -> Result<UnixDatagram> {
    let path = layout.run_dir().join("up.ready");
    let socket = UnixDatagram::bind(&path).with_context(|| path.display().to_string())?;
    socket.set_read_timeout(Some(scaled(DAEMONS_TIMEOUT)))?;
    let args = &layout.args;
    let words = [
        "supervise",
        "--name",
        &args.name,
        "--nodes",
        &args.nodes.to_string(),
        "--underlay",
        &args.underlay.to_string(),
        "--api-port",
        &args.api_port.to_string(),
        "--proxy-mode",
        &args.proxy_mode,
        "--log-level",
        &args.log_level,
    ]
    .map(Into::into);
    let daemon = Daemon {
        program: std::env::current_exe()?,
        args: words.to_vec(),
        env: vec![("NOTIFY_SOCKET".into(), path.into())],
        log: Some(layout.log("supervise")),
        ..Daemon::default()
    };
    daemon.spawn()?;
    Ok(socket)
}

fn wait_daemons(ready: &UnixDatagram) -> Result<()> {
    let mut buffer = [0; 256];
    ready
        .recv(&mut buffer)
        .context("not all daemons became ready in time; see their logs")?;
    Ok(())
}

/// The layout of a cluster that was started before.
pub(crate) fn saved(name: &str) -> Result<Layout> {
    let dir = Path::new(STATE_DIR).join(name);
    let file = dir.join("cluster.json");
    match fs::read(&file) {
        Ok(text) => {
            let args = serde_json::from_slice(&text);
            Ok(Layout::new(
                args.with_context(|| file.display().to_string())?,
            ))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let there = down::clusters();
            if there.is_empty() {
                bail!("there is no cluster on this machine; `seaway up` starts one");
            }
            bail!("there is no cluster {name}; there is: {}", there.join(", "))
        }
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}
