//! The socket: transactions, and lists of what a table has.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::time::Duration;

use super::Family;
use super::batch::{Batch, TABLE_NAME};
use super::chain::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_TABLE,
    RULE_USERDATA,
};
use super::set::{
    Element, SET_DATA_TYPE, SET_FLAGS, SET_KEY_TYPE, SET_NAME, SET_TABLE, Set, join_ranges,
};
use super::{TableRef, message, put_text, text, u32_of, u64_of, userdata};
use crate::error::{Error, Result};
use crate::nfnetlink::{Message, NfSocket, attribute, attributes, put_nested};

const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;

const GENERATION_ID: u16 = 1;
const GENERATION_PID: u16 = 2;
const GENERATION_NAME: u16 = 3;

/// How often a list that changes interrupted is started again before it is an error.
const DUMP_TRIES: u32 = 20;

/// Wait before a list is started again, longer each time: others are changing tables, or the kernel
/// is moving a set into a larger hash table.
const DUMP_REST: Duration = Duration::from_millis(1);

/// A chain of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedChain {
    /// Name.
    pub name: String,
    /// The kernel enters it.
    pub is_base: bool,
    /// What comes to its end is dropped.
    pub drops: bool,
}

/// A rule of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedRule {
    /// The chain it is in; within one, rules are listed in order.
    pub chain: String,
    /// Names it to the kernel.
    pub handle: u64,
    /// Comment.
    pub comment: Option<String>,
}

/// A set of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedSet {
    /// Name.
    pub name: String,
    flags: u32,
    key_type: u32,
    data_type: u32,
}

impl ListedSet {
    /// Whether it is as `set` would be made: flags and types.
    pub fn is_like(&self, set: &Set) -> bool {
        self.name == set.name
            && self.flags == set.flags()
            && self.key_type == set.key_type()
            && self.data_type == set.data_type()
    }
}

/// A generation of all tables of a network namespace: each transaction makes another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generation {
    /// Number.
    pub id: u32,
    /// Process that made it.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
}

impl Generation {
    pub(super) fn read(attributes: &[u8]) -> Self {
        let number = |kind| attribute(attributes, kind).and_then(u32_of);
        Self {
            id: number(GENERATION_ID).unwrap_or_default(),
            pid: number(GENERATION_PID).unwrap_or_default(),
            process: attribute(attributes, GENERATION_NAME)
                .map(text)
                .unwrap_or_default(),
        }
    }
}

/// The tables of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nftables {
    socket: NfSocket,
}

impl Nftables {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn open() -> Result<Self> {
        Ok(Self {
            socket: NfSocket::open()?,
        })
    }

    /// Opens the socket of a kernel that has tables of `family`, which only making one tells: there
    /// are kernels with nf_tables and without any family. Nobody else sees that table.
    ///
    /// # Errors
    /// The kernel has no such tables.
    pub fn open_for(family: Family) -> Result<Self> {
        let mut nft = Self::open()?;
        let name = format!("seaway-probe-{}", std::process::id());
        let probe = TableRef::new(family, name);
        let mut batch = Batch::new();
        batch.add_table(&probe, None);
        batch.delete_table(&probe);
        nft.commit(&batch)?;
        Ok(nft)
    }

