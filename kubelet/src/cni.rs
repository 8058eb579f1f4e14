//! Calling CNI plugins: the chain of the first network configuration, each plugin run as a program.
//! Source: CNI specification 1.1.0, sections 3 to 5.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::cni::ConfList;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use linux::exec::Exec;
use linux::link::LinkChange;
use linux::{Host, Kernel, NetNs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::pod::PodId;

/// Interface name in every pod.
const IFNAME: &str = "eth0";
/// One plugin call takes at most this long.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A failed network operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No configuration file yet.
    #[error("cni plugin not initialized: no network configuration in {0}")]
    NotReady(PathBuf),
    /// The configuration cannot be read.
    #[error("network configuration {file}: {why}")]
    Config {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A plugin could not be run, or said no.
    #[error("plugin {plugin} {command}: {why}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// Its own words.
        why: String,
    },
    /// The last plugin's result has no address for the interface.
    #[error("the network configuration {0} gave the pod no address")]
    NoAddress(String),
}

/// A network configuration list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// CNI version it speaks.
    pub cni_version: String,
    /// Plugin configurations, in order.
    pub plugins: Vec<Map<String, Value>>,
}

/// An attachment as it must be kept for DEL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The configuration it was made with.
    pub network: NetworkList,
    /// The network namespace's file.
    pub netns: PathBuf,
    /// The last plugin's result; null when ADD did not come to an end.
    pub result: Value,
    /// What the pod wants of its network; a plugin gets those that it has the capability for.
    #[serde(default)]
    pub wishes: Map<String, Value>,
}

impl Attachment {
    /// The pod's addresses.
    pub fn ips(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array();
        let address = |ip: &Value| {
            let text = ip["address"].as_str()?;
            text.split('/').next()?.parse().ok()
        };
        ips.into_iter().flatten().filter_map(address).collect()
    }
}

/// The pod network, as the worker uses it.
pub trait Network: Send + Sync {
    /// The configuration in force.
    fn current(&self) -> Result<NetworkList, Error>;
    /// Connects the namespace. On an error the caller calls [`Network::del`] with what it has.
    /// `planned` is what is to be, without a result yet.
    fn add(&self, planned: &Attachment, pod: &PodId) -> Result<Attachment, Error>;
    /// Disconnects it. Not connected is fine.
    fn del(&self, attachment: &Attachment, pod: &PodId) -> Result<(), Error>;
    /// Makes a fresh network namespace with its loopback up; one that is there goes.
    fn make_namespace(&self, path: &Path) -> linux::Result<()>;
    /// Removes a network namespace. Not there is fine.
    fn remove_namespace(&self, path: &Path) -> linux::Result<()>;
}

/// Plugins found in directories, by exec.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Where configurations lie.
    pub conf_dir: PathBuf,
    /// Where plugin programs lie.
    pub bin_dir: PathBuf,
}

impl Network for Plugins {
    fn current(&self) -> Result<NetworkList, Error> {
        let first = config_files(&self.conf_dir).into_iter().next();
        let Some(file) = first else {
            return Err(Error::NotReady(self.conf_dir.clone()));
        };
        let text = fs::read_to_string(&file).map_err(|e| e.to_string());
        text.and_then(|text| parse(&text, |name| beside(&self.conf_dir.join(name))))
            .map_err(|why| Error::Config { file, why })
    }

    fn add(&self, planned: &Attachment, pod: &PodId) -> Result<Attachment, Error> {
        let mut attachment = planned.clone();
        for plugin in &planned.network.plugins {
            let config = request(&attachment, plugin);
            attachment.result = self.call("ADD", plugin, &config, pod, &planned.netns)?;
        }
        if attachment.ips().is_empty() {
            return Err(Error::NoAddress(planned.network.name.clone()));
        }
        Ok(attachment)
    }

    fn del(&self, attachment: &Attachment, pod: &PodId) -> Result<(), Error> {
        // Every plugin gets its chance; the first failure is told.
        let mut failed = None;
        for plugin in attachment.network.plugins.iter().rev() {
            let config = request(attachment, plugin);
            let done = self.call("DEL", plugin, &config, pod, &attachment.netns);
            failed = failed.or(done.err());
        }
        failed.map_or(Ok(()), Err)
    }

    fn make_namespace(&self, path: &Path) -> linux::Result<()> {
        NetNs::remove(path)?;
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        Kernel::open_in(NetNs::create(path)?)?.set_link("lo", &up)
    }

    fn remove_namespace(&self, path: &Path) -> linux::Result<()> {
        NetNs::remove(path)
    }
}

impl Plugins {
    fn call(
        &self,
        command: &'static str,
        plugin: &Map<String, Value>,
        config: &Value,
        pod: &PodId,
        netns: &Path,
    ) -> Result<Value, Error> {
        let kind = plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let fail = |why: String| Error::Plugin {
            plugin: kind.to_owned(),
            command,
            why,
        };
        let output = Exec::new(self.bin_dir.join(kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.uid)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", &self.bin_dir)
            .env("CNI_ARGS", args(pod))
            .stdin(config.to_string())
            .timeout(PLUGIN_TIMEOUT)
            .output()
            .map_err(|e| fail(e.to_string()))?;
        let text = output.text();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(fail(plugin_error(
                &text,
                &stderr,
                &output.status.to_string(),
            )));
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|e| fail(format!("result is no JSON: {e}")))
    }
}

