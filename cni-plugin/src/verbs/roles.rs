//! The verbs of the plugins that are not a pod's link: `host-local`, `loopback`, `flannel`.

use api::cni::{Error, ErrorCode, Version};
use linux::{Host, Kernel, NetNs};
use serde_json::Value;

use super::addressing::{self, Call};
use super::errors::kernel;
use super::{printed, run_as};
use crate::delegate;
use crate::flannel::{self, Flannel};
use crate::loopback;
use crate::request::{Command, Env, Request, Verb};
use crate::result::ipam_result;
use crate::role::Role;

/// Addresses alone.
pub(super) fn host_local(command: Command, env: Env<'_>, conf: &Value) -> Result<Value, Error> {
    let Request { version, net, verb } = Request::parse(Role::HostLocal, command, env, conf)?;
    let call = Call { env, conf };
    let done = |result: Result<(), Error>| result.map(|()| Value::Null);
    let answer = match verb {
        Verb::Add(pod) | Verb::AddTo(pod, _) => {
            let mut node = Kernel::open().map_err(kernel)?;
            addressing::acquire(&net, &pod, &mut node).and_then(|addresses| {
                printed(ipam_result(&addresses), version).map_err(|error| {
                    let back = addressing::release(&net, &pod.owner, call);
                    super::errors::with_cleanup(error, back)
                })
            })
        }
        Verb::Del { owner, .. } => done(addressing::release(&net, &owner, call)),
        Verb::Check(pod, _) | Verb::CheckAddition(pod, _) => {
            addressing::check(&net, &pod.owner, call).and_then(|leased| {
                if !leased.is_empty() {
                    return Ok(Value::Null);
                }
                let why = format!("no address is leased to {}", pod.owner.container_id);
                Err(Error::new(ErrorCode::CHECK, why))
            })
        }
        Verb::Gc(valid) => done(addressing::gc(&net, &valid, call)),
        Verb::Status => done(addressing::status(&net, call)),
    };
    answer.map_err(|error| in_version(error, version))
}

/// The loopback device.
pub(super) fn loopback(command: Command, env: Env<'_>, conf: &Value) -> Result<Value, Error> {
    let version = crate::request::parse_version(&crate::conf::Field::root(conf))?;
    let netns = env("CNI_NETNS").filter(|path| !path.is_empty());
    let open = || -> Result<Kernel, Error> {
        let missing = || Error::new(ErrorCode::INVALID_ENVIRONMENT, "CNI_NETNS: must be set");
        let path = netns.as_deref().ok_or_else(missing)?;
        let opened = NetNs::open(path).and_then(Kernel::open_in);
        let bad = |e| Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("CNI_NETNS: {e}"));
        opened.map_err(bad)
    };
    let run = || match command {
        Command::Add => {
            let mut pod = open()?;
            let path = netns.clone().unwrap_or_default();
            let added = loopback::add(&path, &mut pod as &mut dyn Host).map_err(kernel)?;
            // Behind another plugin its result is what counts.
            match conf.get("prevResult").filter(|value| value.is_object()) {
                Some(previous) => Ok(previous.clone()),
                None => printed(added, version),
            }
        }
        Command::Check => loopback::check(&mut open()?).map(|()| Value::Null),
        // Without a namespace there is nothing to set down.
        Command::Del => match open() {
            Ok(mut pod) => loopback::del(&mut pod)
                .map_err(kernel)
                .map(|()| Value::Null),
            Err(_gone) => Ok(Value::Null),
        },
        Command::Gc | Command::Status | Command::Version => Ok(Value::Null),
    };
    run().map_err(|error| in_version(error, version))
}

/// What flannel wrote down, made into the configuration of another plugin.
pub(super) fn flannel(command: Command, env: Env<'_>, conf: &Value) -> Result<Value, Error> {
    let flannel = Flannel::parse(conf)?;
    let container = || {
        let id = env("CNI_CONTAINERID").filter(|id| crate::request::is_identifier(id));
        let why = "CNI_CONTAINERID: must be set to a container's id";
        id.ok_or_else(|| Error::new(ErrorCode::INVALID_ENVIRONMENT, why))
    };
    match command {
        Command::Add => {
            let container = container()?;
            let other = flannel.delegate(&flannel.subnet_env()?);
            flannel::remember(&flannel.data_dir, &container, &other)?;
            call_other(command, env, &other)
        }
        Command::Del => {
            let container = container()?;
            let remembered = flannel::recall(&flannel.data_dir, &container)?;
            // Never added, or deleted already; if flannel's file is there, better once too often.
            let other = match (remembered, flannel.subnet_env()) {
                (Some(other), _) => other,
                (None, Ok(subnets)) => flannel.delegate(&subnets),
                (None, Err(_)) => return Ok(Value::Null),
            };
            call_other(command, env, &other)?;
            flannel::forget(&flannel.data_dir, &container)?;
            Ok(Value::Null)
        }
        Command::Check => {
            let remembered = flannel::recall(&flannel.data_dir, &container()?)?;
            let mut other = match remembered {
                Some(other) => other,
                None => flannel.delegate(&flannel.subnet_env()?),
            };
            other["prevResult"] = conf.get("prevResult").cloned().unwrap_or(Value::Null);
            call_other(command, env, &other)
        }
        Command::Gc | Command::Status => {
            let other = flannel.subnet_env().map_err(|error| match command {
                Command::Status => Error::new(ErrorCode::NOT_AVAILABLE, error.msg),
                _ => error,
            })?;
            let mut other = flannel.delegate(&other);
            let valid = api::cni::VALID_ATTACHMENTS;
            if let Some(list) = conf.get(valid) {
                other[valid] = list.clone();
            }
            call_other(command, env, &other)
        }
        Command::Version => Ok(Value::Null),
    }
}

/// Runs the verb of another plugin: in here if it is one of ours, else as a program.
fn call_other(command: Command, env: Env<'_>, conf: &Value) -> Result<Value, Error> {
    let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default();
    let ours = [Role::Seaway, Role::Bridge];
    match ours.into_iter().find(|role| role.name() == kind) {
        Some(role) => run_as(role, command, env, conf),
        None => delegate::call(env, command.name(), kind, conf),
    }
}

fn in_version(error: Error, version: Version) -> Error {
    Error {
        cni_version: version.to_string(),
        ..error
    }
}
