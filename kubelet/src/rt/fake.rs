//! A runtime in memory, for tests: containers run until they are told to end, and any call can be made to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    ContainerSpec, ExecControl, ExecSession, ExecSpec, Image, PodRuntime, RtError, RtEvent,
    RtResult, RuntimePod, SandboxSpec, Signal,
};
use crate::observed::{Container, Exit, Observed, Sandbox, State};
use crate::pod::PodId;

/// The runtime.
#[derive(Default)]
pub struct FakeRuntime {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pods: BTreeMap<String, (PodId, Observed)>,
    images: BTreeSet<String>,
    failures: BTreeMap<&'static str, u32>,
    watchers: Vec<mpsc::Sender<RtEvent>>,
    ignores_term: bool,
    calls: Vec<String>,
    specs: BTreeMap<String, ContainerSpec>,
}

impl FakeRuntime {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Loads an image.
    pub fn load(&self, name: &str) {
        self.lock().images.insert(name.to_owned());
    }

    /// The next `times` calls of `call` fail.
    pub fn fail(&self, call: &'static str, times: u32) {
        self.lock().failures.insert(call, times);
    }

    /// Containers do not end on SIGTERM.
    pub fn ignore_term(&self) {
        self.lock().ignores_term = true;
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// The spec a container was made with.
    pub fn spec(&self, id: &str) -> ContainerSpec {
        self.lock().specs[id].clone()
    }

    /// The program of a container ends.
    pub fn end(&self, id: &str, code: i32) {
        self.lock().end(id, code);
    }

    /// The sandbox of a pod dies.
    pub fn kill_sandbox(&self, uid: &str) {
        let mut inner = self.lock();
        let (_, observed) = inner.pods.get_mut(uid).unwrap();
        observed.sandbox.as_mut().unwrap().ready = false;
        let ids: Vec<_> = observed.containers.iter().map(|c| c.id.clone()).collect();
        ids.iter().for_each(|id| inner.end(id, 137));
        inner.tell(uid);
    }
}

impl Inner {
    fn call(&mut self, name: &'static str, object: &str) -> RtResult<()> {
        self.calls.push(format!("{name} {object}"));
        match self.failures.get_mut(name) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(RtError::new(format!("{name}: injected")))
            }
            _ => Ok(()),
        }
    }

    fn tell(&self, uid: &str) {
        for watcher in &self.watchers {
            watcher.try_send(RtEvent::Changed(uid.to_owned())).ok();
        }
    }

    fn container(&mut self, id: &str) -> RtResult<(String, &mut Container)> {
        for (uid, (_, observed)) in &mut self.pods {
            if let Some(c) = observed.containers.iter_mut().find(|c| c.id == id) {
                return Ok((uid.clone(), c));
            }
        }
        Err(RtError {
            message: format!("container {id} is not there"),
            not_found: true,
        })
    }

    fn end(&mut self, id: &str, code: i32) {
        let (uid, container) = self.container(id).unwrap();
        if let State::Running { started } = container.state {
            container.state = State::Exited(Exit {
                code,
                started: Some(started),
                finished: Some(Timestamp::now()),
                ..Exit::default()
            });
        }
        self.tell(&uid);
    }
}

impl PodRuntime for FakeRuntime {
    fn pods(&self) -> RtResult<Vec<RuntimePod>> {
        let inner = self.lock();
        let all = inner.pods.values().cloned();
        Ok(all
            .map(|(pod, observed)| RuntimePod { pod, observed })
            .collect())
    }

    fn pod(&self, uid: &str) -> RtResult<Observed> {
        let inner = self.lock();
        Ok(inner
            .pods
            .get(uid)
            .map(|(_, o)| o.clone())
            .unwrap_or_default())
    }

    fn image(&self, name: &str) -> RtResult<Option<Image>> {
        let mut inner = self.lock();
        inner.call("image", name)?;
        let image = Image {
            id: "sha256:1".into(),
            cmd: vec!["/run".into()],
            ..Image::default()
        };
        Ok(inner.images.contains(name).then_some(image))
    }

    fn images(&self) -> RtResult<Vec<Image>> {
        Ok(Vec::new())
    }

    fn create_sandbox(&self, spec: SandboxSpec) -> RtResult<()> {
        let mut inner = self.lock();
        inner.call("create_sandbox", &spec.id)?;
        let id = PodId {
            uid: spec.id.clone(),
            namespace: spec.namespace,
            name: spec.name,
        };
        let entry = inner
            .pods
            .entry(spec.id.clone())
            .or_insert((id, Observed::default()));
        entry.1.sandbox = Some(Sandbox {
            id: spec.id.clone(),
            ready: true,
            ips: Vec::new(),
        });
        inner.tell(&spec.id);
        Ok(())
    }

