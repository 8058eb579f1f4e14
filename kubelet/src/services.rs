//! The services of the cluster, for the variables containers get.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::Service as Object;
use api::watch::Event;
use client::{Client, Resource, Selection};
use futures::StreamExt;
use tokio::sync::watch;

use crate::context::Services;
use crate::env::Service;

type Map = BTreeMap<(String, String), Service>;

fn entry(object: Object) -> ((String, String), Service) {
    let port = |p: &api::core::ServicePort| {
        let number = i32::try_from(p.port).unwrap_or_default();
        (p.name.clone(), number, p.protocol.clone())
    };
    let service = Service {
        name: object.metadata.name.clone(),
        ports: object.spec.ports.iter().map(port).collect(),
        cluster_ip: object.spec.cluster_ip,
    };
    ((object.metadata.namespace, object.metadata.name), service)
}

/// Follows the services until nobody listens.
pub async fn run(client: Client, tell: watch::Sender<Services>) {
    let mut events = client.watch::<Object>(Resource::SERVICES, Selection::default());
    let mut all = Map::new();
    let mut listed = Map::new();
    let mut ready = false;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => listed.extend([entry(object)]),
            Event::InitDone => {
                all = std::mem::take(&mut listed);
                ready = true;
            }
            Event::Apply(object) => all.extend([entry(object)]),
            Event::Delete(object) => {
                all.remove(&entry(object).0);
            }
        }
        if !ready {
            continue;
        }
        // Containers that start read it; copying at each change keeps what they hold whole.
        if tell.send(Some(Arc::new(all.clone()))).is_err() {
            return;
        }
    }
}
