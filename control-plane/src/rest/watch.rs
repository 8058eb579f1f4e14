//! watch: the current state and then every change, in order, as long as the client listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use rand::Rng;
use schema::kinds::Kind;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::filter::Filter;
use super::object::{decode, prefix, write_with_revision};
use super::query::{ListOptions, Query, RevMatch};
use super::read::{metadata_only, table};
use crate::app::App;
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::{Form, form};
use crate::http::path::Target;
use crate::metrics::Running;
use crate::store::{Error, Event, Kv, Range, Rev, Watch};

/// Time between bookmarks, as kube-apiserver's.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest life of a watch without `timeoutSeconds`; a random share of the same comes on top, so
/// that watches do not all end together (kube-apiserver's --min-request-timeout).
const LIFE_SECONDS_MIN: u64 = 1_800;
/// Events gathered into one piece of the body.
const CHUNK_BYTES: usize = 64 << 10;

struct Session {
    app: Arc<App>,
    render: Render,
    filter: Filter,
    /// Objects still to be sent as ADDED.
    initial: VecDeque<Kv>,
    /// Revision of the initial state when its end is to be announced.
    announce: Option<Rev>,
    watch: Watch,
    bookmarks: Option<tokio::time::Interval>,
    /// The revision the client knows.
    seen: Rev,
    end: Instant,
    over: bool,
    _running: Running,
}

