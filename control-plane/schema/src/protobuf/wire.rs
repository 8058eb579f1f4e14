//! The protobuf wire format, read only: enough for Kubernetes' messages.

use serde_json::Value;

use super::Error;

/// A field's raw value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: strings, bytes, messages, packed numbers.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

impl Item<'_> {
    pub(super) fn wire_type(&self) -> u8 {
        match self {
            Item::Varint(_) => 0,
            Item::Fixed64(_) => 1,
            Item::Bytes(_) => 2,
            Item::Fixed32(_) => 5,
        }
    }
}

/// Iterates over the fields of one message as (tag, value); stops at the first error.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let count = usize::try_from(count).map_err(|_e| Error::Wire("length is too large"))?;
        if count > self.rest.len() {
            return Err(Error::Wire("unexpected end of the message"));
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut out = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self
                .rest
                .split_first()
                .ok_or(Error::Wire("unexpected end of the message"))?;
            self.rest = rest;
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err(Error::Wire("a number is longer than 64 bits"))
    }

    fn field(&mut self) -> Result<(u32, Item<'a>), Error> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_e| Error::Wire("a tag is out of range"))?;
        if tag == 0 {
            return Err(Error::Wire("illegal tag 0"));
        }
        let item = match key & 7 {
            0 => Item::Varint(self.varint()?),
            1 => Item::Fixed64(u64::from_le_bytes(array(self.take(8)?)?)),
            2 => {
                let length = self.varint()?;
                Item::Bytes(self.take(length)?)
            }
            5 => Item::Fixed32(u32::from_le_bytes(array(self.take(4)?)?)),
            _ => return Err(Error::Wire("illegal wire type")),
        };
        Ok((tag, item))
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Error> {
    bytes
        .try_into()
        .map_err(|_e| Error::Wire("unexpected end of the message"))
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Item<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The numbers of a packed list.
pub(super) fn varints(bytes: &[u8]) -> impl Iterator<Item = Result<u64, Error>> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(move || {
        if reader.rest.is_empty() {
            return None;
        }
        let number = reader.varint();
        if number.is_err() {
            reader.rest = &[];
        }
        Some(number)
    })
}

/// `{seconds = 1, nanos = 2}` as RFC 3339; nothing set is Go's zero time, which is null in JSON.
pub(super) fn time(bytes: &[u8], micros: bool) -> Result<Value, Error> {
    let (mut seconds, mut nanos) = (None, 0_i32);
    for item in Reader::new(bytes) {
        match item? {
            (1, Item::Varint(value)) => seconds = Some(value.cast_signed()),
            (2, Item::Varint(value)) => {
                nanos = i32::try_from(value.cast_signed())
                    .map_err(|_e| Error::Wire("nanoseconds are out of range"))?;
            }
            _ => {}
        }
    }
    // Go's zero time, year 1, is written as these seconds by some clients.
    const GO_ZERO: i64 = -62_135_596_800;
    let Some(seconds) = seconds.filter(|s| *s != GO_ZERO) else {
        return Ok(Value::Null);
    };
    let stamp =
        jiff::Timestamp::new(seconds, nanos).map_err(|_e| Error::Wire("a time is out of range"))?;
    Ok(Value::String(if micros {
        format!("{stamp:.6}")
    } else {
        format!("{stamp:.0}")
    }))
}

/// `{duration = 1}` in nanoseconds as Go writes a duration in JSON (`1m30s`).
pub(super) fn duration(bytes: &[u8]) -> Result<Value, Error> {
    let mut nanos = 0_i64;
    for item in Reader::new(bytes) {
        if let (1, Item::Varint(value)) = item? {
            nanos = value.cast_signed();
        }
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let (seconds, rest) = (total / 1_000_000_000, total % 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let fraction = match rest {
        0 => String::new(),
        _ => format!(".{rest:09}").trim_end_matches('0').to_owned(),
    };
    let mut out = sign.to_owned();
    if hours > 0 {
        out.push_str(&format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        out.push_str(&format!("{minutes}m"));
    }
    out.push_str(&format!("{}{fraction}s", seconds % 60));
    Ok(Value::String(out))
}
