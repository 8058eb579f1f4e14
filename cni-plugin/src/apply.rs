//! Runs steps on node and pod, and takes back what was done when one fails.

use std::thread;
use std::time::{Duration, Instant};

use linux::{Error, Host, Result};

use crate::firewall::Firewall;
use crate::step::{LinkChange, NewVeth, Side, Step};

/// How long a port may take until packets flow. The kernel does it within a millisecond unless
/// someone holds the RTNL lock.
const PORT_WAIT: Duration = Duration::from_secs(5);

/// How long probing for a duplicate of an address may take: about two seconds as a rule. An address
/// that someone else has stays unproven for ever.
const ADDRS_WAIT: Duration = Duration::from_secs(10);

/// First pause between two looks at a port; it doubles each time.
const PORT_PAUSE: Duration = Duration::from_micros(100);

/// Longest pause between two looks at a port.
const PORT_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Where steps are run.
pub struct Hosts<'a> {
    /// The node's network namespace.
    pub node: &'a mut dyn Host,
    /// The pod's network namespace, for plans that change it.
    pub pod: Option<&'a mut dyn Host>,
    /// The node's firewall.
    pub firewall: &'a mut dyn Firewall,
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{cause}{}", left_text(left))]
pub struct ApplyError {
    /// Why.
    #[source]
    pub cause: Error,
    /// What could not be taken back.
    pub left: Vec<Error>,
}

fn left_text(left: &[Error]) -> String {
    left.iter()
        .map(|e| format!("; also, taking back what was done: {e}"))
        .collect()
}

impl Hosts<'_> {
    fn side(&mut self, side: Side) -> Result<&mut dyn Host> {
        match (side, &mut self.pod) {
            (Side::Node, _) => Ok(self.node),
            (Side::Pod, Some(pod)) => Ok(*pod),
            (Side::Pod, None) => Err(Error::other("change the pod", "its namespace is not open")),
        }
    }

    /// Runs one step.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn run(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::EnsureBridge(new) => match self.node.add_bridge(new) {
                Err(e) if e.is_exists() => Ok(()),
                done => done,
            },
            Step::AddVeth(new) => {
                let mut new = new.clone();
                new.peer_netns = Some(self.side(Side::Pod)?.netns());
                self.node.add_veth(&new)
            }
            Step::EnsureGatewayVeth(new) => ensure_gateway(self.node, new),
            Step::AddPortVlan(link, vlan) => self.node.add_port_vlan(link, *vlan),
            Step::RemovePortVlan(link, vlan) => self.node.del_port_vlan(link, *vlan),
            Step::AddIfb(name, mac, mtu) => self.node.add_ifb(name, *mac, *mtu),
            Step::Limit(link, bucket) => self.node.set_token_bucket(link, *bucket),
            Step::Detour(link, through) => self.node.add_detour(link, through),
            Step::PutEntries(entries) => self.firewall.put(entries),
            Step::RemoveEntries(whose) => self.firewall.remove(whose),
            Step::ForgetUdp(entries) => self.firewall.forget_udp(&entries.udp_ports()),
            Step::AwaitAddrs(link) => await_addrs(self.side(Side::Pod)?, link),
            Step::SetLink(side, link, change) => self.side(*side)?.set_link(link, change),
            Step::EnsureAddr(side, link, addr) => {
                self.side(*side)?.ensure_addr(link, addr).map(drop)
            }
            Step::RemoveAddr(side, link, net) => {
                self.side(*side)?.ensure_no_addr(link, *net).map(drop)
            }
            Step::AddRoute(side, route) => self.side(*side)?.add_route(route),
            Step::EnsureSysctl(side, key, value) => {
                self.side(*side)?.ensure_sysctl(key, value).map(drop)
            }
            Step::AwaitPort(link) => await_port(self.node, link),
            Step::StopLink(link) => match self.node.set_link(link, &LinkChange::down()) {
                Err(e) if e.is_not_found() => Ok(()),
                done => done,
            },
            Step::RemoveLink(side, link) => self.side(*side)?.ensure_no_link(link).map(drop),
        }
    }
}

/// What takes back the steps that were run, in their order.
#[derive(Debug, Default)]
pub struct Done(Vec<Step>);

impl Done {
    /// Takes them back, last first; gives what failed.
    pub fn take_back(&self, hosts: &mut Hosts<'_>) -> Vec<Error> {
        let back = self.0.iter().rev();
        back.filter_map(|step| hosts.run(step).err()).collect()
    }
}

/// Runs all steps. When one fails, those before it are taken back, last first.
///
/// # Errors
/// The step that failed, and whatever could not be taken back.
pub fn apply(steps: &[Step], hosts: &mut Hosts<'_>) -> std::result::Result<Done, ApplyError> {
    let mut done = Done::default();
    for step in steps {
        if let Err(cause) = hosts.run(step) {
            let left = done.take_back(hosts);
            return Err(ApplyError { cause, left });
        }
        done.0.extend(step.undo());
    }
    Ok(done)
}

/// Runs all steps whatever fails.
///
/// # Errors
/// Everything that failed.
pub fn apply_all(steps: &[Step], hosts: &mut Hosts<'_>) -> std::result::Result<(), Vec<Error>> {
    let failed: Vec<Error> = steps
        .iter()
        .filter_map(|step| hosts.run(step).err())
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed)
    }
}

/// Makes the gateway's pair unless it is there, and sets the end on the bridge up.
fn ensure_gateway(node: &mut dyn Host, new: &NewVeth) -> Result<()> {
    match node.add_veth(new) {
        Err(e) if e.is_exists() => {}
        done => done?,
    }
    node.set_link(&new.name, &LinkChange::up())
}

fn await_port(node: &mut dyn Host, name: &str) -> Result<()> {
    await_until(&format!("wait for {name} to forward"), PORT_WAIT, || {
        let Some(link) = node.link(name)? else {
            let op = format!("wait for {name} to forward");
            return Err(Error::other(op, "the link is gone"));
        };
        Ok(link.running && link.port.is_some_and(|port| port.forwarding))
    })
}

fn await_addrs(pod: &mut dyn Host, name: &str) -> Result<()> {
    let op = format!("wait for the addresses of {name} to be probed");
    await_until(&op, ADDRS_WAIT, || {
        Ok(pod.addrs(name)?.iter().all(|addr| !addr.tentative))
    })
}

/// Asks again and again, with growing pauses, until `done` says so.
fn await_until(op: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut pause = PORT_PAUSE;
    while !done()? {
        if Instant::now() >= deadline {
            return Err(Error::other(op, format!("not after {} s", limit.as_secs())));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PORT_PAUSE_MAX);
    }
    Ok(())
}
