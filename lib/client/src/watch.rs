//! List and watch: a paged list, then a watch from its version on, and all over again when that
//! breaks. Objects are read one by one; one that cannot be read is logged and left out.

use std::collections::VecDeque;
use std::time::Duration;

use api::watch::Event;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::Method;
use http_body_util::BodyExt;
use kube::client::Body;
use rand::Rng;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::{Error, Result, Status, chain};
use crate::requests::{Client, query};
use crate::resource::{Resource, Selection};

/// Objects of one page of a list: what kubectl asks for too. A page of large objects is some MiB.
const PAGE: &str = "500";

/// The server is asked to end a watch after this time, and one that does not, and is silent, is
/// given up [`WATCH_GRACE`] later. Spread, so that the watches of many nodes do not end together.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;

/// See [`WATCH_SECONDS`].
const WATCH_GRACE: Duration = Duration::from_secs(30);

/// The longest line of a watch. The API server takes objects up to 3 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// A buffer that one large object made larger than this is given back.
const BUFFER_BYTES_KEPT: usize = 64 << 10;

impl Client {
    /// All selected objects, and every change from then on. The stream never ends: errors are
    /// logged, and the list starts anew ([`Event::Init`]) or the watch goes on, after a wait that
    /// doubles up to ten seconds.
    pub fn watch<T: DeserializeOwned + Send + 'static>(
        &self,
        resource: Resource,
        selection: Selection,
    ) -> BoxStream<'static, Event<T>> {
        let watch = Watch {
            client: self.clone(),
            resource,
            selection,
            state: State::Start,
            ready: VecDeque::new(),
            backoff: Backoff::default(),
            refused: false,
        };
        stream::unfold(watch, |mut watch| async move {
            let event = watch.next().await;
            Some((event, watch))
        })
        .boxed()
    }
}

/// All objects of a list, page by page.
pub(crate) async fn list<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    selection: &Selection,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    let mut from = String::new();
    loop {
        let page = page(client, resource, selection, &from).await?;
        all.extend(page.objects);
        match page.next {
            Some(next) => from = next,
            None => return Ok(all),
        }
    }
}

struct Watch<T> {
    client: Client,
    resource: Resource,
    selection: Selection,
    state: State,
    /// Read, but not yet taken.
    ready: VecDeque<Event<T>>,
    backoff: Backoff,
    /// The server's answer to the last watch was an error.
    refused: bool,
}

enum State {
    /// A list is due.
    Start,
    /// In a list, at the page that this token opens (empty: the first).
    Listing(String),
    /// Listed or watched up to this version.
    Listed(String),
    /// Watching.
    Watching(Box<Lines>, String),
}

