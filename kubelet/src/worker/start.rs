//! Starting one container: image, variables, files, then the runtime. Every failure becomes the reason and
//! message the API shows.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff;
use crate::context::{Context, blocking};
use crate::env::{self, Service};
use crate::events::Severity;
use crate::pod::{self, PodId};
use crate::rt::{ContainerSpec, Image};
use crate::soft::{Failure, Step};
use crate::spec::{self, Place};
use crate::volumes::{Volumes, fetch, payload};

/// Services are read at the kubelet's start; a container waits for them at most this long.
const SERVICES_WAIT: Duration = Duration::from_secs(5);
/// A container whose variables or files cannot be made is tried again after this time at the latest; a
/// change of an object it refers to comes first.
const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// One container to start.
pub(super) struct Job<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) attempt: u32,
    pub(super) volumes: &'a Volumes,
    pub(super) ips: &'a [IpAddr],
    /// Failed tries before this one.
    pub(super) tries: u32,
}

/// Why a container did not start, before its program could.
#[derive(Debug)]
pub(super) struct StartError {
    reason: &'static str,
    /// Reason of the event.
    pub(super) event: &'static str,
    message: String,
    retry_at: Timestamp,
    tries: u32,
}

impl StartError {
    fn config(message: impl ToString, job: &Job<'_>) -> Self {
        Self {
            reason: "CreateContainerConfigError",
            event: "Failed",
            message: message.to_string(),
            retry_at: Timestamp::now() + CONFIG_RETRY,
            tries: job.tries + 1,
        }
    }

    fn create(message: String, job: &Job<'_>) -> Self {
        let reason = "CreateContainerError";
        Self::backing_off(reason, "Failed", message, job)
    }

    /// Tried again after 10 s, doubling to 5 min.
    fn backing_off(
        reason: &'static str,
        event: &'static str,
        message: String,
        job: &Job<'_>,
    ) -> Self {
        let factor = 1i32 << job.tries.min(8);
        let wait = (backoff::INITIAL * factor).min(backoff::MAX);
        Self {
            reason,
            event,
            message,
            retry_at: Timestamp::now() + wait,
            tries: job.tries + 1,
        }
    }

    pub(super) fn step(self) -> Step {
        Step::Failed(Failure {
            reason: self.reason,
            message: self.message,
            retry_at: self.retry_at,
            tries: self.tries,
        })
    }

    pub(super) fn event_message(&self) -> String {
        match self.event {
            "Failed" => format!("Error: {}", self.message),
            _ => self.message.clone(),
        }
    }
}

/// Makes and starts the container; its id. A program that cannot be started is no error here: the
/// runtime then has an ended container with reason StartError, which restarts as any other.
pub(super) async fn start(ctx: &Context, job: Job<'_>) -> Result<String, StartError> {
    let image = image(ctx, &job).await?;
    let spec = make_spec(ctx, &job, &image).await?;
    let id = spec.id.clone();
    let name = &job.container.name;
    let event = |severity, reason, message: String| {
        ctx.events
            .pod(job.pod, Some(name), severity, reason, message);
    };
    let created = {
        let (rt, uid) = (ctx.rt.clone(), PodId::of(job.pod).uid);
        blocking(move || {
            make_places(&spec)?;
            rt.create_container(&uid, spec).map_err(|e| e.to_string())
        })
        .await
    };
    created.map_err(|e| StartError::create(e, &job))?;
    event(
        Severity::Normal,
        "Created",
        format!("Container created: {name}"),
    );
    let (rt, started_id) = (ctx.rt.clone(), id.clone());
    let started = blocking(move || rt.start_container(&started_id)).await;
    match started {
        Ok(()) => event(
            Severity::Normal,
            "Started",
            format!("Container started: {name}"),
        ),
        Err(e) => event(Severity::Warning, "Failed", format!("Error: {e}")),
    }
    Ok(id)
}

async fn image(ctx: &Context, job: &Job<'_>) -> Result<Image, StartError> {
    let name = job.container.image.clone().unwrap_or_default();
    let policy = job.container.image_pull_policy.as_deref();
    let policy = policy.unwrap_or(default_policy(&name));
    let (rt, wanted) = (ctx.rt.clone(), name.clone());
    let found = blocking(move || rt.image(&wanted)).await;
    let found = found.map_err(|e| StartError::create(e.to_string(), job))?;
    let help = format!(
        "pulling images from a registry is not available yet: load it with \"seaway image load FILE\" \
         and use imagePullPolicy IfNotPresent or Never (it is {policy})"
    );
    match (policy, found) {
        ("Never" | "IfNotPresent", Some(image)) => {
            let text = format!("Container image \"{name}\" already present on machine");
            let container = Some(job.container.name.as_str());
            ctx.events
                .pod(job.pod, container, Severity::Normal, "Pulled", text);
            Ok(image)
        }
        ("Never", None) => {
            let text =
                format!("Container image \"{name}\" is not present with pull policy of Never");
            let mut error =
                StartError::backing_off("ErrImageNeverPull", "ErrImageNeverPull", text, job);
            error.retry_at = Timestamp::now() + CONFIG_RETRY;
            Err(error)
        }
        _ if job.tries == 0 => {
            let text = format!("failed to pull image \"{name}\": {help}");
            Err(StartError::backing_off("ErrImagePull", "Failed", text, job))
        }
        _ => {
            let text = format!("Back-off pulling image \"{name}\": ErrImagePull: {help}");
            Err(StartError::backing_off(
                "ImagePullBackOff",
                "BackOff",
                text,
                job,
            ))
        }
    }
}

