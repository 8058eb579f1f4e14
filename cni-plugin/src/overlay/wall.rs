//! The keeper of the firewall's rules. Programs take their time, so they run on a thread beside the
//! loop.

use ipnetwork::IpNetwork;
use linux::nftables::{Monitor, Notice};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::firewall::nft::TABLE;
use super::firewall::{Firewall, Masquerader};
use super::model::Settings;

/// What the thread gives back.
type Done = (Option<Box<Firewall>>, linux::Result<usize>);

/// The keeper.
#[derive(Debug)]
pub struct Wall {
    /// None: nothing is wanted.
    wanted: Option<(Vec<IpNetwork>, Masquerader)>,
    /// At rest, once it was found.
    idle: Option<Box<Firewall>>,
    busy: Option<JoinHandle<Done>>,
    /// Look once more when the look under way is over.
    again: bool,
    /// Tells of changes in nf_tables, where the kernel has it.
    monitor: Option<AsyncFd<Monitor>>,
}

impl Wall {
    /// A keeper, who starts at once. Needs a tokio runtime.
    pub fn new(settings: &Settings) -> Self {
        let wanted = settings
            .masquerade
            .then(|| (settings.cluster_cidrs.clone(), settings.masquerader));
        let hears = settings.masquerade && settings.masquerader != Masquerader::Iptables;
        let monitor = hears.then(|| Monitor::open().ok()).flatten();
        let mut wall = Self {
            wanted,
            idle: None,
            busy: None,
            again: false,
            // Without notifications there is the look of each minute.
            monitor: monitor.and_then(register),
        };
        wall.check();
        wall
    }

    /// Whether a look is under way.
    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Starts a look, after the one that is under way.
    pub fn check(&mut self) {
        let Some((cidrs, masquerader)) = self.wanted.clone() else {
            return;
        };
        if self.busy.is_some() {
            self.again = true;
            return;
        }
        let known = self.idle.take();
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let found = match known {
                Some(firewall) => Ok(firewall),
                None => Firewall::new(&cidrs, masquerader).map(Box::new),
            };
            match found {
                Ok(mut firewall) => {
                    let result = firewall.ensure();
                    (Some(firewall), result)
                }
                Err(error) => (None, Err(error)),
            }
        }));
    }

    /// Waits for the end of a look and tells how many parts were mended. Starts looks when someone
    /// else removes what is ours.
    pub async fn checked(&mut self) -> linux::Result<usize> {
        loop {
            tokio::select! {
                done = finished(&mut self.busy) => {
                    self.busy = None;
                    let result = match done {
                        Ok((firewall, result)) => {
                            self.idle = firewall;
                            result
                        }
                        Err(error) => {
                            Err(linux::Error::other("check the firewall", error.to_string()))
                        }
                    };
                    if std::mem::take(&mut self.again) {
                        self.check();
                    }
                    return result;
                }
                () = disturbed(self.monitor.as_ref()) => self.check(),
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the other constructor is unsafe; this descriptor belongs to the monitor alone"
)]
fn register(monitor: Monitor) -> Option<AsyncFd<Monitor>> {
    AsyncFd::new(monitor).ok()
}

async fn finished(busy: &mut Option<JoinHandle<Done>>) -> Result<Done, tokio::task::JoinError> {
    match busy {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

/// Waits until something is deleted from a table of ours.
async fn disturbed(monitor: Option<&AsyncFd<Monitor>>) {
    let Some(monitor) = monitor else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut guard) = monitor.readable().await else {
            return std::future::pending().await;
        };
        let mut ours = false;
        guard.get_inner().drain(|seen| {
            ours |= match seen {
                Notice::Edit(edit) => edit.table == TABLE && edit.deletes,
                Notice::Lost => true,
                Notice::Done(_) => false,
            };
        });
        guard.clear_ready();
        if ours {
            return;
        }
    }
}
