//! Strategic merge: objects.

use serde_json::{Map, Value};

use super::Error;
use super::lists::{merge_list, order_by_set_element_order};
use crate::types::{Card, Field, Type};

pub(super) const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";

/// Merges `patch` into `original`. Without a schema every list is replaced as a whole.
pub(super) fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<&'static Type>,
) -> Result<Map<String, Value>, Error> {
    if let Some(directive) = patch.shift_remove(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => return Ok(patch),
            Some("delete") => return Ok(Map::new()),
            Some("merge") => {}
            _ => {
                return Err(Error::Malformed(format!(
                    "Unknown patch type found: {directive}"
                )));
            }
        }
    }
    apply_retain_keys(&mut original, &mut patch)?;
    apply_set_element_orders(&mut original, &mut patch, schema)?;

    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (original.get_mut(name), &value)
            {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if value.is_null() {
            original.shift_remove(&key);
            continue;
        }
        let field = schema.and_then(|s| s.field(&key));
        let merged = match (original.shift_remove_entry_in_place(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if !field.is_some_and(|f| f.replace) => {
                Value::Object(merge_map(old, new, element_type(field))?)
            }
            (Some(Value::Array(old)), Value::Array(new)) if field.is_some_and(|f| f.merge) => {
                Value::Array(merge_list(old, new, field)?)
            }
            (_, new) => clean(new),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

/// The type of the objects in a field; for a map of objects that of its values is looked up one
/// level further down, where the keys are not field names.
pub(super) fn element_type(field: Option<&'static Field>) -> Option<&'static Type> {
    field
        .filter(|f| f.card != Card::Map)
        .and_then(Field::object)
}

/// Takes a value out while its key keeps its place, so that a merged object keeps its order.
trait TakeInPlace {
    fn shift_remove_entry_in_place(&mut self, key: &str) -> Option<Value>;
}

impl TakeInPlace for Map<String, Value> {
    fn shift_remove_entry_in_place(&mut self, key: &str) -> Option<Value> {
        self.get_mut(key).map(Value::take)
    }
}

fn apply_retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), Error> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(Error::Malformed("$retainKeys must be a list".into()));
    };
    let kept = |name: &str| keys.iter().any(|k| k.as_str() == Some(name));
    for name in patch.keys() {
        if !name.starts_with('$') && !patch[name].is_null() && !kept(name) {
            return Err(Error::Malformed(format!(
                "values in retainKeys directive: {} does not contain key {name:?} of the patch",
                Value::Array(keys)
            )));
        }
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

fn apply_set_element_orders(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: Option<&'static Type>,
) -> Result<(), Error> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(SET_ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let name = directive.trim_start_matches(SET_ELEMENT_ORDER).to_owned();
        let Some(Value::Array(order)) = patch.shift_remove(&directive) else {
            return Err(Error::Malformed(format!("{directive} must be a list")));
        };
        let field = schema.and_then(|s| s.field(&name));
        let merge_key = field.and_then(|f| f.merge_key);
        let old = match original.get_mut(&name) {
            Some(Value::Array(old)) => std::mem::take(old),
            _ => Vec::new(),
        };
        let gone = format!("{DELETE_FROM_PRIMITIVE_LIST}{name}");
        let mut merged = match patch.shift_remove(&name) {
            Some(Value::Array(new)) => {
                check_order(&new, &order, merge_key, &name)?;
                merge_list(old.clone(), new, field)?
            }
            Some(Value::Null) => {
                original.shift_remove(&name);
                continue;
            }
            Some(other) => {
                original.insert(name, other);
                continue;
            }
            None => old.clone(),
        };
        if let Some(Value::Array(gone)) = patch.shift_remove(&gone) {
            merged.retain(|item| !gone.contains(item));
        }
        if merged.is_empty() && !original.contains_key(&name) {
            continue;
        }
        let ordered = order_by_set_element_order(merged, &order, &old, merge_key);
        original.insert(name, Value::Array(ordered));
    }
    Ok(())
}

/// What a patch sets must stand in its `$setElementOrder` list, in the same order.
fn check_order(
    patch: &[Value],
    order: &[Value],
    key: Option<&str>,
    name: &str,
) -> Result<(), Error> {
    let mut rest = order.iter();
    let set = patch.iter().filter(|item| item.get(DIRECTIVE).is_none());
    for item in set {
        let same = |other: &Value| match key {
            Some(key) => other.get(key) == item.get(key),
            None => other == item,
        };
        if !order.is_empty() && !rest.any(same) {
            return Err(Error::Malformed(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n (field {name})",
                Value::from(patch.to_vec()),
                Value::from(order.to_vec()),
            )));
        }
    }
    Ok(())
}

/// A value that is new in the object: without nulls, directives and what they delete.
pub(super) fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(key, value)| !value.is_null() && !is_directive(key))
                .map(|(key, value)| (key, clean(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(
            list.into_iter()
                .filter(|v| v.get(DIRECTIVE).is_none_or(Value::is_null))
                .map(clean)
                .collect(),
        ),
        other => other,
    }
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(SET_ELEMENT_ORDER)
        || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
}
