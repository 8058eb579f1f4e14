//! The verbs: request -> observe -> addresses -> plan -> apply -> result. What goes wrong becomes an
//! error of the specification here.

mod addressing;
mod attach;
mod errors;
mod roles;

use std::path::Path;

use api::cni::{AddResult, Error, ErrorCode, Version, VersionResult};
use linux::{Host, Kernel, NetNs};
use serde_json::{Value, json};

use crate::conf::Field;
use crate::firewall::NodeFirewall;
use crate::request::{Backend, Command, Env, Net, Request, Verb, parse_input};
use crate::role::Role;
use errors::kernel;

pub use addressing::Call;
pub use attach::{add, add_to, check_addition_of, check_attachment, del, gc};

/// Runs one call of the plugin, by which `program` it was called: gives what goes to standard
/// output, if anything does.
///
/// # Errors
/// What goes to standard output instead, with a non-zero exit.
pub fn run(program: &str, env: Env<'_>, input: &[u8]) -> Result<Option<Value>, Error> {
    let command = Command::parse(env)?;
    if command == Command::Version {
        return version(input).map(Some);
    }
    let conf = parse_input(input)?;
    let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default();
    let answer = run_as(Role::of(program, kind), command, env, &conf)?;
    Ok(Some(answer).filter(|answer| !answer.is_null()))
}

/// Runs one call as this plugin; null is no output.
fn run_as(role: Role, command: Command, env: Env<'_>, conf: &Value) -> Result<Value, Error> {
    match role {
        Role::HostLocal => roles::host_local(command, env, conf),
        Role::Loopback => roles::loopback(command, env, conf),
        Role::Flannel => roles::flannel(command, env, conf),
        Role::Seaway | Role::Bridge | Role::Portmap | Role::Bandwidth => {
            let request = Request::parse(role, command, env, conf)?;
            let version = request.version;
            attachment(request, Call { env, conf }).map_err(|error| Error {
                cni_version: version.to_string(),
                ..error
            })
        }
    }
}

fn attachment(request: Request, call: Call<'_>) -> Result<Value, Error> {
    let Request { version, net, verb } = request;
    let mut firewall = NodeFirewall::new(wants_iptables(&net));
    let firewall = &mut firewall;
    let done = |result: Result<(), Error>| result.map(|()| Value::Null);
    match verb {
        Verb::Add(pod) => with_hosts(&pod.netns, |node, inside| {
            // A result that cannot be told is found out before there is one.
            if version < Version::V0_3_0 && net.ipam.is_none() && net.ipam_plugin.is_none() {
                return Err(no_address());
            }
            add(&net, &pod, node, inside, firewall, call)
        })
        .and_then(|added| printed(added, version)),
        Verb::AddTo(pod, previous) => with_hosts(&pod.netns, |node, inside| {
            add_to(&net, &pod, previous, node, inside, firewall)
        })
        .and_then(|added| printed(added, version)),
        Verb::Check(pod, previous) => done(with_hosts(&pod.netns, |node, inside| {
            check_attachment(&net, &pod, &previous, node, inside, firewall, call)
        })),
        Verb::CheckAddition(pod, previous) => done(with_hosts(&pod.netns, |node, inside| {
            check_addition_of(&net, &pod, &previous, node, inside, firewall)
        })),
        Verb::Del { owner, netns } => {
            let mut node = Kernel::open().map_err(kernel)?;
            // What is gone need not be taken apart.
            let inside = netns.and_then(|path| Kernel::open_in(NetNs::open(path).ok()?).ok());
            done(del(&net, &owner, &mut node, inside, firewall, call))
        }
        Verb::Gc(valid) => {
            let mut node = Kernel::open().map_err(kernel)?;
            done(gc(&net, &valid, &mut node, firewall, call))
        }
        Verb::Status => done(status(&net, call)),
    }
}

/// Whether rules of iptables may be there.
fn wants_iptables(net: &Net) -> bool {
    [net.ports.backend, net.masquerade_backend].contains(&Some(Backend::Iptables))
}

fn no_address() -> Error {
    Error::new(ErrorCode::INVALID_CONFIG, api::cni::NoAddress.to_string())
}

fn printed(result: AddResult, version: Version) -> Result<Value, Error> {
    result.written(version).map_err(|_none| no_address())
}

fn version(input: &[u8]) -> Result<Value, Error> {
    let bad = |e: serde_json::Error| Error::new(ErrorCode::DECODE, e.to_string());
    let asked = match input.trim_ascii() {
        b"" => None,
        text => {
            let value: Value = serde_json::from_slice(text).map_err(bad)?;
            Field::root(&value)
                .get("cniVersion")?
                .text()?
                .map(str::to_owned)
        }
    };
    let versions = VersionResult {
        cni_version: asked.unwrap_or_else(|| Version::NEWEST.to_string()),
        supported_versions: Version::ALL.iter().map(ToString::to_string).collect(),
    };
    Ok(json!(versions))
}

fn with_hosts<T>(
    netns: &Path,
    work: impl FnOnce(&mut dyn Host, &mut dyn Host) -> Result<T, Error>,
) -> Result<T, Error> {
    let bad = |why: &dyn std::fmt::Display| {
        Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("CNI_NETNS: {why}"))
    };
    let netns = NetNs::open(netns).map_err(|e| bad(&e))?;
    let mut node = Kernel::open().map_err(kernel)?;
    if *node.namespace() == netns {
        return Err(bad(&"is the network namespace that the plugin runs in"));
    }
    let mut pod = Kernel::open_in(netns).map_err(|e| bad(&e))?;
    work(&mut node, &mut pod)
}

/// STATUS: whether ADD would work, as far as it can be told without a pod.
///
/// # Errors
/// Why it would not.
pub fn status(net: &Net, call: Call<'_>) -> Result<(), Error> {
    let not_ready = |why: String| Error::new(ErrorCode::NOT_AVAILABLE, why);
    Kernel::open().map_err(|e| not_ready(e.to_string()))?;
    addressing::status(net, call)
}

#[cfg(test)]
mod tests;