impl<T: DeserializeOwned> Watch<T> {
    async fn next(&mut self) -> Event<T> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            match std::mem::replace(&mut self.state, State::Start) {
                State::Start => {
                    self.state = State::Listing(String::new());
                    return Event::Init;
                }
                State::Listing(from) => self.list(&from).await,
                State::Listed(version) => self.open(version).await,
                State::Watching(lines, version) => self.read(lines, version).await,
            }
        }
    }

    async fn list(&mut self, from: &str) {
        match page(&self.client, self.resource, &self.selection, from).await {
            Ok(page) => {
                self.backoff.reset();
                self.ready
                    .extend(page.objects.into_iter().map(Event::InitApply));
                self.state = match page.next {
                    Some(next) => State::Listing(next),
                    None => {
                        self.ready.push_back(Event::InitDone);
                        State::Listed(page.version)
                    }
                };
            }
            // The pages of an old list are compacted: a new one starts at once.
            Err(e) if e.is_gone() && !from.is_empty() => {}
            Err(e) => self.wait("list", &e).await,
        }
    }

    async fn open(&mut self, version: String) {
        let seconds = rand::rng().random_range(WATCH_SECONDS);
        let deadline = Instant::now() + Duration::from_secs(seconds) + WATCH_GRACE;
        let selection = &self.selection;
        let query = query(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &version),
            ("timeoutSeconds", &seconds.to_string()),
            ("labelSelector", &selection.labels),
            ("fieldSelector", &selection.fields),
        ]);
        let path = self.path();
        let open = self.client.open(Method::GET, &path, Some(&query), None);
        match tokio::time::timeout_at(deadline, open).await {
            Ok(Ok(response)) => {
                let lines = Lines::new(response.into_body(), deadline);
                self.refused = false;
                self.state = State::Watching(Box::new(lines), version);
            }
            Ok(Err(e)) if e.is_gone() => {
                tracing::info!("watch {}: {e}; listing again", self.resource.plural);
            }
            Ok(Err(e)) => {
                // A server that answers, but does not know this version even the second time, may
                // have lost its data: only a list helps.
                if e.code().is_none() || !self.refused {
                    self.state = State::Listed(version);
                }
                self.refused = e.code().is_some() && !self.refused;
                self.wait("watch", &e).await;
            }
            Err(_elapsed) => self.state = State::Listed(version),
        }
    }

    async fn read(&mut self, mut lines: Box<Lines>, mut version: String) {
        match lines.next().await {
            Ok(Some(line)) => match self.event(&line, &mut version) {
                Ok(()) => {
                    self.backoff.reset();
                    self.state = State::Watching(lines, version);
                }
                Err(e) if e.is_gone() => {
                    tracing::info!("watch {}: {e}; listing again", self.resource.plural);
                }
                Err(e) => self.wait("watch", &e).await,
            },
            // The server ended it, as asked; but one that ends each at once is not asked in a loop.
            Ok(None) => {
                self.state = State::Listed(version);
                if !lines.lived() {
                    let early =
                        Error::transport(&self.path(), "the server ended the watch at once");
                    self.wait("watch", &early).await;
                }
            }
            Err(why) => {
                self.state = State::Listed(version);
                let error = Error::transport(&self.path(), why);
                self.wait("watch", &error).await;
            }
        }
    }

    /// Takes one line of a watch.
    fn event(&mut self, line: &[u8], version: &mut String) -> Result<()> {
        let json = |source| Error::Json {
            op: format!("watch {}", self.resource.plural),
            source,
        };
        let change: Change<'_> = serde_json::from_slice(line).map_err(json)?;
        if change.kind == "ERROR" {
            let status: Status = serde_json::from_str(change.object.get()).map_err(json)?;
            return Err(Error::status(
                format!("watch {}", self.resource.plural),
                status,
            ));
        }
        if let Some(seen) = Head::of(change.object).metadata.resource_version {
            if is_before(seen, version) {
                let why = format!("version {seen} after {version}: the server lost its data");
                return Err(Error::transport(&self.path(), why));
            }
            version.replace_range(.., seen);
        }
        let wrap: fn(T) -> Event<T> = match change.kind {
            "ADDED" | "MODIFIED" => Event::Apply,
            "DELETED" => Event::Delete,
            "BOOKMARK" => return Ok(()),
            other => {
                tracing::warn!("watch {}: unknown event {other:?}", self.resource.plural);
                return Ok(());
            }
        };
        self.ready
            .extend(decode(self.resource, change.object).map(wrap));
        Ok(())
    }

    fn path(&self) -> String {
        let namespace = self.selection.namespace.as_deref();
        self.resource.path(namespace, None, None)
    }

    async fn wait(&mut self, verb: &str, error: &Error) {
        let wait = self.backoff.next();
        if self.backoff.is_loud() {
            tracing::warn!("{verb} {}: {error}; trying again", self.resource.plural);
        } else {
            tracing::debug!(?wait, "{verb} {}: {error}", self.resource.plural);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Whether one resource version is older than another. They are decimal numbers that only grow, as
/// clients may rely on since Kubernetes 1.35 (KEP-5504); others are not compared.
fn is_before(seen: &str, version: &str) -> bool {
    match (seen.parse::<u64>(), version.parse::<u64>()) {
        (Ok(seen), Ok(version)) => seen < version,
        _ => false,
    }
}

/// One page of a list.
struct Page<T> {
    objects: Vec<T>,
    version: String,
    next: Option<String>,
}

async fn page<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    selection: &Selection,
    from: &str,
) -> Result<Page<T>> {
    let path = resource.path(selection.namespace.as_deref(), None, None);
    let query = query(&[
        ("limit", PAGE),
        ("continue", from),
        ("labelSelector", &selection.labels),
        ("fieldSelector", &selection.fields),
    ]);
    let body = client.bytes(Method::GET, &path, Some(&query), None).await?;
    let list: List<'_> = serde_json::from_slice(&body).map_err(|source| Error::Json {
        op: format!("GET {path}"),
        source,
    })?;
    let items = list.items.unwrap_or_default();
    Ok(Page {
        objects: items
            .into_iter()
            .filter_map(|item| decode(resource, item))
            .collect(),
        version: list.metadata.resource_version.unwrap_or_default(),
        next: list.metadata.next.filter(|next| !next.is_empty()),
    })
}

/// Reads one object; `None`, with a line in the log, when it is not what it should be.
fn decode<T: DeserializeOwned>(resource: Resource, raw: &RawValue) -> Option<T> {
    match serde_json::from_str(raw.get()) {
        Ok(object) => Some(object),
        Err(error) => {
            let head = Head::of(raw).metadata;
            tracing::warn!(
                "{} {}{}{} is left out: {error}",
                resource.plural,
                head.namespace.as_deref().unwrap_or_default(),
                if head.namespace.is_some() { "/" } else { "" },
                head.name.as_deref().unwrap_or("without a name"),
            );
            None
        }
    }
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Change<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What every object has.
#[derive(Default, Deserialize)]
struct Head<'a> {
    #[serde(default, borrow)]
    metadata: HeadMeta<'a>,
}

#[derive(Default, Deserialize)]
struct HeadMeta<'a> {
    #[serde(rename = "resourceVersion", borrow)]
    resource_version: Option<&'a str>,
    name: Option<String>,
    namespace: Option<String>,
}

impl<'a> Head<'a> {
    fn of(raw: &'a RawValue) -> Self {
        serde_json::from_str(raw.get()).unwrap_or_default()
    }
}

/// The lines of a watch's body.
struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Up to here the buffer has no line break.
    scanned: usize,
    opened: Instant,
    deadline: Instant,
}

impl Lines {
    fn new(body: Body, deadline: Instant) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            scanned: 0,
            opened: Instant::now(),
            deadline,
        }
    }

    /// Whether it was open long enough to ask for another at once.
    fn lived(&self) -> bool {
        self.opened.elapsed() > Duration::from_secs(1)
    }

    /// The next line, without its break; `None` at the end.
    async fn next(&mut self) -> std::result::Result<Option<Bytes>, String> {
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + at + 1).freeze();
                self.scanned = 0;
                if self.buffer.is_empty() && line.len() > BUFFER_BYTES_KEPT {
                    self.buffer = BytesMut::new();
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > LINE_BYTES_MAX {
                return Err(format!("a line of more than {LINE_BYTES_MAX} bytes"));
            }
            let frame = match tokio::time::timeout_at(self.deadline, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(chain(&error)),
                Ok(None) => return Ok(None),
                Err(_elapsed) => return Err("silent past its time".to_owned()),
            };
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
