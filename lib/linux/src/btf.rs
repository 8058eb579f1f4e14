//! Offsets of fields in the kernel's structures, from the kernel's own description of its types.
//! Source: `Documentation/bpf/btf.rst`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};

/// Where the kernel describes itself.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Nesting of anonymous structures that is followed.
const DEPTH_MAX: usize = 8;

/// Types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type begins, by its number less one.
    types: Vec<usize>,
    by_name: BTreeMap<Vec<u8>, usize>,
}

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// The kernel does not describe itself.
    pub fn kernel() -> Result<Self> {
        let bytes = std::fs::read(Path::new(KERNEL))
            .map_err(|e| Error::new(format!("read {KERNEL}"), e))?;
        Self::parse(bytes).ok_or_else(|| Error::other(format!("read {KERNEL}"), "malformed"))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let header = word(&bytes, 4)? as usize;
        if bytes.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let begin = header + word(&bytes, 8)? as usize;
        let end = begin + word(&bytes, 12)? as usize;
        let strings = header + word(&bytes, 16)? as usize;
        let mut btf = Self {
            bytes,
            strings,
            types: Vec::new(),
            by_name: BTreeMap::new(),
        };
        let mut at = begin;
        while at < end {
            let info = word(&btf.bytes, at + 4)?;
            let (count, kind) = ((info & 0xffff) as usize, (info >> 24) & 31);
            btf.types.push(at);
            if kind == KIND_STRUCT {
                let name = btf.name(word(&btf.bytes, at)?)?.to_vec();
                btf.by_name.entry(name).or_insert(at);
            }
            at += 12 + extra(kind, count)?;
        }
        Some(btf)
    }

    fn name(&self, at: u32) -> Option<&[u8]> {
        let text = self.bytes.get(self.strings + at as usize..)?;
        text.split(|b| *b == 0).next()
    }

    /// Bytes from the beginning of structure `of` to its field, also within anonymous parts.
    ///
    /// # Errors
    /// The kernel has no such structure or field.
    pub fn offset(&self, of: &str, field: &str) -> Result<u32> {
        let found = self
            .by_name
            .get(of.as_bytes())
            .and_then(|at| self.field(*at, field.as_bytes(), 0));
        found.ok_or_else(|| Error::other(format!("find {of}.{field}"), "this kernel has none"))
    }

    fn field(&self, at: usize, wanted: &[u8], depth: usize) -> Option<u32> {
        let info = word(&self.bytes, at + 4)?;
        let kind = (info >> 24) & 31;
        if depth > DEPTH_MAX || !matches!(kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let bitfields = info >> 31 != 0;
        for i in 0..(info & 0xffff) as usize {
            let member = at + 12 + i * 12;
            let name = self.name(word(&self.bytes, member)?)?;
            let raw = word(&self.bytes, member + 8)?;
            let bits = if bitfields { raw & 0x00ff_ffff } else { raw };
            if name == wanted {
                return Some(bits / 8);
            }
            if name.is_empty() {
                let id = word(&self.bytes, member + 4)? as usize;
                let inner = self.types.get(id.checked_sub(1)?).copied();
                if let Some(found) = inner.and_then(|at| self.field(at, wanted, depth + 1)) {
                    return Some(bits / 8 + found);
                }
            }
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Bytes after the common part of a type.
fn extra(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * count,
        6 => 8 * count,
        13 => 8 * count,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_running_kernel() {
        if !Path::new(KERNEL).exists() {
            println!("SKIPPED fields_of_the_running_kernel: the kernel does not describe itself");
            return;
        }
        let btf = Btf::kernel().unwrap();
        assert_eq!(btf.offset("list_head", "prev").unwrap(), 8);
        assert_eq!(btf.offset("sock", "__sk_common").unwrap(), 0);
        // Within an anonymous union.
        assert!(btf.offset("sock_common", "skc_dport").unwrap() > 0);
        assert!(btf.offset("net_device", "ip_ptr").unwrap() > 0);
        let error = btf.offset("sock", "nonsense").unwrap_err();
        assert_eq!(
            error.to_string(),
            "find sock.nonsense: this kernel has none"
        );
    }

    #[test]
    fn malformed_descriptions_are_refused() {
        for bytes in [&[][..], &[0x9f, 0xeb, 1, 0], &[0; 64]] {
            assert!(Btf::parse(bytes.to_vec()).is_none());
        }
    }
}