    fn remove_sandbox(&self, id: &str) -> RtResult<()> {
        let mut inner = self.lock();
        inner.call("remove_sandbox", id)?;
        inner.pods.remove(id);
        inner.tell(id);
        Ok(())
    }

    fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> RtResult<()> {
        let mut inner = self.lock();
        inner.call("create_container", &spec.id)?;
        inner.specs.insert(spec.id.clone(), spec.clone());
        let (_, observed) = inner.pods.get_mut(sandbox).unwrap();
        observed.containers.push(Container {
            id: spec.id,
            name: spec.name,
            attempt: spec.attempt,
            sandbox_id: sandbox.to_owned(),
            image: spec.image,
            image_id: "sha256:1".into(),
            state: State::Created,
        });
        Ok(())
    }

    fn start_container(&self, id: &str) -> RtResult<()> {
        let mut inner = self.lock();
        let result = inner.call("start_container", id);
        let (uid, container) = inner.container(id)?;
        let now = Timestamp::now();
        container.state = match &result {
            Ok(()) => State::Running { started: now },
            Err(e) => State::Exited(Exit {
                code: 128,
                finished: Some(now),
                reason: Some("StartError".into()),
                message: Some(e.to_string()),
                ..Exit::default()
            }),
        };
        inner.tell(&uid);
        result
    }

    fn signal(&self, id: &str, signal: Signal) -> RtResult<()> {
        let mut inner = self.lock();
        inner.call("signal", &format!("{id} {signal:?}"))?;
        match signal {
            Signal::Term if inner.ignores_term => {}
            Signal::Term => inner.end(id, 143),
            Signal::Kill => inner.end(id, 137),
        }
        Ok(())
    }

    fn remove_container(&self, id: &str) -> RtResult<()> {
        let mut inner = self.lock();
        inner.call("remove_container", id)?;
        for (_, observed) in inner.pods.values_mut() {
            observed.containers.retain(|c| c.id != id);
        }
        Ok(())
    }

    /// Knows two programs: `cat`, which ends with 0 after its input, and `fail`, which complains and ends
    /// with 7.
    fn exec(&self, id: &str, spec: &ExecSpec) -> RtResult<ExecSession> {
        self.lock().call("exec", id)?;
        program(&spec.argv)
    }

    fn attach(&self, _: &str, _: bool) -> RtResult<ExecSession> {
        Err(RtError::new("the fake runs no programs"))
    }

    fn watch(&self) -> RtResult<mpsc::Receiver<RtEvent>> {
        let (sender, receiver) = mpsc::channel(1024);
        self.lock().watchers.push(sender);
        Ok(receiver)
    }
}

struct Thread(
    Mutex<Option<std::thread::JoinHandle<i32>>>,
    Mutex<(u16, u16)>,
);

impl ExecControl for Thread {
    fn wait(&self) -> RtResult<i32> {
        let thread = self.0.lock().unwrap().take();
        thread
            .and_then(|t| t.join().ok())
            .ok_or_else(|| RtError::new("the program is gone"))
    }

    fn resize(&self, width: u16, height: u16) -> RtResult<()> {
        *self.1.lock().unwrap() = (width, height);
        Ok(())
    }

    fn kill(&self) {}
}

fn program(argv: &[String]) -> RtResult<ExecSession> {
    use std::fs::File;
    use std::io::{Read, Write};
    let pipe = || nix::unistd::pipe().unwrap();
    let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) =
        (pipe(), pipe(), pipe());
    let name = argv.first().cloned().unwrap_or_default();
    let run = move || {
        let (mut input, mut out) = (File::from(in_read), File::from(out_write));
        let mut err = File::from(err_write);
        match name.as_str() {
            "cat" => {
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = input.read(&mut buffer) {
                    out.write_all(&buffer[..n]).unwrap();
                }
                0
            }
            _ => {
                err.write_all(b"sorry").unwrap();
                7
            }
        }
    };
    let thread = std::thread::spawn(run);
    Ok(ExecSession {
        stdin: Some(in_write),
        stdout: Some(out_read),
        stderr: Some(err_read),
        control: Box::new(Thread(Mutex::new(Some(thread)), Mutex::default())),
    })
}
