//! Connected UDP sockets of endpoints that are gone. A connected socket names its peer once, so no
//! program can lead its datagrams elsewhere: it would talk to nobody for ever. It is ended, its user
//! gets an error and connects anew. TCP finds out by itself and is left alone.
//!
//! Ended are sockets that were translated (the programs' own table knows them by cookie) and are
//! connected to exactly the endpoint that is gone, in whichever network namespace they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ebpf_common::abi::{
    Endpoint, MemberKey, ROLE_FLOW, ROLE_PEER, SET_SERVING, SocketKey, SocketPeer, bytes_of,
    from_bytes,
};
use linux::netns::scan::namespaces;
use linux::sock_diag::SockDiag;

use super::diff::MapName;
use super::object::Maps;
use super::plan::socket;

/// A service's number, and an endpoint that its flows may stay with no longer.
pub type Gone = (u32, Endpoint);

/// Ends sockets, on a thread of its own: a change of services does not wait for it.
#[derive(Debug)]
pub struct Vanished(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    /// `None`: nobody will add any more.
    waiting: Mutex<Option<BTreeSet<Gone>>>,
    changed: Condvar,
    ended: AtomicU64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Option<BTreeSet<Gone>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for endpoints that are gone; `None` at the end.
    fn next(&self) -> Option<BTreeSet<Gone>> {
        let mut waiting = self.lock();
        loop {
            match waiting.as_mut() {
                None => return None,
                Some(gone) if !gone.is_empty() => return Some(std::mem::take(gone)),
                Some(_) => {}
            }
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Vanished {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread more.
    pub fn start(maps: Arc<Maps>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue {
            waiting: Mutex::new(Some(BTreeSet::new())),
            ..Queue::default()
        });
        let own = queue.clone();
        std::thread::Builder::new()
            .name("vanished".to_owned())
            .spawn(move || {
                while let Some(gone) = own.next() {
                    match end_sockets(&maps, &gone) {
                        Ok(0) => {}
                        Ok(ended) => {
                            own.ended.fetch_add(ended, Ordering::Relaxed);
                            tracing::debug!(ended, "UDP sockets of endpoints that are gone");
                        }
                        Err(error) => tracing::warn!(
                            "{error}: connected UDP sockets of endpoints that are gone stay"
                        ),
                    }
                }
            })?;
        Ok(Self(queue))
    }

    /// Endpoints that are gone. As many wait as there are endpoints at most.
    pub fn add(&self, gone: BTreeSet<Gone>) {
        if gone.is_empty() {
            return;
        }
        if let Some(waiting) = self.0.lock().as_mut() {
            waiting.extend(gone);
        }
        self.0.changed.notify_one();
    }

    /// How many sockets were ended.
    pub fn ended(&self) -> u64 {
        self.0.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Vanished {
    fn drop(&mut self) {
        *self.0.lock() = None;
        self.0.changed.notify_one();
    }
}

/// Ends the sockets of endpoints that are gone still.
fn end_sockets(maps: &Maps, gone: &BTreeSet<Gone>) -> linux::Result<u64> {
    let mut left = BTreeSet::new();
    for (service, endpoint) in gone {
        let key = MemberKey {
            service: *service,
            set: SET_SERVING,
            endpoint: *endpoint,
        };
        // It may have come back since.
        if maps.of(MapName::Members).lookup(bytes_of(&key))?.is_none() {
            left.insert((*service, *endpoint));
        }
    }
    let mut cookies = BTreeMap::new();
    maps.get("SOCKETS").read_many(|key, value| {
        if let (Some(key), Some(value)) = (from_bytes(key), from_bytes(value)) {
            note(&left, &key, &value, &mut cookies);
        }
    })?;
    if cookies.is_empty() {
        return Ok(0);
    }
    let mut ended = 0;
    let mut failed = None;
    for netns in namespaces() {
        match netns.run(|| end_in_here(&cookies)) {
            Ok(Ok(count)) => ended += count,
            Ok(Err(error)) | Err(error) => failed = Some(error),
        }
    }
    match failed {
        // One that refuses all the same (no `CONFIG_INET_DIAG_DESTROY`) refuses everywhere.
        Some(error) if ended == 0 => Err(error),
        _ => Ok(ended),
    }
}

/// Notes the socket of an entry in the programs' table where its peer is gone.
fn note(
    gone: &BTreeSet<Gone>,
    key: &SocketKey,
    value: &SocketPeer,
    cookies: &mut BTreeMap<SocketAddr, BTreeSet<u64>>,
) {
    let endpoint = match key.role {
        ROLE_PEER => key.other,
        ROLE_FLOW => value.peer,
        _ => return,
    };
    if gone.contains(&(value.service, endpoint)) {
        let cookies = cookies.entry(socket(&endpoint)).or_default();
        cookies.insert(key.cookie);
    }
}

/// Ends those of the sockets that are in the calling thread's network namespace.
fn end_in_here(cookies: &BTreeMap<SocketAddr, BTreeSet<u64>>) -> linux::Result<u64> {
    let mut diag = SockDiag::open()?;
    let mut ended = 0;
    for (peer, cookies) in cookies {
        for socket in diag.connected_to(*peer)? {
            if cookies.contains(&socket.cookie) && diag.destroy(&socket)? {
                ended += 1;
            }
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use ebpf_common::abi::v4;

    use super::*;

    #[test]
    fn only_translated_sockets_of_the_service_and_endpoint_are_noted() {
        let to = |n| Endpoint::new(v4([10, 0, 0, n]), [0, 80]);
        let frontend = to(200);
        let gone = BTreeSet::from([(2, to(1))]);
        let mut cookies = BTreeMap::new();
        let mut entry = |cookie, role, service, endpoint: Endpoint| {
            let (other, peer) = match role {
                ROLE_PEER => (endpoint, frontend),
                _ => (frontend, endpoint),
            };
            let key = SocketKey {
                cookie,
                other,
                role,
            };
            let value = SocketPeer {
                peer,
                service,
                set: 0,
            };
            note(&gone, &key, &value, &mut cookies);
        };
        entry(1, ROLE_PEER, 2, to(1));
        entry(1, ROLE_FLOW, 2, to(1));
        entry(2, ROLE_FLOW, 2, to(1));
        entry(3, ROLE_PEER, 2, to(2));
        entry(4, ROLE_PEER, 4, to(1));
        entry(5, 9, 2, to(1));
        let expect = BTreeMap::from([("10.0.0.1:80".parse().unwrap(), BTreeSet::from([1_u64, 2]))]);
        assert_eq!(cookies, expect);
    }

    #[test]
    fn the_thread_hears_of_all_and_ends() {
        let queue = Queue {
            waiting: Mutex::new(Some(BTreeSet::new())),
            ..Queue::default()
        };
        let vanished = Vanished(Arc::new(queue));
        let gone = |n| BTreeSet::from([(n, Endpoint::default())]);
        vanished.add(gone(1));
        vanished.add(gone(2));
        let queue = vanished.0.clone();
        assert_eq!(queue.next().map(|gone| gone.len()), Some(2));
        drop(vanished);
        assert_eq!(queue.next(), None);
    }
}
