//! Changes that are made all together or not at all.

use super::chain::{CHAIN_NAME, CHAIN_TABLE, Chain, RULE_CHAIN, RULE_HANDLE, RULE_TABLE, Rule};
use super::set::{Element, SET_NAME, SET_TABLE, Set};
use super::{TableRef, message, put_text, put_u64, userdata};
use crate::nfnetlink::{put, put_message, put_nested};

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`; the subsystem they are for stands in the message.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: [u8; 2] = [0, 10];
const BATCH_GENERATION: u16 = 1;

const NLM_F_NONREC: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_USERDATA: u16 = 6;

const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;

/// The most bytes of elements in one message: the length of an attribute has 16 bits, and one
/// element more must still fit.
pub const ELEMENTS_BYTES_MAX: usize = 60_000;

/// One message of a batch, without sequence number.
#[derive(Debug, Clone)]
struct Entry {
    /// The operation and its object.
    op: String,
    /// Where it starts.
    start: usize,
}

/// Changes of tables, in order. Nobody sees some of them without the others.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    generation: Option<u32>,
}

impl Batch {
    /// Without a change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes to send, about.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Fails with `ERESTART` when anybody has changed any table since this generation.
    pub fn only_at(&mut self, generation: u32) {
        self.generation = Some(generation);
    }

    fn push(
        &mut self,
        op: String,
        table: &TableRef,
        kind: u16,
        flags: u16,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        let generic = [table.family.number(), 0, 0, 0];
        put_message(&mut self.bytes, 0, kind, flags, generic, write);
        self.entries.push(Entry { op, start });
    }

    /// Makes a table unless it is there.
    pub fn add_table(&mut self, table: &TableRef, comment: Option<&str>) {
        let op = format!("add table {table}");
        self.push(op, table, message::NEW_TABLE, NLM_F_CREATE, |out| {
            put_text(out, TABLE_NAME, &table.name);
            if let Some(comment) = comment {
                let mut data = Vec::new();
                userdata::put_comment(&mut data, userdata::COMMENT, comment);
                put(out, TABLE_USERDATA, &data);
            }
        });
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: &TableRef) {
        let op = format!("delete table {table}");
        self.push(op, table, message::DELETE_TABLE, 0, |out| {
            put_text(out, TABLE_NAME, &table.name);
        });
    }

    /// Deletes a table if nothing is in it; else the batch fails (`EBUSY`).
    pub fn delete_empty_table(&mut self, table: &TableRef) {
        let op = format!("delete empty table {table}");
        self.push(op, table, message::DELETE_TABLE, NLM_F_NONREC, |out| {
            put_text(out, TABLE_NAME, &table.name);
        });
    }

    /// Makes a chain unless it is there.
    pub fn add_chain(&mut self, table: &TableRef, chain: &Chain) {
        let op = format!("add chain {} to table {table}", chain.name);
        self.push(op, table, message::NEW_CHAIN, NLM_F_CREATE, |out| {
            put_text(out, CHAIN_TABLE, &table.name);
            chain.write(out);
        });
    }

    /// Deletes a chain with its rules. Nothing may jump to it.
    pub fn delete_chain(&mut self, table: &TableRef, chain: &str) {
        let op = format!("delete chain {chain} of table {table}");
        self.push(op, table, message::DELETE_CHAIN, 0, |out| {
            put_text(out, CHAIN_TABLE, &table.name);
            put_text(out, CHAIN_NAME, chain);
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &TableRef, chain: &str) {
        let op = format!("delete the rules of chain {chain} of table {table}");
        self.push(op, table, message::DELETE_RULE, 0, |out| {
            put_text(out, RULE_TABLE, &table.name);
            put_text(out, RULE_CHAIN, chain);
        });
    }

    /// Puts a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &TableRef, chain: &str, rule: &Rule) {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.push_rule("add", table, chain, rule, flags);
    }

    /// Puts a rule at the start of a chain.
    pub fn insert_rule(&mut self, table: &TableRef, chain: &str, rule: &Rule) {
        self.push_rule("insert", table, chain, rule, NLM_F_CREATE);
    }

    fn push_rule(&mut self, verb: &str, table: &TableRef, chain: &str, rule: &Rule, flags: u16) {
        let comment = rule.comment.as_deref().unwrap_or_default();
        let op = format!("{verb} rule {comment:?} to chain {chain} of table {table}");
        self.push(op, table, message::NEW_RULE, flags, |out| {
            put_text(out, RULE_TABLE, &table.name);
            put_text(out, RULE_CHAIN, chain);
            rule.write(out);
        });
    }

    /// Deletes one rule.
    pub fn delete_rule(&mut self, table: &TableRef, chain: &str, handle: u64) {
        let op = format!("delete rule {handle} of chain {chain} of table {table}");
        self.push(op, table, message::DELETE_RULE, 0, |out| {
            put_text(out, RULE_TABLE, &table.name);
            put_text(out, RULE_CHAIN, chain);
            put_u64(out, RULE_HANDLE, handle);
        });
    }

    /// Makes a set or map unless it is there; one of other types is an error.
    pub fn add_set(&mut self, table: &TableRef, set: &Set) {
        let op = format!("add set {} to table {table}", set.name);
        self.push(op, table, message::NEW_SET, NLM_F_CREATE, |out| {
            put_text(out, SET_TABLE, &table.name);
            set.write(out);
        });
    }

    /// Deletes a set or map with its elements. No rule may use it.
    pub fn delete_set(&mut self, table: &TableRef, set: &str) {
        let op = format!("delete set {set} of table {table}");
        self.push(op, table, message::DELETE_SET, 0, |out| {
            put_text(out, SET_TABLE, &table.name);
            put_text(out, SET_NAME, set);
        });
    }

    /// Deletes all elements of a set or map.
    pub fn flush_set(&mut self, table: &TableRef, set: &str) {
        let op = format!("delete the elements of set {set} of table {table}");
        self.push(op, table, message::DELETE_ELEMENTS, 0, |out| {
            put_text(out, ELEMENTS_TABLE, &table.name);
            put_text(out, ELEMENTS_SET, set);
        });
    }

    /// Adds elements. One that is there with another value is an error; one that is there as it is
    /// given is not.
    pub fn add_elements<'a>(
        &mut self,
        table: &TableRef,
        set: &Set,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let op = format!("add elements to set {} of table {table}", set.name);
        self.push_elements(
            &op,
            message::NEW_ELEMENTS,
            NLM_F_CREATE,
            table,
            set,
            elements,
        );
    }

    /// Adds elements that must not be there.
    pub fn create_elements<'a>(
        &mut self,
        table: &TableRef,
        set: &Set,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let op = format!("add new elements to set {} of table {table}", set.name);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.push_elements(&op, message::NEW_ELEMENTS, flags, table, set, elements);
    }

    /// Deletes elements, by their keys. One that is not there is an error.
    pub fn delete_elements<'a>(
        &mut self,
        table: &TableRef,
        set: &Set,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let op = format!("delete elements of set {} of table {table}", set.name);
        self.push_elements(&op, message::DELETE_ELEMENTS, 0, table, set, elements);
    }

    /// As many messages as the elements need.
    fn push_elements<'a>(
        &mut self,
        op: &str,
        kind: u16,
        flags: u16,
        table: &TableRef,
        set: &Set,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let deletes = kind == message::DELETE_ELEMENTS;
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.push(op.to_owned(), table, kind, flags, |out| {
                put_text(out, ELEMENTS_TABLE, &table.name);
                put_text(out, ELEMENTS_SET, &set.name);
                put_nested(out, ELEMENTS_LIST, |out| {
                    let start = out.len();
                    while out.len() - start < ELEMENTS_BYTES_MAX {
                        let Some(element) = elements.next() else {
                            break;
                        };
                        element.write(set, deletes, out);
                    }
                });
            });
        }
    }

    /// How many messages the whole transaction has.
    pub(super) fn messages(&self) -> u32 {
        u32::try_from(self.entries.len() + 2).unwrap_or(u32::MAX)
    }

    /// The whole transaction, numbered from `first`. The kernel acknowledges the last change.
    pub(super) fn datagram(&self, first: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + 64);
        let generic = [0, 0, SUBSYSTEM[0], SUBSYSTEM[1]];
        put_message(&mut out, first, BATCH_BEGIN, 0, generic, |out| {
            if let Some(generation) = self.generation {
                super::put_u32(out, BATCH_GENERATION, generation);
            }
        });
        let begin = out.len();
        out.extend(&self.bytes);
        let mut sequence = first;
        for entry in &self.entries {
            sequence = sequence.wrapping_add(1);
            let at = begin + entry.start;
            out[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        if let Some(last) = self.entries.last() {
            let at = begin + last.start + 6;
            let flags = u16::from_ne_bytes([out[at], out[at + 1]]);
            let flags = flags | crate::nfnetlink::NLM_F_ACK;
            out[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        put_message(
            &mut out,
            sequence.wrapping_add(1),
            BATCH_END,
            0,
            generic,
            |_| {},
        );
        out
    }

    /// The operation with a sequence number, in a transaction numbered from `first`.
    pub(super) fn op(&self, first: u32, sequence: u32) -> Option<&str> {
        let index = sequence.wrapping_sub(first).checked_sub(1)?;
        let entry = self.entries.get(usize::try_from(index).ok()?)?;
        Some(&entry.op)
    }
}
