//! The loop: events of the API and of the kernel mark what is to be done; a sync does it.

use std::collections::BTreeSet;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::time::Duration;

use api::core::Node;
use api::networking::NetworkPolicy;
use api::pod::{Namespace, Pod};
use client::{Client, Resource, Selection};
use futures::stream::select_all;
use futures::{FutureExt, Stream, StreamExt};
use linux::netlink::{self, Group};
use linux::nftables::{Family, Monitor, Notice};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::enforcer::{Enforcer, Input, Options, Report};
use crate::observe::table;
use crate::parse::Direction;

/// What comes within this time of a first change is written with it.
const GATHER: Duration = Duration::from_millis(2);

/// The shortest and longest wait after a sync that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How often the table is compared although nothing was told.
const FULL: Duration = Duration::from_secs(300);

/// By these the kernel tells that a bridge of pods came or changed.
const LINKS: [Group; 3] = [Group::Link, Group::Ipv4Addr, Group::Ipv6Addr];

/// What a sync came to, for whoever watches the loop.
#[derive(Debug, Clone)]
pub struct Told {
    /// What it did; none: it failed, and is tried again.
    pub report: Option<Report>,
    /// How long it took.
    pub took: Duration,
    /// Everything was listed once, and is in the kernel.
    pub holds: bool,
    /// Policies that select a pod of this node.
    pub policies: usize,
    /// Pods of this node that are isolated, by direction.
    pub isolated: [usize; 2],
    /// Packets between pods of this node are routed, in place of br_netfilter.
    pub routed: bool,
    /// Why packets between pods of this node are not judged, if so.
    pub unjudged: Option<String>,
}

/// Everything that policies of one node depend on, from an API server.
pub fn watch(client: &Client, node: &str) -> impl Stream<Item = Input> + Send + Unpin + use<> {
    let all = Selection::default;
    let own = Selection::fields(format!("metadata.name={node}"));
    let policies = client.watch::<NetworkPolicy>(Resource::NETWORK_POLICIES, all());
    let namespaces = client.watch::<Namespace>(Resource::NAMESPACES, all());
    let pods = client.watch::<Pod>(Resource::PODS, all());
    let nodes = client.watch::<Node>(Resource::NODES, own);
    select_all([
        policies.map(Input::Policy).boxed(),
        namespaces.map(Input::Namespace).boxed(),
        pods.map(Input::Pod).boxed(),
        nodes.map(Input::Node).boxed(),
    ])
}

