//! `CNI_*` variables and the configuration on standard input become a valid [`Request`]. The only
//! place that can say "bad config"; nothing after it checks these things again.

mod ipam;
mod net;
mod ports;
mod wish;

use std::path::PathBuf;

use api::cni::{AddResult, Attachment, Dns, Error, ErrorCode, Route, VALID_ATTACHMENTS, Version};
use serde_json::Value;

use crate::conf::Field;
use crate::ipam::RangeSet;
use crate::role::Role;
use crate::step::PortVlan;

pub use ports::{Backend, PortMapping, Ports, Protocol, Shaping};
pub use wish::Pod;

/// All that matters when something is taken away.
const TEARDOWN_KEYS: [&str; 8] = [
    "cniVersion",
    "name",
    "type",
    "bridge",
    "ipam",
    "backend",
    "ipMasqBackend",
    VALID_ATTACHMENTS,
];

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
    /// Add to what the plugins before this one did (their result).
    AddTo(Pod, AddResult),
    /// Detach a pod, however much of it is left.
    Del {
        /// Whose attachment.
        owner: Attachment,
        /// The pod's network namespace, unless it is gone.
        netns: Option<PathBuf>,
    },
    /// Compare a pod with the result of its ADD.
    Check(Pod, AddResult),
    /// Compare what was added to what other plugins did with the result.
    CheckAddition(Pod, AddResult),
    /// Remove all attachments but these.
    Gc(Vec<Attachment>),
    /// Tell whether ADD would work.
    Status,
}

/// The network's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// Name, unique on the host.
    pub name: String,
    /// The bridge.
    pub bridge: BridgeConf,
    /// The built-in allocator. Without it and without a plugin for it, the pod gets a link only.
    pub ipam: Option<IpamConf>,
    /// The plugin that gives addresses.
    pub ipam_plugin: Option<String>,
    /// Handed through to the result.
    pub dns: Dns,
    /// What leaves the pod's network gets the node's address.
    pub masquerade: bool,
    /// Who does that; none: whatever the kernel has, nftables first.
    pub masquerade_backend: Option<Backend>,
    /// Host ports.
    pub ports: Ports,
    /// Rate limits.
    pub shaping: Shaping,
    /// The configuration is of a plugin that makes a link, not of one that only works behind
    /// another. One with neither `bridge` nor `ipam` does not say.
    pub makes_link: bool,
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
    /// Frames from another hardware address than the pod's are dropped.
    pub check_mac: bool,
    /// IPv6 addresses are probed before they are used.
    pub detect_duplicates: bool,
    /// The pod's end is set up; if not, it stays down for whoever uses it.
    pub container_interface: bool,
    /// VLANs of the pod's port.
    pub vlans: Option<Vlans>,
}

impl BridgeConf {
    /// The link that has the gateways' addresses: the bridge, or a port of its own in a VLAN.
    pub fn gateway_link(&self) -> String {
        match self.vlans.as_ref().and_then(|vlans| vlans.id) {
            Some(id) => format!("{}.{id}", self.name),
            None => self.name.clone(),
        }
    }
}

/// VLANs of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    /// The one whose packets come and go without a tag.
    pub id: Option<u16>,
    /// Those whose packets have tags.
    pub trunk: Vec<PortVlan>,
    /// The port stays in VLAN 1 too.
    pub preserve_default: bool,
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
    /// As it stands in `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

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

/// Reads standard input.
///
/// # Errors
/// It is not JSON.
pub fn parse_input(input: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(input).map_err(|e| {
        let why = format!("the configuration on standard input is not JSON: {e}");
        Error::new(ErrorCode::DECODE, why)
    })
}

