//! What the server does on its own while it runs: old events go, its own service comes back.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schema::kinds::kind_by_resource;
use serde_json::Value;

use crate::app::App;
use crate::bootstrap;
use crate::rest::object::{key, prefix, text};
use crate::store::{Op, Range};

/// Life of an event after it was last seen, as kube-apiserver's --event-ttl.
const EVENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// Time between two looks for old events.
const EVENT_INTERVAL: Duration = Duration::from_secs(60);
/// Time between two tries to put back what somebody deletes again and again.
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the server stops.
pub async fn run(app: Arc<App>) {
    let stop = app.shutdown.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = expire_events(&app) => {}
        () = keep_own_objects(&app) => {}
    }
}

async fn expire_events(app: &App) {
    let mut interval = tokio::time::interval(EVENT_INTERVAL);
    loop {
        interval.tick().await;
        if let Err(error) = expire_once(app, Timestamp::now()).await {
            tracing::warn!("removing old events: {error}");
        }
    }
}

async fn expire_once(app: &App, now: Timestamp) -> Result<usize, crate::store::Error> {
    let Some(kind) = kind_by_resource("", "v1", "events") else {
        return Ok(0);
    };
    let prefix = prefix(kind, "");
    let page = app
        .store
        .list(Range {
            prefix: &prefix,
            ..Range::default()
        })
        .await?;
    let is_old = |value: &[u8]| {
        serde_json::from_slice(value)
            .ok()
            .and_then(|event| last_seen(&event))
            .is_some_and(|seen| now.duration_since(seen) > EVENT_LIFE)
    };
    let old: Vec<Op> = page
        .items
        .iter()
        .filter(|kv| is_old(&kv.value))
        .map(|kv| Op::remove(&*kv.key))
        .collect();
    let count = old.len();
    if count > 0 {
        app.store.txn(old).await?;
    }
    Ok(count)
}

/// When an event was last heard of.
fn last_seen(event: &Value) -> Option<Timestamp> {
    let times = [
        "/metadata/creationTimestamp",
        "/lastTimestamp",
        "/eventTime",
        "/series/lastObservedTime",
    ];
    times
        .into_iter()
        .filter_map(|pointer| text(event, pointer).parse().ok())
        .max()
}

/// Puts the server's own service and endpoints back when somebody deletes them.
async fn keep_own_objects(app: &Arc<App>) {
    let own = [
        ("", "services"),
        ("", "endpoints"),
        ("discovery.k8s.io", "endpointslices"),
    ];
    let prefixes = own.into_iter().filter_map(|(group, plural)| {
        Some(key(
            kind_by_resource(group, "v1", plural)?,
            "default",
            "kubernetes",
        ))
    });
    let watches = prefixes.map(|prefix| keep(app, prefix));
    futures::future::join_all(watches).await;
}

async fn keep(app: &Arc<App>, prefix: String) {
    loop {
        let mut watch = match app.store.watch(&prefix, app.store.current_rev()) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(prefix, "watching our own objects: {error}");
                tokio::time::sleep(RESTORE_INTERVAL).await;
                continue;
            }
        };
        while let Some(event) = watch.next().await {
            if event.now.is_some() {
                continue;
            }
            if let Err(error) = bootstrap::ensure(app).await {
                tracing::warn!(key = &*event.key, "putting it back: {error:#}");
            }
            tokio::time::sleep(RESTORE_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_latest_time_counts() {
        let event = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "lastTimestamp": "2026-01-01T02:00:00Z",
            "eventTime": null,
        });
        assert_eq!(
            last_seen(&event),
            Some("2026-01-01T02:00:00Z".parse().unwrap())
        );
        assert_eq!(last_seen(&json!({})), None);
    }
}
