//! What a watcher of objects sees: a list (visible as such, so that a store can swap at its end),
//! then changes.

use serde::{Deserialize, Serialize};

use crate::meta::{ObjectMeta, null_as_default};

/// One step of a list-and-watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T> {
    /// A list begins. What was known stays valid until [`Event::InitDone`].
    Init,
    /// One object of the list.
    InitApply(T),
    /// The list is complete: what was known and is not in it is gone.
    InitDone,
    /// An object was made or changed.
    Apply(T),
    /// An object was deleted (its last state).
    Delete(T),
}

impl<T> Event<T> {
    /// The same event with another object.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Event<U> {
        match self {
            Self::Init => Event::Init,
            Self::InitApply(object) => Event::InitApply(f(object)),
            Self::InitDone => Event::InitDone,
            Self::Apply(object) => Event::Apply(f(object)),
            Self::Delete(object) => Event::Delete(f(object)),
        }
    }

    /// The object in the event.
    pub fn object(&self) -> Option<&T> {
        match self {
            Self::Init | Self::InitDone => None,
            Self::InitApply(object) | Self::Apply(object) | Self::Delete(object) => Some(object),
        }
    }
}

/// One line of a watch as the API server writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub enum WatchEvent<T> {
    /// An object was made.
    Added(T),
    /// An object was changed.
    Modified(T),
    /// An object was deleted, or no longer matches the selector.
    Deleted(T),
    /// Nothing changed up to this resource version.
    Bookmark(Bookmark),
    /// The watch failed; code 410 asks for a new list.
    Error(Status),
}

/// A bookmark: an object of the kind with nothing but its resource version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bookmark {
    /// Carries the resource version.
    pub metadata: ObjectMeta,
}

/// An error as the API server tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `Failure` or `Success`.
    #[serde(deserialize_with = "null_as_default")]
    pub status: String,
    /// For people.
    #[serde(deserialize_with = "null_as_default")]
    pub message: String,
    /// One word, e.g. `Expired`.
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
    /// HTTP code.
    #[serde(deserialize_with = "null_as_default")]
    pub code: u16,
}
