//! Objects from files instead of an API server: `--manifests DIR`, watched.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file of the directory, each with any number of documents of
//! kind Service, EndpointSlice, Node, ServiceCIDR or List. What the API server would have filled in (names of
//! ports, protocols, namespaces) is filled in here. A document that cannot be read is logged with
//! its file and field and left out; all others count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::networking::ServiceCidr;
use api::watch::Event;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::store::Input;

/// A file longer than this is not read: a mistake, most likely.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--manifests {}: {what}", dir.display())]
pub struct ManifestsError {
    /// The directory.
    pub dir: PathBuf,
    /// What failed.
    pub what: &'static str,
    /// Why.
    pub source: std::io::Error,
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    Slice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

/// Kind, namespace and name.
type Key = (u8, String, String);

impl Object {
    fn key(&self) -> Key {
        let (kind, meta) = match self {
            Self::Service(service) => (0, &service.metadata),
            Self::Slice(slice) => (1, &slice.metadata),
            Self::Node(node) => (2, &node.metadata),
            Self::ServiceCidr(cidr) => (3, &cidr.metadata),
        };
        (kind, meta.namespace.clone(), meta.name.clone())
    }

    fn into_input(self, kind: Kind) -> Input {
        match self {
            Self::Service(service) => Input::Service(kind.of(service)),
            Self::Slice(slice) => Input::Slice(kind.of(slice)),
            Self::Node(node) => Input::Node(kind.of(node)),
            Self::ServiceCidr(cidr) => Input::ServiceCidr(kind.of(cidr)),
        }
    }

    /// As a part of a list.
    pub fn listed(self) -> Input {
        self.into_input(Kind::Listed)
    }

    /// Made or changed.
    pub fn applied(self) -> Input {
        self.into_input(Kind::Applied)
    }

    /// Deleted.
    pub fn deleted(self) -> Input {
        self.into_input(Kind::Deleted)
    }
}

/// Which event an object goes into.
#[derive(Clone, Copy)]
enum Kind {
    Listed,
    Applied,
    Deleted,
}

impl Kind {
    fn of<T>(self, object: T) -> Event<T> {
        match self {
            Self::Listed => Event::InitApply(object),
            Self::Applied => Event::Apply(object),
            Self::Deleted => Event::Delete(object),
        }
    }
}

/// The directory and what is known of it.
pub struct Manifests {
    dir: PathBuf,
    inotify: Inotify,
    files: BTreeMap<PathBuf, BTreeMap<Key, Object>>,
}

impl Manifests {
    /// Watches `dir`; nothing is read yet.
    ///
    /// # Errors
    /// No such directory, or it cannot be watched.
    pub fn open(dir: &Path) -> Result<Self, ManifestsError> {
        let fail = |what| {
            move |source: std::io::Error| ManifestsError {
                dir: dir.to_owned(),
                what,
                source,
            }
        };
        let watch = || -> nix::Result<Inotify> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
            let flags = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_ONLYDIR;
            inotify.add_watch(dir, flags)?;
            Ok(inotify)
        };
        let inotify = watch().map_err(|e| fail("watch it")(e.into()))?;
        fs::read_dir(dir).map_err(fail("read it"))?;
        Ok(Self {
            dir: dir.to_owned(),
            inotify,
            files: BTreeMap::new(),
        })
    }

    /// All objects, as a list of each kind.
    pub fn list(&mut self) -> Vec<Input> {
        let mut inputs = vec![
            Input::Service(Event::Init),
            Input::Slice(Event::Init),
            Input::Node(Event::Init),
            Input::ServiceCidr(Event::Init),
        ];
        for file in self.names() {
            let objects = read_objects(&file);
            self.files.insert(file, objects);
        }
        let objects = self.merged().into_values();
        inputs.extend(objects.map(Object::listed));
        inputs.extend([
            Input::Service(Event::InitDone),
            Input::Slice(Event::InitDone),
            Input::Node(Event::InitDone),
            Input::ServiceCidr(Event::InitDone),
        ]);
        inputs
    }

    /// Waits for a change of the directory; returns what changed with it.
    ///
    /// # Errors
    /// The watch failed.
    pub fn changes(&mut self) -> Result<Vec<Input>, ManifestsError> {
        let mut changed = BTreeSet::new();
        let events = self.inotify.read_events().map_err(|e| ManifestsError {
            dir: self.dir.clone(),
            what: "read its changes",
            source: e.into(),
        })?;
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                changed.extend(self.files.keys().cloned());
                changed.extend(self.names());
            }
            let Some(name) = event.name else { continue };
            // A new file is read when its writer is done, unless it came by a link.
            let file = self.dir.join(name);
            let written = !event.mask.contains(AddWatchFlags::IN_CREATE)
                || fs::symlink_metadata(&file).is_ok_and(|meta| !meta.is_file());
            if written && is_manifest(&file) {
                changed.insert(file);
            }
        }
        Ok(self.reread(changed))
    }

    fn reread(&mut self, files: BTreeSet<PathBuf>) -> Vec<Input> {
        let mut touched: BTreeMap<Key, Object> = BTreeMap::new();
        for file in files {
            let new = if file.exists() {
                read_objects(&file)
            } else {
                BTreeMap::new()
            };
            let old = if new.is_empty() {
                self.files.remove(&file)
            } else {
                self.files.insert(file, new.clone())
            };
            let old = old.unwrap_or_default();
            for (key, object) in &old {
                if new.get(key) != Some(object) {
                    touched.insert(key.clone(), object.clone());
                }
            }
            for (key, object) in new {
                if old.get(&key) != Some(&object) {
                    touched.insert(key, object);
                }
            }
        }
        let inputs = touched.into_iter().map(|(key, last)| {
            let current = self.files.values().find_map(|objects| objects.get(&key));
            match current {
                Some(current) => current.clone().applied(),
                None => last.deleted(),
            }
        });
        inputs.collect()
    }

    /// Every object once: from the first file that has it.
    fn merged(&self) -> BTreeMap<Key, Object> {
        let mut merged = BTreeMap::new();
        for (file, objects) in &self.files {
            for (key, object) in objects {
                if merged.contains_key(key) {
                    let (name, file) = (&key.2, file.display());
                    tracing::warn!("{file}: object {name} is in another file already; left out");
                } else {
                    merged.insert(key.clone(), object.clone());
                }
            }
        }
        merged
    }

    fn names(&self) -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path());
        files.filter(|file| is_manifest(file)).collect()
    }
}

