//! Telling a supervisor that a daemon is ready: systemd's `sd_notify` protocol, without its library.
//! Source: `sd_notify(3)`; one datagram to the unix socket named by `$NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::{Error, Result};

/// Says `READY=1`. Does nothing when no supervisor asked for it.
pub fn ready() -> Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => send(&path.to_string_lossy(), "READY=1"),
        None => Ok(()),
    }
}

/// Sends one state to the socket at `path` (a leading `@` means the abstract namespace).
fn send(path: &str, state: &str) -> Result<()> {
    let op = || format!("notify {path}");
    let socket = UnixDatagram::unbound().map_err(|e| Error::new(op(), e))?;
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
    .map_err(|e| Error::new(op(), e))?;
    socket
        .send_to_addr(state.as_bytes(), &address)
        .map_err(|e| Error::new(op(), e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_reaches_the_supervisor() {
        let dir = std::env::temp_dir().join(format!("seaway-notify-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("n.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), "READY=1").unwrap();
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
