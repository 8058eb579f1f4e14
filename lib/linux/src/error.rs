//! The one error type of this crate: what was tried, on what, and what the kernel said.

use std::io;

/// A failed operation on a kernel object. Displays as `set master of veth3f2 to cni0: no such device`.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {}{}", errno_text(source), detail_text(detail))]
pub struct Error {
    /// The operation and its object, e.g. `set master of veth3f2 to cni0`.
    pub op: String,
    /// What the kernel answered.
    pub source: io::Error,
    /// The kernel's extended acknowledgement, or the end of a program's standard error.
    pub detail: Option<String>,
}

/// Result of an operation on the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of operation `op` (which names its object).
    pub fn new(op: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            op: op.into(),
            source: source.into(),
            detail: None,
        }
    }

    /// An error that has no errno behind it.
    pub fn other(op: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(op, io::Error::other(why.into()))
    }

    /// Adds the kernel's own words.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        self.detail = (!detail.trim().is_empty()).then(|| detail.trim().to_owned());
        self
    }

    /// The errno, where there is one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The object is not there (ENOENT, ENODEV, ESRCH, EADDRNOTAVAIL or a missing file).
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
            || matches!(
                self.errno(),
                Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
            )
    }

    /// The object is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST) || self.source.kind() == io::ErrorKind::AlreadyExists
    }
}

/// The errno's text as C programs print it, without Rust's `(os error N)`.
fn errno_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn detail_text(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map(|d| format!(" ({d})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_operation_object_and_cause() {
        let e = Error::new(
            "set master of veth3f2 to cni0",
            io::Error::from_raw_os_error(libc::ENODEV),
        );
        assert_eq!(
            e.to_string(),
            "set master of veth3f2 to cni0: no such device"
        );
        assert!(e.is_not_found());
        let e = e.with_detail("Device is gone\n");
        assert_eq!(
            e.to_string(),
            "set master of veth3f2 to cni0: no such device (Device is gone)"
        );
    }
}
