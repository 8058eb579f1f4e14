//! Carries out writes: the only place of the controllers that changes the cluster.

use std::sync::Arc;

use futures::future::join_all;
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::brain::{Answer, Done, Job};
use super::call::{Call, CallError, call};
use super::events::Notes;
use super::watch::Resources;
use crate::kinds::Kind;
use crate::resources::ResourceInfo;
use crate::write::{Announce, PatchKind, Propagation, Target, Write};

mod namespace;

pub(crate) use namespace::describe;

/// Creations sent at once at first; doubles while they succeed, so that a quota is not hit 500 times (upstream's
/// slow start).
const CREATE_BATCH_FIRST: usize = 1;

/// Carries out jobs; shared by all that run.
pub(crate) struct Applier {
    client: Client,
    notes: Notes,
    resources: watch::Sender<Resources>,
}

impl Applier {
    pub(crate) fn new(client: Client, notes: Notes) -> Self {
        Self {
            client,
            notes,
            resources: watch::Sender::new(Arc::default()),
        }
    }

    /// Where discovery puts what it has found.
    pub(crate) fn resources(&self) -> watch::Sender<Resources> {
        self.resources.clone()
    }

    fn known_resources(&self) -> Arc<Vec<ResourceInfo>> {
        Arc::clone(&self.resources.borrow())
    }

    /// Carries out the writes of a job in order, creations that follow each other side by side. The first failure
    /// ends it: what follows may depend on it.
    pub(crate) async fn run(self: Arc<Self>, job: Job) -> Done {
        let mut answers = Vec::with_capacity(job.writes.len());
        let mut next = 0;
        let mut batch = CREATE_BATCH_FIRST;
        while next < job.writes.len() {
            let creates = job.writes[next..]
                .iter()
                .take_while(|write| matches!(write, Write::Create { .. }))
                .count();
            let side_by_side = creates.min(batch).max(1);
            if creates > 0 {
                batch = batch.saturating_mul(2);
            }
            let writes = &job.writes[next..next + side_by_side];
            next += side_by_side;
            let mut failure = None;
            for result in join_all(writes.iter().map(|write| self.write(write))).await {
                match result {
                    Ok(answer) => answers.push(answer),
                    Err(error) => failure = Some(failure.unwrap_or(error)),
                }
            }
            if let Some(error) = failure {
                return job.ended(answers, Some(error.failure()));
            }
        }
        job.ended(answers, None)
    }

    async fn write(&self, write: &Write) -> Result<Answer, CallError> {
        match write {
            Write::Create {
                kind,
                namespace,
                object,
                announce,
            } => {
                let result = self.create(*kind, namespace, object).await;
                self.announce(announce.as_deref(), &result, |answer| match answer {
                    Answer::Created(object) => object.meta().name.clone().unwrap_or_default(),
                    _ => String::new(),
                });
                result
            }
            Write::Patch {
                target,
                subresource,
                how,
                body,
            } => self.patch(target, *subresource, *how, body).await,
            Write::Delete {
                target,
                uid,
                grace_seconds,
                propagation,
                announce,
            } => {
                let result = self.delete(target, uid, *grace_seconds, *propagation).await;
                self.announce(announce.as_deref(), &result, |_| target.name.clone());
                result
            }
            Write::Bind {
                namespace,
                pod,
                uid,
                node,
            } => self.bind(namespace, pod, uid, node).await,
            Write::AssignPodCidrs { node, body, .. } => {
                let target = Target::new(Kind::Node, "", node);
                self.patch(&target, None, PatchKind::Merge, body).await
            }
            Write::Event(note) => {
                self.notes.say(note.clone());
                Ok(Answer::Nothing)
            }
            Write::ProbeOwner { target, uid } => self.probe(target, uid).await,
            Write::EmptyNamespace { name, uid } => {
                let remaining = namespace::empty(&self.client, &self.known_resources(), name).await;
                Ok(Answer::Emptied {
                    uid: uid.clone(),
                    remaining,
                })
            }
            Write::FinalizeNamespace { name } => namespace::finalize(&self.client, name).await,
        }
    }