impl Request {
    /// Reads a call. Not for VERSION, which has no network.
    ///
    /// # Errors
    /// The variable or field that is wrong, in the version of the configuration if it can be read.
    pub fn parse(role: Role, command: Command, env: Env<'_>, value: &Value) -> Result<Self, Error> {
        let root = Field::root(value);
        let version = parse_version(&root)?;
        let read = || -> Result<Self, Error> {
            // What was asked for counts when it is made. To take it away, whose it is is enough,
            // and nothing else that is wrong may stand in the way.
            let mut without = Value::Null;
            if matches!(command, Command::Del | Command::Gc)
                && let Some(object) = root.object()?
            {
                let kept = object
                    .iter()
                    .filter(|(key, _)| TEARDOWN_KEYS.contains(&key.as_str()));
                without = kept
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
            }
            let root = if without.is_null() {
                root.clone()
            } else {
                Field::root(&without)
            };
            let net = net::parse_net(&root, role)?;
            let verb = parse_verb(role, command, env, &root, version, &net)?;
            Ok(Self { version, net, verb })
        };
        read().map_err(|error| Error {
            cni_version: version.to_string(),
            ..error
        })
    }
}

/// The version of a configuration; the first one when it names none.
///
/// # Errors
/// It is one that we do not speak.
pub fn parse_version(root: &Field<'_>) -> Result<Version, Error> {
    let field = root.get("cniVersion")?;
    // As the reference library reads it.
    let text = field.text()?.filter(|t| !t.is_empty()).unwrap_or("0.1.0");
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
    role: Role,
    command: Command,
    env: Env<'_>,
    root: &Field<'_>,
    version: Version,
    net: &Net,
) -> Result<Verb, Error> {
    let needs = |since: Version| {
        if version >= since {
            return Ok(());
        }
        let why = format_args!("{command:?} needs at least version {since}, this is {version}");
        Err(Error {
            code: ErrorCode::INCOMPATIBLE_VERSION,
            ..root.get("cniVersion")?.invalid(why)
        })
    };
    match command {
        Command::Add => {
            let pod = wish::parse_pod(env, root)?;
            match parse_previous(root)? {
                Some(previous) => {
                    refuse_main_keys(root)?;
                    Ok(Verb::AddTo(pod, previous))
                }
                None if role.is_always_chained() => {
                    let why = "must be there: this plugin only works behind another one";
                    Err(root.get("prevResult")?.invalid(why))
                }
                None => Ok(Verb::Add(pod)),
            }
        }
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
            let Some(previous) = parse_previous(root)? else {
                let previous = root.get("prevResult")?;
                return Err(previous.invalid("CHECK needs the result of ADD"));
            };
            let pod = wish::parse_pod(env, root)?;
            if is_addition(role, net, &pod.owner, &previous) {
                Ok(Verb::CheckAddition(pod, previous))
            } else {
                Ok(Verb::Check(pod, previous))
            }
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

/// The result of the plugins before this one (ADD) or of all (CHECK).
fn parse_previous(root: &Field<'_>) -> Result<Option<AddResult>, Error> {
    let previous = root.get("prevResult")?;
    let Some(object) = previous.object()? else {
        return Ok(None);
    };
    let result = AddResult::read(&Value::Object(object.clone()));
    result.map(Some).map_err(|e| previous.invalid(e))
}

/// Behind another plugin there is neither a link to make nor an address to give.
fn refuse_main_keys(root: &Field<'_>) -> Result<(), Error> {
    for key in net::MAIN_KEYS {
        let field = root.get(key)?;
        if field.is_set() {
            return Err(field.invalid("has no place behind another plugin (prevResult is there)"));
        }
    }
    Ok(())
}

/// Whether CHECK is about what was added to another plugin's result, not about a link of ours.
fn is_addition(role: Role, net: &Net, owner: &Attachment, result: &AddResult) -> bool {
    let ours = crate::plan::host_link_name(&net.name, owner);
    let foreign = result.interfaces.iter().all(|i| i.name != ours);
    role.is_always_chained() || !net.makes_link && foreign && !result.interfaces.is_empty()
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

fn required(env: Env<'_>, name: &str) -> Result<String, Error> {
    env(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| bad_env(name, "must be set"))
}

fn bad_env(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("{name}: {why}"))
}

/// The specification's rule for container ids and network names.
pub fn is_identifier(text: &str) -> bool {
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
