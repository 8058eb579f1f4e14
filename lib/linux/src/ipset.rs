//! Sets of ipset (`linux/netfilter/ipset/ip_set.h`, protocol 6) over netlink: those kinds that
//! services need.

mod element;

pub use element::{Element, Kind};

use std::io;

use std::net::IpAddr;

use crate::error::{Error, Result};
use crate::nfnetlink::{NfSocket, attribute, attributes, put, put_nested};
use element::{DATA_PORT, NETWORK_ORDER};

/// `NFNL_SUBSYS_IPSET`, in the upper byte.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const FLUSH: u16 = SUBSYSTEM | 4;
const SWAP: u16 = SUBSYSTEM | 6;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 10;

/// All kernels since 2.6.39 speak it.
const PROTOCOL: u8 = 6;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
/// The other name of a swap (`IPSET_ATTR_SETNAME2`).
const ATTR_SETNAME_OTHER: u16 = ATTR_TYPENAME;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;

/// `IPSET_ATTR_PORT_TO`: the last port of a bitmap.
const DATA_PORT_TO: u16 = 5;
const DATA_FLAGS: u16 = 8;
const DATA_MAX_ELEMENTS: u16 = 19;

/// `IPSET_FLAG_WITH_SKBINFO`.
const FLAG_WITH_MARK: u32 = 1 << 6;

/// Elements of a set at most.
const ELEMENTS_MAX: u32 = 1 << 20;

/// The kernel's limit for names (`IPSET_MAXNAMELEN`, less the final zero).
pub const NAME_BYTES_MAX: usize = 31;

fn named(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, ATTR_PROTOCOL, &[PROTOCOL]);
    put(&mut out, ATTR_SETNAME, format!("{name}\0").as_bytes());
    out
}

/// The sets of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct IpSets {
    socket: NfSocket,
}

impl IpSets {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn open() -> Result<Self> {
        let socket = NfSocket::open()?;
        Ok(Self { socket })
    }

    /// Makes a set unless there is one of this name and kind. One that differs only in how many
    /// elements it takes is replaced in place, elements and all: rules that use it never miss it.
    ///
    /// # Errors
    /// The kernel has no such sets, or one of this name is of another type or family.
    pub fn create(&mut self, name: &str, kind: Kind, ipv6: bool) -> Result<()> {
        match self.make(name, kind, ipv6) {
            Err(error) if error.is_exists() => {}
            made => return made,
        }
        let there = self.type_of(name)?;
        let wanted = (kind.type_name().to_owned(), family_of(kind, ipv6));
        if there != wanted {
            let (found, family) = there;
            let text = format!(
                "there is one of type {found} and family {family} already: delete it (ipset destroy {name})"
            );
            let op = format!("make set {name} of type {}", kind.type_name());
            return Err(Error::new(op, io::Error::other(text)));
        }
        let spare = format!("SEAWAY{}-new", if ipv6 { 6 } else { 4 });
        ensure_gone(self.destroy(&spare))?;
        self.make(&spare, kind, ipv6)?;
        for element in self.elements(name)? {
            self.add(&spare, kind, &element)?;
        }
        let mut body = named(name);
        put(
            &mut body,
            ATTR_SETNAME_OTHER,
            format!("{spare}\0").as_bytes(),
        );
        let op = format!("put a larger set in the place of {name}");
        self.socket.change(&op, SWAP, 0, &body).map_err(explain)?;
        self.destroy(&spare)
    }

    fn make(&mut self, name: &str, kind: Kind, ipv6: bool) -> Result<()> {
        let family = family_of(kind, ipv6);
        let mut body = named(name);
        let type_name = kind.type_name();
        put(
            &mut body,
            ATTR_TYPENAME,
            format!("{type_name}\0").as_bytes(),
        );
        put(&mut body, ATTR_REVISION, &[kind.revision()]);
        put(&mut body, ATTR_FAMILY, &[family]);
        put_nested(&mut body, ATTR_DATA, |out| match kind {
            Kind::Port => {
                put(out, DATA_PORT | NETWORK_ORDER, &0_u16.to_be_bytes());
                put(out, DATA_PORT_TO | NETWORK_ORDER, &u16::MAX.to_be_bytes());
            }
            _ => {
                let most = ELEMENTS_MAX.to_be_bytes();
                put(out, DATA_MAX_ELEMENTS | NETWORK_ORDER, &most);
                if kind == Kind::IpPortMark {
                    let flags = FLAG_WITH_MARK.to_be_bytes();
                    put(out, DATA_FLAGS | NETWORK_ORDER, &flags);
                }
            }
        });
        let op = format!("make set {name} of type {type_name}");
        self.socket
            .change(&op, CREATE, family, &body)
            .map_err(explain)
    }

