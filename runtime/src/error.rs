//! The one error type of this crate: what was tried, on what, and why it failed.

use std::io;
use std::path::Path;

/// A failed operation of the runtime. Displays as `start container web-0: no such program /bin/x`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container, sandbox or image that is not there.
    #[error("{kind} {id} is not there")]
    NotFound {
        /// `container`, `sandbox` or `image`.
        kind: &'static str,
        /// Its id or name.
        id: String,
    },
    /// A field of a request that cannot be used.
    #[error("{field}: {why}")]
    Invalid {
        /// The field, e.g. `image`.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// An object that is in another state than the operation needs.
    #[error("{op}: it is {state}")]
    State {
        /// The operation and its object.
        op: String,
        /// The state, e.g. `exited`.
        state: String,
    },
    /// An image archive, layout or layer that is broken or of an unknown form.
    #[error("image {image}: {why}")]
    Image {
        /// File, directory or name.
        image: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file or socket operation.
    #[error("{op}: {source}")]
    Io {
        /// The operation and its object.
        op: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A state file that cannot be read or written as JSON.
    #[error("{op}: {source}")]
    Json {
        /// The operation and its object.
        op: String,
        /// What serde said.
        source: serde_json::Error,
    },
    /// Something the kernel refused.
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    /// The pod's shim could not do it.
    #[error("{op}: {message}")]
    Shim {
        /// The operation and its object.
        op: String,
        /// The shim's own words.
        message: String,
    },
}

/// Result of an operation of the runtime.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The object of the operation is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn io(op: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            op: op.into(),
            source: source.into(),
        }
    }

    /// For `map_err`: an I/O error of `verb` on `path`.
    pub(crate) fn path(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let op = format!("{verb} {}", path.display());
        move |source| Self::Io { op, source }
    }

    pub(crate) fn json(op: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let op = op.into();
        move |source| Self::Json { op, source }
    }

    pub(crate) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }

    pub(crate) fn image(image: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Image {
            image: image.into(),
            why: why.into(),
        }
    }

    pub(crate) fn shim(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Shim {
            op: op.into(),
            message: message.into(),
        }
    }

    pub(crate) fn container(id: &str) -> Self {
        Self::NotFound {
            kind: "container",
            id: id.to_owned(),
        }
    }

    pub(crate) fn sandbox(id: &str) -> Self {
        Self::NotFound {
            kind: "sandbox",
            id: id.to_owned(),
        }
    }
}
