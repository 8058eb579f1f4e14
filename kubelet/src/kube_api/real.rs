//! The API server over the workspace's client.

use client::{Client, Patch, Resource};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};

use super::objects::Objects;
use super::{ApiError, ApiFuture, Data, KubeApi, Token, TokenAsk};
use crate::pod::PodId;
use crate::volumes::payload::Kind;

/// The API server.
pub struct RealApi {
    client: Client,
    objects: Objects,
}

impl RealApi {
    /// Requests go through `client`, objects are kept in `objects`.
    pub fn new(client: Client, objects: Objects) -> Self {
        Self { client, objects }
    }
}

fn error(e: client::Error) -> ApiError {
    if e.is_not_found() {
        ApiError::Gone(e.to_string())
    } else {
        ApiError::Other(e.to_string())
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    token: String,
    expiration_timestamp: Timestamp,
}

impl KubeApi for RealApi {
    fn patch_status<'a>(&'a self, pod: &'a PodId, body: Value) -> ApiFuture<'a, Pod> {
        async move {
            let ns = Some(pod.namespace.as_str());
            let kind = Patch::Strategic;
            let done = self
                .client
                .patch_status(Resource::PODS, ns, &pod.name, kind, &body);
            // A conflict means that the uid is another: our pod is gone.
            done.await.map_err(|e| match e.is_conflict() {
                true => ApiError::Gone(e.to_string()),
                false => error(e),
            })
        }
        .boxed()
    }

    fn delete_pod<'a>(&'a self, pod: &'a PodId) -> ApiFuture<'a, ()> {
        async move {
            let ns = Some(pod.namespace.as_str());
            let done = self
                .client
                .delete(Resource::PODS, ns, &pod.name, Some(0), Some(&pod.uid));
            done.await.map_err(|e| match e.is_conflict() {
                true => ApiError::Gone(e.to_string()),
                false => error(e),
            })
        }
        .boxed()
    }

    fn token<'a>(&'a self, ask: &'a TokenAsk) -> ApiFuture<'a, Token> {
        async move {
            let audiences: Vec<_> = Some(&ask.audience).filter(|a| !a.is_empty()).into_iter().collect();
            let body = json!({
                "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
                "spec": {
                    "audiences": audiences, "expirationSeconds": ask.expiration_seconds,
                    "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": ask.pod.name, "uid": ask.pod.uid},
                },
            });
            let ns = Some(ask.pod.namespace.as_str());
            let accounts = Resource::SERVICE_ACCOUNTS;
            let answer: TokenAnswer = self
                .client
                .create_part(accounts, ns, &ask.account, "token", &body)
                .await
                .map_err(error)?;
            Ok(Token {
                text: answer.status.token,
                expires: answer.status.expiration_timestamp,
            })
        }
        .boxed()
    }

    fn object<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
        name: &'a str,
        user: &'a str,
    ) -> ApiFuture<'a, Option<Data>> {
        self.objects.get(kind, namespace, name, user).boxed()
    }

    fn release(&self, user: &str) {
        self.objects.release(user);
    }
}
