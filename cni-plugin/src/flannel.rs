//! The meta-plugin `flannel`: reads what flannel wrote down for this node (`subnet.env`), makes of it
//! the configuration of another plugin, and remembers that for DEL. Only keys that the user left out
//! are filled in.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use api::cni::{Error, ErrorCode};
use serde_json::{Map, Value, json};

use crate::conf::Field;

/// Where flannel writes.
const SUBNET_FILE_DEFAULT: &str = "/run/flannel/subnet.env";

/// Where configurations are remembered, a file for each container.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/flannel";

/// The plugin that is called when the user names none.
const DELEGATE_DEFAULT: &str = "bridge";

/// A configuration of type `flannel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flannel {
    /// The file of flannel.
    pub subnet_file: PathBuf,
    /// Where configurations are remembered.
    pub data_dir: PathBuf,
    base: Map<String, Value>,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
}

/// What flannel wrote down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubnetEnv {
    networks: Vec<String>,
    subnets: Vec<String>,
    mtu: Option<u32>,
    ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file's text: `KEY=VALUE` a line, several networks with commas between.
    ///
    /// # Errors
    /// The variable that is missing or wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pairs = text.lines().filter_map(|line| line.trim().split_once('='));
        let values: BTreeMap<&str, &str> = pairs.map(|(k, v)| (k.trim(), v.trim())).collect();
        let get = |key: &str| values.get(key).copied().filter(|v| !v.is_empty());
        let both = |v4: &str, v6: &str| -> Vec<String> {
            let all = [get(v4), get(v6)].into_iter().flatten();
            all.flat_map(|v| v.split(',')).map(str::to_owned).collect()
        };
        let env = Self {
            networks: both("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"),
            subnets: both("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"),
            mtu: match get("FLANNEL_MTU") {
                None => return Err("FLANNEL_MTU: missing".to_owned()),
                Some(text) => Some(
                    text.parse()
                        .map_err(|_bad| format!("FLANNEL_MTU: {text:?}"))?,
                ),
            },
            ip_masq: match get("FLANNEL_IPMASQ") {
                None => return Err("FLANNEL_IPMASQ: missing".to_owned()),
                Some(text) => text == "true",
            },
        };
        for (what, all) in [("NETWORK", &env.networks), ("SUBNET", &env.subnets)] {
            if all.is_empty() {
                return Err(format!("FLANNEL_{what} and FLANNEL_IPV6_{what}: missing"));
            }
            let bad = all
                .iter()
                .find(|n| n.parse::<ipnetwork::IpNetwork>().is_err());
            if let Some(bad) = bad {
                return Err(format!("FLANNEL_{what}: {bad:?} is no network"));
            }
        }
        Ok(env)
    }
}

