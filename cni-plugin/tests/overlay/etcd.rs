//! Subnets from a real etcd (Debian's `etcd-server`), inside the fabric's namespace.

use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use api::core::Node;
use api::watch::Event;
use cni_plugin::overlay::daemon::Annotations;
use cni_plugin::overlay::etcd::{Held, Options, Registry};
use cni_plugin::overlay::lease::{self, Attrs};
use cni_plugin::overlay::netconf::NetConf;
use cni_plugin::overlay::node;
use etcd_client::{Client, CompactionOptions};
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use linux::Host;
use linux::link::LinkChange;
use linux::process::Daemon;
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::lab::{Lab, kernel, wait_until};
use crate::program::Program;
use crate::seen_as;

const URL: &str = "http://172.31.250.1:2379";
const PREFIX: &str = "/coreos.com/network";
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.9.0","Backend":{"Type":"vxlan"}}"#;

/// Everything here takes milliseconds; this is for a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// A server, killed when dropped.
struct Etcd {
    daemon: Daemon,
    child: Option<Child>,
    _dir: tempfile::TempDir,
}

impl Etcd {
    /// Started; none, said aloud, where it is not installed.
    fn start(test: &str, lab: &Lab) -> Option<Self> {
        let Some(program) = linux::exec::which("etcd") else {
            println!("SKIPPED {test}: etcd is not installed (etcd-server)");
            return None;
        };
        kernel(&lab.fabric)
            .set_link("lo", &LinkChange::up())
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data").display().to_string();
        let args = [
            "--data-dir",
            &data,
            "--listen-client-urls",
            URL,
            "--advertise-client-urls",
            URL,
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
        ];
        let daemon = Daemon {
            program,
            args: args.iter().map(Into::into).collect(),
            netns: Some(lab.fabric.path()),
            log: Some(dir.path().join("log")),
            ..Daemon::default()
        };
        let mut etcd = Self {
            daemon,
            child: None,
            _dir: dir,
        };
        etcd.run();
        Some(etcd)
    }

