//! The loop: nodes and the kernel's notifications say what is due; a sync mends it. One node's
//! change or one notification costs what it changes; everything is compared at the start, when a
//! device or the underlay changes, after a failure, and each minute.

mod cleanup;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api::core::Node;
use api::watch::Event;
use futures::{FutureExt, Stream, StreamExt};
use linux::Host;
use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::events::{Events, Interest, Told, ToldEntry};
use super::health::Health;
use super::model::Settings;
use super::nodes::{News, Nodes};
use super::observe;
use super::path::Verdict;
use super::paths::{self, Paths};
use super::sync::{Overlay, Synced};
use super::wall::Wall;

pub use cleanup::{cleanup, hold_pods};

/// What comes within this time of a first change of devices or links is mended with it.
const GATHER: Duration = Duration::from_millis(10);

/// The same for single entries. Short, since it is a lost packet's wait; not zero, so that someone
/// who insists on the opposite does not keep us busy.
const GATHER_ENTRIES: Duration = Duration::from_millis(1);

/// More notifications than this at a time are dearer than comparing everything.
const TOLD_MAX: usize = 1000;

/// How often everything is compared although nothing was told, iptables included (which tells
/// nothing at all). Seldom: listing a large `nat` table takes the lock of iptables.
const FULL: Duration = Duration::from_secs(60);

/// Said while pods may not start yet.
const WAITS_FOR_POLICIES: &str =
    "the CNI configuration is not written before network policies hold: no pod starts until then";

/// Changes of this node's annotations; `None` takes one away.
pub type Annotations = BTreeMap<String, Option<String>>;

/// Runs until `stop`. `publish` is given what this node's annotations lack, as often as they lack
/// it. Until `holds` is true, the files that the runtime waits for are not written. `ready` is called
/// once, after the first complete sync with them.
pub async fn run(
    settings: Settings,
    nodes: impl Stream<Item = Event<Node>>,
    publish: impl FnMut(Annotations),
    mut holds: watch::Receiver<bool>,
    ready: impl FnOnce(),
    health: Arc<Health>,
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
        pending: Pending::default(),
        due: None,
        full: now + FULL,
        backoff: Backoff::default(),
        said: BTreeSet::new(),
        published: Annotations::new(),
        wall: Wall::new(&settings),
        paths: Paths::new(settings.pace),
        synced: false,
        overlay: Overlay::new(settings),
        health,
    };
    state.overlay.admit_pods(*holds.borrow());
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
            told = events.next(&state.interest) => match told {
                Some(told) => state.hear(told),
                None => {
                    events = open_events()?;
                    state.hear(Told::All);
                }
            },
            checked = state.wall.checked() => state.wall_checked(checked),
            news = state.paths.next() => state.path_measured(&news),
            held = holds.wait_for(|holds| *holds), if !state.overlay.admits_pods() => {
                if held.is_err() {
                    // Nobody will ever tell.
                    return Ok(());
                }
                drop(held);
                state.overlay.admit_pods(true);
                state.hear(Told::All);
            }
            () = tokio::time::sleep_until(due) => state.sync(),
        }
    }
}

fn open_events() -> linux::Result<Events> {
    Events::open().map_err(|e| linux::Error::new("listen for netlink notifications", e))
}

/// What has to be looked at.
#[derive(Debug, Default)]
struct Pending {
    all: bool,
    names: BTreeSet<String>,
    told: Vec<ToldEntry>,
}

struct Daemon<P, R> {
    overlay: Overlay,
    host: linux::Kernel,
    publish: P,
    ready: Option<R>,
    nodes: Nodes,
    interest: Interest,
    pending: Pending,
    /// When the next sync is due; none: when the full one is.
    due: Option<Instant>,
    full: Instant,
    backoff: Backoff,
    /// What was said already and still holds, so that it is said once.
    said: BTreeSet<String>,
    published: Annotations,
    wall: Wall,
    paths: Paths,
    /// The last full sync had no failure, and nothing failed since.
    synced: bool,
    health: Arc<Health>,
}

impl<P: FnMut(Annotations), R: FnOnce()> Daemon<P, R> {
    fn take(&mut self, event: Event<Node>) {
        let news: News = self.nodes.take(self.overlay.settings(), event);
        if news.is_empty() {
            return;
        }
        self.pending.all |= news.all;
        self.pending.names.extend(news.names);
        self.mark(Duration::ZERO);
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Entry(entry) if self.pending.told.len() < TOLD_MAX => {
                self.pending.told.push(*entry);
                self.mark(GATHER_ENTRIES);
            }
            Told::Entry(..) | Told::All => {
                self.pending.all = true;
                self.pending.told.clear();
                self.mark(GATHER);
            }
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
        self.health.beat();
        let pending = std::mem::take(&mut self.pending);
        let timed = now >= self.full;
        if timed {
            self.full = now + FULL;
        }
        if pending.all || timed || !self.synced {
            self.sync_all();
            if timed {
                self.wall.check();
            }
        } else {
            self.sync_some(pending);
        }
    }