    /// A set's type and family (`AF_INET`, `AF_INET6`, or 0 for both).
    fn type_of(&mut self, name: &str) -> Result<(String, u8)> {
        let mut found = (String::new(), 0);
        let op = format!("ask for the type of set {name}");
        self.socket.dump(&op, LIST, 0, &named(name), |message| {
            let value = |kind| attribute(message.attributes, kind);
            if let Some(text) = value(ATTR_TYPENAME) {
                let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
                found.0 = String::from_utf8_lossy(text).into_owned();
            }
            if let Some([family]) = value(ATTR_FAMILY) {
                found.1 = *family;
            }
        })?;
        Ok(found)
    }

    /// Empties a set that others may use.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    pub fn flush(&mut self, name: &str) -> Result<()> {
        let op = format!("empty set {name}");
        self.socket.change(&op, FLUSH, 0, &named(name))
    }

    /// Deletes a set; no rule may use it.
    ///
    /// # Errors
    /// It is not there (`is_not_found`), or in use ([`is_in_use`]).
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        let op = format!("delete set {name}");
        self.socket.change(&op, DESTROY, 0, &named(name))
    }

    /// The elements of a set.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    pub fn elements(&mut self, name: &str) -> Result<Vec<Element>> {
        let mut all = Vec::new();
        let op = format!("list set {name}");
        self.socket.dump(&op, LIST, 0, &named(name), |message| {
            let Some(list) = attribute(message.attributes, ATTR_ADT) else {
                return;
            };
            all.extend(attributes(list).filter_map(|(_, data)| Element::read(data)));
        })?;
        Ok(all)
    }

    /// Adds an element; one that is there already gets its mark.
    ///
    /// # Errors
    /// The set is not there, or full.
    pub fn add(&mut self, name: &str, kind: Kind, element: &Element) -> Result<()> {
        self.change("add", ADD, name, kind, element)
    }

    /// Deletes an element; one that is not there is fine.
    ///
    /// # Errors
    /// The set is not there.
    pub fn delete(&mut self, name: &str, kind: Kind, element: &Element) -> Result<()> {
        let bare = Element {
            mark: None,
            ..*element
        };
        self.change("delete", DELETE, name, kind, &bare)
    }

    fn change(
        &mut self,
        verb: &str,
        message: u16,
        name: &str,
        kind: Kind,
        element: &Element,
    ) -> Result<()> {
        let family = match element.ip {
            Some(IpAddr::V4(_)) => libc::AF_INET,
            Some(IpAddr::V6(_)) => libc::AF_INET6,
            None => libc::AF_UNSPEC,
        };
        let mut body = named(name);
        put_nested(&mut body, ATTR_DATA, |out| element.put(out, kind));
        let op = format!("{verb} {element} in set {name}");
        let family = u8::try_from(family).unwrap_or_default();
        self.socket
            .change(&op, message, family, &body)
            .map_err(explain)
    }
}

/// A bitmap of ports is of no family.
fn family_of(kind: Kind, ipv6: bool) -> u8 {
    let family = match (kind, ipv6) {
        (Kind::Port, _) => libc::AF_UNSPEC,
        (_, true) => libc::AF_INET6,
        (_, false) => libc::AF_INET,
    };
    u8::try_from(family).unwrap_or_default()
}

/// That an object is not there is as good as deleted.
fn ensure_gone(deleted: Result<()>) -> Result<()> {
    match deleted {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Whether a set could not be deleted because a rule uses it (`IPSET_ERR_BUSY`).
pub fn is_in_use(error: &Error) -> bool {
    error.errno() == Some(BUSY)
}

/// `IPSET_ERR_BUSY`.
const BUSY: i32 = 4100;

/// ipset's own error numbers (`IPSET_ERR_PRIVATE`) begin where the system's end.
const OWN_ERRORS: i32 = 4096;

/// `IPSET_ERR_FIND_TYPE`.
const NO_SUCH_TYPE: i32 = 4098;

fn explain(error: Error) -> Error {
    match error.errno() {
        Some(NO_SUCH_TYPE) => Error::new(error.op, io::Error::other("the kernel has no such sets")),
        Some(number @ OWN_ERRORS..) => {
            Error::new(error.op, io::Error::other(format!("ipset error {number}")))
        }
        _ => error,
    }
}
