//! TLS: the server's certificate and who may call, and probes that do not care whom they talk to.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::{DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The name in the client certificate the API server comes with, and the group of administrators.
const CALLER: &str = "kube-apiserver-kubelet-client";
const ADMINS: &str = "system:masters";

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{flag} {}: {why}", path.display())]
    File {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not go together, or the like.
    #[error("TLS configuration: {0}")]
    Config(String),
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::File {
        flag,
        path: path.to_owned(),
        why: e.to_string(),
    })
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(flag, path)?;
    let fail = |why: String| Error::File {
        flag,
        path: path.to_owned(),
        why,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|e| fail(e.to_string()))?;
    if all.is_empty() {
        return Err(fail("no certificate in it".to_owned()));
    }
    Ok(all)
}

/// The server's side: its certificate, and the authority callers' certificates must come from. A caller
/// without one gets in, and is sent away by all paths but /healthz.
pub fn server_config(cert: &Path, key: &Path, client_ca: &Path) -> Result<ServerConfig, Error> {
    let config = |e: rustls::Error| Error::Config(e.to_string());
    let chain = certificates("--tls-cert", cert)?;
    let key_pem = read("--tls-key", key)?;
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| Error::File {
        flag: "--tls-key",
        path: key.to_owned(),
        why: e.to_string(),
    })?;
    let mut roots = RootCertStore::empty();
    for ca in certificates("--client-ca", client_ca)? {
        roots.add(ca).map_err(config)?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| Error::Config(e.to_string()))?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(config)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private)
        .map_err(config)
}

/// True when a verified client certificate belongs to the API server or an administrator. Other holders of
/// certificates of the cluster (nodes, proxies) have no business here.
pub fn may_call(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let subject = parsed.subject();
    let is = |text: Result<&str, _>, wanted: &str| text.is_ok_and(|t| t == wanted);
    subject.iter_common_name().any(|a| is(a.as_str(), CALLER))
        || subject.iter_organization().any(|a| is(a.as_str(), ADMINS))
}

/// Connects to whoever answers, for HTTPS probes: like upstream, they do not check certificates.
pub async fn connect_unverified(
    tcp: TcpStream,
    ip: IpAddr,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let provider = Arc::new(ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { provider }))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::from(ip), tcp)
        .await
        .map_err(|e| e.to_string())
}

#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
