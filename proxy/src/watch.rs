//! List and watch: from an API server or from a directory of files to one stream of events.

use std::path::Path;
use std::sync::Arc;

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::watch::Event;
use client::{Client, Resource, Selection};
use futures::StreamExt;
use tokio::sync::mpsc::Sender;

use crate::manifests::{Manifests, ManifestsError};
use crate::store::{Input, LABEL_HEADLESS, LABEL_OTHER_PROXY};
use crate::sync::Message;

/// Annotations are read by nobody here, and `kubectl apply` keeps a whole copy of the object there.
fn slim(mut service: Service) -> Service {
    service.metadata.annotations.clear();
    service
}

/// Someone who sees events before the loop does.
pub type Listener = Arc<dyn Fn(&Input) + Send + Sync>;

/// Where events go: to the loop, and to whoever else wants them.
#[derive(Clone)]
pub struct Sink {
    /// The loop.
    pub messages: Sender<Message>,
    /// Cluster DNS.
    pub also: Option<Listener>,
}

impl Sink {
    /// Passes events on; false when nobody is there any more.
    pub async fn send(&self, inputs: Vec<Input>) -> bool {
        if let Some(also) = &self.also {
            for input in &inputs {
                also(input);
            }
        }
        self.messages.send(Message::Inputs(inputs)).await.is_ok()
    }
}

/// Watches an API server, for ever. DNS wants to know of services, too, that have no rules.
pub async fn api_server(client: Client, node: &str, for_dns: bool, sink: Sink) {
    let selection = |label: &str| {
        if for_dns {
            Selection::default()
        } else {
            Selection::labels(format!("!{label}"))
        }
    };
    let services = client
        .watch::<Service>(Resource::SERVICES, selection(LABEL_OTHER_PROXY))
        .map(|event| Input::Service(event.map(|service| Arc::new(slim(service)))));
    let slices = client
        .watch::<EndpointSlice>(Resource::ENDPOINT_SLICES, selection(LABEL_HEADLESS))
        .map(|event| Input::Slice(event.map(Arc::new)));
    let own = Selection::fields(format!("metadata.name={node}"));
    let nodes = client
        .watch::<Node>(Resource::NODES, own)
        .map(|event| Input::Node(event.map(Arc::new)));
    let all = futures::stream::select(services, futures::stream::select(slices, nodes));
    // Events that are there already go together.
    let mut all = all.ready_chunks(EVENTS_TOGETHER);
    while let Some(inputs) = all.next().await {
        if !sink.send(inputs).await {
            return;
        }
    }
}

/// Events passed on in one message.
const EVENTS_TOGETHER: usize = 256;

/// Watches a directory of files on a thread of its own.
///
/// # Errors
/// The directory cannot be watched, or the thread not be started.
pub fn manifests(dir: &Path, sink: Sink) -> Result<(), ManifestsError> {
    let mut manifests = Manifests::open(dir)?;
    let watched = dir.to_owned();
    let handle = tokio::runtime::Handle::current();
    let work = move || {
        if !handle.block_on(sink.send(manifests.list())) {
            return;
        }
        loop {
            match manifests.changes() {
                Ok(inputs) if inputs.is_empty() => {}
                Ok(inputs) => {
                    if !handle.block_on(sink.send(inputs)) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!("{error}; changes of {} are not seen", watched.display());
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|source| ManifestsError {
            dir: dir.to_owned(),
            what: "start a thread",
            source,
        })
}

/// Whether an event says that the own node is being taken away; `None`: it says nothing about it.
pub fn node_goes(input: &Input) -> Option<bool> {
    const AUTOSCALER: &str = "ToBeDeletedByClusterAutoscaler";
    match input {
        Input::Node(Event::InitApply(node) | Event::Apply(node)) => Some(
            node.metadata.deletion_timestamp.is_some()
                || node.spec.taints.iter().any(|taint| taint.key == AUTOSCALER),
        ),
        _ => None,
    }
}