    /// Whether the kernel has tables of `family`, as [`Nftables::open_for`] finds out.
    ///
    /// # Errors
    /// The kernel's refusal, where it is for another reason than that.
    pub fn has_family(family: Family) -> Result<bool> {
        match Self::open_for(family) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// By this the kernel names us as the maker of a change.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes all changes of a batch, or none.
    ///
    /// # Errors
    /// The first refusal, with the operation, its object and the kernel's words.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.socket.sequences(batch.messages());
        let mut failed = None;
        let mut done = false;
        let op = "change tables";
        let last = first.wrapping_add(batch.messages() - 2);
        self.socket.transact(op, &batch.datagram(first), |answer| {
            if answer.code != 0 {
                let op = batch.op(first, answer.sequence).unwrap_or(op);
                failed.get_or_insert_with(|| answer.error(op));
            }
            done |= answer.sequence == last;
        })?;
        match failed {
            Some(error) => Err(error),
            None if done => Ok(()),
            None => Err(Error::new(op, io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    /// The newest generation.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn generation(&mut self) -> Result<Generation> {
        let mut found = Generation::default();
        let kind = message::GET_GENERATION;
        self.socket
            .get("get the generation of tables", kind, 0, &[], |message| {
                found = Generation::read(message.attributes);
            })?;
        Ok(found)
    }

    /// Whether a table is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_table(&mut self, table: &TableRef) -> Result<bool> {
        let mut body = Vec::new();
        put_text(&mut body, TABLE_NAME, &table.name);
        let (kind, family) = (message::GET_TABLE, table.family.number());
        let op = format!("get table {table}");
        match self.socket.get(&op, kind, family, &body, |_| {}) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Deletes a table with all that is in it; false when there was none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ensure_no_table(&mut self, table: &TableRef) -> Result<bool> {
        let mut batch = Batch::new();
        batch.delete_table(table);
        match self.commit(&batch) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Deletes a table that nothing is in; false when there is none, or something is in it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ensure_no_empty_table(&mut self, table: &TableRef) -> Result<bool> {
        let mut batch = Batch::new();
        batch.delete_empty_table(table);
        match self.commit(&batch) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() || e.errno() == Some(libc::EBUSY) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Lists; a list that changes interrupted is started again.
    fn list<T>(
        &mut self,
        op: &str,
        kind: u16,
        table: &TableRef,
        body: &[u8],
        mut each: impl FnMut(Message<'_>, &mut List<T>),
    ) -> Result<Vec<T>> {
        for tries in 0..DUMP_TRIES {
            let mut list = List {
                all: Vec::new(),
                keys: Vec::new(),
            };
            let family = table.family.number();
            let interrupted = self
                .socket
                .dump(op, kind, family, body, |message| each(message, &mut list));
            match interrupted {
                Ok(false) if list.is_whole() => return Ok(list.all),
                Ok(_) => {}
                Err(e) if e.errno() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
            std::thread::sleep(DUMP_REST * (tries + 1));
        }
        let error = io::Error::from_raw_os_error(libc::EINTR);
        Err(Error::new(op, error).with_detail(format!("changed {DUMP_TRIES} times meanwhile")))
    }

    /// Chains of a table, sorted.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn chains(&mut self, table: &TableRef) -> Result<Vec<ListedChain>> {
        let op = format!("list chains of table {table}");
        let mut body = Vec::new();
        put_text(&mut body, CHAIN_TABLE, &table.name);
        let mut chains = self.list(&op, message::GET_CHAIN, table, &body, |message, all| {
            // Kernels list the chains of all tables.
            if is_of(&message, CHAIN_TABLE, table)
                && let Some(name) = attribute(message.attributes, CHAIN_NAME)
            {
                all.all.push(ListedChain {
                    name: text(name),
                    is_base: attribute(message.attributes, CHAIN_HOOK).is_some(),
                    // NF_DROP.
                    drops: attribute(message.attributes, CHAIN_POLICY).and_then(u32_of) == Some(0),
                });
            }
        })?;
        chains.sort();
        Ok(chains)
    }

    /// Rules of a table, each chain's in order.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules(&mut self, table: &TableRef) -> Result<Vec<ListedRule>> {
        let op = format!("list rules of table {table}");
        let mut body = Vec::new();
        put_text(&mut body, RULE_TABLE, &table.name);
        self.list(&op, message::GET_RULE, table, &body, |message, all| {
            let get = |kind| attribute(message.attributes, kind);
            if is_of(&message, RULE_TABLE, table)
                && let (Some(chain), Some(handle)) = (get(RULE_CHAIN), get(RULE_HANDLE))
            {
                all.all.push(ListedRule {
                    chain: text(chain),
                    handle: u64_of(handle).unwrap_or_default(),
                    comment: get(RULE_USERDATA)
                        .and_then(|data| userdata::comment(data, userdata::COMMENT)),
                });
            }
        })
    }

    /// Sets and maps of a table, sorted.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn sets(&mut self, table: &TableRef) -> Result<Vec<ListedSet>> {
        let op = format!("list sets of table {table}");
        let mut body = Vec::new();
        put_text(&mut body, SET_TABLE, &table.name);
        let mut sets = self.list(&op, message::GET_SET, table, &body, |message, all| {
            let get = |kind| attribute(message.attributes, kind);
            let number = |kind| get(kind).and_then(u32_of).unwrap_or_default();
            if is_of(&message, SET_TABLE, table)
                && let Some(name) = get(SET_NAME)
            {
                all.all.push(ListedSet {
                    name: text(name),
                    flags: number(SET_FLAGS),
                    key_type: number(SET_KEY_TYPE),
                    data_type: number(SET_DATA_TYPE),
                });
            }
        })?;
        sets.sort();
        Ok(sets)
    }

    /// Elements of a set or map; `each` makes of one what is to be kept of it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn elements_with<T>(
        &mut self,
        table: &TableRef,
        set: &str,
        mut each: impl FnMut(Element) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.read_elements(table, set, |element, _| each(element))
    }

    /// Elements of a set or map.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn elements(&mut self, table: &TableRef, set: &Set) -> Result<Vec<Element>> {
        if set.has_end_elements() {
            let parts =
                self.read_elements(table, &set.name, |element, end| Some((element, end)))?;
            return Ok(join_ranges(parts));
        }
        self.elements_with(table, &set.name, Some)
    }

    /// The element of a set or map, not one of ranges, with this key; `None` when it is not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn element(&mut self, table: &TableRef, set: &Set, key: &[u8]) -> Result<Option<Element>> {
        let op = format!("get an element of set {} of table {table}", set.name);
        let mut body = Vec::new();
        put_text(&mut body, ELEMENTS_TABLE, &table.name);
        put_text(&mut body, ELEMENTS_SET, &set.name);
        put_nested(&mut body, ELEMENTS_LIST, |out| {
            Element::new(key).write(set, true, out);
        });
        let mut found = None;
        let (kind, family) = (message::GET_ELEMENTS, table.family.number());
        let got = self.socket.get(&op, kind, family, &body, |message| {
            let list = attribute(message.attributes, ELEMENTS_LIST).unwrap_or_default();
            let mut each = attributes(list).filter_map(|(_, bytes)| Element::read(bytes));
            found = each.next().map(|(element, _)| element);
        });
        match got {
            Ok(()) => Ok(found),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn read_elements<T>(
        &mut self,
        table: &TableRef,
        set: &str,
        mut each: impl FnMut(Element, bool) -> Option<T>,
    ) -> Result<Vec<T>> {
        let op = format!("list elements of set {set} of table {table}");
        let mut body = Vec::new();
        put_text(&mut body, ELEMENTS_TABLE, &table.name);
        put_text(&mut body, ELEMENTS_SET, set);
        self.list(&op, message::GET_ELEMENTS, table, &body, |message, all| {
            let list = attribute(message.attributes, ELEMENTS_LIST).unwrap_or_default();
            for (_, bytes) in attributes(list) {
                if let Some((element, end)) = Element::read(bytes) {
                    let mut hasher = DefaultHasher::new();
                    (&element.key, end).hash(&mut hasher);
                    all.keys.push(hasher.finish());
                    all.all.extend(each(element, end));
                }
            }
        })
    }
}

/// What was listed so far.
struct List<T> {
    all: Vec<T>,
    /// Hashes of the keys of elements. While a hash table grows, the kernel lists some elements
    /// twice, and leaves out as many.
    keys: Vec<u64>,
}

impl<T> List<T> {
    fn is_whole(&mut self) -> bool {
        self.keys.sort_unstable();
        self.keys.windows(2).all(|pair| pair[0] != pair[1])
    }
}

/// Whether a message is about something in `table`, whose name stands in attribute `kind`.
fn is_of(message: &Message<'_>, kind: u16, table: &TableRef) -> bool {
    message.family == table.family.number()
        && attribute(message.attributes, kind).is_some_and(|name| text(name) == table.name)
}
