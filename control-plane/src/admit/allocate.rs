//! Service addresses and node ports, each given out once.
//!
//! A taken address or port is a key in the store, made in the same transaction as the Service that
//! has it and removed with it. So no two services ever share one, whoever creates them at the same
//! time and whenever the server restarts; there is nothing to rebuild and nothing to repair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use rand::Rng;

use crate::http::error::{ApiError, Result};
use crate::store::{Op, Store};

const IPS: &str = "/seaway/allocated/ip/";
const PORTS: &str = "/seaway/allocated/port/";

/// Addresses of a range that are used at most; a larger IPv6 range is cut (upstream: a /108).
const RANGE_MAX: u128 = 1 << 20;
/// Random picks before the whole range is looked through.
const PICKS_MAX: usize = 32;

/// Key of an address.
pub fn ip_key(ip: IpAddr) -> String {
    format!("{IPS}{ip}")
}

/// Key of a node port.
pub fn port_key(port: u16) -> String {
    format!("{PORTS}{port:05}")
}

/// The step that takes an address or port, or fails the transaction when it is taken.
pub fn take(key: String, owner: &str) -> Op {
    Op::create(key, owner.to_owned())
}

/// Whether a key of this module is in the way.
pub async fn is_taken(store: &dyn Store, key: &str) -> Result<bool> {
    Ok(store.get(key).await?.0.is_some())
}

/// An address of `range` nobody has, not among `mine`.
pub async fn free_ip(store: &dyn Store, range: &IpNetwork, mine: &[IpAddr]) -> Result<IpAddr> {
    let (first, count) = usable(range);
    let low = low_band(count);
    let free = free(store, low, count, |n| nth(first, n), |ip| ip_key(*ip), mine).await?;
    free.ok_or_else(|| exhausted(&format!("no address of {range} is free")))
}

/// A node port nobody has, not among `mine`.
pub async fn free_port(
    store: &dyn Store,
    range: &RangeInclusive<u16>,
    mine: &[u16],
) -> Result<u16> {
    let count = u128::from(range.end() - range.start()) + 1;
    let first = *range.start();
    let at = |n: u128| first.saturating_add(u16::try_from(n).unwrap_or(u16::MAX));
    let free = free(
        store,
        low_band(count),
        count,
        at,
        |port| port_key(*port),
        mine,
    )
    .await?;
    free.ok_or_else(|| exhausted("no node port is free"))
}

/// Random picks above `low`, then every number, the low band last: like upstream, the low band is
/// left to people who choose their addresses themselves.
async fn free<T: PartialEq>(
    store: &dyn Store,
    low: u128,
    count: u128,
    at: impl Fn(u128) -> T,
    key: impl Fn(&T) -> String,
    mine: &[T],
) -> Result<Option<T>> {
    if count == 0 {
        return Ok(None);
    }
    for _ in 0..PICKS_MAX {
        let candidate = at(rand::rng().random_range(low.min(count - 1)..count));
        if !mine.contains(&candidate) && !is_taken(store, &key(&candidate)).await? {
            return Ok(Some(candidate));
        }
    }
    for n in (low..count).chain(0..low.min(count)) {
        let candidate = at(n);
        if !mine.contains(&candidate) && !is_taken(store, &key(&candidate)).await? {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// Size of the band left to explicit choices: a sixteenth, from 16 to 256 (KEP-3070).
fn low_band(count: u128) -> u128 {
    let band = (count / 16).clamp(16, 256);
    if band >= count { 0 } else { band }
}

/// The first address after the network's own, and how many follow before the broadcast address.
fn usable(range: &IpNetwork) -> (IpAddr, u128) {
    let bits = if range.is_ipv4() { 32 } else { 128 };
    let host_bits = u32::from(bits - range.prefix().min(bits));
    let size = 1_u128
        .checked_shl(host_bits)
        .unwrap_or(u128::MAX)
        .min(RANGE_MAX);
    let edges = if range.is_ipv4() && host_bits > 1 {
        2
    } else {
        1
    };
    (nth(range.network(), 1), size.saturating_sub(edges))
}

fn nth(first: IpAddr, n: u128) -> IpAddr {
    match first {
        IpAddr::V4(ip) => {
            Ipv4Addr::from_bits(ip.to_bits().wrapping_add(u32::try_from(n).unwrap_or(0))).into()
        }
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_add(n)).into(),
    }
}

/// The address of the API server's own service: the first of the first range.
pub fn first_ip(range: &IpNetwork) -> IpAddr {
    usable(range).0
}

fn exhausted(text: &str) -> ApiError {
    tracing::warn!("{text}");
    ApiError::internal(format!("failed to allocate: {text}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::Memory;

    fn drain(range: &str) -> Vec<IpAddr> {
        let store = Memory::new();
        let range: IpNetwork = range.parse().unwrap();
        let mut all = Vec::new();
        futures::executor::block_on(async {
            while let Ok(ip) = free_ip(&store, &range, &[]).await {
                store.txn(vec![take(ip_key(ip), "x")]).await.unwrap();
                all.push(ip);
            }
        });
        all
    }

    #[track_caller]
    fn check(range: &str, count: usize, first: &str, last: &str) {
        let all: BTreeSet<IpAddr> = drain(range).into_iter().collect();
        assert_eq!(all.len(), count, "{range}");
        assert_eq!(all.first().unwrap().to_string(), first);
        assert_eq!(all.last().unwrap().to_string(), last);
    }

    #[test]
    fn every_usable_address_is_given_once() {
        check("10.96.0.0/28", 14, "10.96.0.1", "10.96.0.14");
        check("10.96.0.0/24", 254, "10.96.0.1", "10.96.0.254");
        check("fd00::/124", 15, "fd00::1", "fd00::f");
        check("10.0.0.0/31", 1, "10.0.0.1", "10.0.0.1");
    }

    #[test]
    fn the_low_band_comes_last() {
        let all = drain("10.96.0.0/24");
        let low = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.octets()[3] <= 16);
        assert!(all[..238].iter().all(|ip| !low(ip)) && all[238..].iter().all(low));
    }

    #[test]
    fn a_wide_range_is_cut() {
        let (first, count) = usable(&"fd00::/64".parse().unwrap());
        assert_eq!(
            (first.to_string().as_str(), count),
            ("fd00::1", RANGE_MAX - 1)
        );
        assert_eq!(nth(first, 0xffff_ffff).to_string(), "fd00::1:0:0");
    }
}
