//! The loop: events of the API and of the kernel mark what is to be done; a sync does it.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use api::core::Node;
use api::networking::NetworkPolicy;
use api::pod::{Namespace, Pod};
use client::{Client, Resource, Selection};
use futures::stream::select_all;
use futures::{FutureExt, Stream, StreamExt};
use linux::nftables::{Family, Monitor, Notice};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::enforcer::{Enforcer, Input};
use crate::observe::table;

/// What comes within this time of a first change is written with it.
const GATHER: Duration = Duration::from_millis(2);

/// The shortest and longest wait after a sync that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How often the table is compared although nothing was told.
const FULL: Duration = Duration::from_secs(300);

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

/// Keeps the policies of a node in the kernel until `stop`; they stay there. `ready` is called once,
/// when they first hold.
///
/// # Errors
/// The kernel has no nf_tables.
pub async fn run(
    node: &str,
    inputs: impl Stream<Item = Input>,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> linux::Result<()> {
    let mut inputs = pin!(inputs);
    let mut stop = pin!(stop);
    let monitor = register(Monitor::open()?)?;
    let mut work = Work {
        enforcer: Enforcer::open(node)?,
        ready: Some(ready),
        due: None,
        retry: RETRY.0,
        full: Instant::now() + FULL,
        said: BTreeSet::new(),
    };
    loop {
        let due = work.due.unwrap_or(work.full).min(work.full);
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            guard = monitor.readable() => {
                let mut guard = guard
                    .map_err(|e| linux::Error::new("listen for notifications of nf_tables", e))?;
                guard.clear_ready();
                work.notified(monitor.get_ref());
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
fn register(monitor: Monitor) -> linux::Result<AsyncFd<Monitor>> {
    AsyncFd::new(monitor).map_err(|e| linux::Error::new("listen for notifications of nf_tables", e))
}

struct Work<R> {
    enforcer: Enforcer,
    ready: Option<R>,
    due: Option<Instant>,
    retry: Duration,
    full: Instant,
    said: BTreeSet<String>,
}

impl<R: FnOnce()> Work<R> {
    fn take(&mut self, input: Input) {
        for problem in self.enforcer.take(input) {
            self.say(problem);
        }
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
                let ours = edit.family == Family::Inet && edit.table == table.name;
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
        match self.enforcer.sync() {
            Ok(report) => {
                self.retry = RETRY.0;
                if report.objects > 0 && !report.elements_only {
                    tracing::info!("network policy: {}", report.summary);
                } else if report.objects > 0 {
                    tracing::debug!("network policy: {}", report.summary);
                }
                if report.cut > 0 {
                    tracing::info!("cut {} connections that policies forbid", report.cut);
                }
                if self.enforcer.is_complete()
                    && let Some(ready) = self.ready.take()
                {
                    tracing::info!("network policies are enforced");
                    ready();
                }
            }
            Err(error) => {
                self.enforcer.doubt(false);
                self.say(format!("network policies are not up to date: {error}"));
                self.mark(self.retry);
                self.retry = (self.retry * 2).min(RETRY.1);
            }
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
