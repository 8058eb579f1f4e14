//! Decodes `application/vnd.kubernetes.protobuf` request bodies into the same JSON a JSON body
//! would have held.
//!
//! kubectl and helm post several kinds as protobuf and do not fall back to JSON. The decoder is
//! driven by the tags of `types`; it needs no generated message structs. Go writes every field that
//! is not a pointer, also when it is empty, so empty strings, empty messages of such fields and zero
//! numbers of such fields are dropped: they mean "not set".

use serde_json::{Map, Value, json};

use crate::kinds::{kind_by_gvk, split_api_version};
use crate::types::{self, Card, Field, Shape, Type};

#[cfg(test)]
mod tests;
mod wire;

use wire::{Item, Reader};

/// `Content-Type` of such bodies.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper than this are refused.
const DEPTH_MAX: usize = 64;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Why a body was refused; HTTP 400.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The four bytes `k8s\0` are missing.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    /// The wire format is broken.
    #[error("protobuf: {0}")]
    Wire(&'static str),
    /// A field holds another wire type than its schema says.
    #[error("protobuf: field {field} of {message} has wire type {found}")]
    WireType {
        /// Type of the message.
        message: &'static str,
        /// JSON name of the field.
        field: &'static str,
        /// Wire type found.
        found: u8,
    },
    /// A string is not UTF-8.
    #[error("protobuf: field {0} is not UTF-8")]
    Utf8(&'static str),
    /// The envelope names a kind that is not served.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// `apiVersion` of the envelope.
        api_version: String,
        /// `kind` of the envelope.
        kind: String,
    },
    /// The content inside the envelope is JSON that does not parse.
    #[error("couldn't decode the JSON inside the protobuf envelope: {0}")]
    Json(String),
}

