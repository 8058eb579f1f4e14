//! Whether the daemon lives and the data path is in order, and the server that tells: `/healthz`,
//! `/readyz`, `/metrics`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The loop compares everything each minute; one that has not for this long hangs.
const BEAT_MAX: Duration = Duration::from_secs(180);

/// A request's head must be there by then.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections served at a time; more wait.
const CONNECTIONS_MAX: usize = 16;

#[derive(Debug)]
struct State {
    beat: Instant,
    ready: bool,
    failures: usize,
    problems: BTreeSet<String>,
    peers: usize,
    syncs: u64,
    changes: u64,
    failed: u64,
}

/// What the loop tells of itself.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                beat: Instant::now(),
                ready: false,
                failures: 0,
                problems: BTreeSet::new(),
                peers: 0,
                syncs: 0,
                changes: 0,
                failed: 0,
            }),
        }
    }
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop turns.
    pub fn beat(&self) {
        self.lock().beat = Instant::now();
    }

    /// The first complete sync is done.
    pub fn ready(&self) {
        self.lock().ready = true;
    }

    /// A sync was made.
    pub fn synced(&self, peers: usize, changes: usize, failures: usize) {
        let mut state = self.lock();
        state.peers = peers;
        state.failures = failures;
        state.syncs += 1;
        state.changes += u64::try_from(changes).unwrap_or(u64::MAX);
        state.failed += u64::try_from(failures).unwrap_or(u64::MAX);
    }

    /// What is wrong at this time.
    pub fn problems(&self, words: &BTreeSet<String>) {
        self.lock().problems.clone_from(words);
    }

    /// Status and body of a page; none when there is no such page.
    fn page(&self, path: &str) -> Option<(StatusCode, String)> {
        let state = self.lock();
        let code = |good| {
            if good {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        match path {
            "/healthz" => {
                let good = state.beat.elapsed() < BEAT_MAX;
                let word = if good { "ok\n" } else { "the loop hangs\n" };
                Some((code(good), word.to_owned()))
            }
            "/readyz" => {
                let good = state.ready && state.failures == 0;
                let word = if good { "ok" } else { "not ready" };
                let words = state.problems.iter().fold(word.to_owned(), |mut all, why| {
                    all.push('\n');
                    all.push_str(why);
                    all
                });
                Some((code(good), words + "\n"))
            }
            "/metrics" => Some((StatusCode::OK, metrics(&state))),
            _ => None,
        }
    }
}

fn metrics(state: &State) -> String {
    let problems = u64::try_from(state.problems.len()).unwrap_or(u64::MAX);
    let peers = u64::try_from(state.peers).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("peers", "gauge", "Other nodes known", peers),
        (
            "problems",
            "gauge",
            "Things that could not be honoured",
            problems,
        ),
        (
            "ready",
            "gauge",
            "1 once everything was made",
            state.ready.into(),
        ),
        (
            "syncs_total",
            "counter",
            "Comparisons, of all or of some",
            state.syncs,
        ),
        (
            "changes_total",
            "counter",
            "Changes made in the kernel",
            state.changes,
        ),
        (
            "failures_total",
            "counter",
            "Changes that failed",
            state.failed,
        ),
    ] {
        text += &format!(
            "# HELP seaway_overlay_{name} {help}.\n# TYPE seaway_overlay_{name} {kind}\nseaway_overlay_{name} {value}\n"
        );
    }
    text
}

/// Takes the address for the pages.
///
/// # Errors
/// It is not to be had.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| std::io::Error::new(e.kind(), format!("listen on {address}: {e}")))
}

/// Serves the pages for ever.
pub async fn serve(health: Arc<Health>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others close theirs meanwhile.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let health = Arc::clone(&health);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&health, request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .keep_alive(false);
            // Whoever breaks the connection gets no answer.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn answer(health: &Health, path: &str) -> Response<Full<Bytes>> {
    let (code, body) = health
        .page(path)
        .unwrap_or_else(|| (StatusCode::NOT_FOUND, "not found\n".to_owned()));
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let text = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_after_the_first_sync_and_while_nothing_fails() {
        let health = Health::default();
        let ready = || health.page("/readyz").unwrap();
        assert_eq!(ready().0, StatusCode::SERVICE_UNAVAILABLE);
        health.synced(2, 7, 0);
        health.ready();
        assert_eq!(ready(), (StatusCode::OK, "ok\n".to_owned()));
        health.synced(2, 1, 1);
        health.problems(&BTreeSet::from(["set route: no".to_owned()]));
        let expect = "not ready\nset route: no\n".to_owned();
        assert_eq!(ready(), (StatusCode::SERVICE_UNAVAILABLE, expect));
        assert_eq!(health.page("/healthz").unwrap().0, StatusCode::OK);
        let metrics = health.page("/metrics").unwrap().1;
        for line in ["peers 2", "changes_total 8", "failures_total 1", "ready 1"] {
            let line = format!("\nseaway_overlay_{line}\n");
            assert!(metrics.contains(&line), "{metrics}");
        }
        assert_eq!(health.page("/"), None);
    }
}
