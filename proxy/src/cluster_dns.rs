//! Cluster DNS: feeds the zone from the same events as the rules, and serves it on the cluster's
//! DNS addresses, which are put on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use api::core::Service;
use api::discovery::EndpointSlice;
use api::watch::Event;
use dns::{Counters, Handle, Server};
use linux::Kernel;

use crate::config::Config;
use crate::model::decide::DNS_PORT;
use crate::node;
use crate::store::Input;

/// The file that names the name servers of this host.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Namespace and name.
type Key = (String, String);

/// Turns events into changes of the zone.
pub struct Feed {
    zone: Handle,
    /// Also endpoints of services with a cluster IP are kept, in case one becomes headless while
    /// its slices stay as they are. That happens in files only.
    keep_all: bool,
    /// Services that need their slices; `None`: has an address, and needs none.
    services: BTreeMap<Key, Option<Arc<Service>>>,
    /// Slices by service, then by name.
    slices: BTreeMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    owners: BTreeMap<Key, Key>,
    listed_services: Option<BTreeSet<Key>>,
    listed_slices: Option<BTreeSet<Key>>,
    complete: (bool, bool),
}

impl Feed {
    /// For an empty zone.
    pub fn new(zone: Handle, keep_all: bool) -> Self {
        Self {
            zone,
            keep_all,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            owners: BTreeMap::new(),
            listed_services: None,
            listed_slices: None,
            complete: (false, false),
        }
    }

    /// Takes one event in.
    pub fn apply(&mut self, input: &Input) {
        match input {
            Input::Service(event) => self.service(event),
            Input::Slice(event) => self.slice(event),
            Input::Node(_) | Input::ServiceCidr(_) => {}
        }
        if self.complete == (true, true) {
            self.zone.set_ready();
            // Said once.
            self.complete = (false, false);
        }
    }

    fn service(&mut self, event: &Event<Arc<Service>>) {
        match event {
            Event::Init => self.listed_services = Some(BTreeSet::new()),
            Event::InitApply(service) | Event::Apply(service) => {
                let key = key(&service.metadata);
                if let (Some(listed), Event::InitApply(_)) = (&mut self.listed_services, event) {
                    listed.insert(key.clone());
                }
                self.set_service(key, service);
            }
            Event::InitDone => {
                self.complete.0 = true;
                let Some(listed) = self.listed_services.take() else {
                    return;
                };
                self.services.retain(|key, _| listed.contains(key));
                self.zone.update(|zone| {
                    zone.retain(|namespace, name| {
                        listed.contains(&(namespace.to_owned(), name.to_owned()))
                    });
                });
            }
            Event::Delete(service) => {
                let (namespace, name) = key(&service.metadata);
                self.zone.update(|zone| zone.remove(&namespace, &name));
                self.services.remove(&(namespace, name));
            }
        }
    }

    fn set_service(&mut self, key: Key, service: &Arc<Service>) {
        let needs_slices = service.spec.cluster_ip == "None";
        let kept = needs_slices.then(|| service.clone());
        if !needs_slices && !self.keep_all {
            for name in self.slices.remove(&key).into_iter().flatten() {
                self.owners.remove(&(key.0.clone(), name.0));
            }
        }
        let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values);
        self.zone
            .update(|zone| zone.set(service, slices.map(AsRef::as_ref)));
        self.services.insert(key, kept);
    }

    fn slice(&mut self, event: &Event<Arc<EndpointSlice>>) {
        match event {
            Event::Init => self.listed_slices = Some(BTreeSet::new()),
            Event::InitApply(slice) | Event::Apply(slice) => {
                let name = key(&slice.metadata);
                if let (Some(listed), Event::InitApply(_)) = (&mut self.listed_slices, event) {
                    listed.insert(name.clone());
                }
                self.set_slice(name, slice);
            }
            Event::InitDone => {
                self.complete.1 = true;
                let Some(listed) = self.listed_slices.take() else {
                    return;
                };
                let gone: Vec<Key> = self
                    .owners
                    .keys()
                    .filter(|name| !listed.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.remove_slice(&name);
                }
            }
            Event::Delete(slice) => self.remove_slice(&key(&slice.metadata)),
        }
    }

    fn set_slice(&mut self, name: Key, slice: &Arc<EndpointSlice>) {
        let owner = slice
            .service_name()
            .map(|service| (name.0.clone(), service.to_ascii_lowercase()));
        if self.owners.get(&name) != owner.as_ref() {
            self.remove_slice(&name);
        }
        let Some(owner) = owner else { return };
        // Not known yet, or known to need them.
        let wanted = self.keep_all || self.services.get(&owner).is_none_or(Option::is_some);
        if !wanted {
            return;
        }
        let slices = self.slices.entry(owner.clone()).or_default();
        slices.insert(name.1.clone(), slice.clone());
        self.owners.insert(name, owner.clone());
        self.refresh(&owner);
    }

    fn remove_slice(&mut self, name: &Key) {
        let Some(owner) = self.owners.remove(name) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&name.1);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.refresh(&owner);
    }

    fn refresh(&self, owner: &Key) {
        if let Some(Some(service)) = self.services.get(owner) {
            let slices = self
                .slices
                .get(owner)
                .into_iter()
                .flat_map(BTreeMap::values);
            self.zone
                .update(|zone| zone.set(service, slices.map(AsRef::as_ref)));
        }
    }
}

