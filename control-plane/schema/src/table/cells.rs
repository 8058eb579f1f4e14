//! Reading an object for its cells.

use jiff::Timestamp;
use serde_json::Value;

use super::time::age;

/// An object being printed.
pub(super) struct Object<'a> {
    pub(super) value: &'a Value,
    pub(super) now: Timestamp,
}

impl<'a> Object<'a> {
    /// The value at a JSON pointer.
    pub(super) fn at(&self, pointer: &str) -> &'a Value {
        self.value.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// The text at a JSON pointer; empty when there is none.
    pub(super) fn text(&self, pointer: &str) -> &'a str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    /// The text at a JSON pointer, or `otherwise` when empty.
    pub(super) fn text_or(&self, pointer: &str, otherwise: &'static str) -> &'a str
    where
        'static: 'a,
    {
        Some(self.text(pointer))
            .filter(|t| !t.is_empty())
            .unwrap_or(otherwise)
    }

    /// The integer at a JSON pointer; 0 when there is none.
    pub(super) fn int(&self, pointer: &str) -> i64 {
        self.at(pointer).as_i64().unwrap_or(0)
    }

    /// The items at a JSON pointer.
    pub(super) fn list(&self, pointer: &str) -> &'a [Value] {
        self.at(pointer).as_array().map_or(&[], Vec::as_slice)
    }

    /// How many items stand at a JSON pointer (list or map).
    pub(super) fn count(&self, pointer: &str) -> Value {
        let count = match self.at(pointer) {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        count.into()
    }

    pub(super) fn name(&self) -> &'a str {
        self.text("/metadata/name")
    }

    /// Age since the creation.
    pub(super) fn age(&self) -> String {
        self.since("/metadata/creationTimestamp")
    }

    /// Age since the time at a JSON pointer.
    pub(super) fn since(&self, pointer: &str) -> String {
        age(self.text(pointer), self.now)
    }

    pub(super) fn is_deleted(&self) -> bool {
        !self.at("/metadata/deletionTimestamp").is_null()
    }

    /// Name, the cells between, age.
    pub(super) fn named(&self, between: Vec<Value>) -> Vec<Value> {
        let mut out = vec![self.name().into()];
        out.extend(between);
        out.push(self.age().into());
        out
    }

    /// Status of the condition of this type.
    pub(super) fn condition(&self, kind: &str) -> Option<&'a str> {
        self.list("/status/conditions")
            .iter()
            .find(|c| c["type"] == kind)
            .and_then(|c| c["status"].as_str())
    }

    /// Names and images of a pod template's containers.
    pub(super) fn containers(&self, pointer: &str) -> [Value; 2] {
        let join = |key: &str| {
            let all: Vec<&str> = self
                .list(pointer)
                .iter()
                .filter_map(|c| c[key].as_str())
                .collect();
            Value::String(all.join(","))
        };
        [join("name"), join("image")]
    }

    /// `matchLabels`/`matchExpressions` as text.
    pub(super) fn selector(&self, pointer: &str) -> String {
        let text = match self.at(pointer) {
            Value::Null => String::new(),
            value => api::selector::LabelSelector::from_json(value)
                .map_or_else(|_| "<error>".to_owned(), |s| s.to_string()),
        };
        none_if_empty(text)
    }

    /// A map of labels as text, sorted.
    pub(super) fn labels(&self, pointer: &str) -> String {
        let mut pairs: Vec<String> = self
            .at(pointer)
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        pairs.sort();
        none_if_empty(pairs.join(","))
    }
}

pub(super) fn none_if_empty(text: String) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    }
}

/// `a,b,c + 2 more...`: the first `max` of all items.
pub(super) fn first_of(items: &[String], max: usize) -> String {
    let shown = items
        .iter()
        .take(max)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",");
    match items.len().checked_sub(max) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

/// An IntOrString as text.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
