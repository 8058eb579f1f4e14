//! Containers on the real kernel: needs root and a static busybox.

#[cfg(test)]
mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::{Bench, bench, open, read_all, wait_for};
use nix::sys::signal::Signal;
use runtime::{ContainerState, ExecSpec, Limits, Mount, SandboxSpec, User};

#[cfg(test)]
fn exec_spec(script: &str) -> ExecSpec {
    ExecSpec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

/// Runs a script in a container: exit code and standard output.
#[cfg(test)]
fn exec(bench: &Bench, id: &str, script: &str) -> (i32, String) {
    let mut session = bench.runtime.exec(id, &exec_spec(script)).unwrap();
    let out = read_all(session.stdout.take());
    (session.wait().unwrap(), out)
}

#[test]
fn a_container_runs_logs_and_ends() {
    let Some(bench) = bench("a_container_runs_logs_and_ends") else {
        return;
    };
    bench.sandbox("p");
    let script = "echo out; echo err >&2; hostname; echo $FROM_IMAGE $HOSTNAME; \
        echo $$; id -u; pwd; printf end; exit 7";
    bench.run("p", "c", script);
    let exit = bench.exit("c");
    assert_eq!(
        (exit.code, exit.reason.as_str(), exit.oom_killed),
        (7, "Error", false)
    );
    assert!(exit.started_at.unwrap() <= exit.finished_at.unwrap());
    let mut log = bench.log("c");
    let err = log.iter().position(|l| l == "stderr: err").unwrap();
    log.remove(err);
    let out = ["out", "testpod", "yes testpod", "1", "0", "/", "end"];
    assert_eq!(log, out.map(|l| format!("stdout: {l}")));

    bench.runtime.remove_container("c").unwrap();
    bench.runtime.remove_container("c").unwrap();
    assert!(
        bench
            .runtime
            .container_status("c")
            .unwrap_err()
            .is_not_found()
    );
    assert!(bench.log_path("c").exists());
    bench.runtime.remove_sandbox("p").unwrap();
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

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

#[test]
fn hybrid_cgroups_hold_the_processes_and_limits() {
    let Some(bench) = bench("hybrid_cgroups_hold_the_processes_and_limits") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "sleep 1000");
    spec.limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_quota_us: Some(20_000),
        cpu_shares: Some(256),
        pids: Some(50),
        ..Limits::default()
    };
    bench.start("p", &spec);
    let groups = linux::cgroup::Hierarchies::detect().unwrap();
    let path = format!("{}/kubepods/podp/c", bench.cgroup);
    let pid = bench.pid("c");
    let mut session = bench.runtime.exec("c", &exec_spec("sleep 1000")).unwrap();
    let of = |dir: &std::path::Path| -> Vec<i32> {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        text.lines().map(|l| l.parse().unwrap()).collect()
    };
    let v2 = groups
        .v2
        .clone()
        .map(|v2| v2.join(path.trim_start_matches('/')));
    if let Some(dir) = &v2 {
        let pids = of(dir);
        // The shell of the exec session execs its only command, or forks.
        assert!(pids.contains(&pid) && pids.len() >= 2, "{pids:?}");
    }
    let limit = groups.dirs(&path).iter().find_map(|dir| {
        let v1 = fs::read_to_string(dir.join("memory.limit_in_bytes"));
        v1.or_else(|_| fs::read_to_string(dir.join("memory.max")))
            .ok()
    });
    assert_eq!(limit.unwrap().trim(), (64 << 20).to_string());
    session.kill();
    assert_eq!(session.wait().unwrap(), 137);
    drop(session.stdout.take());
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

#[test]
fn the_memory_limit_kills() {
    let Some(bench) = bench("the_memory_limit_kills") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "dd if=/dev/zero of=/dev/null bs=200M");
    spec.argv = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M"]
        .map(str::to_owned)
        .to_vec();
    spec.limits.memory_bytes = Some(32 << 20);
    bench.start("p", &spec);
    let exit = bench.exit("c");
    assert_eq!(
        (exit.code, exit.signal, exit.reason.as_str()),
        (137, Some(9), "OOMKilled")
    );
    assert!(exit.oom_killed);
}