impl Flannel {
    /// Reads a configuration of type `flannel`.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn parse(value: &Value) -> Result<Self, Error> {
        let root = Field::root(value);
        let path = |key: &str, default: &str| -> Result<PathBuf, Error> {
            let text = root.get(key)?.text()?.filter(|t| !t.is_empty());
            Ok(text.unwrap_or(default).into())
        };
        let object = |key: &str| -> Result<Map<String, Value>, Error> {
            Ok(root.get(key)?.object()?.cloned().unwrap_or_default())
        };
        let delegate = object("delegate")?;
        for key in ["name", "ipam"] {
            if key == "name" && delegate.contains_key(key) {
                let field = root.get("delegate")?.get(key)?;
                return Err(field.invalid("is the network's, and must not be set here"));
            }
        }
        let keep = ["cniVersion", "name", "runtimeConfig", "prevResult", "args"];
        let base = root.object()?.cloned().unwrap_or_default();
        Ok(Self {
            subnet_file: path("subnetFile", SUBNET_FILE_DEFAULT)?,
            data_dir: path("dataDir", DATA_DIR_DEFAULT)?,
            base: base
                .into_iter()
                .filter(|(k, _)| keep.contains(&k.as_str()))
                .collect(),
            ipam: object("ipam")?,
            delegate,
        })
    }

    /// The configuration of the other plugin.
    pub fn delegate(&self, env: &SubnetEnv) -> Value {
        let mut conf = self.base.clone();
        let given = self.delegate.clone();
        let of_delegate = given.get("ipam").and_then(Value::as_object).cloned();
        conf.extend(given);
        let mut fill = |key: &str, value: Value| {
            conf.entry(key).or_insert(value);
        };
        fill("type", json!(DELEGATE_DEFAULT));
        // flannel masquerades itself if it says so.
        fill("ipMasq", json!(!env.ip_masq));
        if let Some(mtu) = env.mtu {
            fill("mtu", json!(mtu));
        }
        if conf.get("type") == Some(&json!(DELEGATE_DEFAULT)) {
            conf.entry("isGateway").or_insert(json!(true));
        }
        let mut ipam = of_delegate.unwrap_or_else(|| self.ipam.clone());
        ipam.entry("type").or_insert(json!("host-local"));
        if ipam.get("type") == Some(&json!("host-local")) {
            ipam.remove("subnet");
            // The file names the node's gateway; its network is the pods'.
            let network = |subnet: &String| {
                let net: Option<ipnetwork::IpNetwork> = subnet.parse().ok();
                net.map(|n| json!([{"subnet": format!("{}/{}", n.network(), n.prefix())}]))
            };
            let ranges: Vec<Value> = env.subnets.iter().filter_map(network).collect();
            ipam.insert("ranges".to_owned(), Value::Array(ranges));
        }
        let mut routes = match ipam.remove("routes") {
            Some(Value::Array(routes)) => routes,
            _ => Vec::new(),
        };
        routes.extend(env.networks.iter().map(|network| json!({"dst": network})));
        ipam.insert("routes".to_owned(), Value::Array(routes));
        conf.insert("ipam".to_owned(), Value::Object(ipam));
        Value::Object(conf)
    }

    /// Reads flannel's file.
    ///
    /// # Errors
    /// It is not there yet (which may pass), or says something else.
    pub fn subnet_env(&self) -> Result<SubnetEnv, Error> {
        let file = self.subnet_file.display();
        let text = match fs::read_to_string(&self.subnet_file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let why = format!("{file} is not there: flannel has not started on this node yet");
                return Err(Error::new(ErrorCode::TRY_AGAIN, why));
            }
            Err(e) => return Err(Error::new(ErrorCode::IO, format!("read {file}: {e}"))),
        };
        let bad = |why| Error::new(ErrorCode::INVALID_CONFIG, format!("{file}: {why}"));
        SubnetEnv::parse(&text).map_err(bad)
    }
}

fn file_of(dir: &Path, container: &str) -> PathBuf {
    dir.join(container)
}

/// Remembers the configuration that a container was added with.
///
/// # Errors
/// The file cannot be written.
pub fn remember(dir: &Path, container: &str, conf: &Value) -> Result<(), Error> {
    let path = file_of(dir, container);
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let aside = dir.join(format!(".{container}.new"));
        fs::File::create(&aside)?.write_all(conf.to_string().as_bytes())?;
        fs::rename(&aside, &path)
    };
    write().map_err(|e| Error::new(ErrorCode::IO, format!("write {}: {e}", path.display())))
}

/// The configuration that a container was added with, if it is remembered.
///
/// # Errors
/// The file cannot be read.
pub fn recall(dir: &Path, container: &str) -> Result<Option<Value>, Error> {
    let path = file_of(dir, container);
    match fs::read(&path) {
        // What cannot be read as a configuration is as good as none.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(
            ErrorCode::IO,
            format!("read {}: {e}", path.display()),
        )),
    }
}

/// Forgets it.
///
/// # Errors
/// The file cannot be deleted.
pub fn forget(dir: &Path, container: &str) -> Result<(), Error> {
    let path = file_of(dir, container);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::new(
            ErrorCode::IO,
            format!("delete {}: {e}", path.display()),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
