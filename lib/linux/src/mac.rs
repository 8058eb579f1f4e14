//! Hardware addresses of links.

use std::fmt;
use std::str::FromStr;

/// A 48-bit hardware address, written as `0a:58:0a:f4:01:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

/// A text that is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a hardware address of six hexadecimal bytes: {0:?}")]
pub struct MacParseError(String);

impl Mac {
    /// A locally administered unicast address whose last bytes are `tail`.
    pub fn local(tail: [u8; 5]) -> Self {
        let [a, b, c, d, e] = tail;
        Self([0x0a, a, b, c, d, e])
    }

    /// Whether it is a group address, which no interface may have.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let bad = || MacParseError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_digits| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl TryFrom<&[u8]> for Mac {
    type Error = MacParseError;

    fn try_from(bytes: &[u8]) -> Result<Self, MacParseError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_length| MacParseError(format!("{bytes:02x?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: Mac = "0a:58:0A:f4:01:02".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:f4:01:02");
        for bad in [
            "",
            "0a:58",
            "0a:58:0a:f4:01:02:03",
            "0a:58:0a:f4:01:0",
            "+a:58:0a:f4:01:02x",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
