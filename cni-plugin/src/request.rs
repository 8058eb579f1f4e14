//! `CNI_*` variables and the configuration on standard input become a valid [`Request`]. The only
//! place that can say "bad config"; nothing after it checks these things again.

use std::net::IpAddr;
use std::path::PathBuf;

use api::cni::{AddResult, Attachment, Dns, Error, ErrorCode, Route, VALID_ATTACHMENTS, Version};
use serde_json::Value;

use crate::conf::Field;
use crate::ipam::{Range, RangeSet, reach};
use crate::step::Mac;

/// Where leases are kept when the configuration names no place, as host-local does.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/networks";

/// The bridge's name when the configuration names none.
const BRIDGE_DEFAULT: &str = "cni0";

/// The kernel's limit for an interface name in bytes.
const IFNAME_BYTES_MAX: usize = 15;

/// Smallest MTU that IPv4 allows; IPv6 wants 1280, which the kernel itself insists on.
const MTU_MIN: u32 = 68;

/// Largest MTU of a veth.
const MTU_MAX: u32 = 65535;

/// Everything a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The version to answer in.
    pub version: Version,
    /// The network.
    pub net: Net,
    /// What to do.
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Attach a pod.
    Add(Pod),
    /// Detach a pod, however much of it is left.
    Del {
        /// Whose attachment.
        owner: Attachment,
        /// The pod's network namespace, unless it is gone.
        netns: Option<PathBuf>,
    },
    /// Compare a pod with the result of its ADD.
    Check(Pod, AddResult),
    /// Remove all attachments but these.
    Gc(Vec<Attachment>),
    /// Tell whether ADD would work.
    Status,
}

/// The pod of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Container and interface.
    pub owner: Attachment,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The hardware address that the runtime wants.
    pub mac: Option<Mac>,
    /// The addresses that the runtime wants.
    pub ips: Vec<IpAddr>,
}

/// The network's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// Name, unique on the host.
    pub name: String,
    /// The bridge.
    pub bridge: BridgeConf,
    /// Addresses; none: the pod gets a link only.
    pub ipam: Option<IpamConf>,
    /// Handed through to the result.
    pub dns: Dns,
}

/// The bridge and its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConf {
    /// Interface name.
    pub name: String,
    /// MTU of pods; none: the kernel's default.
    pub mtu: Option<u32>,
    /// The bridge has the gateways' addresses, and the host forwards.
    pub gateway: bool,
    /// Pods get a default route through the gateway.
    pub default_route: bool,
    /// Another address of the bridge is replaced instead of refused.
    pub force_address: bool,
    /// Pods may reach themselves through the host.
    pub hairpin: bool,
    /// The bridge receives all packets.
    pub promisc: bool,
    /// Pods of the bridge do not reach each other on it.
    pub isolated: bool,
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamConf {
    /// Directory of the leases of all networks.
    pub data_dir: PathBuf,
    /// A pod gets one address from each.
    pub sets: Vec<RangeSet>,
    /// More routes for the pod.
    pub routes: Vec<Route>,
    /// A resolver configuration to read `dns` from.
    pub resolv_conf: Option<PathBuf>,
}

/// A call before its configuration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// ADD
    Add,
    /// DEL
    Del,
    /// CHECK
    Check,
    /// GC
    Gc,
    /// STATUS
    Status,
    /// VERSION
    Version,
}

/// The environment, as far as it matters: gives a variable's value.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Command {
    /// The verb of `CNI_COMMAND`.
    ///
    /// # Errors
    /// It is missing or unknown.
    pub fn parse(env: Env<'_>) -> Result<Self, Error> {
        match required(env, "CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(bad_env(
                "CNI_COMMAND",
                format_args!("unknown verb {other:?}"),
            )),
        }
    }
}

impl Request {
    /// Reads a call. Not for VERSION, which has no network.
    ///
    /// # Errors
    /// The variable or field that is wrong, in the version of the configuration if it can be read.
    pub fn parse(command: Command, env: Env<'_>, input: &[u8]) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(input).map_err(|e| {
            let why = format!("the configuration on standard input is not JSON: {e}");
            Error::new(ErrorCode::DECODE, why)
        })?;
        let root = Field::root(&value);
        let version = parse_version(&root)?;
        let read = || -> Result<Self, Error> {
            let net = parse_net(&root)?;
            let verb = parse_verb(command, env, &root, version)?;
            Ok(Self { version, net, verb })
        };
        read().map_err(|error| Error {
            cni_version: version.to_string(),
            ..error
        })
    }
}

/// The version of a configuration.
///
/// # Errors
/// It is missing or one that we do not speak.
pub fn parse_version(root: &Field<'_>) -> Result<Version, Error> {
    let field = root.get("cniVersion")?;
    let text = field.text()?.unwrap_or_default();
    text.parse()
        .map_err(|unknown: api::cni::UnknownVersion| Error {
            cni_version: Version::NEWEST.to_string(),
            ..Error::new(
                ErrorCode::INCOMPATIBLE_VERSION,
                format!("cniVersion: {unknown}"),
            )
        })
}

