//! The Node object's contents and the patch that makes them so. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Labels;
use super::facts::architecture;
use crate::rt::Image;
use crate::status::seconds;

/// So many images are listed, the largest first (upstream: nodeStatusMaxImages).
const IMAGES_MAX: usize = 50;

/// What does not change while the kubelet runs.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// metadata.name
    pub name: String,
    /// Addresses, the main one first.
    pub ips: Vec<IpAddr>,
    /// Where our server listens.
    pub port: u16,
    /// CPUs in thousandths.
    pub cpu_milli: i64,
    /// Memory.
    pub memory_bytes: i64,
    /// Size of the disk pods write to.
    pub disk_bytes: u64,
    /// Pods it takes.
    pub pods: u32,
    /// /etc/machine-id
    pub machine_id: String,
    /// Changes at each boot.
    pub boot_id: String,
    /// Of the machine's firmware.
    pub system_uuid: String,
    /// Kernel release.
    pub kernel: String,
    /// Name of the distribution.
    pub os_image: String,
    /// kubeletVersion
    pub version: String,
    /// containerRuntimeVersion
    pub runtime: String,
    /// `amd64`, ...
    pub architecture: String,
}

/// How the node fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// The pod network is there, or why not.
    pub network: Result<(), String>,
    /// Short of memory.
    pub memory: bool,
    /// Short of disk.
    pub disk: bool,
    /// Short of process ids.
    pub pids: bool,
}

/// The labels every kubelet sets.
pub fn labels(name: &str) -> Labels {
    let arch = architecture();
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into()
}

/// A new Node object.
pub fn new(name: &str, labels: &Labels) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}, "spec": {}})
}

/// Those of our labels an existing Node lacks or has otherwise.
pub fn missing_labels(node: &Value, ours: &Labels) -> Labels {
    let has = |k: &str, v: &str| node["metadata"]["labels"][k] == v;
    let missing = ours.iter().filter(|(k, v)| !has(k, v));
    missing.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Ready is True.
pub fn is_ready(node: &Value) -> bool {
    condition(node, "Ready").is_some_and(|c| c["status"] == "True")
}

fn condition<'a>(node: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = node["status"]["conditions"].as_array();
    all.into_iter().flatten().find(|c| c["type"] == kind)
}

/// The status the node should show.
pub fn status(
    shape: &Shape,
    conditions: &Conditions,
    images: &[Image],
    known: &Value,
    now: Timestamp,
) -> Map<String, Value> {
    let addresses: Vec<_> = shape
        .ips
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
        .chain([json!({"type": "Hostname", "address": shape.name})])
        .collect();
    let resources = json!({
        "cpu": cpu(shape.cpu_milli),
        "memory": format!("{}Ki", shape.memory_bytes >> 10),
        "ephemeral-storage": format!("{}Ki", shape.disk_bytes >> 10),
        "pods": shape.pods.to_string(),
    });
    let mut images: Vec<_> = images.iter().filter(|i| !i.names.is_empty()).collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then(a.id.cmp(&b.id)));
    let images: Vec<_> = images
        .iter()
        .take(IMAGES_MAX)
        .map(|i| json!({"names": i.names, "sizeBytes": i.size_bytes}))
        .collect();
    let status = json!({
        "addresses": addresses,
        "capacity": resources,
        "allocatable": resources,
        "conditions": render(conditions, known, now),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": shape.port}},
        "images": images,
        "nodeInfo": {
            "architecture": shape.architecture,
            "bootID": shape.boot_id,
            "containerRuntimeVersion": shape.runtime,
            "kernelVersion": shape.kernel,
            "kubeProxyVersion": "",
            "kubeletVersion": shape.version,
            "machineID": shape.machine_id,
            "operatingSystem": "linux",
            "osImage": shape.os_image,
            "systemUUID": shape.system_uuid,
        },
    });
    match status {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn cpu(milli: i64) -> String {
    if milli % 1000 == 0 {
        (milli / 1000).to_string()
    } else {
        format!("{milli}m")
    }
}

fn render(conditions: &Conditions, known: &Value, now: Timestamp) -> Vec<Value> {
    let pressure = |kind: &str, bad: bool, what: &str| {
        let (reason, text) = if bad {
            (
                format!("KubeletHas{what}"),
                format!("kubelet has {}", words(what)),
            )
        } else {
            let good = match what {
                "DiskPressure" => "NoDiskPressure",
                "InsufficientPID" => "SufficientPID",
                _ => "SufficientMemory",
            };
            (
                format!("KubeletHas{good}"),
                format!("kubelet has {}", words(good)),
            )
        };
        (kind.to_owned(), bad, reason, text)
    };
    let ready = match &conditions.network {
        Ok(()) => (
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        Err(e) => (
            false,
            "KubeletNotReady",
            format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                 message:Network plugin returns error: {e}"
            ),
        ),
    };
    let all = [
        pressure("MemoryPressure", conditions.memory, "InsufficientMemory"),
        pressure("DiskPressure", conditions.disk, "DiskPressure"),
        pressure("PIDPressure", conditions.pids, "InsufficientPID"),
        ("Ready".to_owned(), ready.0, ready.1.to_owned(), ready.2),
    ];
    let render = |(kind, holds, reason, message): (String, bool, String, String)| {
        let status = if holds { "True" } else { "False" };
        let before = condition(known, &kind).filter(|c| c["status"] == status);
        let since = before.map(|c| c["lastTransitionTime"].clone());
        let since = since
            .filter(Value::is_string)
            .unwrap_or(json!(seconds(now)));
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": since,
        })
    };
    all.into_iter().map(render).collect()
}

