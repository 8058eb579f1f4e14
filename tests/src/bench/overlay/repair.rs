//! How fast the daemon mends what others break, by kind.

use std::path::Path;
use std::thread;

use anyhow::{Result, bail};
use ipnetwork::IpNetwork;
use linux::addr::Addr;
use linux::link::LinkChange;
use linux::netlink::{Group, Monitor};
use linux::route::Route;
use linux::{Host, Kernel, Mac, NetNs};

use super::{heard, subnet, until};

/// How often each thing is broken; and those that have everything made anew.
const BREAKS: usize = 30;
const REMAKES: usize = 10;

const DEVICE: &str = "seaway.1";

/// The node's addresses, one at a time.
const UNDERLAY: [&str; 2] = ["172.31.0.1/12", "172.31.0.2/12"];

/// A kind, its samples in milliseconds, and what was done.
type Kind = (&'static str, Vec<f64>, &'static str);

/// All kinds. The clock starts when the kernel has made the change, or has first said so.
pub(super) fn all(path: &Path, host: &mut Kernel, others: u16) -> Result<Vec<Kind>> {
    let last: IpNetwork = subnet(others).parse()?;
    let mut node = Node {
        path,
        host,
        last,
        others: others.into(),
    };
    Ok(vec![
        ("route", node.routes()?, "someone deletes a route"),
        ("neigh", node.neighs()?, "someone deletes a neighbour"),
        ("fdb", node.entries()?, "someone deletes a forwarding entry"),
        (
            "address",
            node.addresses()?,
            "someone deletes the device's address",
        ),
        ("mac", node.macs()?, "someone changes the hardware address"),
        (
            "down",
            node.downs()?,
            "someone takes the device down, and so all its routes: first word of it until the last is back",
        ),
        (
            "mtu",
            node.mtus()?,
            "the underlay's MTU changes, and the device follows",
        ),
        (
            "underlay",
            node.underlays()?,
            "the underlay's address changes: the device is made anew, until the last entry",
        ),
        (
            "device",
            node.devices()?,
            "someone deletes the device: first word of it until the last entry is back",
        ),
    ])
}

struct Node<'a> {
    path: &'a Path,
    host: &'a mut Kernel,
    /// The last other node's network: what is of it comes last.
    last: IpNetwork,
    others: usize,
}

