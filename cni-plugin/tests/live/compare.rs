//! The same inputs to the reference plugins and to ours under their names: the results must be
//! equal, but for what each chooses freely (names of veths, hardware addresses).

use std::path::{Path, PathBuf};

use linux::exec::Exec;
use linux::link::LinkChange;
use linux::{Host, Kernel, NetNs};
use serde_json::{Value, json};

use crate::lab::PLUGIN;

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// The versions that Debian's reference plugins speak.
const VERSIONS: [&str; 6] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];

/// A node with its own leases, on which one or the other answers.
struct Side {
    node: NetNs,
    state: tempfile::TempDir,
    bin: PathBuf,
    ours: bool,
}

impl Side {
    fn new(ours: bool) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut bin = PathBuf::from(REFERENCE);
        if ours {
            bin = state.path().join("bin");
            std::fs::create_dir(&bin).unwrap();
            for name in ["bridge", "host-local", "portmap", "bandwidth", "loopback"] {
                std::os::unix::fs::symlink(PLUGIN, bin.join(name)).unwrap();
            }
        }
        let node = NetNs::anonymous().unwrap();
        let mut kernel = Kernel::open_in(NetNs::open(node.path()).unwrap()).unwrap();
        kernel.set_link("lo", &LinkChange::up()).unwrap();
        Self {
            node,
            state,
            bin,
            ours,
        }
    }

    /// One call; its exit and its answer.
    fn call(&self, call: &Call, pod: &NetNs) -> (bool, Value) {
        let mut conf = call.conf.clone();
        if let Some(ipam) = conf.get_mut("ipam").and_then(Value::as_object_mut) {
            ipam.insert("dataDir".into(), json!(self.state.path().join("leases")));
        }
        let netns = pod.path().display().to_string();
        let path = format!("{}:{REFERENCE}", self.bin.display());
        let mut env = vec![
            ("CNI_COMMAND", call.verb),
            ("CNI_CONTAINERID", call.container),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &path),
            ("CNI_ARGS", call.args),
            ("PATH", crate::lab::path()),
        ];
        env.retain(|(key, _)| !call.without.contains(key));
        let exec = Exec::new(self.bin.join(call.plugin));
        let exec = exec.env_only(env).stdin(conf.to_string());
        let output = self.node.run(|| exec.output()).unwrap().unwrap();
        let text = output.text();
        let answer = serde_json::from_str(&text).unwrap_or(Value::Null);
        (output.status.success(), answer)
    }
}

/// What is the same for both sides.
struct Call {
    plugin: &'static str,
    verb: &'static str,
    container: &'static str,
    args: &'static str,
    without: &'static [&'static str],
    conf: Value,
}

fn add(conf: Value) -> Call {
    Call {
        plugin: "bridge",
        verb: "ADD",
        container: "c1",
        args: "",
        without: &[],
        conf,
    }
}

/// Without what is freely chosen.
fn plain(mut answer: Value) -> Value {
    let wished = ["0a:00:00:00:00:07", "00:00:00:00:00:00"];
    for interface in answer["interfaces"].as_array_mut().into_iter().flatten() {
        let name = interface["name"].as_str().unwrap().to_owned();
        for prefix in ["veth", "ifb", "bwp"] {
            if name.starts_with(prefix) {
                let prefix = if prefix == "bwp" { "ifb" } else { prefix };
                interface["name"] = json!(prefix);
            }
        }
        if interface["mac"]
            .as_str()
            .is_some_and(|mac| !wished.contains(&mac))
        {
            interface["mac"] = json!("a hardware address");
        }
        if interface.get("sandbox").is_some() {
            interface["sandbox"] = json!("the pod");
        }
    }
    // The reference has one code, 999, for nearly everything; ours say more.
    if let Some(code) = answer.get("code").and_then(Value::as_u64) {
        return json!({"code": if code < 99 { code } else { 999 }});
    }
    answer
}

