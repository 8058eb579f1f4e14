//! The store: records and unpacked layers, shared by several runtimes.
//!
//! ```text
//! lock                     held while names or records change
//! names.json               full name -> image id
//! images/<hex>.json        one image
//! layers/<hex>/fs          one unpacked layer, in overlayfs' own form; read-only once it is here
//! layers/<hex>/size        its size in bytes
//! tmp/                     what is being unpacked
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Image, load, name};
use crate::error::{Error, Result};
use crate::state;

/// Images on this machine, content addressed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: Arc<PathBuf>,
}

/// Names and the images they mean.
type Names = BTreeMap<String, String>;

impl ImageStore {
    /// Opens (or begins) the store in `dir`.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        for sub in ["images", "layers", "tmp"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).map_err(Error::path("make directory", &sub))?;
        }
        let dir = dir.canonicalize().map_err(Error::path("find", dir))?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// Loads every image of an archive (OCI layout or `docker save`; plain, gzip or zstd) or of an
    /// OCI layout directory. Layers that are there are not unpacked again; names move to the newly
    /// loaded images. Safe to run beside other loads, and to be killed at any time.
    ///
    /// # Errors
    /// The archive cannot be read, is of no known form, or holds something else than its digests say.
    pub fn load(&self, archive: &Path) -> Result<Vec<Image>> {
        load::load(self, archive)
    }

    /// The image of this name, id (`sha256:...`) or unique beginning of an id of 12 and more digits.
    ///
    /// # Errors
    /// Not an image name; a record cannot be read.
    pub fn resolve(&self, image: &str) -> Result<Option<Image>> {
        let names = self.names()?;
        if let Some(hex) = image
            .strip_prefix("sha256:")
            .filter(|h| name::is_hex_digest(h))
        {
            return self.record(hex, &names);
        }
        let full = name::normalize(image)?;
        if let Some(id) = names.get(&full) {
            return self.record(id.trim_start_matches("sha256:"), &names);
        }
        if let Some((_, digest)) = full.split_once("@sha256:") {
            return self.record(digest, &names);
        }
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if image.len() < 12 || !image.bytes().all(hex) {
            return Ok(None);
        }
        let mut ids = self.ids().into_iter().filter(|id| id.starts_with(image));
        match (ids.next(), ids.next()) {
            (Some(id), None) => self.record(&id, &names),
            _ => Ok(None),
        }
    }

    /// Every image, in the order of their ids.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let names = self.names()?;
        let found: Result<Vec<_>> = self
            .ids()
            .iter()
            .map(|id| self.record(id, &names))
            .collect();
        Ok(found?.into_iter().flatten().collect())
    }

    /// Removes a name, or an image with all its names when it is given by id. An image without a
    /// name goes, with the layers that no other image has. Containers that run keep what they
    /// have mounted. Not there is fine.
    ///
    /// # Errors
    /// Not an image name; files cannot be removed.
    pub fn remove(&self, image: &str) -> Result<()> {
        let _lock = self.lock()?;
        let Some(found) = self.resolve(image)? else {
            return Ok(());
        };
        let mut names = self.names()?;
        match name::normalize(image)
            .ok()
            .filter(|full| names.contains_key(full))
        {
            Some(full) => drop(names.remove(&full)),
            None => names.retain(|_, id| *id != found.id),
        }
        state::write(&self.dir.join("names.json"), &names)?;
        if names.values().all(|id| *id != found.id) {
            let path = self.record_path(found.id.trim_start_matches("sha256:"));
            fs::remove_file(&path).map_err(Error::path("remove", &path))?;
            self.remove_unused_layers()?;
        }
        Ok(())
    }

    /// Directories of an image's layers, the topmost first, for an overlay mount.
    pub fn layer_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image
            .layers
            .iter()
            .rev()
            .map(|digest| self.layer(digest).join("fs"))
            .collect()
    }

    /// Holds off other changes of names and records while it lives.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::create(&path).map_err(Error::path("open", &path))?;
        file.lock().map_err(Error::path("lock", &path))?;
        Ok(file)
    }

    /// Directory of a layer, whether it is there or not.
    pub(super) fn layer(&self, digest: &str) -> PathBuf {
        self.dir
            .join("layers")
            .join(digest.trim_start_matches("sha256:"))
    }

    /// Where layers are unpacked before they are moved to their place.
    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Records an image and gives it its names, under the lock.
    pub(super) fn record_image(&self, image: &Image) -> Result<()> {
        let _lock = self.lock()?;
        let mut names = self.names()?;
        for full in &image.names {
            names.insert(full.clone(), image.id.clone());
        }
        let bare = Image {
            names: Vec::new(),
            ..image.clone()
        };
        state::write(
            &self.record_path(image.id.trim_start_matches("sha256:")),
            &bare,
        )?;
        state::write(&self.dir.join("names.json"), &names)
    }

    fn names(&self) -> Result<Names> {
        Ok(state::read(&self.dir.join("names.json"))?.unwrap_or_default())
    }

    fn record_path(&self, hex: &str) -> PathBuf {
        self.dir.join("images").join(format!("{hex}.json"))
    }

    fn record(&self, hex: &str, names: &Names) -> Result<Option<Image>> {
        let Some(mut image) = state::read::<Image>(&self.record_path(hex))? else {
            return Ok(None);
        };
        let mine = names.iter().filter(|(_, id)| **id == image.id);
        image.names = mine.map(|(name, _)| name.clone()).collect();
        Ok(Some(image))
    }

    fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("images"))
            .into_iter()
            .flatten()
            .flatten();
        let mut ids: Vec<_> = entries
            .filter_map(|e| {
                e.file_name()
                    .to_str()?
                    .strip_suffix(".json")
                    .map(str::to_owned)
            })
            .filter(|id| name::is_hex_digest(id))
            .collect();
        ids.sort();
        ids
    }

    fn remove_unused_layers(&self) -> Result<()> {
        let used: BTreeSet<_> = self
            .list()?
            .into_iter()
            .flat_map(|image| image.layers)
            .map(|digest| digest.trim_start_matches("sha256:").to_owned())
            .collect();
        for hex in state::subdirs(&self.dir.join("layers")) {
            if !used.contains(&hex) {
                let dir = self.layer(&hex);
                fs::remove_dir_all(&dir).map_err(Error::path("remove", &dir))?;
            }
        }
        Ok(())
    }
}
