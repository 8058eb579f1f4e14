//! The allocator: which address a pod gets. Pure; the files are in `lease_store`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Addresses of one subnet that pods may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet, whose length the pod's address carries.
    pub subnet: IpNetwork,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
    /// The subnet's gateway, which no pod gets.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which a pod gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

/// Why a set of ranges is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeSetError {
    /// It is empty.
    #[error("must name at least one range")]
    Empty,
    /// A pod's address would be of either family.
    #[error("mixes IPv4 and IPv6; give each a set of its own")]
    Mixed,
    /// An address would be there twice.
    #[error("{0} and {1} overlap")]
    Overlap(String, String),
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl Range {
    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&address)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

/// The first and the last address of `net` that a host may have: not the network's own, for IPv4
/// not the broadcast address. `None` for networks with less than two of them.
pub fn reach(net: IpNetwork) -> Option<(IpAddr, IpAddr)> {
    match net {
        IpNetwork::V4(net) if net.prefix() <= 30 => {
            let (first, last) = (net.network().to_bits() + 1, net.broadcast().to_bits() - 1);
            Some((IpAddr::V4(first.into()), IpAddr::V4(last.into())))
        }
        IpNetwork::V6(net) if net.prefix() <= 126 => {
            let (first, last) = (net.network().to_bits() + 1, net.broadcast().to_bits());
            Some((IpAddr::V6(first.into()), IpAddr::V6(last.into())))
        }
        _ => None,
    }
}

/// The address after `address`; `None` after the last one there is.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(a) => a
            .to_bits()
            .checked_add(1)
            .map(|bits| IpAddr::V6(bits.into())),
    }
}

/// How many addresses lie from `start` to `end`, both included.
fn count(start: IpAddr, end: IpAddr) -> u128 {
    match (start, end) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(b.to_bits().abs_diff(a.to_bits())) + 1,
        (IpAddr::V6(a), IpAddr::V6(b)) => b.to_bits().abs_diff(a.to_bits()).saturating_add(1),
        _ => 0,
    }
}

impl RangeSet {
    /// A set of ranges.
    ///
    /// # Errors
    /// It is empty, of two families, or holds an address twice.
    pub fn new(ranges: Vec<Range>) -> Result<Self, RangeSetError> {
        let Some(first) = ranges.first() else {
            return Err(RangeSetError::Empty);
        };
        if ranges
            .iter()
            .any(|r| r.start.is_ipv4() != first.start.is_ipv4())
        {
            return Err(RangeSetError::Mixed);
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..at].iter().find(|other| other.overlaps(range)) {
                return Err(RangeSetError::Overlap(other.to_string(), range.to_string()));
            }
        }
        Ok(Self { ranges })
    }

    /// Two ranges of different sets that overlap, if there are any.
    pub fn overlap(sets: &[Self]) -> Option<(&Range, &Range)> {
        let ranges: Vec<(usize, &Range)> = sets
            .iter()
            .enumerate()
            .flat_map(|(set, s)| s.ranges.iter().map(move |range| (set, range)))
            .collect();
        for (at, (set, range)) in ranges.iter().enumerate() {
            let before = ranges[..at]
                .iter()
                .find(|(s, other)| s != set && other.overlaps(range));
            if let Some((_, other)) = before {
                return Some((other, range));
            }
        }
        None
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whether the addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ranges.iter().any(|range| range.start.is_ipv6())
    }

    /// Whether `address` is in one of the ranges.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// How many addresses pods can have.
    fn capacity(&self) -> u128 {
        let of = |r: &Range| count(r.start, r.end) - u128::from(r.contains(r.gateway));
        self.ranges.iter().map(of).fold(0, u128::saturating_add)
    }

    /// The first free address after `last`, around the set once.
    fn pick(&self, taken: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<Lease> {
        let at = |address| self.ranges.iter().position(|range| range.contains(address));
        let (begin, from) = match last.and_then(|last| Some((at(last)?, last))) {
            Some((range, last)) => (range, next(last)),
            None => (0, self.ranges.first().map(|range| range.start)),
        };
        let mut from = from;
        // One turn more than there are ranges, for the part of the first one that was skipped.
        for turn in 0..=self.ranges.len() {
            let range = &self.ranges[(begin + turn) % self.ranges.len()];
            let mut candidate = from.take().or_else(|| (turn > 0).then_some(range.start));
            while let Some(address) = candidate.filter(|address| range.contains(*address)) {
                if address != range.gateway && !taken.contains(&address) {
                    return Some(Lease::of(range, address));
                }
                candidate = next(address);
            }
        }
        None
    }
}

