//! The life of a container: limits, mounts, users, output, end.

use std::fs::{self};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime::{Limits, Mount, User};

use crate::common::{self, bench, exec_spec, wait_for};

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
