//! What the kubelet wants of the API server, as a trait: implemented over kube's client (`real`) and by the
//! fake of the tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::pod::PodId;
use crate::volumes::payload::Kind;

#[cfg(test)]
pub mod fake;
pub mod objects;
pub mod real;

/// What the API server answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 404, or 409 because another object has that name.
    #[error("{0}")]
    Gone(String),
    /// Anything else; worth another try.
    #[error("{0}")]
    Other(String),
}

/// Result of a request.
pub type ApiFuture<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// Data of a ConfigMap or Secret.
pub type Data = Arc<BTreeMap<String, Vec<u8>>>;

/// A service account token to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenAsk {
    /// The pod it is bound to.
    pub pod: PodId,
    /// spec.serviceAccountName
    pub account: String,
    /// Empty means the API server's own.
    pub audience: String,
    /// Wanted life time.
    pub expiration_seconds: i64,
}

/// A token and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub text: String,
    /// Not valid after.
    pub expires: Timestamp,
}

/// The API server as a pod's worker sees it.
pub trait KubeApi: Send + Sync {
    /// Patches pods/status with a strategic merge patch.
    fn patch_status<'a>(&'a self, pod: &'a PodId, body: Value) -> ApiFuture<'a, Pod>;
    /// Removes the object for good (grace period 0, only this uid).
    fn delete_pod<'a>(&'a self, pod: &'a PodId) -> ApiFuture<'a, ()>;
    /// Asks for a service account token.
    fn token<'a>(&'a self, ask: &'a TokenAsk) -> ApiFuture<'a, Token>;
    /// Data of a ConfigMap or Secret for pod `user`; `None` when there is no such object. From then on
    /// the object is watched until [`KubeApi::release`].
    fn object<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
        name: &'a str,
        user: &'a str,
    ) -> ApiFuture<'a, Option<Data>>;
    /// Pod `user` needs no object any more.
    fn release(&self, user: &str);
}
