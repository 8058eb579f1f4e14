//! What this node has of ours. Nothing else is listed.

use std::collections::BTreeMap;

use linux::route::RouteFilter;
use linux::{Host, Result};

use super::model::{
    Addr, Desired, Device, DeviceKind, Entry, Key, Link, PROTOCOL_SEAWAY, Route, Settings, WgConfig,
};

/// What is there of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links with our names, of whatever kind.
    pub devices: BTreeMap<String, SeenDevice>,
    /// The values of the settings that matter; those that are not there are left out.
    pub sysctls: BTreeMap<String, String>,
    /// What other nodes brought.
    pub entries: BTreeMap<Key, Vec<Entry>>,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenDevice {
    /// The link.
    pub link: Link,
    /// Its addresses.
    pub addrs: Vec<Addr>,
    /// It does not fill in checksums. Looked at only where that is wanted.
    pub no_tx_checksum: bool,
    /// What it was told, if it is WireGuard.
    pub wireguard: Option<WgConfig>,
}

/// Looks at our devices and all that is on them, at our routes, and at the settings that `desired`
/// names.
///
/// # Errors
/// The kernel's refusal.
pub fn observe(host: &mut dyn Host, settings: &Settings, desired: &Desired) -> Result<Observed> {
    let mut seen = Observed::default();
    for name in settings.devices() {
        match device(host, &name, desired.devices.get(&name), &mut seen) {
            Ok(()) => {}
            // It went away while it was looked at.
            Err(e) if e.is_not_found() => {
                seen.devices.remove(&name);
            }
            Err(e) => return Err(e),
        }
    }
    let filter = RouteFilter {
        protocol: Some(PROTOCOL_SEAWAY),
        ..RouteFilter::default()
    };
    for route in host.routes(&filter)? {
        put(&mut seen, Entry::Route(route));
    }
    for sysctl in &desired.sysctls {
        match host.sysctl(&sysctl.key) {
            Ok(value) => {
                seen.sysctls.insert(sysctl.key.clone(), value);
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(seen)
}

fn put(seen: &mut Observed, entry: Entry) {
    seen.entries.entry(entry.key()).or_default().push(entry);
}

/// Devices that this daemon made with other settings, before those changed.
///
/// # Errors
/// The kernel's refusal.
pub fn left_behind(host: &mut dyn Host, settings: &Settings) -> Result<Vec<String>> {
    let own = settings.devices();
    let is_left = |link: &Link| is_ours(link) && !own.contains(&link.name);
    let links = host.links()?.into_iter();
    Ok(links.filter(is_left).map(|link| link.name).collect())
}

/// Whether this daemon makes devices of this name and kind.
fn is_ours(link: &Link) -> bool {
    let vni = ["seaway.", "seaway-v6."]
        .into_iter()
        .find_map(|prefix| link.name.strip_prefix(prefix))
        .and_then(|vni| vni.parse::<u32>().ok());
    let is_vxlan = vni.is_some() && vni == link.vxlan.as_ref().map(|vxlan| vxlan.vni);
    let wireguard = ["seaway-wg", "seaway-wg-v6"].contains(&link.name.as_str());
    is_vxlan || (wireguard && link.kind.as_deref() == Some("wireguard"))
}

/// Routes of ours, for whoever removes them.
///
/// # Errors
/// The kernel's refusal.
pub fn routes(host: &mut dyn Host) -> Result<Vec<Route>> {
    host.routes(&RouteFilter {
        protocol: Some(PROTOCOL_SEAWAY),
        ..RouteFilter::default()
    })
}

fn device(
    host: &mut dyn Host,
    name: &str,
    wanted: Option<&Device>,
    seen: &mut Observed,
) -> Result<()> {
    let Some(link) = host.link(name)? else {
        return Ok(());
    };
    let mut device = SeenDevice {
        addrs: host.addrs(name)?,
        ..SeenDevice::default()
    };
    if wanted.is_some_and(|wanted| wanted.no_tx_checksum) {
        device.no_tx_checksum = !host.tx_checksum(name)?;
    }
    let mut entries = Vec::new();
    match wanted.map(|wanted| &wanted.kind) {
        Some(DeviceKind::WireGuard(_)) if link.kind.as_deref() == Some("wireguard") => {
            let there = host.wireguard(name)?;
            device.wireguard = Some(there.config);
            let peers = there.peers.into_iter();
            entries.extend(peers.map(|peer| Entry::WgPeer(name.to_owned(), peer)));
        }
        Some(DeviceKind::Vxlan { .. }) if link.vxlan.is_some() => {
            let neighs = host.neighs(name)?.into_iter().filter(|n| n.permanent);
            entries.extend(neighs.map(|neigh| Entry::Neigh(name.to_owned(), neigh)));
            let fdb = host.fdb(name)?.into_iter();
            entries.extend(fdb.map(|entry| Entry::Fdb(name.to_owned(), entry)));
        }
        _ => {}
    }
    device.link = link;
    seen.devices.insert(name.to_owned(), device);
    for entry in entries {
        put(seen, entry);
    }
    Ok(())
}
