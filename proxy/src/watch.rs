//! List and watch: from an API server or from a directory of files to one stream of events.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::networking::ServiceCidr;
use client::{Client, Resource, Selection};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc::Sender;

use crate::manifests::{Manifests, ManifestsError};
use crate::model::service::{ANNOTATION_BALANCING, ANNOTATION_TABLE_SIZE};
use crate::store::{Input, LABEL_HEADLESS, LABEL_OTHER_PROXY};
use crate::sync::Message;

/// Other annotations than ours are read by nobody here, and `kubectl apply` keeps a whole copy of the
/// object there.
fn slim(mut service: Service) -> Service {
    let ours = [ANNOTATION_BALANCING, ANNOTATION_TABLE_SIZE];
    let annotations = &mut service.metadata.annotations;
    annotations.retain(|name, _| ours.contains(&name.as_str()));
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
        let received = Instant::now();
        if let Some(also) = &self.also {
            for input in &inputs {
                also(input);
            }
        }
        let message = Message::Inputs { inputs, received };
        self.messages.send(message).await.is_ok()
    }
}

/// The services that have rules: headless ones have none.
const FIELDS: &str = "spec.clusterIP!=None";

/// How long an API server that does not answer is left alone.
const PROBE_REST: Duration = Duration::from_secs(1);

/// An API server that has no ServiceCIDRs is asked again after this time: it may have been updated.
const ABSENT_REST: Duration = Duration::from_secs(300);

/// Watches an API server, for ever. DNS wants to know of services, too, that have no rules.
pub async fn api_server(client: Client, node: &str, for_dns: bool, sink: Sink) {
    tokio::spawn(service_cidrs(client.clone(), sink.clone()));
    let (of_services, of_slices) = if for_dns {
        (Selection::default(), Selection::default())
    } else {
        let services = services_selection(&client).await;
        (services, Selection::labels(format!("!{LABEL_HEADLESS}")))
    };
    let services = client
        .watch::<Service>(Resource::SERVICES, of_services)
        .map(|event| Input::Service(event.map(|service| Arc::new(slim(service)))));
    let slices = client
        .watch::<EndpointSlice>(Resource::ENDPOINT_SLICES, of_slices)
        .map(|event| Input::Slice(event.map(Arc::new)));
    let own = Selection::fields(format!("metadata.name={node}"));
    let nodes = client
        .watch::<Node>(Resource::NODES, own)
        .map(|event| Input::Node(event.map(Arc::new)));
    let all = futures::stream::select(services, futures::stream::select(slices, nodes));
    pass_on(all, &sink).await;
}

/// Passes events on that are there already together.
async fn pass_on(events: impl Stream<Item = Input> + Unpin, sink: &Sink) {
    let mut all = events.ready_chunks(EVENTS_TOGETHER);
    while let Some(inputs) = all.next().await {
        if !sink.send(inputs).await {
            return;
        }
    }
}

/// Selects services as kube-proxy does. Servers of before 1.31 cannot select by cluster IP.
async fn services_selection(client: &Client) -> Selection {
    let labels = format!("!{LABEL_OTHER_PROXY}");
    let selection = Selection::labels(labels);
    let fields = Selection {
        fields: FIELDS.to_owned(),
        ..selection.clone()
    };
    if can_list(client, Resource::SERVICES, &fields).await {
        fields
    } else {
        tracing::info!("the API server cannot select services by {FIELDS}: all are watched");
        selection
    }
}

/// ServiceCIDRs, which older API servers do not have, or keep from us.
async fn service_cidrs(client: Client, sink: Sink) {
    let resource = Resource::of::<ServiceCidr>();
    let mut told = false;
    while !can_list(&client, resource, &Selection::default()).await {
        if !told {
            tracing::info!("no ServiceCIDRs can be read: networks of cluster IPs are not known");
            told = true;
        }
        tokio::time::sleep(ABSENT_REST).await;
    }
    let events = client
        .watch::<ServiceCidr>(resource, Selection::default())
        .map(|event| Input::ServiceCidr(event.map(Arc::new)));
    pass_on(events, &sink).await;
}

/// Whether the server lists such objects; waits until it has answered.
async fn can_list(client: &Client, resource: Resource, selection: &Selection) -> bool {
    loop {
        match client.probe(resource, selection).await {
            Ok(()) => return true,
            Err(error) if matches!(error.code(), Some(400 | 403 | 404)) => return false,
            Err(error) => tracing::debug!("{error}"),
        }
        tokio::time::sleep(PROBE_REST).await;
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
