//! Field names and shapes: what strict validation says, what is stored, what field selectors see.

use serde_json::Value;

use crate::kinds::Kind;
use crate::types::{self, Card, Field, Shape, Type};

mod duplicates;
mod selectable;

pub use duplicates::duplicates;
pub use selectable::{is_selectable, selectable};

/// Names every field of `object` that the kind does not have, as Kubernetes words it:
/// `unknown field "spec.foo"`.
pub fn unknown(kind: &Kind, object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(schema) = types::get(kind.type_name) {
        walk_unknown(schema, object, &mut Vec::new(), &mut out);
    }
    out
}

fn walk_unknown(
    schema: &'static Type,
    value: &Value,
    path: &mut Vec<String>,
    out: &mut Vec<String>,
) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let Some(field) = schema.field(name) else {
            if !(path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind")) {
                out.push(format!("unknown field {:?}", joined(path, name)));
            }
            continue;
        };
        let Some(inner) = field.object() else {
            continue;
        };
        match (field.card, value) {
            (Card::One, value) => {
                path.push(name.clone());
                walk_unknown(inner, value, path, out);
                path.pop();
            }
            (Card::List, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(format!("{name}[{index}]"));
                    walk_unknown(inner, item, path, out);
                    path.pop();
                }
            }
            (Card::Map, Value::Object(items)) => {
                for (key, item) in items {
                    path.push(format!("{name}.{key}"));
                    walk_unknown(inner, item, path, out);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

fn joined(path: &[String], name: &str) -> String {
    let mut out = path.join(".");
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(name);
    out
}

/// Whether every field holds the JSON type it must hold. The error is worded as Go's decoder does:
/// `json: cannot unmarshal string into Go struct field PodSpec.spec.replicas of type int32`.
pub fn check_types(kind: &Kind, object: &Value) -> Result<(), String> {
    let Some(schema) = types::get(kind.type_name) else {
        return Ok(());
    };
    if !object.is_object() {
        return Err(format!(
            "json: cannot unmarshal {} into Go value of type {}.{}",
            json_type(object),
            kind.version,
            kind.kind
        ));
    }
    check_object(schema, object, &mut Vec::new())
}

fn check_object(
    schema: &'static Type,
    value: &Value,
    path: &mut Vec<String>,
) -> Result<(), String> {
    let Value::Object(map) = value else {
        return Ok(());
    };
    for (name, value) in map {
        let Some(field) = schema.field(name) else {
            continue;
        };
        if value.is_null() {
            continue;
        }
        path.push(name.clone());
        check_field(schema, field, value, path)?;
        path.pop();
    }
    Ok(())
}

fn check_field(
    owner: &Type,
    field: &Field,
    value: &Value,
    path: &mut Vec<String>,
) -> Result<(), String> {
    match (field.card, value) {
        (Card::One, value) => check_one(owner, field, value, path),
        (Card::List, Value::Array(items)) => items
            .iter()
            .try_for_each(|item| check_one(owner, field, item, path)),
        (Card::Map, Value::Object(items)) => items
            .values()
            .try_for_each(|item| check_one(owner, field, item, path)),
        (Card::MapOfList, Value::Object(items)) => items.values().try_for_each(|list| match list {
            Value::Array(items) => items
                .iter()
                .try_for_each(|item| check_one(owner, field, item, path)),
            Value::Null => Ok(()),
            other => Err(mismatch(owner, path, other, "[]string")),
        }),
        (Card::List, other) => Err(mismatch(
            owner,
            path,
            other,
            &format!("[]{}", go_type(field)),
        )),
        (Card::Map | Card::MapOfList, other) => Err(mismatch(
            owner,
            path,
            other,
            &format!("map[string]{}", go_type(field)),
        )),
    }
}

fn check_one(
    owner: &Type,
    field: &Field,
    value: &Value,
    path: &mut Vec<String>,
) -> Result<(), String> {
    let fits = match field.shape {
        Shape::Str => value.is_string(),
        Shape::Int => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        Shape::Long => value.is_i64(),
        Shape::Bool => value.is_boolean(),
        Shape::Num => value.is_number(),
        Shape::Any | Shape::FieldsV1 => true,
        Shape::IntOrString => {
            value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        Shape::Duration => value.is_string(),
        Shape::Quantity => return check_quantity(value),
        Shape::Bytes => return check_bytes(value),
        Shape::Time | Shape::MicroTime => return check_time(value),
        Shape::Object(index) => {
            if value.is_null() {
                return Ok(());
            }
            if value.is_object() {
                return match types::by_index(index) {
                    Some(inner) => check_object(inner, value, path),
                    None => Ok(()),
                };
            }
            false
        }
    };
    if fits || value.is_null() {
        Ok(())
    } else {
        Err(mismatch(owner, path, value, &go_type(field)))
    }
}

fn check_quantity(value: &Value) -> Result<(), String> {
    let ok = match value {
        Value::String(text) => text.parse::<api::quantity::Quantity>().is_ok(),
        Value::Number(number) => number
            .to_string()
            .parse::<api::quantity::Quantity>()
            .is_ok(),
        Value::Null => true,
        _ => false,
    };
    if ok {
        Ok(())
    } else {
        Err("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned())
    }
}

fn check_bytes(value: &Value) -> Result<(), String> {
    use base64::Engine as _;
    match value {
        Value::String(text) => base64::engine::general_purpose::STANDARD
            .decode(text)
            .map(|_| ())
            .map_err(|e| format!("illegal base64 data: {e}")),
        Value::Null => Ok(()),
        other => Err(format!(
            "json: cannot unmarshal {} into Go value of type []uint8",
            json_type(other)
        )),
    }
}

fn check_time(value: &Value) -> Result<(), String> {
    match value {
        Value::String(text) => text.parse::<jiff::Timestamp>().map(|_| ()).map_err(|_e| {
            format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": not an RFC 3339 time")
        }),
        Value::Null => Ok(()),
        other => Err(format!(
            "json: cannot unmarshal {} into Go value of type string",
            json_type(other)
        )),
    }
}

fn mismatch(owner: &Type, path: &[String], value: &Value, go_type: &str) -> String {
    let short = owner.name.rsplit('.').next().unwrap_or(owner.name);
    let shown = match value {
        // The number is shown when it is the value, not the type, that does not fit.
        Value::Number(n) if go_type.starts_with("int") => format!("number {n}"),
        other => json_type(other).to_owned(),
    };
    format!(
        "json: cannot unmarshal {shown} into Go struct field {short}.{} of type {go_type}",
        path.join(".")
    )
}

fn go_type(field: &Field) -> String {
    match field.shape {
        Shape::Str | Shape::Duration | Shape::Time | Shape::MicroTime => "string".to_owned(),
        Shape::Int => "int32".to_owned(),
        Shape::Long => "int64".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Num => "float64".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::IntOrString => "intstr.IntOrString".to_owned(),
        Shape::Any | Shape::FieldsV1 => "interface {}".to_owned(),
        Shape::Object(_) => {
            let name = field.object().map_or("", |t| t.name);
            let mut parts = name.rsplit('.');
            let (kind, version) = (
                parts.next().unwrap_or_default(),
                parts.next().unwrap_or_default(),
            );
            format!("{version}.{kind}")
        }
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Brings an object into the form in which it is stored: unknown fields and nulls are dropped,
/// quantities get their canonical text.
pub fn normalize(kind: &Kind, object: &mut Value) {
    if let Some(schema) = types::get(kind.type_name) {
        normalize_object(schema, object, true);
    }
}

fn normalize_object(schema: &'static Type, value: &mut Value, top: bool) {
    let Value::Object(map) = value else { return };
    map.retain(|name, value| {
        let known =
            schema.field(name).is_some() || (top && matches!(name.as_str(), "apiVersion" | "kind"));
        known && !value.is_null()
    });
    for (name, value) in map.iter_mut() {
        let Some(field) = schema.field(name) else {
            continue;
        };
        match (field.card, value) {
            (Card::One, value) => normalize_one(field, value),
            (Card::List, Value::Array(items)) => {
                for item in items {
                    if item.is_null() {
                        *item = zero(field.shape);
                    }
                    normalize_one(field, item);
                }
            }
            (Card::Map, Value::Object(items)) => {
                items.retain(|_, item| field.shape == Shape::Any || !item.is_null());
                items
                    .values_mut()
                    .for_each(|item| normalize_one(field, item));
            }
            _ => {}
        }
    }
}

/// What Go makes of a null in a list.
fn zero(shape: Shape) -> Value {
    match shape {
        Shape::Object(_) => Value::Object(serde_json::Map::new()),
        Shape::Int | Shape::Long | Shape::IntOrString | Shape::Num => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        Shape::Str | Shape::Bytes | Shape::Duration => "".into(),
        Shape::Time | Shape::MicroTime | Shape::Any | Shape::FieldsV1 => Value::Null,
    }
}

fn normalize_one(field: &Field, value: &mut Value) {
    match field.shape {
        Shape::Object(index) => {
            if let Some(inner) = types::by_index(index) {
                normalize_object(inner, value, false);
            }
        }
        Shape::Quantity => {
            let text = match &*value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return,
            };
            if let Ok(quantity) = text.parse::<api::quantity::Quantity>() {
                *value = Value::String(quantity.to_string());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