/// The API's default: Always for the tag `latest` (or none), else IfNotPresent.
fn default_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once(':').map_or("latest", |(_, tag)| tag);
    if tag == "latest" && !image.contains('@') {
        "Always"
    } else {
        "IfNotPresent"
    }
}

async fn make_spec(
    ctx: &Context,
    job: &Job<'_>,
    image: &Image,
) -> Result<ContainerSpec, StartError> {
    let id = PodId::of(job.pod);
    let facts = ctx.node.facts(job.ips, pod::host_network(job.pod));
    let wanted = payload::env_references(job.container);
    let fetched = fetch(&*ctx.api, &id, wanted, facts).await;
    let fetched = fetched.map_err(|e| StartError::config(e, job))?;
    let services = services(ctx, job).await?;
    let env = env::environment(job.pod, job.container, &services, &fetched)
        .map_err(|e| StartError::config(e, job))?;
    let place = Place {
        pod_dir: ctx.node.pod_dir(&id.uid),
        log_dir: ctx.node.log_dir(&id),
        cgroup: ctx.node.cgroup(&id.uid),
        node_memory_bytes: ctx.node.memory_bytes,
    };
    spec::container_spec(
        job.pod,
        job.container,
        job.attempt,
        image,
        env,
        job.volumes,
        &place,
    )
    .map_err(|e| StartError::config(e, job))
}

/// The services a container of the pod hears of: `kubernetes`, and those of its namespace unless it
/// does not want them.
async fn services(ctx: &Context, job: &Job<'_>) -> Result<Vec<Service>, StartError> {
    let mut watch = ctx.services.clone();
    let known = tokio::time::timeout(SERVICES_WAIT, watch.wait_for(Option::is_some)).await;
    let all = match known {
        Ok(Ok(all)) => all.clone().unwrap_or_default(),
        Ok(Err(_)) | Err(_) => {
            let text = "services have not yet been read at least once, cannot construct envvars";
            return Err(StartError::config(text, job));
        }
    };
    Ok(select_services(&all, job.pod))
}

fn select_services(all: &BTreeMap<(String, String), Service>, pod: &Pod) -> Vec<Service> {
    let own = pod.metadata.namespace.clone().unwrap_or_default();
    let links = pod::spec(pod).enable_service_links != Some(false);
    let master = all.get(&("default".to_owned(), "kubernetes".to_owned()));
    let in_own = all.iter().filter(|((ns, name), _)| {
        links && *ns == own && !(ns == "default" && name == "kubernetes")
    });
    master
        .into_iter()
        .chain(in_own.map(|(_, s)| s))
        .cloned()
        .collect()
}

/// Directories and files the mounts and the log need.
fn make_places(spec: &ContainerSpec) -> Result<(), String> {
    let make = |dir: Option<&Path>| -> Result<(), String> {
        let Some(dir) = dir else { return Ok(()) };
        fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))
    };
    make(spec.log_path.as_deref().and_then(Path::parent))?;
    make(spec.termination_log.as_deref().and_then(Path::parent))?;
    if let Some(file) = &spec.termination_log {
        // Whoever the container runs as may write its last words.
        fs::write(file, b"")
            .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(0o666)))
            .map_err(|e| format!("make {}: {e}", file.display()))?;
    }
    for mount in &spec.mounts {
        // A subPath (or an untyped hostPath) that is not there is made as a directory.
        if !mount.source.exists() {
            make(Some(&mount.source))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_policies() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("r:5000/a", "Always"),
            ("r:5000/a:1", "IfNotPresent"),
            ("a@sha256:1", "IfNotPresent"),
        ] {
            assert_eq!(default_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn services_of_the_own_namespace_and_the_masters() {
        let service = |name: &str| Service {
            name: name.into(),
            cluster_ip: "10.96.0.1".into(),
            ports: Vec::new(),
        };
        let all: BTreeMap<_, _> = [("default", "kubernetes"), ("default", "a"), ("other", "b")]
            .map(|(ns, n)| ((ns.to_owned(), n.to_owned()), service(n)))
            .into();
        let names = |spec: &str| {
            let all = select_services(&all, &crate::testing::pod(spec));
            all.iter()
                .map(|s| s.name.clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names("p: {}"), "kubernetes a");
        assert_eq!(names("p: {enableServiceLinks: false}"), "kubernetes");
    }
}
