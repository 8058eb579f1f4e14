//! Tests of plans: rows for the parts, one golden file for the whole.

use std::path::Path;

use linux::cgroup::CONTROLLERS;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::users::{Files, resolve};
use super::{Host, caps, container, exec, resources, sandbox, signal};
use crate::image::ImageConfig;
use crate::types::{
    ContainerSpec, ExecSpec, Limits, Mount, Propagation, SandboxSpec, Security, User,
};

fn host() -> Host {
    Host {
        caps: caps::ALL_KNOWN,
        shm: "/state/shm".into(),
        controllers: CONTROLLERS.to_vec(),
        ..Host::default()
    }
}

fn pod() -> SandboxSpec {
    SandboxSpec {
        id: "pod1".to_owned(),
        hostname: "web-0".to_owned(),
        cgroup_parent: "/seaway/kubepods/podpod1".to_owned(),
        ..SandboxSpec::default()
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".to_owned()],
        cmd: vec!["serve".to_owned()],
        env: vec![("PATH".to_owned(), "/opt/bin:/bin".to_owned())],
        ..ImageConfig::default()
    }
}

fn files() -> Files {
    Files {
        passwd: "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/false\n".to_owned(),
        group: "root:x:0:\nwww:x:34:\nextra:x:40:someone,web\nlog:x:41:web\n".to_owned(),
    }
}

fn plan(pod: &SandboxSpec, spec: &ContainerSpec) -> crate::Result<Value> {
    let planned = container(
        pod,
        spec,
        &image(),
        &files(),
        &host(),
        Path::new("/state/rootfs"),
    )?;
    Ok(planned.oci)
}

#[track_caller]
fn at<'a>(oci: &'a Value, pointer: &str) -> &'a Value {
    oci.pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer}"))
}

#[test]
fn a_whole_plan() {
    let spec = ContainerSpec {
        id: "c1".to_owned(),
        argv: vec!["httpd".to_owned(), "-f".to_owned()],
        env: vec![("PORT".to_owned(), "80".to_owned())],
        mounts: vec![
            Mount {
                source: "/h/deep".into(),
                target: "/a/b".into(),
                ..Mount::default()
            },
            Mount {
                source: "/h/a".into(),
                target: "/a".into(),
                read_only: true,
                propagation: Propagation::HostToContainer,
            },
        ],
        limits: Limits {
            memory_bytes: Some(1 << 20),
            cpu_quota_us: Some(50_000),
            cpu_shares: Some(512),
            pids: Some(10),
            ..Limits::default()
        },
        termination_log: Some("/h/message".into()),
        ..ContainerSpec::default()
    };
    let oci = plan(&pod(), &spec).unwrap();
    let text = serde_json::to_string_pretty(&oci).unwrap();
    expect_test::expect_file!["golden/config.json"].assert_eq(&text);
    assert_eq!(plan(&pod(), &spec).unwrap(), oci);
    // What the machine lacks is not asked for.
    let poor = Host {
        controllers: vec!["memory"],
        ..host()
    };
    let left = resources(&spec.limits, false, &poor);
    let left: Vec<_> = left.as_object().unwrap().keys().collect();
    assert_eq!(left, ["devices", "memory"]);
    // It is what libcontainer reads.
    let typed: libcontainer::oci_spec::runtime::Spec = serde_json::from_value(oci).unwrap();
    assert!(typed.linux().is_some());
}