impl Node<'_> {
    /// The last node's route is there, which comes after everything else.
    fn has_route(&mut self) -> Result<bool> {
        let route = self.host.route_to(self.last.network())?;
        Ok(route.and_then(|route| route.dev).as_deref() == Some(DEVICE))
    }

    fn routes(&mut self) -> Result<Vec<f64>> {
        let gateway = self.last.network();
        let route = Route::to(self.last).via(gateway).dev(DEVICE).onlink();
        let mut took = Vec::new();
        for _ in 0..BREAKS {
            self.host.del_route(&route)?;
            took.push(until("the route", || self.has_route())?);
        }
        Ok(took)
    }

    fn neighs(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..BREAKS {
            let all = self.host.neighs(DEVICE)?;
            self.host.del_neigh(DEVICE, &all[all.len() / 2])?;
            let back = || Ok(self.host.neighs(DEVICE)?.len() == all.len());
            took.push(until("the neighbour", back)?);
        }
        Ok(took)
    }

    fn entries(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..BREAKS {
            let all = self.host.fdb(DEVICE)?;
            self.host.del_fdb(DEVICE, &all[all.len() / 2])?;
            let back = || Ok(self.host.fdb(DEVICE)?.len() == all.len());
            took.push(until("the forwarding entry", back)?);
        }
        Ok(took)
    }

    fn addresses(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..BREAKS {
            let all = self.host.addrs(DEVICE)?;
            self.host.del_addr(DEVICE, all[0].net)?;
            let back = || Ok(self.host.addrs(DEVICE)?.len() == all.len() && self.has_route()?);
            took.push(until("the address", back)?);
        }
        Ok(took)
    }

    fn macs(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        let mac = |host: &mut Kernel| -> Result<Option<Mac>> {
            Ok(host.link(DEVICE)?.and_then(|link| link.mac))
        };
        let good: Option<Mac> = mac(self.host)?;
        for _ in 0..BREAKS {
            let change = LinkChange {
                mac: Some(Mac([0x0a, 0, 0, 0, 0, 0x99])),
                ..LinkChange::default()
            };
            self.host.set_link(DEVICE, &change)?;
            let back = || Ok(mac(self.host)? == good && self.has_route()?);
            took.push(until("the hardware address", back)?);
        }
        Ok(took)
    }

    fn downs(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..REMAKES {
            let down = |host: &mut Kernel| host.set_link(DEVICE, &LinkChange::down());
            let back = |node: &mut Self| {
                let link = node.host.link(DEVICE)?;
                Ok(link.is_some_and(|link| link.up) && node.has_route()?)
            };
            took.push(self.since_first_word(down, back)?);
        }
        Ok(took)
    }

    fn mtus(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for round in 0..BREAKS {
            let mtu = if round % 2 == 0 { 1400 } else { 1500 };
            let change = LinkChange {
                mtu: Some(mtu),
                ..LinkChange::default()
            };
            self.host.set_link("eth0", &change)?;
            let follows = || {
                let link = self.host.link(DEVICE)?;
                // 50 bytes are the tunnel's headers.
                Ok(link.is_some_and(|link| link.mtu == mtu - 50) && self.has_route()?)
            };
            took.push(until("the MTU", follows)?);
        }
        Ok(took)
    }

    fn underlays(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        // Else the new address goes with the old one.
        let promote = "net/ipv4/conf/eth0/promote_secondaries";
        self.host.set_sysctl(promote, "1")?;
        for round in 0..REMAKES {
            let old: IpNetwork = UNDERLAY[round % 2].parse()?;
            let new: IpNetwork = UNDERLAY[1 - round % 2].parse()?;
            self.host.add_addr("eth0", &Addr::new(new))?;
            self.host.del_addr("eth0", old)?;
            let follows = || {
                let link = self.host.link(DEVICE)?;
                let local = link.and_then(|link| link.vxlan?.local);
                Ok(local == Some(new.ip()) && self.has_route()?)
            };
            took.push(until("the device with the new address", follows)?);
            self.is_whole()?;
        }
        Ok(took)
    }

    fn devices(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..REMAKES {
            let before = self.host.link(DEVICE)?.map(|link| link.index);
            let delete = |host: &mut Kernel| host.delete_link(DEVICE);
            let back = |node: &mut Self| {
                let now = node.host.link(DEVICE)?.map(|link| link.index);
                Ok(now.is_some() && now != before && node.has_route()?)
            };
            took.push(self.since_first_word(delete, back)?);
            self.is_whole()?;
        }
        Ok(took)
    }

    /// From the kernel's first word of a change. It answers whoever makes it long after it is made,
    /// and the daemon may have mended all by then.
    fn since_first_word(
        &mut self,
        change: fn(&mut Kernel) -> linux::Result<()>,
        mut back: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<f64> {
        let mut other = Kernel::open_in(NetNs::open(self.path)?)?;
        let monitor = Monitor::open_in(&NetNs::open(self.path)?, &[Group::Link])?;
        let changed = thread::spawn(move || change(&mut other));
        heard(&monitor)?;
        let took = until("the device", || back(self))?;
        let Ok(result) = changed.join() else {
            bail!("the thread broke");
        };
        result?;
        Ok(took)
    }

    fn is_whole(&mut self) -> Result<()> {
        let entries = self.host.fdb(DEVICE)?.len();
        if entries != self.others {
            bail!("{entries} forwarding entries came back");
        }
        Ok(())
    }
}
