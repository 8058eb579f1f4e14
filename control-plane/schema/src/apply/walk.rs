//! Walking objects by their schema: field sets, comparison, merge and removal.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::Set;
use crate::types::{self, Card, Field, ListType, Shape, Type};

/// What a value is to server-side apply.
#[derive(Debug, Clone, Copy)]
pub(super) enum Node {
    /// Owned as a whole: scalars, atomic lists and maps.
    Leaf,
    /// An object with fields of its own types.
    Struct(&'static Type),
    /// A map whose entries are owned one by one.
    Map(&'static Field),
    /// A list of scalars owned one by one.
    Set,
    /// A list of objects known by their keys.
    Keyed(&'static Field, &'static [&'static str]),
}

/// Key fields that have a default in the schema.
fn key_default(name: &str) -> Option<Value> {
    (name == "protocol").then(|| json!("TCP"))
}

fn of_field(field: &'static Field) -> Node {
    match field.card {
        Card::One => of_element(field),
        Card::List => match &field.list {
            ListType::Set => Node::Set,
            ListType::Map(keys) => Node::Keyed(field, keys),
            ListType::Unset | ListType::Atomic => Node::Leaf,
        },
        Card::Map if field.atomic => Node::Leaf,
        Card::Map => Node::Map(field),
        Card::MapOfList => Node::Leaf,
    }
}

/// The node of one element of a list or map, or of a single value.
fn of_element(field: &'static Field) -> Node {
    match field.shape {
        Shape::Object(index) => match types::by_index(index) {
            Some(found) if found.atomic || (field.card == Card::One && field.atomic) => Node::Leaf,
            Some(found) => Node::Struct(found),
            None => Node::Leaf,
        },
        _ => Node::Leaf,
    }
}

fn edge_of_item(item: &Value, keys: &[&str]) -> Option<String> {
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    let mut out = Map::new();
    for key in sorted {
        let value = item
            .get(key)
            .filter(|v| !v.is_null())
            .cloned()
            .or_else(|| key_default(key))?;
        out.insert(key.to_owned(), value);
    }
    Some(format!("k:{}", Value::Object(out)))
}

/// The parts of a value with their edges; `None` when it is owned as a whole.
fn parts(node: Node, value: &Value) -> Option<Vec<(String, Node, &Value)>> {
    match (node, value) {
        (Node::Struct(schema), Value::Object(map)) => Some(
            map.iter()
                .map(|(name, value)| {
                    (
                        format!("f:{name}"),
                        schema.field(name).map_or(Node::Leaf, of_field),
                        value,
                    )
                })
                .collect(),
        ),
        (Node::Map(field), Value::Object(map)) => Some(
            map.iter()
                .map(|(name, value)| (format!("f:{name}"), of_element(field), value))
                .collect(),
        ),
        (Node::Set, Value::Array(items)) => Some(
            items
                .iter()
                .map(|item| (format!("v:{item}"), Node::Leaf, item))
                .collect(),
        ),
        (Node::Keyed(field, keys), Value::Array(items)) => {
            let mut out: Vec<(String, Node, &Value)> = Vec::with_capacity(items.len());
            for item in items {
                let edge = edge_of_item(item, keys)?;
                // Two items with the same keys (old objects have them): not to be told apart.
                if out.iter().any(|(other, ..)| *other == edge) {
                    return None;
                }
                out.push((edge, of_element(field), item));
            }
            Some(out)
        }
        _ => None,
    }
}

/// Says what is wrong with the first list element that has no key or an ambiguous one.
pub(super) fn first_bad_element(node: Node, value: &Value) -> Option<String> {
    if let (Node::Keyed(field, keys), Value::Array(items)) = (node, value) {
        let mut seen = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(edge) = edge_of_item(item, keys) else {
                return Some(format!(
                    "failed to create typed patch object: .{}: element {index}: associative list with keys has an element that omits key field {:?}",
                    field.name,
                    keys.iter().find(|k| item.get(**k).is_none()).unwrap_or(&"")
                ));
            };
            if seen.contains(&edge) {
                return Some(format!(
                    "failed to create typed patch object: .{}: duplicate entries for key {}",
                    field.name,
                    edge.trim_start_matches("k:")
                ));
            }
            seen.push(edge);
        }
    }
    parts(node, value)?
        .into_iter()
        .find_map(|(_, node, value)| first_bad_element(node, value))
}

/// Adds the paths of everything in `value` to `set`.
pub(super) fn field_set(node: Node, value: &Value, set: &mut Set) {
    match parts(node, value) {
        Some(parts) if !parts.is_empty() => {
            for (edge, node, value) in parts {
                let is_item = edge.starts_with("k:");
                let child = set.children.entry(edge).or_default();
                child.member |= is_item;
                field_set(node, value, child);
            }
        }
        _ => set.member = true,
    }
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

pub(super) fn compare(node: Node, old: &Value, new: &Value) -> Change {
    let mut change = Change::default();
    compare_into(node, old, new, &mut Vec::new(), &mut change);
    change
}

fn compare_into(node: Node, old: &Value, new: &Value, path: &mut Vec<String>, change: &mut Change) {
    if old == new {
        return;
    }
    let (Some(before), Some(after)) = (parts(node, old), parts(node, new)) else {
        insert_at(&mut change.modified, path, |set| set.member = true);
        return;
    };
    let before: BTreeMap<String, (Node, &Value)> = before
        .into_iter()
        .map(|(edge, node, value)| (edge, (node, value)))
        .collect();
    let mut seen = Vec::new();
    for (edge, node, value) in after {
        path.push(edge.clone());
        match before.get(&edge) {
            Some((_, old)) => compare_into(node, old, value, path, change),
            None => {
                let is_item = edge.starts_with("k:");
                insert_at(&mut change.added, path, |set| {
                    set.member |= is_item;
                    field_set(node, value, set);
                });
            }
        }
        path.pop();
        seen.push(edge);
    }
    for (edge, (node, value)) in before {
        if !seen.contains(&edge) {
            path.push(edge);
            insert_at(&mut change.removed, path, |set| {
                set.member = true;
                field_set(node, value, set);
            });
            path.pop();
        }
    }
}

fn insert_at(set: &mut Set, path: &[String], then: impl FnOnce(&mut Set)) {
    let mut at = set;
    for edge in path {
        at = at.children.entry(edge.clone()).or_default();
    }
    then(at);
}

/// The live object with the configuration laid over it.
pub(super) fn merge(node: Node, live: &Value, config: &Value) -> Value {
    let (Some(old), Some(new)) = (parts(node, live), parts(node, config)) else {
        return config.clone();
    };
    match (live, config) {
        (Value::Object(base), Value::Object(_)) => {
            let mut out = base.clone();
            for (edge, node, value) in new {
                let name = edge.trim_start_matches("f:");
                let merged = base
                    .get(name)
                    .map_or_else(|| value.clone(), |old| merge(node, old, value));
                out.insert(name.to_owned(), merged);
            }
            Value::Object(out)
        }
        _ => Value::Array(merge_list(&old, new)),
    }
}

type Part<'a> = (String, Node, &'a Value);

/// Configured items in their order; items of the live list alone stand before the configured item
/// they stood before.
fn merge_list(old: &[Part<'_>], new: Vec<Part<'_>>) -> Vec<Value> {
    let position = |edge: &str| old.iter().position(|(other, ..)| other == edge);
    let configured: Vec<String> = new.iter().map(|(edge, ..)| edge.clone()).collect();
    let mut rest = old
        .iter()
        .enumerate()
        .filter(|(_, (edge, ..))| !configured.contains(edge))
        .peekable();
    let mut out = Vec::with_capacity(old.len() + new.len());
    for (edge, node, value) in new {
        let at = position(&edge);
        while let Some((index, (_, _, live))) = rest.peek() {
            if at.is_none_or(|at| *index > at) {
                break;
            }
            out.push((*live).clone());
            rest.next();
        }
        let live = at.and_then(|at| old.get(at));
        out.push(live.map_or_else(|| value.clone(), |(_, _, live)| merge(node, live, value)));
    }
    out.extend(rest.map(|(_, (_, _, live))| (*live).clone()));
    out
}

/// Removes what `last` names and `keep` does not.
pub(super) fn prune(node: Node, value: &mut Value, last: &Set, keep: &Set) {
    let key_fields: &[&str] = &[];
    prune_below(node, value, last, keep, key_fields, true);
}

fn prune_below(
    node: Node,
    value: &mut Value,
    last: &Set,
    keep: &Set,
    key_fields: &[&str],
    top: bool,
) {
    let nothing = Set::default();
    for (edge, owned) in &last.children {
        let kept = keep.children.get(edge).unwrap_or(&nothing);
        let name = edge.strip_prefix("f:").unwrap_or_default();
        // Metadata itself always stays, and an item's keys stay with the item.
        let fixed = top && name == "metadata";
        if key_fields.contains(&name) {
            continue;
        }
        if kept.is_empty() && !fixed {
            remove(node, value, edge);
        } else if !owned.children.is_empty()
            && let Some((child, inner)) = part_mut(node, value, edge)
        {
            let keys = match node {
                Node::Keyed(_, keys) => keys,
                _ => &[],
            };
            prune_below(child, inner, owned, kept, keys, false);
            let emptied = inner.as_object().is_some_and(Map::is_empty)
                || inner.as_array().is_some_and(Vec::is_empty);
            if emptied && !kept.member && !fixed && kept.is_empty() {
                remove(node, value, edge);
            }
        }
    }
    if top
        && let Value::Object(object) = value
        && let Some(Value::Object(metadata)) = object.get_mut("metadata")
    {
        metadata.retain(|_, value| value != &json!({}) && value != &json!([]));
    }
}

fn remove(node: Node, value: &mut Value, edge: &str) {
    match (node, value) {
        (Node::Struct(_) | Node::Map(_), Value::Object(map)) => {
            map.shift_remove(edge.trim_start_matches("f:"));
        }
        (Node::Set, Value::Array(items)) => items.retain(|item| format!("v:{item}") != edge),
        (Node::Keyed(_, keys), Value::Array(items)) => {
            items.retain(|item| edge_of_item(item, keys).as_deref() != Some(edge));
        }
        _ => {}
    }
}

fn part_mut<'a>(node: Node, value: &'a mut Value, edge: &str) -> Option<(Node, &'a mut Value)> {
    match (node, value) {
        (Node::Struct(schema), Value::Object(map)) => {
            let name = edge.strip_prefix("f:")?;
            let field = schema.field(name)?;
            Some((of_field(field), map.get_mut(name)?))
        }
        (Node::Map(field), Value::Object(map)) => {
            Some((of_element(field), map.get_mut(edge.strip_prefix("f:")?)?))
        }
        (Node::Keyed(field, keys), Value::Array(items)) => {
            let item = items
                .iter_mut()
                .find(|item| edge_of_item(item, keys).as_deref() == Some(edge))?;
            Some((of_element(field), item))
        }
        _ => None,
    }
}
