//! The plugin killed (SIGKILL) at many instants of its life.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linux::Host;
use linux::exec::Exec;
use serde_json::{Value, json};

use crate::lab::{Node, PLUGIN, Pod, V4, V6};

/// Everything that a pod can have.
fn everything(node: &Node) -> Value {
    let mut conf = node.conf();
    conf["ipMasq"] = json!(true);
    conf["macspoofchk"] = json!(true);
    conf["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
                      "egressRate": 8_000_000, "egressBurst": 800_000}
    });
    conf
}

fn state(node: &Node) -> String {
    let exec = Exec::new("nft").args(["-s", "list", "ruleset"]);
    let rules = node.netns.run(|| exec.run().unwrap().text()).unwrap();
    node.dump() + &rules
}

#[test]
fn killed_at_any_time_del_or_gc_cleans_up() {
    let test = "killed_at_any_time_del_or_gc_cleans_up";
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    let conf = everything(&node);
    let warm = Pod::new("warm");
    let add = |pod: &Pod| node.exec("ADD", &pod.name, Some(pod.netns.path()), &conf);
    node.make_bridge();
    // The first makes what stays, and is slower; of the others the fastest is what the plugin takes.
    let mut whole = Duration::MAX;
    for _ in 0..6 {
        let start = Instant::now();
        node.call(&add(&warm)).unwrap();
        whole = whole.min(start.elapsed()).max(Duration::from_millis(2));
        node.del(&warm).unwrap();
    }
    let before = state(&node);
    let (mut killed, mut done) = (0, 0);
    for n in 0..60u32 {
        let pod = Pod::new(&format!("pod{n}"));
        // From right after the start until after the end.
        let exec = add(&pod).timeout(whole * n / 40);
        match node.netns.run(|| exec.output()).unwrap() {
            Ok(output) => {
                assert!(output.status.success());
                done += 1;
            }
            Err(e) if e.errno() == Some(libc_etimedout()) => killed += 1,
            Err(e) => panic!("{e}"),
        }
        match n % 3 {
            0 => node.del(&pod).unwrap(),
            1 => node.del_by_name(&pod.name, None).unwrap(),
            _ => {
                let mut gc = node.conf();
                gc["cni.dev/valid-attachments"] = json!([]);
                node.call(&node.exec("GC", "x", None, &gc)).unwrap();
            }
        }
        let when = whole * n / 40;
        assert!(node.leases().is_empty(), "killed after {when:?}");
        assert_eq!(state(&node), before, "killed after {when:?}");
        assert_eq!(pod.kernel().links().unwrap().len(), 1);
        // And the pod can be added after all.
        if n % 10 == 0 {
            node.call(&add(&pod)).unwrap();
            node.del(&pod).unwrap();
        }
    }
    println!("{killed} killed, {done} done before");
    assert!(killed > 5, "{killed} of 60 were killed");
}

/// Calls by which the plugin changes anything: messages to the kernel, files, what it prints.
const CHANGES: [&str; 3] = ["sendto,sendmsg", "write", "rename,unlink"];

/// The plugin, killed just before its `n`th call of one of these.
fn killed_before(strace: &Path, calls: &str, n: u32) -> Exec {
    let trace = format!("trace={calls}");
    // The error keeps the kernel from doing it all the same.
    let inject = format!("inject={calls}:error=EIO:signal=KILL:when={n}");
    let exec = Exec::new(strace).args(["-f", "-qq", "-o", "/dev/null"]);
    exec.args(["-e", &trace, "-e", &inject, PLUGIN])
}

/// The program that stops another at its calls, where this machine lets it.
fn strace(test: &str) -> Option<PathBuf> {
    let Some(strace) = linux::exec::which("strace") else {
        println!("SKIPPED {test}: strace is not installed");
        return None;
    };
    let nothing = ["-qq", "-o", "/dev/null", "true"];
    match Exec::new(&strace).args(nothing).run() {
        Ok(_) => Some(strace),
        Err(error) => {
            println!("SKIPPED {test}: this machine lets nobody trace: {error}");
            None
        }
    }
}

/// Killed before each of its changes in turn: nothing is left after DEL, nor after GC.
#[test]
fn killed_before_each_change_del_or_gc_cleans_up() {
    let test = "killed_before_each_change_del_or_gc_cleans_up";
    let Some(strace) = strace(test) else {
        return;
    };
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    let conf = everything(&node);
    let add = |pod: &Pod| node.exec("ADD", &pod.name, Some(pod.netns.path()), &conf);
    let warm = Pod::new("warm");
    node.make_bridge();
    node.call(&add(&warm)).unwrap();
    node.del(&warm).unwrap();
    let before = state(&node);
    let mut killed = 0;
    for calls in CHANGES {
        for n in 1.. {
            let mut whole = false;
            for gc in [false, true] {
                let at = format!("before {calls} {n}, GC {gc}");
                let pod = Pod::new(&format!("pod{n}"));
                let netns = Some(pod.netns.path());
                let exec = killed_before(&strace, calls, n);
                let exec = node.exec_by(exec, "ADD", &pod.name, netns.clone(), &conf);
                let output = node.netns.run(|| exec.output()).unwrap().unwrap();
                whole = output.status.success();
                // It told of what it had done, or was killed.
                assert_ne!(whole, output.stdout.is_empty(), "{at}: {output:?}");
                if gc {
                    let mut gc = node.conf();
                    gc["cni.dev/valid-attachments"] = json!([]);
                    node.call(&node.exec("GC", "x", None, &gc)).unwrap();
                } else {
                    // With and without the pod's namespace.
                    let netns = netns.filter(|_| n % 2 == 0);
                    node.del_by_name(&pod.name, netns).unwrap();
                }
                assert!(node.leases().is_empty(), "{at}");
                assert_eq!(state(&node), before, "{at}");
                assert_eq!(pod.kernel().links().unwrap().len(), 1, "{at}");
            }
            if whole {
                break;
            }
            killed += 1;
        }
    }
    println!("killed before {killed} changes");
    assert!(killed > 30, "{killed} changes are too few to be all");
}

fn libc_etimedout() -> i32 {
    nix::errno::Errno::ETIMEDOUT as i32
}