/// Decodes a request body: the magic, the envelope and the object in it. The result carries
/// `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut api_version, mut kind) = (String::new(), String::new());
    let (mut raw, mut content_type): (&[u8], &[u8]) = (&[], &[]);
    for field in Reader::new(envelope) {
        match field? {
            (1, Item::Bytes(meta)) => {
                for field in Reader::new(meta) {
                    match field? {
                        (1, Item::Bytes(text)) => api_version = utf8(text, "apiVersion")?,
                        (2, Item::Bytes(text)) => kind = utf8(text, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(bytes)) => raw = bytes,
            (4, Item::Bytes(bytes)) => content_type = bytes,
            _ => {}
        }
    }
    if content_type == b"application/json" {
        return serde_json::from_slice(raw).map_err(|e| Error::Json(e.to_string()));
    }
    let Some(schema) = type_of(&api_version, &kind) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut out = Map::new();
    out.insert("apiVersion".into(), api_version.into());
    out.insert("kind".into(), kind.into());
    decode_message(schema, raw, &mut out, 0)?;
    Ok(Value::Object(out))
}

fn type_of(api_version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = split_api_version(api_version);
    if let Some(found) = kind_by_gvk(group, version, kind) {
        return types::get(found.type_name);
    }
    match (group, version, kind) {
        // Every group registers the options under its own version.
        (_, _, "DeleteOptions") => types::get(&format!("{META}DeleteOptions")),
        ("autoscaling", "v1", "Scale") => types::get("io.k8s.api.autoscaling.v1.Scale"),
        ("policy", "v1", "Eviction") => types::get("io.k8s.api.policy.v1.Eviction"),
        ("authentication.k8s.io", "v1", "TokenRequest") => {
            types::get("io.k8s.api.authentication.v1.TokenRequest")
        }
        _ => None,
    }
}

fn utf8(bytes: &[u8], field: &'static str) -> Result<String, Error> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_e| Error::Utf8(field))
}

fn decode_message(
    schema: &'static Type,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::Wire("messages are nested too deep"));
    }
    for item in Reader::new(bytes) {
        let (tag, item) = item?;
        let Some((field, inline)) = schema.by_tag(tag) else {
            continue;
        };
        if inline {
            let (Item::Bytes(bytes), Some(inner)) = (&item, field.object()) else {
                return Err(wrong(schema, field, &item));
            };
            decode_message(inner, bytes, out, depth + 1)?;
            continue;
        }
        match field.card {
            Card::One => {
                let value = decode_one(schema, field, &item, depth)?;
                if !means_unset(schema, field, &value) {
                    out.insert(field.name.to_owned(), value);
                }
            }
            Card::List => {
                let list = out.entry(field.name).or_insert_with(|| json!([]));
                let Value::Array(list) = list else { continue };
                match (&item, field.shape) {
                    // Packed numbers.
                    (Item::Bytes(bytes), Shape::Int | Shape::Long) => {
                        for value in wire::varints(bytes) {
                            list.push(Value::from(value?.cast_signed()));
                        }
                    }
                    _ => list.push(decode_one(schema, field, &item, depth)?),
                }
            }
            Card::Map | Card::MapOfList => {
                let Item::Bytes(entry) = item else {
                    return Err(wrong(schema, field, &item));
                };
                let (key, value) = decode_entry(schema, field, entry, depth)?;
                let map = out.entry(field.name).or_insert_with(|| json!({}));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

/// One entry of a map: a message of key (1) and value (2).
fn decode_entry(
    schema: &'static Type,
    field: &'static Field,
    bytes: &[u8],
    depth: usize,
) -> Result<(String, Value), Error> {
    let mut key = String::new();
    let mut value = match (field.card, field.shape) {
        (Card::MapOfList, _) => json!([]),
        (_, Shape::Object(_)) => json!({}),
        _ => json!(""),
    };
    for item in Reader::new(bytes) {
        match item? {
            (1, Item::Bytes(text)) => key = utf8(text, field.name)?,
            (2, Item::Bytes(list)) if field.card == Card::MapOfList => {
                // A message `{repeated string items = 1}`.
                let mut items = Vec::new();
                for item in Reader::new(list) {
                    if let (1, Item::Bytes(text)) = item? {
                        items.push(Value::String(utf8(text, field.name)?));
                    }
                }
                value = items.into();
            }
            (2, item) => value = decode_one(schema, field, &item, depth)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn decode_one(
    schema: &'static Type,
    field: &'static Field,
    item: &Item<'_>,
    depth: usize,
) -> Result<Value, Error> {
    use base64::Engine as _;
    Ok(match (field.shape, item) {
        (Shape::Str, Item::Bytes(text)) => Value::String(utf8(text, field.name)?),
        (Shape::Bytes, Item::Bytes(bytes)) => {
            Value::String(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        (Shape::Int | Shape::Long, Item::Varint(number)) => Value::from(number.cast_signed()),
        (Shape::Bool, Item::Varint(number)) => Value::Bool(*number != 0),
        (Shape::Num, Item::Fixed64(bits)) => Value::from(f64::from_bits(*bits)),
        (Shape::Quantity, Item::Bytes(bytes)) => first_string(bytes, field.name)?,
        (Shape::IntOrString, Item::Bytes(bytes)) => int_or_string(bytes, field.name)?,
        (Shape::Time, Item::Bytes(bytes)) => wire::time(bytes, false)?,
        (Shape::MicroTime, Item::Bytes(bytes)) => wire::time(bytes, true)?,
        (Shape::Duration, Item::Bytes(bytes)) => wire::duration(bytes)?,
        (Shape::Any | Shape::FieldsV1, Item::Bytes(bytes)) => {
            let mut out = Value::Null;
            for item in Reader::new(bytes) {
                if let (1, Item::Bytes(raw)) = item? {
                    out = serde_json::from_slice(raw).map_err(|e| Error::Json(e.to_string()))?;
                }
            }
            out
        }
        (Shape::Object(_), Item::Bytes(bytes)) => {
            let mut out = Map::new();
            if let Some(inner) = field.object() {
                decode_message(inner, bytes, &mut out, depth + 1)?;
            }
            Value::Object(out)
        }
        _ => return Err(wrong(schema, field, item)),
    })
}

fn first_string(bytes: &[u8], field: &'static str) -> Result<Value, Error> {
    let mut out = String::new();
    for item in Reader::new(bytes) {
        if let (1, Item::Bytes(text)) = item? {
            out = utf8(text, field)?;
        }
    }
    Ok(Value::String(out))
}

/// `{type: 0 int | 1 string, intVal, strVal}`.
fn int_or_string(bytes: &[u8], field: &'static str) -> Result<Value, Error> {
    let (mut is_string, mut number, mut text) = (false, 0, String::new());
    for item in Reader::new(bytes) {
        match item? {
            (1, Item::Varint(kind)) => is_string = kind == 1,
            (2, Item::Varint(value)) => number = value.cast_signed(),
            (3, Item::Bytes(bytes)) => text = utf8(bytes, field)?,
            _ => {}
        }
    }
    Ok(if is_string {
        Value::String(text)
    } else {
        Value::from(number)
    })
}

fn wrong(schema: &Type, field: &Field, item: &Item<'_>) -> Error {
    Error::WireType {
        message: schema.name,
        field: field.name,
        found: item.wire_type(),
    }
}

/// Empty strings that mean something other than "not set", because Go holds them by pointer.
const EMPTY_STRING_MATTERS: &[&str] = &[
    "storageClassName",
    "ingressClassName",
    "volumeAttributesClassName",
    "runtimeClassName",
];

/// Messages that Go writes always, so that an empty one says nothing.
const VALUE_MESSAGES: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "strategy",
    "updateStrategy",
    "resources",
    "loadBalancer",
    "source",
    "template",
    "jobTemplate",
    "state",
    "lastState",
    "nodeInfo",
    "daemonEndpoints",
    "kubeletEndpoint",
    "involvedObject",
    "regarding",
    "deprecatedSource",
    "user",
    "userInfo",
    "roleRef",
    "port",
    "target",
];

/// Numbers and booleans that Go writes always: zero says nothing.
const VALUE_SCALARS: &[&str] = &[
    "generation",
    "observedGeneration",
    "hostPort",
    "nodePort",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "minReadySeconds",
    "paused",
    "publishNotReadyAddresses",
    "count",
    "deprecatedCount",
    "unschedulable",
    "globalDefault",
    "unhealthyPodEvictionPolicy",
    "fullyLabeledReplicas",
    "readyReplicas",
    "availableReplicas",
    "updatedReplicas",
    "unavailableReplicas",
    "healthCheckNodePort",
];

fn means_unset(schema: &Type, field: &Field, value: &Value) -> bool {
    let scalar =
        VALUE_SCALARS.contains(&field.name) || (schema.name.ends_with("Status") && !field.required);
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() && !EMPTY_STRING_MATTERS.contains(&field.name),
        Value::Object(map) => map.is_empty() && VALUE_MESSAGES.contains(&field.name),
        Value::Number(number) => {
            number.as_i64() == Some(0) && matches!(field.shape, Shape::Int | Shape::Long) && scalar
        }
        Value::Bool(flag) => !flag && scalar,
        Value::Array(_) => false,
    }
}
