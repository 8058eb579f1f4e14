//! What aya does not have of `bpf(2)`: maps as bytes with batches, replacing the program under a
//! live link, and pins. Source: `include/uapi/linux/bpf.h`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result};

mod map;

pub use map::{Map, MapInfo};

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`.
const TCX_INGRESS: u32 = 46;

/// `BPF_XDP` of `enum bpf_attach_type`.
const XDP: u32 = 37;

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`.
const XDP_GENERIC: u32 = 1 << 1;
const XDP_NATIVE: u32 = 1 << 2;

/// `struct bpf_link_info` of links to an interface or a control group, as far as it is read.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkInfo {
    /// Type, of `enum bpf_link_type`.
    pub kind: u32,
    /// Number by which the kernel knows it.
    pub id: u32,
    /// The program's number.
    pub program: u32,
    pad: u32,
    words: [u32; 8],
}

impl LinkInfo {
    /// Of a link of TCX or XDP: the interface; 0 when that is gone.
    pub fn ifindex(&self) -> u32 {
        self.words[0]
    }

    /// Of a link to a control group: that one's number, its directory's inode; 0 when it is gone.
    pub fn cgroup_id(&self) -> u64 {
        pair(self.words[0], self.words[1])
    }
}

/// Room for any of the attributes used here.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Attr([u64; 16]);

impl Attr {
    fn new(words: &[u64]) -> Self {
        let mut attr = [0; 16];
        attr[..words.len()].copy_from_slice(words);
        Self(attr)
    }

    /// The first of the two 32 bit fields of a word, as the kernel has left it.
    fn low(&self, word: usize) -> u32 {
        let [a, b, c, d, ..] = self.0[word].to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// Two 32 bit fields side by side.
fn pair(low: u32, high: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

#[expect(unsafe_code, reason = "bpf(2) has no wrapper")]
fn bpf(command: u32, attr: &mut Attr) -> io::Result<i32> {
    let size = size_of::<Attr>();
    // SAFETY: the attribute is as long as said; what its pointers point at outlives the call, as
    // every caller below borrows it.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    match i32::try_from(code) {
        Ok(code) if code >= 0 => Ok(code),
        _ => Err(io::Error::last_os_error()),
    }
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().addr() as u64
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr().addr() as u64
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| Error::new(format!("use path {}", path.display()), io::Error::from(e)))
}

#[expect(unsafe_code, reason = "a descriptor that the kernel has just made")]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the call returned a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens what is pinned at `path`: a map, a program or a link.
///
/// # Errors
/// The kernel's refusal; `ENOENT` when nothing is there.
pub fn open_pinned(path: &Path) -> Result<OwnedFd> {
    let text = c_path(path)?;
    let mut attr = Attr::new(&[address(text.as_bytes_with_nul()), 0]);
    bpf(OBJ_GET, &mut attr)
        .map(owned)
        .map_err(|e| Error::new(format!("open {}", path.display()), e))
}

/// Pins an object at `path`.
///
/// # Errors
/// The kernel's refusal.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let text = c_path(path)?;
    let mut attr = Attr::new(&[address(text.as_bytes_with_nul()), u64::from(raw(fd))]);
    bpf(OBJ_PIN, &mut attr)
        .map(drop)
        .map_err(|e| Error::new(format!("pin {}", path.display()), e))
}

/// Puts another program under a live link, without a moment in which there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attr = Attr::new(&[pair(raw(link), raw(program)), 0]);
    bpf(LINK_UPDATE, &mut attr)
        .map(drop)
        .map_err(|e| Error::new("replace a program under its link", e))
}

/// Attaches a program to an interface, before the network stack, where none is yet; in the driver or,
/// `generic`, with every driver. Drop of the link detaches it unless it is pinned.
///
/// # Errors
/// The kernel's refusal; `EBUSY` or `EEXIST` when somebody else's program is there.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32, generic: bool) -> Result<OwnedFd> {
    let flags = if generic { XDP_GENERIC } else { XDP_NATIVE };
    let mut attr = Attr::new(&[pair(raw(program), ifindex), pair(XDP, flags)]);
    bpf(LINK_CREATE, &mut attr).map(owned).map_err(|e| {
        let other = matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
        let why = if other {
            " (another program is there)"
        } else {
            ""
        };
        Error::new(format!("attach XDP to interface {ifindex}{why}"), e)
    })
}

/// Takes a program away from where its link holds it, before the last reference to the link is gone.
///
/// # Errors
/// The kernel's refusal.
pub fn detach(link: BorrowedFd<'_>) -> Result<()> {
    let mut attr = Attr::new(&[u64::from(raw(link))]);
    bpf(LINK_DETACH, &mut attr)
        .map(drop)
        .map_err(|e| Error::new("detach a link", e))
}

/// Tells about a link.
///
/// # Errors
/// The kernel's refusal.
pub fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo> {
    let mut info = [LinkInfo::default()];
    info_by_fd(link, &mut info).map_err(|e| Error::new("read about a link", e))?;
    Ok(info[0])
}

fn info_by_fd<T>(fd: BorrowedFd<'_>, info: &mut [T; 1]) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).unwrap_or_default();
    let mut attr = Attr::new(&[pair(raw(fd), length), address_mut(info)]);
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Whether programs can be attached to interfaces by TCX (Linux 6.6).
pub fn has_tcx() -> bool {
    // The loopback interface, which every network namespace has.
    let mut attr = Attr::new(&[pair(1, TCX_INGRESS)]);
    bpf(PROG_QUERY, &mut attr).is_ok()
}

/// How many CPUs the kernel keeps room for, from `/sys/devices/system/cpu/possible`.
pub fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next();
    last.and_then(|n| n.parse::<usize>().ok())
        .map_or(1, |n| n + 1)
}

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// The kernel's refusal.
pub fn netns_cookie() -> Result<u64> {
    let op = "read the network namespace's cookie";
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| std::net::UdpSocket::bind("[::]:0"))
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))
        .map_err(|e| Error::new(op, e))?;
    socket_option(&socket, SO_NETNS_COOKIE).map_err(|e| Error::new(op, e))
}

const SO_NETNS_COOKIE: i32 = 71;

/// A socket's cookie, as programs see it (`SO_COOKIE`).
#[cfg(test)]
pub(crate) fn socket_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    socket_option(socket, libc::SO_COOKIE)
}

#[expect(unsafe_code, reason = "an option that nix does not have")]
fn socket_option(socket: &impl AsRawFd, option: i32) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: value and length are as long as said and outlive the call.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    if code == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