#[test]
fn programs_and_environment() {
    let mut spec = ContainerSpec::default();
    let oci = plan(&pod(), &spec).unwrap();
    assert_eq!(
        *at(&oci, "/process/args"),
        serde_json::json!(["/entry", "serve"])
    );
    spec.env = vec![
        ("HOSTNAME".to_owned(), "mine".to_owned()),
        ("X".to_owned(), "1".to_owned()),
        ("X".to_owned(), "2".to_owned()),
    ];
    spec.tty = true;
    let oci = plan(&pod(), &spec).unwrap();
    let env = serde_json::json!([
        "PATH=/opt/bin:/bin",
        "HOSTNAME=mine",
        "HOME=/root",
        "X=2",
        "TERM=xterm"
    ]);
    assert_eq!(*at(&oci, "/process/env"), env);

    let run = ExecSpec {
        argv: vec!["ls".to_owned()],
        env: vec![("X".to_owned(), "3".to_owned())],
        cwd: "/tmp".to_owned(),
        user: Some(User {
            uid: Some(33),
            ..User::default()
        }),
        ..ExecSpec::default()
    };
    let process = exec(&oci, &run, &files()).unwrap();
    assert_eq!(*at(&process, "/args"), serde_json::json!(["ls"]));
    assert_eq!(*at(&process, "/env/3"), "X=3");
    assert_eq!(
        (at(&process, "/cwd"), at(&process, "/terminal")),
        (&"/tmp".into(), &false.into())
    );
    assert_eq!(*at(&process, "/user/gid"), 34);
    assert_eq!(
        at(&process, "/capabilities"),
        at(&oci, "/process/capabilities")
    );
}

#[test]
fn fields_that_cannot_be_used_are_named() {
    let default = ContainerSpec::default;
    let caps = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    for (spec, expect) in [
        (
            ContainerSpec {
                cwd: "x".to_owned(),
                ..default()
            },
            "cwd: \"x\" is not an absolute path",
        ),
        (
            ContainerSpec {
                argv: vec![String::new()],
                ..default()
            },
            "argv: no program to run: neither the container nor the image names one",
        ),
        (
            ContainerSpec {
                security: Security {
                    add_caps: caps(&["NET_ADMIM"]),
                    ..Security::default()
                },
                ..default()
            },
            "security.add_caps: there is no capability \"NET_ADMIM\"",
        ),
        (
            ContainerSpec {
                mounts: vec![Mount {
                    source: "/x".into(),
                    target: "y".into(),
                    ..Mount::default()
                }],
                ..default()
            },
            "mounts.target: y is not an absolute path",
        ),
    ] {
        assert_eq!(plan(&pod(), &spec).unwrap_err().to_string(), expect);
    }
    let nothing = exec(&Value::Null, &ExecSpec::default(), &files()).unwrap_err();
    assert_eq!(nothing.to_string(), "argv: no program to run");
}

#[test]
fn users() {
    let user = |uid, gid, non_root| User {
        uid,
        gid,
        groups: vec![99],
        non_root,
    };
    for (asked, image, expect) in [
        (user(None, None, false), "", (0, 0, vec![0, 99])),
        (
            user(None, None, false),
            "web",
            (33, 34, vec![34, 40, 41, 99]),
        ),
        (
            user(None, None, false),
            "33",
            (33, 34, vec![34, 40, 41, 99]),
        ),
        (user(None, None, false), "web:extra", (33, 40, vec![40, 99])),
        (
            user(None, None, false),
            "1000:1001",
            (1000, 1001, vec![99, 1001]),
        ),
        (user(None, None, true), "1000", (1000, 0, vec![0, 99])),
        (
            user(Some(33), None, true),
            "root",
            (33, 34, vec![34, 40, 41, 99]),
        ),
        (
            user(Some(33), Some(5), false),
            "",
            (33, 5, vec![5, 40, 41, 99]),
        ),
        (user(Some(7), None, false), "web:www", (7, 0, vec![0, 99])),
        (
            user(None, Some(8), false),
            "web",
            (33, 8, vec![8, 40, 41, 99]),
        ),
    ] {
        let found = resolve(&asked, image, &files()).unwrap();
        assert_eq!(
            (found.uid, found.gid, found.groups),
            expect,
            "{asked:?} {image:?}"
        );
    }
    for (asked, image, expect) in [
        (
            user(None, None, false),
            "nobody",
            "user: the image has no user \"nobody\"",
        ),
        (
            user(None, None, false),
            "web:none",
            "user: the image has no group \"none\"",
        ),
        (
            user(None, None, true),
            "",
            "user.non_root: the program would run as root (uid 0), which the pod forbids (runAsNonRoot)",
        ),
    ] {
        assert_eq!(
            resolve(&asked, image, &files()).unwrap_err().to_string(),
            expect
        );
    }
}

