//! Resource quantities: `100m`, `1.5Gi`, `2e3`, with Kubernetes' canonical text.
//!
//! Values are held exactly, in units of 10⁻⁹ (nano), the finest step Kubernetes keeps; finer input
//! is rounded up, as upstream does. Source: apimachinery `pkg/api/resource`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NANO: i128 = 1_000_000_000;
/// Upstream caps magnitudes at 2^63-1 (before the fraction).
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    BinarySi,
    DecimalSi,
    DecimalExponent,
}

/// An exact amount of a resource. Equality and order compare amounts, not texts: `1000m == 1`.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not number-and-suffix, or an unknown suffix.
    #[error(
        "quantity {0:?} must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Malformed(String),
}

const SUFFIXES: &[(&str, i32, Format)] = &[
    ("n", -9, Format::DecimalSi),
    ("u", -6, Format::DecimalSi),
    ("m", -3, Format::DecimalSi),
    ("", 0, Format::DecimalSi),
    ("k", 3, Format::DecimalSi),
    ("M", 6, Format::DecimalSi),
    ("G", 9, Format::DecimalSi),
    ("T", 12, Format::DecimalSi),
    ("P", 15, Format::DecimalSi),
    ("E", 18, Format::DecimalSi),
    ("Ki", 10, Format::BinarySi),
    ("Mi", 20, Format::BinarySi),
    ("Gi", 30, Format::BinarySi),
    ("Ti", 40, Format::BinarySi),
    ("Pi", 50, Format::BinarySi),
    ("Ei", 60, Format::BinarySi),
];

impl Quantity {
    /// Zero, in decimal form.
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// A whole number of units, written with decimal suffixes.
    pub fn from_units(units: i64) -> Self {
        Quantity {
            nanos: i128::from(units) * NANO,
            format: Format::DecimalSi,
        }
    }

    /// Thousandths, written with decimal suffixes: CPU amounts.
    pub fn from_milli(milli: i64) -> Self {
        Quantity {
            nanos: i128::from(milli) * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// A number of bytes, written with binary suffixes: memory amounts.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity {
            nanos: i128::from(bytes) * NANO,
            format: Format::BinarySi,
        }
    }

    /// Whole units, rounded up away from zero: bytes of a memory quantity.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded up away from zero: millicores of a CPU quantity.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let (whole, rest) = (self.nanos / unit, self.nanos % unit);
        let rounded = whole + rest.signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// The sum; keeps the format of `self` (of `other` when `self` is zero).
    #[must_use]
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: cap(self.nanos.saturating_add(other.nanos)),
            format,
        }
    }

    /// The difference; keeps the format of `self` (of `other` when `self` is zero).
    #[must_use]
    pub fn minus(&self, other: &Quantity) -> Quantity {
        self.plus(&Quantity {
            nanos: -other.nanos,
            format: other.format,
        })
    }
}

fn cap(nanos: i128) -> i128 {
    nanos.clamp(-MAX_NANOS, MAX_NANOS)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let bad = || QuantityError::Malformed(text.to_owned());
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(bad());
        }
        let (power, format) = parse_suffix(suffix).ok_or_else(bad)?;
        let amount = scale(whole, fraction, power, format);
        let nanos = cap(if text.starts_with('-') {
            -amount
        } else {
            amount
        });
        Ok(Quantity { nanos, format })
    }
}

fn parse_suffix(suffix: &str) -> Option<(i32, Format)> {
    if let Some((_, power, format)) = SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
        return Some((*power, *format));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let power: i32 = exponent.parse().ok()?;
    Some((power, Format::DecimalExponent))
}

/// The amount in nanos, rounded up, saturating at the cap.
fn scale(whole: &str, fraction: &str, power: i32, format: Format) -> i128 {
    let digits: String = format!("{whole}{fraction}")
        .trim_start_matches('0')
        .to_owned();
    if digits.is_empty() {
        return 0;
    }
    // More digits than this are above the cap, or below a nano and only matter for rounding up.
    let Ok(places) = i32::try_from(fraction.len()) else {
        return 1;
    };
    let (decimal, factor): (i32, i128) = match format {
        Format::BinarySi => (9 - places, 1_i128 << power.min(62)),
        Format::DecimalSi | Format::DecimalExponent => {
            (9_i32.saturating_sub(places).saturating_add(power), 1)
        }
    };
    let Ok(mut mantissa) = digits.parse::<i128>() else {
        // 39 and more significant digits: drop the tail, which is far below the precision kept.
        let kept = &digits[..30];
        let dropped = i32::try_from(digits.len() - 30).unwrap_or(i32::MAX);
        let head: i128 = kept.parse().unwrap_or(i128::MAX);
        return shift(head.saturating_add(1), decimal.saturating_add(dropped))
            .saturating_mul(factor)
            .min(MAX_NANOS);
    };
    if decimal >= 0 {
        return shift(mantissa, decimal)
            .saturating_mul(factor)
            .min(MAX_NANOS);
    }
    // Multiply before dividing, so that 0.1Gi rounds once.
    mantissa = mantissa.saturating_mul(factor);
    shift(mantissa, decimal).min(MAX_NANOS)
}

