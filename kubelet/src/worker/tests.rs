use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::cni::{Attachment, Error as CniError, Network, NetworkList};
use crate::context::{Board, Node};
use crate::events::{Happened, Recorder};
use crate::kube_api::fake::FakeApi;
use crate::rt::fake::FakeRuntime;
use crate::rt::{PodRuntime, RtEvent};

mod cases;
mod real;

/// A pod network that gives every pod the same address, and counts.
#[derive(Default)]
struct FakeNet {
    failures: Mutex<u32>,
    up: Mutex<i32>,
    spaces: Mutex<i32>,
}

impl Network for FakeNet {
    fn current(&self) -> Result<NetworkList, CniError> {
        Ok(NetworkList {
            name: "fake".into(),
            cni_version: "1.1.0".into(),
            plugins: Vec::new(),
        })
    }

    fn add(&self, planned: &Attachment, _: &PodId) -> Result<Attachment, CniError> {
        *self.up.lock().unwrap() += 1;
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(CniError::NoAddress("injected".into()));
        }
        Ok(Attachment {
            result: json!({"ips": [{"address": "10.244.1.9/24"}]}),
            ..planned.clone()
        })
    }

    fn del(&self, _: &Attachment, _: &PodId) -> Result<(), CniError> {
        *self.up.lock().unwrap() -= 1;
        Ok(())
    }

    fn make_namespace(&self, _: &Path) -> linux::Result<()> {
        *self.spaces.lock().unwrap() += 1;
        Ok(())
    }

    fn remove_namespace(&self, _: &Path) -> linux::Result<()> {
        *self.spaces.lock().unwrap() -= 1;
        Ok(())
    }
}

/// A node of fakes with one worker.
struct Lab {
    rt: Arc<FakeRuntime>,
    net: Arc<FakeNet>,
    api: Arc<FakeApi>,
    ctx: Context,
    events: mpsc::Receiver<Happened>,
    handle: Handle,
    ended: mpsc::Receiver<String>,
    pod: Pod,
    dir: tempfile::TempDir,
}

impl Lab {
    async fn new(spec: &str) -> Self {
        Self::with(spec, |_, _| ()).await
    }

    async fn with(spec: &str, prepare: impl FnOnce(&FakeRuntime, &FakeNet)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rt = Arc::new(FakeRuntime::default());
        rt.load("sample:1");
        let net = Arc::new(FakeNet::default());
        prepare(&rt, &net);
        let api = Arc::new(FakeApi::default());
        let (events, heard) = Recorder::new();
        let (_, services) = tokio::sync::watch::channel(Some(Arc::default()));
        let node = Node {
            name: "n1".into(),
            ips: vec!["172.31.250.11".parse().unwrap()],
            root_dir: dir.path().join("root"),
            logs_dir: dir.path().join("logs"),
            netns_dir: dir.path().join("netns"),
            cgroup_root: "/test".into(),
            memory_bytes: 1 << 30,
            ..Node::default()
        };
        let ctx = Context {
            node: Arc::new(node),
            rt: rt.clone(),
            net: net.clone(),
            api: api.clone(),
            events,
            services,
            board: Arc::new(Board::default()),
        };
        let pod = crate::testing::pod(&spec.replace("IMAGE", "image: \"sample:1\""));
        let (handle, ended) = start(&ctx, &pod, &*rt);
        Self {
            rt,
            net,
            api,
            ctx,
            events: heard,
            handle,
            ended,
            pod,
            dir,
        }
    }

    /// Another kubelet takes the place of this one.
    fn restart(&mut self) {
        self.pod.status = Some(self.status());
        self.handle.task.take().unwrap().abort();
        let (handle, ended) = start(&self.ctx, &self.pod, &*self.rt);
        self.handle = handle;
        self.ended = ended;
    }

    fn status(&self) -> PodStatus {
        let all = self.ctx.board.all();
        all.first().map(|s| (*s.status).clone()).unwrap_or_default()
    }

    /// `Phase ready=N` and the containers' states.
    fn show(&self) -> String {
        let s = self.status();
        let state = |c: &k8s_openapi::api::core::v1::ContainerStatus| {
            let state = c.state.clone().unwrap_or_default();
            let text = match (state.running, state.terminated, state.waiting) {
                (Some(_), ..) => "up".to_owned(),
                (_, Some(t), _) => t.reason.unwrap_or_default(),
                (.., w) => w.and_then(|w| w.reason).unwrap_or_default(),
            };
            let ready = if c.ready { "+" } else { "-" };
            format!(" {}{ready}{text}({})", c.name, c.restart_count)
        };
        let states: String = s.container_statuses.iter().flatten().map(state).collect();
        format!("{}{states}", s.phase.unwrap_or_default())
    }

    #[track_caller]
    fn wait(&self, expect: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        let expect = expect.to_owned();
        async move {
            let done = until(|| self.show() == expect).await;
            assert!(
                done,
                "{at}: wanted {expect:?}, have {:?}; {:?}",
                self.show(),
                self.rt.calls()
            );
        }
    }

    async fn delete(&mut self) {
        self.pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        self.pod.metadata.deletion_grace_period_seconds = Some(30);
        self.update().await;
    }

    async fn update(&self) {
        self.handle.tell(Msg::Pod(Arc::new(self.pod.clone()))).await;
    }

    /// The API server has removed the object: everything must go.
    async fn gone(&mut self) {
        self.handle.tell(Msg::Gone).await;
        let ended = tokio::time::timeout(Duration::from_secs(60), self.ended.recv()).await;
        assert_eq!(
            ended.ok().flatten().as_deref(),
            Some("uid-p"),
            "{:?}",
            self.rt.calls()
        );
        assert_eq!(*self.net.up.lock().unwrap(), 0, "attachments");
        assert_eq!(*self.net.spaces.lock().unwrap(), 0, "network namespaces");
        assert!(self.rt.pods().unwrap().is_empty());
        let left =
            |dir: &str| std::fs::read_dir(self.dir.path().join(dir)).map_or(0, Iterator::count);
        assert_eq!((left("root/pods"), left("logs")), (0, 0), "files");
    }

    fn reasons(&mut self) -> Vec<&'static str> {
        let mut all = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            all.push(event.reason);
        }
        all
    }
}

async fn until(condition: impl Fn() -> bool) -> bool {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .is_ok()
}

fn start(ctx: &Context, pod: &Pod, rt: &dyn PodRuntime) -> (Handle, mpsc::Receiver<String>) {
    let (ended, receiver) = mpsc::channel(1);
    let handle = spawn(ctx.clone(), Arc::new(pod.clone()), ended);
    let mut changes = rt.watch().unwrap();
    let worker = handle.clone();
    tokio::spawn(async move {
        while let Some(RtEvent::Changed(_)) = changes.recv().await {
            worker.tell(Msg::Facts).await;
        }
    });
    (handle, receiver)
}

fn last_phase(patches: &[Value]) -> Option<String> {
    let mut phases = patches.iter().filter_map(|p| p["status"]["phase"].as_str());
    phases.next_back().map(str::to_owned)
}
