//! The task behind one probe of one container: makes it on time, counts, and tells when the verdict changes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::time::Instant;

use super::check::{self, Verdict};
use super::{Counter, Kind, Timing};
use crate::events::{Recorder, Severity};
use crate::rt::PodRuntime;

/// First wait between two early tries; it doubles. See [`early`].
const EARLY_FIRST: Duration = Duration::from_millis(20);

/// What is probed.
pub struct Target {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container's spec.
    pub container: Container,
    /// The container's id.
    pub id: String,
    /// Where it listens.
    pub ip: Option<IpAddr>,
    /// For probes by a program.
    pub rt: Arc<dyn PodRuntime>,
    /// For Unhealthy events.
    pub events: Recorder,
}

/// Probes until it is dropped. `tell` gets each change of the verdict.
pub async fn run<F: Future<Output = ()>>(
    target: Target,
    kind: Kind,
    probe: Probe,
    tell: impl Fn(bool) -> F,
) {
    let timing = Timing::of(&probe);
    let mut counter = Counter::new(kind, &timing);
    tokio::time::sleep(timing.initial_delay).await;
    let mut next = Instant::now();
    if early(&target, kind, &probe, &timing, next + timing.period).await {
        if let Some(verdict) = counter.push(true) {
            tell(verdict).await;
        }
        next += timing.period;
    }
    loop {
        tokio::time::sleep_until(next).await;
        let verdict = once(&target, &probe, timing.timeout).await;
        if let Verdict::Bad(why) = &verdict {
            let text = format!("{} probe failed: {why}", kind.title());
            let name = target.container.name.as_str();
            let events = &target.events;
            events.pod(
                &target.pod,
                Some(name),
                Severity::Warning,
                "Unhealthy",
                text,
            );
        }
        if let Some(verdict) = counter.push(verdict == Verdict::Good) {
            tell(verdict).await;
        }
        next += timing.period;
        if next < Instant::now() {
            next = Instant::now() + timing.period;
        }
    }
}

/// A server is seldom listening the instant its process starts, and the period until the next try is long.
/// So in the first period a connection that is refused costs nothing and is tried again soon: success counts,
/// failure does not. True when the first success came that way.
async fn early(target: &Target, kind: Kind, probe: &Probe, timing: &Timing, end: Instant) -> bool {
    let by_network = probe.http_get.is_some() || probe.tcp_socket.is_some();
    if !by_network || kind == Kind::Liveness {
        return false;
    }
    let mut wait = EARLY_FIRST;
    while Instant::now() + wait < end {
        if once(target, probe, timing.timeout.min(end - Instant::now())).await == Verdict::Good {
            return true;
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    false
}

/// Makes the probe once.
async fn once(target: &Target, probe: &Probe, timeout: Duration) -> Verdict {
    if let Some(exec) = &probe.exec {
        let argv = exec.command.clone().unwrap_or_default();
        let (rt, id) = (target.rt.clone(), target.id.clone());
        return check::exec(rt, id, argv, Some(timeout)).await;
    }
    let Some(ip) = target.ip else {
        return Verdict::Bad("the pod has no address".to_owned());
    };
    if let Some(http) = &probe.http_get {
        return check::http_get(http, &target.container, ip, timeout).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        return match check::port(&tcp.port, &target.container) {
            Ok(port) => check::tcp(tcp.host.as_deref(), port, ip, timeout).await,
            Err(e) => Verdict::Bad(e),
        };
    }
    Verdict::Bad("this kind of probe is not supported (grpc is not yet)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::fake::FakeRuntime;
    use k8s_openapi::api::core::v1::TCPSocketAction;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use std::net::SocketAddr;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_server_that_comes_a_little_late_is_ready_long_before_the_next_period() {
        // Nobody else listens on an address that has this process's number in it.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 0x80 | a, b, c], 20_080));
        let (events, mut heard) = Recorder::new();
        let target = Target {
            pod: Arc::new(crate::testing::pod("p: {}")),
            container: Container::default(),
            id: "c".into(),
            ip: Some(address.ip()),
            rt: Arc::new(FakeRuntime::default()),
            events,
        };
        let probe = Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::Int(address.port().into()),
                host: None,
            }),
            period_seconds: Some(100),
            ..Default::default()
        };
        let (tell, mut told) = tokio::sync::mpsc::channel(4);
        let task = tokio::spawn(run(target, Kind::Readiness, probe, move |good| {
            let tell = tell.clone();
            async move { tell.send(good).await.unwrap() }
        }));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _server = TcpListener::bind(address).await.unwrap();
        let verdict = tokio::time::timeout(Duration::from_secs(60), told.recv()).await;
        assert_eq!(verdict.unwrap(), Some(true));
        assert!(heard.try_recv().is_err(), "early failures are no events");
        task.abort();
    }
}
