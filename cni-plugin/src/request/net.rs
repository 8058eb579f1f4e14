//! The network's part of a request: bridge, VLANs, name servers.

use api::cni::{Dns, Error};

use super::ipam::{self, Ipam};
use super::ports::{parse_backend, parse_ports, parse_shaping};
use super::{BridgeConf, Net, Vlans, is_identifier, wrong_ifname};
use crate::conf::Field;
use crate::role::Role;
use crate::step::PortVlan;

/// The bridge's name when the configuration names none.
const BRIDGE_DEFAULT: &str = "cni0";

/// Smallest MTU that IPv4 allows; IPv6 wants 1280, which the kernel itself insists on.
const MTU_MIN: u32 = 68;

/// Largest MTU of a veth.
const MTU_MAX: u32 = 65535;

/// Largest number of a VLAN (IEEE 802.1Q: 4095 is reserved).
const VLAN_MAX: u32 = 4094;

/// Keys of a configuration.
const KEYS: [&str; 36] = [
    "cniVersion",
    "name",
    "type",
    "bridge",
    "mtu",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "ipMasqBackend",
    "hairpinMode",
    "promiscMode",
    "portIsolation",
    "ipam",
    "dns",
    "prevResult",
    "runtimeConfig",
    "args",
    "capabilities",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "disableContainerInterface",
    "snat",
    "masqAll",
    "markMasqBit",
    "externalSetMarkChain",
    "conditionsV4",
    "conditionsV6",
    "backend",
    "ingressRate",
    "ingressBurst",
    "egressRate",
    "egressBurst",
];

/// Keys that only the first plugin of a list has a use for.
pub(super) const MAIN_KEYS: [&str; 2] = ["bridge", "ipam"];

/// Reads the network.
///
/// # Errors
/// The field that is wrong.
pub(super) fn parse_net(root: &Field<'_>, role: Role) -> Result<Net, Error> {
    if role.is_strict() {
        root.only(&KEYS)?;
    }
    let name = root.get("name")?;
    let name_text = name.text()?.unwrap_or_default();
    if !is_identifier(name_text) {
        let why = "must start with a letter or digit and hold only those, '.', '-' and '_'";
        return Err(name.invalid(why));
    }
    let bridge = parse_bridge(root, role)?;
    let (ipam, ipam_plugin) = match ipam::parse(root, role.is_strict())? {
        Ipam::None => (None, None),
        Ipam::BuiltIn(conf) => (Some(conf), None),
        Ipam::Plugin(name) => (None, Some(name)),
    };
    if !bridge.container_interface && (ipam.is_some() || ipam_plugin.is_some()) {
        let field = root.get("disableContainerInterface")?;
        return Err(field.invalid("cannot be set together with ipam"));
    }
    Ok(Net {
        name: name_text.to_owned(),
        bridge,
        ipam,
        ipam_plugin,
        dns: parse_dns(root)?,
        masquerade: root.get("ipMasq")?.flag(false)?,
        masquerade_backend: parse_backend(root, "ipMasqBackend")?,
        ports: parse_ports(root, role)?,
        shaping: parse_shaping(root, role)?,
        makes_link: match role {
            Role::Seaway => has_main_key(root)?,
            role => role == Role::Bridge,
        },
    })
}

/// Name servers: the runtime's (`runtimeConfig.dns`, whose keys are others), else the network's.
fn parse_dns(root: &Field<'_>) -> Result<Dns, Error> {
    let wished = root.get("runtimeConfig")?.get("dns")?;
    if wished.is_set() {
        return Ok(Dns {
            nameservers: wished.get("servers")?.texts()?,
            search: wished.get("searches")?.texts()?,
            options: wished.get("options")?.texts()?,
            domain: String::new(),
        });
    }
    let dns = root.get("dns")?;
    Ok(Dns {
        nameservers: dns.get("nameservers")?.texts()?,
        domain: dns.get("domain")?.text()?.unwrap_or_default().to_owned(),
        search: dns.get("search")?.texts()?,
        options: dns.get("options")?.texts()?,
    })
}

