//! Whether the daemon lives and the data path is in order, and the server that tells: `/healthz`,
//! `/readyz`, `/metrics`.

mod paths;
mod policies;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
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

use paths::Paths;
use policies::Policies;

use super::path::Verdict;

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
    paths: Paths,
    /// None: policies are not enforced.
    policies: Option<Policies>,
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
                paths: Paths::default(),
                policies: None,
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

    /// Network policies are enforced, too: ready is only when they hold.
    pub fn expect_policies(&self) {
        self.lock().policies = Some(Policies::default());
    }

    /// A sync of network policies was made.
    pub fn policies(&self, told: &policy::Told) {
        let mut state = self.lock();
        state.policies.get_or_insert_default().take(told);
    }

    /// What the path to a node's address carries; none: nobody is there any more.
    pub fn path(&self, node: &str, to: IpAddr, verdict: Option<Verdict>) {
        self.lock().paths.set(node, to, verdict);
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
                let hold = state.policies.as_ref().is_none_or(Policies::hold);
                let good = state.ready && state.failures == 0 && hold;
                let mut words = vec![if good { "ok" } else { "not ready" }];
                words.extend(state.problems.iter().map(String::as_str));
                words.extend(state.policies.iter().filter_map(Policies::problem));
                Some((code(good), words.join("\n") + "\n"))
            }
            "/metrics" => {
                let policies = state.policies.as_ref().map(Policies::metrics);
                let text = metrics(&state) + &state.paths.metrics() + &policies.unwrap_or_default();
                Some((StatusCode::OK, text))
            }
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
        text += &metric(&format!("overlay_{name}"), kind, help, &value.to_string());
    }
    text
}

/// One metric without labels, in Prometheus' text format.
fn metric(name: &str, kind: &str, help: &str, value: &str) -> String {
    format!("# HELP seaway_{name} {help}.\n# TYPE seaway_{name} {kind}\nseaway_{name} {value}\n")
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
        assert!(!metrics.contains("seaway_policy"));
        health.synced(2, 1, 0);
        health.problems(&BTreeSet::new());
        assert_eq!(ready().0, StatusCode::OK);
    }

    #[test]
    fn with_network_policies_ready_is_when_they_hold() {
        let health = Health::default();
        health.expect_policies();
        health.synced(2, 7, 0);
        health.ready();
        let ready = || health.page("/readyz").unwrap();
        let waits = "not ready\nnetwork policies are not enforced yet\n".to_owned();
        assert_eq!(ready(), (StatusCode::SERVICE_UNAVAILABLE, waits));
        let mut told = policy::Told {
            report: Some(policy::Report {
                objects: 5,
                cut: 2,
                ..policy::Report::default()
            }),
            took: Duration::from_millis(250),
            holds: true,
            policies: 3,
            isolated: [4, 1],
            routed: true,
            unjudged: None,
        };
        health.policies(&told);
        assert_eq!(ready(), (StatusCode::OK, "ok\n".to_owned()));
        told.report = None;
        told.holds = false;
        health.policies(&told);
        let late = "not ready\nnetwork policies are not up to date\n".to_owned();
        assert_eq!(ready(), (StatusCode::SERVICE_UNAVAILABLE, late));
        // Most is judged: that is no reason to take the node away.
        told.report = Some(policy::Report::default());
        told.holds = true;
        told.unjudged = Some("no".to_owned());
        health.policies(&told);
        let words = "ok\nno\n".to_owned();
        assert_eq!(ready(), (StatusCode::OK, words));
        let metrics = health.page("/metrics").unwrap().1;
        for line in [
            "ready 1",
            "policies 3",
            "isolated_pods{direction=\"ingress\"} 4",
            "isolated_pods{direction=\"egress\"} 1",
            "bridged_judged 0",
            "syncs_total 3",
            "failures_total 1",
            "changes_total 5",
            "cut_connections_total 2",
            "sync_seconds_total 0.75",
        ] {
            let line = format!("\nseaway_policy_{line}\n");
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
    }
}