/// `NoDiskPressure` as `no disk pressure`.
fn words(camel: &str) -> String {
    let mut out = String::new();
    let mut before = ' ';
    for c in camel.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            out.push(' ');
        }
        before = c;
        if camel.contains("PID") && c.is_uppercase() && !out.is_empty() {
            out.push(c);
        } else {
            out.push(c.to_ascii_lowercase());
        }
    }
    out
}

/// The strategic merge patch from what the API shows (`known`) to `status`; `None` when nothing but heartbeats
/// differs and the last ones are `fresh`.
pub fn patch(known: &Value, status: Map<String, Value>, fresh: bool) -> Option<Value> {
    let shown = &known["status"];
    let mut out = Map::new();
    for (key, value) in status {
        let same = match key.as_str() {
            "conditions" => fresh && same_conditions(&shown["conditions"], &value),
            "images" if shown["images"].is_null() => value.as_array().is_some_and(Vec::is_empty),
            _ => shown[&key] == value,
        };
        if same {
            continue;
        }
        // Addresses are merged by type, which two InternalIPs do not survive: the list is replaced.
        let value = match (key.as_str(), value) {
            ("addresses", Value::Array(mut list)) => {
                list.push(json!({"$patch": "replace"}));
                Value::Array(list)
            }
            (_, value) => value,
        };
        out.insert(key, value);
    }
    (!out.is_empty()).then(|| json!({ "status": out }))
}

fn same_conditions(shown: &Value, wanted: &Value) -> bool {
    let wanted = wanted.as_array().into_iter().flatten();
    wanted.into_iter().all(|w| {
        let mut shown = shown.as_array().into_iter().flatten();
        shown.any(|s| {
            ["type", "status", "reason", "message"]
                .iter()
                .all(|key| s[*key] == w[*key])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn conditions() -> Conditions {
        Conditions {
            network: Ok(()),
            memory: false,
            disk: false,
            pids: false,
        }
    }

    fn shape() -> Shape {
        Shape {
            name: "n1".into(),
            ips: vec![
                "172.31.250.11".parse().unwrap(),
                "fd00::11".parse().unwrap(),
            ],
            cpu_milli: 2000,
            memory_bytes: 4 << 30,
            pods: 110,
            ..Shape::default()
        }
    }

    fn full(c: &Conditions, known: &Value, now: i64) -> Map<String, Value> {
        status(&shape(), c, &[], known, at(now))
    }

    #[test]
    fn a_first_status_has_everything_and_a_second_nothing() {
        let none = json!({});
        let patch1 = patch(&none, full(&conditions(), &none, 0), false).unwrap();
        let addresses = patch1["status"]["addresses"].as_array().unwrap();
        assert_eq!(addresses.len(), 4);
        assert_eq!(patch1["status"]["capacity"]["memory"], "4194304Ki");
        let shown = json!({"status": full(&conditions(), &none, 0)});
        assert!(is_ready(&shown));
        assert_eq!(patch(&shown, full(&conditions(), &shown, 9), true), None);
        let heartbeat = patch(&shown, full(&conditions(), &shown, 9), false).unwrap();
        assert_eq!(heartbeat["status"].as_object().unwrap().len(), 1);
        let ready = &heartbeat["status"]["conditions"][3];
        assert_eq!(ready["lastTransitionTime"], json!(seconds(at(0))));
        assert_eq!(ready["lastHeartbeatTime"], json!(seconds(at(9))));
    }

    #[test]
    fn somebody_elses_word_on_our_conditions_is_corrected() {
        let mut shown = json!({"status": full(&conditions(), &json!({}), 0)});
        shown["status"]["conditions"][3]["status"] = json!("Unknown");
        let fix = patch(&shown, full(&conditions(), &shown, 5), true).unwrap();
        let ready = &fix["status"]["conditions"][3];
        assert_eq!(ready["status"], "True");
        assert_eq!(ready["lastTransitionTime"], json!(seconds(at(5))));
    }

    #[test]
    fn a_missing_network_is_told() {
        let c = Conditions {
            network: Err("cni plugin not initialized".into()),
            disk: true,
            ..conditions()
        };
        let s = full(&c, &json!({}), 0);
        assert_eq!(s["conditions"][3]["reason"], "KubeletNotReady");
        assert_eq!(s["conditions"][1]["reason"], "KubeletHasDiskPressure");
        assert_eq!(s["conditions"][1]["message"], "kubelet has disk pressure");
        assert_eq!(s["conditions"][2]["message"], "kubelet has sufficient PID");
    }
}
