use std::os::unix::fs::PermissionsExt;

use super::*;

fn pod() -> PodId {
    PodId {
        uid: "u1".into(),
        namespace: "ns".into(),
        name: "web".into(),
    }
}

/// What is to be, with wishes of which plugins get their part.
fn planned(network: &NetworkList) -> Attachment {
    let wishes = json!({"portMappings": [{"hostPort": 8080}], "bandwidth": {"ingressRate": 1}});
    Attachment {
        network: network.clone(),
        netns: "/run/n".into(),
        result: Value::Null,
        wishes: wishes.as_object().unwrap().clone(),
    }
}

fn script(dir: &Path, name: &str, body: &str) {
    let file = dir.join(name);
    fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn plugins(dir: &Path, conflist: &str) -> Plugins {
    fs::write(dir.join("10-x.conflist"), conflist).unwrap();
    Plugins {
        conf_dir: dir.into(),
        bin_dir: dir.into(),
    }
}

const LIST: &str = r#"{"cniVersion":"1.1.0","name":"net","plugins":[
    {"type":"first","mtu":1450,"capabilities":{"portMappings":true}},{"type":"second"}]}"#;

#[test]
fn a_chain_hands_results_on_and_is_undone_backwards() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for (name, ip) in [("first", "10.0.0.1/24"), ("second", "10.0.0.2/24")] {
        let body = format!(
            "in=$(cat); echo \"{name} $CNI_COMMAND $CNI_IFNAME $CNI_CONTAINERID $CNI_ARGS $in\" >> {}\n\
             [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"{ip}\"}}]}}'; true",
            log.display()
        );
        script(dir.path(), name, &body);
    }
    let cni = plugins(dir.path(), LIST);
    let network = cni.current().unwrap();
    let attachment = cni.add(&planned(&network), &pod()).unwrap();
    assert_eq!(attachment.ips(), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    cni.del(&attachment, &pod()).unwrap();
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert!(
        lines[0].starts_with(
            "first ADD eth0 u1 IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;"
        )
    );
    assert!(lines[0].contains(r#""mtu":1450"#) && !lines[0].contains("capabilities"));
    // The first one maps ports, and only that; on the way out it is told again.
    let ports = r#""runtimeConfig":{"portMappings":[{"hostPort":8080}]}"#;
    assert!(
        lines[0].contains(ports) && lines[3].contains(ports),
        "{log}"
    );
    assert!(!lines[1].contains("runtimeConfig"), "{log}");
    assert!(
        lines[1]
            .contains(r#""prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/24"}]}"#)
    );
    assert!(lines[2].starts_with("second DEL") && lines[3].starts_with("first DEL"));
    assert!(lines[3].contains("10.0.0.2"));
}

#[test]
fn failures_speak_the_plugins_words() {
    let dir = tempfile::tempdir().unwrap();
    let cni = plugins(dir.path(), r#"{"name":"n","plugins":[{"type":"bad"}]}"#);
    let network = cni.current().unwrap();
    let add = || cni.add(&planned(&network), &pod()).unwrap_err().to_string();
    assert!(add().starts_with("plugin bad ADD: run "), "{}", add());
    script(
        dir.path(),
        "bad",
        "cat > /dev/null; echo '{\"code\":11,\"msg\":\"pool full\",\"details\":\"10.0.0.0/24\"}'; exit 1",
    );
    assert_eq!(add(), "plugin bad ADD: pool full (10.0.0.0/24)");
    script(dir.path(), "bad", "cat > /dev/null; echo oops >&2; exit 3");
    assert_eq!(add(), "plugin bad ADD: exit status: 3: oops");
    script(dir.path(), "bad", "cat > /dev/null; echo '{}'");
    assert_eq!(add(), "the network configuration n gave the pod no address");
}

#[test]
fn configurations_that_are_wrong_name_the_field() {
    for (text, why) in [
        ("{", "EOF"),
        (r#"{"plugins":[{"type":"a"}]}"#, "missing field `name`"),
        (r#"{"name":"n","plugins":[]}"#, "plugins: must name"),
        (
            r#"{"name":"n","plugins":[{"type":"../a"}]}"#,
            "plugins[0].type",
        ),
        (r#"{"name":"n"}"#, "plugins: must name"),
        (
            r#"{"name":"n","cniVersion":"9.0.0","plugins":[{"type":"a"}]}"#,
            "cniVersion",
        ),
    ] {
        let error = parse(text, |_| Ok(Vec::new())).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let empty = Plugins {
        conf_dir: dir.path().into(),
        bin_dir: dir.path().into(),
    };
    assert!(matches!(empty.current(), Err(Error::NotReady(_))));
}

/// Row N11: the newest version of all, and plugins in the network's directory beside the list.
#[test]
fn the_newest_version_and_plugins_beside_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let list = |more: &str| {
        let text = format!(
            r#"{{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.9.9"],"name":"net",{more}
            "plugins":[{{"type":"a"}}]}}"#
        );
        let network = plugins(dir.path(), &text).current().unwrap();
        let types = network.plugins.iter().map(|p| p["type"].to_string());
        (network.cni_version, types.collect::<Vec<_>>().join(" "))
    };
    let is = |types: &str| ("1.1.0".to_owned(), types.to_owned());
    assert_eq!(list(""), is(r#""a""#));
    let beside = dir.path().join("net");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("20-c.conf"), r#"{"type":"c"}"#).unwrap();
    fs::write(beside.join("10-b.conf"), r#"{"type":"b"}"#).unwrap();
    fs::write(beside.join("README"), "not a plugin").unwrap();
    assert_eq!(list(""), is(r#""a" "b" "c""#));
    assert_eq!(list(r#""loadOnlyInlinedPlugins":true,"#), is(r#""a""#));
}

#[test]
fn a_pods_wishes_are_its_host_ports_and_its_limits() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "annotations": {
            "kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "fast"
        }},
        "spec": {"containers": [
            {"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]},
            {"name": "b", "ports": [
                {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"}
            ]}
        ]}
    }))
    .unwrap();
    let (wishes, unread) = wishes(&pod);
    assert_eq!(
        Value::Object(wishes),
        json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}
            ],
            "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": u32::MAX}
        })
    );
    let why = "kubernetes.io/egress-bandwidth: \"fast\" is no rate in bits a second";
    assert_eq!(unread, [why]);
    assert!(super::wishes(&Pod::default()).0.is_empty());
}
