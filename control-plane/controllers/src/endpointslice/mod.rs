//! EndpointSlices: who stands behind each Service that has a selector.
//!
//! The older Endpoints objects are not written: nothing of Seaway and no current client reads them.

mod endpoints;
mod pack;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde_json::{Map, Value, json};

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::view::{Key, Now, View};
use crate::write::{PatchKind, Plan, Target, Write, precondition};
use endpoints::{Family, desired};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Service {
            new: Some(service), ..
        } => {
            wake.insert(Key::of(&service.metadata));
        }
        Touch::Pod { old, new } => {
            let (before, after) = (old.as_deref().map(relevant), new.as_deref().map(relevant));
            if before != after {
                for pod in old.iter().chain(new) {
                    wake.extend(services_of(view, pod));
                }
            }
        }
        Touch::EndpointSlice { old, new } => {
            if let Some(slice) = new.as_ref().or(old.as_ref())
                && is_ours(slice)
                && let Some(service) = meta::label(&slice.metadata, SERVICE_NAME)
            {
                wake.insert(Key::new(meta::namespace(&slice.metadata), service));
            }
        }
        Touch::Node { old, new } if zone(old.as_deref()) != zone(new.as_deref()) => {
            let Some(node) = new.as_ref().or(old.as_ref()) else {
                return;
            };
            for (_, pod) in view.pods_on(meta::name(&node.metadata)) {
                wake.extend(services_of(view, pod));
            }
        }
        _ => {}
    }
}

/// What of a pod shows in an endpoint.
fn relevant(pod: &Pod) -> impl PartialEq + use<> {
    let spec = pod.spec.as_ref();
    (
        pod.metadata.uid.clone(),
        pod.metadata.labels.clone(),
        meta::is_deleting(&pod.metadata),
        meta::pod_finished(pod),
        meta::pod_ready(pod),
        spec.map(|spec| {
            (
                spec.node_name.clone(),
                spec.hostname.clone(),
                spec.subdomain.clone(),
            )
        }),
        pod.status
            .as_ref()
            .map(|status| (status.pod_ip.clone(), status.pod_ips.clone())),
    )
}

fn services_of(view: &View, pod: &Pod) -> Vec<Key> {
    view.services
        .in_namespace(meta::namespace(&pod.metadata))
        .filter(|(_, service)| selects(service, pod))
        .map(|(key, _)| key.clone())
        .collect()
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service
        .spec
        .as_ref()?
        .selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector(service).is_some_and(|selector| {
        selector
            .iter()
            .all(|(key, value)| labels.and_then(|it| it.get(key)) == Some(value))
    })
}

fn zone(node: Option<&Node>) -> Option<&str> {
    meta::label(&node?.metadata, ZONE)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    meta::label(&slice.metadata, MANAGED_BY) == Some(MANAGER)
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(service) = view.services.get(key) else {
        return Plan::nothing();
    };
    let external = service.spec.as_ref().and_then(|it| it.type_.as_deref()) == Some("ExternalName");
    if selector(service).is_none() || external || meta::is_deleting(&service.metadata) {
        return Plan::nothing();
    }
    let pods: Vec<&Arc<Pod>> = view
        .pods
        .in_namespace(&key.namespace)
        .map(|(_, pod)| pod)
        .filter(|pod| selects(service, pod))
        .collect();
    let zones = |node: &str| zone(view.nodes.named("", node).map(Arc::as_ref)).map(str::to_owned);
    let mut existing: Vec<Arc<EndpointSlice>> = view
        .slices
        .controlled_by(meta::uid(&service.metadata))
        .filter(|slice| is_ours(slice) && !meta::is_deleting(&slice.metadata))
        .cloned()
        .collect();
    let labels = labels(service);
    let mut plan = Plan::nothing();
    for family in endpoints::families(service) {
        let (same, others) = existing
            .into_iter()
            .partition(|slice| slice.address_type == family.address_type());
        existing = others;
        let wanted = desired(service, family, &pods, &zones);
        let render = Render {
            service,
            family,
            labels: &labels,
            now,
        };
        plan.writes.extend(
            pack::pack(same, wanted)
                .into_iter()
                .filter_map(|it| render.write(it)),
        );
    }
    // The service does not have that family any more.
    plan.writes
        .extend(existing.iter().map(|slice| delete(slice)));
    plan
}

