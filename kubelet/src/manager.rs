//! Who works on which pod: starts a worker for each pod of the node, passes on what happens, and at the start
//! takes down what is left of pods that went away meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::watch::Event;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use crate::checkpoint;
use crate::context::{Context, blocking};
use crate::pod::PodId;
use crate::rt::RtEvent;
use crate::worker::{self, Handle, Msg};

/// Messages that may wait.
const QUEUE: usize = 64;

/// What the manager listens to.
pub struct Inputs {
    /// The node's pods.
    pub pods: BoxStream<'static, Event<Pod>>,
    /// Changes of containers.
    pub runtime: mpsc::Receiver<RtEvent>,
    /// Pods that use an object that changed.
    pub objects: mpsc::Receiver<Vec<String>>,
    /// Something that failed steps wait for has come: a network configuration, an image.
    pub retry: mpsc::Receiver<()>,
}

/// The manager.
pub struct Manager {
    ctx: Context,
    workers: BTreeMap<String, Handle>,
    listed: BTreeSet<String>,
    orphans_seen: bool,
    ended: (mpsc::Sender<String>, mpsc::Receiver<String>),
}

impl Manager {
    /// One with no workers yet.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            workers: BTreeMap::new(),
            listed: BTreeSet::new(),
            orphans_seen: false,
            ended: mpsc::channel(QUEUE),
        }
    }

    /// Works until an input ends.
    pub async fn run(mut self, mut inputs: Inputs) {
        loop {
            tokio::select! {
                event = inputs.pods.next() => match event {
                    Some(event) => self.pod(event).await,
                    None => return,
                },
                event = inputs.runtime.recv() => match event {
                    Some(RtEvent::Changed(uid)) => self.tell(&uid, Msg::Facts).await,
                    Some(RtEvent::All) => self.tell_all(|| Msg::Facts).await,
                    None => return,
                },
                uids = inputs.objects.recv() => match uids {
                    Some(uids) => for uid in uids {
                        self.tell(&uid, Msg::Object).await;
                    },
                    None => return,
                },
                retry = inputs.retry.recv() => match retry {
                    Some(()) => self.tell_all(|| Msg::Retry).await,
                    None => return,
                },
                uid = self.ended.1.recv() => if let Some(uid) = uid {
                    self.workers.remove(&uid);
                    tracing::debug!(uid, "nothing is left of the pod");
                },
            }
        }
    }

    async fn tell(&self, uid: &str, msg: Msg) {
        if let Some(worker) = self.workers.get(uid) {
            worker.tell(msg).await;
        }
    }

    async fn tell_all(&self, msg: impl Fn() -> Msg) {
        for worker in self.workers.values() {
            worker.tell(msg()).await;
        }
    }

    async fn pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(PodId::of(&pod).uid);
                self.apply(pod).await;
            }
            Event::InitDone => {
                let gone: Vec<_> = self
                    .workers
                    .keys()
                    .filter(|uid| !self.listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.tell(&uid, Msg::Gone).await;
                }
                if !std::mem::replace(&mut self.orphans_seen, true) {
                    self.take_down_orphans().await;
                }
            }
            Event::Apply(pod) => self.apply(pod).await,
            Event::Delete(pod) => {
                let uid = PodId::of(&pod).uid;
                if self.workers.contains_key(&uid) {
                    self.tell(&uid, Msg::Pod(slim(pod))).await;
                    self.tell(&uid, Msg::Gone).await;
                }
            }
        }
    }

    async fn apply(&mut self, pod: Pod) {
        let id = PodId::of(&pod);
        let pod = slim(pod);
        match self.workers.get(&id.uid) {
            Some(worker) => worker.tell(Msg::Pod(pod)).await,
            None => {
                tracing::info!(pod = %id, uid = id.uid, "pod");
                let worker = worker::spawn(self.ctx.clone(), pod, self.ended.0.clone());
                self.workers.insert(id.uid, worker);
            }
        }
    }

    /// Pods the runtime or the disk knows and the API does not.
    async fn take_down_orphans(&mut self) {
        let ctx = self.ctx.clone();
        let found = blocking(move || {
            let root = &ctx.node.root_dir;
            let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
            match ctx.rt.pods() {
                Ok(all) => {
                    for known in all {
                        pods.insert(known.pod.uid.clone(), stand_in(&known.pod));
                    }
                }
                Err(e) => tracing::warn!(error = %e, "cannot list the runtime's pods"),
            }
            for uid in checkpoint::uids(root) {
                let pod = match checkpoint::load(root, &uid) {
                    Some(record) => record.pod,
                    None => pods.remove(&uid).unwrap_or_else(|| {
                        stand_in(&PodId {
                            uid: uid.clone(),
                            namespace: "unknown".to_owned(),
                            name: "unknown".to_owned(),
                        })
                    }),
                };
                pods.insert(uid, pod);
            }
            pods
        });
        for (uid, pod) in found.await {
            if self.workers.contains_key(&uid) {
                continue;
            }
            tracing::info!(pod = %PodId::of(&pod), uid, "taking down a pod that is gone from the API");
            let worker = worker::spawn(self.ctx.clone(), Arc::new(pod), self.ended.0.clone());
            worker.tell(Msg::Gone).await;
            self.workers.insert(uid, worker);
        }
    }
}

/// Without what nobody here reads.
fn slim(mut pod: Pod) -> Arc<Pod> {
    pod.metadata.managed_fields = None;
    Arc::new(pod)
}

/// A pod of which only the name is known.
fn stand_in(id: &PodId) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(id.uid.clone());
    pod.metadata.namespace = Some(id.namespace.clone());
    pod.metadata.name = Some(id.name.clone());
    pod
}
