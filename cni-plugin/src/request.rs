//! `CNI_*` variables and the configuration on standard input become a valid [`Request`]. The only
//! place that can say "bad config"; nothing after it checks these things again.

mod net;

use std::net::IpAddr;
use std::path::PathBuf;

use api::cni::{AddResult, Attachment, Dns, Error, ErrorCode, Route, VALID_ATTACHMENTS, Version};
use serde_json::Value;

use crate::conf::Field;
use crate::ipam::RangeSet;

use crate::step::Mac;

/// The kernel's limit for an interface name in bytes.
const IFNAME_BYTES_MAX: usize = 15;

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
            let net = net::parse_net(&root)?;
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
