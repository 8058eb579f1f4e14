//! What a container will be: from what was asked for, the image's defaults and a few facts of the
//! machine to the OCI specification that libcontainer carries out. Pure, apart from the readers of
//! facts ([`Host::observe`], [`users::Files::read`]); the same input gives the same bytes.

mod caps;
mod host;
mod mounts;
pub mod sandbox;
pub mod users;

#[cfg(test)]
mod tests;

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub(crate) use host::controllers;
pub use host::{Device, Host};

use crate::error::{Error, Result};
use crate::image::ImageConfig;
use crate::types::{ContainerSpec, ExecSpec, Limits, SandboxSpec};

/// Search path of containers whose image sets none, as Docker's.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Period of the CPU quota when none is given, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// What the shim is to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The OCI runtime specification (`config.json` of the bundle).
    pub oci: Value,
    /// The container's cgroup.
    pub cgroup: String,
}

/// Plans a container whose root file system will be mounted at `rootfs`.
///
/// # Errors
/// A field that cannot be used, named: no program to run, an unknown user or capability, a relative
/// path.
pub fn container(
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    image: &ImageConfig,
    users: &users::Files,
    host: &Host,
    rootfs: &Path,
) -> Result<Planned> {
    let cgroup = if spec.cgroup.is_empty() {
        format!(
            "{}/{}",
            sandbox.cgroup_parent.trim_end_matches('/'),
            spec.id
        )
    } else {
        spec.cgroup.clone()
    };
    let mut linux = json!({
        "cgroupsPath": cgroup,
        "resources": resources(&spec.limits, spec.security.privileged, host),
        "namespaces": namespaces(sandbox, host),
        "rootfsPropagation": mounts::root_propagation(&spec.mounts),
        "devices": devices(host, spec.security.privileged),
    });
    if !spec.security.privileged {
        put(&mut linux, "maskedPaths", json!(mounts::MASKED));
        put(&mut linux, "readonlyPaths", json!(mounts::READ_ONLY));
    }
    let oci = json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": spec.security.read_only_root },
        "process": process(sandbox, spec, image, users, host)?,
        "mounts": mounts::plan(sandbox, spec, host)?,
        "linux": linux,
    });
    Ok(Planned { oci, cgroup })
}

/// Plans a program in the container that was planned as `oci`: its OCI process.
///
/// # Errors
/// No program to run, an unknown user, a relative working directory.
pub fn exec(oci: &Value, spec: &ExecSpec, users: &users::Files) -> Result<Value> {
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("argv", "no program to run"));
    }
    let mut process = oci.get("process").cloned().unwrap_or_default();
    put(&mut process, "args", json!(spec.argv));
    put(&mut process, "terminal", json!(spec.tty));
    let own = process
        .get("env")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let own = own
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|line| line.split_once('='));
    let own: Vec<_> = own.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    put(
        &mut process,
        "env",
        env_lines(merge_env(&own, &spec.env), spec.tty),
    );
    if !spec.cwd.is_empty() {
        put(&mut process, "cwd", json!(absolute("cwd", &spec.cwd)?));
    }
    if let Some(user) = &spec.user {
        put(&mut process, "user", users::resolve(user, "", users)?.oci());
    }
    Ok(process)
}

/// A signal by name, with or without `SIG`, or by number.
pub fn signal(name: &str) -> Option<Signal> {
    if let Ok(number) = name.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let name = name.to_ascii_uppercase();
    let full = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    full.parse().ok()
}

