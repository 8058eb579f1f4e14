//! The volumes of a pod on this node's disk: making them, keeping them up to date, removing them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, Pod, Volume};
use nix::mount::MsFlags;

use crate::checkpoint::pod_dir;
use crate::downward;
use crate::kube_api::{ApiError, Data, KubeApi, TokenAsk};
use crate::pod::{self, PodId};
use crate::quantity;

pub mod atomic;
pub mod owner;
pub mod payload;

use payload::{Kind, Source};

/// Life time of a token whose projection names none, as the API's default.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;
/// A token is renewed after this share of its life (upstream: 80 %).
const TOKEN_RENEW_PERCENT: i64 = 80;

/// Why a volume cannot be used; shown in a FailedMount event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such ConfigMap or Secret.
    #[error("{kind} \"{name}\" not found")]
    NoObject {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object lacks a key.
    #[error("{kind} \"{name}\" has no key \"{key}\"")]
    NoKey {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A path that would leave the volume.
    #[error("path \"{0}\" must be relative and stay in the volume")]
    BadPath(String),
    /// A downward API reference that says nothing.
    #[error(transparent)]
    Downward(#[from] downward::Error),
    /// A kind of volume that is not supported.
    #[error("this kind of volume is not supported")]
    Unsupported,
    /// hostPath type does not fit what is there.
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPath {
        /// The path.
        path: String,
        /// What it should be.
        expected: String,
    },
    /// The API server's answer.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The file system's answer.
    #[error("{what}: {source}")]
    Io {
        /// Operation and path.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] linux::Error),
}

/// Where the volumes lie, and when one of them has to be renewed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Volumes {
    /// Directory (or file, for some hostPaths) by volume name.
    pub paths: BTreeMap<String, VolumePath>,
    /// A token wants to be renewed then.
    pub refresh_at: Option<Timestamp>,
}

/// Where one volume lies.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumePath {
    /// On the host.
    pub path: PathBuf,
    /// Containers may not write whatever their mount says.
    pub read_only: bool,
}

/// Objects fetched before, as env and payload want them.
pub struct Fetched {
    /// By kind and name; `None` when there is no such object.
    pub objects: BTreeMap<(Kind, String), Option<Data>>,
    /// The facts of the downward API.
    pub facts: downward::Facts,
}

impl crate::env::Lookup for Fetched {
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let found = self.objects.get(&(Kind::ConfigMap, name.to_owned()))?;
        found.as_ref().map(|d| BTreeMap::clone(d))
    }
    fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let found = self.objects.get(&(Kind::Secret, name.to_owned()))?;
        found.as_ref().map(|d| BTreeMap::clone(d))
    }
    fn facts(&self) -> &downward::Facts {
        &self.facts
    }
}

/// Fetches `wanted` objects of the pod's namespace.
pub async fn fetch(
    api: &dyn KubeApi,
    pod: &PodId,
    wanted: Vec<(Kind, String)>,
    facts: downward::Facts,
) -> Result<Fetched, ApiError> {
    let one = |(kind, name): (Kind, String)| async move {
        let data = api.object(kind, &pod.namespace, &name, &pod.uid).await?;
        Ok::<_, ApiError>(((kind, name), data))
    };
    let objects = futures::future::try_join_all(wanted.into_iter().map(one)).await?;
    let objects = objects.into_iter().collect();
    Ok(Fetched { objects, facts })
}

/// Makes (or brings up to date) every volume of the pod; an error names the volume.
pub async fn prepare(
    api: &dyn KubeApi,
    root: &Path,
    pod: &Pod,
    facts: downward::Facts,
) -> Result<Volumes, String> {
    let id = PodId::of(pod);
    let wanted = payload::references(pod);
    let fetched = fetch(api, &id, wanted, facts)
        .await
        .map_err(|e| e.to_string())?;
    let mut volumes = Volumes::default();
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let fail = |e: VolumeError| {
            format!(
                "MountVolume.SetUp failed for volume \"{}\" : {e}",
                volume.name
            )
        };
        let dir = |plugin: &str| {
            let volumes = pod_dir(root, &id.uid).join("volumes");
            volumes.join(plugin).join(&volume.name)
        };
        let tokens = tokens(api, &id, pod, volume).await.map_err(fail)?;
        let renew = tokens.values().map(|(_, renew)| *renew).min();
        volumes.refresh_at = match (volumes.refresh_at, renew) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let group = fs_group(pod);
        let path = if let Some((sources, mode)) = payload::sources(volume) {
            let tokens = tokens.into_iter().map(|(k, (text, _))| (k, text)).collect();
            let files = payload::payload(pod, &sources, mode, &fetched, &tokens).map_err(fail)?;
            let dir = dir("kubernetes.io~projected");
            let path = dir.clone();
            blocking(move || file_volume(&dir, &files, group))
                .await
                .map_err(fail)?;
            VolumePath {
                path,
                read_only: true,
            }
        } else if let Some(empty) = volume.empty_dir.clone() {
            let dir = dir("kubernetes.io~empty-dir");
            let path = dir.clone();
            let memory = empty.medium.as_deref() == Some("Memory");
            let size = empty.size_limit.as_ref().and_then(quantity::units);
            blocking(move || empty_dir(&dir, memory, size, group))
                .await
                .map_err(fail)?;
            VolumePath {
                path,
                read_only: false,
            }
        } else if let Some(host) = volume.host_path.clone() {
            let path = PathBuf::from(&host.path);
            blocking(move || host_path(&host)).await.map_err(fail)?;
            VolumePath {
                path,
                read_only: false,
            }
        } else {
            return Err(fail(VolumeError::Unsupported));
        };
        volumes.paths.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod::spec(pod).security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

async fn blocking(
    work: impl FnOnce() -> Result<(), VolumeError> + Send + 'static,
) -> Result<(), VolumeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| {
        Err(VolumeError::Io {
            what: "prepare volume".to_owned(),
            source: io::Error::other(e),
        })
    })
}

