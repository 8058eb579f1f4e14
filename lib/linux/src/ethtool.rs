//! Settings of `ethtool`: what a link does for packets that others do not have to do
//! (`linux/ethtool.h`). By ioctl, since ethtool's netlink family came with kernel 5.6 and these are
//! needed on kernels before that.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};
use crate::link::NAME_BYTES_MAX;

/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: u16 = 0x8946;

/// Work that a link takes from the network stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Checking the checksums of what comes in.
    RxChecksum,
    /// Filling in the checksums of TCP and UDP.
    TxChecksum,
    /// Cutting TCP into segments, by the device.
    Tso,
    /// Cutting into segments, as late as can be.
    Gso,
    /// Joining segments that come in.
    Gro,
}

impl Offload {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::RxChecksum,
        Self::TxChecksum,
        Self::Tso,
        Self::Gso,
        Self::Gro,
    ];

    /// `ETHTOOL_G..`, the request that reads it; the one that sets it is the next number.
    fn request(self) -> u32 {
        match self {
            Self::RxChecksum => 0x14,
            Self::TxChecksum => 0x16,
            Self::Tso => 0x1e,
            Self::Gso => 0x23,
            Self::Gro => 0x2b,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::RxChecksum => "check of checksums",
            Self::TxChecksum => "checksum offload",
            Self::Tso => "TCP segmentation",
            Self::Gso => "late segmentation",
            Self::Gro => "joining of segments",
        }
    }
}

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
    has(link, Offload::TxChecksum)
}

/// Whether `link` (in the calling thread's network namespace) does such work.
///
/// # Errors
/// No such link, or a kind that has no such notion.
pub fn has(link: &str, offload: Offload) -> Result<bool> {
    let mut value = Value {
        cmd: offload.request(),
        data: 0,
    };
    request(link, &mut value)
        .map_err(|e| Error::new(format!("read the {} of {link}", offload.name()), e))?;
    Ok(value.data != 0)
}

/// Has `link` fill in checksums, or not.
///
/// # Errors
/// As [`tx_checksum`].
pub fn set_tx_checksum(link: &str, on: bool) -> Result<()> {
    set(link, Offload::TxChecksum, on)
}

/// Has `link` do such work, or not.
///
/// # Errors
/// As [`has`].
pub fn set(link: &str, offload: Offload, on: bool) -> Result<()> {
    let mut value = Value {
        cmd: offload.request() + 1,
        data: u32::from(on),
    };
    request(link, &mut value).map_err(|e| {
        let word = if on { "on" } else { "off" };
        Error::new(format!("set the {} of {link} {word}", offload.name()), e)
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
