//! Container logs: the end of a file, and what is added to it while the container runs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::{Body, Query, text};
use crate::context::{Context, Shown};
use crate::crilog::{Filter, Renderer, tail_offset};
use crate::notice::Notice;
use crate::pod::{self, PodId};
use crate::spec::log_path;

/// Bytes read at a time.
const READ: usize = 32 << 10;
/// First size of the end of a file that is searched for the last lines; it doubles.
const TAIL_FIRST: u64 = 16 << 10;
/// Pieces that may wait for a slow reader.
const QUEUE: usize = 4;
/// A follower looks this often whether the container has ended, besides each change of the log.
const END_LOOK: Duration = Duration::from_millis(250);

/// What of which log.
struct Job {
    ctx: Context,
    uid: String,
    /// The run whose log it is.
    container: String,
    attempt: u32,
    file: PathBuf,
    filter: Filter,
    tail: Option<usize>,
    follow: bool,
}

/// Answers a request for a log.
pub(super) async fn answer(
    ctx: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let job = match job(ctx, namespace, name, container, query) {
        Ok(job) => job,
        Err((status, why)) => return text(status, why),
    };
    let file = match File::open(&job.file).await {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            let why = format!("open the log of container \"{container}\": {e}\n");
            return text(StatusCode::INTERNAL_SERVER_ERROR, why);
        }
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut reader = Reader {
            renderer: Renderer::new(job.filter.clone()),
            job,
            sender,
            rest: Vec::new(),
        };
        if let Err(e) = reader.run(file).await {
            // A reader that went away ends up here too.
            tracing::debug!(error = %e, "log");
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        let bytes: Bytes = receiver.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(bytes)), receiver))
    });
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

fn job(
    ctx: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Result<Job, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let Some(shown) = ctx.board.find(namespace, name) else {
        let why = format!("pod \"{name}\" not found in namespace \"{namespace}\" on this node\n");
        return Err((StatusCode::NOT_FOUND, why));
    };
    if pod::container(&shown.pod, container).is_none() {
        let why = format!("container {container} is not valid for pod {name}\n");
        return Err(bad(why));
    }
    let previous = query.is_set("previous");
    let attempt = attempt(&shown, container, previous).ok_or_else(|| {
        bad(match previous {
            true => format!(
                "previous terminated container \"{container}\" in pod \"{name}\" not found\n"
            ),
            false => format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: {}\n",
                waiting_reason(&shown, container)
            ),
        })
    })?;
    let since = match (
        query.number("sinceSeconds").map_err(bad)?,
        query.get("sinceTime"),
    ) {
        (Some(_), Some(_)) => {
            return Err(bad(
                "at most one of sinceTime or sinceSeconds may be specified\n".to_owned(),
            ));
        }
        (Some(seconds), None) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            let ago = SignedDuration::from_secs(seconds);
            Some(Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => {
            let parsed = time.parse();
            Some(parsed.map_err(|e| bad(format!("sinceTime: {e}\n")))?)
        }
        (None, None) => None,
    };
    let tail = query.number("tailLines").map_err(bad)?;
    let id = PodId::of(&shown.pod);
    Ok(Job {
        ctx: ctx.clone(),
        file: log_path(&ctx.node.log_dir(&id), container, attempt),
        uid: id.uid,
        container: container.to_owned(),
        attempt,
        filter: Filter {
            since,
            timestamps: query.is_set("timestamps"),
            limit_bytes: query.number("limitBytes").map_err(bad)?,
        },
        tail: tail.map(|t| usize::try_from(t).unwrap_or(usize::MAX)),
        follow: query.is_set("follow") && !previous,
    })
}

/// The run whose log is wanted. Runs the runtime has forgotten are known from the status.
fn attempt(shown: &Shown, container: &str, previous: bool) -> Option<u32> {
    let latest = shown
        .observed
        .latest(container)
        .map(|r| r.attempt)
        .or_else(|| {
            let status = &shown.status;
            let mut all = status
                .container_statuses
                .iter()
                .chain(&status.init_container_statuses)
                .flatten();
            let found = all.find(|s| s.name == container && s.container_id.is_some())?;
            u32::try_from(found.restart_count).ok()
        })?;
    if previous && !awaits_restart(shown, container) {
        return shown
            .observed
            .last_exit(container, latest)
            .map(|r| r.attempt);
    }
    Some(latest)
}

/// Whether the newest run is over and the next one has yet to start (back-off): the newest run is
/// the previous one then, as the status says by its lastState.
fn awaits_restart(shown: &Shown, container: &str) -> bool {
    let status = &shown.status;
    let mut all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    all.find(|s| s.name == container).is_some_and(|s| {
        let waiting = s
            .state
            .as_ref()
            .is_some_and(|state| state.waiting.is_some());
        let ended = s.last_state.as_ref();
        waiting && ended.is_some_and(|state| state.terminated.is_some())
    })
}