fn conf(version: &str, changes: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": version, "name": "pods", "type": "bridge", "bridge": "cni0",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}]]}
    });
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// Options of a network, each with what it changes.
fn options() -> Vec<Value> {
    let dual = json!([[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd00:7::/64"}]]);
    let ipam = |changes: Value| {
        let mut ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}]]});
        for (key, value) in changes.as_object().unwrap() {
            ipam[key] = value.clone();
        }
        json!({"ipam": ipam})
    };
    let routes = json!([
        {"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.7.0.9"}, {"dst": "10.8.0.0/16"}
    ]);
    let mut all = vec![
        json!({}),
        json!({"isGateway": true}),
        json!({"isDefaultGateway": true}),
        json!({"isDefaultGateway": true, "ipam": {"type": "host-local", "ranges": dual}}),
        json!({"mtu": 1400}),
        json!({"hairpinMode": true}),
        json!({"promiscMode": true}),
        json!({"hairpinMode": true, "promiscMode": true}),
        json!({"isGateway": true, "ipMasq": true}),
        json!({"macspoofchk": true}),
        json!({"dns": {"nameservers": ["10.96.0.10"], "search": ["a.b"], "domain": "b",
                       "options": ["ndots:5"]}}),
        json!({"runtimeConfig": {"mac": "0a:00:00:00:00:07"}}),
        json!({"args": {"cni": {"ips": ["10.7.0.77"], "mac": "0a:00:00:00:00:07"}}}),
        json!({"runtimeConfig": {"ips": ["10.7.0.78/24"]}}),
        json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.6.0.0/24"}]]}}),
        json!({"args": {"cni": {"ips": ["10.9.0.77"]}}}),
        json!({"mtu": "large"}),
        json!({"vlan": 4095}),
        json!({"vlan": 5}),
        json!({"an unknown key": true}),
        json!({"ipam": {}}),
        json!({"ipam": {"type": "static", "addresses": [{"address": "10.7.0.5/24", "gateway": "10.7.0.1"}]}}),
        json!({"ipam": {"type": "no-such-plugin"}}),
    ];
    for changes in [
        json!({"routes": routes}),
        json!({"ranges": dual, "routes": [{"dst": "::/0"}, {"dst": "0.0.0.0/0"}]}),
        json!({"ranges": [[{"subnet": "10.7.0.0/24", "rangeStart": "10.7.0.20", "rangeEnd": "10.7.0.21",
                            "gateway": "10.7.0.254"}]]}),
        json!({"ranges": [[{"subnet": "10.7.0.0/30", "gateway": "10.7.0.1"},
                           {"subnet": "10.7.1.0/24"}]]}),
        json!({"ranges": null, "subnet": "10.5.0.0/16", "gateway": "10.5.0.9"}),
        json!({"ranges": [[{"subnet": "10.7.0.5/24"}]]}),
        json!({"ranges": [[{"subnet": "10.7.0.0/31"}]]}),
        json!({"ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.7.0.0/16"}]]}),
        json!({"ranges": [[{"subnet": "10.7.0.0/24", "rangeStart": "10.7.0.9", "rangeEnd": "10.7.0.8"}]]}),
        json!({"ranges": [[{"subnet": "10.7.0.0/24", "rangeStart": "10.8.0.9"}]]}),
        json!({"ranges": []}),
    ] {
        all.push(ipam(changes));
    }
    all
}

fn installed(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return false;
    }
    let there = Path::new(REFERENCE).join("bridge").exists();
    if !there {
        println!(
            "SKIPPED {test}: {REFERENCE}/bridge is not installed (containernetworking-plugins)"
        );
    }
    there
}

/// Runs calls one after the other on both sides, with one pod; every answer must be the same.
#[track_caller]
fn same(title: &str, calls: &[Call]) {
    let sides = [Side::new(false), Side::new(true)];
    let pods = [NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap()];
    for (number, call) in calls.iter().enumerate() {
        let [reference, ours] = [0, 1].map(|at| {
            let (done, answer) = sides[at].call(call, &pods[at]);
            assert_eq!(sides[at].ours, at == 1);
            (done, answer)
        });
        if call.verb == "DEL" && ours.0 {
            // Nothing of the configuration stands in the way of ours.
            continue;
        }
        let mut own = plain(ours.1.clone());
        if !ours.0 && plain(reference.1.clone()) == json!({"code": 999}) {
            own = json!({"code": 999});
        }
        assert_eq!(
            (ours.0, own),
            (reference.0, plain(reference.1.clone())),
            "{title}, call {number}: ours {} reference {}",
            ours.1,
            reference.1
        );
    }
}

