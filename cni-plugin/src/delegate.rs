//! Calling another plugin, as the specification has it for delegates: the same environment, a
//! configuration on standard input, the program found on `CNI_PATH`.

use std::path::PathBuf;
use std::time::Duration;

use api::cni::{AddResult, Error, ErrorCode};
use linux::exec::Exec;
use serde_json::Value;

use crate::ipam::Lease;
use crate::plan::Addresses;
use crate::request::{Env, Net};

/// Variables that a plugin gets.
const VARIABLES: [&str; 6] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
];

/// How long a plugin may take. A DHCP plugin waits for a server.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Finds `name` on `CNI_PATH`.
///
/// # Errors
/// It is not there; the error lists where it was looked for.
fn find(env: Env<'_>, name: &str) -> Result<PathBuf, Error> {
    let path = env("CNI_PATH").unwrap_or_default();
    let files = std::env::split_paths(&path).map(|dir| dir.join(name));
    let found = files.into_iter().find(|file| file.is_file());
    found.ok_or_else(|| {
        let why = format!("find plugin {name}: it is not in CNI_PATH ({path})");
        Error::new(ErrorCode::DELEGATE, why)
    })
}

/// Calls plugin `name` with `verb` and this configuration; gives what it printed, null for nothing.
///
/// # Errors
/// It cannot be found or run; its own error, with its name in front.
pub fn call(env: Env<'_>, verb: &str, name: &str, conf: &Value) -> Result<Value, Error> {
    let program = find(env, name)?;
    let mut exec = Exec::new(program).stdin(conf.to_string()).timeout(TIMEOUT);
    for variable in VARIABLES {
        exec = exec.env(variable, env(variable).unwrap_or_default());
    }
    exec = exec.env("CNI_COMMAND", verb);
    let failed = |why: String| Error::new(ErrorCode::DELEGATE, format!("{verb} of {name}: {why}"));
    let output = exec.output().map_err(|e| failed(e.to_string()))?;
    let text = output.text();
    if !output.status.success() {
        return Err(match serde_json::from_str::<Error>(&text) {
            Ok(error) => Error {
                msg: format!("{verb} of {name}: {}", error.msg),
                ..error
            },
            Err(_no_error) => {
                let said = String::from_utf8_lossy(&output.stderr);
                failed(format!("{}: {}", output.status, said.trim()))
            }
        });
    }
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).map_err(|e| failed(format!("its result is no JSON: {e}")))
}

/// What a plugin that gives addresses answered. A gateway that it does not name is the first address
/// of the network, if the bridge is to be one.
///
/// # Errors
/// It is no result, or one without an address.
pub fn addresses(net: &Net, name: &str, value: &Value) -> Result<Addresses, Error> {
    let failed = |why: String| Error::new(ErrorCode::DELEGATE, format!("ADD of {name}: {why}"));
    let result = AddResult::read(value).map_err(|e| failed(e.to_string()))?;
    if result.ips.is_empty() {
        return Err(failed("its result has no address".to_owned()));
    }
    let first = |net: ipnetwork::IpNetwork| crate::ipam::reach(net).map(|(first, _)| first);
    let lease = |ip: &api::cni::IpConfig| Lease {
        address: ip.address,
        gateway: ip.gateway.or_else(|| {
            let gateway = first(ip.address)?;
            net.bridge.gateway.then_some(gateway)
        }),
    };
    Ok(Addresses {
        leases: result.ips.iter().map(lease).collect(),
        routes: result.routes,
        dns: result.dns,
    })
}
