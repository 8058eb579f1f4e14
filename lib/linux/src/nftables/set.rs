//! Sets, maps and their elements.

use std::time::Duration;

use super::encode;
use super::expr::Verdict;
use super::{put_text, put_u32, put_u64, u32_of, u64_of, userdata};
use crate::nfnetlink::{attribute, put, put_nested};

/// `NFTA_SET_...`.
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_TIMEOUT: u16 = 11;
const SET_USERDATA: u16 = 13;
const DESCRIPTION_SIZE: u16 = 1;
const DESCRIPTION_CONCAT: u16 = 2;
const FIELD_LENGTH: u16 = 1;
const LIST_ELEMENT: u16 = 1;

const FLAG_CONSTANT: u32 = 0x2;
const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_DYNAMIC: u32 = 0x20;
const FLAG_CONCAT: u32 = 0x80;

/// `NFT_DATA_VERDICT`.
const DATA_VERDICT: u32 = 0xffff_ff00;

/// `NFTA_SET_ELEM_...`.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const USERDATA: u16 = 6;
const KEY_END: u16 = 10;
const FLAG_INTERVAL_END: u32 = 1;

/// Bits of one type in the type of a concatenation, in `nft`.
const TYPE_BITS: u32 = 6;

/// Byte orders as `nft` writes them in user data.
const HOST_ENDIAN: u32 = 1;
const BIG_ENDIAN: u32 = 2;

