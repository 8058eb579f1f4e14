//! Connections that policies forbid by now: which they are, and their end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::Result;
use linux::conntrack::{Conntrack, Flow};

use crate::decide::{Packet, allows};
use crate::model::Model;
use crate::objects::Changes;
use crate::parse::Protocol;

/// Whose connections a change may have forbidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspects {
    /// Those of these addresses, none of them maybe.
    Of(BTreeSet<IpAddr>),
    /// All.
    All,
}

/// Whose connections may be forbidden since `changes`. `touched` are the addresses with changes.
///
/// Someone who is allowed more than before is no suspect: an address that only came to sets of pods.
pub fn suspects(changes: &Changes, touched: impl IntoIterator<Item = (IpAddr, bool)>) -> Suspects {
    if !changes.is_elements_only() {
        return Suspects::All;
    }
    let lost = touched.into_iter().filter(|(_, may_lose)| *may_lose);
    Suspects::Of(lost.map(|(ip, _)| ip).collect())
}

/// Whether a connection is forbidden. `node` are the node's own addresses: what it says and hears
/// itself is not judged.
pub fn is_forbidden(model: &Model, flow: &Flow, node: &BTreeSet<IpAddr>) -> bool {
    // The client as it is behind masquerading, the server as it is behind the service's address:
    // so they passed the table.
    let packet = Packet {
        source: flow.original.source.ip(),
        destination: flow.reply.source.ip(),
        protocol: flow.protocol,
        port: flow.reply.source.port(),
    };
    let own = node.contains(&packet.source) || node.contains(&packet.destination);
    !own && !allows(model, &packet)
}

/// Deletes the forbidden connections of `suspects`; tells how many.
///
/// # Errors
/// The kernel's refusal.
pub fn cut(
    conntrack: &mut Conntrack,
    model: &Model,
    suspects: &Suspects,
    node: &BTreeSet<IpAddr>,
) -> Result<usize> {
    if *suspects == Suspects::Of(BTreeSet::new()) {
        return Ok(0);
    }
    let mut count = 0;
    for flow in conntrack.list_all()? {
        let judged = |protocol: Protocol| protocol.number() == flow.protocol;
        let ends = [flow.original.source.ip(), flow.reply.source.ip()];
        let is_suspect = match suspects {
            Suspects::All => true,
            Suspects::Of(ips) => ends.iter().any(|ip| ips.contains(ip)),
        } && Protocol::ALL.into_iter().any(judged);
        if is_suspect && is_forbidden(model, &flow, node) && conntrack.delete(&flow)? {
            tracing::debug!("cut {flow}");
            count += 1;
        }
    }
    Ok(count)
}
