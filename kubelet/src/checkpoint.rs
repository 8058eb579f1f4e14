//! What must outlive the kubelet, one small file a pod: the pod as last seen and its network attachment.
//! Written with write-to-temporary and rename, so a file is either old or new.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::cni::Attachment;

/// The file's name in the pod's directory.
const FILE: &str = "checkpoint.json";

/// One pod's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The pod as it was when its sandbox was made.
    pub pod: Pod,
    /// Its network, when it has its own.
    pub network: Option<Attachment>,
}

/// The directory of pod `uid`.
pub fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Writes the record of a pod; its directory is made.
pub fn save(root: &Path, uid: &str, record: &Checkpoint) -> io::Result<()> {
    let dir = pod_dir(root, uid);
    fs::create_dir_all(&dir)?;
    write_atomic(&dir.join(FILE), &serde_json::to_vec(record)?)
}

/// Writes `bytes` to `file` by way of a temporary file beside it.
pub fn write_atomic(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, file)
}

/// The record of a pod; `None` when there is none. A broken one is told in the log and counts as none.
pub fn load(root: &Path, uid: &str) -> Option<Checkpoint> {
    let file = pod_dir(root, uid).join(FILE);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!(file = %file.display(), error = %e, "cannot read checkpoint");
            return None;
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(e) => {
            tracing::warn!(file = %file.display(), error = %e, "broken checkpoint");
            None
        }
    }
}

/// The uids of all pods that have a directory.
pub fn uids(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("pods"))
        .into_iter()
        .flatten()
        .flatten();
    let mut uids: Vec<_> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    uids.sort();
    uids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_broken_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let record = Checkpoint {
            pod: crate::testing::pod("web: {}"),
            network: None,
        };
        save(dir.path(), "u1", &record).unwrap();
        assert_eq!(load(dir.path(), "u1"), Some(record));
        assert_eq!(uids(dir.path()), ["u1"]);
        fs::write(pod_dir(dir.path(), "u1").join(FILE), "{").unwrap();
        assert_eq!(load(dir.path(), "u1"), None);
        assert_eq!(load(dir.path(), "u2"), None);
    }
}
