//! Probing the paths to other nodes: echo requests that nobody may cut up, one path at a time in a
//! task of its own. A path that carries what the link does costs two packets each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use linux::echo::{Echo, Heard, Sent};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::path::{Pace, Search, Step, Target, Verdict};

/// Paths probed at a time; more wait.
const AT_ONCE: usize = 16;

/// The time from one start to the next: each fills a place in the kernel's table of neighbours, of
/// which there are 1024 unless somebody has set more (`gc_thresh3`), and which others need, too.
const GAP: Duration = Duration::from_millis(10);

/// A size counts as too large when this many packets of it were lost.
const TRIES: usize = 3;

/// A node that was never heard is asked again after this part of the time between looks, and then
/// each time later.
const SILENT_SOONER: u32 = 20;

/// Another node's name, and its address.
type Key = (String, IpAddr);

/// What a task gives back.
type Measured = (Key, Target, linux::Result<Verdict>);

/// A path, and what is known of it.
#[derive(Debug)]
struct Path {
    target: Target,
    verdict: Option<Verdict>,
    /// When it is due; none: it is under way.
    due: Option<Instant>,
    /// How often it was asked in vain.
    in_vain: u32,
}

/// A path is other than it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Whose.
    pub name: String,
    /// The path.
    pub target: Target,
    /// What is known of it.
    pub verdict: Verdict,
}

/// The keeper.
#[derive(Debug)]
pub struct Paths {
    /// None: nothing is probed.
    pace: Option<Pace>,
    all: BTreeMap<Key, Path>,
    queue: BTreeSet<(Instant, Key)>,
    tasks: JoinSet<Measured>,
    /// Nothing is started before.
    rest: Instant,
    /// The last failure that was logged.
    said: Option<String>,
}

impl Paths {
    /// A keeper of no paths yet.
    pub fn new(pace: Option<Pace>) -> Self {
        Self {
            pace,
            all: BTreeMap::new(),
            queue: BTreeSet::new(),
            tasks: JoinSet::new(),
            rest: Instant::now(),
            said: None,
        }
    }

    /// Says what the paths to a node are; gives the addresses that are none any more. New ones are
    /// probed at once. Costs nothing when nothing is different.
    pub fn set(&mut self, name: &str, targets: &[Target]) -> Vec<IpAddr> {
        if self.pace.is_none() {
            return Vec::new();
        }
        let from = (name.to_owned(), IpAddr::from([0; 4]));
        let of_node = self.all.range(from..).take_while(|((of, _), _)| of == name);
        let gone: Vec<Key> = of_node
            .filter(|((_, to), _)| targets.iter().all(|target| target.to != *to))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &gone {
            self.forget(key);
        }
        for target in targets {
            let key = (name.to_owned(), target.to);
            let verdict = match self.all.get(&key) {
                Some(path) if path.target == *target => continue,
                path => path.and_then(|path| path.verdict),
            };
            self.forget(&key);
            let now = Instant::now();
            self.queue.insert((now, key.clone()));
            let path = Path {
                target: *target,
                verdict,
                due: Some(now),
                in_vain: 0,
            };
            self.all.insert(key, path);
        }
        gone.into_iter().map(|(_, to)| to).collect()
    }

    /// The names of nodes with paths.
    pub fn names(&self) -> BTreeSet<String> {
        self.all.keys().map(|(name, _)| name.clone()).collect()
    }

    fn forget(&mut self, key: &Key) {
        if let Some(due) = self.all.remove(key).and_then(|path| path.due) {
            self.queue.remove(&(due, key.clone()));
        }
    }

    /// Waits until a path is found to be other than it was.
    pub async fn next(&mut self) -> News {
        loop {
            let next = self.queue.first().filter(|_| self.tasks.len() < AT_ONCE);
            let due = next.map(|(due, _)| (*due).max(self.rest));
            tokio::select! {
                Some(done) = self.tasks.join_next() => {
                    if let Ok(measured) = done
                        && let Some(news) = self.take(measured)
                    {
                        return news;
                    }
                }
                () = until(due) => self.start(),
            }
        }
    }

    /// Starts what is due first.
    fn start(&mut self) {
        let (Some(pace), Some((_, key))) = (self.pace, self.queue.pop_first()) else {
            return;
        };
        self.rest = Instant::now() + GAP;
        if let Some(path) = self.all.get_mut(&key) {
            path.due = None;
            let target = path.target;
            let search = target.search(path.verdict);
            self.tasks.spawn(async move {
                let verdict = measure(&target, search, pace).await;
                (key, target, verdict)
            });
        }
    }

