//! Single requests: get, list, create, replace, patch, delete.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::config;
use crate::error::{Error, Result, chain};
use crate::resource::{Resource, Selection};

/// How long a single request may take, from connecting to the last byte of the answer. The API
/// server itself gives up after a minute.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to one API server. Cloning is cheap and shares it.
#[derive(Clone)]
pub struct Client {
    inner: kube::Client,
}

/// How a patch is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// RFC 7386: objects are merged, null removes, lists are replaced.
    Merge,
    /// Kubernetes' own: lists are merged by their keys.
    Strategic,
    /// RFC 6902: a list of operations.
    Json,
}

impl Patch {
    fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Json => "application/json-patch+json",
        }
    }
}

impl Client {
    /// Connects as the kubeconfig at `path` says, or as the pod's service account without one.
    /// Nothing is sent yet: an absent server is not an error here. Needs a tokio runtime.
    ///
    /// # Errors
    /// A broken configuration, in one line that names the file and the field.
    pub async fn connect(path: Option<&Path>) -> Result<Self> {
        Self::connect_to(path, None).await
    }

    /// The same, to the API server at the URL `server` whatever the kubeconfig says. With a server
    /// and no kubeconfig, as nobody.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_to(path: Option<&Path>, server: Option<&str>) -> Result<Self> {
        Ok(Self {
            inner: config::load(path, server).await?,
        })
    }

    /// A client over a connection made elsewhere.
    pub fn new(inner: kube::Client) -> Self {
        config::install_crypto();
        Self { inner }
    }

    /// The namespace that the kubeconfig names, else `default`.
    pub fn default_namespace(&self) -> &str {
        self.inner.default_namespace()
    }

    /// One object.
    ///
    /// # Errors
    /// The server's refusal, no answer, or an answer that is not a `T`; so for all functions here.
    pub async fn get<T: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<T> {
        let path = resource.path(namespace, Some(name), None);
        self.json(Method::GET, &path, None, None).await
    }

    /// All selected objects. One that is not a `T` is logged and left out.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn list<T: DeserializeOwned>(
        &self,
        resource: Resource,
        selection: &Selection,
    ) -> Result<Vec<T>> {
        crate::watch::list(self, resource, selection).await
    }

    /// Whether the server would list such objects.
    ///
    /// # Errors
    /// As [`Client::get`]: code 400 when it cannot select so, 404 when it has no such kind.
    pub async fn probe(&self, resource: Resource, selection: &Selection) -> Result<()> {
        let path = resource.path(selection.namespace.as_deref(), None, None);
        let query = query(&[
            ("limit", "1"),
            ("labelSelector", &selection.labels),
            ("fieldSelector", &selection.fields),
        ]);
        self.bytes(Method::GET, &path, Some(&query), None).await?;
        Ok(())
    }

    /// Makes an object; gives what the server made of it.
    ///
    /// # Errors
    /// One of this name is there already (`is_exists`); else as [`Client::get`].
    pub async fn create<T: Serialize, R: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        object: &T,
    ) -> Result<R> {
        let path = resource.path(namespace, None, None);
        self.send_json(Method::POST, &path, object).await
    }

    /// Posts to a part of an object, e.g. `token` of a service account or `eviction` of a pod.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn create_part<T: Serialize, R: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        part: &str,
        object: &T,
    ) -> Result<R> {
        let path = resource.path(namespace, Some(name), Some(part));
        self.send_json(Method::POST, &path, object).await
    }

    /// Replaces an object as a whole.
    ///
    /// # Errors
    /// It was changed since `object`'s resourceVersion (`is_conflict`); else as [`Client::get`].
    pub async fn replace<T: Serialize, R: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        object: &T,
    ) -> Result<R> {
        let path = resource.path(namespace, Some(name), None);
        self.send_json(Method::PUT, &path, object).await
    }

    /// Changes parts of an object.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn patch<R: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        kind: Patch,
        patch: &impl Serialize,
    ) -> Result<R> {
        let path = resource.path(namespace, Some(name), None);
        self.send_patch(&path, kind, patch).await
    }

    /// Changes parts of an object's status; nothing else of it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn patch_status<R: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        kind: Patch,
        patch: &impl Serialize,
    ) -> Result<R> {
        let path = resource.path(namespace, Some(name), Some("status"));
        self.send_patch(&path, kind, patch).await
    }

    /// Server-side apply: makes or changes the object as far as `object` says, as `manager`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn apply<R: DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        manager: &str,
        object: &impl Serialize,
    ) -> Result<R> {
        let path = resource.path(namespace, Some(name), None);
        let query = query(&[("fieldManager", manager), ("force", "true")]);
        let op = format!("PATCH {path}");
        let body = to_vec(&op, object)?;
        let body = Some(("application/apply-patch+yaml", body));
        self.json(Method::PATCH, &path, Some(&query), body).await
    }

    /// Deletes an object. `grace` in seconds overrides its own; `uid` makes sure that it is this one
    /// and not another of the same name.
    ///
    /// # Errors
    /// It is not there (`is_not_found`), it has another uid (`is_conflict`); else as [`Client::get`].
    pub async fn delete(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        grace: Option<u32>,
        uid: Option<&str>,
    ) -> Result<()> {
        let path = resource.path(namespace, Some(name), None);
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(grace) = grace {
            options["gracePeriodSeconds"] = grace.into();
        }
        if let Some(uid) = uid {
            options["preconditions"] = json!({ "uid": uid });
        }
        let body = to_vec(&format!("DELETE {path}"), &options)?;
        let body = Some(("application/json", body));
        self.bytes(Method::DELETE, &path, None, body).await?;
        Ok(())
    }

    /// The text at any path, e.g. `/version` or a pod's log. `query` is already encoded.
    ///
    /// # Errors
    /// As [`Client::get`]; text that is not UTF-8 is mended.
    pub async fn text(&self, path: &str, query: Option<&str>) -> Result<String> {
        let bytes = self.bytes(Method::GET, path, query, None).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn send_json<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        object: &impl Serialize,
    ) -> Result<R> {
        let body = to_vec(&format!("{method} {path}"), object)?;
        let body = Some(("application/json", body));
        self.json(method, path, None, body).await
    }

    async fn send_patch<R: DeserializeOwned>(
        &self,
        path: &str,
        kind: Patch,
        patch: &impl Serialize,
    ) -> Result<R> {
        let body = to_vec(&format!("PATCH {path}"), patch)?;
        let body = Some((kind.content_type(), body));
        self.json(Method::PATCH, path, None, body).await
    }

    /// Any request with JSON as the answer. `body` is its content type and bytes.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn json<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: Option<&str>,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<R> {
        let op = format!("{method} {path}");
        let bytes = self.bytes(method, path, query, body).await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { op, source })
    }

    /// Any request, with the whole answer.
    pub(crate) async fn bytes(
        &self,
        method: Method,
        path: &str,
        query: Option<&str>,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Bytes> {
        let op = format!("{method} {path}");
        let whole = async {
            let response = self.open(method, path, query, body).await?;
            collect(&op, response).await
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, whole).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Error::transport(&op, "no answer within a minute")),
        }
    }

    /// Sends a request; gives the answer as soon as its head is there and is a success.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        query: Option<&str>,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Response<Body>> {
        let op = format!("{method} {path}");
        let uri = match query {
            Some(query) if !query.is_empty() => format!("{path}?{query}"),
            _ => path.to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::ACCEPT, "application/json");
        let body = match body {
            Some((content_type, body)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                Body::from(body)
            }
            None => Body::empty(),
        };
        let request = request
            .body(body)
            .map_err(|e| Error::transport(&op, chain(&e)))?;
        let response = self
            .inner
            .send(request)
            .await
            .map_err(|e| Error::transport(&op, chain(&e)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = collect(&op, response).await?;
        Err(Error::api(op, code, &body))
    }
}

async fn collect(op: &str, response: Response<Body>) -> Result<Bytes> {
    let body = response.into_body().collect().await;
    Ok(body
        .map_err(|e| Error::transport(op, chain(&e)))?
        .to_bytes())
}

fn to_vec(op: &str, object: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(|source| Error::Json {
        op: op.to_owned(),
        source,
    })
}

/// Encodes a query, without the pairs that have no value.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (key, value) in pairs {
        if !value.is_empty() {
            out.append_pair(key, value);
        }
    }
    out.finish()
}
