//! The machine's side of a cluster: the underlay bridge, a namespace and a cable for each node.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use linux::addr::Addr;
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::route::{PROTOCOL_BOOT, Route};
use linux::{Host, Kernel, Mac, NetNs};

use crate::gone;
use crate::layout::{Layout, NodeLayout};

/// The interface of a node on the underlay.
const NODE_IFACE: &str = "eth0";

/// Makes bridge, namespaces and cables. Everything must be absent before.
pub(crate) fn create(layout: &Layout) -> Result<()> {
    let mut host = Kernel::open()?;
    refuse_overlap(&mut host, layout)?;
    let bridge = layout.bridge();
    let [a, b, c, _] = layout.args.underlay.octets();
    // A fixed hardware address: a bridge without one takes its ports', and changes with them.
    let mac = Mac::local([0x5e, a, b, c, 1]);
    host.add_bridge(&NewBridge {
        name: bridge.clone(),
        mac: Some(mac),
        mtu: None,
    })?;
    for (address, prefix) in [
        (IpAddr::from(layout.host_v4()), 24),
        (layout.host_v6().into(), 64),
    ] {
        host.add_addr(&bridge, &Addr::new(IpNetwork::new(address, prefix)?))?;
    }
    host.set_link(&bridge, &LinkChange::up())?;
    for node in layout.nodes() {
        create_node(&mut host, layout, &node).with_context(|| node.name.clone())?;
    }
    Ok(())
}

fn create_node(host: &mut Kernel, layout: &Layout, node: &NodeLayout) -> Result<()> {
    let netns = NetNs::create(&node.netns)?;
    show_to_ip_netns(node)?;
    let [a, b, c, d] = node.v4.octets();
    host.add_veth(&NewVeth {
        name: node.cable.clone(),
        mac: None,
        mtu: None,
        master: Some(layout.bridge()),
        peer_name: NODE_IFACE.into(),
        peer_mac: Some(Mac::local([a, b, c, d, 0])),
        peer_netns: Some(netns.reference()),
    })?;
    host.set_link(&node.cable, &LinkChange::up())?;
    let mut inside = Kernel::open_in(netns)?;
    inside.set_link("lo", &LinkChange::up())?;
    for (address, prefix) in node.underlay() {
        inside.add_addr(NODE_IFACE, &Addr::new(IpNetwork::new(address, prefix)?))?;
    }
    inside.set_link(NODE_IFACE, &LinkChange::up())?;
    for gateway in [IpAddr::from(layout.host_v4()), layout.host_v6().into()] {
        let any = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        // Not marked as the node's daemons mark theirs: they take away what they did not make.
        inside.add_route(&Route {
            protocol: PROTOCOL_BOOT,
            ..Route::to(any.parse()?).via(gateway).dev(NODE_IFACE)
        })?;
    }
    Ok(())
}

fn show_to_ip_netns(node: &NodeLayout) -> Result<()> {
    let link = &node.netns_link;
    let op = || format!("link {} to {}", link.display(), node.netns.display());
    if let Some(dir) = link.parent() {
        fs::create_dir_all(dir).with_context(op)?;
    }
    gone::file(link)?;
    std::os::unix::fs::symlink(&node.netns, link).with_context(op)
}

/// The underlay must be no network that this machine already uses.
fn refuse_overlap(host: &mut Kernel, layout: &Layout) -> Result<()> {
    for link in host.links()? {
        if link.name == layout.bridge() {
            bail!(
                "interface {} is there already; run `seaway down` first",
                link.name
            );
        }
        for addr in host.addrs(&link.name)? {
            if addr.net.contains(layout.host_v4().into())
                || addr.net.contains(layout.host_v6().into())
            {
                bail!(
                    "--underlay {}: {} has {} already; choose another network",
                    layout.args.underlay,
                    link.name,
                    addr.net
                );
            }
        }
    }
    Ok(())
}

/// Takes everything away that [`create`] made; what is gone already is fine.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let mut host = Kernel::open()?;
    for node in layout.nodes() {
        // The cable goes first: a namespace vanishes at the kernel's leisure.
        host.ensure_no_link(&node.cable)?;
        NetNs::remove(&node.netns)?;
        gone::file(&node.netns_link)?;
    }
    host.ensure_no_link(&layout.bridge())?;
    // Only when nobody else has a namespace there; `ip netns` makes the folder again when needed.
    if let Some(dir) = layout
        .nodes()
        .first()
        .and_then(|n| n.netns_link.parent().map(ToOwned::to_owned))
    {
        match fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(e) if is_in_use(&e) => {}
            Err(e) => return Err(e).with_context(|| format!("remove {}", dir.display())),
        }
    }
    Ok(())
}

fn is_in_use(error: &std::io::Error) -> bool {
    use ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    matches!(error.kind(), DirectoryNotEmpty | NotFound | ResourceBusy)
}
