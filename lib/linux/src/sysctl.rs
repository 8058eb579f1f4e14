//! Kernel settings under `/proc/sys`, of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// The file of `key`, which is written with slashes, e.g. `net/ipv4/conf/eth0.5/forwarding`
/// (a link's name may contain dots).
fn file(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key.trim_start_matches('/'))
}

/// The value of `key`, without the final line break.
///
/// # Errors
/// No such key.
pub fn read(key: &str) -> Result<String> {
    fs::read_to_string(file(key))
        .map(|text| text.trim_end().to_owned())
        .map_err(|e| Error::new(format!("read sysctl {key}"), e))
}

/// Sets `key`.
///
/// # Errors
/// No such key, or a value the kernel does not take.
pub fn write(key: &str, value: &str) -> Result<()> {
    // Never creates a file: what is not there is an error that names the key.
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(file(key))?;
        io::Write::write_all(&mut file, value.as_bytes())
    };
    write().map_err(|e| Error::new(format!("set sysctl {key} to {value}"), e))
}

/// Sets `key` unless it has the value already; true when it was changed. Reading is cheap where a
/// write is not (`ip_forward` takes the RTNL lock), and works on a read-only `/proc/sys`.
///
/// # Errors
/// As [`write()`].
pub fn ensure(key: &str, value: &str) -> Result<bool> {
    if read(key)? == value {
        return Ok(false);
    }
    write(key, value)?;
    Ok(true)
}
