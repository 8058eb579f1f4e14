//! Leases and leftovers: many at once, a full disk, lost and broken files, containers that are gone.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::thread;

use api::cni::{AddResult, ErrorCode};
use linux::exec::{Exec, Output};
use serde_json::{Value, json};

use crate::lab::{Node, PLUGIN, Pod, V4, V6, refused};

/// Pods of the test with many, and how many are added or deleted at the same time.
const MANY: usize = 200;
const AT_A_TIME: usize = 8;

/// `ipam audit` of the node's leases.
fn audit(node: &Node, repair: bool) -> Output {
    let mut exec = Exec::new(PLUGIN)
        .args(["ipam", "audit", "--network", "pods", "--data-dir"])
        .arg(node.leases.path());
    if repair {
        exec = exec.arg("--repair");
    }
    node.netns.run(|| exec.output()).unwrap().unwrap()
}

/// Makes a file look as if it had been written an hour ago.
fn make_old(path: &std::path::Path) {
    Exec::new("touch")
        .args(["-d", "1 hour ago"])
        .arg(path)
        .run()
        .unwrap();
}

fn everything(node: &Node, port: u16) -> Value {
    let mut conf = node.conf();
    conf["ipMasq"] = json!(true);
    conf["macspoofchk"] = json!(true);
    conf["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
                      "egressRate": 8_000_000, "egressBurst": 800_000}
    });
    conf
}

fn add(node: &Node, pod: &Pod, conf: &Value) -> AddResult {
    let text = node.call(&node.exec("ADD", &pod.name, Some(pod.netns.path()), conf));
    serde_json::from_str(&text.unwrap()).unwrap()
}

fn ruleset(node: &Node) -> String {
    let exec = Exec::new("nft").args(["-s", "list", "ruleset"]);
    node.netns.run(|| exec.run().unwrap().text()).unwrap()
}

#[test]
fn many_at_once_lose_and_double_no_address() {
    let Some(node) = Node::new("many_at_once_lose_and_double_no_address", &[V4, V6]) else {
        return;
    };
    let pods: Vec<Pod> = (0..MANY).map(|n| Pod::new(&format!("pod{n}"))).collect();
    let workers = |work: &(dyn Fn(usize) + Sync)| {
        thread::scope(|scope| {
            for first in 0..AT_A_TIME {
                scope.spawn(move || (first..MANY).step_by(AT_A_TIME).for_each(work));
            }
        });
    };
    let results = std::sync::Mutex::new(Vec::new());
    workers(&|n| {
        let added = node.add(&pods[n]).unwrap();
        results
            .lock()
            .unwrap()
            .extend(added.ips.iter().map(|ip| ip.address.ip()));
    });
    let given: BTreeSet<IpAddr> = results.into_inner().unwrap().into_iter().collect();
    assert_eq!(given.len(), 2 * MANY, "no address was given twice");
    assert_eq!(
        node.leases().keys().copied().collect::<BTreeSet<_>>(),
        given
    );
    // Half goes while the other half comes anew.
    workers(&|n| {
        node.del(&pods[n]).unwrap();
        if n % 2 == 0 {
            node.add(&pods[n]).unwrap();
        }
    });
    let leases = node.leases();
    assert_eq!(leases.len(), MANY);
    let owners: BTreeSet<&String> = leases.values().collect();
    assert_eq!(owners.len(), MANY / 2);
    workers(&|n| node.del(&pods[n]).unwrap());
    assert!(node.leases().is_empty());
    assert_eq!(node.links(), ["cni0", "lo"]);
}

/// A small file system in place of the leases, gone when dropped.
struct SmallDisk<'a>(&'a std::path::Path);

impl SmallDisk<'_> {
    fn mount(path: &std::path::Path) -> SmallDisk<'_> {
        let exec = Exec::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "small"]);
        exec.arg(path).run().unwrap();
        SmallDisk(path)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        Exec::new("umount").arg("-l").arg(self.0).run().unwrap();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let Some(node) = Node::new("a_full_disk_is_told_and_leaves_nothing", &[V4]) else {
        return;
    };
    let _disk = SmallDisk::mount(node.leases.path());
    node.make_bridge();
    let first = Pod::new("first");
    node.add(&first).unwrap();
    let (before, leases) = (node.dump(), node.leases());
    let filler = node.leases.path().join("filler");
    // Writes until nothing fits any more.
    fs::write(&filler, vec![7; 128 << 10]).unwrap_err();
    let pod = Pod::new("pod");
    refused(node.add(&pod), ErrorCode::IO, "No space left on device");
    assert_eq!((node.dump(), node.leases()), (before, leases));
    // DEL needs no room.
    node.del(&first).unwrap();
    assert!(node.leases().is_empty());
    fs::remove_file(filler).unwrap();
    node.add(&pod).unwrap();
    node.del(&pod).unwrap();
}

