//! Life cycle hooks: postStart after a container's start, preStop before its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::{Outcome, Worker};
use crate::events::Severity;
use crate::pod;
use crate::probe::check::{self, Verdict};
use crate::rt::PodRuntime;

/// A postStart hook that does not end holds its container back; upstream sets no limit, we do.
const POST_START_LIMIT: Duration = Duration::from_secs(600);

impl Worker {
    /// Runs the postStart hook, if there is one.
    pub(super) fn begin_post_start(&mut self, id: &str, name: &str) {
        let Some((container, _)) = pod::container(&self.pod, name) else {
            return;
        };
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.clone());
        let Some(hook) = hook else { return };
        let run = self.hook(&hook, container, id);
        let id = id.to_owned();
        self.spawn_async(false, async move {
            let result = match tokio::time::timeout(POST_START_LIMIT, run).await {
                Ok(result) => result,
                Err(_) => Err(format!("no end after {} s", POST_START_LIMIT.as_secs())),
            };
            Outcome::PostStart { id, result }
        });
    }

    /// Begins the preStop hook; false when there is none.
    pub(super) fn begin_pre_stop(&self, id: &str, name: &str) -> bool {
        let Some((container, _)) = pod::container(&self.pod, name) else {
            return false;
        };
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.pre_stop.clone());
        let Some(hook) = hook else { return false };
        let run = self.hook(&hook, container, id);
        let (events, pod, id) = (self.ctx.events.clone(), self.pod.clone(), id.to_owned());
        let name = name.to_owned();
        self.spawn_async(false, async move {
            if let Err(message) = run.await {
                let text = format!("PreStopHook failed: {message}");
                events.pod(
                    &pod,
                    Some(&name),
                    Severity::Warning,
                    "FailedPreStopHook",
                    text,
                );
            }
            Outcome::PreStop { id }
        });
        true
    }

    fn hook(
        &self,
        hook: &LifecycleHandler,
        container: &Container,
        id: &str,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let ip = self.ips.first().or(self.ctx.node.ips.first()).copied();
        let rt = self.ctx.rt.clone();
        run(rt, hook.clone(), container.clone(), id.to_owned(), ip)
    }
}

async fn run(
    rt: Arc<dyn PodRuntime>,
    hook: LifecycleHandler,
    container: Container,
    id: String,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(exec) = hook.exec {
        let argv = exec.command.unwrap_or_default();
        let verdict = check::exec(rt, id, argv, None).await;
        return as_result(verdict);
    }
    if let Some(http) = hook.http_get {
        let ip = ip.ok_or("the pod has no address")?;
        return as_result(check::http_get(&http, &container, ip, Duration::from_secs(30)).await);
    }
    if let Some(sleep) = hook.sleep {
        let seconds = sleep.seconds.max(0).unsigned_abs();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    Err("this kind of hook is not supported".to_owned())
}

fn as_result(verdict: Verdict) -> Result<(), String> {
    match verdict {
        Verdict::Good => Ok(()),
        Verdict::Bad(why) => Err(why),
    }
}
