//! `metadata.managedFields`: which manager owns which fields.

use serde_json::{Value, json};

use super::Writer;
use super::set::Set;

/// How a manager came to own its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// By applying a configuration: what leaves the configuration leaves the object.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    operation: Operation,
    time: String,
    manager: String,
    api_version: String,
    subresource: String,
    fields: Set,
}

impl Entry {
    fn is(&self, operation: Operation, writer: &Writer<'_>) -> bool {
        self.operation == operation
            && self.manager == writer.manager
            && self.subresource == writer.subresource
    }

    /// As conflict messages name it.
    fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if self.operation == Operation::Apply {
            return out;
        }
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        out.push_str(&format!(" using {}", self.api_version));
        if !self.time.is_empty() {
            out.push_str(&format!(" at {}", self.time));
        }
        out
    }
}

/// All managers of one object.
#[derive(Debug, Default)]
pub(super) struct Managers {
    entries: Vec<Entry>,
}

impl Managers {
    pub(super) fn read_from(object: &Value) -> Managers {
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let list = object["metadata"]["managedFields"].as_array();
        let entries = list
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let operation = match entry["operation"].as_str()? {
                    "Apply" => Operation::Apply,
                    "Update" => Operation::Update,
                    _ => return None,
                };
                Some(Entry {
                    operation,
                    time: text(entry, "time"),
                    manager: text(entry, "manager"),
                    api_version: text(entry, "apiVersion"),
                    subresource: text(entry, "subresource"),
                    fields: Set::from_json(&entry["fieldsV1"]),
                })
            })
            .collect();
        Managers { entries }
    }

    /// Writes the entries in upstream's order: applies first, then by time and name.
    pub(super) fn write_to(&mut self, object: &mut Value) {
        self.entries.retain(|entry| !entry.fields.is_empty());
        self.entries.sort_by(|a, b| {
            let key = |e: &Entry| {
                (
                    e.operation,
                    e.time.clone(),
                    e.manager.clone(),
                    e.api_version.clone(),
                    e.subresource.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let list: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                let mut out = json!({
                    "manager": entry.manager,
                    "operation": entry.operation.as_str(),
                    "apiVersion": entry.api_version,
                });
                if !entry.time.is_empty() {
                    out["time"] = entry.time.as_str().into();
                }
                out["fieldsType"] = "FieldsV1".into();
                out["fieldsV1"] = entry.fields.to_json();
                if !entry.subresource.is_empty() {
                    out["subresource"] = entry.subresource.as_str().into();
                }
                out
            })
            .collect();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        object["metadata"]["managedFields"] = list.into();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What this writer owns.
    pub(super) fn of(&self, operation: Operation, writer: &Writer<'_>) -> Option<&Set> {
        self.entries
            .iter()
            .find(|e| e.is(operation, writer))
            .map(|e| &e.fields)
    }

    /// What everybody but this writer owns.
    pub(super) fn all_but(&self, operation: Operation, writer: &Writer<'_>) -> Set {
        let others = self.entries.iter().filter(|e| !e.is(operation, writer));
        others.fold(Set::default(), |all, entry| all.union(&entry.fields))
    }

    /// Who else owns fields of `written`.
    pub(super) fn conflicts(
        &self,
        written: &Set,
        operation: Operation,
        writer: &Writer<'_>,
    ) -> Vec<(String, Set)> {
        let mut out: Vec<(String, Set)> = self
            .entries
            .iter()
            .filter(|e| !e.is(operation, writer))
            .map(|e| (e.shown(), e.fields.intersection(written)))
            .filter(|(_, fields)| !fields.is_empty())
            .collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    }

    /// Takes fields away from everybody but this writer.
    pub(super) fn take_away(&mut self, fields: &Set, operation: Operation, writer: &Writer<'_>) {
        for entry in self.entries.iter_mut().filter(|e| !e.is(operation, writer)) {
            entry.fields = entry.fields.difference(fields);
        }
    }

    /// Sets what this writer owns; the time moves only when that changes.
    pub(super) fn set(
        &mut self,
        operation: Operation,
        writer: &Writer<'_>,
        api_version: &str,
        fields: Set,
    ) {
        let time = format!("{:.0}", writer.now);
        match self.entries.iter_mut().find(|e| e.is(operation, writer)) {
            Some(entry) => {
                if entry.fields != fields || entry.api_version != api_version {
                    entry.time = time;
                    entry.fields = fields;
                    entry.api_version = api_version.to_owned();
                }
            }
            None => self.entries.push(Entry {
                operation,
                time,
                manager: writer.manager.to_owned(),
                api_version: api_version.to_owned(),
                subresource: writer.subresource.to_owned(),
                fields,
            }),
        }
    }
}