#[test]
fn programs_run_inside_with_exit_code_and_streams() {
    let Some(bench) = bench("programs_run_inside_with_exit_code_and_streams") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "sleep 1000");
    spec.env.push(("WORD".to_owned(), "hello".to_owned()));
    bench.start("p", &spec);
    assert_eq!(
        exec(&bench, "c", "echo $WORD; exit 5"),
        (5, "hello\n".to_owned())
    );

    let mut with_input = exec_spec("cat; echo err >&2; exit 3");
    with_input.stdin = true;
    let mut session = bench.runtime.exec("c", &with_input).unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"some input").unwrap();
    drop(stdin);
    assert_eq!(read_all(session.stdout.take()), "some input");
    assert_eq!(read_all(session.stderr.take()), "err\n");
    assert_eq!(session.wait().unwrap(), 3);
    assert_eq!(session.wait().unwrap(), 3);

    let missing = ExecSpec {
        argv: vec!["nothing".to_owned()],
        ..ExecSpec::default()
    };
    let error = bench.runtime.exec("c", &missing).unwrap_err().to_string();
    let expect = "exec in container c: exec nothing: executable file not found in $PATH";
    assert_eq!(error, expect);

    let user = User {
        uid: Some(33),
        ..User::default()
    };
    let spec = ExecSpec {
        user: Some(user),
        cwd: "/tmp".to_owned(),
        ..exec_spec("id; pwd")
    };
    let mut session = bench.runtime.exec("c", &spec).unwrap();
    let out = read_all(session.stdout.take());
    assert_eq!(
        out,
        "uid=33(web) gid=34(www) groups=34(www),40(extra)\n/tmp\n"
    );

    bench.runtime.kill_container("c").unwrap();
    let error = bench
        .runtime
        .exec("c", &exec_spec("true"))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "exec in container c: it is ended");
}

#[test]
fn a_terminal_has_a_size() {
    let Some(bench) = bench("a_terminal_has_a_size") else {
        return;
    };
    bench.sandbox("p");
    bench.run("p", "c", "sleep 1000");
    let mut spec = exec_spec("read go; stty size; echo $TERM; exit 4");
    (spec.tty, spec.stdin) = (true, true);
    let mut session = bench.runtime.exec("c", &spec).unwrap();
    session.resize(100, 40).unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"\n").unwrap();
    assert_eq!(read_all(session.stdout.take()), "\r\n40 100\r\nxterm\r\n");
    assert!(session.stderr.is_none());
    assert_eq!(session.wait().unwrap(), 4);
}

#[test]
fn attached_clients_see_output_and_write_input() {
    let Some(bench) = bench("attached_clients_see_output_and_write_input") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "while read line; do echo got $line; done; exit 6");
    (spec.stdin, spec.stdin_once) = (true, true);
    bench.runtime.create_container("p", &spec).unwrap();
    let mut session = bench.runtime.attach("c", true).unwrap();
    bench.runtime.start_container("c").unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"one\ntwo\n").unwrap();
    drop(stdin);
    assert_eq!(read_all(session.stdout.take()), "got one\ngot two\n");
    assert_eq!(session.wait().unwrap(), 6);
    assert_eq!(bench.log("c"), ["stdout: got one", "stdout: got two"]);

    let mut spec = bench.container("t", "read x; stty size; exit 2");
    (spec.stdin, spec.tty) = (true, true);
    bench.start("p", &spec);
    let mut session = bench.runtime.attach("t", true).unwrap();
    session.resize(90, 30).unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"\n").unwrap();
    assert!(read_all(session.stdout.take()).ends_with("30 90\r\n"));
    assert_eq!(session.wait().unwrap(), 2);
}

