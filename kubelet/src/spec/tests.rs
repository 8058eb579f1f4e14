use super::*;
use crate::testing::pod;
use crate::volumes::VolumePath;

fn image() -> Image {
    Image {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["a".into()],
        ..Image::default()
    }
}

fn spec_of(spec: &str) -> Result<ContainerSpec, Error> {
    let p = pod(&format!("p: {spec}"));
    let container = p.spec.as_ref().unwrap().containers[0].clone();
    let volume = |path: &str, read_only| VolumePath {
        path: path.into(),
        read_only,
    };
    let volumes = Volumes {
        paths: [
            ("e".to_owned(), volume("/v/e", false)),
            ("s".to_owned(), volume("/v/s", true)),
        ]
        .into(),
        refresh_at: None,
    };
    let place = Place {
        pod_dir: "/pods/u".into(),
        log_dir: "/logs/l".into(),
        cgroup: "/root/kubepods/podu".into(),
        node_memory_bytes: 1 << 30,
    };
    let env = vec![("X".to_owned(), "own".to_owned())];
    container_spec(&p, &container, 2, &image(), env, &volumes, &place)
}

fn one(fields: &str) -> String {
    format!("{{containers: [{{name: c, image: i, {fields}}}]}}")
}

#[test]
fn command_and_args() {
    for (fields, expect) in [
        ("ports: []", "/entry a"),
        ("args: [b, \"$(X)\"]", "/entry b own"),
        ("command: [/run]", "/run"),
        ("command: [/run], args: [\"$$(X)\"]", "/run $(X)"),
    ] {
        assert_eq!(spec_of(&one(fields)).unwrap().argv.join(" "), expect);
    }
}

#[test]
fn environment_and_places() {
    let spec = spec_of(&one("workingDir: /w")).unwrap();
    let get = |n: &str| {
        let all: Vec<_> = spec.env.iter().filter(|(k, _)| k == n).collect();
        assert!(all.len() < 2, "{n} stands once");
        all.first().map(|(_, v)| v.as_str())
    };
    assert_eq!((get("X"), get("HOSTNAME")), (Some("own"), Some("p")));
    assert_eq!(spec.cwd, "/w");
    assert_eq!(spec.cgroup, "/root/kubepods/podu/c-2");
    assert_eq!(spec.log_path.as_deref(), Some(Path::new("/logs/l/c/2.log")));
}

#[test]
fn mounts_and_sub_paths() {
    let mount = "volumeMounts: [{name: e, mountPath: /d, subPathExpr: \"$(X)/y\"}, {name: s, mountPath: /etc/hosts}]";
    let spec = spec_of(&one(mount)).unwrap();
    let find = |target: &str| {
        let mut all = spec.mounts.iter().filter(|m| m.target == Path::new(target));
        (all.next().cloned(), all.count())
    };
    let (d, _) = find("/d");
    assert_eq!(d.unwrap().source, Path::new("/v/e/own/y"));
    let (hosts, more) = find("/etc/hosts");
    assert!(hosts.unwrap().read_only && more == 0);
    let bad = one("volumeMounts: [{name: e, mountPath: /d, subPath: \"../x\"}]");
    assert!(matches!(spec_of(&bad), Err(Error::SubPath { .. })));
    let bad = one("volumeMounts: [{name: e, mountPath: /d, subPathExpr: \"a$(NOPE)\"}]");
    assert_eq!(
        spec_of(&bad).unwrap_err().to_string(),
        "volumeMount \"e\": subPathExpr: missing value for \"NOPE\""
    );
    let bad = one("volumeMounts: [{name: zz, mountPath: /d}]");
    assert_eq!(spec_of(&bad), Err(Error::NoVolume("zz".into())));
}

#[test]
fn users_and_privileges() {
    let spec = spec_of(
        "{securityContext: {runAsUser: 5, fsGroup: 7, supplementalGroups: [9]}, containers: [{name: c, image: i,
         securityContext: {runAsUser: 6, allowPrivilegeEscalation: false, capabilities: {add: [cap_net_admin], drop: [ALL]}}}]}",
    )
    .unwrap();
    assert_eq!((spec.user.uid, spec.user.groups), (Some(6), vec![9, 7]));
    assert!(spec.security.no_new_privileges);
    assert_eq!(spec.security.add_caps, ["NET_ADMIN"]);
    assert_eq!(
        spec_of(&one("securityContext: {runAsNonRoot: true}")),
        Err(Error::Root)
    );
    assert!(spec_of(&one("securityContext: {runAsNonRoot: true, runAsUser: 1}")).is_ok());
}
