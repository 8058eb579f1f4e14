//! From a pod's container to what the runtime gets: arguments, mounts, user, privileges, limits. Pure but for
//! the directories `files` makes.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use runtime::{ContainerSpec, Mount, Propagation, Security, User};

use crate::env::expand;
use crate::pod::{self, PodId};
use crate::qos;
use crate::rt::{Image, container_id};
use crate::volumes::Volumes;

/// Where upstream's kubelet collects termination messages by default.
const TERMINATION_PATH_DEFAULT: &str = "/dev/termination-log";

/// A container that cannot be made as its spec says; shown as CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A mount of a volume the pod does not have.
    #[error("volumeMount \"{0}\": the pod has no such volume")]
    NoVolume(String),
    /// A subPath that leaves its volume.
    #[error("volumeMount \"{name}\": subPath \"{path}\" must be relative and stay in the volume")]
    SubPath {
        /// The volume.
        name: String,
        /// The path.
        path: String,
    },
    /// A subPathExpr with a variable the container does not have.
    #[error("volumeMount \"{name}\": subPathExpr: missing value for \"{variable}\"")]
    SubPathExpr {
        /// The volume.
        name: String,
        /// The variable.
        variable: String,
    },
    /// No program to run.
    #[error("no command specified: neither the container nor the image \"{0}\" names one")]
    NoCommand(String),
    /// runAsNonRoot with a root user.
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    /// runAsNonRoot with an image user that is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root"
    )]
    NonNumericUser(String),
}

/// What the node gives every container.
#[derive(Debug, Clone)]
pub struct Place {
    /// The kubelet's directory of the pod.
    pub pod_dir: PathBuf,
    /// The pod's log directory.
    pub log_dir: PathBuf,
    /// The pod's cgroup.
    pub cgroup: String,
    /// The node's memory in bytes.
    pub node_memory_bytes: i64,
}

/// The runtime's spec of run `attempt` of `container`.
pub fn container_spec(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    image: &Image,
    env: Vec<(String, String)>,
    volumes: &Volumes,
    place: &Place,
) -> Result<ContainerSpec, Error> {
    let get = |name: &str| {
        let found = env.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.clone())
    };
    let expand_all = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        let list = list.as_ref().filter(|l| !l.is_empty())?;
        Some(list.iter().map(|a| expand(a, get)).collect())
    };
    let name = container.image.clone().unwrap_or_default();
    let argv = argv(
        expand_all(&container.command),
        expand_all(&container.args),
        image,
    );
    if argv.is_empty() {
        return Err(Error::NoCommand(name));
    }
    let context = container.security_context.as_ref();
    let user = user(pod, context, image)?;
    let file = format!("{}-{attempt}", container.name);
    let mut mounts = mounts(container, volumes, &get)?;
    add_etc_files(&mut mounts, place);
    let target = container.termination_message_path.clone();
    // The runtime adds the image's own variables.
    let host = ("HOSTNAME".to_owned(), pod::hostname(pod));
    let host = Some(host).filter(|(n, _)| get(n).is_none());
    let id = PodId::of(pod);
    Ok(ContainerSpec {
        id: container_id(&id.uid, &container.name, attempt),
        name: container.name.clone(),
        attempt,
        image: name,
        argv,
        cwd: container.working_dir.clone().unwrap_or_default(),
        mounts,
        user,
        security: security(context),
        cgroup: format!("{}/{file}", place.cgroup),
        limits: qos::container_limits(container),
        oom_score_adj: Some(qos::oom_score_adj(pod, container, place.node_memory_bytes)),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        termination_log: Some(place.pod_dir.join("containers").join(&file)),
        termination_target: Some(
            target
                .unwrap_or_else(|| TERMINATION_PATH_DEFAULT.into())
                .into(),
        ),
        log_path: Some(log_path(&place.log_dir, &container.name, attempt)),
        env: host.into_iter().chain(env).collect(),
        ..ContainerSpec::default()
    })
}

/// The log file of one run below the pod's log directory.
pub fn log_path(log_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    log_dir.join(container).join(format!("{attempt}.log"))
}

