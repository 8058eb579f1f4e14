//! The keeper of the firewall's rules. Programs take their time, so they run on a thread beside the
//! loop.

use ipnetwork::IpNetwork;
use tokio::task::JoinHandle;

use super::firewall::Firewall;
use super::model::Settings;

/// What the thread gives back.
type Done = (Option<Box<Firewall>>, linux::Result<usize>);

/// The keeper.
#[derive(Debug)]
pub struct Wall {
    /// None: nothing is wanted.
    cidrs: Option<Vec<IpNetwork>>,
    /// At rest, once it was found.
    idle: Option<Box<Firewall>>,
    busy: Option<JoinHandle<Done>>,
}

impl Wall {
    /// A keeper, who starts at once. Needs a tokio runtime.
    pub fn new(settings: &Settings) -> Self {
        let mut wall = Self {
            cidrs: settings.masquerade.then(|| settings.cluster_cidrs.clone()),
            idle: None,
            busy: None,
        };
        wall.check();
        wall
    }

    /// Whether a look is under way.
    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Starts a look, unless one is under way.
    pub fn check(&mut self) {
        let (Some(cidrs), None) = (&self.cidrs, &self.busy) else {
            return;
        };
        let cidrs = cidrs.clone();
        let known = self.idle.take();
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let found = match known {
                Some(firewall) => Ok(firewall),
                None => Firewall::new(&cidrs).map(Box::new),
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

    /// Waits for the look under way and tells how many parts were mended; forever without any.
    pub async fn checked(&mut self) -> linux::Result<usize> {
        let Some(task) = &mut self.busy else {
            return std::future::pending().await;
        };
        let done = task.await;
        self.busy = None;
        match done {
            Ok((firewall, result)) => {
                self.idle = firewall;
                result
            }
            Err(error) => Err(linux::Error::other("check the firewall", error.to_string())),
        }
    }
}
