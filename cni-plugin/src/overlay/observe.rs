//! What this node has of ours. Nothing else is listed.

use std::collections::BTreeMap;

use linux::route::RouteFilter;
use linux::{Host, Result};

use super::model::{Addr, Desired, FdbEntry, Link, Neigh, PROTOCOL_SEAWAY, Route, Settings};

/// What is there of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links with our names, of whatever kind.
    pub devices: BTreeMap<String, SeenDevice>,
    /// The values of the settings that matter; those that are not there are left out.
    pub sysctls: BTreeMap<String, String>,
}

/// A device and what is on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenDevice {
    /// The link.
    pub link: Link,
    /// Its addresses.
    pub addrs: Vec<Addr>,
    /// Its neighbours.
    pub neighs: Vec<Neigh>,
    /// Its forwarding entries.
    pub fdb: Vec<FdbEntry>,
    /// Our routes through it.
    pub routes: Vec<Route>,
}

/// Looks at our devices and at the settings that `desired` names.
///
/// # Errors
/// The kernel's refusal.
pub fn observe(host: &mut dyn Host, settings: &Settings, desired: &Desired) -> Result<Observed> {
    let mut seen = Observed::default();
    for name in settings.devices() {
        match device(host, &name) {
            Ok(Some(device)) => {
                seen.devices.insert(name, device);
            }
            Ok(None) => {}
            // It went away while it was looked at.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
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

/// Devices that this daemon made with another VNI, before its settings changed.
///
/// # Errors
/// The kernel's refusal.
pub fn left_behind(host: &mut dyn Host, settings: &Settings) -> Result<Vec<String>> {
    let own = settings.devices();
    let is_left = |link: &Link| {
        let vni = ["seaway.", "seaway-v6."]
            .into_iter()
            .find_map(|prefix| link.name.strip_prefix(prefix))
            .and_then(|vni| vni.parse::<u32>().ok());
        let is_ours = vni.is_some() && vni == link.vxlan.as_ref().map(|vxlan| vxlan.vni);
        is_ours && !own.contains(&link.name)
    };
    let links = host.links()?.into_iter();
    Ok(links.filter(is_left).map(|link| link.name).collect())
}

fn device(host: &mut dyn Host, name: &str) -> Result<Option<SeenDevice>> {
    let Some(link) = host.link(name)? else {
        return Ok(None);
    };
    let mut device = SeenDevice {
        addrs: host.addrs(name)?,
        neighs: host.neighs(name)?,
        ..SeenDevice::default()
    };
    if link.vxlan.is_some() {
        device.fdb = host.fdb(name)?;
    }
    device.link = link;
    let filter = RouteFilter {
        protocol: Some(PROTOCOL_SEAWAY),
        dev: Some(name),
        ..RouteFilter::default()
    };
    device.routes = host.routes(&filter)?;
    Ok(Some(device))
}