/// The tokens a volume wants, by path, each with the time to renew it.
async fn tokens(
    api: &dyn KubeApi,
    id: &PodId,
    pod: &Pod,
    volume: &Volume,
) -> Result<BTreeMap<String, (String, Timestamp)>, VolumeError> {
    let mut tokens = BTreeMap::new();
    for source in payload::sources(volume).map(|(s, _)| s).unwrap_or_default() {
        let Source::Token(projection) = source else {
            continue;
        };
        let account = pod::spec(pod).service_account_name.clone();
        let seconds = projection
            .expiration_seconds
            .unwrap_or(TOKEN_SECONDS_DEFAULT);
        let ask = TokenAsk {
            pod: id.clone(),
            account: account.unwrap_or_else(|| "default".to_owned()),
            audience: projection.audience.clone().unwrap_or_default(),
            expiration_seconds: seconds,
        };
        let asked = Timestamp::now();
        let token = api.token(&ask).await?;
        let life = token.expires.duration_since(asked).as_secs().max(0);
        let after = jiff::SignedDuration::from_secs(life * TOKEN_RENEW_PERCENT / 100);
        tokens.insert(projection.path.clone(), (token.text, asked + after));
    }
    Ok(tokens)
}

fn make_dir(dir: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(dir).map_err(|source| VolumeError::Io {
        what: format!("make {}", dir.display()),
        source,
    })
}

fn mount_tmpfs(dir: &Path, options: Option<&str>) -> Result<(), VolumeError> {
    if linux::mount::is_mount_point(dir)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    linux::mount::mount("tmpfs", dir, "tmpfs", flags, options)?;
    Ok(())
}

/// Files from objects lie in memory, so that a secret never reaches the disk.
fn file_volume(dir: &Path, files: &atomic::Payload, group: Option<u32>) -> Result<(), VolumeError> {
    make_dir(dir)?;
    if nix::unistd::geteuid().is_root() {
        mount_tmpfs(dir, Some("mode=755"))?;
    }
    atomic::write(dir, files, group, Timestamp::now()).map_err(|source| VolumeError::Io {
        what: format!("write files of {}", dir.display()),
        source,
    })
}

fn empty_dir(
    dir: &Path,
    memory: bool,
    size: Option<i64>,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let fresh = !dir.exists();
    make_dir(dir)?;
    if memory {
        let size = size.filter(|s| *s > 0);
        let options = size.map(|s| format!("size={s}"));
        mount_tmpfs(dir, options.as_deref())?;
    }
    let io = |source| VolumeError::Io {
        what: format!("prepare {}", dir.display()),
        source,
    };
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(io)?;
    match group.filter(|_| fresh) {
        Some(gid) => owner::give_to_group(dir, gid, false).map_err(io),
        None => Ok(()),
    }
}

fn host_path(volume: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&volume.path);
    let io = |source| VolumeError::Io {
        what: format!("make {}", path.display()),
        source,
    };
    let kind = volume.type_.as_deref().unwrap_or_default();
    if path
        .components()
        .any(|c| c == std::path::Component::ParentDir)
    {
        return Err(VolumeError::BadPath(volume.path.clone()));
    }
    match kind {
        "DirectoryOrCreate" if !path.exists() => return make_dir(path),
        "FileOrCreate" if !path.exists() => {
            return fs::File::create_new(path).map(drop).map_err(io);
        }
        _ => {}
    }
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let fits = match (kind, found) {
        ("", _) => true,
        (_, None) => false,
        ("Directory" | "DirectoryOrCreate", Some(t)) => t.is_dir(),
        ("File" | "FileOrCreate", Some(t)) => t.is_file(),
        ("Socket", Some(t)) => t.is_socket(),
        ("CharDevice", Some(t)) => t.is_char_device(),
        ("BlockDevice", Some(t)) => t.is_block_device(),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(VolumeError::HostPath {
        path: volume.path.clone(),
        expected: format!("a {kind}"),
    })
}

/// Unmounts and removes everything the pod has below the kubelet's directory. Blocks.
pub fn remove(root: &Path, uid: &str) -> Result<(), VolumeError> {
    let dir = pod_dir(root, uid);
    linux::mount::unmount_below(&dir)?;
    match fs::remove_dir_all(&dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(VolumeError::Io {
            what: format!("remove {}", dir.display()),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
