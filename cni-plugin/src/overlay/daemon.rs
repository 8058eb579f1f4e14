//! The loop: nodes and the kernel's notifications mark the state as dirty; a sync compares all of it
//! and mends what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use api::core::Node;
use api::watch::Event;
use futures::{FutureExt, Stream, StreamExt};
use linux::Host;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::events::{Events, Interest};
use super::firewall::Firewall;
use super::model::{Desired, Own, Peer, Settings};
use super::nodes::Nodes;
use super::underlay::{self, NoUnderlay};
use super::{apply, conflist, diff, observe, plan};

/// What comes within this time of a first change is mended with it.
const GATHER: Duration = Duration::from_millis(10);

/// The shortest and longest wait after a sync that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How often everything is compared although nothing was told, iptables included (which tells
/// nothing at all). Seldom: listing a large `nat` table takes the lock of iptables.
const FULL: Duration = Duration::from_secs(60);

/// Changes of this node's annotations; `None` takes one away.
pub type Annotations = BTreeMap<String, Option<String>>;

/// What became of a sync.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Changes made.
    pub changes: usize,
    /// What failed.
    pub failures: Vec<String>,
    /// What could not be honoured.
    pub problems: Vec<String>,
    /// What this node's annotations lack.
    pub annotations: Annotations,
    /// What to listen for.
    pub interest: Interest,
}

/// Compares everything and mends what differs; at last writes the CNI configuration.
///
/// # Errors
/// There is no underlay, or the kernel cannot be asked.
pub fn sync(
    host: &mut dyn Host,
    settings: &Settings,
    own: &Own,
    peers: &BTreeMap<String, Peer>,
) -> Result<Synced, NoUnderlay> {
    let underlay = underlay::find(host, settings, &own.ips)?;
    let plan = plan::plan(settings, own, &underlay, peers);
    let seen = observe::observe(host, settings, &plan.desired)?;
    let changes = diff::diff(settings, &plan.desired, &seen);
    let failures = apply::apply(host, &changes);
    let mut synced = Synced {
        changes: changes.len(),
        failures: failures.iter().map(ToString::to_string).collect(),
        problems: plan.problems,
        annotations: plan.annotations,
        interest: interest(host, settings, &plan.desired)?,
    };
    synced.interest.underlay = Some(underlay.index);
    synced.interest.names.insert(underlay.dev);
    if let (true, Some(conflist)) = (synced.failures.is_empty(), &plan.conflist) {
        match conflist::write(settings, &conflist::render(settings, conflist)) {
            Ok(true) => tracing::info!(
                "wrote {}",
                settings.cni_conf_dir.join(conflist::FILE).display()
            ),
            Ok(false) => {}
            Err(error) => synced.failures.push(error.to_string()),
        }
    }
    Ok(synced)
}

fn interest(
    host: &mut dyn Host,
    settings: &Settings,
    desired: &Desired,
) -> linux::Result<Interest> {
    let mut interest = Interest {
        names: BTreeSet::from(settings.devices()),
        ..Interest::default()
    };
    for name in desired.devices.keys() {
        interest
            .ours
            .extend(host.link(name)?.map(|link| link.index));
    }
    Ok(interest)
}

/// Runs until `stop`. `publish` is given what this node's annotations lack, as often as they lack
/// it; `ready` is called once, after the first complete sync.
pub async fn run(
    settings: Settings,
    nodes: impl Stream<Item = Event<Node>>,
    publish: impl FnMut(Annotations),
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> linux::Result<()> {
    let host = linux::Kernel::open()?;
    let mut stop = pin!(stop);
    let mut nodes = pin!(nodes);
    let mut events = open_events()?;
    let now = Instant::now();
    let mut state = Daemon {
        host,
        publish,
        ready: Some(ready),
        nodes: Nodes::default(),
        interest: Interest::default(),
        due: None,
        full: now + FULL,
        retry: RETRY.0,
        said: BTreeSet::new(),
        published: Annotations::new(),
        firewall: Wall::Absent,
        synced: false,
        settings,
    };
    state.check_firewall();
    loop {
        let due = state.due.unwrap_or(state.full).min(state.full);
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            event = nodes.next() => {
                let Some(event) = event else { return Ok(()) };
                state.take(event);
                while let Some(Some(event)) = nodes.next().now_or_never() {
                    state.take(event);
                }
            }
            alive = events.next(&state.interest) => {
                if !alive {
                    events = open_events()?;
                }
                state.mark(GATHER);
            }
            checked = state.firewall.checked() => state.firewall_checked(checked),
            () = tokio::time::sleep_until(due) => state.sync(),
        }
    }
}

fn open_events() -> linux::Result<Events> {
    Events::open().map_err(|e| linux::Error::new("listen for netlink notifications", e))
}

/// The chains' keeper: the programs take their time, so they run on a thread beside the loop.
enum Wall {
    /// Not wanted, or not found.
    Absent,
    /// At rest.
    Idle(Box<Firewall>),
    /// At work.
    Busy(JoinHandle<(Option<Box<Firewall>>, linux::Result<usize>)>),
}

impl Wall {
    /// Waits for the work under way; forever without any.
    async fn checked(&mut self) -> linux::Result<usize> {
        let Self::Busy(task) = self else {
            return std::future::pending().await;
        };
        let done = task.await;
        *self = Self::Absent;
        match done {
            Ok((Some(firewall), result)) => {
                *self = Self::Idle(firewall);
                result
            }
            Ok((None, result)) => result,
            Err(error) => Err(linux::Error::other("check iptables", error.to_string())),
        }
    }
}

