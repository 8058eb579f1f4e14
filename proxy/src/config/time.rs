//! Times as Go writes them (`time.Duration`): `30s`, `1h0m0s`, `500ms`, `1.5s`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// Units from the longest to the shortest, with their nanoseconds. `m` stands behind `ms`, of which
/// it is a prefix.
const UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("ms", 1_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("us", 1000),
    ("\u{b5}s", 1000),
    ("\u{3bc}s", 1000),
    ("ns", 1),
];

/// A length of time that reads and writes as Go's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// `other` where this is zero, which in kube-proxy's file means not set.
    pub fn or(self, other: Self) -> Self {
        if self.0.is_zero() { other } else { self }
    }
}

/// Reads a time.
///
/// # Errors
/// Says what a time looks like.
pub fn parse(text: &str) -> Result<GoDuration, String> {
    let bad = || format!("{text:?} is no time such as 30s, 1m30s or 500ms");
    if text == "0" {
        return Ok(GoDuration::default());
    }
    let mut nanoseconds: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = UNITS.iter().find(|(unit, _)| tail.starts_with(unit));
        let (unit, scale) = unit.ok_or_else(bad)?;
        let part = part(number, *scale).ok_or_else(bad)?;
        nanoseconds = nanoseconds.checked_add(part).ok_or_else(bad)?;
        rest = &tail[unit.len()..];
    }
    Ok(GoDuration(Duration::from_nanos(nanoseconds)))
}

/// A number with or without a fraction, in units of `scale` nanoseconds.
fn part(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut sum = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.chars() {
        place /= 10;
        sum = sum.checked_add(place.checked_mul(u64::from(digit.to_digit(10)?))?)?;
    }
    Some(sum)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = self.0.as_nanos();
        if nanoseconds == 0 {
            return f.write_str("0s");
        }
        let below_a_second = [("ms", 1_000_000), ("\u{b5}s", 1000), ("ns", 1)];
        if nanoseconds < 1_000_000_000 {
            let fits = below_a_second
                .iter()
                .find(|(_, scale)| nanoseconds >= *scale);
            let (unit, scale) = fits.unwrap_or(&("ns", 1));
            return decimal(f, nanoseconds, *scale, unit);
        }
        let seconds = self.0.as_secs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        decimal(f, nanoseconds % 60_000_000_000, 1_000_000_000, "s")
    }
}

/// `value / scale` without zeros at the end.
fn decimal(f: &mut fmt::Formatter<'_>, value: u128, scale: u128, unit: &str) -> fmt::Result {
    let (whole, rest) = (value / scale, value % scale);
    if rest == 0 {
        return write!(f, "{whole}{unit}");
    }
    let width = scale.ilog10() as usize;
    let fraction = format!("{rest:0width$}");
    write!(f, "{whole}.{}{unit}", fraction.trim_end_matches('0'))
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl Visitor<'_> for Reader {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time such as 30s")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        parse(text).map_err(E::custom)
    }

    /// Go's own encoding: nanoseconds.
    fn visit_u64<E: de::Error>(self, nanoseconds: u64) -> Result<GoDuration, E> {
        Ok(GoDuration(Duration::from_nanos(nanoseconds)))
    }

    fn visit_i64<E: de::Error>(self, nanoseconds: i64) -> Result<GoDuration, E> {
        match u64::try_from(nanoseconds) {
            Ok(nanoseconds) => self.visit_u64(nanoseconds),
            Err(_) => Err(E::custom(format!("{nanoseconds} is less than 0"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, nanoseconds: u64, written: &str) {
        let read = parse(text).unwrap();
        assert_eq!(read.0, Duration::from_nanos(nanoseconds));
        assert_eq!(read.to_string(), written);
        assert_eq!(parse(written).unwrap(), read);
    }

    #[test]
    fn as_go_reads_and_writes_them() {
        check("0", 0, "0s");
        check("30s", 30_000_000_000, "30s");
        check("1m30s", 90_000_000_000, "1m30s");
        check("500ms", 500_000_000, "500ms");
        check("24h", 86_400_000_000_000, "24h0m0s");
        check("15m", 900_000_000_000, "15m0s");
        check("1.5s", 1_500_000_000, "1.5s");
        check(".5h", 1_800_000_000_000, "30m0s");
        check("1500ms", 1_500_000_000, "1.5s");
        check("20us", 20_000, "20\u{b5}s");
        check("7ns", 7, "7ns");
        check("1h0.25s", 3_600_250_000_000, "1h0m0.25s");
    }

    #[test]
    fn what_is_no_time() {
        for text in ["", "1", "s", ".s", "-5s", "5 s", "1x", "99999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
