//! The loop over backends and a connection table that only note what is asked of them.

use linux::nftables::Notice;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::*;
use crate::backend::{NodePortScope, Settings};
use crate::config::{Args, Config};
use crate::conntrack::{Counts, Deleted, Owners, Pressure};
use crate::manifests::parse_documents;
use crate::model::{Decisions, NodeView};

const WEB: &str = "kind: Service\nmetadata: {name: web, namespace: ns}\nspec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000, clusterIP: 172.30.0.1, ports: [{name: u, port: 80, protocol: UDP}]}\n---\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: ns, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: u, port: 8080, protocol: UDP}]\nendpoints: [{addresses: [10.0.0.1], nodeName: node}]";

/// What was done, in order.
type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, what: impl Into<String>) {
    log.lock().unwrap().push(what.into());
}

struct Plane {
    log: Log,
    settings: Settings,
    ports: usize,
    trusted: bool,
    broken: Arc<AtomicBool>,
}

impl Backend for Plane {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn reconfigure(&mut self, settings: Settings, decisions: &Decisions) {
        self.settings = settings;
        self.ports = decisions.len();
        self.trusted = false;
        let scope = match &self.settings.node_ports {
            NodePortScope::All => "all".to_owned(),
            NodePortScope::Only(ips) => format!("{ips:?}"),
        };
        note(&self.log, format!("settings {scope}"));
    }

    fn set(&mut self, changes: &[PortChange]) {
        self.ports += changes.len();
    }

    fn sync(&mut self) -> linux::Result<Report> {
        if self.broken.load(Ordering::Relaxed) {
            note(&self.log, "failed");
            let refusal = std::io::Error::other("broken");
            return Err(linux::Error::new("write", refusal));
        }
        let full = !std::mem::replace(&mut self.trusted, true);
        let word = if full { "full" } else { "partial" };
        note(&self.log, format!("{word} {}", self.ports));
        Ok(Report {
            full,
            ..Report::default()
        })
    }

    fn distrust(&mut self) {
        self.trusted = false;
    }

    fn is_trusted(&self) -> bool {
        self.trusted
    }

    fn is_intact(&mut self) -> linux::Result<bool> {
        Ok(true)
    }

    fn cleanup(&mut self) -> linux::Result<()> {
        Ok(())
    }

    fn see(&mut self, _seen: &Notice<'_>) -> bool {
        false
    }

    fn own_port(&self) -> Option<u32> {
        None
    }
}

struct Flows(Log);

impl FlowTable for Flows {
    fn clean(&mut self, _family: Family, _changed: &Changed) -> linux::Result<Deleted> {
        note(&self.0, "flows");
        Ok(Deleted::new())
    }

    fn pressure(&mut self) -> linux::Result<Pressure> {
        Ok(Pressure::default())
    }

    fn count(&mut self, _owners: &Owners) -> linux::Result<Counts> {
        Ok(Counts::new())
    }
}

