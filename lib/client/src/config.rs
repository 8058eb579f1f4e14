//! From a kubeconfig file, or the files that a pod is given, to a connection. A broken one is told in
//! one line that names the file and the field.

use std::path::{Path, PathBuf};
use std::sync::Once;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError as Kube, LoadDataError};

use crate::error::chain;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file has no or a bad value in a field.
    #[error("kubeconfig {}: {field}: {why}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, e.g. `clusters[seaway].cluster.server`.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read at all.
    #[error("kubeconfig {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No kubeconfig was given, and this is not a pod with a service account.
    #[error("no --kubeconfig given and not in a pod: {0}")]
    InCluster(String),
    /// The URL in place of the kubeconfig's is none.
    #[error("--master {url:?}: {why}")]
    Server {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The cryptography of every connection: `ring`, installed once for the process.
pub(crate) fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if one is installed already, which then is used.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// The connection described by the file at `path`, or by the pod's service account without one.
/// `server` is used in place of what they say.
pub(crate) async fn load(
    path: Option<&Path>,
    server: Option<&str>,
) -> Result<kube::Client, KubeconfigError> {
    install_crypto();
    let server = server.map(parse_server).transpose()?;
    match (path, server) {
        (Some(path), server) => from_file(path, server).await,
        (None, Some(url)) => connect(kube::Config::new(url)).map_err(in_cluster),
        (None, None) => {
            let config = kube::Config::incluster().map_err(|e| in_cluster(chain(&e)))?;
            connect(config).map_err(in_cluster)
        }
    }
}

fn in_cluster(why: String) -> KubeconfigError {
    KubeconfigError::InCluster(why)
}

fn parse_server(url: &str) -> Result<http::Uri, KubeconfigError> {
    let fail = |why: String| KubeconfigError::Server {
        url: url.to_owned(),
        why,
    };
    // As client-go, takes a bare address for one of HTTP.
    let whole = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let parsed: http::Uri = whole.parse().map_err(|e| fail(chain(&e)))?;
    match parsed.host() {
        Some(host) if !host.is_empty() => Ok(parsed),
        _ => Err(fail("no host".to_owned())),
    }
}

fn connect(mut config: kube::Config) -> Result<kube::Client, String> {
    // Callers decide what is tried again and when.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|e| chain(&e))
}

async fn from_file(
    path: &Path,
    server: Option<http::Uri>,
) -> Result<kube::Client, KubeconfigError> {
    let file = Kubeconfig::read_from(path).map_err(|error| whole_file(path, &error))?;
    let names = Names::of(&file);
    let field = |(field, why): (String, String)| KubeconfigError::Field {
        path: path.to_owned(),
        field,
        why,
    };
    names.check_user(&file).map_err(field)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(|error| field(names.locate(&error)))?;
    if let Some(server) = server {
        config.cluster_url = server;
    }
    // Callers decide what is tried again and when.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| match &error {
        kube::Error::InferKubeconfig(error) => field(names.locate(error)),
        kube::Error::RustlsTls(tls) => field((names.user("client-certificate(-data)"), chain(tls))),
        kube::Error::Auth(auth) => field((names.user("exec or token"), chain(auth))),
        other => field((names.cluster("server"), chain(other))),
    })
}

fn whole_file(path: &Path, error: &Kube) -> KubeconfigError {
    let why = match error {
        Kube::ReadConfig(source, _) => source.to_string(),
        Kube::Parse(source) => chain(source.as_ref()),
        other => chain(other),
    };
    KubeconfigError::File {
        path: path.to_owned(),
        why,
    }
}

/// The names that lead from the current context to its parts, for messages.
struct Names {
    context: String,
    cluster: String,
    user: String,
}

impl Names {
    fn of(file: &Kubeconfig) -> Self {
        let context = file.current_context.clone().unwrap_or_default();
        let found = file
            .contexts
            .iter()
            .find(|named| named.name == context)
            .and_then(|named| named.context.clone());
        Self {
            cluster: found
                .as_ref()
                .map(|c| c.cluster.clone())
                .unwrap_or_default(),
            user: found.and_then(|c| c.user).unwrap_or_default(),
            context,
        }
    }

    fn cluster(&self, field: &str) -> String {
        format!("clusters[{}].cluster.{field}", self.cluster)
    }

    fn user(&self, field: &str) -> String {
        format!("users[{}].user.{field}", self.user)
    }

    /// A context that names a user who is not there would connect as nobody.
    fn check_user(&self, file: &Kubeconfig) -> Result<(), (String, String)> {
        if self.user.is_empty() || file.auth_infos.iter().any(|named| named.name == self.user) {
            return Ok(());
        }
        Err((
            format!("contexts[{}].context.user", self.context),
            format!("no user named {:?} in users", self.user),
        ))
    }

    /// The field an error speaks of, and what is wrong with it.
    fn locate(&self, error: &Kube) -> (String, String) {
        let data = |error: &LoadDataError| match error {
            LoadDataError::DecodeBase64(source) => format!("not base64: {source}"),
            LoadDataError::ReadFile(source, path) => format!("{}: {source}", path.display()),
            LoadDataError::NoBase64DataOrFile => "neither data nor a file is given".to_owned(),
        };
        match error {
            Kube::CurrentContextNotSet => ("current-context".to_owned(), "not set".to_owned()),
            Kube::LoadContext(name) => (
                "current-context".to_owned(),
                format!("no context named {name:?} in contexts"),
            ),
            Kube::LoadClusterOfContext(name) => (
                format!("contexts[{}].context.cluster", self.context),
                format!("no cluster named {name:?} in clusters"),
            ),
            Kube::MissingClusterUrl => (self.cluster("server"), "not set".to_owned()),
            Kube::ParseClusterUrl(source) => (self.cluster("server"), source.to_string()),
            Kube::ParseProxyUrl(source) => (self.cluster("proxy-url"), source.to_string()),
            Kube::LoadCertificateAuthority(source) => {
                (self.cluster("certificate-authority(-data)"), data(source))
            }
            Kube::ParseCertificates(source) => (
                self.cluster("certificate-authority(-data)"),
                format!("not PEM: {source}"),
            ),
            Kube::LoadClientCertificate(source) => {
                (self.user("client-certificate(-data)"), data(source))
            }
            Kube::LoadClientKey(source) => (self.user("client-key(-data)"), data(source)),
            other => (format!("contexts[{}]", self.context), chain(other)),
        }
    }
}
