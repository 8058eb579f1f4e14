//! Arithmetic of ranges: addresses of `ipBlock`, port ranges. Both ends are within.

use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;

/// A range of numbers, both ends within.
pub type Range = (u128, u128);

/// The addresses of a network, as numbers.
pub fn of_net(net: &IpNetwork) -> Range {
    (number(net.network()), number(net.broadcast()))
}

/// An address as a number.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// A number of [`number`] as bytes of an address.
pub fn address_bytes(family: Family, number: u128) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    match family {
        Family::V4 => bytes[12..].to_vec(),
        Family::V6 => bytes.to_vec(),
    }
}

/// The same numbers in ranges that neither overlap nor touch, in order.
pub fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// What is in `whole` and in none of `without`.
pub fn subtract(whole: Range, without: Vec<Range>) -> Vec<Range> {
    let mut out = Vec::new();
    let mut from = whole.0;
    for (first, last) in union(without) {
        if last < from || first > whole.1 {
            continue;
        }
        if first > from {
            out.push((from, first - 1));
        }
        match last.checked_add(1) {
            Some(next) if next <= whole.1 => from = next,
            _ => return out,
        }
    }
    out.push((from, whole.1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows() {
        assert_eq!(
            union(vec![(5, 6), (1, 2), (3, 3), (9, 8)]),
            [(1, 3), (5, 6)]
        );
        assert_eq!(union(vec![(0, u128::MAX), (7, 8)]), [(0, u128::MAX)]);
        assert_eq!(subtract((0, 9), vec![(3, 4), (0, 0)]), [(1, 2), (5, 9)]);
        assert_eq!(subtract((0, 9), vec![(0, 12)]), []);
        assert_eq!(subtract((4, 9), vec![(0, 3), (10, 12)]), [(4, 9)]);
        assert_eq!(subtract((0, u128::MAX), vec![(9, u128::MAX)]), [(0, 8)]);
    }

    proptest! {
        #[test]
        fn membership(
            whole in (0u128..30, 0u128..30),
            without in proptest::collection::vec((0u128..30, 0u128..30), 0..5),
        ) {
            let within = |n: u128, (first, last): Range| first <= n && n <= last;
            let left = if whole.0 <= whole.1 { subtract(whole, without.clone()) } else { vec![] };
            let all = union(without.clone());
            for n in 0..32 {
                let out = without.iter().any(|range| within(n, *range));
                prop_assert_eq!(all.iter().any(|range| within(n, *range)), out);
                let expected = within(n, whole) && !out;
                prop_assert_eq!(left.iter().any(|range| within(n, *range)), expected);
            }
            prop_assert!(all.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }
}
