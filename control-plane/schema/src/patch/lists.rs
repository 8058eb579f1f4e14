//! Strategic merge: lists that are merged by a key (or, for scalars, by value).

use serde_json::{Map, Value};

use super::Error;
use super::strategic::{DIRECTIVE, clean, element_type, merge_map};
use crate::types::Field;

/// Merges a patch's list into an object's list.
pub(super) fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&'static Field>,
) -> Result<Vec<Value>, Error> {
    let Some(key) = field.and_then(|f| f.merge_key) else {
        return Ok(merge_scalars(original, patch));
    };
    let server_order = original.clone();
    let mut merged = original;
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(mut map) = item else {
            return Err(Error::Malformed(format!(
                "expected an object with key {key:?} in the patch, got {item}"
            )));
        };
        match map.shift_remove(DIRECTIVE) {
            None => plain.push(map),
            Some(Value::String(directive)) if directive == "replace" => {
                replace = true;
                if !map.is_empty() {
                    plain.push(map);
                }
            }
            Some(Value::String(directive)) if directive == "delete" => {
                let id = map.get(key).ok_or_else(|| missing_key(&map, key))?;
                merged.retain(|item| item.get(key) != Some(id));
            }
            Some(Value::String(directive)) if directive == "merge" => {
                return Err(Error::Malformed(
                    "merging list cannot be done with $patch: merge".into(),
                ));
            }
            Some(other) => {
                return Err(Error::Malformed(format!(
                    "Unknown patch type found: {other}"
                )));
            }
        }
    }
    if replace {
        return Ok(plain
            .into_iter()
            .map(|map| clean(Value::Object(map)))
            .collect());
    }
    let order: Vec<Value> = plain.iter().cloned().map(Value::Object).collect();
    for map in plain {
        let id = map.get(key).ok_or_else(|| missing_key(&map, key))?;
        match merged.iter_mut().find(|item| item.get(key) == Some(id)) {
            Some(Value::Object(old)) => {
                *old = merge_map(std::mem::take(old), map, element_type(field))?;
            }
            _ => merged.push(Value::Object(merge_map(
                Map::new(),
                map,
                element_type(field),
            )?)),
        }
    }
    Ok(order_by_set_element_order(
        merged,
        &order,
        &server_order,
        Some(key),
    ))
}

fn missing_key(map: &Map<String, Value>, key: &str) -> Error {
    Error::Malformed(format!(
        "map: {} does not contain declared merge key: {key}",
        Value::Object(map.clone())
    ))
}

fn merge_scalars(original: Vec<Value>, patch: Vec<Value>) -> Vec<Value> {
    let server_order = original.clone();
    let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
    for item in original.into_iter().chain(patch.iter().cloned()) {
        if !merged.contains(&item) {
            merged.push(item);
        }
    }
    order_by_set_element_order(merged, &patch, &server_order, None)
}

/// Puts the merged items into their final order: what the patch names stands in the patch's order,
/// what only the server has keeps the server's order, and a server-only item stands before a
/// patched one when it did so on the server.
pub(super) fn order_by_set_element_order(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let position = |list: &[Value], item: &Value| {
        list.iter().position(|other| match key {
            Some(key) => other.get(key).is_some() && other.get(key) == item.get(key),
            None => other == item,
        })
    };
    let (mut patched, mut server_only): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| position(patch_order, item).is_some());
    patched.sort_by_key(|item| position(patch_order, item));
    server_only.sort_by_key(|item| position(server_order, item));

    let mut out = Vec::with_capacity(patched.len() + server_only.len());
    let mut left = server_only.into_iter().peekable();
    let mut right = patched.into_iter().peekable();
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => {
                matches!((position(server_order, l), position(server_order, r)),
                    (Some(l), Some(r)) if l < r)
            }
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
    out
}