#[test]
fn capabilities() {
    let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let set = |add: &[&str], drop: &[&str], host: &Host| {
        let (add_caps, drop_caps) = (names(add), names(drop));
        caps::effective(
            &Security {
                add_caps,
                drop_caps,
                ..Security::default()
            },
            host,
        )
        .unwrap()
    };
    let all = host();
    assert_eq!(set(&[], &[], &all).len(), 14);
    assert_eq!(set(&["net_admin"], &["ALL"], &all), ["CAP_NET_ADMIN"]);
    assert_eq!(set(&["CAP_BPF"], &["all"], &all), ["CAP_BPF"]);
    assert_eq!(set(&["ALL"], &["SYS_ADMIN"], &all).len(), 40);
    assert!(!set(&[], &["CAP_KILL"], &all).contains(&"CAP_KILL".to_owned()));
    // What the machine lacks is not asked for.
    let poor = Host {
        caps: 0b1,
        ..host()
    };
    assert_eq!(set(&["ALL"], &[], &poor), ["CAP_CHOWN"]);
    let privileged = Security {
        privileged: true,
        ..Security::default()
    };
    assert_eq!(caps::effective(&privileged, &all).unwrap().len(), 41);
}

#[test]
fn sandboxes() {
    let ok = |change: fn(&mut SandboxSpec)| {
        let mut spec = pod();
        change(&mut spec);
        sandbox::check(&spec).map_err(|e| e.to_string())
    };
    fn sysctl(spec: &mut SandboxSpec, name: &str) {
        spec.sysctls.insert(name.to_owned(), "1".to_owned());
    }
    assert_eq!(ok(|_| {}), Ok(()));
    assert_eq!(
        ok(|s| sysctl(s, "net.ipv4.ip_unprivileged_port_start")),
        Ok(())
    );
    assert_eq!(ok(|s| sysctl(s, "kernel.shmmax")), Ok(()));
    for (change, expect) in [
        (
            (|s| sysctl(s, "vm.overcommit_memory")) as fn(&mut SandboxSpec),
            "sysctls[vm.overcommit_memory]: does not belong to the pod's namespaces",
        ),
        (
            |s| sysctl(s, "net.../../../etc/passwd"),
            "sysctls[net.../../../etc/passwd]: is no sysctl name",
        ),
        (
            |s| {
                sysctl(s, "net.x");
                s.host_network = true
            },
            "sysctls[net.x]: cannot be set with the host's network",
        ),
        (
            |s| s.cgroup_parent = "pods".to_owned(),
            "cgroup_parent: \"pods\" is not a path such as /seaway/pods/pod1",
        ),
        (
            |s| s.cgroup_parent = "/pods/../..".to_owned(),
            "cgroup_parent: \"/pods/../..\" is not a path such as /seaway/pods/pod1",
        ),
        (
            |s| {
                s.share_pid = true;
                s.host_pid = true
            },
            "share_pid: cannot be combined with host_pid",
        ),
    ] {
        assert_eq!(ok(change), Err(expect.to_owned()));
    }
}

#[test]
fn namespaces_and_privileges() {
    let mut pod = pod();
    let kinds = |oci: &Value| at(oci, "/linux/namespaces").to_string();
    let oci = plan(&pod, &ContainerSpec::default()).unwrap();
    assert_eq!(kinds(&oci), r#"[{"type":"mount"},{"type":"pid"}]"#);
    pod.host_pid = true;
    let oci = plan(&pod, &ContainerSpec::default()).unwrap();
    assert_eq!(kinds(&oci), r#"[{"type":"mount"}]"#);

    let security = Security {
        privileged: true,
        ..Security::default()
    };
    let oci = plan(
        &pod,
        &ContainerSpec {
            security,
            ..ContainerSpec::default()
        },
    )
    .unwrap();
    assert!(oci.pointer("/linux/maskedPaths").is_none());
    assert_eq!(*at(&oci, "/linux/resources/devices/0/allow"), true);
}

#[test]
fn signals() {
    for (name, expect) in [
        ("SIGTERM", Some(Signal::SIGTERM)),
        ("term", Some(Signal::SIGTERM)),
        ("3", Some(Signal::SIGQUIT)),
        ("SIGNOTHING", None),
        ("0", None),
    ] {
        assert_eq!(signal(name), expect, "{name}");
    }
}
