//! Sets of field paths in the form of `FieldsV1`: a tree whose edges are `f:NAME`, `k:KEYS` and
//! `v:VALUE`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A node of the tree; the root stands for the object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// The path up to here is in the set.
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, Set>,
}

impl Set {
    pub(super) fn from_json(value: &Value) -> Set {
        let mut out = Set::default();
        for (edge, inner) in value.as_object().into_iter().flatten() {
            if edge == "." {
                out.member = true;
                continue;
            }
            let mut child = Set::from_json(inner);
            child.member |= inner.as_object().is_none_or(Map::is_empty);
            out.children.insert(edge.clone(), child);
        }
        out
    }

    pub(super) fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for (edge, child) in &self.children {
            out.insert(edge.clone(), child.to_json());
        }
        Value::Object(out)
    }

    pub(super) fn insert(&mut self, path: &[&str]) {
        let mut at = self;
        for edge in path {
            at = at.children.entry((*edge).to_owned()).or_default();
        }
        at.member = true;
    }

    /// Removes a path and all below it.
    pub(super) fn remove_below(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.children.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*first) {
                    child.remove_below(rest);
                    if child.is_empty() {
                        self.children.remove(*first);
                    }
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Set::is_empty)
    }

    pub(super) fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        out.member |= other.member;
        for (edge, child) in &other.children {
            let merged = out
                .children
                .get(edge)
                .map_or_else(|| child.clone(), |own| own.union(child));
            out.children.insert(edge.clone(), merged);
        }
        out
    }

    pub(super) fn difference(&self, other: &Set) -> Set {
        let children = self.children.iter().map(|(edge, child)| {
            let left = other
                .children
                .get(edge)
                .map_or_else(|| child.clone(), |o| child.difference(o));
            (edge.clone(), left)
        });
        Set {
            member: self.member && !other.member,
            children: children.filter(|(_, child)| !child.is_empty()).collect(),
        }
    }

    pub(super) fn intersection(&self, other: &Set) -> Set {
        let children = self.children.iter().filter_map(|(edge, child)| {
            Some((edge.clone(), child.intersection(other.children.get(edge)?)))
        });
        Set {
            member: self.member && other.member,
            children: children.filter(|(_, child)| !child.is_empty()).collect(),
        }
    }

    /// The members as messages show them: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(String::new(), &mut out);
        out
    }

    fn collect(&self, prefix: String, out: &mut Vec<String>) {
        for (edge, child) in &self.children {
            child.collect(format!("{prefix}{}", shown(edge)), out);
        }
        if self.member {
            out.push(prefix);
        }
    }
}

fn shown(edge: &str) -> String {
    match edge.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let pairs: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("[{}]", pairs.join(","))
        }
        _ => format!("[{edge}]"),
    }
}
