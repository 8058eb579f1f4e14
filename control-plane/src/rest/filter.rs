//! Label and field selectors over stored objects.

use std::collections::BTreeMap;

use api::selector::{FieldSelector, LabelSelector};
use schema::kinds::Kind;
use serde::Deserialize;
use serde_json::Value;

use super::object::name_of;
use super::query::ListOptions;
use crate::http::error::{ApiError, Result};

/// Which objects of a collection are wanted.
#[derive(Clone, Debug)]
pub struct Filter {
    kind: &'static Kind,
    labels: Option<LabelSelector>,
    /// The one name that is wanted: answered from the key alone.
    name: Option<String>,
    fields: Option<FieldSelector>,
}

/// The part of an object label selectors look at.
#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Labels,
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Filter {
    /// Reads the selectors of a list or watch.
    pub fn parse(kind: &'static Kind, options: &ListOptions) -> Result<Self> {
        let refuse = |what: &str, error: &dyn std::fmt::Display| {
            ApiError::bad_request(format!("unable to parse {what} selector: {error}"))
        };
        let labels = match options.labels.as_str() {
            "" => None,
            text => Some(LabelSelector::parse(text).map_err(|e| refuse("label", &e))?),
        };
        let mut filter = Self {
            kind,
            labels,
            name: None,
            fields: None,
        };
        if options.fields.is_empty() {
            return Ok(filter);
        }
        let fields = FieldSelector::parse(&options.fields).map_err(|e| refuse("field", &e))?;
        for requirement in fields.requirements() {
            if !schema::fields::is_selectable(kind, &requirement.field) {
                return Err(ApiError::bad_request(format!(
                    "field label not supported: {}",
                    requirement.field
                )));
            }
        }
        if let [only] = fields.requirements()
            && only.field == "metadata.name"
            && only.equal
        {
            filter.name = Some(only.value.clone());
        } else {
            filter.fields = Some(fields);
        }
        Ok(filter)
    }

    /// The name that is wanted, when it is a single one.
    pub fn single_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.labels.is_none() && self.name.is_none() && self.fields.is_none()
    }

    /// Whether a stored value is wanted.
    pub fn matches(&self, key: &str, value: &[u8]) -> bool {
        if self
            .name
            .as_deref()
            .is_some_and(|name| name != name_of(key))
        {
            return false;
        }
        if let Some(labels) = &self.labels {
            let found = serde_json::from_slice::<Labelled>(value)
                .ok()
                .and_then(|object| object.metadata.labels)
                .unwrap_or_default();
            if !labels.matches(&found) {
                return false;
            }
        }
        if let Some(fields) = &self.fields {
            let Ok(object) = serde_json::from_slice::<Value>(value) else {
                return false;
            };
            let object = super::object::from_storage(self.kind, object);
            let found = schema::fields::selectable(self.kind, &object);
            if !fields.matches_with(|field| found.get(field).map(String::as_str)) {
                return false;
            }
        }
        true
    }
}