#[test]
fn lost_and_broken_leases_are_mended_and_no_running_pod_loses_its_address() {
    let test = "lost_and_broken_leases_are_mended_and_no_running_pod_loses_its_address";
    // An audit looks at every namespace of the machine: pods of no other test have these addresses.
    let Some(node) = Node::new(test, &["10.244.71.0/24", "fd00:10:244:71::/64"]) else {
        return;
    };
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (ra, rb) = (node.add(&a).unwrap(), node.add(&b).unwrap());
    let all = node.leases();
    let dir = node.leases.path().join("pods");
    let quiet = audit(&node, false);
    assert!(quiet.status.success(), "{}", quiet.text());
    assert_eq!(quiet.text(), "pods: 4 leases, 0 findings\n");

    // Everything is lost: a new pod would get an address that one has.
    fs::remove_dir_all(&dir).unwrap();
    let new = Pod::new("new");
    refused(
        node.add(&new),
        ErrorCode::ADDRESS,
        "the leases of network pods are lost",
    );
    let told = audit(&node, false);
    assert_eq!(told.status.code(), Some(1), "{}", told.text());
    assert!(
        told.text()
            .contains("10.244.71.2: in use by a eth0, but not leased to it")
    );
    assert!(audit(&node, true).status.success());
    assert_eq!(node.leases(), all);
    let address = node.add(&new).unwrap().ips[0].address.ip();
    assert!(!all.contains_key(&address), "{address}");
    node.del(&new).unwrap();

    // Some are broken, and some are of nobody.
    fs::write(dir.join("10.244.71.2"), [0xff, 0xfe]).unwrap();
    fs::write(dir.join("fd00:10:244:71::3"), "").unwrap();
    for (name, text) in [("10.244.71.99", "gone\r\neth0"), ("10.244.71.98", "")] {
        fs::write(dir.join(name), text).unwrap();
        make_old(&dir.join(name));
    }
    fs::write(dir.join("last_reserved_ip.0"), "nonsense").unwrap();
    fs::write(dir.join("10.244.71.97"), "young\r\neth0").unwrap();
    let told = audit(&node, false).text();
    for line in [
        "10.244.71.2: in use by a eth0, but not leased to it",
        "fd00:10:244:71::3: in use by b eth0, but not leased to it",
        "10.244.71.99: leased to gone eth0, which no longer exists",
        "10.244.71.98: the lease names no container",
    ] {
        assert!(told.contains(line), "{told}");
    }
    assert!(
        told.contains("7 leases, 4 findings"),
        "the young one may be just coming: {told}"
    );
    assert!(audit(&node, true).text().contains("; mended"));
    fs::remove_file(dir.join("10.244.71.97")).unwrap();
    assert_eq!(node.leases(), all);
    for (pod, result) in [(&a, &ra), (&b, &rb)] {
        node.check(pod, result).unwrap();
        node.del(pod).unwrap();
    }
    assert!(node.leases().is_empty());
}

#[test]
fn a_full_pool_tells_how_much_of_it_is_nobodys() {
    let test = "a_full_pool_tells_how_much_of_it_is_nobodys";
    // An address that is in use anywhere on the machine has not gone, and other tests use theirs.
    let Some(node) = Node::new(test, &["10.244.70.0/29"]) else {
        return;
    };
    let pod = Pod::new("running");
    node.add(&pod).unwrap();
    let dir = node.leases.path().join("pods");
    for n in 3..7 {
        let file = dir.join(format!("10.244.70.{n}"));
        fs::write(&file, format!("gone{n}\r\neth0")).unwrap();
        if n > 3 {
            make_old(&file);
        }
    }
    let full = "IP pool 10.244.70.0/29 full: 5 of 5, 3 belong to containers that no longer exist";
    refused(node.add(&Pod::new("new")), ErrorCode::ADDRESS, full);
    let status = node.exec("STATUS", "x", None, &node.conf());
    refused(node.call(&status), ErrorCode::NOT_AVAILABLE, full);
    assert!(audit(&node, true).status.success());
    node.add(&Pod::new("new")).unwrap();
}

#[test]
fn gc_takes_everything_of_those_that_are_not_listed() {
    let test = "gc_takes_everything_of_those_that_are_not_listed";
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    let kept = Pod::new("kept");
    let result = add(&node, &kept, &everything(&node, 8080));
    // Of another network on the same bridge, which is none of GC's business.
    let mut other = everything(&node, 8081);
    other["name"] = json!("others");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.244.8.0/24"}]]);
    other["isGateway"] = json!(false);
    let foreign = Pod::new("foreign");
    add(&node, &foreign, &other);
    let (links, rules, leases) = (node.links(), ruleset(&node), node.leases());
    for (port, gone) in [(1, true), (2, false)] {
        let pod = Pod::new(&format!("pod{port}"));
        add(&node, &pod, &everything(&node, port));
        if gone {
            drop(pod);
        }
    }
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    for _twice in 0..2 {
        node.call(&node.exec("GC", "x", None, &conf)).unwrap();
        assert_eq!(node.links(), links);
        assert_eq!(ruleset(&node), rules);
        assert_eq!(node.leases(), leases);
    }
    let mut checked = everything(&node, 8080);
    checked["prevResult"] = json!(result);
    node.call(&node.exec("CHECK", "kept", Some(kept.netns.path()), &checked))
        .unwrap();
    // None is to be kept: everything of this network goes, the other's stays.
    conf["cni.dev/valid-attachments"] = json!([]);
    node.call(&node.exec("GC", "x", None, &conf)).unwrap();
    assert!(node.leases().is_empty());
    assert!(ruleset(&node).contains("others/foreign/eth0"));
    assert!(!ruleset(&node).contains("pods/kept/eth0"));
}
