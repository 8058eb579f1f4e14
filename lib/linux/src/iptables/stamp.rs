//! Whether anybody has changed rules since: a few bytes instead of a listing.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::{Backend, Family, Iptables};
use crate::error::{Error, Result};
use crate::nftables::Nftables;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` of `linux/netfilter_ipv4/ip_tables.h`: the same.
const GET_INFO: libc::c_int = 64;

/// The length of a table's name (`XT_TABLE_MAXNAMELEN`).
const NAME_LEN: usize = 32;

/// `struct ipt_getinfo`, and `struct ip6t_getinfo`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    name: [u8; NAME_LEN],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

const _: () = assert!(size_of::<Info>() == 84);

/// Equal stamps: nobody has changed the rules in between. With the nft back end every transaction
/// of anybody makes another one; with the legacy back end (whose kernel keeps no count) the number
/// of rules and their size do, so one rule in another's place is not noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<(u32, u32)>);

impl Iptables {
    /// The present stamp of `tables`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn stamp(&self, tables: &[&str]) -> Result<Stamp> {
        match self.backend {
            Backend::Nft => {
                let generation = Nftables::open()?.generation()?;
                Ok(Stamp(vec![(generation.id, 0)]))
            }
            Backend::Legacy => {
                let raw = raw_socket(self.family)
                    .map_err(|e| Error::new("open a raw socket for the tables' sizes", e))?;
                let sizes = tables.iter().map(|table| size(&raw, self.family, table));
                Ok(Stamp(sizes.collect::<Result<_>>()?))
            }
        }
    }
}

fn raw_socket(family: Family) -> io::Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    // Any raw socket takes the option.
    let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    Ok(socket(family, SockType::Raw, flags, protocol)?)
}

/// Rules and bytes of a table; nothing for one that is not there.
#[expect(unsafe_code, reason = "nix has no such socket option")]
fn size(raw: &OwnedFd, family: Family, table: &str) -> Result<(u32, u32)> {
    let mut info = Info {
        name: [0; NAME_LEN],
        valid_hooks: 0,
        hook_entry: [0; 5],
        underflow: [0; 5],
        num_entries: 0,
        size: 0,
    };
    let name = table.bytes().take(NAME_LEN - 1);
    for (to, from) in info.name.iter_mut().zip(name) {
        *to = from;
    }
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut len = libc::socklen_t::try_from(size_of::<Info>()).unwrap_or_default();
    let at = (&raw mut info).cast();
    // SAFETY: the kernel reads the name, which ends with a zero, and writes no more than `len`
    // bytes, the size of what `at` points to; any bytes are a valid `Info`.
    let result = unsafe { libc::getsockopt(raw.as_raw_fd(), level, GET_INFO, at, &raw mut len) };
    if result == 0 {
        return Ok((info.num_entries, info.size));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOENT) => Ok((0, 0)),
        e => Err(Error::new(format!("get the size of table {table}"), e)),
    }
}