struct Daemon<P, R> {
    settings: Settings,
    host: linux::Kernel,
    publish: P,
    ready: Option<R>,
    nodes: Nodes,
    interest: Interest,
    /// When the next sync is due; none: when the full one is.
    due: Option<Instant>,
    full: Instant,
    retry: Duration,
    /// What was said already and still holds, so that it is said once.
    said: BTreeSet<String>,
    published: Annotations,
    firewall: Wall,
    /// The last sync had no failure.
    synced: bool,
}

impl<P: FnMut(Annotations), R: FnOnce()> Daemon<P, R> {
    fn take(&mut self, event: Event<Node>) {
        if self.nodes.take(&self.settings, event) {
            self.mark(GATHER);
        }
    }

    /// A sync is due, `after` this time at the latest.
    fn mark(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn sync(&mut self) {
        let now = Instant::now();
        self.due = None;
        if now >= self.full {
            self.full = now + FULL;
            self.check_firewall();
        }
        let Some((own, peers)) = self.nodes.known() else {
            let name = &self.settings.node_name;
            let waiting = format!("waiting for node {name} to exist and to have podCIDRs");
            self.say(BTreeSet::from([waiting]));
            return;
        };
        match sync(&mut self.host, &self.settings, own, peers) {
            Ok(synced) => self.synced(synced),
            Err(error) => {
                self.synced = false;
                self.interest = Interest::default();
                self.say(BTreeSet::from([error.to_string()]));
                self.try_again();
            }
        }
    }

    fn synced(&mut self, synced: Synced) {
        if synced.changes > 0 {
            let peers = self.nodes.len();
            tracing::info!(peers, "made {} changes", synced.changes);
            // Whoever changed the one may have changed the other.
            self.check_firewall();
        }
        self.interest = synced.interest;
        self.synced = synced.failures.is_empty();
        let mut words: BTreeSet<String> = synced.failures.into_iter().collect();
        words.extend(synced.problems);
        words.extend(self.nodes.problems());
        self.say(words);
        if !self.synced {
            self.try_again();
            return;
        }
        if self.ready.is_some() {
            self.sweep();
        }
        self.retry = RETRY.0;
        if synced.annotations.is_empty() {
            self.published.clear();
        } else if self.published != synced.annotations {
            self.published.clone_from(&synced.annotations);
            (self.publish)(synced.annotations);
        }
        self.tell_ready();
    }

    /// Removes what an earlier start with another VNI left, now that the new devices do its work.
    fn sweep(&mut self) {
        let left = observe::left_behind(&mut self.host, &self.settings);
        for name in left.unwrap_or_default() {
            match self.host.ensure_no_link(&name) {
                Ok(_) => tracing::info!("removed {name}, which another VNI left behind"),
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    fn try_again(&mut self) {
        self.mark(self.retry);
        self.retry = (self.retry * 2).min(RETRY.1);
    }

    /// Logs what is new of these words, and keeps them until they hold no longer.
    fn say(&mut self, words: BTreeSet<String>) {
        for word in words.difference(&self.said) {
            tracing::warn!("{word}");
        }
        self.said = words;
    }

    fn check_firewall(&mut self) {
        if !self.settings.masquerade || matches!(self.firewall, Wall::Busy(_)) {
            return;
        }
        let known = match std::mem::replace(&mut self.firewall, Wall::Absent) {
            Wall::Idle(firewall) => Some(firewall),
            Wall::Absent | Wall::Busy(_) => None,
        };
        let cidrs = self.settings.cluster_cidrs.clone();
        self.firewall = Wall::Busy(tokio::task::spawn_blocking(move || {
            let found = match known {
                Some(firewall) => Ok(firewall),
                None => Firewall::new(&cidrs).map(Box::new),
            };
            match found {
                Ok(mut firewall) => {
                    let result = firewall.ensure();
                    (Some(firewall), result)
                }
                Err(error) => (None, Err(error)),
            }
        }));
    }

    fn firewall_checked(&mut self, checked: linux::Result<usize>) {
        match checked {
            Ok(0) => {}
            Ok(mended) => tracing::info!("wrote {mended} iptables chains"),
            Err(error) => {
                tracing::warn!("traffic that leaves the cluster is not masqueraded: {error}");
            }
        }
        self.tell_ready();
    }

    /// Ready is: the data path is in order, and masquerading has been looked at.
    fn tell_ready(&mut self) {
        if self.synced
            && !matches!(self.firewall, Wall::Busy(_))
            && let Some(ready) = self.ready.take()
        {
            tracing::info!("ready");
            ready();
        }
    }
}

/// Removes everything of ours from this node: devices with all on them, chains, the CNI
/// configuration.
///
/// # Errors
/// Everything that could not be removed, one in a line.
pub fn cleanup(settings: &Settings) -> Result<(), String> {
    let mut failed = Vec::new();
    // No new pods first.
    failed.extend(
        conflist::remove(&settings.cni_conf_dir)
            .err()
            .map(|e| e.to_string()),
    );
    match linux::Kernel::open() {
        Ok(mut host) => {
            let left = observe::left_behind(&mut host, settings).unwrap_or_default();
            for name in left.iter().chain(&settings.devices()) {
                failed.extend(host.ensure_no_link(name).err().map(|e| e.to_string()));
            }
        }
        Err(error) => failed.push(error.to_string()),
    }
    if settings.masquerade {
        let removed = Firewall::new(&settings.cluster_cidrs).and_then(|wall| wall.remove());
        failed.extend(removed.err().map(|e| e.to_string()));
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("\n"))
    }
}