/// In lower case, as names in DNS are compared.
fn key(meta: &api::meta::ObjectMeta) -> Key {
    (
        meta.namespace.to_ascii_lowercase(),
        meta.name.to_ascii_lowercase(),
    )
}

/// Puts the addresses on loopback and starts to answer on them; the zone is still empty.
///
/// # Errors
/// An address cannot be added or listened on.
pub async fn start(config: &Config) -> Result<(Handle, Arc<Counters>)> {
    let zone = Handle::new(&config.cluster_domain, &config.dns_ips).context("--cluster-domain")?;
    let mut host = Kernel::open().context("open the kernel's door")?;
    node::ensure_dns_addresses(&mut host, &config.dns_ips).context("--cluster-dns")?;
    let addresses: Vec<SocketAddr> = config
        .dns_ips
        .iter()
        .map(|ip| SocketAddr::new(*ip, DNS_PORT))
        .collect();
    let upstreams = upstreams(config);
    let server = Server::bind(&addresses, dns::Config { upstreams }).await?;
    let counters = server.counters();
    tokio::spawn(server.serve(zone.clone()));
    Ok((zone, counters))
}

/// Name servers for other names. Our own addresses among them would be a loop.
fn upstreams(config: &Config) -> Vec<SocketAddr> {
    let mut upstreams = config.dns_upstream.clone();
    if upstreams.is_empty() {
        match std::fs::read_to_string(RESOLV_CONF) {
            Ok(text) => upstreams = dns::upstreams(&text),
            Err(error) => tracing::warn!("{RESOLV_CONF}: {error}; only cluster names are answered"),
        }
    }
    let own = |address: &SocketAddr| config.dns_ips.contains(&address.ip());
    upstreams.retain(|address| !own(address));
    upstreams
}

/// The server's counters as Prometheus reads them.
pub fn metrics(counters: &Counters) -> String {
    let mut text = String::new();
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _written = writeln!(text, "{what}");
    };
    line(format_args!("# TYPE seaway_dns_queries_total counter"));
    for (kind, code, count) in counters.queries() {
        line(format_args!(
            "seaway_dns_queries_total{{type=\"{kind}\",rcode=\"{code}\"}} {count}"
        ));
    }
    let name = "seaway_dns_query_duration_seconds";
    let latency = counters.latency();
    line(format_args!("# TYPE {name} histogram"));
    for (bound, count) in &latency.buckets {
        line(format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
    }
    let (sum, count) = (latency.sum_seconds, latency.count);
    line(format_args!("{name}_bucket{{le=\"+Inf\"}} {count}"));
    line(format_args!("{name}_sum {sum}"));
    line(format_args!("{name}_count {count}"));
    for (what, count) in counters.others() {
        line(format_args!("# TYPE seaway_dns_{what}_total counter"));
        line(format_args!("seaway_dns_{what}_total {count}"));
    }
    text
}

#[cfg(test)]
mod tests;
