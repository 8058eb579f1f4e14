//! Sends Events for people, beside the writes so that nothing waits for them.

use std::future::Future;

use http::Method;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;

use super::call::{Call, CallError, call};
use crate::note::{Note, Recorder, Saying};

/// Notes that wait to be sent; further ones are dropped, which is logged.
const NOTES_MAX: usize = 1024;

/// The sending end for notes.
#[derive(Clone)]
pub(crate) struct Notes(mpsc::Sender<Note>);

impl Notes {
    pub(crate) fn say(&self, note: Note) {
        if let Err(mpsc::error::TrySendError::Full(note)) = self.0.try_send(note) {
            tracing::warn!(
                reason = note.reason,
                object = note.name,
                "drop an Event: {NOTES_MAX} are waiting"
            );
        }
    }
}

/// A channel for notes and the task that sends what comes through it.
pub(crate) fn channel(client: Client) -> (Notes, impl Future<Output = ()> + Send + 'static) {
    let (notes, mut waiting) = mpsc::channel::<Note>(NOTES_MAX);
    let task = async move {
        let mut recorder = Recorder::default();
        while let Some(note) = waiting.recv().await {
            let saying = recorder.say(&note, Timestamp::now());
            if let Err(failure) = send(&client, saying).await {
                tracing::debug!(reason = note.reason, object = note.name, "{failure}");
            }
        }
    };
    (Notes(notes), task)
}

async fn send(client: &Client, saying: Saying) -> Result<(), CallError> {
    match saying {
        Saying::Create { namespace, event } => create(client, &namespace, &event).await,
        Saying::Count {
            namespace,
            name,
            patch,
            then_create,
        } => {
            let path = format!("/api/v1/namespaces/{namespace}/events/{name}");
            let patched = call(
                client,
                Call::new(Method::PATCH, &path).body("application/merge-patch+json", &patch),
            )
            .await;
            match patched {
                // Events expire: then it is said anew.
                Err(failure) if failure.code == 404 => {
                    create(client, &namespace, &then_create).await
                }
                other => other.map(|_| ()),
            }
        }
    }
}

async fn create(
    client: &Client,
    namespace: &str,
    event: &serde_json::Value,
) -> Result<(), CallError> {
    let path = format!("/api/v1/namespaces/{namespace}/events");
    call(
        client,
        Call::new(Method::POST, &path).body("application/json", event),
    )
    .await
    .map(|_| ())
}
