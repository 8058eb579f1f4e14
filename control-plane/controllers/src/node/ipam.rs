//! Gives every node its own slice of each cluster CIDR.
//!
//! What is taken is read from the nodes themselves, so a restart forgets nothing and a removed node frees its slice.
//! A slice that was sent to a node and not yet seen there is held in `View::reserved`.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::note::Note;
use crate::view::{Key, Now, View};
use crate::write::{Plan, Write};

const COMPONENT: &str = "cidrAllocator";

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    let Touch::Node { new, .. } = touch else {
        return;
    };
    match new {
        Some(node) if cidrs(node).is_empty() => {
            wake.insert(Key::of(&node.metadata));
        }
        Some(_) => {}
        // A slice became free.
        None => wake.extend(
            view.nodes
                .values()
                .filter(|it| cidrs(it).is_empty())
                .map(|it| Key::of(&it.metadata)),
        ),
    }
}

pub(crate) fn reconcile(view: &View, key: &Key, _: Now) -> Plan {
    let Some(node) = view.nodes.get(key) else {
        return Plan::nothing();
    };
    if !cidrs(node).is_empty() || meta::is_deleting(&node.metadata) {
        return Plan::nothing();
    }
    if view.config.cluster_cidrs.is_empty() {
        return Plan::nothing();
    }
    let uid = meta::uid(&node.metadata);
    let slices = match view.reserved.get(uid) {
        Some(slices) => Some(slices.clone()),
        None => allocate_all(view, uid),
    };
    let Some(slices) = slices else {
        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
        let note = Note::new(
            Kind::Node,
            &node.metadata,
            COMPONENT,
            "CIDRNotAvailable",
            message,
        );
        return Plan::of(vec![Write::Event(note.warning())]);
    };
    let texts: Vec<String> = slices.iter().map(ToString::to_string).collect();
    Plan::of(vec![Write::AssignPodCidrs {
        node: key.name.clone(),
        uid: uid.to_owned(),
        cidrs: slices,
        body: json!({
            "metadata": {"uid": uid},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        }),
    }])
}

/// The pod CIDRs a node has; both fields are read, the plural one counts.
fn cidrs(node: &Node) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let many = spec.pod_cidrs.iter().flatten();
    let one = spec.pod_cidr.iter();
    many.chain(one)
        .filter_map(|text| text.parse().ok())
        .collect()
}

fn allocate_all(view: &View, uid: &str) -> Option<Vec<IpNetwork>> {
    let mut used: Vec<IpNetwork> = view.nodes.values().flat_map(|node| cidrs(node)).collect();
    let others = view
        .reserved
        .iter()
        .filter(|(owner, _)| owner.as_str() != uid);
    used.extend(others.flat_map(|(_, slices)| slices.iter().copied()));
    used.extend(&view.config.service_cidrs);
    view.config
        .cluster_cidrs
        .iter()
        .map(|cluster| {
            let mask = match cluster {
                IpNetwork::V4(_) => view.config.node_mask_size_v4,
                IpNetwork::V6(_) => view.config.node_mask_size_v6,
            };
            allocate(*cluster, mask, &used)
        })
        .collect()
}

/// The first slice of `cluster` with prefix length `mask` that overlaps nothing in `used`.
pub(crate) fn allocate(cluster: IpNetwork, mask: u8, used: &[IpNetwork]) -> Option<IpNetwork> {
    let width = if cluster.is_ipv4() { 32 } else { 128 };
    if mask < cluster.prefix() || mask > width {
        return None;
    }
    let step = 128 - u32::from(width - mask);
    let size = 1_u128.checked_shl(128 - step)?;
    let (first, last) = bounds(cluster);
    // Taken ranges by first address: one pass finds the first gap.
    let taken: BTreeMap<u128, u128> = used
        .iter()
        .filter(|net| net.is_ipv4() == cluster.is_ipv4())
        .map(|net| bounds(*net))
        .filter(|(start, end)| *start <= last && *end >= first)
        .fold(BTreeMap::new(), |mut taken, (start, end)| {
            let known = taken.entry(start).or_insert(end);
            *known = end.max(*known);
            taken
        });
    let mut candidate = first;
    for (start, end) in taken {
        if start > candidate.checked_add(size - 1)? {
            break;
        }
        if end >= candidate {
            // The next slice boundary after the taken range.
            candidate = first + (end - first + 1).div_ceil(size).checked_mul(size)?;
        }
    }
    if candidate > last || candidate.checked_add(size - 1)? > last {
        return None;
    }
    network(candidate, mask, cluster.is_ipv4())
}

fn bounds(net: IpNetwork) -> (u128, u128) {
    match net {
        IpNetwork::V4(net) => (
            u128::from(u32::from(net.network())),
            u128::from(u32::from(net.broadcast())),
        ),
        IpNetwork::V6(net) => {
            let first = u128::from(net.network());
            let host = u128::MAX.checked_shr(u32::from(net.prefix())).unwrap_or(0);
            (first, first | host)
        }
    }
}

fn network(address: u128, prefix: u8, v4: bool) -> Option<IpNetwork> {
    if v4 {
        let address = u32::try_from(address).ok()?;
        Ipv4Network::new(address.into(), prefix)
            .ok()
            .map(IpNetwork::V4)
    } else {
        Ipv6Network::new(address.into(), prefix)
            .ok()
            .map(IpNetwork::V6)
    }
}

#[cfg(test)]
mod tests;