/// An address for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address with its subnet's length.
    pub address: IpNetwork,
    /// The subnet's gateway; a plugin that gives addresses may name none.
    pub gateway: Option<IpAddr>,
}

impl Lease {
    fn of(range: &Range, address: IpAddr) -> Self {
        // The length comes from a network of the same family, so it always fits.
        let net = IpNetwork::new(address, range.subnet.prefix());
        Self {
            address: net.unwrap_or_else(|_fits| address.into()),
            gateway: Some(range.gateway),
        }
    }
}

/// Why no address can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// All are taken.
    #[error("IP pool {pool} full: {used} of {capacity}{}", gone_text(*gone))]
    Full {
        /// The set's ranges.
        pool: String,
        /// Leases in it.
        used: usize,
        /// Addresses in it.
        capacity: u128,
        /// Which set.
        set: usize,
        /// Leases of containers that no longer exist, as far as somebody has looked.
        gone: usize,
    },
    /// The runtime wants one that is taken.
    #[error("requested address {0} is taken")]
    Taken(IpAddr),
    /// The runtime wants a gateway's.
    #[error("requested address {0} is the gateway's")]
    Gateway(IpAddr),
    /// The runtime wants one that is in no range, or the second one of a set.
    #[error("requested address {0} is in none of the ranges that have one to give")]
    OutOfRange(IpAddr),
}

fn gone_text(gone: usize) -> String {
    match gone {
        0 => String::new(),
        1 => ", 1 belongs to a container that no longer exists".to_owned(),
        n => format!(", {n} belong to containers that no longer exist"),
    }
}

/// One address from each set: the requested one where there is one, else the first free one after
/// the set's last given one, so that an address rests as long as possible before it is used again.
///
/// # Errors
/// A set is full, or a requested address cannot be had.
pub fn allocate(
    sets: &[RangeSet],
    requested: &[IpAddr],
    taken: &BTreeSet<IpAddr>,
    last: &[Option<IpAddr>],
) -> Result<Vec<Lease>, AllocateError> {
    let mut wanted: Vec<IpAddr> = requested.to_vec();
    let mut leases = Vec::new();
    for (at, set) in sets.iter().enumerate() {
        if let Some(which) = wanted.iter().position(|ip| set.range_of(*ip).is_some()) {
            leases.push(take(set, wanted.remove(which), taken)?);
            continue;
        }
        let last = last.get(at).copied().flatten();
        leases.push(set.pick(taken, last).ok_or_else(|| full(at, set, taken))?);
    }
    match wanted.first() {
        Some(left) => Err(AllocateError::OutOfRange(*left)),
        None => Ok(leases),
    }
}

fn take(set: &RangeSet, ip: IpAddr, taken: &BTreeSet<IpAddr>) -> Result<Lease, AllocateError> {
    let range = set.range_of(ip).ok_or(AllocateError::OutOfRange(ip))?;
    if ip == range.gateway {
        return Err(AllocateError::Gateway(ip));
    }
    if taken.contains(&ip) {
        return Err(AllocateError::Taken(ip));
    }
    Ok(Lease::of(range, ip))
}

fn full(at: usize, set: &RangeSet, taken: &BTreeSet<IpAddr>) -> AllocateError {
    let subnets: Vec<String> = set.ranges.iter().map(|r| r.subnet.to_string()).collect();
    let used = taken
        .iter()
        .filter(|ip| set.range_of(**ip).is_some())
        .count();
    AllocateError::Full {
        pool: subnets.join(", "),
        used,
        capacity: set.capacity(),
        set: at,
        gone: 0,
    }
}

/// Whether each set has a free address.
///
/// # Errors
/// The first set that has none.
pub fn has_room(sets: &[RangeSet], taken: &BTreeSet<IpAddr>) -> Result<(), AllocateError> {
    allocate(sets, &[], taken, &[]).map(drop)
}

#[cfg(test)]
mod tests;