    fn announce(
        &self,
        announce: Option<&Announce>,
        result: &Result<Answer, CallError>,
        name: impl Fn(&Answer) -> String,
    ) {
        let Some(announce) = announce else { return };
        let note = match result {
            Ok(answer) => announce.done.as_ref().map(|note| note.with(&name(answer))),
            Err(error) if error.in_terminating_namespace() => None,
            Err(error) => announce
                .failed
                .as_ref()
                .map(|note| note.with(&error.message)),
        };
        if let Some(note) = note {
            self.notes.say(note);
        }
    }

    async fn create(
        &self,
        kind: Kind,
        namespace: &str,
        object: &Value,
    ) -> Result<Answer, CallError> {
        let path = Target::new(kind, namespace, "").path();
        let text = call(
            &self.client,
            Call::new(Method::POST, &path).body("application/json", object),
        )
        .await?;
        Ok(decode(kind, &text).map_or(Answer::Nothing, Answer::Created))
    }

    async fn patch(
        &self,
        target: &Target,
        subresource: Option<&'static str>,
        how: PatchKind,
        body: &Value,
    ) -> Result<Answer, CallError> {
        let mut path = target.path();
        if let Some(subresource) = subresource {
            path.push('/');
            path.push_str(subresource);
        }
        let content_type = match how {
            PatchKind::Merge => "application/merge-patch+json",
            PatchKind::Strategic => "application/strategic-merge-patch+json",
        };
        match call(
            &self.client,
            Call::new(Method::PATCH, &path).body(content_type, body),
        )
        .await
        {
            Ok(text) => Ok(target
                .kind
                .and_then(|kind| decode(kind, &text))
                .map_or(Answer::Nothing, Answer::Changed)),
            // It went away meanwhile; the watch says so.
            Err(error) if error.code == 404 => Ok(Answer::Nothing),
            Err(error) => Err(error),
        }
    }

    async fn delete(
        &self,
        target: &Target,
        uid: &str,
        grace_seconds: Option<i64>,
        propagation: Option<Propagation>,
    ) -> Result<Answer, CallError> {
        let mut options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
        });
        if let Some(seconds) = grace_seconds {
            options["gracePeriodSeconds"] = json!(seconds);
        }
        if let Some(propagation) = propagation {
            options["propagationPolicy"] = json!(match propagation {
                Propagation::Background => "Background",
                Propagation::Foreground => "Foreground",
                Propagation::Orphan => "Orphan",
            });
        }
        let path = target.path();
        let gone = || Answer::Deleted {
            kind: target.kind,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: uid.to_owned(),
        };
        let sent = call(
            &self.client,
            Call::new(Method::DELETE, &path).body("application/json", &options),
        );
        let text = match sent.await {
            Ok(text) => text,
            Err(error) if error.code == 404 => return Ok(gone()),
            Err(error) => return Err(error),
        };
        if is_status(&text) {
            return Ok(gone());
        }
        // Deletion takes time (grace, finalizers): the answer is the object with its deletionTimestamp.
        Ok(target
            .kind
            .and_then(|kind| decode(kind, &text))
            .filter(|object| object.meta().deletion_timestamp.is_some())
            .map_or(Answer::Nothing, Answer::Changed))
    }

    async fn bind(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        node: &str,
    ) -> Result<Answer, CallError> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/binding");
        let body = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod, "namespace": namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        call(
            &self.client,
            Call::new(Method::POST, &path).body("application/json", &body),
        )
        .await
        .map(|_| Answer::Nothing)
    }

    async fn probe(&self, target: &Target, uid: &str) -> Result<Answer, CallError> {
        let path = target.path();
        let present = match call(&self.client, Call::new(Method::GET, &path)).await {
            Ok(text) => serde_json::from_str::<Value>(&text)
                .is_ok_and(|object| object["metadata"]["uid"] == uid),
            Err(error) if error.code == 404 => false,
            Err(error) => return Err(error),
        };
        Ok(Answer::Owner {
            uid: uid.to_owned(),
            present,
        })
    }
}

/// An answer whose object cannot be read is no failure of the write; the watch will tell.
fn decode(kind: Kind, text: &str) -> Option<crate::kinds::Object> {
    match kind.decode(text) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::debug!(kind = kind.name(), "read the answer to a write: {error}");
            None
        }
    }
}

fn is_status(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct TypeMeta {
        #[serde(default)]
        kind: String,
    }
    serde_json::from_str::<TypeMeta>(text).is_ok_and(|meta| meta.kind == "Status")
}

#[cfg(test)]
mod tests;