fn process(
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    image: &ImageConfig,
    users: &users::Files,
    host: &Host,
) -> Result<Value> {
    let mut argv = spec.argv.clone();
    if argv.is_empty() {
        argv = [image.entrypoint.as_slice(), &image.cmd].concat();
    }
    if argv.first().is_none_or(String::is_empty) {
        let why = "no program to run: neither the container nor the image names one";
        return Err(Error::invalid("argv", why));
    }
    let user = users::resolve(&spec.user, &image.user, users)?;
    let mut env = image.env.clone();
    // Without HOME libcontainer would ask the name services of the image, inside the container but
    // before its program: code of the image is not to run in that process.
    for (key, value) in [
        ("PATH", PATH_DEFAULT),
        ("HOSTNAME", &sandbox.hostname),
        ("HOME", &user.home),
    ] {
        if !value.is_empty() && env.iter().all(|(k, _)| k != key) {
            env.push((key.to_owned(), value.to_owned()));
        }
    }
    let cwd = [spec.cwd.as_str(), &image.workdir, "/"]
        .into_iter()
        .find(|dir| !dir.is_empty());
    let set = caps::effective(&spec.security, host)?;
    Ok(json!({
        "terminal": spec.tty,
        "user": user.oci(),
        "args": argv,
        "env": env_lines(merge_env(&env, &spec.env), spec.tty),
        "cwd": absolute("cwd", cwd.unwrap_or("/"))?,
        "capabilities": { "bounding": set, "effective": set, "permitted": set },
        "noNewPrivileges": spec.security.no_new_privileges,
    }))
}

/// `base` with the values of `over`, each key once, in the order of first mention.
fn merge_env(base: &[(String, String)], over: &[(String, String)]) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    for (key, value) in base.iter().chain(over) {
        match merged.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => old.clone_from(value),
            None => merged.push((key.clone(), value.clone())),
        }
    }
    merged
}

fn env_lines(mut env: Vec<(String, String)>, tty: bool) -> Value {
    if tty && env.iter().all(|(k, _)| k != "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    env.iter().map(|(k, v)| format!("{k}={v}")).collect()
}

fn absolute<'a>(field: &str, path: &'a str) -> Result<&'a str> {
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(Error::invalid(
        field,
        format!("{path:?} is not an absolute path"),
    ))
}

/// The container's own namespaces. Network, UTS and IPC are the shim's, which its children have
/// without being told; so is the process namespace of a pod that shares the host's.
fn namespaces(sandbox: &SandboxSpec, host: &Host) -> Value {
    let mut own = vec![json!({ "type": "mount" })];
    match &host.shared_pid {
        Some(path) if sandbox.share_pid => own.push(json!({ "type": "pid", "path": path })),
        _ if sandbox.host_pid => {}
        _ => own.push(json!({ "type": "pid" })),
    }
    Value::Array(own)
}

fn resources(limits: &Limits, privileged: bool, host: &Host) -> Value {
    let mut resources = json!({ "devices": [{ "allow": privileged, "access": "rwm" }] });
    let limited = |controller| host.controllers.contains(&controller);
    if let Some(bytes) = limits.memory_bytes.filter(|_| limited("memory")) {
        put(&mut resources, "memory", json!({ "limit": bytes }));
    }
    let mut cpu = json!({});
    if let Some(shares) = limits.cpu_shares {
        put(&mut cpu, "shares", json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us {
        put(&mut cpu, "quota", json!(quota));
        put(
            &mut cpu,
            "period",
            json!(limits.cpu_period_us.unwrap_or(CPU_PERIOD_US)),
        );
    }
    if limited("cpu") && cpu.as_object().is_some_and(|cpu| !cpu.is_empty()) {
        put(&mut resources, "cpu", cpu);
    }
    if let Some(pids) = limits.pids.filter(|_| limited("pids")) {
        put(&mut resources, "pids", json!({ "limit": pids }));
    }
    resources
}

fn devices(host: &Host, privileged: bool) -> Value {
    let all = host.devices.iter().filter(|_| privileged);
    all.map(|d| {
        json!({
            "path": d.path, "type": if d.block { "b" } else { "c" },
            "major": d.major, "minor": d.minor, "fileMode": d.mode, "uid": d.uid, "gid": d.gid,
        })
    })
    .collect()
}

/// Sets a field of a JSON object.
fn put(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}
