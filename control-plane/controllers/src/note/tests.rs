use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

fn note(message: &str) -> Note {
    let meta = ObjectMeta {
        name: Some("web".to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some("u".to_owned()),
        ..ObjectMeta::default()
    };
    Note::new(Kind::Pod, &meta, "test", "Reason", message)
}

#[test]
fn a_repeated_note_is_counted() {
    let mut recorder = Recorder::default();
    let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
    let Saying::Create { namespace, event } = recorder.say(&note("a"), now) else {
        panic!()
    };
    assert_eq!(namespace, "ns");
    assert_eq!(event["count"], 1);
    assert_eq!(event["firstTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(event["involvedObject"]["uid"], "u");
    assert_eq!(event["type"], "Normal");
    let name = event["metadata"]["name"].as_str().unwrap().to_owned();
    let Saying::Count {
        name: again, patch, ..
    } = recorder.say(&note("a"), now)
    else {
        panic!()
    };
    assert_eq!(again, name);
    assert_eq!(patch["count"], 2);
    let Saying::Create { event, .. } = recorder.say(&note("b"), now) else {
        panic!()
    };
    assert_ne!(
        event["metadata"]["name"],
        name.as_str(),
        "same instant, another name"
    );
}

#[test]
fn names_go_where_the_message_wants_them() {
    assert_eq!(note("Created pod: ").with("p").message, "Created pod: p");
    assert_eq!(
        note("create Pod {} successful").with("p").message,
        "create Pod p successful"
    );
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut recorder = Recorder::default();
    let now = Timestamp::UNIX_EPOCH;
    for index in 0..REMEMBERED_MAX + 10 {
        recorder.say(&note(&index.to_string()), now);
    }
    assert_eq!(recorder.known.len(), REMEMBERED_MAX);
}
