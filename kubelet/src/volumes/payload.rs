//! What the files of configMap, secret, downwardAPI and projected volumes contain. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume,
};

use super::VolumeError;
use super::atomic::{FileData, Payload, is_valid_path};
use crate::downward;
use crate::env::Lookup;
use crate::pod;

/// defaultMode of all of them.
const MODE_DEFAULT: i32 = 0o644;

/// One part of a volume's files.
#[derive(Debug, Clone, PartialEq)]
pub enum Source<'a> {
    /// Keys of an object.
    Object {
        /// `ConfigMap` or `Secret`.
        kind: Kind,
        /// Its name.
        name: String,
        /// Which keys go where; all under their own names when empty.
        items: &'a [KeyToPath],
        /// May be missing.
        optional: bool,
    },
    /// Facts of the pod.
    Downward(&'a [DownwardAPIVolumeFile]),
    /// A token of the pod's service account.
    Token(&'a ServiceAccountTokenProjection),
}

/// Kind of object with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// ConfigMap
    ConfigMap,
    /// Secret
    Secret,
}

impl Kind {
    /// As messages spell it.
    pub fn title(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// The sources and the default mode of a volume made of files; `None` for other kinds of volume.
pub fn sources(volume: &Volume) -> Option<(Vec<Source<'_>>, i32)> {
    if let Some(v) = &volume.config_map {
        let source = object(Kind::ConfigMap, &v.name, v.items.as_deref(), v.optional);
        return Some((vec![source], v.default_mode.unwrap_or(MODE_DEFAULT)));
    }
    if let Some(v) = &volume.secret {
        let name = v.secret_name.as_deref().unwrap_or_default();
        let source = object(Kind::Secret, name, v.items.as_deref(), v.optional);
        return Some((vec![source], v.default_mode.unwrap_or(MODE_DEFAULT)));
    }
    if let Some(v) = &volume.downward_api {
        let source = Source::Downward(v.items.as_deref().unwrap_or_default());
        return Some((vec![source], v.default_mode.unwrap_or(MODE_DEFAULT)));
    }
    let projected = volume.projected.as_ref()?;
    let mut all = Vec::new();
    for s in projected.sources.iter().flatten() {
        if let Some(v) = &s.config_map {
            let items = v.items.as_deref();
            all.push(object(Kind::ConfigMap, &v.name, items, v.optional));
        }
        if let Some(v) = &s.secret {
            let items = v.items.as_deref();
            all.push(object(Kind::Secret, &v.name, items, v.optional));
        }
        if let Some(v) = &s.downward_api {
            all.push(Source::Downward(v.items.as_deref().unwrap_or_default()));
        }
        if let Some(v) = &s.service_account_token {
            all.push(Source::Token(v));
        }
    }
    Some((all, projected.default_mode.unwrap_or(MODE_DEFAULT)))
}

fn object<'a>(
    kind: Kind,
    name: &str,
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
) -> Source<'a> {
    Source::Object {
        kind,
        name: name.to_owned(),
        items: items.unwrap_or_default(),
        optional: optional == Some(true),
    }
}

/// The objects a pod's volumes and variables refer to.
pub fn references(pod: &Pod) -> Vec<(Kind, String)> {
    let mut all = Vec::new();
    for volume in pod::spec(pod).volumes.iter().flatten() {
        for source in sources(volume).map(|(s, _)| s).unwrap_or_default() {
            if let Source::Object { kind, name, .. } = source {
                all.push((kind, name));
            }
        }
    }
    for (c, _) in pod::all_containers(pod) {
        all.extend(env_references(c));
    }
    all.sort();
    all.dedup();
    all
}

/// The objects a container's variables refer to.
pub fn env_references(c: &k8s_openapi::api::core::v1::Container) -> Vec<(Kind, String)> {
    let mut all = Vec::new();
    for from in c.env_from.iter().flatten() {
        all.extend(
            from.config_map_ref
                .iter()
                .map(|r| (Kind::ConfigMap, r.name.clone())),
        );
        all.extend(
            from.secret_ref
                .iter()
                .map(|r| (Kind::Secret, r.name.clone())),
        );
    }
    for from in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        let r = from.config_map_key_ref.iter();
        all.extend(r.map(|r| (Kind::ConfigMap, r.name.clone())));
        let r = from.secret_key_ref.iter();
        all.extend(r.map(|r| (Kind::Secret, r.name.clone())));
    }
    all
}

/// The files of one volume. `tokens` holds the tokens by path.
pub fn payload(
    pod: &Pod,
    sources: &[Source<'_>],
    mode: i32,
    lookup: &dyn Lookup,
    tokens: &BTreeMap<String, String>,
) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    for source in sources {
        match source {
            Source::Object {
                kind,
                name,
                items,
                optional,
            } => put_object(&mut files, (*kind, name), items, (*optional, mode), lookup)?,
            Source::Downward(items) => {
                for item in *items {
                    let bytes = downward_value(pod, item, lookup.facts())?.into_bytes();
                    put(&mut files, &item.path, bytes, item.mode.unwrap_or(mode))?;
                }
            }
            Source::Token(token) => {
                let text = tokens.get(&token.path).cloned().unwrap_or_default();
                put(&mut files, &token.path, text.into_bytes(), mode)?;
            }
        }
    }
    Ok(files)
}

fn put_object(
    files: &mut Payload,
    (kind, name): (Kind, &str),
    items: &[KeyToPath],
    (optional, mode): (bool, i32),
    lookup: &dyn Lookup,
) -> Result<(), VolumeError> {
    let data = match kind {
        Kind::ConfigMap => lookup.config_map(name),
        Kind::Secret => lookup.secret(name),
    };
    let Some(mut data) = data else {
        let (kind, name) = (kind.title(), name.to_owned());
        return if optional {
            Ok(())
        } else {
            Err(VolumeError::NoObject { kind, name })
        };
    };
    if items.is_empty() {
        for (key, bytes) in data {
            put(files, &key, bytes, mode)?;
        }
        return Ok(());
    }
    for item in items {
        match data.remove(&item.key) {
            Some(bytes) => put(files, &item.path, bytes, item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => {
                return Err(VolumeError::NoKey {
                    kind: kind.title(),
                    name: name.to_owned(),
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

fn downward_value(
    pod: &Pod,
    item: &DownwardAPIVolumeFile,
    facts: &downward::Facts,
) -> Result<String, VolumeError> {
    if let Some(field) = &item.field_ref {
        return Ok(downward::field(pod, &field.field_path, facts)?);
    }
    let Some(selector) = &item.resource_field_ref else {
        return Ok(String::new());
    };
    let name = selector.container_name.as_deref().unwrap_or_default();
    let Some((container, _)) = pod::container(pod, name) else {
        return Err(downward::Error::Resource(format!("container \"{name}\"")).into());
    };
    Ok(downward::resource(container, selector, facts)?)
}

fn put(files: &mut Payload, path: &str, bytes: Vec<u8>, mode: i32) -> Result<(), VolumeError> {
    if !is_valid_path(path) {
        return Err(VolumeError::BadPath(path.to_owned()));
    }
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    files.insert(path.to_owned(), FileData { bytes, mode });
    Ok(())
}

#[cfg(test)]
mod tests;