/// Answers with a stream of events.
pub async fn watch(
    app: &Arc<App>,
    target: &Target,
    options: &ListOptions,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let kind = target.kind;
    if options.initial_events && options.rev_match != RevMatch::NotOlderThan {
        return Err(ApiError::new(
            http::StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
             sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let filter = Filter::parse(kind, options)?;
    let prefix = prefix(kind, target.namespace());
    let with_state = options.initial_events || options.rev.unwrap_or(0) == 0;
    let newest = app.store.current_rev();
    if let Some(asked) = options.rev.filter(|rev| *rev > newest) {
        return Err(ApiError::future_version(asked, newest));
    }
    let (initial, from) = if with_state {
        let page = app
            .store
            .list(Range {
                prefix: &prefix,
                ..Range::default()
            })
            .await?;
        let wanted = page
            .items
            .into_iter()
            .filter(|kv| filter.matches(&kv.key, &kv.value));
        (wanted.collect(), page.rev)
    } else {
        (VecDeque::new(), options.rev.unwrap_or(0))
    };
    let watch = match app.store.watch(&prefix, from) {
        Ok(watch) => watch,
        Err(error @ Error::Compacted { .. }) => return Ok(expired(&error.into())),
        Err(error) => return Err(error.into()),
    };
    let life = options
        .timeout_seconds
        .unwrap_or_else(|| LIFE_SECONDS_MIN + rand::rng().random_range(0..LIFE_SECONDS_MIN));
    let bookmarks = options.bookmarks.then(|| {
        let start = Instant::now() + BOOKMARK_INTERVAL;
        tokio::time::interval_at(start, BOOKMARK_INTERVAL)
    });
    let session = Session {
        render: Render {
            kind,
            form: form(headers),
            query: query.clone(),
            begun: false,
        },
        filter,
        initial,
        announce: options.initial_events.then_some(from),
        watch,
        bookmarks,
        seen: from,
        end: Instant::now() + Duration::from_secs(life),
        over: false,
        _running: app.metrics.watch_begins(),
        app: Arc::clone(app),
    };
    let body = stream::unfold(session, |mut session| async move {
        let chunk = session.next_chunk().await?;
        Some((chunk, session))
    });
    Ok(streaming(Body::stream(body)))
}

fn streaming(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// The answer to a revision that is too old: a stream of one ERROR event, as kube-apiserver gives.
fn expired(error: &ApiError) -> Response<Body> {
    let line = format!(
        "{}\n",
        json!({"type": "ERROR", "object": error.to_status()})
    );
    streaming(Body::full(line))
}

impl Session {
    /// The next piece of the body; none ends it.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        loop {
            if self.over {
                return None;
            }
            if let Err(error) = self.fill_initial(&mut out) {
                self.fail(&mut out, &error);
            }
            if out.is_empty() && !self.over {
                self.wait(&mut out).await;
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
    }

    fn fill_initial(&mut self, out: &mut BytesMut) -> Result<()> {
        while out.len() < CHUNK_BYTES
            && let Some(kv) = self.initial.pop_front()
        {
            self.render.event(out, "ADDED", &kv.value, kv.mod_rev)?;
        }
        if self.initial.is_empty()
            && let Some(rev) = self.announce.take()
        {
            self.render.bookmark(out, rev, true)?;
        }
        Ok(())
    }

    async fn wait(&mut self, out: &mut BytesMut) {
        let bookmark = async {
            match &mut self.bookmarks {
                Some(interval) => {
                    interval.tick().await;
                }
                None => std::future::pending().await,
            }
        };
        // Read before the queue is looked at: every event up to it is in the queue already.
        let newest = self.app.store.current_rev();
        let outcome = tokio::select! {
            biased;
            () = self.app.shutdown.cancelled() => { self.over = true; Ok(()) }
            event = self.watch.next() => match event {
                Some(event) => self.take(out, &event),
                None => { self.over = true; Ok(()) }
            },
            () = bookmark => self.bookmark(out, newest),
            () = tokio::time::sleep_until(self.end) => {
                self.over = true;
                if self.bookmarks.is_some() { self.bookmark(out, newest) } else { Ok(()) }
            }
        };
        if let Err(error) = outcome {
            self.fail(out, &error);
        }
    }

    /// Writes one event and those that wait behind it.
    fn take(&mut self, out: &mut BytesMut, event: &Event) -> Result<()> {
        self.change(out, event)?;
        while out.len() < CHUNK_BYTES
            && let Some(event) = self.watch.ready()
        {
            self.change(out, &event)?;
        }
        Ok(())
    }

    fn change(&mut self, out: &mut BytesMut, event: &Event) -> Result<()> {
        self.seen = event.rev;
        let wanted = |kv: &Kv| self.filter.matches(&kv.key, &kv.value);
        let now = event.now.as_ref().filter(|kv| wanted(kv));
        let before = event.before.as_ref().filter(|kv| wanted(kv));
        match (before, now) {
            (None, Some(kv)) => self.render.event(out, "ADDED", &kv.value, event.rev),
            (Some(_), Some(kv)) => self.render.event(out, "MODIFIED", &kv.value, event.rev),
            (Some(kv), None) => self.render.event(out, "DELETED", &kv.value, event.rev),
            (None, None) => Ok(()),
        }
    }

    /// Says how far the client has seen everything.
    fn bookmark(&mut self, out: &mut BytesMut, newest: Rev) -> Result<()> {
        self.seen = self.seen.max(newest);
        self.render.bookmark(out, self.seen, false)
    }

    fn fail(&mut self, out: &mut BytesMut, error: &ApiError) {
        self.over = true;
        let line = json!({"type": "ERROR", "object": error.to_status()});
        out.put_slice(format!("{line}\n").as_bytes());
    }
}

/// How events look to this client.
struct Render {
    kind: &'static Kind,
    form: Form,
    query: Query,
    /// Whether the first Table, which alone has the column definitions, is out.
    begun: bool,
}

impl Render {
    fn event(&mut self, out: &mut BytesMut, verb: &str, value: &[u8], rev: Rev) -> Result<()> {
        if self.form == Form::Object && self.kind.stored_as.is_none() {
            out.put_slice(format!("{{\"type\":\"{verb}\",\"object\":").as_bytes());
            write_with_revision(out, value, rev);
            out.put_slice(b"}\n");
            return Ok(());
        }
        let object = decode(self.kind, value, rev)?;
        let object = match self.form {
            Form::Object => object,
            Form::Metadata => metadata_only(&object),
            Form::Table => {
                let mut table = table(self.kind, std::slice::from_ref(&object), &self.query)?;
                table["metadata"] = json!({"resourceVersion": rev.to_string()});
                if self.begun {
                    table["columnDefinitions"] = Value::Null;
                }
                self.begun = true;
                table
            }
        };
        out.put_slice(format!("{}\n", json!({"type": verb, "object": object})).as_bytes());
        Ok(())
    }

    fn bookmark(&self, out: &mut BytesMut, rev: Rev, initial_end: bool) -> Result<()> {
        let mut metadata = json!({"resourceVersion": rev.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Object => json!({
                "kind": self.kind.kind,
                "apiVersion": self.kind.api_version(),
                "metadata": metadata,
            }),
            Form::Metadata => metadata_only(&json!({"metadata": metadata})),
            Form::Table => {
                // The annotation is looked for in the row's object.
                let object = json!({
                    "kind": self.kind.kind,
                    "apiVersion": self.kind.api_version(),
                    "metadata": metadata,
                });
                let mut table = table(self.kind, std::slice::from_ref(&object), &self.query)?;
                table["metadata"] = metadata;
                table
            }
        };
        let line = json!({"type": "BOOKMARK", "object": object});
        out.put_slice(format!("{line}\n").as_bytes());
        Ok(())
    }
}