    /// Notes what was found, and when to look again.
    fn take(&mut self, (key, target, outcome): Measured) -> Option<News> {
        let pace = self.pace?;
        // Of another's time, when it is not there any more or is other than it was.
        let path = self.all.get_mut(&key)?;
        if path.target != target || path.due.is_some() {
            return None;
        }
        let verdict = outcome.unwrap_or_else(|error| {
            let words = Some(error.to_string());
            if self.said != words {
                tracing::warn!("what paths to other nodes carry is not known: {error}");
                self.said = words;
            }
            Verdict::Silent
        });
        let before = path.verdict;
        let wait = match (verdict, before) {
            (Verdict::Silent, None | Some(Verdict::Silent)) => {
                path.verdict = Some(Verdict::Silent);
                path.in_vain = path.in_vain.saturating_add(1);
                let first = pace.every / SILENT_SOONER;
                (first * 2u32.saturating_pow(path.in_vain.min(8) - 1)).min(pace.every)
            }
            // It was heard before: it may be starting anew.
            (Verdict::Silent, Some(_)) => pace.every,
            (heard, _) => {
                path.verdict = Some(heard);
                path.in_vain = 0;
                pace.every
            }
        };
        // Not all at once.
        let due = Instant::now() + wait.mul_f64(rand::random_range(0.75..1.25));
        path.due = Some(due);
        let news = path.verdict.filter(|_| path.verdict != before);
        self.queue.insert((due, key.clone()));
        news.map(|verdict| News {
            name: key.0,
            target,
            verdict,
        })
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What came of packets of one size.
enum Outcome {
    Answered,
    /// Lost, with what is said to pass.
    Lost(Option<u32>),
    Unanswered,
}

/// Probes a path.
async fn measure(target: &Target, mut search: Search, pace: Pace) -> linux::Result<Verdict> {
    let mut prober = Prober::open(target, pace)?;
    loop {
        match search.step() {
            Step::Done(verdict) => return Ok(verdict),
            Step::Try(size) => match prober.ask(size, search.floor()).await? {
                Outcome::Answered => search.answered(size),
                Outcome::Lost(hint) => search.lost(size, hint),
                Outcome::Unanswered => search.unanswered(),
            },
        }
    }
}

/// One path under probe.
struct Prober {
    echo: AsyncFd<Echo>,
    seq: u16,
    pace: Pace,
}

impl Prober {
    fn open(target: &Target, pace: Pace) -> linux::Result<Self> {
        let echo = Echo::open(target.from, target.to, rand::random())?;
        Ok(Self {
            echo: register(echo)?,
            seq: 0,
            pace,
        })
    }

    /// Asks with packets of `size`, each with one of `small` behind it: when that one is answered
    /// and the large one is not, it is the size that does not pass.
    async fn ask(&mut self, size: u32, small: u32) -> linux::Result<Outcome> {
        let mut answers = false;
        for _ in 0..TRIES {
            let (large, behind) = (self.seq, self.seq.wrapping_add(1));
            self.seq = self.seq.wrapping_add(2);
            let sent = self.echo.get_ref().send(large, size)?;
            if sent == Sent::TooLarge {
                return Ok(Outcome::Lost(self.hint(size)));
            }
            self.echo.get_ref().send(behind, small)?;
            let mut until = Instant::now() + self.pace.wait;
            while let Ok(heard) = timeout_at(until, self.heard()).await {
                match heard? {
                    Heard::Reply(seq) if seq == large => return Ok(Outcome::Answered),
                    Heard::Reply(seq) if seq == behind => {
                        answers = true;
                        until = until.min(Instant::now() + self.pace.grace);
                    }
                    // Of an earlier one.
                    Heard::Reply(_) => {}
                    // Whoever told this has forwarded what is smaller.
                    Heard::TooLarge => {
                        if let Some(hint) = self.hint(size) {
                            return Ok(Outcome::Lost(Some(hint)));
                        }
                    }
                }
            }
        }
        Ok(match answers {
            true => Outcome::Lost(self.hint(size)),
            false => Outcome::Unanswered,
        })
    }

    /// What is said to pass, if that is less than `size`.
    fn hint(&self, size: u32) -> Option<u32> {
        self.echo.get_ref().path_mtu().filter(|mtu| *mtu < size)
    }

    async fn heard(&self) -> linux::Result<Heard> {
        loop {
            let fail = |e| linux::Error::new("wait for an echo", e);
            let mut guard = self.echo.readable().await.map_err(fail)?;
            match guard.get_inner().receive()? {
                Some(heard) => return Ok(heard),
                None => guard.clear_ready(),
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the other constructor is unsafe; this descriptor belongs to the socket alone"
)]
fn register(echo: Echo) -> linux::Result<AsyncFd<Echo>> {
    AsyncFd::new(echo).map_err(|e| linux::Error::new("wait for echoes", e))
}
