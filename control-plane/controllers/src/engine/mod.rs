//! The loop: what is observed goes into the brain, what it decides is carried out.

pub(crate) mod apply;
pub(crate) mod brain;
mod call;
mod events;
mod queue;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::view::Now;
use apply::Applier;
use brain::{Brain, Change, Done};

/// Why the controllers stopped by themselves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task that carries out writes has panicked.
    #[error("carry out writes: {0}")]
    Writer(#[source] tokio::task::JoinError),
    /// Every watch has ended.
    #[error("watch the cluster: all watches have ended")]
    WatchesEnded,
}

/// Observations that wait for the brain; a full queue slows the watches down, nothing is lost.
const CHANGES_MAX: usize = 1024;
/// Observations taken in before jobs are looked for.
const CHANGES_AT_A_TIME: usize = 256;
/// The longest sleep of the loop.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Runs all controllers and the scheduler until `shutdown` is cancelled.
///
/// Errors of single objects and of the API server are logged and tried again with a growing delay; they do not end it.
///
/// # Errors
///
/// [`Error`] when the controllers cannot go on: a defect, not a state of the cluster.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let start = Instant::now();
    let now = || Now {
        wall: Timestamp::now(),
        mono: start.elapsed(),
    };
    let (changes_in, mut changes) = mpsc::channel::<Change>(CHANGES_MAX);
    let mut watches = JoinSet::new();
    watch::spawn(&mut watches, &client, &changes_in);
    let (notes, sender) = events::channel(client.clone());
    watches.spawn(sender);
    let applier = Arc::new(Applier::new(client.clone(), notes));
    watches.spawn(watch::discover(client, changes_in, applier.resources()));

    let mut brain = Brain::new(config);
    let mut running: JoinSet<Done> = JoinSet::new();
    loop {
        while let Some(job) = brain.next_job(now()) {
            running.spawn(Arc::clone(&applier).run(job));
        }
        let wait = brain.next_due().map_or(IDLE_MAX, |due| {
            due.saturating_sub(start.elapsed()).min(IDLE_MAX)
        });
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            change = changes.recv() => {
                let Some(change) = change else { return Err(Error::WatchesEnded) };
                brain.observe(change, now());
                for _ in 0..CHANGES_AT_A_TIME {
                    let Ok(change) = changes.try_recv() else { break };
                    brain.observe(change, now());
                }
            }
            Some(done) = running.join_next() => brain.done(done.map_err(Error::Writer)?, now()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}