fn waiting_reason(shown: &Shown, container: &str) -> String {
    let mut all = shown
        .status
        .container_statuses
        .iter()
        .chain(&shown.status.init_container_statuses)
        .flatten();
    let found = all.find(|s| s.name == container);
    let waiting = found.and_then(|s| s.state.as_ref()?.waiting.clone());
    let reason = waiting.and_then(|w| w.reason);
    reason.unwrap_or_else(|| "ContainerCreating".to_owned())
}

struct Reader {
    job: Job,
    renderer: Renderer,
    sender: mpsc::Sender<Bytes>,
    /// A line that is not whole yet.
    rest: Vec<u8>,
}

impl Reader {
    async fn run(&mut self, file: Option<File>) -> io::Result<()> {
        let mut file = match file {
            Some(mut file) => {
                if let Some(lines) = self.job.tail {
                    seek_tail(&mut file, lines).await?;
                }
                file
            }
            None if self.job.follow => match self.wait_for_file().await? {
                Some(file) => file,
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        // The watch begins before the file is read, so no change is missed.
        let dir = self.job.file.parent().unwrap_or(Path::new("/")).to_owned();
        let mut notice = match self.job.follow {
            true => Some(Notice::watch(&[&dir], true)?),
            false => None,
        };
        loop {
            // Whether it had ended is asked before the last read, so that this sees all there is.
            let ended = !self.job.follow || self.has_ended();
            self.read_all(&mut file).await?;
            if self.renderer.is_full() || self.sender.is_closed() {
                return Ok(());
            }
            if self.job.follow
                && let Some(next) = rotated(&file, &self.job.file).await
            {
                self.read_all(&mut file).await?;
                file = next;
                continue;
            }
            let Some(notice) = notice.as_mut().filter(|_| !ended) else {
                return Ok(());
            };
            tokio::select! {
                changed = notice.changed() => changed?,
                () = tokio::time::sleep(END_LOOK) => {}
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    /// The log of a container that is about to start.
    async fn wait_for_file(&self) -> io::Result<Option<File>> {
        loop {
            match File::open(&self.job.file).await {
                Ok(file) => return Ok(Some(file)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            if self.has_ended() || self.sender.is_closed() {
                return Ok(None);
            }
            tokio::time::sleep(END_LOOK).await;
        }
    }

    /// The run is not running (any more).
    fn has_ended(&self) -> bool {
        let all = self.job.ctx.board.all();
        let shown = all
            .iter()
            .find(|s| s.pod.metadata.uid.as_deref() == Some(&self.job.uid));
        let Some(shown) = shown else { return true };
        let mut runs = shown.observed.containers.iter();
        let run = runs.find(|r| r.name == self.job.container && r.attempt == self.job.attempt);
        run.is_none_or(|r| r.exit().is_some())
    }

    async fn read_all(&mut self, file: &mut File) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        loop {
            let n = file.read(&mut buffer).await?;
            if n == 0 || self.renderer.is_full() {
                return Ok(());
            }
            let mut out = Vec::new();
            let mut bytes = &buffer[..n];
            while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
                self.rest.extend_from_slice(&bytes[..end]);
                self.renderer.push(&self.rest, &mut out);
                self.rest.clear();
                bytes = &bytes[end + 1..];
            }
            self.rest.extend_from_slice(bytes);
            if !out.is_empty() && self.sender.send(out.into()).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }
}

/// The file that has taken the place of `file` at `path`, if one has.
async fn rotated(file: &File, path: &Path) -> Option<File> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata().await.ok()?;
    let theirs = tokio::fs::metadata(path).await.ok()?;
    if ours.ino() == theirs.ino() {
        return None;
    }
    File::open(path).await.ok()
}

/// Puts the reading position before the last `lines` lines.
async fn seek_tail(file: &mut File, lines: usize) -> io::Result<()> {
    let len = file.metadata().await?.len();
    let mut size = TAIL_FIRST.min(len);
    loop {
        let start = len - size;
        file.seek(io::SeekFrom::Start(start)).await?;
        let mut end = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        file.read_exact(&mut end).await?;
        let offset = tail_offset(&end, lines);
        // The first line of a part is not whole, unless the part is all there is.
        if offset > 0 || start == 0 {
            let offset = u64::try_from(offset).unwrap_or(0);
            file.seek(io::SeekFrom::Start(start + offset)).await?;
            return Ok(());
        }
        size = (size * 2).min(len);
    }
}
