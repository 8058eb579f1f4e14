//! Programs of eBPF at interfaces by netlink, for kernels that have no TCX: the queueing discipline
//! `clsact` and in it one filter for each direction. Source: `linux/pkt_cls.h`, `net/sched/cls_bpf.c`.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as M;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use crate::error::Result;
use crate::netlink::Netlink;
use crate::shape::{PROTOCOL_ALL, on};

/// The discipline's name.
const CLSACT: &str = "clsact";

/// `TC_H_CLSACT`: in the place of a parent, and without its lower half as the discipline's handle.
const PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};

/// Which way packets go that a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the interface.
    Ingress,
    /// Out of it.
    Egress,
}

impl Direction {
    /// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` below `TC_H_CLSACT`.
    fn parent(self) -> TcHandle {
        TcHandle {
            major: 0xffff,
            minor: match self {
                Self::Ingress => 0xfff2,
                Self::Egress => 0xfff3,
            },
        }
    }
}

/// Where a filter stands among others of a direction, and what it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Lower ones come first.
    pub priority: u16,
    /// Tells filters of a priority apart.
    pub handle: u16,
    /// Its name.
    pub name: &'a str,
}

impl Filter<'_> {
    fn message(&self, index: u32, direction: Direction) -> TcMessage {
        let mut message = on(index, direction.parent());
        message.header.info = u32::from(self.priority) << 16 | PROTOCOL_ALL;
        message.header.handle = TcHandle {
            major: 0,
            minor: self.handle,
        };
        let kind = TcAttribute::Kind(TcFilterBpf::KIND.to_owned());
        message.attributes.push(kind);
        message
    }

    fn is(&self, message: &TcMessage) -> bool {
        let same_place = message.header.info >> 16 == u32::from(self.priority)
            && message.header.handle.minor == self.handle;
        let named = |option: &TcOption| matches!(option, TcOption::Bpf(TcFilterBpfOption::ProgName(name)) if name == self.name);
        let has_name = message.attributes.iter().any(|attribute| {
            matches!(attribute, TcAttribute::Options(options) if options.iter().any(named))
        });
        same_place && has_name
    }
}

/// Makes room for filters at link number `index`; false when there was room.
///
/// # Errors
/// The kernel's refusal; another discipline for what comes in stands in the way (`EEXIST`).
pub fn ensure_clsact(netlink: &mut Netlink, link: &str, index: u32) -> Result<bool> {
    let op = format_args!("add clsact to {link}");
    let message = M::NewQueueDiscipline(clsact(index));
    match netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(e) if e.is_exists() && has_clsact(netlink, link, index)? => Ok(false),
        Err(e) => Err(e),
    }
}

fn has_clsact(netlink: &mut Netlink, link: &str, index: u32) -> Result<bool> {
    let op = format_args!("list queueing disciplines of {link}");
    let found = netlink.dump(op, &M::GetQueueDiscipline(on(index, TcHandle::UNSPEC)))?;
    let is_clsact = |message: &TcMessage| {
        i64::from(message.header.index) == i64::from(index)
            && message
                .attributes
                .iter()
                .any(|a| matches!(a, TcAttribute::Kind(kind) if kind == CLSACT))
    };
    Ok(found
        .iter()
        .any(|m| matches!(m, M::NewQueueDiscipline(m) if is_clsact(m))))
}

/// Takes the room away when no filter is in it; whether it did.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_empty_clsact(netlink: &mut Netlink, link: &str, index: u32) -> Result<bool> {
    for direction in [Direction::Ingress, Direction::Egress] {
        if !list(netlink, link, index, direction)?.is_empty() {
            return Ok(false);
        }
    }
    let op = format_args!("remove clsact from {link}");
    match netlink.change(op, M::DelQueueDiscipline(clsact(index)), 0) {
        Ok(()) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Adds a filter with a program that decides itself, or puts the program in the place of the one in
/// there: packets see the old one or the new one.
///
/// # Errors
/// The kernel's refusal.
pub fn set_filter(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
    direction: Direction,
    filter: &Filter<'_>,
    program: BorrowedFd<'_>,
) -> Result<()> {
    let mut message = filter.message(index, direction);
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(filter.name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = options.into_iter().map(TcOption::Bpf).collect();
    message.attributes.push(TcAttribute::Options(options));
    let op = format_args!("attach {} to {link} by clsact", filter.name);
    netlink.change(op, M::NewTrafficFilter(message), NLM_F_CREATE)
}

/// Whether a filter of this place and name is there.
///
/// # Errors
/// The kernel does not tell.
pub fn has_filter(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
    direction: Direction,
    filter: &Filter<'_>,
) -> Result<bool> {
    let all = list(netlink, link, index, direction)?;
    Ok(all.iter().any(|message| filter.is(message)))
}

/// Takes a filter away that has this place and name; whether there was one.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_filter(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
    direction: Direction,
    filter: &Filter<'_>,
) -> Result<bool> {
    match has_filter(netlink, link, index, direction, filter) {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(e) if is_gone(&e) => return Ok(false),
        Err(e) => return Err(e),
    }
    let op = format_args!("detach {} from {link}", filter.name);
    let message = M::DelTrafficFilter(filter.message(index, direction));
    match netlink.change(op, message, 0) {
        Ok(()) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The interface or the discipline is not there (any more).
fn is_gone(error: &crate::Error) -> bool {
    error.is_not_found() || error.errno() == Some(libc::EINVAL)
}

fn list(
    netlink: &mut Netlink,
    link: &str,
    index: u32,
    direction: Direction,
) -> Result<Vec<TcMessage>> {
    let op = format_args!("list filters of {link}");
    let request = M::GetTrafficFilter(on(index, direction.parent()));
    let found = netlink.dump(op, &request)?.into_iter();
    // Each priority is told of by itself, too, without a filter.
    let filters = found.filter_map(|message| match message {
        M::NewTrafficFilter(message) if message.header.handle != TcHandle::UNSPEC => Some(message),
        _ => None,
    });
    Ok(filters.collect())
}

fn clsact(index: u32) -> TcMessage {
    let mut message = on(index, PARENT);
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    let kind = TcAttribute::Kind(CLSACT.to_owned());
    message.attributes.push(kind);
    message
}