struct World {
    messages: mpsc::Sender<Message>,
    checks: UnboundedReceiver<Update>,
    log: Log,
    broken: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl World {
    /// A running loop.
    fn start(flags: &[&str]) -> Self {
        let args = Args::try_parse_from([&["proxy", "--mode=iptables"], flags].concat()).unwrap();
        let config = Config::new(&args, args.configuration(), "node").unwrap();
        let metrics = Arc::new(Metrics::new(config.mode));
        let health = Arc::new(Health::new(Duration::from_secs(60)));
        let local = Local::new(config, Addresses::default());
        let (log, broken) = (Log::default(), Arc::<AtomicBool>::default());
        let plane = Plane {
            log: log.clone(),
            settings: local.settings(Family::V4),
            ports: 0,
            trusted: false,
            broken: broken.clone(),
        };
        let (told, checks) = mpsc::unbounded_channel();
        let synced = log.clone();
        let parts = Parts {
            planes: vec![(Family::V4, Box::new(plane))],
            local,
            health: health.clone(),
            metrics: metrics.clone(),
            flows: Box::new(Flows(log.clone())),
            events: Events::log_only(),
            checks: told,
            on_synced: Box::new(move || note(&synced, "ready")),
        };
        let view = NodeView {
            name: "node".into(),
            ..NodeView::default()
        };
        let engine = Engine::new(Store::new(view, BTreeMap::new()), parts);
        let (messages, inbox) = mpsc::channel(8);
        tokio::spawn(engine.run(inbox));
        Self {
            messages,
            checks,
            log,
            broken,
            metrics,
            health,
        }
    }

    async fn send(&self, inputs: Vec<Input>) {
        let received = Instant::now();
        let message = Message::Inputs { inputs, received };
        self.messages.send(message).await.unwrap();
    }

    async fn apply(&self, text: &str) {
        let (objects, _) = parse_documents(text);
        let inputs = objects.into_iter().map(|object| object.applied());
        self.send(inputs.collect()).await;
    }

    /// Both kinds are listed, and there is none of them.
    async fn list_nothing(&self) {
        use api::watch::Event;
        self.send(vec![
            Input::Service(Event::Init),
            Input::Service(Event::InitDone),
            Input::Slice(Event::Init),
            Input::Slice(Event::InitDone),
        ])
        .await;
    }

    /// Waits until this was done since the last call, and nothing else.
    async fn expect(&self, what: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            {
                let mut log = self.log.lock().unwrap();
                if *log == what {
                    log.clear();
                    return;
                }
                assert!(Instant::now() < deadline, "{log:?} is not {what:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn next_check(&mut self) -> Update {
        loop {
            match self.checks.recv().await.unwrap() {
                Update::Scope(..) => {}
                update => return update,
            }
        }
    }
}

#[tokio::test]
async fn from_the_first_list_to_the_last_change() {
    let mut world = World::start(&[]);
    world.apply(WEB).await;
    // Nothing happens before both lists are complete.
    world.list_nothing().await;
    world.expect(&["full 0", "ready"]).await;
    world.apply(WEB).await;
    world.expect(&["partial 1", "flows"]).await;
    let check = world.next_check().await;
    let Update::Service(Family::V4, service, Some(check)) = check else {
        panic!("{check:?}");
    };
    assert_eq!(
        (service.to_string().as_str(), check.port, check.local),
        ("ns/web", 31000, 1)
    );
    // The same again changes nothing.
    world.apply(WEB).await;
    world
        .apply(&WEB.replace("nodeName: node", "nodeName: other"))
        .await;
    world.expect(&["partial 2", "flows"]).await;
    assert!(matches!(
        world.next_check().await,
        Update::Service(_, _, Some(check)) if check.local == 0
    ));
    let page = world.metrics.render();
    for line in [
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 0",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "seaway_proxy_service_ports 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    assert!(
        page.contains("seaway_proxy_programming_latency_seconds_count 3\n"),
        "{page}"
    );
}

#[tokio::test]
async fn a_failed_sync_is_tried_again_until_it_succeeds() {
    let world = World::start(&[]);
    world.broken.store(true, Ordering::Relaxed);
    world.list_nothing().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while world.log.lock().unwrap().len() < 3 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        world
            .log
            .lock()
            .unwrap()
            .iter()
            .all(|line| line == "failed")
    );
    let late = Instant::now() + Duration::from_secs(61);
    let question = crate::health::Question::Livez;
    assert!(!world.health.is_healthy(question, late), "a change waits");
    world.log.lock().unwrap().clear();
    world.broken.store(false, Ordering::Relaxed);
    let after_failures = async {
        loop {
            world.log.lock().unwrap().retain(|line| line != "failed");
            if !world.log.lock().unwrap().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), after_failures)
        .await
        .unwrap();
    world.expect(&["full 0", "ready"]).await;
    assert!(world.health.is_healthy(question, late));
    let page = world.metrics.render();
    let none = "iptables_restore_failures_total{ip_family=\"IPv4\"} 0";
    assert!(!page.contains(none), "{page}");
}

#[tokio::test]
async fn the_node_is_followed() {
    let world = World::start(&[
        "--nodeport-addresses=primary",
        "--detect-local-mode=NodeCIDR",
    ]);
    world.list_nothing().await;
    // The pods' networks are waited for.
    let node = |net: &str, ip: &str| {
        format!(
            "kind: Node\nmetadata: {{name: node}}\nspec: {{podCIDR: {net}}}\nstatus: {{addresses: [{{type: InternalIP, address: {ip}}}]}}"
        )
    };
    world.apply(&node("10.1.0.0/24", "192.0.2.1")).await;
    world
        .expect(&["settings [192.0.2.1]", "full 0", "ready"])
        .await;
    world.apply(WEB).await;
    world.expect(&["partial 1", "flows"]).await;
    // A heartbeat changes nothing, another address does.
    world.apply(&node("10.1.0.0/24", "192.0.2.1")).await;
    world.apply(&node("10.1.0.0/24", "192.0.2.2")).await;
    world.expect(&["settings [192.0.2.2]", "full 1"]).await;
    world.apply(&node("10.2.0.0/24", "192.0.2.2")).await;
    world.expect(&["settings [192.0.2.2]", "full 1"]).await;
}