fn args(pod: &PodId) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.uid, pod.uid
    )
}

/// What a plugin that failed says: its error object, or the end of its standard error.
fn plugin_error(stdout: &str, stderr: &str, status: &str) -> String {
    let error: Option<Value> = serde_json::from_str(stdout).ok();
    let word = |key: &str| {
        let error = error.as_ref()?;
        error[key].as_str().map(str::trim).filter(|s| !s.is_empty())
    };
    match (word("msg"), word("details")) {
        (Some(msg), Some(details)) => format!("{msg} ({details})"),
        (Some(msg), None) => msg.to_owned(),
        _ if !stderr.trim().is_empty() => format!("{status}: {}", stderr.trim()),
        _ => status.to_owned(),
    }
}

/// Configuration files by name: the first is the pod network.
fn config_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_config = |p: &PathBuf| {
        let extension = p.extension().and_then(|e| e.to_str());
        matches!(extension, Some("conflist" | "conf" | "json"))
    };
    let mut files: Vec<_> = entries.map(|e| e.path()).filter(is_config).collect();
    files.sort();
    files
}

/// Reads a `.conflist`, or a single plugin's `.conf` as a list of one. `beside` has the texts of more
/// plugins of a network.
pub fn parse(
    text: &str,
    beside: impl FnOnce(&str) -> Result<Vec<String>, String>,
) -> Result<NetworkList, String> {
    let list = ConfList::parse_with(text, beside).map_err(|e| e.to_string())?;
    let version = list.version().map_err(|e| e.to_string())?;
    Ok(NetworkList {
        name: list.name,
        cni_version: version.to_string(),
        plugins: list.plugins,
    })
}

/// The texts of the configurations in a network's own directory, by name; none where there is none.
fn beside(dir: &Path) -> Result<Vec<String>, String> {
    let files = config_files(dir).into_iter();
    let single = files.filter(|file| file.extension().is_some_and(|e| e == "conf"));
    single
        .map(|file| fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display())))
        .collect()
}

/// The configuration one plugin gets on its standard input.
fn request(attachment: &Attachment, plugin: &Map<String, Value>) -> Value {
    let network = &attachment.network;
    let mut config = plugin.clone();
    config.insert("name".to_owned(), json!(network.name));
    config.insert("cniVersion".to_owned(), json!(network.cni_version));
    let capabilities = config.remove("capabilities").unwrap_or_default();
    let wishes = attachment.wishes.iter();
    let answered: Map<String, Value> = wishes
        .filter(|(name, _)| capabilities[name.as_str()] == json!(true))
        .map(|(name, wish)| (name.clone(), wish.clone()))
        .collect();
    if !answered.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(answered));
    }
    if !attachment.result.is_null() {
        config.insert("prevResult".to_owned(), attachment.result.clone());
    }
    Value::Object(config)
}

/// Annotations that limit a pod's traffic, in bits a second, as Kubernetes has them.
const LIMITS: [(&str, &str, &str); 2] = [
    (
        "kubernetes.io/ingress-bandwidth",
        "ingressRate",
        "ingressBurst",
    ),
    (
        "kubernetes.io/egress-bandwidth",
        "egressRate",
        "egressBurst",
    ),
];

/// What a pod wants of its network, by the names of CNI's capabilities: its host ports, and limits
/// on its traffic. The second part tells of those that cannot be read.
pub fn wishes(pod: &Pod) -> (Map<String, Value>, Vec<String>) {
    let mut wishes = Map::new();
    let mut unread = Vec::new();
    let ports: Vec<Value> = crate::pod::app_containers(pod)
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|number| *number > 0)?;
            Some(json!({
                "hostPort": host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.as_deref().unwrap_or_default(),
            }))
        })
        .collect();
    if !ports.is_empty() {
        wishes.insert("portMappings".to_owned(), Value::Array(ports));
    }
    let mut limits = Map::new();
    for (annotation, rate, burst) in LIMITS {
        let annotations = pod.metadata.annotations.as_ref();
        let Some(text) = annotations.and_then(|all| all.get(annotation)) else {
            continue;
        };
        match crate::quantity::units(&Quantity(text.clone())).filter(|bits| *bits > 0) {
            Some(bits) => {
                limits.insert(rate.to_owned(), json!(bits));
                // As much at once as one message can say, as other runtimes do.
                limits.insert(burst.to_owned(), json!(u32::MAX));
            }
            None => unread.push(format!(
                "{annotation}: {text:?} is no rate in bits a second"
            )),
        }
    }
    if !limits.is_empty() {
        wishes.insert("bandwidth".to_owned(), Value::Object(limits));
    }
    (wishes, unread)
}

#[cfg(test)]
mod tests;
