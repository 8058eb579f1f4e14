//! The TLS listener: HTTP/1.1 and HTTP/2, client certificates checked when they are given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::app::App;
use crate::auth::{Peer, User};
use crate::pki::{Layout, subject_of};

/// Time a client has for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time until the head of a request is there. It also ends idle connections, so it is longer than
/// the 90 seconds for which clients (Go's net/http, hyper) keep theirs.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Connections at one time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// Streams on one HTTP/2 connection, as kube-apiserver's --http2-max-streams-per-connection.
const STREAMS_MAX: u32 = 1_000;

/// Builds the TLS side from the data directory.
pub fn tls(layout: &Layout) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate(layout, "ca.crt")?)
        .context("pki/ca.crt")?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let key_path = layout.pki("apiserver.key");
    let key =
        PrivateKeyDer::from_pem_file(&key_path).with_context(|| key_path.display().to_string())?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate(layout, "apiserver.crt")?], key)
        .context("pki/apiserver.crt")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Reads one certificate of the pki folder.
pub fn certificate(layout: &Layout, name: &str) -> Result<CertificateDer<'static>> {
    let path = layout.pki(name);
    CertificateDer::from_pem_file(&path).with_context(|| path.display().to_string())
}

/// Binds an address. `[::]` also takes IPv4, as everywhere on Linux.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("--bind {address}"))
}

/// Accepts connections until the application shuts down.
pub async fn serve(app: Arc<App>, listener: TcpListener, tls: TlsAcceptor) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        if slots.available_permits() == 0 {
            tracing::warn!(
                limit = CONNECTIONS_MAX,
                "no more connections are accepted for now"
            );
        }
        let accepted = tokio::select! {
            () = app.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let (app, tls) = (Arc::clone(&app), tls.clone());
                tokio::spawn(async move {
                    connection(app, stream, from, tls).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: others have to close theirs first.
                tracing::warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(app: Arc<App>, stream: TcpStream, from: SocketAddr, tls: TlsAcceptor) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%from, "TCP_NODELAY: {error}");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%from, "TLS handshake: {error}"),
        Err(_elapsed) => return tracing::debug!(%from, "TLS handshake took too long"),
    };
    let subject = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| subject_of(certificate));
    let peer = Arc::new(match subject {
        Some((user, groups)) => Peer::Certificate(User::new(user, groups)),
        None => Peer::Unknown,
    });
    let shutdown = app.shutdown.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (app, peer) = (Arc::clone(&app), Arc::clone(&peer));
        async move { Ok::<_, std::convert::Infallible>(app.handle(request, &peer).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%from, "connection: {error}");
    }
}
