//! Cluster DNS: names of services and pods answered from memory, everything else asked upstream.
//!
//! [`Zone`] is pure: it is told services and their endpoints one by one and answers questions.
//! [`Server`] reads questions from UDP and TCP, asks the zone, and forwards what is not ours.
//! What is answered follows "Kubernetes DNS-Based Service Discovery" 1.1.0
//! (github.com/kubernetes/dns, docs/specification.md); where that is silent, CoreDNS is followed.
//!
//! Decisions of our own:
//! - Without an upstream, names outside of the cluster do not exist (NXDOMAIN, without an SOA, so that
//!   nobody remembers it): resolvers that search would wait for a time-out on REFUSED.
//! - Until the first complete list of services, names of the cluster give SERVFAIL: an NXDOMAIN would
//!   be remembered.
//! - `1-2-3-4.NAMESPACE.pod.ZONE` answers for every address, existing or not, as CoreDNS does by
//!   default (`pods insecure`).

mod answer;
mod counters;
mod forward;
mod message;
mod resolv_conf;
mod server;
mod zone;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

pub use answer::{Answer, Reply};
pub use counters::{Counters, Histogram};
pub use resolv_conf::upstreams;
pub use server::{BindError, Config, Server};
pub use zone::{BadDomain, TTL, Zone};

/// A zone that one side changes while the other answers from it. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle {
    zone: Arc<RwLock<Zone>>,
}

impl Handle {
    /// An empty zone named `domain` (e.g. `cluster.local`), served at `addresses`.
    ///
    /// # Errors
    /// `domain` is not a domain name.
    pub fn new(domain: &str, addresses: &[IpAddr]) -> Result<Self, BadDomain> {
        Ok(Self {
            zone: Arc::new(RwLock::new(Zone::new(domain, addresses)?)),
        })
    }

    /// Changes the zone. Questions wait meanwhile.
    pub fn update<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that the zone is complete: what is not in it does not exist.
    pub fn set_ready(&self) {
        self.update(Zone::set_ready);
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }
}
