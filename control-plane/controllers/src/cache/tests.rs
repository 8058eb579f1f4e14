use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;

fn pod(name: &str, uid: &str, version: u64, owner: Option<&str>) -> Arc<Pod> {
    let owners = owner.map(|uid| {
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": uid, "controller": true}])
    });
    let pod = json!({"metadata": {
        "name": name, "namespace": "ns", "uid": uid,
        "resourceVersion": version.to_string(), "ownerReferences": owners,
    }});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn names(cache: &Cache<Pod>) -> Vec<String> {
    cache
        .values()
        .map(|pod| pod.metadata.name.clone().unwrap())
        .collect()
}

#[test]
fn older_events_are_no_news() {
    let mut cache = Cache::default();
    assert!(cache.seen(pod("a", "1", 5, None)).is_some());
    assert!(cache.seen(pod("a", "1", 5, None)).is_none());
    assert!(cache.seen(pod("a", "1", 4, None)).is_none());
    assert!(cache.written(pod("a", "1", 9, None), false).is_some());
    assert!(
        cache.seen(pod("a", "1", 7, None)).is_none(),
        "our own write is newer"
    );
    assert!(cache.seen(pod("a", "1", 10, None)).is_some());
}

#[test]
fn a_deleted_object_does_not_come_back() {
    let mut cache = Cache::default();
    cache.seen(pod("a", "1", 5, None));
    assert!(cache.deleted("ns", "a", "1").is_some());
    assert!(
        cache.seen(pod("a", "1", 6, None)).is_none(),
        "an event from before the deletion"
    );
    assert!(
        cache.written(pod("a", "1", 7, None), true).is_none(),
        "an answer that comes late"
    );
    assert!(
        cache.seen(pod("a", "2", 8, None)).is_some(),
        "another object of the same name"
    );
    assert!(cache.gone(&pod("a", "1", 9, None).metadata).is_none());
    assert_eq!(names(&cache), ["a"]);
}

#[test]
fn a_new_list_replaces_what_is_there_but_not_what_was_just_made() {
    let mut cache = Cache::default();
    cache.init();
    cache.seen(pod("a", "1", 1, None));
    cache.seen(pod("b", "2", 2, None));
    cache.init_done();
    assert!(cache.synced());
    cache.init();
    cache.seen(pod("b", "2", 2, None));
    cache.written(pod("c", "3", 7, None), true);
    let gone = cache.init_done();
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].metadata.name.as_deref(), Some("a"));
    assert_eq!(names(&cache), ["b", "c"]);
}

#[test]
fn owners_are_indexed_as_they_change() {
    let mut cache = Cache::default();
    cache.seen(pod("a", "1", 1, Some("x")));
    cache.seen(pod("b", "2", 2, None));
    assert_eq!(cache.controlled_by("x").count(), 1);
    assert_eq!(cache.orphans("ns").count(), 1);
    cache.seen(pod("a", "1", 3, Some("y")));
    assert_eq!(
        (
            cache.controlled_by("x").count(),
            cache.controlled_by("y").count()
        ),
        (0, 1)
    );
    cache.deleted("ns", "a", "1");
    assert_eq!(cache.controlled_by("y").count(), 0);
}

#[test]
fn what_was_written_and_is_gone_is_not_put_back() {
    let mut cache = Cache::default();
    assert!(cache.written(pod("a", "1", 5, None), false).is_none());
    assert_eq!(cache.len(), 0);
}

#[test]
fn a_creation_that_no_watch_shows_is_dropped_at_last() {
    let mut cache = Cache::default();
    cache.written(pod("a", "1", 5, None), true);
    cache.written(pod("b", "2", 6, None), true);
    assert!(cache.sweep().is_empty());
    cache.seen(pod("b", "2", 6, None));
    assert_eq!(cache.sweep().len(), 1);
    assert_eq!(names(&cache), ["b"]);
    assert!(cache.sweep().is_empty());
}
