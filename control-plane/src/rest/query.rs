//! Query parameters and the options they stand for.

use serde_json::Value;

use crate::http::error::{ApiError, Result};
use crate::store::Rev;

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the query part of a URI.
    pub fn parse(query: Option<&str>) -> Self {
        Self(
            form_urlencoded::parse(query.unwrap_or("").as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The first value of a parameter that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, v)| v.as_str())
    }

    /// All parameters in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a switch is on.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value == "true" || value == "1")
    }

    /// A number, refused when it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let parse = |text: &str| {
            text.parse().map_err(|_not_a_number| {
                ApiError::bad_request(format!("{name}: Invalid value: {text:?}: must be a number"))
            })
        };
        self.get(name).map(parse).transpose()
    }
}

/// How a revision in a list or watch is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevMatch {
    /// Not said.
    Unset,
    /// Exactly that revision.
    Exact,
    /// That one or any later.
    NotOlderThan,
}

/// ListOptions.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// Label selector as sent.
    pub labels: String,
    /// Field selector as sent.
    pub fields: String,
    /// Page size, zero for all.
    pub limit: usize,
    /// Continue token.
    pub continue_token: Option<String>,
    /// Revision; none and `0` differ for watches.
    pub rev: Option<Rev>,
    /// How the revision is meant.
    pub rev_match: RevMatch,
    /// Whether this is a watch.
    pub watch: bool,
    /// Seconds after which a watch ends.
    pub timeout_seconds: Option<u64>,
    /// Whether bookmarks may be sent.
    pub bookmarks: bool,
    /// Whether a watch begins with the current state.
    pub initial_events: bool,
}

impl ListOptions {
    /// Reads them from a query.
    pub fn parse(query: &Query) -> Result<Self> {
        let rev_match = match query.get("resourceVersionMatch") {
            None => RevMatch::Unset,
            Some("Exact") => RevMatch::Exact,
            Some("NotOlderThan") => RevMatch::NotOlderThan,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
        };
        let limit = query.number("limit")?.unwrap_or(0);
        Ok(Self {
            labels: query.get("labelSelector").unwrap_or("").to_owned(),
            fields: query.get("fieldSelector").unwrap_or("").to_owned(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            continue_token: query.get("continue").map(str::to_owned),
            rev: revision(query.get("resourceVersion"))?,
            rev_match,
            watch: query.flag("watch"),
            timeout_seconds: query
                .number("timeoutSeconds")?
                .filter(|seconds| *seconds > 0),
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events: query.flag("sendInitialEvents"),
        })
    }
}

/// Parses a resourceVersion.
pub fn revision(text: Option<&str>) -> Result<Option<Rev>> {
    let parse = |text: &str| {
        text.parse().map_err(|_not_a_number| {
            ApiError::bad_request(format!(
                "resourceVersion: Invalid value: {text:?}: must be a number"
            ))
        })
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

/// What to do about fields nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Say nothing.
    Ignore,
    /// Answer with warnings.
    Warn,
    /// Refuse.
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Do everything but store it.
    pub dry_run: bool,
    /// What to do about unknown fields.
    pub validation: FieldValidation,
    /// Name of the writer, for server-side apply.
    pub manager: Option<String>,
    /// Take fields from other managers.
    pub force: bool,
}

impl WriteOptions {
    /// Reads them from a query.
    pub fn parse(query: &Query) -> Result<Self> {
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        Ok(Self {
            dry_run: dry_run(query.get("dryRun"))?,
            validation,
            manager: query.get("fieldManager").map(str::to_owned),
            force: query.flag("force"),
        })
    }
}

fn dry_run(value: Option<&str>) -> Result<bool> {
    match value {
        None => Ok(false),
        Some("All") => Ok(true),
        Some(other) => Err(ApiError::bad_request(format!(
            "dryRun: Unsupported value: {other:?}: supported values: \"All\""
        ))),
    }
}

/// What happens to the objects owned by a deleted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The garbage collector removes them afterwards.
    Background,
    /// They are removed before the owner.
    Foreground,
    /// They stay and lose their owner.
    Orphan,
}

/// DeleteOptions, from body and query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds a pod gets to stop.
    pub grace_seconds: Option<u64>,
    /// What happens to owned objects.
    pub propagation: Option<Propagation>,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must have this resourceVersion.
    pub rev: Option<Rev>,
    /// Do everything but delete it.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// The body's options come before the query's.
    pub fn parse(query: &Query, body: &Value) -> Result<Self> {
        let text = |pointer: &str, name: &str| {
            body.pointer(pointer)
                .and_then(Value::as_str)
                .or_else(|| query.get(name))
        };
        let propagation = match text("/propagationPolicy", "propagationPolicy") {
            None | Some("") => match body.get("orphanDependents").and_then(Value::as_bool) {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\""
                )));
            }
        };
        let grace_seconds = match body.get("gracePeriodSeconds") {
            None | Some(Value::Null) => query.number("gracePeriodSeconds")?,
            Some(value) => Some(value.as_u64().ok_or_else(|| {
                ApiError::bad_request("gracePeriodSeconds: Invalid value: must be zero or more")
            })?),
        };
        Ok(Self {
            grace_seconds,
            propagation,
            uid: text("/preconditions/uid", "").map(str::to_owned),
            rev: revision(text("/preconditions/resourceVersion", ""))?,
            dry_run: dry_run(text("/dryRun/0", "dryRun"))?,
        })
    }
}