fn is_manifest(file: &Path) -> bool {
    let hidden = file
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let ending = file.extension().and_then(|e| e.to_str());
    !hidden && matches!(ending, Some("yaml" | "yml" | "json"))
}

fn read_objects(file: &Path) -> BTreeMap<Key, Object> {
    let mut objects = BTreeMap::new();
    let name = file.display();
    let text = match read_text(file) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!("{name}: {error}; the file is left out");
            return objects;
        }
    };
    let (found, complaints) = parse_documents(&text);
    for complaint in complaints {
        tracing::warn!("{name}: {complaint}; left out");
    }
    for object in found {
        objects.insert(object.key(), object);
    }
    objects
}

fn read_text(file: &Path) -> std::io::Result<String> {
    let length = fs::metadata(file)?.len();
    if length > FILE_BYTES_MAX {
        let text = format!("{length} bytes are more than {FILE_BYTES_MAX}");
        return Err(std::io::Error::other(text));
    }
    fs::read_to_string(file)
}

/// The objects of all documents in `text`, and one line about each that could not be read.
pub fn parse_documents(text: &str) -> (Vec<Object>, Vec<String>) {
    let mut objects = Vec::new();
    let mut complaints = Vec::new();
    for (number, document) in documents(text).into_iter().enumerate() {
        let number = number + 1;
        match serde_saphyr::from_str::<Value>(&document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let mut inner = Vec::new();
                read_value(value, "", &mut objects, &mut inner);
                complaints.extend(inner.into_iter().map(|c| format!("document {number}: {c}")));
            }
            Err(error) => {
                let first = error.to_string();
                let first = first.lines().next().unwrap_or_default().to_owned();
                complaints.push(format!("document {number}: {first}"));
            }
        }
    }
    (objects, complaints)
}

/// Splits at the lines that begin a document, so that a broken one does not hide the others.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        let separator = line.strip_prefix("---").is_some_and(|rest| {
            let rest = rest.trim_start();
            rest.is_empty() || rest.starts_with('#')
        });
        if separator {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents
}

fn read_value(value: Value, at: &str, objects: &mut Vec<Object>, complaints: &mut Vec<String>) {
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    let name = value
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    let mut complain = |what: String| complaints.push(format!("{at}{kind} {name:?}: {what}"));
    match kind.as_str() {
        "List" | "ServiceList" | "EndpointSliceList" | "NodeList" | "ServiceCIDRList" => {
            let item_kind = kind.strip_suffix("List").unwrap_or_default();
            let Value::Object(mut list) = value else {
                return;
            };
            let Some(Value::Array(items)) = list.remove("items") else {
                complain("items: is not a list".to_owned());
                return;
            };
            for (i, mut item) in items.into_iter().enumerate() {
                if let Value::Object(item) = &mut item
                    && !item_kind.is_empty()
                {
                    let known = item.entry("kind").or_insert_with(|| item_kind.into());
                    if known.is_null() {
                        *known = item_kind.into();
                    }
                }
                read_value(item, &format!("{at}items[{i}]: "), objects, complaints);
            }
            return;
        }
        "Service" | "EndpointSlice" | "Node" | "ServiceCIDR" if name.is_empty() => {
            complain("metadata.name: is missing".to_owned());
            return;
        }
        _ => {}
    }
    let object = match kind.as_str() {
        "Service" => read(value).map(|object| Object::Service(Arc::new(defaulted(object)))),
        "EndpointSlice" => read(value).map(|slice| Object::Slice(Arc::new(defaulted_slice(slice)))),
        "Node" => read(value).map(|node| Object::Node(Arc::new(node))),
        "ServiceCIDR" => read(value).map(|cidr| Object::ServiceCidr(Arc::new(cidr))),
        "" => Err("kind: is missing".to_owned()),
        // Other objects may stand in the same file: pods, deployments.
        _ => return,
    };
    match object {
        Ok(object) => objects.push(object),
        Err(what) => complain(what),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|e| format!("{}: {}", e.path(), e.inner()))
}

fn defaulted(mut service: Service) -> Service {
    if service.metadata.namespace.is_empty() {
        service.metadata.namespace = "default".to_owned();
    }
    service
}

fn defaulted_slice(mut slice: EndpointSlice) -> EndpointSlice {
    if slice.metadata.namespace.is_empty() {
        slice.metadata.namespace = "default".to_owned();
    }
    for port in &mut slice.ports {
        port.name.get_or_insert_default();
    }
    slice
}

#[cfg(test)]
mod tests;