    fn sync_all(&mut self) {
        let Some((own, peers)) = self.nodes.known() else {
            let name = &self.overlay.settings().node_name;
            let waiting = format!("waiting for node {name} to exist and to have podCIDRs");
            self.say(BTreeSet::from([waiting]));
            return;
        };
        let outcome = self.overlay.all(&mut self.host, own, peers);
        let gone = self.paths.names().into_iter();
        let names: BTreeSet<String> = gone.chain(peers.names().cloned()).collect();
        let interest = self.overlay.interest(&mut self.host);
        match outcome {
            Ok(mut synced) => {
                match interest {
                    Ok(interest) => self.interest = interest,
                    Err(error) => synced.failures.push(error.to_string()),
                }
                let changed = synced.changes > 0;
                self.set_paths(&names);
                self.made(synced);
                if changed {
                    // Whoever changed the one may have changed the other.
                    self.wall.check();
                }
            }
            Err(error) => {
                self.synced = false;
                self.interest = Interest::default();
                self.say(BTreeSet::from([error.to_string()]));
                self.try_again();
            }
        }
    }

    fn sync_some(&mut self, pending: Pending) {
        let mut all = Synced::default();
        let mut add = |synced: Synced| {
            all.changes += synced.changes;
            all.failures.extend(synced.failures);
        };
        if let (false, Some((_, peers))) = (pending.names.is_empty(), self.nodes.known()) {
            add(self.overlay.nodes(&mut self.host, peers, &pending.names));
        }
        for ToldEntry { key, there } in &pending.told {
            add(self.overlay.told(&mut self.host, key, there.as_ref()));
        }
        self.set_paths(&pending.names);
        self.made(all);
    }

    /// What follows a sync, of all or of some.
    fn made(&mut self, synced: Synced) {
        if synced.changes > 0 {
            let peers = self.nodes.len();
            tracing::info!(peers, "made {} changes", synced.changes);
        }
        self.health
            .synced(self.nodes.len(), synced.changes, synced.failures.len());
        self.synced = synced.failures.is_empty();
        let mut words: BTreeSet<String> = synced.failures.into_iter().collect();
        words.extend(self.overlay.problems().cloned());
        words.extend(self.nodes.problems());
        if !self.overlay.admits_pods() {
            words.insert(WAITS_FOR_POLICIES.to_owned());
        }
        self.say(words);
        if !self.synced {
            self.try_again();
            return;
        }
        if self.ready.is_some() {
            self.sweep();
        }
        self.backoff.worked();
        let annotations = self.overlay.annotations();
        if annotations.is_empty() {
            self.published.clear();
        } else if self.published != *annotations {
            self.published.clone_from(annotations);
            (self.publish)(annotations.clone());
        }
        self.tell_ready();
    }

    /// Removes what an earlier start with other settings left, now that the new devices do its work.
    fn sweep(&mut self) {
        let left = observe::left_behind(&mut self.host, self.overlay.settings());
        for name in left.unwrap_or_default() {
            match self.host.ensure_no_link(&name) {
                Ok(_) => tracing::info!("removed {name}, which other settings left behind"),
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    fn try_again(&mut self) {
        let wait = self.backoff.failed(Instant::now());
        self.mark(wait);
    }

    /// Logs what is new of these words, and keeps them until they hold no longer.
    fn say(&mut self, words: BTreeSet<String>) {
        for word in words.difference(&self.said) {
            tracing::warn!("{word}");
        }
        self.health.problems(&words);
        self.said = words;
    }

    /// Has the paths to these nodes probed that were not yet.
    fn set_paths(&mut self, names: &BTreeSet<String>) {
        let Some((_, peers)) = self.nodes.known() else {
            return;
        };
        for name in names {
            let targets = self.overlay.targets(peers, name);
            for to in self.paths.set(name, &targets) {
                self.overlay.set_path(to, None);
                self.health.path(name, to, None);
            }
        }
    }

    /// Routes to a node follow what its path carries.
    fn path_measured(&mut self, news: &paths::News) {
        let paths::News { name, target, .. } = news;
        let (to, top) = (target.to, target.top);
        self.health.path(name, to, Some(news.verdict));
        if !self.overlay.set_path(to, Some(news.verdict)) {
            return;
        }
        match news.verdict {
            Verdict::Narrow(mtu) => tracing::warn!(
                "the path to node {name} ({to}) carries packets of {mtu} bytes, not of {top} as the link: its routes follow"
            ),
            _ => tracing::info!("the path to node {name} ({to}) carries packets of {top} bytes"),
        }
        self.pending.names.insert(name.clone());
        self.mark(Duration::ZERO);
    }

    fn wall_checked(&mut self, checked: linux::Result<usize>) {
        match checked {
            Ok(0) => {}
            Ok(mended) => tracing::info!("wrote {mended} parts of the firewall"),
            Err(error) => {
                tracing::warn!("what leaves the cluster may not be masqueraded: {error}");
            }
        }
        self.tell_ready();
    }

    /// Ready is: the data path is in order, pods are let start, and masquerading has been looked at.
    fn tell_ready(&mut self) {
        if self.synced
            && self.overlay.admits_pods()
            && !self.wall.is_busy()
            && let Some(ready) = self.ready.take()
        {
            tracing::info!("ready");
            self.health.ready();
            ready();
        }
    }
}
