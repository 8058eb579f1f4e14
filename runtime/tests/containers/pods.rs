//! Pods: namespaces, shims, what survives and what goes.

use std::fs::{self};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime::{ContainerState, ExecSpec, SandboxSpec};

use crate::common::{self, Bench, bench, exec, exec_spec, open, read_all, wait_for};

#[test]
fn namespaces_are_its_own_or_the_pods() {
    let Some(bench) = bench("namespaces_are_its_own_or_the_pods") else {
        return;
    };
    bench.sandbox("p");
    for id in ["a", "b"] {
        bench.run("p", id, "sleep 1000");
    }
    let ns = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let (a, b) = (bench.pid("a").to_string(), bench.pid("b").to_string());
    let shim = bench
        .runtime
        .sandbox_status("p")
        .unwrap()
        .pid
        .unwrap()
        .to_string();
    for kind in ["pid", "mnt"] {
        assert_ne!(ns(&a, kind), ns("self", kind), "{kind}");
        assert_ne!(ns(&a, kind), ns(&b, kind), "{kind}");
    }
    for kind in ["uts", "ipc"] {
        assert_ne!(ns(&a, kind), ns("self", kind), "{kind}");
        assert_eq!(ns(&a, kind), ns(&b, kind), "{kind}");
        assert_eq!(ns(&a, kind), ns(&shim, kind), "{kind}");
    }
    // /dev/shm is the pod's.
    assert_eq!(exec(&bench, "a", "echo shared > /dev/shm/x").0, 0);
    assert_eq!(exec(&bench, "b", "cat /dev/shm/x").1, "shared\n");
    // The root file system is its own, the image below is not touched.
    assert_eq!(exec(&bench, "a", "echo mine > /etc/passwd").0, 0);
    assert!(exec(&bench, "b", "cat /etc/passwd").1.contains("web:x:33"));
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

/// Directory and cgroup for [`client`].
const CLIENT_ENV: [&str; 2] = ["SEAWAY_TEST_DIR", "SEAWAY_TEST_CGROUP"];

/// Not a test by itself: the process that makes containers and is then killed.
#[test]
fn client() {
    let [Ok(dir), Ok(cgroup)] = CLIENT_ENV.map(std::env::var) else {
        return;
    };
    let bench = std::mem::ManuallyDrop::new(Bench::again(dir.as_ref(), &cgroup));
    bench.sandbox("p");
    bench.run(
        "p",
        "c",
        "echo one; while ! test -e /tmp/go; do sleep 0.01; done; echo two; exit 9",
    );
    bench.run(
        "p",
        "d",
        "trap 'echo asked' TERM; echo up; while :; do sleep 0.01; done",
    );
    wait_for("trap", || bench.log("d").first().cloned());
    // Its stop goes on without it.
    bench
        .runtime
        .stop_container("d", Duration::from_secs(1), Some(Signal::SIGTERM))
        .unwrap();
}

#[test]
fn containers_survive_a_killed_runtime() {
    let Some(bench) = bench("containers_survive_a_killed_runtime") else {
        return;
    };
    let [dir, cgroup] = CLIENT_ENV;
    let daemon = linux::process::Daemon {
        program: std::env::current_exe().unwrap(),
        args: vec!["pods::client".into(), "--exact".into()],
        env: vec![
            (dir.into(), bench.dir.clone().into()),
            (cgroup.into(), bench.cgroup.clone().into()),
        ],
        ..Default::default()
    };
    let mut client = daemon.spawn().unwrap();
    wait_for("request to stop", || bench.log("d").get(1).cloned());
    client.kill().unwrap();
    client.wait().unwrap();

    let again = open(&bench.dir, &bench.cgroup);
    let found: Vec<_> = again
        .containers()
        .unwrap()
        .into_iter()
        .map(|c| c.id)
        .collect();
    assert_eq!(found, ["c", "d"]);
    let sandbox = again.sandboxes().unwrap().remove(0);
    assert!(sandbox.ready);
    // The container ends as soon as the file is there, maybe before the session that makes it.
    exec(&bench, "c", "touch /tmp/go");
    assert_eq!(bench.exit("c").code, 9);
    assert_eq!(bench.log("c"), ["stdout: one", "stdout: two"]);
    assert_eq!(bench.exit("d").code, 137);
    // Creating what is there changes nothing.
    again.create_sandbox(&sandbox.spec).unwrap();
    assert_eq!(again.sandboxes().unwrap()[0].pid, sandbox.pid);
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

#[test]
fn a_killed_shim_takes_its_containers_along() {
    let Some(bench) = bench("a_killed_shim_takes_its_containers_along") else {
        return;
    };
    let spec = bench.sandbox("p");
    bench.run("p", "c", "sleep 1000");
    let pid = bench.pid("c");
    let mut watch = bench.runtime.watch().unwrap();
    let shim = bench.runtime.sandbox_status("p").unwrap().pid.unwrap();
    linux::process::signal(shim, Signal::SIGKILL).unwrap();
    let event = watch.next(Some(common::PATIENCE)).unwrap().unwrap();
    assert_eq!(event.sandbox_id, "p");
    let exit = bench.exit("c");
    assert_eq!(
        (exit.code, exit.reason.as_str()),
        (137, "ContainerStatusUnknown")
    );
    wait_for("death", || (!linux::process::is_alive(pid)).then_some(()));
    assert!(!bench.runtime.sandbox_status("p").unwrap().ready);
    // A new shim serves new containers beside the old one's record.
    bench.runtime.create_sandbox(&spec).unwrap();
    bench.run("p", "d", "exit 0");
    assert_eq!(bench.exit("d").reason, "Completed");
    assert_eq!(bench.runtime.containers().unwrap().len(), 2);
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

#[test]
fn changes_are_told() {
    let Some(bench) = bench("changes_are_told") else {
        return;
    };
    let mut watch = bench.runtime.watch().unwrap();
    assert_eq!(watch.next(Some(Duration::ZERO)).unwrap(), None);
    bench.sandbox("p");
    bench.run("p", "c", "exit 1");
    // However many events there are, the state is the last one's after the last one.
    loop {
        let event = watch
            .next(Some(common::PATIENCE))
            .unwrap()
            .expect("an event of the end");
        assert_eq!(event.sandbox_id, "p");
        if let Ok(ContainerState::Exited(exit)) =
            bench.runtime.container_status("c").map(|c| c.state)
        {
            assert_eq!(exit.code, 1);
            break;
        }
    }
}

#[test]
fn a_pod_may_share_its_processes() {
    let Some(bench) = bench("a_pod_may_share_its_processes") else {
        return;
    };
    let spec = SandboxSpec {
        id: "p".to_owned(),
        hostname: "shared".to_owned(),
        cgroup_parent: format!("{}/kubepods/podp", bench.cgroup),
        share_pid: true,
        sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
        ..SandboxSpec::default()
    };
    bench.runtime.create_sandbox(&spec).unwrap();
    bench.run("p", "a", "sleep 1000 & sleep 1000");
    bench.run("p", "b", "sleep 1000");
    let (_, out) = exec(&bench, "b", "ps; cat /proc/sys/kernel/shm_rmid_forced");
    assert!(out.matches("sleep 1000").count() >= 3, "{out}");
    assert!(out.ends_with("\n1\n"), "{out}");
    bench.runtime.kill_container("a").unwrap();
    let (_, out) = exec(&bench, "b", "ps");
    assert!(!out.contains("sleep 1000 & sleep"), "{out}");
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

#[test]
fn everything_of_a_state_directory_can_be_destroyed() {
    let Some(bench) = bench("everything_of_a_state_directory_can_be_destroyed") else {
        return;
    };
    for id in ["p", "q"] {
        bench.sandbox(id);
        bench.run(id, &format!("c-{id}"), "sleep 1000");
    }
    let root = bench.dir.join("runtime");
    runtime::destroy_all(&root).unwrap();
    assert!(!root.exists());
    runtime::destroy_all(&root).unwrap();
    for sub in ["sandboxes", "events"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    bench.check_clean();
}

#[test]
fn a_pod_has_its_own_network() {
    let Some(bench) = bench("a_pod_has_its_own_network") else {
        return;
    };
    let netns = bench.dir.join("netns");
    linux::NetNs::create(&netns).unwrap();
    let spec = SandboxSpec {
        id: "p".to_owned(),
        hostname: "netpod".to_owned(),
        netns: Some(netns.clone()),
        cgroup_parent: format!("{}/kubepods/podp", bench.cgroup),
        sysctls: [(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "77".to_owned(),
        )]
        .into(),
        ..SandboxSpec::default()
    };
    bench.runtime.create_sandbox(&spec).unwrap();
    bench.run("p", "c", "sleep 1000");
    let ns = |pid: i32| fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
    assert_eq!(ns(bench.pid("c")), fs::metadata(&netns).unwrap().ino());
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net";
    assert_eq!(exec(&bench, "c", script), (0, "77\nlo\n".to_owned()));
    bench.runtime.remove_sandbox("p").unwrap();
    linux::NetNs::remove(&netns).unwrap();
    bench.check_clean();
}

#[test]
fn the_hosts_namespaces_and_privileges() {
    let Some(bench) = bench("the_hosts_namespaces_and_privileges") else {
        return;
    };
    let spec = SandboxSpec {
        id: "p".to_owned(),
        hostname: "ignored".to_owned(),
        cgroup_parent: format!("{}/kubepods/podp", bench.cgroup),
        host_network: true,
        host_pid: true,
        host_ipc: true,
        ..SandboxSpec::default()
    };
    bench.runtime.create_sandbox(&spec).unwrap();
    let mut spec = bench.container("c", "sleep 1000 & sleep 1000");
    spec.security.privileged = true;
    bench.start("p", &spec);
    let pid = bench.pid("c").to_string();
    let ns = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["pid", "net", "uts", "ipc"] {
        assert_eq!(ns(&pid, kind), ns("self", kind), "{kind}");
    }
    assert_ne!(ns(&pid, "mnt"), ns("self", "mnt"));
    let script = "mount -t tmpfs x /tmp && touch /tmp/y && test -c /dev/null && \
        grep ' /sys sysfs rw' /proc/mounts > /dev/null && echo fine";
    assert_eq!(exec(&bench, "c", script).1, "fine\n");
    bench.runtime.kill_container("c").unwrap();
    // Its other process is in no namespace that would have ended with the first.
    let groups = linux::cgroup::Hierarchies::detect().unwrap();
    let alive = groups.pids(&format!("{}/kubepods/podp/c", bench.cgroup));
    assert!(
        alive.iter().all(|pid| !linux::process::is_alive(*pid)),
        "{alive:?}"
    );
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

#[test]
fn state_directories_may_have_long_names() {
    let Some(bench) = bench("state_directories_may_have_long_names") else {
        return;
    };
    let dir = bench.dir.join("long".repeat(40)).join("name".repeat(40));
    fs::create_dir_all(&dir).unwrap();
    let long = Bench::again(&dir, &format!("{}-long", bench.cgroup));
    let archive = bench.dir.join("busybox.tar");
    long.runtime.images().load(&archive).unwrap();
    let id = "0123456789abcdef".repeat(4);
    long.sandbox(&id);
    let mut spec = long.container(&id, "sleep 1000");
    spec.tty = true;
    long.start(&id, &spec);
    let spec = ExecSpec {
        tty: true,
        ..exec_spec("echo $HOME")
    };
    let mut session = long.runtime.exec(&id, &spec).unwrap();
    assert_eq!(read_all(session.stdout.take()), "/root\r\n");
    long.runtime.remove_sandbox(&id).unwrap();
    long.check_clean();
}

#[test]
fn a_shim_killed_at_any_time_leaves_nothing() {
    let Some(bench) = bench("a_shim_killed_at_any_time_leaves_nothing") else {
        return;
    };
    for delay_ms in (0..40).step_by(4) {
        let spec = bench.sandbox("p");
        let shim = bench.runtime.sandbox_status("p").unwrap().pid.unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Not synchronisation: the moment of the blow.
                std::thread::sleep(Duration::from_millis(delay_ms));
                linux::process::signal(shim, Signal::SIGKILL).unwrap();
            });
            // Each may fail, now or not at all.
            drop(
                bench
                    .runtime
                    .create_container("p", &bench.container("c", "sleep 1000")),
            );
            drop(bench.runtime.start_container("c"));
            drop(bench.runtime.exec("c", &exec_spec("sleep 1000")));
        });
        wait_for("death", || {
            (!bench.runtime.sandbox_status("p").unwrap().ready).then_some(())
        });
        for container in bench.runtime.containers().unwrap() {
            assert!(
                matches!(container.state, ContainerState::Exited(_)),
                "{container:?}"
            );
        }
        if delay_ms % 8 == 0 {
            bench.runtime.create_sandbox(&spec).unwrap();
            bench.run("p", "d", "exit 0");
            bench.exit("d");
        }
        bench.runtime.remove_sandbox("p").unwrap();
        bench.check_clean();
    }
}
