//! The network's part of a request: bridge, ranges, routes, and what is not done.

use std::net::IpAddr;
use std::path::PathBuf;

use api::cni::{Dns, Error, Route};

use super::{BridgeConf, IpamConf, Net, is_identifier, wrong_ifname};
use crate::conf::Field;
use crate::ipam::{Range, RangeSet, reach};

/// Where leases are kept when the configuration names no place, as host-local does.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/networks";

/// The bridge's name when the configuration names none.
const BRIDGE_DEFAULT: &str = "cni0";

/// Smallest MTU that IPv4 allows; IPv6 wants 1280, which the kernel itself insists on.
const MTU_MIN: u32 = 68;

/// Largest MTU of a veth.
const MTU_MAX: u32 = 65535;

/// Reads the network.
///
/// # Errors
/// The field that is wrong.
pub(super) fn parse_net(root: &Field<'_>) -> Result<Net, Error> {
    root.only(&[
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
    ])?;
    let name = root.get("name")?;
    let name_text = name.text()?.unwrap_or_default();
    if !is_identifier(name_text) {
        let why = "must start with a letter or digit and hold only those, '.', '-' and '_'";
        return Err(name.invalid(why));
    }
    refuse_what_is_not_done(root)?;
    let bridge = parse_bridge(root)?;
    let ipam = parse_ipam(root)?;
    let dns = root.get("dns")?;
    let dns = Dns {
        nameservers: dns.get("nameservers")?.texts()?,
        domain: dns.get("domain")?.text()?.unwrap_or_default().to_owned(),
        search: dns.get("search")?.texts()?,
        options: dns.get("options")?.texts()?,
    };
    Ok(Net {
        name: name_text.to_owned(),
        bridge,
        ipam,
        dns,
    })
}

/// Options of the reference bridge plugin that we do not have: silence would be worse than an error.
fn refuse_what_is_not_done(root: &Field<'_>) -> Result<(), Error> {
    let masquerade = root.get("ipMasq")?;
    if masquerade.flag(false)? {
        return Err(masquerade.unsupported(
            "masquerading is done for the whole node by the overlay daemon, not per pod",
        ));
    }
    for key in ["macspoofchk", "disableContainerInterface", "enabledad"] {
        let field = root.get(key)?;
        if field.flag(false)? {
            return Err(field.unsupported("is not done by this plugin"));
        }
    }
    let vlan = root.get("vlan")?;
    if vlan.number()?.unwrap_or(0) != 0 {
        return Err(vlan.unsupported("VLANs are not done by this plugin"));
    }
    let trunk = root.get("vlanTrunk")?;
    if !trunk.list()?.is_empty() {
        return Err(trunk.unsupported("VLANs are not done by this plugin"));
    }
    Ok(())
}

fn parse_bridge(root: &Field<'_>) -> Result<BridgeConf, Error> {
    let name = root.get("bridge")?;
    let name_text = name.text()?.unwrap_or(BRIDGE_DEFAULT);
    if let Some(why) = wrong_ifname(name_text) {
        return Err(name.invalid(why));
    }
    let mtu = root.get("mtu")?;
    let mtu_number = mtu.number()?.filter(|n| *n != 0);
    if mtu_number.is_some_and(|n| !(MTU_MIN..=MTU_MAX).contains(&n)) {
        return Err(mtu.invalid(format_args!("must be from {MTU_MIN} to {MTU_MAX}")));
    }
    let promisc = root.get("promiscMode")?;
    let promisc_on = promisc.flag(false)?;
    let hairpin = root.get("hairpinMode")?.flag(!promisc_on)?;
    if hairpin && promisc_on {
        return Err(promisc.invalid("cannot be set together with hairpinMode"));
    }
    let default_route = root
        .get("isDefaultGateway")?
        .flag(root.get("isGateway")?.flag(true)?)?;
    let gateway = root.get("isGateway")?.flag(true)? || default_route;
    Ok(BridgeConf {
        name: name_text.to_owned(),
        mtu: mtu_number,
        gateway,
        default_route,
        force_address: root.get("forceAddress")?.flag(false)?,
        hairpin,
        promisc: promisc_on,
        isolated: root.get("portIsolation")?.flag(false)?,
    })
}