fn has_main_key(root: &Field<'_>) -> Result<bool, Error> {
    for key in MAIN_KEYS {
        if root.get(key)?.is_set() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn parse_bridge(root: &Field<'_>, role: Role) -> Result<BridgeConf, Error> {
    let name = root.get("bridge")?;
    let name_text = name
        .text()?
        .filter(|t| !t.is_empty())
        .unwrap_or(BRIDGE_DEFAULT);
    if let Some(why) = wrong_ifname(name_text) {
        return Err(name.invalid(why));
    }
    let mtu = root.get("mtu")?;
    let mtu_number = mtu.number()?.filter(|n| *n != 0);
    if mtu_number.is_some_and(|n| !(MTU_MIN..=MTU_MAX).contains(&n)) {
        return Err(mtu.invalid(format_args!("must be from {MTU_MIN} to {MTU_MAX}")));
    }
    // Under its own name the plugin is a pod network as it stands; the reference does nothing
    // that it is not told.
    let own = role == Role::Seaway;
    let promisc = root.get("promiscMode")?;
    let promisc_on = promisc.flag(false)?;
    let hairpin = root.get("hairpinMode")?.flag(own && !promisc_on)?;
    if hairpin && promisc_on {
        return Err(promisc.invalid("cannot be set together with hairpinMode"));
    }
    let is_gateway = root.get("isGateway")?.flag(own)?;
    let default_route = root.get("isDefaultGateway")?.flag(own && is_gateway)?;
    Ok(BridgeConf {
        name: name_text.to_owned(),
        mtu: mtu_number,
        gateway: is_gateway || default_route,
        default_route,
        force_address: root.get("forceAddress")?.flag(false)?,
        hairpin,
        promisc: promisc_on,
        isolated: root.get("portIsolation")?.flag(false)?,
        check_mac: root.get("macspoofchk")?.flag(false)?,
        detect_duplicates: root.get("enabledad")?.flag(false)?,
        container_interface: !root.get("disableContainerInterface")?.flag(false)?,
        vlans: parse_vlans(root)?,
    })
}

fn parse_vlans(root: &Field<'_>) -> Result<Option<Vlans>, Error> {
    let vlan = root.get("vlan")?;
    let id = match vlan.number()?.unwrap_or(0) {
        0 => None,
        number => Some(vlan_id(&vlan, number)?),
    };
    let mut trunk = Vec::new();
    for item in root.get("vlanTrunk")?.list()? {
        let field = |key: &str| -> Result<Option<u16>, Error> {
            let field = item.get(key)?;
            field
                .number()?
                .map(|number| vlan_id(&field, number))
                .transpose()
        };
        let mut put = |first, last| {
            trunk.push(PortVlan {
                first,
                last,
                untagged: false,
            });
        };
        let single = field("id")?;
        match (field("minID")?, field("maxID")?) {
            (None, None) if single.is_none() => return Err(item.invalid("names no VLAN")),
            (None, None) => {}
            (Some(first), Some(last)) if first <= last => put(first, last),
            (Some(_), Some(_)) => {
                return Err(item.get("minID")?.invalid("is larger than maxID"));
            }
            (Some(_), None) => return Err(item.get("maxID")?.invalid("must be set as minID is")),
            (None, Some(_)) => return Err(item.get("minID")?.invalid("must be set as maxID is")),
        }
        if let Some(id) = single {
            put(id, id);
        }
    }
    trunk.sort();
    trunk.dedup();
    if id.is_none() && trunk.is_empty() {
        return Ok(None);
    }
    Ok(Some(Vlans {
        id,
        trunk,
        preserve_default: root.get("preserveDefaultVlan")?.flag(true)?,
    }))
}

fn vlan_id(field: &Field<'_>, number: u32) -> Result<u16, Error> {
    let id = u16::try_from(number).ok();
    match id.filter(|_| (1..=VLAN_MAX).contains(&number)) {
        Some(id) => Ok(id),
        None => Err(field.invalid(format_args!("must be from 1 to {VLAN_MAX}, not {number}"))),
    }
}
