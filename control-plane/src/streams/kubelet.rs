//! The client for kubelets: TLS with the cluster's CA and our client certificate.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;

use crate::http::error::{ApiError, Result};
use crate::http::listen::certificate;
use crate::pki::Layout;
use crate::rest::object::{list, text};

/// Port of a kubelet that does not publish one.
const PORT: u16 = 10_250;
/// Time to reach a kubelet and to get its answer's head.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Streams (logs, exec, port-forward) at one time.
const STREAMS_MAX: usize = 1_000;

/// Reaches kubelets.
pub struct Kubelets {
    tls: TlsConnector,
    slots: Arc<Semaphore>,
}

impl Kubelets {
    /// Reads the certificates of the data directory.
    pub fn load(layout: &Layout) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate(layout, "ca.crt")?)
            .context("pki/ca.crt")?;
        let path = layout.pki("kubelet-client.key");
        let key =
            PrivateKeyDer::from_pem_file(&path).with_context(|| path.display().to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate(layout, "kubelet-client.crt")?], key)
            .context("pki/kubelet-client.crt")?;
        let slots = Arc::new(Semaphore::new(STREAMS_MAX));
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            slots,
        })
    }

    /// A place among the running streams.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_full| {
                tracing::warn!(
                    limit = STREAMS_MAX,
                    "turned a stream away, too many are open"
                );
                ApiError::too_many("Too many open streams, please try again later.")
            })
    }

    /// Sends a request to the kubelet of `node`.
    pub async fn send(
        &self,
        name: &str,
        node: &Value,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>> {
        let address = address(node).ok_or_else(|| {
            ApiError::internal(format!(
                "node {name:?} has no InternalIP to reach its kubelet at"
            ))
        })?;
        let fail = |error: &dyn std::fmt::Display| {
            let message =
                format!("error dialing backend: kubelet of {name:?} at {address}: {error}");
            ApiError::new(StatusCode::BAD_GATEWAY, "InternalError", message)
        };
        match tokio::time::timeout(TIMEOUT, self.dial(address, request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(fail(&format!("{error:#}"))),
            Err(_elapsed) => Err(fail(&"no answer in time")),
        }
    }

    async fn dial(
        &self,
        address: SocketAddr,
        mut request: Request<Empty<Bytes>>,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let server = ServerName::IpAddress(address.ip().into());
        let stream = self.tls.connect(server, stream).await.context("TLS")?;
        let host = HeaderValue::from_str(&address.to_string())?;
        request.headers_mut().insert(HOST, host);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%address, "kubelet connection: {error}");
            }
        });
        Ok(sender.send_request(request).await?)
    }
}

/// Address and port at which a node's kubelet serves.
fn address(node: &Value) -> Option<SocketAddr> {
    let addresses = list(node, "/status/addresses");
    let of = |kind: &str| -> Option<IpAddr> {
        let mut own = addresses.iter().filter(|address| address["type"] == kind);
        own.find_map(|address| text(address, "/address").parse().ok())
    };
    let port = node
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64);
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0);
    Some(SocketAddr::new(
        of("InternalIP").or_else(|| of("Hostname"))?,
        port.unwrap_or(PORT),
    ))
}
