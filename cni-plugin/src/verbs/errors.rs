//! What went wrong, as an error of the specification.

use api::cni::{Error, ErrorCode};

use crate::ipam::AllocateError;
use crate::lease_store::LeaseError;

pub(super) fn kernel(error: linux::Error) -> Error {
    kernel_text(&error, &error)
}

/// An error of the kernel; one that may go away by itself tells the runtime to try again.
pub(super) fn kernel_text(cause: &linux::Error, text: &dyn std::fmt::Display) -> Error {
    let passing = [errno::EINTR, errno::EAGAIN, errno::ETIMEDOUT];
    let code = if cause.errno().is_some_and(|errno| passing.contains(&errno)) {
        ErrorCode::TRY_AGAIN
    } else {
        ErrorCode::KERNEL
    };
    Error::new(code, text.to_string())
}

/// The numbers of errors that pass (`asm-generic/errno.h`), the same on all machines we run on.
mod errno {
    pub(super) const EINTR: i32 = 4;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const ETIMEDOUT: i32 = 110;
}

pub(super) fn io(error: LeaseError) -> Error {
    let code = if error.is_passing() {
        ErrorCode::TRY_AGAIN
    } else {
        ErrorCode::IO
    };
    Error::new(code, error.to_string())
}

pub(super) fn address(error: AllocateError) -> Error {
    Error::new(ErrorCode::ADDRESS, error.to_string())
}

/// Several errors as one: the first, with the others as its details. Fine if there are none.
pub(super) fn gathered(failed: impl IntoIterator<Item = Error>) -> Result<(), Error> {
    let mut failed = failed.into_iter();
    let Some(mut first) = failed.next() else {
        return Ok(());
    };
    for other in failed {
        if !first.details.is_empty() {
            first.details.push_str("; ");
        }
        first.details.push_str(&other.to_string());
    }
    Err(first)
}

/// `error`, and what went wrong when it was to be made good.
pub(super) fn with_cleanup(error: Error, cleanup: Result<(), Error>) -> Error {
    match cleanup {
        Ok(()) => error,
        Err(also) => {
            let details = format!("{}; also, giving the addresses back: {also}", error.details);
            Error {
                details: details.trim_start_matches("; ").to_owned(),
                ..error
            }
        }
    }
}
