//! Who changes nf_tables: what somebody else does to our rules is noticed at once.

use api::cidr::Family;
use linux::nftables::{Generation, Monitor, Notice};
use tokio::io::unix::AsyncFd;

use crate::backend::Backend;

/// Backends by family, as the sync loop has them.
pub type Planes = [(Family, Box<dyn Backend>)];

/// Notifications of nf_tables for backends.
pub struct RulesWatch {
    /// `None`: the kernel has no nf_tables, and the periodic verification is all there is.
    monitor: Option<AsyncFd<Monitor>>,
}

impl RulesWatch {
    /// Hears what others do than `planes`, as far as those know their own changes.
    pub fn new(monitor: Option<Monitor>, planes: &Planes) -> Self {
        let own: Vec<u32> = planes.iter().filter_map(|(_, p)| p.own_port()).collect();
        if let Some(monitor) = &monitor
            && let Err(error) = monitor.ignore(&own)
        {
            tracing::debug!("{error}");
        }
        Self {
            monitor: monitor.and_then(register),
        }
    }

    /// Comes back when somebody may have changed objects of `planes`.
    pub async fn changed(&self, planes: &mut Planes) {
        let Some(monitor) = &self.monitor else {
            return std::future::pending().await;
        };
        loop {
            match monitor.readable().await {
                Ok(mut guard) => {
                    let changed = drain(monitor.get_ref(), planes);
                    guard.clear_ready();
                    if changed {
                        return;
                    }
                }
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// Takes in all notifications that are there; true when somebody may have changed objects of
    /// one of `planes`.
    pub fn drain(&self, planes: &mut Planes) -> bool {
        let monitor = self.monitor.as_ref();
        monitor.is_some_and(|monitor| drain(monitor.get_ref(), planes))
    }
}

fn drain(monitor: &Monitor, planes: &mut Planes) -> bool {
    let mut changed = false;
    // A change is told before whoever made it.
    let mut whose: Option<Family> = None;
    monitor.drain(|seen| {
        for (family, plane) in planes.iter_mut() {
            if plane.see(&seen) {
                changed = true;
                whose = Some(*family).filter(|_| plane.own_port().is_some());
            }
        }
        match (&seen, whose) {
            (Notice::Done(Generation { pid, process, .. }), Some(family)) => {
                tracing::warn!("{family} rules of ours were changed by {process} (pid {pid})");
                whose = None;
            }
            (Notice::Lost, _) => tracing::debug!("notifications of nf_tables were lost"),
            _ => {}
        }
    });
    changed
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what must hold does: the monitor owns its descriptor and lives as long as the registration"
)]
fn register(monitor: Monitor) -> Option<AsyncFd<Monitor>> {
    AsyncFd::new(monitor).ok()
}
