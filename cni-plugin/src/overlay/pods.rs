//! Pods that are there already follow when the largest packet changes: their bridge, both ends of
//! their cables.
//!
//! A packet that is too large for the far end of a cable is dropped without a word, so the end that
//! may send more never has the larger number: when it grows, the host's end goes first; when it
//! shrinks, the pod's. A pod whose namespace is not found keeps its size, and so does its cable; the
//! routes beyond tell it ("fragmentation needed") what passes.

use linux::link::{Link, LinkChange};
use linux::{Host, Result};

use super::sync::Synced;

/// The alias by which the plugin marks its cables starts with this.
const ALIAS: &str = "seaway:";

/// Gives the bridge and the cables of pods this largest packet.
pub fn follow(host: &mut dyn Host, bridge: &str, mtu: u32) -> Synced {
    let mut synced = Synced::default();
    let outcome = follow_all(host, bridge, mtu, &mut synced);
    synced
        .failures
        .extend(outcome.err().map(|error| error.to_string()));
    synced
}

fn follow_all(host: &mut dyn Host, bridge: &str, mtu: u32, synced: &mut Synced) -> Result<()> {
    let Some(bridge) = host.link(bridge)? else {
        return Ok(());
    };
    let is_other = |link: &Link| {
        let ours = link.alias.as_deref().is_some_and(|a| a.starts_with(ALIAS));
        link.master == Some(bridge.index) && ours && link.mtu != mtu
    };
    let ports: Vec<Link> = host.links()?.into_iter().filter(is_other).collect();
    if ports.is_empty() && bridge.mtu == mtu {
        return Ok(());
    }
    let change = LinkChange {
        mtu: Some(mtu),
        ..LinkChange::default()
    };
    let (growing, shrinking): (Vec<_>, Vec<_>) = ports.into_iter().partition(|link| link.mtu < mtu);
    for port in &growing {
        count(synced, host.set_link(&port.name, &change));
    }
    let all: Vec<Link> = growing.iter().chain(&shrinking).cloned().collect();
    let far_ends = host.set_peer_mtu(&all, mtu)?;
    synced.changes += far_ends.len();
    for port in shrinking
        .iter()
        .filter(|port| far_ends.contains(&port.index))
    {
        count(synced, host.set_link(&port.name, &change));
    }
    // A bridge takes on the smallest of its ports by itself until it is told once.
    if bridge.mtu != mtu {
        count(synced, host.set_link(&bridge.name, &change));
    }
    let left: Vec<&str> = all
        .iter()
        .filter(|port| !far_ends.contains(&port.index))
        .map(|port| port.name.as_str())
        .collect();
    if !left.is_empty() {
        let names = left.join(", ");
        tracing::warn!("the pods behind {names} keep their mtu: their namespaces are not found");
    }
    Ok(())
}

fn count(synced: &mut Synced, result: Result<()>) {
    match result {
        Ok(()) => synced.changes += 1,
        // It went away with its pod.
        Err(e) if e.is_not_found() => {}
        Err(e) => synced.failures.push(e.to_string()),
    }
}
