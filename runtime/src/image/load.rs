//! Loading images: reading indexes, manifests and configurations, checking digests, unpacking layers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::source::{self, Compression, Source, decompress};
use super::store::ImageStore;
use super::{Image, ImageConfig, name, unpack};
use crate::error::{Error, Result};

/// Indexes inside indexes are followed this deep.
const INDEX_DEPTH_MAX: usize = 4;

/// Loads every image of `archive` into `store`.
pub(super) fn load(store: &ImageStore, archive: &Path) -> Result<Vec<Image>> {
    let tmp = store.tmp();
    // Shared by loads, exclusive while leftovers are cleared: a load that is killed leaves some.
    let busy_path = tmp.with_extension("lock");
    let busy = File::create(&busy_path).map_err(Error::path("open", &busy_path))?;
    if busy.try_lock().is_ok() {
        source::clear(&tmp)?;
        busy.unlock().map_err(Error::path("unlock", &busy_path))?;
    }
    busy.lock_shared()
        .map_err(Error::path("lock", &busy_path))?;

    let source = Source::open(archive, &tmp)?;
    let wanted = if source.has("index.json") {
        from_layout(&source)?
    } else if source.has("manifest.json") {
        from_docker(&source)?
    } else {
        let why = "neither an OCI layout (index.json) nor a docker archive (manifest.json)";
        return Err(Error::image(source.title(), why));
    };
    if wanted.is_empty() {
        let why = format!("no image for linux/{} in it", architecture());
        return Err(Error::image(source.title(), why));
    }
    wanted
        .iter()
        .map(|wanted| load_one(store, &source, wanted))
        .collect()
}

/// An image found in a source.
#[derive(Debug)]
struct Wanted {
    names: Vec<String>,
    config: String,
    /// Digest that the configuration must have; docker archives name none that could be checked.
    config_digest: Option<String>,
    /// Files of the layers with the digests they must have.
    layers: Vec<(String, Option<String>)>,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The configuration document.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<DocumentConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DocumentConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// This machine's architecture, as images call it (GOARCH).
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn parse<T: DeserializeOwned>(source: &Source, name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::image(source.title(), format!("{name} is malformed: {e}")))
}

