//! Names of images, as container tools write them, made full.

use crate::error::{Error, Result};

/// The registry of names that have none.
const REGISTRY_DEFAULT: &str = "docker.io";
/// The tag of names that have none.
const TAG_DEFAULT: &str = "latest";
/// Longest name that is taken.
const NAME_LEN_MAX: usize = 512;

/// The full form of an image's name: `busybox` becomes `docker.io/library/busybox:latest`. A digest
/// (`name@sha256:...`) stays and makes a tag beside it irrelevant.
///
/// # Errors
/// Not a name by the grammar of <https://github.com/distribution/reference>.
pub fn normalize(name: &str) -> Result<String> {
    let bad = |why: &str| Error::invalid("image", format!("{name:?} {why}"));
    if name.is_empty() {
        return Err(bad("is empty"));
    }
    if name.len() > NAME_LEN_MAX {
        return Err(bad("is too long"));
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|d| !is_digest(d)) {
        return Err(bad("has a malformed digest"));
    }
    // The last colon starts a tag only behind the last slash; before it, it is a port.
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|t| !is_tag(t)) {
        return Err(bad("has a malformed tag"));
    }
    let (registry, repository) = match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (REGISTRY_DEFAULT, path),
    };
    let registry = if registry == "index.docker.io" {
        REGISTRY_DEFAULT
    } else {
        registry
    };
    if !repository.split('/').all(is_component) || registry.is_empty() {
        return Err(bad(
            "is no image name (lower case letters, digits, '.', '_', '-', '/')",
        ));
    }
    let library = registry == REGISTRY_DEFAULT && !repository.contains('/');
    let repository = if library {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    Ok(match digest {
        Some(digest) => format!("{registry}/{repository}@{digest}"),
        None => format!("{registry}/{repository}:{}", tag.unwrap_or(TAG_DEFAULT)),
    })
}

/// `sha256:` and 64 lower case hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex_digest)
}

/// 64 lower case hexadecimal digits.
pub(super) fn is_hex_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    !text.is_empty() && text.len() <= 128 && !text.starts_with(['.', '-']) && text.bytes().all(fine)
}

fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edge = |b: Option<u8>| b.is_some_and(alnum);
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| alnum(b) || b"._-".contains(&b))
}