/// `value * 10^power`, rounded up.
fn shift(value: i128, power: i32) -> i128 {
    if value == 0 {
        return 0;
    }
    let steps = power.unsigned_abs();
    match 10_i128.checked_pow(steps) {
        Some(factor) if power >= 0 => value.saturating_mul(factor),
        Some(factor) => value / factor + i128::from(value % factor != 0),
        None if power >= 0 => i128::MAX,
        None => 1,
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let sign = if self.nanos < 0 { "-" } else { "" };
        let amount = self.nanos.abs();
        // Binary form cannot show fractions, nor what is below 1024.
        if self.format == Format::BinarySi && amount % NANO == 0 && amount >= 1024 * NANO {
            let mut units = amount / NANO;
            let mut suffix = "";
            for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                if units % 1024 != 0 {
                    break;
                }
                units /= 1024;
                suffix = next;
            }
            return write!(f, "{sign}{units}{suffix}");
        }
        let mut units = amount;
        let mut power = -9;
        while units % 1000 == 0 && power < 18 {
            units /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return match power {
                0 => write!(f, "{sign}{units}"),
                _ => write!(f, "{sign}{units}e{power}"),
            };
        }
        let suffix = SUFFIXES
            .iter()
            .find(|(_, p, format)| *p == power && *format == Format::DecimalSi)
            .map_or("", |(name, ..)| name);
        write!(f, "{sign}{units}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// From a string or, as the API also allows, a number.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            other => {
                return Err(serde::de::Error::custom(format!(
                    "{other} is not a quantity"
                )));
            }
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str, value: i64, milli: i64) {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!(quantity.to_string(), canonical, "{text}");
        assert_eq!(quantity.value(), value, "{text}");
        assert_eq!(quantity.milli_value(), milli, "{text}");
        let again: Quantity = canonical.parse().unwrap();
        assert_eq!(again, quantity, "{text}");
    }

    #[test]
    fn rows() {
        check("0", "0", 0, 0);
        check("100m", "100m", 1, 100);
        check("0.5", "500m", 1, 500);
        check("1000m", "1", 1, 1000);
        check("1", "1", 1, 1000);
        check("1500", "1500", 1500, 1_500_000);
        check("2000", "2k", 2000, 2_000_000);
        check("1Gi", "1Gi", 1 << 30, (1 << 30) * 1000);
        check("1.5Gi", "1536Mi", 3 << 29, (3_i64 << 29) * 1000);
        check("1024Ki", "1Mi", 1 << 20, (1 << 20) * 1000);
        check("1000Ki", "1000Ki", 1_024_000, 1_024_000_000);
        check("0.5Ki", "512", 512, 512_000);
        check("1e3", "1e3", 1000, 1_000_000);
        check("-1.5", "-1500m", -2, -1500);
        check("+1", "1", 1, 1000);
        check(".5", "500m", 1, 500);
        check("5.", "5", 5, 5000);
        check("1n", "1n", 1, 1);
        check("0.1n", "1n", 1, 1);
        check("12E", "9223372036854775807", i64::MAX, i64::MAX);
    }

    /// Texts with the canonical form that kubectl (Go's own implementation) prints for them. Go keeps
    /// some texts as they came (`36.999k`): those say nothing about the canonical form.
    #[test]
    fn canonical_forms_are_gos() {
        let rows = include_str!("../tests/data/quantities.txt").lines();
        let mut wrong = Vec::new();
        for row in rows {
            let (text, canonical) = row.split_once('\t').unwrap();
            let found = text.parse::<Quantity>().map(|q| q.to_string());
            if found.as_deref().unwrap_or("ERR") != canonical && canonical != text {
                wrong.push(format!("{text}: {found:?}, Go says {canonical}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn bad_texts() {
        for text in [
            "", "x", "1x", "1.2.3", "--1", "1 Gi", "Gi", "1KI", ".", "1e", "1e1.5",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn order_and_sum() {
        let q = |t: &str| t.parse::<Quantity>().unwrap();
        assert!(q("1Gi") > q("1G") && q("100m") < q("1") && q("1000m") == q("1"));
        assert_eq!(q("1Gi").plus(&q("512Mi")).to_string(), "1536Mi");
        assert_eq!(q("1").minus(&q("100m")).to_string(), "900m");
        assert_eq!(serde_json::to_string(&q("0.1")).unwrap(), "\"100m\"");
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap(), q("2"));
    }
}