fn blob_name(source: &Source, digest: &str) -> Result<String> {
    if !name::is_digest(digest) {
        return Err(Error::image(
            source.title(),
            format!("{digest:?} is no sha256 digest"),
        ));
    }
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

/// Reads a document and checks its digest.
fn blob(source: &Source, digest: &str) -> Result<Vec<u8>> {
    let name = blob_name(source, digest)?;
    let bytes = source.document(&name)?;
    check_digest(source, &name, digest, &Sha256::digest(&bytes))?;
    Ok(bytes)
}

fn check_digest(source: &Source, name: &str, expect: &str, found: &[u8]) -> Result<()> {
    let found = format!("sha256:{}", hex::encode(found));
    if found == expect {
        return Ok(());
    }
    Err(Error::image(
        source.title(),
        format!("{name} has digest {found}, should be {expect}"),
    ))
}

fn from_layout(source: &Source) -> Result<Vec<Wanted>> {
    let index: Index = parse(source, "index.json", &source.document("index.json")?)?;
    let mut wanted = Vec::new();
    for descriptor in &index.manifests {
        if let Some(manifest) = find_manifest(source, descriptor, 0)? {
            let layers: Result<Vec<_>> = manifest
                .layers
                .iter()
                .map(|l| Ok((blob_name(source, &l.digest)?, Some(l.digest.clone()))))
                .collect();
            wanted.push(Wanted {
                names: names_of(descriptor)?,
                config: blob_name(source, &manifest.config.digest)?,
                config_digest: Some(manifest.config.digest),
                layers: layers?,
            });
        }
    }
    Ok(wanted)
}

/// The manifest for this machine behind a descriptor.
fn find_manifest(source: &Source, at: &Descriptor, depth: usize) -> Result<Option<Manifest>> {
    let other = |p: &Platform| p.os != "linux" || p.architecture != architecture();
    if at.platform.as_ref().is_some_and(other) {
        return Ok(None);
    }
    let bytes = blob(source, &at.digest)?;
    let is_index = at.media_type.contains("index") || at.media_type.contains("manifest.list");
    if !is_index {
        return parse(source, &at.digest, &bytes).map(Some);
    }
    if depth == INDEX_DEPTH_MAX {
        return Err(Error::image(source.title(), "indexes are nested too deep"));
    }
    let index: Index = parse(source, &at.digest, &bytes)?;
    for below in &index.manifests {
        if let Some(found) = find_manifest(source, below, depth + 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn names_of(descriptor: &Descriptor) -> Result<Vec<String>> {
    // containerd writes the full name in its own annotation, and only the tag in the standard one.
    let keys = [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ];
    match keys.iter().find_map(|key| descriptor.annotations.get(*key)) {
        Some(found) => Ok(vec![name::normalize(found)?]),
        None => Ok(Vec::new()),
    }
}

fn from_docker(source: &Source) -> Result<Vec<Wanted>> {
    let manifests: Vec<DockerManifest> =
        parse(source, "manifest.json", &source.document("manifest.json")?)?;
    let each = manifests.into_iter().map(|manifest| {
        let tags = manifest.repo_tags.unwrap_or_default();
        let names: Result<Vec<_>> = tags.iter().map(|tag| name::normalize(tag)).collect();
        Ok(Wanted {
            names: names?,
            config: manifest.config,
            config_digest: None,
            layers: manifest
                .layers
                .into_iter()
                .map(|file| (file, None))
                .collect(),
        })
    });
    each.collect()
}

fn load_one(store: &ImageStore, source: &Source, wanted: &Wanted) -> Result<Image> {
    let bytes = source.document(&wanted.config)?;
    let found = Sha256::digest(&bytes);
    if let Some(expect) = &wanted.config_digest {
        check_digest(source, &wanted.config, expect, &found)?;
    }
    let document: Document = parse(source, &wanted.config, &bytes)?;
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != wanted.layers.len() {
        let why = format!(
            "{} layers but {} diff_ids",
            wanted.layers.len(),
            diff_ids.len()
        );
        return Err(Error::image(source.title(), why));
    }
    let mut size_bytes = 0;
    for ((file, digest), diff_id) in wanted.layers.iter().zip(&diff_ids) {
        size_bytes += load_layer(store, source, file, digest.as_deref(), diff_id)?;
    }
    let image = Image {
        id: format!("sha256:{}", hex::encode(found)),
        names: wanted.names.clone(),
        config: config_of(document.config.unwrap_or_default()),
        layers: diff_ids,
        size_bytes,
    };
    store.record_image(&image)?;
    Ok(image)
}

fn config_of(document: DocumentConfig) -> ImageConfig {
    let pair = |line: String| match line.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (line, String::new()),
    };
    ImageConfig {
        entrypoint: document.entrypoint.unwrap_or_default(),
        cmd: document.cmd.unwrap_or_default(),
        env: document
            .env
            .unwrap_or_default()
            .into_iter()
            .map(pair)
            .collect(),
        workdir: document.working_dir.unwrap_or_default(),
        user: document.user.unwrap_or_default(),
        exposed_ports: document
            .exposed_ports
            .unwrap_or_default()
            .into_keys()
            .collect(),
        stop_signal: document.stop_signal.filter(|s| !s.is_empty()),
    }
}

/// Unpacks a layer unless it is there; its size.
fn load_layer(
    store: &ImageStore,
    source: &Source,
    file: &str,
    digest: Option<&str>,
    diff_id: &str,
) -> Result<u64> {
    if !name::is_digest(diff_id) {
        return Err(Error::image(
            source.title(),
            format!("{diff_id:?} is no sha256 digest"),
        ));
    }
    let place = store.layer(diff_id);
    if let Some(size) = layer_size(&place) {
        return Ok(size);
    }
    let fail = |e: io::Error| Error::io(format!("unpack layer {file} of {}", source.title()), e);
    let tmp = store.tmp();
    let dir = tempfile::tempdir_in(&tmp).map_err(Error::path("make directory in", &tmp))?;
    let fs_dir = dir.path().join("fs");
    fs::create_dir(&fs_dir).map_err(Error::path("make directory", &fs_dir))?;

    let mut packed = BufReader::new(Hashing::new(source.open_file(file)?));
    let compression = {
        use io::BufRead;
        Compression::of(packed.fill_buf().map_err(fail)?)
    };
    let (size, plain_hash) = {
        let plain = decompress(&mut packed, compression).map_err(fail)?;
        let mut plain = Hashing::new(plain);
        let size = unpack::layer(&mut plain, &fs_dir).map_err(fail)?;
        // An archive may go on behind its end mark; the digest covers all of it.
        io::copy(&mut plain, &mut io::sink()).map_err(fail)?;
        (size, plain.hash.finalize())
    };
    io::copy(&mut packed, &mut io::sink()).map_err(fail)?;
    check_digest(source, &format!("unpacked {file}"), diff_id, &plain_hash)?;
    if let Some(digest) = digest {
        check_digest(source, file, digest, &packed.into_inner().hash.finalize())?;
    }
    fs::write(dir.path().join("size"), size.to_string()).map_err(fail)?;
    unpack::set_mode(dir.path(), 0o755).map_err(fail)?;
    match fs::rename(dir.path(), &place) {
        Ok(()) => {
            // It has moved away; there is nothing to remove.
            drop(dir.keep());
            Ok(size)
        }
        // Somebody else was faster, with the same content.
        Err(_) if layer_size(&place).is_some() => Ok(size),
        Err(e) => Err(Error::path("move layer to", &place)(e)),
    }
}

fn layer_size(place: &Path) -> Option<u64> {
    fs::read_to_string(place.join("size")).ok()?.parse().ok()
}

/// Passes bytes through and hashes them.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        self.hash.update(buf.get(..len).unwrap_or_default());
        Ok(len)
    }
}
