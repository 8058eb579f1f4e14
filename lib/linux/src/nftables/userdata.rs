//! User data of objects as `nft` reads and writes it (`libnftnl/udata.h`): type, length, value,
//! each of the first two a byte.

/// Of rules (`NFTNL_UDATA_RULE_COMMENT`), elements and tables: all the same.
pub(super) const COMMENT: u8 = 0;

/// Of sets.
pub(super) const SET_KEY_BYTE_ORDER: u8 = 0;
pub(super) const SET_DATA_BYTE_ORDER: u8 = 1;
pub(super) const SET_COMMENT: u8 = 7;

/// The most bytes of a comment: `NFT_USERDATA_MAXLEN` is 256, and the length is a byte.
pub(super) const COMMENT_BYTES_MAX: usize = 253;

/// Writes one field.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let Ok(length) = u8::try_from(value.len()) else {
        return;
    };
    out.extend([kind, length]);
    out.extend(value);
}

/// Writes a comment, cut to what fits.
pub(super) fn put_comment(out: &mut Vec<u8>, kind: u8, text: &str) {
    let mut end = text.len().min(COMMENT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut value = text.as_bytes()[..end].to_vec();
    value.push(0);
    put(out, kind, &value);
}

/// Reads a comment.
pub(super) fn comment(bytes: &[u8], kind: u8) -> Option<String> {
    let mut rest = bytes;
    while let [found, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *found == kind {
            return Some(super::text(value));
        }
        rest = &tail[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_come_back_and_long_ones_are_cut_between_letters() {
        let mut out = Vec::new();
        put(&mut out, 3, &[1, 2]);
        put_comment(&mut out, COMMENT, "shop/web:http");
        assert_eq!(comment(&out, COMMENT).unwrap(), "shop/web:http");
        assert_eq!(comment(&out, 9), None);
        let mut out = Vec::new();
        put_comment(&mut out, COMMENT, &"é".repeat(200));
        assert_eq!(comment(&out, COMMENT).unwrap(), "é".repeat(126));
        assert_eq!(comment(&[0, 9, 1], COMMENT), None);
    }
}
