//! One setting of `ethtool`: whether a link fills in the checksums of TCP and UDP
//! (`linux/ethtool.h`). By ioctl, since ethtool's netlink family came with kernel 5.6 and the
//! setting is needed on kernels before that.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};
use crate::link::NAME_BYTES_MAX;

/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: u16 = 0x8946;

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// Whether `link` (in the calling thread's network namespace) fills in checksums.
///
/// # Errors
/// No such link, or a kind that has no such notion.
pub fn tx_checksum(link: &str) -> Result<bool> {
    let mut value = Value {
        cmd: ETHTOOL_GTXCSUM,
        data: 0,
    };
    request(link, &mut value).map_err(|e| {
        let op = format!("read the checksum offload of {link}");
        Error::new(op, e)
    })?;
    Ok(value.data != 0)
}

/// Has `link` fill in checksums, or not.
///
/// # Errors
/// As [`tx_checksum`].
pub fn set_tx_checksum(link: &str, on: bool) -> Result<()> {
    let mut value = Value {
        cmd: ETHTOOL_STXCSUM,
        data: u32::from(on),
    };
    request(link, &mut value).map_err(|e| {
        let word = if on { "on" } else { "off" };
        Error::new(format!("set the checksum offload of {link} {word}"), e)
    })
}

#[expect(unsafe_code, reason = "an ioctl with a structure of its own")]
fn request(link: &str, value: &mut Value) -> io::Result<()> {
    if link.len() > NAME_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let kind = SockType::Datagram;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(link.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut ifreq = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: std::ptr::from_mut(value).cast(),
        },
    };
    // SAFETY: the kernel reads `ifreq` and reads and writes the structure behind `ifru_data`, a
    // `struct ethtool_value`, both of which live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL.into(), &mut ifreq) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
