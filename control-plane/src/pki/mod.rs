//! Keys, certificates and kubeconfigs of a cluster: what `control-plane init` writes.
//!
//! Everything is ECDSA P-256. Running it again changes nothing, unless a certificate is about to
//! expire, lacks a name that is asked for, or does not belong to its key or to the CA.

mod cert;
mod files;
mod kubeconfig;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use cert::{Authority, Leaf, Usage, subject_of};
use files::{read_if_there, write_atomically};

/// Why a key, certificate or kubeconfig could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else than a key or certificate.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("certificate for {name}: {reason}")]
    Certificate {
        /// Its common name.
        name: String,
        /// What the library said.
        reason: String,
    },
}

/// A node that gets kubeconfigs and a serving certificate of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// What `init` needs to know.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// URL the kubeconfigs point at. None keeps what existing kubeconfigs say.
    pub server: Option<String>,
    /// URL for kubeconfigs that do not exist yet.
    pub default_server: String,
    /// Addresses and names of the API server beside the usual ones.
    pub names: Vec<String>,
    /// Nodes to write folders for.
    pub nodes: Vec<Node>,
}

/// The files of a data directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The files below `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            root: data_dir.to_owned(),
        }
    }

    /// A file of the `pki` folder.
    pub fn pki(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(name)
    }

    /// The administrator's kubeconfig.
    pub fn admin(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// A file of one node.
    pub fn node(&self, node: &str, name: &str) -> PathBuf {
        self.root.join("nodes").join(node).join(name)
    }
}

/// The names every API server certificate carries.
const SERVER_NAMES: [&str; 7] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Writes what is missing below `data_dir`.
pub fn init(data_dir: &Path, request: &Request) -> Result<(), Error> {
    let layout = Layout::new(data_dir);
    let (authority, fresh) = Authority::ensure(&layout.pki("ca.crt"), &layout.pki("ca.key"))?;
    let ensure =
        |leaf: &Leaf<'_>, cert: &Path, key: &Path| authority.ensure_leaf(leaf, cert, key, fresh);
    let mut names: Vec<String> = SERVER_NAMES.map(str::to_owned).to_vec();
    names.extend(request.names.iter().cloned());
    let server = Leaf {
        common_name: "kube-apiserver",
        group: None,
        names,
        usage: Usage::Server,
    };
    ensure(
        &server,
        &layout.pki("apiserver.crt"),
        &layout.pki("apiserver.key"),
    )?;
    let kubelet_client = Leaf::client("kube-apiserver-kubelet-client", None);
    let (cert, key) = (
        layout.pki("kubelet-client.crt"),
        layout.pki("kubelet-client.key"),
    );
    ensure(&kubelet_client, &cert, &key)?;
    cert::ensure_key_pair(&layout.pki("sa.key"), &layout.pki("sa.pub"))?;

    let config = |path: PathBuf, user: &str, leaf: &Leaf<'_>| {
        kubeconfig::ensure(&authority, &path, user, leaf, request, fresh)
    };
    let admin = Leaf::client("kubernetes-admin", Some("system:masters"));
    config(layout.admin(), "kubernetes-admin", &admin)?;
    for node in &request.nodes {
        let file = |name: &str| layout.node(&node.name, name);
        let user = format!("system:node:{}", node.name);
        config(
            file("kubelet.kubeconfig"),
            &user,
            &Leaf::client(&user, Some("system:nodes")),
        )?;
        for (name, user) in [
            ("overlay.kubeconfig", "system:seaway-overlay"),
            ("proxy.kubeconfig", "system:kube-proxy"),
        ] {
            config(file(name), user, &Leaf::client(user, None))?;
        }
        let mut names = vec![node.name.clone()];
        names.extend(node.ips.iter().map(IpAddr::to_string));
        let serving = Leaf {
            common_name: &user,
            group: Some("system:nodes"),
            names,
            usage: Usage::Server,
        };
        ensure(&serving, &file("kubelet.crt"), &file("kubelet.key"))?;
        let ca = authority.pem().as_bytes();
        if read_if_there(&file("ca.crt"))?.as_deref() != Some(ca) {
            write_atomically(&file("ca.crt"), ca, files::PUBLIC)?;
        }
    }
    Ok(())
}
