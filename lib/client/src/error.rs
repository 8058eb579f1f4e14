//! What can go wrong between a daemon and the API server.

use serde::Deserialize;

use crate::config::KubeconfigError;

/// Result of a request.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed request; displays as one line that names the request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig or the in-cluster configuration is broken.
    #[error(transparent)]
    Config(#[from] KubeconfigError),
    /// The API server refused.
    #[error("{op}: {message} ({code} {reason})")]
    Api {
        /// Method and path.
        op: String,
        /// HTTP status code.
        code: u16,
        /// Kubernetes' one-word reason, e.g. `NotFound`.
        reason: String,
        /// The server's words.
        message: String,
    },
    /// No answer came.
    #[error("{op}: {why}")]
    Transport {
        /// Method and path.
        op: String,
        /// What the connection said.
        why: String,
    },
    /// The answer, or the object to be sent, is not what it should be.
    #[error("{op}: {source}")]
    Json {
        /// Method and path.
        op: String,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
}

/// The part of Kubernetes' `Status` object that an error needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Error {
    /// The server's refusal, from the body it sent.
    pub(crate) fn api(op: String, code: u16, body: &[u8]) -> Self {
        let status = serde_json::from_slice(body).unwrap_or_else(|_not_a_status| Status {
            message: String::from_utf8_lossy(body).trim().to_owned(),
            ..Status::default()
        });
        Self::status(op, Status { code, ..status })
    }

    pub(crate) fn status(op: String, status: Status) -> Self {
        let canonical = || {
            http::StatusCode::from_u16(status.code)
                .ok()
                .and_then(|code| code.canonical_reason())
                .unwrap_or("unknown")
                .to_owned()
        };
        let or = |text: &String| {
            if text.is_empty() {
                canonical()
            } else {
                text.clone()
            }
        };
        Self::Api {
            op,
            code: status.code,
            reason: or(&status.reason),
            message: or(&status.message),
        }
    }

    pub(crate) fn transport(op: &str, why: impl std::fmt::Display) -> Self {
        Self::Transport {
            op: op.to_owned(),
            why: why.to_string(),
        }
    }

    /// The HTTP status code, when the server answered with an error.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { code, .. } => Some(*code),
            Self::Config(_) | Self::Transport { .. } | Self::Json { .. } => None,
        }
    }

    /// No such object (404).
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else was first (409): changed it meanwhile, or made one of this name.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// One of this name is there already (409 with reason `AlreadyExists`).
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Api { code: 409, reason, .. } if reason == "AlreadyExists")
    }

    /// The asked part of history is compacted (410).
    pub fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }
}

/// The chain of causes of an error in one line, without what is said twice.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = one_line(&error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        let words = one_line(&cause.to_string());
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
