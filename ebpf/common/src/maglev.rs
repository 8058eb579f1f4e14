//! Consistent hashing by tables (Eisenbud and others, "Maglev", NSDI 2016): a client is a place of a
//! table, and endpoints take places in turn, each by an order of its own. The table follows from the
//! endpoints alone, so every node has the same one; when an endpoint goes, hardly any place changes
//! but those that it had.

use crate::abi::{Endpoint, halves};

/// Places that a table may have: primes, so that every step leads through all of them.
pub const SIZES: [u32; 10] = [
    251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071,
];

/// Places of a table where nothing else is said.
pub const SIZE_DEFAULT: u32 = 16_381;

/// Endpoints that a table can tell apart.
pub const ENDPOINTS_MAX: usize = NOBODY as usize;

/// A place that nobody has: no endpoint has a weight.
pub const NOBODY: u16 = u16::MAX;

/// Places for each endpoint, as long as that is not more than [`SIZE_DEFAULT`] in all. When an endpoint
/// goes, some 1 % of all places change beside its own; with 100 it would be 2.4 % (10 endpoints, measured).
const PLACES_EACH: usize = 400;

/// The size for a number of endpoints: `asked`, or a larger one where that would be too small for them.
/// All nodes see the same endpoints, so they agree on it.
pub fn size_for(asked: u32, endpoints: usize) -> u32 {
    let good = endpoints
        .saturating_mul(PLACES_EACH)
        .min(SIZE_DEFAULT as usize);
    let least = endpoints.max(good);
    let fits = |size: &&u32| **size >= asked && **size as usize >= least;
    let largest = SIZES[SIZES.len() - 1];
    SIZES.iter().find(fits).copied().unwrap_or(largest)
}

#[inline(always)]
fn mix(x: u64) -> u64 {
    // The finalizer of SplitMix64 (Steele and others, OOPSLA 2014).
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[inline(always)]
fn digest(endpoint: &Endpoint, more: u64) -> u64 {
    let (a, b) = halves(&endpoint.addr);
    mix(mix(mix(a.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ b) ^ more)
}

/// A client's number, the same on every node and at every address of a service; never 0.
/// `with_port`: each of its connections has one of its own.
#[inline(always)]
pub fn client(from: &Endpoint, protocol: u32, with_port: bool) -> u32 {
    let port = if with_port {
        u64::from(u16::from_be_bytes(from.port))
    } else {
        0x1_0000
    };
    (digest(from, port << 32 | u64::from(protocol)) >> 32) as u32 | 1
}

/// An endpoint that takes places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    slot: u16,
    weight: u32,
    credit: u32,
    at: u32,
    step: u32,
}

impl Turn {
    /// For a table of `size` places, in which the endpoint is called `slot`. An endpoint of twice the
    /// weight gets twice the places.
    pub fn new(endpoint: &Endpoint, slot: u16, weight: u32, size: u32) -> Self {
        let port = u64::from(u16::from_be_bytes(endpoint.port));
        let own = digest(endpoint, port);
        Self {
            slot,
            weight,
            credit: 0,
            at: ((own >> 32) % u64::from(size)) as u32,
            step: ((own & 0xffff_ffff) % u64::from(size - 1)) as u32 + 1,
        }
    }
}

/// Fills a table whose size is one of [`SIZES`]. `turns` are in an order that all nodes agree on.
pub fn fill(turns: &mut [Turn], table: &mut [u16]) {
    table.fill(NOBODY);
    let most = turns.iter().map(|turn| turn.weight).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    let mut free = table.len();
    loop {
        for turn in turns.iter_mut() {
            turn.credit += turn.weight;
            if turn.credit < most {
                continue;
            }
            turn.credit -= most;
            if free == 0 {
                return;
            }
            take(turn, table);
            free -= 1;
        }
    }
}

/// Takes the next place that is free; there is one.
fn take(turn: &mut Turn, table: &mut [u16]) {
    loop {
        let at = turn.at as usize;
        turn.at += turn.step;
        if turn.at as usize >= table.len() {
            turn.at -= u32::try_from(table.len()).unwrap_or(u32::MAX);
        }
        if table[at] == NOBODY {
            table[at] = turn.slot;
            return;
        }
    }
}
