//! Objects as the store keeps them and as clients see them.
//!
//! Stored bytes are the object's JSON beginning with `kind`, `apiVersion` and `metadata`, without
//! `metadata.resourceVersion`: the revision is only known once the write is done. Answers put it in
//! by splicing bytes, so reading and watching parse nothing.

use bytes::{BufMut, Bytes, BytesMut};
use schema::kinds::Kind;
use serde_json::{Map, Value};

use crate::http::error::{ApiError, Result};
use crate::store::Rev;

/// Where the revision is put in.
const METADATA: &[u8] = b"\"metadata\":{";

/// Key of an object.
pub fn key(kind: &'static Kind, namespace: &str, name: &str) -> String {
    format!("{}{name}", prefix(kind, namespace))
}

/// Prefix of the keys of a collection; an empty namespace means all of them.
pub fn prefix(kind: &'static Kind, namespace: &str) -> String {
    let kind = kind.storage();
    let group = if kind.group.is_empty() {
        "core"
    } else {
        kind.group
    };
    match namespace {
        "" => format!("/registry/{group}/{}/", kind.plural),
        namespace => format!("/registry/{group}/{}/{namespace}/", kind.plural),
    }
}

/// The last segment of a key.
pub fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or("")
}

/// The bytes to store.
pub fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut ordered = Map::new();
    for first in ["kind", "apiVersion"] {
        if let Some(value) = fields.get(first) {
            ordered.insert(first.to_owned(), value.clone());
        }
    }
    let mut metadata = fields.get("metadata").cloned().unwrap_or_default();
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.shift_remove("resourceVersion");
        metadata.shift_remove("selfLink");
    }
    ordered.insert("metadata".to_owned(), metadata);
    for (key, value) in fields {
        if !ordered.contains_key(key) {
            ordered.insert(key.clone(), value.clone());
        }
    }
    Value::Object(ordered).to_string().into()
}

/// Appends the object with `rev` as its resourceVersion.
pub fn write_with_revision(out: &mut BytesMut, value: &[u8], rev: Rev) {
    let at = value
        .windows(METADATA.len())
        .position(|window| window == METADATA);
    let Some(at) = at.map(|at| at + METADATA.len()) else {
        out.put_slice(value);
        return;
    };
    let (head, tail) = value.split_at(at);
    out.put_slice(head);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(rev.to_string().as_bytes());
    out.put_slice(if tail.first() == Some(&b'}') {
        b"\""
    } else {
        b"\","
    });
    out.put_slice(tail);
}

/// The object with `rev` as its resourceVersion.
pub fn with_revision(value: &[u8], rev: Rev) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + 48);
    write_with_revision(&mut out, value, rev);
    out.freeze()
}

/// Parses a stored object, as kind `kind` with `rev` as its resourceVersion.
pub fn decode(kind: &'static Kind, value: &[u8], rev: Rev) -> Result<Value> {
    let object: Value = serde_json::from_slice(value)
        .map_err(|e| ApiError::internal(format!("a stored {} is broken: {e}", kind.kind)))?;
    let mut object = from_storage(kind, object);
    set_revision(&mut object, rev);
    Ok(object)
}

/// Turns an object as stored into the form of `kind`.
pub fn from_storage(kind: &'static Kind, mut object: Value) -> Value {
    if kind.stored_as.is_some() {
        schema::convert::from_storage(kind, &mut object);
    }
    object
}

/// Turns an object of `kind` into the form that is stored.
pub fn to_storage(kind: &'static Kind, mut object: Value) -> Value {
    if kind.stored_as.is_some() {
        schema::convert::to_storage(kind, &mut object);
    }
    object
}

/// Sets `metadata.resourceVersion`.
pub fn set_revision(object: &mut Value, rev: Rev) {
    metadata_mut(object).insert("resourceVersion".to_owned(), rev.to_string().into());
}

/// `metadata`, made when it is missing.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(
        map_mut(object)
            .entry("metadata")
            .or_insert_with(|| Value::Object(Map::new())),
    )
}

/// A map inside `object`, made when it is missing.
pub fn child_mut<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    map_mut(
        map_mut(object)
            .entry(name)
            .or_insert_with(|| Value::Object(Map::new())),
    )
}

/// The map itself; anything else is replaced by an empty one.
pub fn map_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            unreachable!("just made an object")
        }
    }
}

/// A string inside `object`, by JSON pointer; empty when it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("")
}

/// The strings of a list inside `object`.
pub fn texts<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(object, pointer)
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// A list inside `object`; empty when it is not there.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_is_spliced_in() {
        let object = json!({
            "spec": {"metadata": {"a": 1}},
            "metadata": {"name": "x", "resourceVersion": "3"},
            "apiVersion": "v1", "kind": "Pod",
        });
        let bytes = encode(&object);
        assert_eq!(
            bytes,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"},"spec":{"metadata":{"a":1}}}"#
        );
        let mut expected = object;
        set_revision(&mut expected, 17);
        let seen: Value = serde_json::from_slice(&with_revision(&bytes, 17)).unwrap();
        assert_eq!(seen, expected);
        let bare: Value = serde_json::from_slice(&with_revision(br#"{"metadata":{}}"#, 4)).unwrap();
        assert_eq!(bare, json!({"metadata": {"resourceVersion": "4"}}));
    }
}
