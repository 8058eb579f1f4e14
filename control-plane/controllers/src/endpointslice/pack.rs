//! Puts endpoints into slices so that as few slices as possible change.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::Packed;
use super::endpoints::{Desired, port_set, ports_of};

/// Most endpoints in a slice (upstream's default).
pub(super) const ENDPOINTS_MAX: usize = 100;

/// What makes two endpoints the same one, whatever its state: address and pod.
type Identity = (Vec<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone());
    (endpoint.addresses.clone(), uid)
}

/// Decides about the slices of one family: an endpoint stays in the slice it is in, new ones fill slices that change
/// anyway, then slices with room, then new slices. With no endpoint at all one empty slice remains, so that everybody
/// can see that there is none.
pub(super) fn pack(mut existing: Vec<Arc<EndpointSlice>>, mut wanted: Desired) -> Vec<Packed> {
    existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    if wanted.is_empty() {
        let ports = existing
            .first()
            .map(|it| port_set(it.ports.as_deref().unwrap_or_default()));
        wanted.insert(ports.unwrap_or_default(), Vec::new());
    }
    let mut packed = Vec::new();
    for (ports, endpoints) in wanted {
        let (same, others): (Vec<_>, Vec<_>) = existing
            .into_iter()
            .partition(|slice| port_set(slice.ports.as_deref().unwrap_or_default()) == ports);
        existing = others;
        for (slice, endpoints) in fill(same, endpoints) {
            packed.push(match slice {
                Some(slice) => Packed::Keep { slice, endpoints },
                None => Packed::Create {
                    ports: ports_of(&ports),
                    endpoints,
                },
            });
        }
    }
    let mut packed = drop_empty(packed);
    packed.extend(existing.into_iter().map(|slice| Packed::Delete { slice }));
    packed
}

/// Of the slices without endpoints only one may stay, and none if another has endpoints.
fn drop_empty(packed: Vec<Packed>) -> Vec<Packed> {
    let is_empty = |packed: &Packed| match packed {
        Packed::Create { endpoints, .. } | Packed::Keep { endpoints, .. } => endpoints.is_empty(),
        Packed::Delete { .. } => true,
    };
    let mut one_stays = packed.iter().all(is_empty);
    packed
        .into_iter()
        .filter_map(|it| {
            if !is_empty(&it) || std::mem::take(&mut one_stays) {
                return Some(it);
            }
            match it {
                Packed::Keep { slice, .. } => Some(Packed::Delete { slice }),
                other @ Packed::Delete { .. } => Some(other),
                Packed::Create { .. } => None,
            }
        })
        .collect()
}

type Filled = Vec<(Option<Arc<EndpointSlice>>, Vec<Endpoint>)>;

fn fill(slices: Vec<Arc<EndpointSlice>>, endpoints: Vec<Endpoint>) -> Filled {
    let mut waiting: BTreeMap<Identity, Endpoint> = endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    let mut filled: Filled = slices
        .into_iter()
        .map(|slice| {
            let kept = slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|endpoint| waiting.remove(&identity(endpoint)))
                .collect();
            (Some(slice), kept)
        })
        .collect();
    let mut waiting = waiting.into_values();
    let changes = |(slice, kept): &(Option<Arc<EndpointSlice>>, Vec<Endpoint>)| {
        slice
            .as_ref()
            .and_then(|slice| slice.endpoints.as_deref())
            .unwrap_or_default()
            != kept
    };
    let (changing, stable): (Vec<usize>, Vec<usize>) =
        (0..filled.len()).partition(|index| changes(&filled[*index]));
    for index in changing.into_iter().chain(stable) {
        let kept = &mut filled[index].1;
        let room = ENDPOINTS_MAX.saturating_sub(kept.len());
        kept.extend(waiting.by_ref().take(room));
    }
    loop {
        let next: Vec<Endpoint> = waiting.by_ref().take(ENDPOINTS_MAX).collect();
        if next.is_empty() {
            break;
        }
        filled.push((None, next));
    }
    if filled.is_empty() {
        filled.push((None, Vec::new()));
    }
    filled
}
