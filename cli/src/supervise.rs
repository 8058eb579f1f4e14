//! `seaway supervise`: keeps a cluster's daemons running, in the background. On a real node this is
//! the init system's work; here one process does it for all nodes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux::cgroup::Hierarchies;
use linux::nftables::{Family, Nftables};
use linux::patience::scaled;
use linux::process;
use nix::sys::signal::{SigSet, Signal};

use crate::daemons::{self, Service};
use crate::gone;
use crate::layout::{ClusterArgs, Layout};

/// Pause before a daemon that died is started again: doubles from the first to the second.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// A daemon that lived this long begins again with the first pause.
const BACKOFF_RESET: Duration = Duration::from_secs(10);
/// How long a daemon may take to say that it is ready before that is reported.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Daemons end within a second of SIGTERM; after this they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Pids by daemon name, as written to [`Layout::pids_file`].
pub(crate) type Pids = BTreeMap<String, u32>;

/// Whether this kernel can hold network policies. A node's `overlay` that is to enforce them is not
/// ready before they hold.
///
/// # Errors
/// The kernel lacks the tables that they are in.
pub(crate) fn has_policies() -> linux::Result<()> {
    Nftables::open_for(Family::Inet).map(drop)
}

struct Supervisor {
    layout: Layout,
    stopping: AtomicBool,
    pids: Mutex<Pids>,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: ClusterArgs) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // Every thread inherits the mask, so that the signals come to `wait` below and nowhere else.
    signals.thread_block().context("block signals")?;
    let layout = Layout::new(args);
    let bin = process::sibling("")?;
    let groups = Hierarchies::detect()?;
    let me = ("supervise".to_owned(), std::process::id());
    let supervisor = Arc::new(Supervisor {
        layout: layout.clone(),
        stopping: AtomicBool::new(false),
        pids: Mutex::new(BTreeMap::from([me])),
    });
    let control_plane = daemons::control_plane(&layout, &bin, &groups);
    let ready = supervisor.keep(control_plane);
    ready
        .recv_timeout(scaled(READY_TIMEOUT))
        .context("the control plane did not become ready")?;
    let mut waiting = Vec::new();
    let policies = has_policies().is_ok();
    for node in layout.nodes() {
        for service in daemons::node(&layout, &node, &bin, &groups, policies) {
            waiting.push((service.name.clone(), supervisor.keep(service)));
        }
    }
    for (name, ready) in waiting {
        let late = || format!("{name} did not become ready; see its log");
        ready
            .recv_timeout(scaled(READY_TIMEOUT))
            .with_context(late)?;
    }
    linux::notify::ready()?;
    signals.wait().context("wait for a signal")?;
    supervisor.stop()
}

impl Supervisor {
    /// Starts a daemon and starts it again whenever it ends. The receiver hears of it once, when
    /// the daemon has said that it is ready for the first time.
    fn keep(self: &Arc<Self>, service: Service) -> std::sync::mpsc::Receiver<()> {
        let (tell, ready) = std::sync::mpsc::channel();
        let supervisor = Arc::clone(self);
        thread::spawn(move || {
            let mut pause = BACKOFF_FIRST;
            while !supervisor.stopping.load(Ordering::SeqCst) {
                let start = Instant::now();
                let how = match supervisor.start(&service, &tell) {
                    Ok(mut child) => match child.wait() {
                        Ok(status) => status.to_string(),
                        Err(error) => error.to_string(),
                    },
                    Err(error) => format!("{error:#}"),
                };
                if supervisor.stopping.load(Ordering::SeqCst) {
                    break;
                }
                if start.elapsed() > BACKOFF_RESET {
                    pause = BACKOFF_FIRST;
                }
                crate::say(&format!(
                    "{} ended ({how}); starting it again",
                    service.name
                ));
                thread::sleep(pause);
                pause = (pause * 2).min(BACKOFF_LAST);
            }
        });
        ready
    }

    fn start(&self, service: &Service, tell: &std::sync::mpsc::Sender<()>) -> Result<Child> {
        let path = self.notify_path(&service.name);
        gone::file(&path)?;
        let socket = UnixDatagram::bind(&path).with_context(|| path.display().to_string())?;
        socket.set_read_timeout(Some(scaled(READY_TIMEOUT)))?;
        let mut daemon = service.daemon.clone();
        daemon.env.push(("NOTIFY_SOCKET".into(), path.into()));
        let child = daemon.spawn()?;
        self.record(&service.name, child.id())?;
        let tell = tell.clone();
        thread::spawn(move || {
            let mut buffer = [0; 256];
            let told = socket
                .recv(&mut buffer)
                .map(|n| buffer[..n].starts_with(b"READY=1"));
            if told.is_ok_and(|ready| ready) {
                // Nobody listens after the first time.
                let _heard = tell.send(()).is_ok();
            }
        });
        Ok(child)
    }

    fn notify_path(&self, name: &str) -> PathBuf {
        self.layout
            .run_dir()
            .join(format!("{}.ready", name.replace('/', "-")))
    }

    /// Writes down who runs where, whole or not at all.
    fn record(&self, name: &str, pid: u32) -> Result<()> {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.insert(name.to_owned(), pid);
        let path = self.layout.pids_file();
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(&*pids)?)?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())
    }

    /// Ends every daemon: asks first, kills what does not listen.
    fn stop(&self) -> Result<()> {
        self.stopping.store(true, Ordering::SeqCst);
        let pids = self
            .pids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let daemons: Vec<i32> = pids
            .iter()
            .filter(|(name, _)| *name != "supervise")
            .filter_map(|(_, pid)| i32::try_from(*pid).ok())
            .collect();
        for pid in &daemons {
            process::signal(*pid, Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + scaled(STOP_TIMEOUT);
        while daemons.iter().any(|pid| process::is_alive(*pid)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        for pid in daemons.iter().filter(|pid| process::is_alive(**pid)) {
            process::signal(*pid, Signal::SIGKILL)?;
        }
        Ok(())
    }
}

/// The daemons of a running cluster, as last written down.
pub(crate) fn read_pids(layout: &Layout) -> Result<Pids> {
    let path = layout.pids_file();
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Pids::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}