#[test]
fn stopping_is_polite_first() {
    let Some(bench) = bench("stopping_is_polite_first") else {
        return;
    };
    bench.sandbox("p");
    bench.run(
        "p",
        "polite",
        "trap 'exit 42' TERM; echo up; while :; do sleep 0.01; done",
    );
    bench.run(
        "p",
        "deaf",
        "trap '' TERM; echo up; while :; do sleep 0.01; done",
    );
    for id in ["polite", "deaf"] {
        wait_for("trap", || bench.log(id).first().cloned());
    }
    bench
        .runtime
        .stop_container("polite", Duration::from_secs(20), None)
        .unwrap();
    assert_eq!(bench.exit("polite").code, 42);
    bench
        .runtime
        .stop_container("polite", Duration::from_secs(20), None)
        .unwrap();
    let grace = Duration::from_millis(100);
    bench
        .runtime
        .stop_container("deaf", grace, Some(Signal::SIGTERM))
        .unwrap();
    let exit = bench.exit("deaf");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    bench.runtime.stop_container("nobody", grace, None).unwrap();
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
        args: vec!["client".into(), "--exact".into()],
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
    assert_eq!(exec(&bench, "c", "touch /tmp/go").0, 0);
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
fn programs_that_cannot_start_are_told() {
    let Some(bench) = bench("programs_that_cannot_start_are_told") else {
        return;
    };
    bench.sandbox("p");
    let mut spec = bench.container("c", "");
    spec.argv = vec!["/bin/nothing".to_owned()];
    bench.runtime.create_container("p", &spec).unwrap();
    let error = bench.runtime.start_container("c").unwrap_err().to_string();
    let why = "exec /bin/nothing: no such file or directory";
    assert_eq!(error, format!("start container c: {why}"));
    let exit = bench.exit("c");
    assert_eq!((exit.code, exit.reason.as_str()), (128, "StartError"));
    assert_eq!(exit.message, why);

    spec.id = "d".to_owned();
    spec.image = "nowhere".to_owned();
    let error = bench.runtime.create_container("p", &spec).unwrap_err();
    assert_eq!(error.to_string(), "image nowhere is not there");
    assert!(error.is_not_found());
    spec.image = common::IMAGE.to_owned();
    spec.mounts = vec![Mount {
        source: "/nowhere/at/all".into(),
        target: "/mnt".into(),
        ..Mount::default()
    }];
    let error = bench
        .runtime
        .create_container("p", &spec)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("create container d: "), "{error}");
    assert!(
        bench
            .runtime
            .container_status("d")
            .unwrap_err()
            .is_not_found()
    );
    assert!(
        !bench
            .runtime
            .create_container("nopod", &spec)
            .unwrap_err()
            .to_string()
            .is_empty()
    );
    bench.runtime.remove_sandbox("p").unwrap();
    bench.check_clean();
}

#[test]
fn mounts_users_and_privileges() {
    let Some(bench) = bench("mounts_users_and_privileges") else {
        return;
    };
    bench.sandbox("p");
    let data = bench.dir.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("f"), "from host\n").unwrap();
    let hosts = bench.dir.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let mount = |source: &std::path::Path, target: &str, read_only| Mount {
        source: source.to_owned(),
        target: target.into(),
        read_only,
        ..Mount::default()
    };
    let script = "id; cat /data/f /etc/hosts; touch /ro/x || echo read-only; touch /data/new; \
        grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; pwd; \
        touch /x || echo root read-only; echo bye > /dev/termination-log; ls /proc/acpi | wc -l";
    let mut spec = bench.container("c", script);
    spec.mounts = vec![
        mount(&data, "/data", false),
        mount(&data, "/ro", true),
        mount(&hosts, "/etc/hosts", true),
    ];
    spec.user = User {
        uid: Some(33),
        groups: vec![70],
        ..User::default()
    };
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    spec.cwd = "/made/by/runtime".to_owned();
    spec.security.read_only_root = true;
    spec.security.no_new_privileges = true;
    let message = bench.dir.join("message");
    fs::write(&message, "").unwrap();
    fs::set_permissions(
        &message,
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    spec.termination_log = Some(message.clone());
    bench.start("p", &spec);
    bench.exit("c");
    let out: Vec<_> = bench
        .log("c")
        .into_iter()
        .filter_map(|l| l.strip_prefix("stdout: ").map(str::to_owned))
        .collect();
    let expect = [
        "uid=33(web) gid=34(www) groups=34(www),40(extra),70",
        "from host",
        "127.0.0.1 localhost",
        "read-only",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "/made/by/runtime",
        "root read-only",
        "0",
    ];
    assert_eq!(out, expect);
    assert_eq!(fs::read_to_string(&message).unwrap(), "bye\n");
    assert_eq!(fs::metadata(data.join("new")).unwrap().uid(), 33);

    let mut spec = bench.container("root", "exit 0");
    spec.user.non_root = true;
    let error = bench
        .runtime
        .create_container("p", &spec)
        .unwrap_err()
        .to_string();
    assert!(error.contains("runAsNonRoot"), "{error}");
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
    let alive = groups.pids(&format!("{}/kubepods", bench.cgroup));
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
fn a_program_that_writes_much_loses_nothing() {
    let Some(bench) = bench("a_program_that_writes_much_loses_nothing") else {
        return;
    };
    bench.sandbox("p");
    bench.run("p", "c", "seq 1 100000; printf unfinished");
    assert_eq!(bench.exit("c").code, 0);
    let log = bench.log("c");
    assert_eq!(log.len(), 100_001);
    let expect = (1..=100_000).map(|n| format!("stdout: {n}"));
    assert!(log.iter().zip(expect).all(|(line, expect)| *line == expect));
    assert_eq!(log.last().unwrap(), "stdout: unfinished");
}