/// What is to become of a slice.
#[derive(Debug)]
enum Packed {
    Create {
        ports: Vec<EndpointPort>,
        endpoints: Vec<Endpoint>,
    },
    /// The slice as it is, and the endpoints it should have; they may be the same.
    Keep {
        slice: Arc<EndpointSlice>,
        endpoints: Vec<Endpoint>,
    },
    Delete {
        slice: Arc<EndpointSlice>,
    },
}

/// The labels of a service's slices: the service's own, and those that say what they are.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(
        SERVICE_NAME.to_owned(),
        meta::name(&service.metadata).to_owned(),
    );
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if endpoints::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

struct Render<'a> {
    service: &'a Service,
    family: Family,
    labels: &'a BTreeMap<String, String>,
    now: Now,
}

impl Render<'_> {
    fn write(&self, packed: Packed) -> Option<Write> {
        match packed {
            Packed::Create { ports, endpoints } => Some(self.create(&ports, &endpoints)),
            Packed::Delete { slice } => Some(delete(&slice)),
            Packed::Keep { slice, endpoints } => self.update(&slice, &endpoints),
        }
    }

    fn create(&self, ports: &[EndpointPort], endpoints: &[Endpoint]) -> Write {
        let owner = &self.service.metadata;
        Write::Create {
            kind: Kind::EndpointSlice,
            namespace: meta::namespace(owner).to_owned(),
            object: Box::new(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "generateName": format!("{}-", meta::name(owner)),
                    "namespace": meta::namespace(owner),
                    "labels": self.labels,
                    "annotations": {TRIGGER_TIME: self.now.wall.to_string()},
                    "ownerReferences": [meta::owner_reference(Kind::Service, owner)],
                },
                "addressType": self.family.address_type(),
                "endpoints": endpoints,
                "ports": ports,
            })),
            announce: None,
        }
    }

    /// Ports never change: a slice with other ports is another slice.
    fn update(&self, slice: &EndpointSlice, endpoints: &[Endpoint]) -> Option<Write> {
        let mut body = json!({"metadata": precondition(&slice.metadata)});
        let mut changed = false;
        if slice.endpoints.as_deref().unwrap_or_default() != endpoints {
            body["endpoints"] = json!(endpoints);
            body["metadata"]["annotations"] = json!({TRIGGER_TIME: self.now.wall.to_string()});
            changed = true;
        }
        let labels = self.label_changes(slice);
        if !labels.is_empty() {
            body["metadata"]["labels"] = Value::Object(labels);
            changed = true;
        }
        changed.then(|| Write::Patch {
            target: Target::of(Kind::EndpointSlice, &slice.metadata),
            subresource: None,
            how: PatchKind::Merge,
            body,
        })
    }

    fn label_changes(&self, slice: &EndpointSlice) -> Map<String, Value> {
        let known = slice.metadata.labels.as_ref();
        let mut changes = Map::new();
        for (key, value) in self.labels {
            if known.and_then(|known| known.get(key)) != Some(value) {
                changes.insert(key.clone(), json!(value));
            }
        }
        for key in known.into_iter().flat_map(BTreeMap::keys) {
            if !self.labels.contains_key(key) {
                changes.insert(key.clone(), Value::Null);
            }
        }
        changes
    }
}

fn delete(slice: &EndpointSlice) -> Write {
    Write::Delete {
        target: Target::of(Kind::EndpointSlice, &slice.metadata),
        uid: meta::uid(&slice.metadata).to_owned(),
        grace_seconds: None,
        propagation: None,
        announce: None,
    }
}

#[cfg(test)]
mod tests;
