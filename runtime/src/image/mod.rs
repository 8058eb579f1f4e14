//! Images: loading them from archives, keeping them, finding them by name.

pub mod build;
mod load;
mod name;
mod source;
mod store;
mod unpack;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use name::normalize;
pub use store::ImageStore;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its configuration, `sha256:...`: what other runtimes call the image id.
    pub id: String,
    /// Its names, in full (`docker.io/library/busybox:1`), sorted. One that lost its name to another
    /// image has none.
    pub names: Vec<String>,
    /// What a container of it does by default.
    pub config: ImageConfig,
    /// Digests of its layers' uncompressed archives, the lowest first.
    pub layers: Vec<String>,
    /// Size of its unpacked files, in bytes.
    pub size_bytes: u64,
}

/// What a container of an image does by default (`config` of the OCI image specification).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// ENTRYPOINT
    pub entrypoint: Vec<String>,
    /// CMD
    pub cmd: Vec<String>,
    /// ENV, in order.
    pub env: Vec<(String, String)>,
    /// WORKDIR; empty when the image has none.
    pub workdir: String,
    /// USER (`user`, `uid`, `user:group`, ...); empty when the image has none.
    pub user: String,
    /// EXPOSE, such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// STOPSIGNAL, such as `SIGQUIT` or `3`.
    pub stop_signal: Option<String>,
}
