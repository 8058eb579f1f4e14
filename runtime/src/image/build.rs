//! Making an image of one layer from a list of files: for samples and tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::ImageConfig;
use crate::error::{Error, Result};

/// What lies at one path of the image.
#[derive(Debug, Clone)]
enum Item {
    Dir { mode: u32 },
    File { bytes: Vec<u8>, mode: u32 },
    Copy { source: PathBuf, mode: u32 },
    Link { target: String },
}

/// An image in the making. Everything in it belongs to root and dates from 1970, so that the same
/// files give the same image id.
#[derive(Debug, Clone)]
pub struct Archive {
    name: String,
    items: BTreeMap<String, Item>,
    config: ImageConfig,
}

impl Archive {
    /// An empty image that will be called `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            items: BTreeMap::new(),
            config: ImageConfig::default(),
        }
    }

    /// Sets what containers do by default.
    #[must_use]
    pub fn config(mut self, config: ImageConfig) -> Self {
        self.config = config;
        self
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.item(path, Item::Dir { mode })
    }

    /// Adds a file with this content.
    #[must_use]
    pub fn file(self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.item(
            path,
            Item::File {
                bytes: bytes.into(),
                mode,
            },
        )
    }

    /// Adds a file of this machine.
    #[must_use]
    pub fn copy(self, path: &str, source: impl Into<PathBuf>, mode: u32) -> Self {
        self.item(
            path,
            Item::Copy {
                source: source.into(),
                mode,
            },
        )
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.item(
            path,
            Item::Link {
                target: target.to_owned(),
            },
        )
    }

    fn item(mut self, path: &str, item: Item) -> Self {
        let path = path.trim_matches('/');
        // Missing parents come into being with the mode that images usually have.
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default().to_owned();
            self.items
                .entry(parent)
                .or_insert(Item::Dir { mode: 0o755 });
        }
        self.items.insert(path.to_owned(), item);
        self
    }

    /// Writes the image to `path` as an archive in the OCI layout.
    ///
    /// # Errors
    /// A source file cannot be read, or the archive not written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let config = self.oci_config(&layer_digest);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        if let Some(entry) = entry.as_object_mut() {
            let names = json!({ "org.opencontainers.image.ref.name": self.name });
            entry.insert("annotations".to_owned(), names);
        }
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
        let layout = json!({ "imageLayoutVersion": "1.0.0" }).to_string();

        let file = fs::File::create(path).map_err(Error::path("create", path))?;
        let mut tar = Builder::new(file);
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = header(EntryType::Regular, 0o644);
            header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            tar.append_data(&mut header, name, bytes)
                .map_err(Error::path("write", path))
        };
        add("oci-layout", layout.as_bytes())?;
        add("index.json", index.as_bytes())?;
        for blob in [&manifest, &config, &layer] {
            let name = format!("blobs/{}", digest(blob).replace(':', "/"));
            add(&name, blob)?;
        }
        tar.finish().map_err(Error::path("write", path))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, item) in &self.items {
            let fail = |e| Error::io(format!("pack {path}"), e);
            let copied;
            let (kind, mode, bytes) = match item {
                Item::Dir { mode } => (EntryType::Directory, *mode, &[][..]),
                Item::File { bytes, mode } => (EntryType::Regular, *mode, bytes.as_slice()),
                Item::Copy { source, mode } => {
                    copied = fs::read(source).map_err(Error::path("read", source))?;
                    (EntryType::Regular, *mode, copied.as_slice())
                }
                Item::Link { target } => {
                    let mut header = header(EntryType::Symlink, 0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target).map_err(fail)?;
                    continue;
                }
            };
            let mut header = header(kind, mode);
            header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            tar.append_data(&mut header, path, bytes).map_err(fail)?;
        }
        tar.into_inner().map_err(|e| Error::io("pack layer", e))
    }

    fn oci_config(&self, layer_digest: &str) -> Vec<u8> {
        let config = &self.config;
        let env: Vec<_> = config.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let ports: BTreeMap<_, _> = config
            .exposed_ports
            .iter()
            .map(|p| (p, json!({})))
            .collect();
        let mut oci = json!({
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Env": env,
            "WorkingDir": config.workdir,
            "User": config.user,
            "ExposedPorts": ports,
        });
        if let (Some(signal), Some(oci)) = (&config.stop_signal, oci.as_object_mut()) {
            oci.insert("StopSignal".to_owned(), json!(signal));
        }
        let image = json!({
            "architecture": super::load::architecture(),
            "os": "linux",
            "config": oci,
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        });
        image.to_string().into_bytes()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}