/// What a key or a value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// `ipv4_addr`.
    Ipv4,
    /// `ipv6_addr`.
    Ipv6,
    /// `ether_addr`.
    Mac,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`: a port.
    Port,
    /// `mark`: 32 bits in host order.
    Mark,
    /// `ifname`: 16 bytes.
    InterfaceName,
}

impl DataType {
    /// `enum datatypes` of `nft`'s `datatype.h`: the kernel keeps it for whoever lists.
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::InterfaceName => 41,
        }
    }

    /// Its length, without padding.
    fn bytes(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Ipv4 | Self::Mark => 4,
            Self::Mac => 6,
            Self::Ipv6 | Self::InterfaceName => 16,
        }
    }

    fn byte_order(self) -> u32 {
        match self {
            Self::Mark | Self::InterfaceName => HOST_ENDIAN,
            Self::Ipv4 | Self::Ipv6 | Self::Mac | Self::Protocol | Self::Port => BIG_ENDIAN,
        }
    }
}

fn type_of(fields: &[DataType]) -> u32 {
    fields
        .iter()
        .fold(0, |all, field| (all << TYPE_BITS) | field.number())
}

/// Length in registers: a field of a concatenation is padded to 4 bytes.
fn length_of(fields: &[DataType]) -> u32 {
    let bytes = match fields {
        [one] => one.bytes(),
        many => many.iter().map(|f| f.bytes().next_multiple_of(4)).sum(),
    };
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The fields of a concatenated key or value, each padded to 4 bytes.
pub fn concat(fields: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(fields.iter().map(|f| f.len().next_multiple_of(4)).sum());
    for field in fields {
        out.extend(*field);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// A set or a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Fields of the key, at least one.
    pub key: Vec<DataType>,
    /// Fields of the value; empty for a set, and for a verdict map.
    pub data: Vec<DataType>,
    /// Values are verdicts.
    pub verdicts: bool,
    /// Elements are ranges.
    pub interval: bool,
    /// Rules may add elements.
    pub dynamic: bool,
    /// Elements may expire.
    pub timeout: bool,
    /// Nobody may change it once it is bound to a rule.
    pub constant: bool,
    /// How long elements stay that say nothing themselves.
    pub default_timeout: Option<Duration>,
    /// The most elements.
    pub size: Option<u32>,
    /// Printed by `nft`.
    pub comment: Option<String>,
}

impl Set {
    /// A set.
    pub fn new(name: impl Into<String>, key: impl Into<Vec<DataType>>) -> Self {
        Self {
            name: name.into(),
            key: key.into(),
            ..Self::default()
        }
    }

    /// A map.
    pub fn map(
        name: impl Into<String>,
        key: impl Into<Vec<DataType>>,
        data: impl Into<Vec<DataType>>,
    ) -> Self {
        Self {
            data: data.into(),
            ..Self::new(name, key)
        }
    }

    /// A verdict map.
    pub fn verdict_map(name: impl Into<String>, key: impl Into<Vec<DataType>>) -> Self {
        Self {
            verdicts: true,
            ..Self::new(name, key)
        }
    }

    /// The flags the kernel shows for it.
    pub(super) fn flags(&self) -> u32 {
        let mut flags = 0;
        let is_map = self.verdicts || !self.data.is_empty();
        for (on, flag) in [
            (self.constant, FLAG_CONSTANT),
            (self.interval, FLAG_INTERVAL),
            (is_map, FLAG_MAP),
            (self.timeout || self.default_timeout.is_some(), FLAG_TIMEOUT),
            (self.dynamic, FLAG_DYNAMIC),
            (self.key.len() > 1, FLAG_CONCAT),
        ] {
            if on {
                flags |= flag;
            }
        }
        flags
    }

    pub(super) fn key_type(&self) -> u32 {
        type_of(&self.key)
    }

    /// 0 for a set.
    pub(super) fn data_type(&self) -> u32 {
        if self.verdicts {
            DATA_VERDICT
        } else {
            type_of(&self.data)
        }
    }

    /// A range of one field is two elements for the kernel, its start and what comes behind it;
    /// a range of several fields is one element with two keys.
    pub(super) fn has_end_elements(&self) -> bool {
        self.interval && self.key.len() == 1
    }

    /// Writes the attributes behind the table's name.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_text(out, SET_NAME, &self.name);
        put_u32(out, SET_FLAGS, self.flags());
        put_u32(out, SET_KEY_TYPE, self.key_type());
        put_u32(out, SET_KEY_LENGTH, length_of(&self.key));
        if self.verdicts {
            put_u32(out, SET_DATA_TYPE, DATA_VERDICT);
            put_u32(out, SET_DATA_LENGTH, 0);
        } else if !self.data.is_empty() {
            put_u32(out, SET_DATA_TYPE, self.data_type());
            put_u32(out, SET_DATA_LENGTH, length_of(&self.data));
        }
        put_nested(out, SET_DESCRIPTION, |out| {
            if let Some(size) = self.size {
                put_u32(out, DESCRIPTION_SIZE, size);
            }
            if self.key.len() > 1 {
                put_nested(out, DESCRIPTION_CONCAT, |out| {
                    for field in &self.key {
                        put_nested(out, LIST_ELEMENT, |out| {
                            put_u32(out, FIELD_LENGTH, length_of(&[*field]));
                        });
                    }
                });
            }
        });
        // Names the set within the batch; ours are looked up by name.
        put_u32(out, SET_ID, 1);
        if let Some(timeout) = self.default_timeout {
            put_u64(out, SET_TIMEOUT, milliseconds(timeout));
        }
        let mut data = Vec::new();
        let order = |fields: &[DataType]| fields.first().map(|field| field.byte_order());
        for (kind, fields) in [
            (userdata::SET_KEY_BYTE_ORDER, &self.key),
            (userdata::SET_DATA_BYTE_ORDER, &self.data),
        ] {
            if let (1, Some(order)) = (fields.len(), order(fields)) {
                userdata::put(&mut data, kind, &order.to_ne_bytes());
            }
        }
        if let Some(comment) = &self.comment {
            userdata::put_comment(&mut data, userdata::SET_COMMENT, comment);
        }
        if !data.is_empty() {
            put(out, SET_USERDATA, &data);
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a key leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Bytes, as [`concat()`] makes them.
    Data(Vec<u8>),
    /// Where to go on.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Element {
    /// Key, or the start of a range.
    pub key: Vec<u8>,
    /// The end of a range, within it.
    pub key_end: Option<Vec<u8>>,
    /// What it leads to, in a map.
    pub value: Option<Value>,
    /// How long it stays.
    pub timeout: Option<Duration>,
    /// Read only: how long it has left.
    pub expires: Option<Duration>,
    /// Printed by `nft`, at most 253 bytes.
    pub comment: Option<String>,
}

impl Element {
    /// A key.
    pub fn new(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            ..Self::default()
        }
    }

    /// A key with a value.
    pub fn data(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: Some(Value::Data(value.into())),
            ..Self::new(key)
        }
    }

    /// A key with a verdict.
    pub fn verdict(key: impl Into<Vec<u8>>, verdict: Verdict) -> Self {
        Self {
            value: Some(Value::Verdict(verdict)),
            ..Self::new(key)
        }
    }

    /// A range, both ends within it.
    pub fn range(first: impl Into<Vec<u8>>, last: impl Into<Vec<u8>>) -> Self {
        Self {
            key_end: Some(last.into()),
            ..Self::new(first)
        }
    }

    /// With a comment.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// Writes it as the kernel wants it in `set`: one list entry, or two. `deletes`: only what
    /// names it.
    pub(super) fn write(&self, set: &Set, deletes: bool, out: &mut Vec<u8>) {
        let two = set.has_end_elements();
        put_nested(out, LIST_ELEMENT, |out| {
            put_nested(out, KEY, |out| encode::put_value(out, &self.key));
            let last = self.key_end.as_ref().unwrap_or(&self.key);
            if set.interval && !two {
                put_nested(out, KEY_END, |out| encode::put_value(out, last));
            }
            if !deletes {
                self.write_rest(out);
            }
        });
        let last = self.key_end.as_ref().unwrap_or(&self.key);
        if let (true, Some(behind)) = (two, step(last, 1)) {
            put_nested(out, LIST_ELEMENT, |out| {
                put_nested(out, KEY, |out| encode::put_value(out, &behind));
                put_u32(out, FLAGS, FLAG_INTERVAL_END);
            });
        }
    }

    fn write_rest(&self, out: &mut Vec<u8>) {
        match &self.value {
            Some(Value::Data(data)) => {
                put_nested(out, DATA, |out| encode::put_value(out, data));
            }
            Some(Value::Verdict(verdict)) => {
                put_nested(out, DATA, |out| encode::put_verdict(out, verdict));
            }
            None => {}
        }
        if let Some(timeout) = self.timeout {
            put_u64(out, TIMEOUT, milliseconds(timeout));
        }
        if let Some(comment) = &self.comment {
            let mut data = Vec::new();
            userdata::put_comment(&mut data, userdata::COMMENT, comment);
            put(out, USERDATA, &data);
        }
    }

    /// Reads a list entry; true when it is the end of a range of one field.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, bool)> {
        let key = encode::value(attribute(bytes, KEY)?)?.to_vec();
        let data = attribute(bytes, DATA);
        let value = match data.map(|data| (encode::value(data), encode::verdict(data))) {
            Some((Some(value), _)) => Some(Value::Data(value.to_vec())),
            Some((None, Some(verdict))) => Some(Value::Verdict(verdict)),
            Some((None, None)) | None => None,
        };
        let time = |kind| {
            let ms = u64_of(attribute(bytes, kind)?)?;
            Some(Duration::from_millis(ms))
        };
        let end = attribute(bytes, FLAGS).and_then(u32_of).unwrap_or_default() & FLAG_INTERVAL_END;
        let element = Self {
            key,
            key_end: attribute(bytes, KEY_END)
                .and_then(encode::value)
                .map(<[u8]>::to_vec),
            value,
            timeout: time(TIMEOUT),
            expires: time(EXPIRATION),
            comment: attribute(bytes, USERDATA)
                .and_then(|data| userdata::comment(data, userdata::COMMENT)),
        };
        Some((element, end != 0))
    }
}

/// The key before (-1) or behind (1) `key`; `None` past the end.
pub(super) fn step(key: &[u8], by: i8) -> Option<Vec<u8>> {
    let mut out = key.to_vec();
    for byte in out.iter_mut().rev() {
        let (next, carry) = if by > 0 {
            byte.overflowing_add(1)
        } else {
            byte.overflowing_sub(1)
        };
        *byte = next;
        if !carry {
            return Some(out);
        }
    }
    None
}

/// Puts starts and ends of a set of one field together, as [`Element::range`] has them.
pub(super) fn join_ranges(mut parts: Vec<(Element, bool)>) -> Vec<Element> {
    // An end stands before a start of the same key.
    parts.sort_by(|(a, a_end), (b, b_end)| a.key.cmp(&b.key).then(b_end.cmp(a_end)));
    let mut out: Vec<Element> = Vec::new();
    let mut open = false;
    for (element, is_end) in parts {
        if is_end {
            if let (true, Some(last)) = (open, out.last_mut()) {
                last.key_end = step(&element.key, -1);
            }
            open = false;
            continue;
        }
        out.push(element);
        open = true;
    }
    if let (true, Some(last)) = (open, out.last_mut()) {
        last.key_end = Some(vec![0xff; last.key.len()]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_of_nft() {
        let set = Set::map(
            "s",
            [DataType::Ipv4, DataType::Protocol, DataType::Port],
            [DataType::Mark],
        );
        assert_eq!(set.key_type(), (7 << 12) | (12 << 6) | 13);
        assert_eq!((set.data_type(), length_of(&set.key)), (19, 12));
        assert_eq!(set.flags(), FLAG_MAP | FLAG_CONCAT);
        assert_eq!(length_of(&[DataType::Port]), 2);
        assert_eq!(length_of(&[DataType::Ipv6, DataType::Port]), 20);
        assert_eq!(concat(&[&[1, 2, 3, 4], &[6], &[0, 80]]).len(), 12);
    }

    #[test]
    fn elements_come_back() {
        let set = Set::map("s", [DataType::Port], [DataType::Mark]);
        let element = Element {
            timeout: Some(Duration::from_secs(7)),
            ..Element::data([0, 80], [1, 2, 3, 4]).comment("web")
        };
        let mut out = Vec::new();
        element.write(&set, false, &mut out);
        let list = attribute(&out, LIST_ELEMENT).unwrap();
        assert_eq!(Element::read(list), Some((element.clone(), false)));
        let mut out = Vec::new();
        element.write(&set, true, &mut out);
        let list = attribute(&out, LIST_ELEMENT).unwrap();
        assert_eq!(Element::read(list), Some((Element::new([0, 80]), false)));
        for length in 0..list.len() {
            assert!(Element::read(&list[..length]).is_none_or(|(read, _)| read.value.is_none()));
        }
    }

    #[test]
    fn ranges_of_one_field_are_a_start_and_an_end() {
        let set = Set {
            interval: true,
            ..Set::new("s", [DataType::Port])
        };
        let wanted = [
            Element::range([0, 1], [0, 9]),
            Element::range([0, 10], [0, 10]),
            Element::range([255, 0], [255, 255]),
        ];
        let mut out = Vec::new();
        for element in wanted.iter().rev() {
            element.write(&set, false, &mut out);
        }
        let parts: Vec<_> = crate::nfnetlink::attributes(&out)
            .filter_map(|(_, bytes)| Element::read(bytes))
            .collect();
        assert_eq!(parts.len(), 5);
        assert_eq!(join_ranges(parts), wanted);
    }

    #[test]
    fn ranges_of_two_fields_are_one_element() {
        let set = Set {
            interval: true,
            ..Set::new("s", [DataType::Mark, DataType::Port])
        };
        let element = Element::range([0, 0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 9, 0, 0]);
        let mut out = Vec::new();
        element.write(&set, false, &mut out);
        let list = attribute(&out, LIST_ELEMENT).unwrap();
        assert_eq!(Element::read(list), Some((element, false)));
    }
}