fn parse_verb(
    command: Command,
    env: Env<'_>,
    root: &Field<'_>,
    version: Version,
) -> Result<Verb, Error> {
    let needs = |since: Version| {
        if version >= since {
            return Ok(());
        }
        let why = format_args!("{command:?} needs at least version {since}, this is {version}");
        Err(root.get("cniVersion")?.invalid(why))
    };
    match command {
        Command::Add => Ok(Verb::Add(parse_pod(env, root)?)),
        Command::Del => {
            let netns = env("CNI_NETNS")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from);
            Ok(Verb::Del {
                owner: parse_owner(env)?,
                netns,
            })
        }
        Command::Check => {
            needs(Version::V0_4_0)?;
            let previous = root.get("prevResult")?;
            let Some(result) = previous.object()? else {
                return Err(previous.invalid("CHECK needs the result of ADD"));
            };
            let result = serde_json::from_value(Value::Object(result.clone()));
            Ok(Verb::Check(
                parse_pod(env, root)?,
                result.map_err(|e| previous.invalid(e))?,
            ))
        }
        Command::Gc => {
            needs(Version::V1_1_0)?;
            // The key has a dot and a slash; it is looked up as it stands.
            let valid = root.get(VALID_ATTACHMENTS)?;
            if !valid.is_set() {
                return Err(valid.invalid("GC needs the list of attachments to keep"));
            }
            valid
                .list()?
                .iter()
                .map(parse_attachment)
                .collect::<Result<_, _>>()
                .map(Verb::Gc)
        }
        Command::Status => {
            needs(Version::V1_1_0)?;
            Ok(Verb::Status)
        }
        Command::Version => Err(bad_env("CNI_COMMAND", "VERSION has no network")),
    }
}

fn parse_attachment(field: &Field<'_>) -> Result<Attachment, Error> {
    let text = |key: &str| -> Result<String, Error> {
        let field = field.get(key)?;
        field
            .text()?
            .map(str::to_owned)
            .ok_or_else(|| field.invalid("must be set"))
    };
    Ok(Attachment {
        container_id: text("containerID")?,
        ifname: text("ifname")?,
    })
}

fn parse_owner(env: Env<'_>) -> Result<Attachment, Error> {
    let container_id = required(env, "CNI_CONTAINERID")?;
    if !is_identifier(&container_id) {
        let why = "must start with a letter or digit and hold only those, '.', '-' and '_'";
        return Err(bad_env("CNI_CONTAINERID", why));
    }
    let ifname = required(env, "CNI_IFNAME")?;
    if let Some(why) = wrong_ifname(&ifname) {
        return Err(bad_env("CNI_IFNAME", why));
    }
    Ok(Attachment {
        container_id,
        ifname,
    })
}

fn parse_pod(env: Env<'_>, root: &Field<'_>) -> Result<Pod, Error> {
    let owner = parse_owner(env)?;
    let netns = required(env, "CNI_NETNS")?.into();
    let args = Args::parse(&env("CNI_ARGS").unwrap_or_default())?;
    let runtime = root.get("runtimeConfig")?;
    let config_args = root.get("args")?.get("cni")?;
    // The later the place in this list, the more it counts.
    let mut mac = args.mac;
    for field in [config_args.get("mac")?, runtime.get("mac")?] {
        if let Some(wanted) = field.parsed::<Mac>("a hardware address")? {
            if wanted.is_multicast() {
                return Err(field.invalid("is a group address"));
            }
            mac = Some(wanted);
        }
    }
    let mut ips: Vec<IpAddr> = args.ip.into_iter().collect();
    for list in [config_args.get("ips")?, runtime.get("ips")?] {
        for field in list.list()? {
            let text = field.text()?.unwrap_or_default();
            ips.push(parse_ip(text).ok_or_else(|| field.invalid("is not an IP address"))?);
        }
    }
    ips.sort();
    ips.dedup();
    Ok(Pod {
        owner,
        netns,
        mac,
        ips,
    })
}

/// An address, with or without the length of its network.
fn parse_ip(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// What `CNI_ARGS` may say.
#[derive(Default)]
struct Args {
    ip: Option<IpAddr>,
    mac: Option<Mac>,
}

impl Args {
    fn parse(text: &str) -> Result<Self, Error> {
        let pairs = || text.split(';').filter(|pair| !pair.is_empty());
        let is_true = |v: &str| matches!(v.to_lowercase().as_str(), "1" | "true");
        let ignore = pairs().any(|pair| {
            pair.split_once('=')
                .is_some_and(|(k, v)| k == "IgnoreUnknown" && is_true(v))
        });
        let mut args = Self::default();
        for pair in pairs() {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(bad_env(
                    "CNI_ARGS",
                    format_args!("{pair:?} is not KEY=VALUE"),
                ));
            };
            let bad =
                |what: &str| bad_env("CNI_ARGS", format_args!("{key}: {value:?} is not {what}"));
            match key {
                "IP" => args.ip = Some(parse_ip(value).ok_or_else(|| bad("an IP address"))?),
                "MAC" => {
                    let mac = value.parse().ok().filter(|mac: &Mac| !mac.is_multicast());
                    args.mac = Some(mac.ok_or_else(|| bad("a hardware address"))?);
                }
                "IgnoreUnknown" => {}
                _ if ignore || key.starts_with("K8S_") => {}
                _ => return Err(bad_env("CNI_ARGS", format_args!("unknown key {key:?}"))),
            }
        }
        Ok(args)
    }
}

fn parse_net(root: &Field<'_>) -> Result<Net, Error> {
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

fn required(env: Env<'_>, name: &str) -> Result<String, Error> {
    env(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| bad_env(name, "must be set"))
}

fn bad_env(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("{name}: {why}"))
}

/// The specification's rule for container ids and network names.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Why the kernel would not take this interface name, if so.
fn wrong_ifname(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("must not be empty")
    } else if name.len() > IFNAME_BYTES_MAX {
        Some("is longer than 15 bytes")
    } else if matches!(name, "." | "..") {
        Some("cannot be the name of an interface")
    } else if name.contains(['/', ':']) || name.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        Some("must not hold '/', ':' or blanks")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
