use proptest::prelude::*;
use serde_json::json;

use super::*;

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend(bytes);
    out
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
}

#[test]
fn a_config_map() {
    let metadata = [field(1, b"settings"), field(3, b"default"), field(8, b"")].concat();
    let entry = [field(1, b"a"), field(2, b"b")].concat();
    let binary = [field(1, b"x"), field(2, &[0, 255])].concat();
    let raw = [
        field(1, &metadata),
        field(2, &entry),
        field(3, &binary),
        vec![4 << 3, 0],
    ]
    .concat();
    assert_eq!(
        decode(&envelope("v1", "ConfigMap", &raw)),
        Ok(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "settings", "namespace": "default"},
            "data": {"a": "b"}, "binaryData": {"x": "AP8="}, "immutable": false}))
    );
}

#[test]
fn delete_options_of_any_group() {
    let raw = [vec![1 << 3, 0], field(4, b"Background")].concat();
    assert_eq!(
        decode(&envelope("apps/v1", "DeleteOptions", &raw)),
        Ok(
            json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "propagationPolicy": "Background"})
        )
    );
}

#[test]
fn refusals() {
    assert_eq!(decode(b"{}"), Err(Error::Magic));
    assert!(matches!(
        decode(&envelope("v1", "Nothing", b"")),
        Err(Error::UnknownKind { .. })
    ));
    assert_eq!(
        decode(&envelope("v1", "ConfigMap", &[0x0a, 5, 1])),
        Err(Error::Wire("unexpected end of the message"))
    );
    assert!(matches!(
        decode(&envelope("v1", "ConfigMap", &[1 << 3, 5])),
        Err(Error::WireType {
            field: "metadata",
            ..
        })
    ));
}

#[test]
fn durations_as_go_writes_them() {
    let text = |nanos: i64| {
        let mut bytes = vec![8];
        let mut rest = nanos.cast_unsigned();
        while rest >= 0x80 {
            bytes.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
            rest >>= 7;
        }
        bytes.push(u8::try_from(rest).unwrap());
        wire::duration(&bytes).unwrap()
    };
    assert_eq!(text(90_000_000_000), "1m30s");
    assert_eq!(text(3_600_000_000_000), "1h0m0s");
    assert_eq!(text(1_500_000_000), "1.5s");
    assert_eq!(text(-1_000_000_000), "-1s");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (api_version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Secret"),
            ("networking.k8s.io/v1", "NetworkPolicy"), ("v1", "Event")] {
            drop(decode(&envelope_long(api_version, kind, &bytes)));
        }
        drop(decode(&bytes));
        drop(decode(&[MAGIC, &bytes].concat()));
    }

    #[test]
    fn damaged_recordings_never_panic(index in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for (_, body, _) in recordings() {
            let mut body = body.clone();
            let at = index.index(body.len());
            body[at] = byte;
            drop(decode(&body));
        }
    }
}

fn envelope_long(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    let mut out = [MAGIC.to_vec(), field(1, &meta)].concat();
    out.push(2 << 3 | 2);
    let length = raw.len();
    if length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        out.push(u8::try_from(length >> 7).unwrap());
    } else {
        out.push(u8::try_from(length).unwrap());
    }
    out.extend(raw);
    out
}

/// Bodies recorded from a real kubectl 1.35, with what the same kubectl prints for the object
/// (`--dry-run=client -o json`) where it can: name, body, JSON or nothing.
fn recordings() -> Vec<(&'static str, Vec<u8>, Option<Value>)> {
    let lines = include_str!("../../tests/data/protobuf.txt").lines();
    lines
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let parts: Vec<&str> = line.split('\t').collect();
            let [name, hex, json] = parts[..] else {
                panic!("{line}")
            };
            let digits: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            (name, digits, serde_json::from_str(json).ok())
        })
        .collect()
}

#[test]
fn recorded_bodies_decode_to_what_kubectl_prints() {
    let recordings = recordings();
    assert!(recordings.len() > 25, "{}", recordings.len());
    for (name, body, expected) in recordings {
        let found = decode(&body).unwrap();
        if let Some(expected) = expected {
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn recorded_bodies_without_a_printed_form() {
    let found: std::collections::BTreeMap<&str, Value> = recordings()
        .into_iter()
        .filter(|(_, _, json)| json.is_none())
        .map(|(name, body, _)| (name, decode(&body).unwrap()))
        .collect();
    expect_test::expect_file!["../../tests/data/protobuf_decoded.txt"].assert_eq(
        &found
            .iter()
            .map(|(name, value)| format!("{name}\n{value}\n"))
            .collect::<String>(),
    );
}
