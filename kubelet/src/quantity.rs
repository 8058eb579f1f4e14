//! Resource amounts (`100m`, `64Mi`) as whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths, rounded up; `None` when it is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0, 1000)
}

/// In whole units (bytes), rounded up; `None` when it is no quantity.
pub fn units(quantity: &Quantity) -> Option<i64> {
    parse(&quantity.0, 1)
}

fn parse(text: &str, scale: i128) -> Option<i64> {
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (num, den) = factor(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole = whole.trim_start_matches(['+', '-']);
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(9))?;
    let mut value: i128 = format!("{whole}{fraction}").parse().ok()?;
    value = value.checked_mul(num)?.checked_mul(scale)?;
    let den = den.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let rounded = value.checked_add(den - 1)? / den;
    i64::try_from(if negative { -rounded } else { rounded }).ok()
}

/// Numerator and denominator of a suffix.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let pair = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs().min(30))?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    Some(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let q = |s: &str| Quantity(s.to_owned());
        for (text, m, u) in [
            ("100m", 100, 1),
            ("1", 1000, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("64Mi", 64 << 20, 64 << 20),
            ("1e3", 1_000_000, 1000),
            ("2k", 2_000_000, 2000),
        ] {
            let expect_m = if text == "64Mi" { m * 1000 } else { m };
            assert_eq!(
                (milli(&q(text)), units(&q(text))),
                (Some(expect_m), Some(u)),
                "{text}"
            );
        }
        for bad in ["", "Mi", "1Q", "x"] {
            assert_eq!(units(&q(bad)), None, "{bad}");
        }
    }
}