fn parse_ipam(root: &Field<'_>) -> Result<Option<IpamConf>, Error> {
    let ipam = root.get("ipam")?;
    if ipam.object()?.is_none_or(serde_json::Map::is_empty) {
        return Ok(None);
    }
    let kind = ipam.get("type")?;
    match kind.text()?.unwrap_or_default() {
        // The files are host-local's, so its name means the same.
        "seaway" | "host-local" => {}
        "" => return Err(kind.invalid("must be set")),
        other => {
            let why = format_args!("{other:?} is not built in; \"seaway\" and \"host-local\" are");
            return Err(kind.unsupported(why));
        }
    }
    ipam.only(&[
        "type",
        "ranges",
        "routes",
        "dataDir",
        "resolvConf",
        "name",
        "subnet",
        "rangeStart",
        "rangeEnd",
        "gateway",
    ])?;
    let mut sets = Vec::new();
    let ranges = ipam.get("ranges")?;
    for list in [root.get("runtimeConfig")?.get("ipRanges")?, ranges.clone()] {
        for set in list.list()? {
            let found = set
                .list()?
                .iter()
                .map(parse_range)
                .collect::<Result<Vec<_>, _>>()?;
            sets.push(RangeSet::new(found).map_err(|why| set.invalid(why))?);
        }
    }
    // The older form with one range on the level of ipam itself.
    if ipam.get("subnet")?.is_set() {
        let set = RangeSet::new(vec![parse_range(&ipam)?]).map_err(|why| ipam.invalid(why))?;
        sets.insert(0, set);
    }
    if sets.is_empty() {
        return Err(ranges.invalid("must name at least one range"));
    }
    if let Some((a, b)) = RangeSet::overlap(&sets) {
        return Err(ranges.invalid(format_args!("{a} and {b} overlap")));
    }
    let data_dir = ipam.get("dataDir")?;
    let data_dir_text = data_dir
        .text()?
        .filter(|t| !t.is_empty())
        .unwrap_or(DATA_DIR_DEFAULT);
    if !data_dir_text.starts_with('/') {
        return Err(data_dir.invalid("must be an absolute path"));
    }
    let routes = ipam
        .get("routes")?
        .list()?
        .iter()
        .map(parse_route)
        .collect::<Result<_, _>>()?;
    let resolv_conf = ipam
        .get("resolvConf")?
        .text()?
        .filter(|t| !t.is_empty())
        .map(PathBuf::from);
    Ok(Some(IpamConf {
        data_dir: data_dir_text.into(),
        sets,
        routes,
        resolv_conf,
    }))
}

fn parse_range(field: &Field<'_>) -> Result<Range, Error> {
    let subnet = field.get("subnet")?;
    let Some(net) = subnet.network()? else {
        return Err(subnet.invalid("must be set"));
    };
    if net.ip() != net.network() {
        let right = format!("{}/{}", net.network(), net.prefix());
        return Err(subnet.invalid(format_args!(
            "has bits of a host set; the network is {right}"
        )));
    }
    let Some((first, last)) = reach(net) else {
        return Err(subnet.invalid("is too small to hold a gateway and a pod"));
    };
    let address = |key: &str, default: IpAddr| -> Result<IpAddr, Error> {
        let field = field.get(key)?;
        let address = field.parsed("an IP address")?.unwrap_or(default);
        if net.contains(address) {
            return Ok(address);
        }
        Err(field.invalid(format_args!("{address} is not in {net}")))
    };
    let range = Range {
        subnet: net,
        start: address("rangeStart", first)?,
        end: address("rangeEnd", last)?,
        gateway: address("gateway", first)?,
    };
    if range.start > range.end {
        let why = format_args!("{} comes after rangeEnd {}", range.start, range.end);
        return Err(field.get("rangeStart")?.invalid(why));
    }
    Ok(range)
}

fn parse_route(field: &Field<'_>) -> Result<Route, Error> {
    let dst = field.get("dst")?;
    let Some(net) = dst.network()? else {
        return Err(dst.invalid("must be set"));
    };
    let gateway = field.get("gw")?;
    let gw = gateway.parsed::<IpAddr>("an IP address")?;
    if gw.is_some_and(|gw| gw.is_ipv4() != net.is_ipv4()) {
        return Err(gateway.invalid("is not of the destination's family"));
    }
    Ok(Route {
        dst: net,
        gw,
        mtu: field.get("mtu")?.number()?,
        priority: field.get("priority")?.number()?,
        table: field.get("table")?.number()?,
    })
}