/// command replaces the image's ENTRYPOINT and CMD, args only its CMD.
fn argv(command: Option<Vec<String>>, args: Option<Vec<String>>, image: &Image) -> Vec<String> {
    match (command, args) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [image.entrypoint.clone(), args].concat(),
        (None, None) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    }
}

fn mounts(
    container: &Container,
    volumes: &Volumes,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(volume) = volumes.paths.get(&mount.name) else {
            return Err(Error::NoVolume(mount.name.clone()));
        };
        let missing = RefCell::new(None);
        let noted = |variable: &str| {
            let value = get(variable);
            if value.is_none() {
                missing.replace(Some(variable.to_owned()));
            }
            value
        };
        let expr = mount.sub_path_expr.as_deref().map(|e| expand(e, noted));
        if let Some(variable) = missing.into_inner() {
            let name = mount.name.clone();
            return Err(Error::SubPathExpr { name, variable });
        }
        let sub = expr.or(mount.sub_path.clone()).filter(|s| !s.is_empty());
        let source = match sub {
            None => volume.path.clone(),
            Some(sub) => {
                let inside = Path::new(&sub)
                    .components()
                    .all(|c| matches!(c, std::path::Component::Normal(_)));
                if !inside {
                    let name = mount.name.clone();
                    return Err(Error::SubPath { name, path: sub });
                }
                volume.path.join(sub)
            }
        };
        mounts.push(Mount {
            source,
            target: mount.mount_path.clone().into(),
            read_only: volume.read_only || mount.read_only == Some(true),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

/// /etc/hosts and resolv.conf, unless the container mounts something there itself.
fn add_etc_files(mounts: &mut Vec<Mount>, place: &Place) {
    for (file, target) in [
        ("etc-hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
        ("hostname", "/etc/hostname"),
    ] {
        if mounts.iter().any(|m| m.target == Path::new(target)) {
            continue;
        }
        mounts.push(Mount {
            source: place.pod_dir.join(file),
            target: target.into(),
            ..Mount::default()
        });
    }
}

fn user(pod: &Pod, context: Option<&SecurityContext>, image: &Image) -> Result<User, Error> {
    let of_pod: Option<&PodSecurityContext> = pod::spec(pod).security_context.as_ref();
    let number = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
    let own = context.and_then(|c| c.run_as_user);
    let uid = number(own.or(of_pod.and_then(|c| c.run_as_user)));
    let own = context.and_then(|c| c.run_as_group);
    let gid = number(own.or(of_pod.and_then(|c| c.run_as_group)));
    let extra = of_pod.and_then(|c| c.supplemental_groups.as_deref());
    let mut groups: Vec<_> = extra
        .unwrap_or_default()
        .iter()
        .filter_map(|g| u32::try_from(*g).ok())
        .collect();
    groups.extend(number(of_pod.and_then(|c| c.fs_group)));
    let own = context.and_then(|c| c.run_as_non_root);
    let non_root = own.or(of_pod.and_then(|c| c.run_as_non_root)) == Some(true);
    if non_root {
        let of_image = image.user.split(':').next().unwrap_or_default();
        match uid {
            Some(0) => return Err(Error::Root),
            Some(_) => {}
            None if of_image.is_empty() || of_image == "0" || of_image == "root" => {
                return Err(Error::Root);
            }
            None if of_image.parse::<u32>().is_err() => {
                return Err(Error::NonNumericUser(of_image.to_owned()));
            }
            None => {}
        }
    }
    Ok(User {
        uid,
        gid,
        groups,
        non_root,
    })
}

fn security(context: Option<&SecurityContext>) -> Security {
    let Some(context) = context else {
        return Security::default();
    };
    let caps = context.capabilities.as_ref();
    let names = |list: Option<&Vec<String>>| -> Vec<String> {
        let list = list.into_iter().flatten();
        list.map(|c| c.to_uppercase().trim_start_matches("CAP_").to_owned())
            .collect()
    };
    Security {
        privileged: context.privileged == Some(true),
        read_only_root: context.read_only_root_filesystem == Some(true),
        no_new_privileges: context.allow_privilege_escalation == Some(false),
        add_caps: names(caps.and_then(|c| c.add.as_ref())),
        drop_caps: names(caps.and_then(|c| c.drop.as_ref())),
    }
}

#[cfg(test)]
mod tests;