    fn run(&mut self) {
        self.child = Some(self.daemon.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = i32::try_from(child.id()).unwrap();
            linux::process::signal(pid, Signal::SIGKILL).unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs async work inside the fabric's namespace.
fn inside<T: Send>(lab: &Lab, work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    };
    lab.fabric.run(run).unwrap()
}

/// A client of the test's own, once the server answers.
async fn client() -> Client {
    let mut client = Client::connect([URL], None).await.unwrap();
    let answers = async {
        while client.get("x", None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, answers).await.unwrap();
    client
}

fn options() -> Options {
    Options {
        endpoints: vec![URL.to_owned()],
        prefix: PREFIX.to_owned(),
        ..Options::default()
    }
}

fn attrs(last: u8) -> Attrs {
    lease::first(|_| Some([172, 31, 250, last].into()), false).unwrap()
}

/// Backend data of node `n`.
fn data(n: u8) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{n:02x}"}}"#)
}

/// One node's registry at work.
struct Member {
    held: Held,
    annotations: watch::Sender<Annotations>,
    nodes: UnboundedReceiver<Event<Node>>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn member(conf: &NetConf, last: u8, since: i64) -> Member {
    let mut registry = Registry::connect(&options()).await.unwrap();
    let held = registry.acquire(conf, &attrs(last), None).await.unwrap();
    let (annotations, receiver) = watch::channel(Annotations::new());
    let (sender, nodes) = unbounded();
    let name = format!("n{last}");
    let task = tokio::spawn(registry.run(held.clone(), name, sender, receiver, since));
    Member {
        held,
        annotations,
        nodes,
        task,
    }
}

impl Member {
    /// Reads on until `event` says that it is the awaited one.
    async fn until(&mut self, what: &str, is_it: impl Fn(&Event<Node>) -> bool) {
        let search = async {
            while let Some(event) = self.nodes.next().await {
                if is_it(&event) {
                    return;
                }
            }
            panic!("the events ended before {what}");
        };
        let found = timeout(DEADLINE, search).await;
        assert!(found.is_ok(), "waited in vain for {what}");
    }

    fn tell(&self, data: &str) {
        let some = |text: &str| Some(text.to_owned());
        self.annotations.send_replace(Annotations::from([
            (node::BACKEND_TYPE.to_owned(), some("vxlan")),
            (node::BACKEND_DATA.to_owned(), some(data)),
        ]));
    }
}

/// A change of the node `name` that tells `data`.
fn tells(name: &str, data: &str) -> impl Fn(&Event<Node>) -> bool {
    let (name, data) = (name.to_owned(), data.to_owned());
    move |event| match event {
        Event::Apply(node) | Event::InitApply(node) => {
            let told = node.metadata.annotations.get(node::BACKEND_DATA);
            node.metadata.name == name && told == Some(&data)
        }
        _ => false,
    }
}

#[test]
fn leases_are_laid_out_and_watched_as_flannel_does() {
    let test = "leases_are_laid_out_and_watched_as_flannel_does";
    let Some(lab) = Lab::bare(test, false) else {
        return;
    };
    let Some(_etcd) = Etcd::start(test, &lab) else {
        return;
    };
    inside(&lab, async || {
        let mut direct = client().await;
        // The configuration may come later.
        let mut registry = Registry::connect(&options()).await.unwrap();
        let wait = tokio::spawn(async move { registry.config().await.unwrap() });
        direct
            .put(format!("{PREFIX}/config"), CONFIG, None)
            .await
            .unwrap();
        let conf = timeout(DEADLINE, wait).await.unwrap().unwrap();

        let (mut one, mut two) = (member(&conf, 11, 0).await, member(&conf, 12, 0).await);
        assert_ne!(one.held.key, two.held.key);
        one.tell(&data(1));
        two.tell(&data(2));
        one.until("the other node", tells(&two.held.key.to_string(), &data(2)))
            .await;
        two.until("the other node", tells(&one.held.key.to_string(), &data(1)))
            .await;
        two.until("its own", tells("n12", &data(2))).await;

        // As flannel reads it.
        let path = format!("{PREFIX}/subnets/{}", one.held.key);
        let found = direct.get(path.as_str(), None).await.unwrap();
        let found = &found.kvs()[0];
        let expect = format!(
            r#"{{"PublicIP":"172.31.250.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{}}}"#,
            data(1)
        );
        assert_eq!(found.value_str().unwrap(), expect);
        let left = direct
            .lease_time_to_live(found.lease(), None)
            .await
            .unwrap();
        assert!((86_000..=86_400).contains(&left.ttl()), "{}", left.ttl());

        // A new start of the same node has the same networks, and goes on telling the same.
        let again = member(&conf, 11, 0).await;
        assert_eq!(again.held.key, one.held.key);
        assert_eq!(again.held.attrs.annotations()[node::BACKEND_DATA], data(1));
        again.task.abort();

        // What is no lease, and what is one of another program's making.
        direct
            .put(format!("{PREFIX}/subnets/nonsense"), "x", None)
            .await
            .unwrap();
        direct
            .put(format!("{PREFIX}/subnets/10.244.77.0-24"), "{", None)
            .await
            .unwrap();
        let flannels = r#"{"PublicIP":"172.31.250.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:00:00:00:00:63"}}"#;
        direct
            .put(format!("{PREFIX}/subnets/10.244.99.0-24"), flannels, None)
            .await
            .unwrap();
        let mac = r#"{"VNI":1,"VtepMAC":"c6:00:00:00:00:63"}"#;
        one.until("flannel's node", tells("10.244.99.0-24", mac))
            .await;
        direct
            .delete(format!("{PREFIX}/subnets/10.244.99.0-24"), None)
            .await
            .unwrap();
        let left = |event: &Event<Node>| matches!(event, Event::Delete(node) if node.metadata.name == "10.244.99.0-24");
        one.until("flannel's node to leave", left).await;
    });
}

#[test]
fn a_lost_history_server_or_lease_is_dealt_with() {
    let test = "a_lost_history_server_or_lease_is_dealt_with";
    let Some(lab) = Lab::bare(test, false) else {
        return;
    };
    let Some(mut etcd) = Etcd::start(test, &lab) else {
        return;
    };
    inside(&lab, async || {
        let mut direct = client().await;
        direct
            .put(format!("{PREFIX}/config"), CONFIG, None)
            .await
            .unwrap();
        let conf = Registry::connect(&options())
            .await
            .unwrap()
            .config()
            .await
            .unwrap();
        let (mut one, mut two) = (member(&conf, 11, 0).await, member(&conf, 12, 0).await);
        one.tell(&data(1));
        two.tell(&data(2));
        let path = format!("{PREFIX}/subnets/{}", one.held.key);
        one.until("the other node", tells(&two.held.key.to_string(), &data(2)))
            .await;
        two.until("the other node", tells(&one.held.key.to_string(), &data(1)))
            .await;

        // Someone deletes a lease: its node takes it again, with what it told.
        direct.delete(path.as_str(), None).await.unwrap();
        two.until(
            "the node to be back",
            tells(&one.held.key.to_string(), &data(1)),
        )
        .await;

        // The history is compacted away: a watcher that goes on from there lists again.
        let revision = direct.get("x", None).await.unwrap();
        let revision = revision.header().unwrap().revision();
        let physical = CompactionOptions::new().with_physical();
        direct.compact(revision, Some(physical)).await.unwrap();
        let mut late = member(&conf, 13, 1).await;
        late.until("the list after compaction", |event| *event == Event::Init)
            .await;
        late.until(
            "a node of the list",
            tells(&two.held.key.to_string(), &data(2)),
        )
        .await;

        // The server is killed and comes back: what changes then is heard.
        etcd.kill();
        etcd.run();
        two.tell(&data(3));
        one.until(
            "a change after the restart",
            tells(&two.held.key.to_string(), &data(3)),
        )
        .await;

        // The networks were given to another: this node must not go on with them.
        direct
            .put(path.as_str(), r#"{"PublicIP":"172.31.250.55"}"#, None)
            .await
            .unwrap();
        let ended = timeout(DEADLINE, one.task).await.unwrap().unwrap();
        let error = ended.unwrap_err().to_string();
        let key = one.held.key;
        assert_eq!(
            error,
            format!("this node's lease is lost: {key} is that of 172.31.250.55")
        );
    });
}

#[test]
fn pods_of_nodes_with_leases_reach_each_other() {
    let test = "pods_of_nodes_with_leases_reach_each_other";
    let Some(mut lab) = Lab::bare(test, false) else {
        return;
    };
    let Some(_etcd) = Etcd::start(test, &lab) else {
        return;
    };
    inside(&lab, async || {
        let mut direct = client().await;
        direct
            .put(format!("{PREFIX}/config"), CONFIG, None)
            .await
            .unwrap();
    });
    let mut programs = Vec::new();
    for i in 1..=2 {
        let node = lab.node(i, false);
        let file: PathBuf = node.dir.path().join("subnet.env");
        let file = file.display().to_string();
        // There is no default route in here.
        let flags = [
            "--etcd-endpoints",
            URL,
            "--subnet-file",
            &file,
            "--iface",
            "eth0",
        ];
        let mut program = Program::bare(&node, &flags);
        program.start();
        programs.push(program);
        lab.nodes.push(node);
    }
    for node in &lab.nodes {
        wait_until("the route to the other node", || node.routes() == 1);
    }
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    assert_eq!(seen_as(&a.netns, &b.netns, b.ips[0]), a.ips[0]);
    // After a restart the networks are the same.
    let text = |lab: &Lab| {
        let path = lab.nodes[0].dir.path().join("subnet.env");
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let before = text(&lab);
    assert!(
        before.contains("FLANNEL_NETWORK=10.244.0.0/16\n"),
        "{before}"
    );
    programs[0].stop(Signal::SIGKILL);
    programs[0].start();
    wait_until("the program to be ready", || {
        crate::program::is_ready(&lab.nodes[0])
    });
    assert_eq!(text(&lab), before);
    assert_eq!(seen_as(&b.netns, &a.netns, a.ips[0]), b.ips[0]);
}
