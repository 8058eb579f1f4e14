//! The Internet checksum (RFC 1071) and its update (RFC 1624).

/// One's complement sum of an even number of bytes, not folded.
#[inline(always)]
pub fn add16(sum: u32, word: [u8; 2]) -> u32 {
    sum.wrapping_add(u16::from_be_bytes(word) as u32)
}

/// The sum of an address.
#[inline(always)]
pub fn add_addr(mut sum: u32, addr: &[u8; 16], v4: bool) -> u32 {
    let mut i = if v4 { 12 } else { 0 };
    while i < 16 {
        sum = add16(sum, [addr[i], addr[i + 1]]);
        i += 2;
    }
    sum
}

/// Folds a sum into 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded twice, it fits")]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What is to be added to a sum when what summed up to `old` is replaced by what sums up to `new`.
#[inline(always)]
pub fn difference(old: u32, new: u32) -> u16 {
    fold(new.wrapping_add((!fold(old)) as u32))
}

/// A checksum after a difference (RFC 1624, equation 3).
#[inline(always)]
pub fn update(checksum: [u8; 2], difference: u16) -> [u8; 2] {
    let sum = (!u16::from_be_bytes(checksum)) as u32 + difference as u32;
    (!fold(sum)).to_be_bytes()
}

/// The checksum of bytes.
pub fn checksum(bytes: &[u8], start: u32) -> [u8; 2] {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    (!fold(fold(sum).into())).to_be_bytes()
}
