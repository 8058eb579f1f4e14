//! The workspace's container runtime behind the kubelet's trait.

use nix::sys::signal::Signal as UnixSignal;
use runtime::{ContainerState, ContainerStatus, Runtime, SandboxStatus};
use tokio::sync::mpsc;

use super::{
    ContainerSpec, ExecControl, ExecSession, ExecSpec, Image, PodRuntime, RtError, RtEvent,
    RtResult, RuntimePod, SandboxSpec, Signal,
};
use crate::observed::{Container, Exit, Observed, Sandbox, State};
use crate::pod::PodId;

/// Changes that may wait.
const QUEUE: usize = 256;

/// The runtime.
#[derive(Debug, Clone)]
pub struct RealRuntime {
    inner: Runtime,
}

impl RealRuntime {
    /// Over an open runtime.
    pub fn new(inner: Runtime) -> Self {
        Self { inner }
    }
}

impl From<runtime::Error> for RtError {
    fn from(e: runtime::Error) -> Self {
        Self {
            not_found: e.is_not_found(),
            message: e.to_string(),
        }
    }
}

fn container(c: ContainerStatus) -> Container {
    let state = match c.state {
        ContainerState::Created => State::Created,
        ContainerState::Running { started_at, .. } => State::Running {
            started: started_at,
        },
        ContainerState::Exited(exit) => State::Exited(Exit {
            code: exit.code,
            oom: exit.oom_killed,
            started: exit.started_at,
            finished: exit.finished_at,
            reason: Some(exit.reason).filter(|r| !r.is_empty()),
            message: Some(exit.message).filter(|m| !m.is_empty()),
        }),
    };
    Container {
        id: c.id,
        name: c.name,
        attempt: c.attempt,
        sandbox_id: c.sandbox_id,
        image: c.image,
        image_id: c.image_id,
        state,
    }
}

fn sandbox(s: &SandboxStatus) -> Sandbox {
    Sandbox {
        id: s.spec.id.clone(),
        ready: s.ready,
        ips: Vec::new(),
    }
}

fn image(i: runtime::Image) -> Image {
    Image {
        id: i.id,
        names: i.names,
        entrypoint: i.config.entrypoint,
        cmd: i.config.cmd,
        user: i.config.user,
        size_bytes: i.size_bytes,
    }
}

impl PodRuntime for RealRuntime {
    fn pods(&self) -> RtResult<Vec<RuntimePod>> {
        let mut pods = Vec::new();
        for s in self.inner.sandboxes()? {
            let pod = PodId {
                uid: s.spec.id.clone(),
                namespace: s.spec.namespace.clone(),
                name: s.spec.name.clone(),
            };
            let containers = self.inner.containers_of(&s.spec.id)?;
            let observed = Observed {
                sandbox: Some(sandbox(&s)),
                containers: containers.into_iter().map(container).collect(),
            };
            pods.push(RuntimePod { pod, observed });
        }
        Ok(pods)
    }

    fn pod(&self, uid: &str) -> RtResult<Observed> {
        let found = match self.inner.sandbox_status(uid) {
            Ok(found) => Some(sandbox(&found)),
            Err(e) if e.is_not_found() => return Ok(Observed::default()),
            Err(e) => return Err(e.into()),
        };
        let containers = self.inner.containers_of(uid)?;
        Ok(Observed {
            sandbox: found,
            containers: containers.into_iter().map(container).collect(),
        })
    }

    fn image(&self, name: &str) -> RtResult<Option<Image>> {
        Ok(self.inner.images().resolve(name)?.map(image))
    }

    fn images(&self) -> RtResult<Vec<Image>> {
        Ok(self.inner.images().list()?.into_iter().map(image).collect())
    }

    fn create_sandbox(&self, spec: SandboxSpec) -> RtResult<()> {
        Ok(self.inner.create_sandbox(&spec)?)
    }

    fn remove_sandbox(&self, id: &str) -> RtResult<()> {
        Ok(self.inner.remove_sandbox(id)?)
    }

    fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> RtResult<()> {
        Ok(self.inner.create_container(sandbox, &spec)?)
    }

    fn start_container(&self, id: &str) -> RtResult<()> {
        Ok(self.inner.start_container(id)?)
    }

    fn signal(&self, id: &str, signal: Signal) -> RtResult<()> {
        let number = match signal {
            Signal::Term => match self.inner.stop_signal(id) {
                Ok(number) => number,
                Err(e) if e.is_not_found() => return Ok(()),
                Err(e) => return Err(e.into()),
            },
            Signal::Kill => UnixSignal::SIGKILL,
        };
        Ok(self.inner.signal_container(id, number)?)
    }

    fn remove_container(&self, id: &str) -> RtResult<()> {
        Ok(self.inner.remove_container(id)?)
    }

    fn exec(&self, id: &str, spec: &ExecSpec) -> RtResult<ExecSession> {
        Ok(session(self.inner.exec(id, spec)?))
    }

    fn attach(&self, id: &str, stdin: bool) -> RtResult<ExecSession> {
        Ok(session(self.inner.attach(id, stdin)?))
    }

    fn watch(&self) -> RtResult<mpsc::Receiver<RtEvent>> {
        let mut watch = self.inner.watch()?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let again = self.inner.clone();
        let run = move || {
            loop {
                let event = match watch.next(None) {
                    Ok(Some(event)) => RtEvent::Changed(event.sandbox_id),
                    Ok(None) => continue,
                    Err(e) => {
                        tracing::warn!(error = %e, "watching containers anew");
                        match again.watch() {
                            Ok(fresh) => watch = fresh,
                            Err(e) => {
                                tracing::error!(error = %e, "cannot watch containers");
                                return;
                            }
                        }
                        RtEvent::All
                    }
                };
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("runtime-watch".to_owned())
            .spawn(run)
            .map_err(|e| RtError::new(format!("start the thread that watches containers: {e}")))?;
        Ok(receiver)
    }
}

struct Control(runtime::ExecSession);

impl ExecControl for Control {
    fn wait(&self) -> RtResult<i32> {
        Ok(self.0.wait()?)
    }

    fn resize(&self, width: u16, height: u16) -> RtResult<()> {
        Ok(self.0.resize(width, height)?)
    }

    fn kill(&self) {
        self.0.kill();
    }
}

fn session(mut session: runtime::ExecSession) -> ExecSession {
    ExecSession {
        stdin: session.stdin.take(),
        stdout: session.stdout.take(),
        stderr: session.stderr.take(),
        control: Box::new(Control(session)),
    }
}
