//! The pod of a call, and what the runtime wishes for it.

use std::net::IpAddr;
use std::path::PathBuf;

use api::cni::{Attachment, Error};

use super::{Env, bad_env, parse_owner, required};
use crate::conf::Field;
use crate::step::Mac;

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

/// Reads the pod.
pub(super) fn parse_pod(env: Env<'_>, root: &Field<'_>) -> Result<Pod, Error> {
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
