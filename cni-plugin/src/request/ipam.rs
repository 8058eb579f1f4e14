//! Where addresses come from: ranges and routes of the built-in allocator, or the name of a plugin
//! that gives them.

use std::net::IpAddr;
use std::path::PathBuf;

use api::cni::{Error, Route};

use super::{IpamConf, is_identifier};
use crate::conf::Field;
use crate::ipam::{Range, RangeSet, reach};

/// Where leases are kept when the configuration names no place, as host-local does.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/networks";

/// Keys of the built-in allocator.
const KEYS: [&str; 10] = [
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
];

/// What gives addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ipam {
    /// Nothing: a link is all there is.
    None,
    /// The built-in allocator.
    BuiltIn(IpamConf),
    /// The plugin of this name.
    Plugin(String),
}

/// Reads `ipam` of `root`; keys that are not known are refused if `strict`.
pub(super) fn parse(root: &Field<'_>, strict: bool) -> Result<Ipam, Error> {
    let ipam = root.get("ipam")?;
    if ipam.object()?.is_none_or(serde_json::Map::is_empty) {
        return Ok(Ipam::None);
    }
    let kind = ipam.get("type")?;
    match kind.text()?.unwrap_or_default() {
        // The files are host-local's, so its name means the same.
        "seaway" | "host-local" => {}
        // The reference plugins take this for no addresses.
        "" if !strict => return Ok(Ipam::None),
        "" => return Err(kind.invalid("must be set")),
        other if is_identifier(other) => return Ok(Ipam::Plugin(other.to_owned())),
        other => return Err(kind.invalid(format_args!("{other:?} is no name of a program"))),
    }
    if strict {
        ipam.only(&KEYS)?;
    }
    let mut sets = Vec::new();
    let ranges = ipam.get("ranges")?;
    for list in [root.get("runtimeConfig")?.get("ipRanges")?, ranges.clone()] {
        for set in list.list()? {
            let found = set.list()?;
            let found = found
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
    let text = |field: &Field<'_>| -> Result<Option<String>, Error> {
        Ok(field.text()?.filter(|t| !t.is_empty()).map(str::to_owned))
    };
    let dir = text(&data_dir)?.unwrap_or_else(|| DATA_DIR_DEFAULT.to_owned());
    if !dir.starts_with('/') {
        return Err(data_dir.invalid("must be an absolute path"));
    }
    let routes = ipam.get("routes")?.list()?;
    let routes = routes.iter().map(parse_route).collect::<Result<_, _>>()?;
    Ok(Ipam::BuiltIn(IpamConf {
        data_dir: dir.into(),
        sets,
        routes,
        resolv_conf: text(&ipam.get("resolvConf")?)?.map(PathBuf::from),
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
    let gw = match gateway.text()?.filter(|text| !text.is_empty()) {
        Some(_) => gateway.parsed::<IpAddr>("an IP address")?,
        None => None,
    };
    if gw.is_some_and(|gw| gw.is_ipv4() != net.is_ipv4()) {
        return Err(gateway.invalid("is not of the destination's family"));
    }
    let scope = field.get("scope")?;
    let scope_number = scope.number()?.map(u8::try_from).transpose();
    Ok(Route {
        mtu: field.get("mtu")?.number()?,
        priority: field.get("priority")?.number()?,
        table: field.get("table")?.number()?,
        advmss: field.get("advmss")?.number()?,
        scope: scope_number.map_err(|_large| scope.invalid("must be from 0 to 255"))?,
        ..Route::to(net, gw)
    })
}
