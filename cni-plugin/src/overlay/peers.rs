//! Which of the other nodes may have what they claim. Pure; a change costs as much as it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::cidr::Family;

use super::model::{Peer, Reach, Way};

/// What only one node may have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// The first address of its pods' network.
    Network(IpAddr),
    /// What tells its end from others, for one family.
    Way(Family, Way),
}

/// The other nodes, and who claims what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    all: BTreeMap<String, Peer>,
    claims: BTreeMap<Claim, BTreeSet<String>>,
}

impl Peers {
    /// Puts a node in, or takes it out; gives the nodes that this concerns, if anything changed.
    pub fn set(&mut self, name: &str, peer: Option<Peer>) -> BTreeSet<String> {
        let before = match &peer {
            Some(peer) => self.all.insert(name.to_owned(), peer.clone()),
            None => self.all.remove(name),
        };
        let mut concerned = BTreeSet::new();
        if before == peer {
            return concerned;
        }
        concerned.insert(name.to_owned());
        for claim in before.iter().flat_map(claims) {
            if let Some(names) = self.claims.get_mut(&claim) {
                names.remove(name);
                concerned.extend(names.iter().cloned());
                if names.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
        for claim in peer.iter().flat_map(claims) {
            let names = self.claims.entry(claim).or_default();
            names.insert(name.to_owned());
            concerned.extend(names.iter().cloned());
        }
        concerned
    }

    /// A node, with only what no other node before it by name claims; `told` hears of the rest.
    pub fn entitled(&self, name: &str, mut told: impl FnMut(String)) -> Peer {
        let Some(peer) = self.all.get(name) else {
            return Peer::default();
        };
        let mut keep = |family: Family| {
            let reach = peer.reach(family)?;
            for claim in claims_of(family, reach) {
                let first = self.claims.get(&claim).and_then(BTreeSet::first);
                if first.is_some_and(|first| first != name) {
                    told(format!("node {name} is left out: {}", words(&claim, reach)));
                    return None;
                }
            }
            Some(reach.clone())
        };
        Peer {
            v4: keep(Family::V4),
            v6: keep(Family::V6),
        }
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.all.keys()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl FromIterator<(String, Peer)> for Peers {
    fn from_iter<T: IntoIterator<Item = (String, Peer)>>(all: T) -> Self {
        let mut peers = Self::default();
        for (name, peer) in all {
            peers.set(&name, Some(peer));
        }
        peers
    }
}

fn words(claim: &Claim, reach: &Reach) -> String {
    match claim {
        Claim::Network(_) => format!("{} is another node's too", reach.subnet),
        Claim::Way(_, Way::Vxlan(mac)) => format!("hardware address {mac} is another's too"),
        Claim::Way(_, Way::WireGuard(key)) => format!("public key {key} is another's too"),
        Claim::Way(_, Way::HostGw) => "nothing tells it from another".to_owned(),
    }
}

fn claims(peer: &Peer) -> Vec<Claim> {
    let of = |family| {
        let reach = peer.reach(family);
        reach.map(|reach| claims_of(family, reach))
    };
    Family::BOTH.into_iter().filter_map(of).flatten().collect()
}

fn claims_of(family: Family, reach: &Reach) -> Vec<Claim> {
    let mut all = vec![Claim::Network(reach.subnet.network())];
    if reach.way != Way::HostGw {
        all.push(Claim::Way(family, reach.way));
    }
    all
}
