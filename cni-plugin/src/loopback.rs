//! The loopback device of a pod, in place of the reference plugin `loopback`.

use api::cni::{AddResult, Error, ErrorCode, Interface, IpConfig};
use linux::Host;
use linux::link::LinkChange;

/// Its name, whatever `CNI_IFNAME` says.
const NAME: &str = "lo";

/// The hardware address of a loopback device.
const MAC: &str = "00:00:00:00:00:00";

/// Sets it up; the result tells of its addresses.
///
/// # Errors
/// The kernel's refusal.
pub fn add(netns: &str, pod: &mut dyn Host) -> linux::Result<AddResult> {
    pod.set_link(NAME, &LinkChange::up())?;
    let addrs = pod.addrs(NAME)?.into_iter();
    let ips = addrs.map(|addr| IpConfig {
        version: None,
        address: addr.net,
        gateway: None,
        interface: Some(0),
    });
    Ok(AddResult {
        interfaces: vec![Interface {
            name: NAME.to_owned(),
            mac: MAC.to_owned(),
            sandbox: netns.to_owned(),
            ..Interface::default()
        }],
        ips: ips.collect(),
        ..AddResult::default()
    })
}

/// Sets it down.
///
/// # Errors
/// The kernel's refusal.
pub fn del(pod: &mut dyn Host) -> linux::Result<()> {
    pod.set_link(NAME, &LinkChange::down())
}

/// Whether it is up.
///
/// # Errors
/// It is not, or the kernel's refusal.
pub fn check(pod: &mut dyn Host) -> Result<(), Error> {
    let link = pod
        .link(NAME)
        .map_err(|e| Error::new(ErrorCode::KERNEL, e.to_string()))?;
    match link {
        Some(link) if link.up => Ok(()),
        _ => Err(Error::new(ErrorCode::CHECK, "lo is down")),
    }
}