/// Keeps the policies of a node in the kernel until `stop`; they stay there. `told` hears of every
/// sync.
///
/// # Errors
/// The kernel has no nf_tables.
pub async fn run(
    node: &str,
    options: Options,
    inputs: impl Stream<Item = Input>,
    told: impl FnMut(Told),
    stop: impl Future<Output = ()>,
) -> linux::Result<()> {
    let mut inputs = pin!(inputs);
    let mut stop = pin!(stop);
    let monitor = register(Monitor::open()?)?;
    let links = register(netlink::Monitor::open(&LINKS)?)?;
    let mut work = Work {
        enforcer: Enforcer::open(node, options)?,
        told,
        held: false,
        due: None,
        retry: RETRY.0,
        full: Instant::now() + FULL,
        said: BTreeSet::new(),
        failed: None,
    };
    loop {
        let due = work.due.unwrap_or(work.full).min(work.full);
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            guard = monitor.readable() => {
                guard.map_err(deaf)?.clear_ready();
                work.notified(monitor.get_ref());
            }
            guard = links.readable() => {
                guard.map_err(deaf)?.clear_ready();
                if links.get_ref().drain() {
                    work.enforcer.doubt_bridge();
                    work.mark_if_due();
                }
            }
            () = tokio::time::sleep_until(due) => work.sync(),
            input = inputs.next() => {
                let Some(input) = input else { return Ok(()) };
                work.take(input);
                while let Some(Some(input)) = inputs.next().now_or_never() {
                    work.take(input);
                }
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what must hold does: the monitor owns its descriptor and lives as long as the registration"
)]
fn register<M: AsRawFd>(monitor: M) -> linux::Result<AsyncFd<M>> {
    AsyncFd::new(monitor).map_err(deaf)
}

fn deaf(error: std::io::Error) -> linux::Error {
    linux::Error::new("listen for notifications of the kernel", error)
}

struct Work<T> {
    enforcer: Enforcer,
    told: T,
    /// Policies were in the kernel once.
    held: bool,
    due: Option<Instant>,
    retry: Duration,
    full: Instant,
    said: BTreeSet<String>,
    /// Why the last sync failed, if it did.
    failed: Option<String>,
}

impl<T: FnMut(Told)> Work<T> {
    fn take(&mut self, input: Input) {
        for problem in self.enforcer.take(input) {
            self.say(problem);
        }
        self.mark_if_due();
    }

    fn mark_if_due(&mut self) {
        if self.enforcer.is_due() {
            self.mark(GATHER);
        }
    }

    fn mark(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Others changed something: of ours?
    fn notified(&mut self, monitor: &Monitor) {
        let port = self.enforcer.port();
        let table = table();
        let (mut doubt, mut rules) = (false, false);
        monitor.drain(|seen| match seen {
            Notice::Edit(edit) => {
                let family = [Family::Inet, Family::Bridge].contains(&edit.family);
                // Both tables have one name.
                let ours = family && edit.table == table.name;
                if ours && edit.port != port {
                    doubt = true;
                    rules |= !edit.of_elements();
                }
            }
            Notice::Lost => (doubt, rules) = (true, true),
            Notice::Done(_) => {}
        });
        if doubt {
            tracing::warn!("someone changed table {table}: it is put in order");
            self.enforcer.doubt(rules);
            self.mark(Duration::ZERO);
        }
    }

    fn sync(&mut self) {
        self.due = None;
        let now = Instant::now();
        if now >= self.full {
            self.full = now + FULL;
            self.enforcer.doubt(false);
        }
        let result = self.enforcer.sync();
        self.tell(now.elapsed(), result.as_ref().ok());
        match result {
            Ok(report) => {
                self.retry = RETRY.0;
                self.failed = None;
                if report.objects > 0 && !report.elements_only {
                    tracing::info!("network policy: {}", report.summary);
                } else if report.objects > 0 {
                    tracing::debug!("network policy: {}", report.summary);
                }
                if report.cut > 0 {
                    tracing::info!("cut {} connections that policies forbid", report.cut);
                }
                if self.enforcer.is_complete() && !std::mem::replace(&mut self.held, true) {
                    tracing::info!("network policies are enforced");
                }
            }
            Err(error) => {
                self.enforcer.doubt(false);
                self.fails(format!("network policies are not up to date: {error}"));
                self.mark(self.retry);
                self.retry = (self.retry * 2).min(RETRY.1);
            }
        }
    }

    fn tell(&mut self, took: Duration, report: Option<&Report>) {
        let enforcer = &self.enforcer;
        let count = |direction| enforcer.model().count_isolated(direction);
        let told = Told {
            report: report.cloned(),
            took,
            holds: report.is_some() && enforcer.is_complete(),
            policies: enforcer.at_work(),
            isolated: Direction::BOTH.map(count),
            routed: enforcer.bridge().is_routed(),
            unjudged: enforcer.bridge().unjudged().map(str::to_owned),
        };
        (self.told)(told);
    }

    /// Says when something begins to fail, or fails in another way.
    fn fails(&mut self, text: String) {
        if self.failed.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.failed = Some(text);
        }
    }

    /// Says each thing once.
    fn say(&mut self, text: String) {
        /// Enough for every policy of a large cluster; beyond that they are told again.
        const SAID_MAX: usize = 1000;
        if self.said.len() >= SAID_MAX {
            self.said.clear();
        }
        if !self.said.contains(&text) {
            tracing::warn!("{text}");
            self.said.insert(text);
        }
    }
}
