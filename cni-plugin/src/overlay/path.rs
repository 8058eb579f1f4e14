//! How large packets to another node may be: whom to ask, and what follows for routes. Pure.

mod search;

use std::net::IpAddr;
use std::time::Duration;

use api::cidr::Family;

pub use search::{Search, Step};

use super::backend::Backend;
use super::model::{Ground, Peer, Route, Settings};
use super::plan::{mtu_min, wg_outer};

/// How often and how patiently paths are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time between two looks at one path.
    pub every: Duration,
    /// How long an answer is waited for.
    pub wait: Duration,
    /// How much longer than a small packet a large one may take that was sent before it.
    pub grace: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(600),
            wait: Duration::from_secs(1),
            grace: Duration::from_millis(100),
        }
    }
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It carries what the link does.
    Whole,
    /// It carries packets of this many bytes at most.
    Narrow(u32),
    /// The other node answers no echo.
    Silent,
}

/// A path to be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// This node's address.
    pub from: IpAddr,
    /// The other node's.
    pub to: IpAddr,
    /// The largest packet of the link in bytes, or what was said in its place.
    pub top: u32,
}

impl Target {
    /// A search for what it carries; `known` is what it carried.
    pub fn search(&self, known: Option<Verdict>) -> Search {
        let known = match known {
            Some(Verdict::Narrow(mtu)) => Some(mtu),
            _ => None,
        };
        Search::new(mtu_min(Family::of(self.to)), self.top, known)
    }
}

/// The paths to another node.
pub fn targets(settings: &Settings, ground: &Ground, peer: &Peer) -> Vec<Target> {
    let Some(underlay) = &ground.underlay else {
        return Vec::new();
    };
    let top = settings.outer_mtu(underlay);
    let mut all = Vec::new();
    for family in Family::BOTH {
        if ground.of(family).is_some()
            && let Some(to) = outer(settings, ground, peer, family)
            && let Some(from) = underlay.ip(Family::of(to))
        {
            all.push(Target { from, to, top });
        }
    }
    all.dedup();
    all
}

/// The other node's address to which pods' packets of one family are sent.
fn outer(settings: &Settings, ground: &Ground, peer: &Peer, family: Family) -> Option<IpAddr> {
    let reach = peer.reach(family)?;
    Some(match (&settings.backend, &ground.underlay) {
        (Backend::WireGuard(wg), Some(underlay)) => {
            let outer = wg_outer(wg.mode, family, underlay);
            peer.reach(outer).unwrap_or(reach).public
        }
        _ => reach.public,
    })
}

/// Gives a route to a node's pods the packet size that the path to it leaves, where that is less
/// than the link's. So a pod that sends more is told by its own node, whatever becomes of such
/// packets on the way.
///
/// # Errors
/// It leaves less than the family needs; the route stays as it is.
pub fn fit(
    settings: &Settings,
    ground: &Ground,
    peer: &Peer,
    route: &mut Route,
) -> Result<(), String> {
    let family = Family::of_net(&route.dst);
    let (Some(underlay), Some(to)) = (&ground.underlay, outer(settings, ground, peer, family))
    else {
        return Ok(());
    };
    let top = settings.outer_mtu(underlay);
    let Some(path) = ground.narrow.get(&to).copied().filter(|path| *path < top) else {
        return Ok(());
    };
    let direct = route.dev.as_ref() == Some(&underlay.dev);
    let overhead = if direct {
        0
    } else {
        settings.backend.overhead(family)
    };
    let mtu = path.saturating_sub(overhead);
    let min = mtu_min(family);
    if mtu < min {
        return Err(format!(
            "the path to {to} carries packets of {path} bytes, which leaves {mtu} to {family} pods, which need {min}"
        ));
    }
    route.mtu = Some(mtu);
    // Else the kernel does not heed it for what it forwards.
    route.mtu_locked = family == Family::V6;
    Ok(())
}