#[test]
fn every_option_in_every_version_gives_the_same_result() {
    let test = "every_option_in_every_version_gives_the_same_result";
    if !installed(test) {
        return;
    }
    let mut rows = 0;
    for (number, option) in options().iter().enumerate() {
        // All versions for the ordinary networks; the newest for the rest.
        let versions = if number < 4 {
            &VERSIONS[..]
        } else {
            &VERSIONS[5..]
        };
        for version in versions {
            let conf = conf(version, option);
            let mut del = add(conf.clone());
            del.verb = "DEL";
            let (again, mut twice) = (add(conf.clone()), add(conf.clone()));
            twice.verb = "DEL";
            same(&conf.to_string(), &[add(conf.clone()), again, del, twice]);
            rows += 1;
        }
    }
    println!("{rows} networks, 4 calls each");
}

#[test]
fn calls_that_are_wrong_are_refused_alike() {
    if !installed("calls_that_are_wrong_are_refused_alike") {
        return;
    }
    for variable in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        let mut call = add(conf("1.0.0", &json!({})));
        call.without = match variable {
            "CNI_COMMAND" => &["CNI_COMMAND"],
            "CNI_CONTAINERID" => &["CNI_CONTAINERID"],
            "CNI_IFNAME" => &["CNI_IFNAME"],
            _ => &["CNI_NETNS"],
        };
        if variable != "CNI_COMMAND" {
            same(variable, &[call]);
        }
    }
    for (verb, container, args, version) in [
        ("FOO", "c1", "", "1.0.0"),
        ("ADD", "a/b", "", "1.0.0"),
        ("ADD", "c1", "FOO=1", "1.0.0"),
        ("ADD", "c1", "IgnoreUnknown=1;FOO=1", "1.0.0"),
        ("ADD", "c1", "IgnoreUnknown=1;IP=10.7.0.50", "1.0.0"),
        (
            "ADD",
            "c1",
            "IgnoreUnknown=1;MAC=0a:00:00:00:00:07",
            "1.0.0",
        ),
        ("ADD", "c1", "", "9.0.0"),
        ("CHECK", "c1", "", "1.0.0"),
        ("CHECK", "c1", "", "0.3.1"),
        ("DEL", "never", "", "1.0.0"),
    ] {
        let mut call = add(conf(version, &json!({})));
        (call.verb, call.container, call.args) = (verb, container, args);
        same(&format!("{verb} {container} {args} {version}"), &[call]);
    }
}

#[test]
fn the_small_plugins_answer_alike() {
    if !installed("the_small_plugins_answer_alike") {
        return;
    }
    for version in VERSIONS {
        // Addresses alone.
        let mut ipam = add(conf(version, &json!({})));
        ipam.plugin = "host-local";
        let mut again = add(ipam.conf.clone());
        again.plugin = "host-local";
        let mut del = add(ipam.conf.clone());
        (del.plugin, del.verb) = ("host-local", "DEL");
        same(&format!("host-local {version}"), &[ipam, again, del]);
        // A loopback device. Before 1.0.0 the reference leaves out what the specification wants.
        if version < "1.0.0" {
            continue;
        }
        let lo = json!({"cniVersion": version, "name": "lo", "type": "loopback"});
        let mut call = add(lo.clone());
        call.plugin = "loopback";
        let mut del = add(lo);
        (del.plugin, del.verb) = ("loopback", "DEL");
        same(&format!("loopback {version}"), &[call, del]);
    }
    for plugin in ["portmap", "bandwidth"] {
        let runtime = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
                          "egressRate": 8_000_000, "egressBurst": 800_000}
        });
        let alone = json!({"cniVersion": "1.0.0", "name": "pods", "type": plugin,
                           "runtimeConfig": runtime});
        let mut call = add(alone);
        call.plugin = plugin;
        same(&format!("{plugin} alone"), &[call]);
    }
}
