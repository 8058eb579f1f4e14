//! `healthCheckNodePort`: for each load balancer service with `externalTrafficPolicy: Local` a port
//! on the node that tells an outer balancer whether endpoints are here
//! (`pkg/proxy/healthcheck/service_health.go`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use api::cidr::Family;
use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::server::{self, Answer, Page};
use super::{Health, Question};
use crate::backend::NodePortScope;
use crate::events::Events;
use crate::model::{ObjectRef, ServiceName};

/// What is served for one service in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// The port.
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node.
    pub local: usize,
}

/// A change of what is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A service is served (or, with `None`, no more).
    Service(Family, ServiceName, Option<Check>),
    /// On these addresses of the node.
    Scope(Family, NodePortScope),
}

/// The page of a service.
pub fn page(service: &ServiceName, local: usize, healthy: bool) -> Page {
    let code = if local > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let (namespace, name) = (text(&service.namespace), text(&service.name));
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    Page {
        code,
        headers: vec![("x-load-balancing-endpoint-weight", local.to_string())],
        ..Page::new("application/json", body)
    }
}

/// A service's listeners.
#[derive(Debug)]
struct Served {
    port: u16,
    local: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The servers of all services.
pub struct Servers {
    health: Arc<Health>,
    events: Events,
    scopes: BTreeMap<Family, NodePortScope>,
    wanted: BTreeMap<(Family, ServiceName), Check>,
    served: BTreeMap<(Family, ServiceName), Served>,
}

impl Servers {
    /// None yet.
    pub fn new(health: Arc<Health>, events: Events) -> Self {
        Self {
            health,
            events,
            scopes: BTreeMap::new(),
            wanted: BTreeMap::new(),
            served: BTreeMap::new(),
        }
    }

    /// Serves what it is told to, until nobody can tell any more.
    pub async fn run(mut self, mut updates: UnboundedReceiver<Update>) {
        while let Some(update) = updates.recv().await {
            self.apply(update).await;
        }
    }

    /// Does what one update asks for.
    pub async fn apply(&mut self, update: Update) {
        match update {
            Update::Scope(family, scope) => {
                if self.scopes.get(&family) == Some(&scope) {
                    return;
                }
                self.scopes.insert(family, scope);
                let again: Vec<_> = self.wanted.keys().cloned().collect();
                for (of, service) in again.into_iter().filter(|(of, _)| *of == family) {
                    self.close(of, &service).await;
                    self.open(of, &service);
                }
            }
            Update::Service(family, service, check) => {
                let key = (family, service);
                let before = match check {
                    Some(check) => self.wanted.insert(key.clone(), check),
                    None => self.wanted.remove(&key),
                };
                let (family, service) = key;
                if before.map(|check| check.port) != check.map(|check| check.port) {
                    self.close(family, &service).await;
                    self.open(family, &service);
                } else if let (Some(check), Some(served)) =
                    (check, self.served.get(&(family, service)))
                {
                    served.local.store(check.local, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits until the port is free, so that another service can have it.
    async fn close(&mut self, family: Family, service: &ServiceName) {
        let Some(mut served) = self.served.remove(&(family, service.clone())) else {
            return;
        };
        for task in std::mem::take(&mut served.tasks) {
            task.abort();
            // It was told to end: that it did not end by itself is no news.
            let _aborted = task.await;
        }
        tracing::debug!("{service}: port {} closed ({family})", served.port);
    }

    fn open(&mut self, family: Family, service: &ServiceName) {
        let Some(check) = self.wanted.get(&(family, service.clone())) else {
            return;
        };
        let local = Arc::new(AtomicUsize::new(check.local));
        let mut tasks = Vec::new();
        for ip in addresses(family, self.scopes.get(&family)) {
            let address = SocketAddr::new(ip, check.port);
            match server::listen(address, true) {
                Ok(listener) => {
                    let answer = self.answer(service, &local);
                    tasks.push(tokio::spawn(server::serve(listener, answer)));
                }
                Err(error) => self.events.warning(
                    &ObjectRef::service(service),
                    "FailedToStartServiceHealthcheck",
                    format!("health check on {address} cannot be served: {error}"),
                ),
            }
        }
        tracing::debug!("{service}: port {} opened ({family})", check.port);
        let served = Served {
            port: check.port,
            local,
            tasks,
        };
        self.served.insert((family, service.clone()), served);
    }

    fn answer(&self, service: &ServiceName, local: &Arc<AtomicUsize>) -> Answer {
        let (service, local) = (service.clone(), local.clone());
        let health = self.health.clone();
        Arc::new(move |_path| {
            let healthy = health.is_healthy(Question::Livez, Instant::now());
            page(&service, local.load(Ordering::Relaxed), healthy)
        })
    }
}

/// Where a family's checks are served.
fn addresses(family: Family, scope: Option<&NodePortScope>) -> Vec<IpAddr> {
    match (scope, family) {
        (Some(NodePortScope::Only(ips)), _) => ips.clone(),
        (_, Family::V4) => vec![Ipv4Addr::UNSPECIFIED.into()],
        (_, Family::V6) => vec![Ipv6Addr::UNSPECIFIED.into()],
    }
}

#[cfg(test)]
mod tests;
