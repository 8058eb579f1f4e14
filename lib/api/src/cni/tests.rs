//! Rows for results, errors and lists.

use serde_json::{Map, json};

use super::*;

fn result() -> AddResult {
    serde_json::from_value(json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "0a:58:0a:01:00:01", "mtu": 1450},
            {"name": "veth1", "mac": "0a:58:0a:01:00:07"},
            {"name": "eth0", "mac": "0a:58:0a:01:00:02", "mtu": 1450, "sandbox": "/run/netns/p"}
        ],
        "ips": [
            {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2},
            {"address": "fd00:1::2/64", "gateway": "fd00:1::1", "interface": 2}
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "priority": 5}]
    }))
    .unwrap()
}

#[test]
fn results_are_written_as_the_version_wants() {
    let new = json!(result().in_version(Version::V1_1_0));
    assert_eq!(new["interfaces"][2]["mtu"], 1450);
    assert_eq!(new["ips"][1].get("version"), None);
    assert_eq!(new["routes"][0]["priority"], 5);
    let middle = json!(result().in_version(Version::V1_0_0));
    assert_eq!(middle["cniVersion"], "1.0.0");
    assert_eq!(middle["interfaces"][2].get("mtu"), None);
    assert_eq!(
        middle["routes"][0],
        json!({"dst": "0.0.0.0/0", "gw": "10.1.0.1"})
    );
    for version in [Version::V0_3_1, Version::V0_4_0] {
        let old = json!(result().in_version(version));
        assert_eq!(old["cniVersion"], version.as_str());
        assert_eq!(
            (&old["ips"][0]["version"], &old["ips"][1]["version"]),
            (&json!("4"), &json!("6"))
        );
    }
    // And back again.
    for version in Version::ALL.into_iter().filter(|v| *v >= Version::V0_3_0) {
        let text = json!(result().in_version(version)).to_string();
        let parsed: AddResult = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed, result().in_version(version));
    }
}

#[test]
fn old_versions_have_one_address_of_each_family() {
    let mut many = result();
    many.ips.push(many.ips[0].clone());
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let old = many.clone().written(version).unwrap();
        let wants = json!({
            "cniVersion": version.as_str(),
            "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
            "ip6": {"ip": "fd00:1::2/64", "gateway": "fd00:1::1"},
            "dns": {}
        });
        assert_eq!(old, wants);
        // What comes back has what the old form can say.
        let read = AddResult::read(&old).unwrap();
        assert_eq!(read.addresses_of("eth0"), result().addresses_of("eth0"));
        assert_eq!(read.written(version).unwrap(), wants);
    }
    let nothing = AddResult::default();
    assert_eq!(nothing.clone().written(Version::V0_2_0), Err(NoAddress));
    assert_eq!(
        nothing.written(Version::V0_3_0).unwrap()["cniVersion"],
        "0.3.0"
    );
    assert!(AddResult::read(&json!({"ip4": {"ip": 7}, "cniVersion": "0.2.0"})).is_err());
    let same = AddResult::read(&json!(result())).unwrap();
    assert_eq!(same, result());
}

#[test]
fn addresses_of_an_interface() {
    let nets = result().addresses_of("eth0");
    assert_eq!(
        nets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.2/24", "fd00:1::2/64"]
    );
    assert!(result().addresses_of("cni0").is_empty());
}

#[test]
fn errors_have_the_specified_form() {
    let mut error = Error::new(ErrorCode::INVALID_CONFIG, "ipam.ranges: is empty");
    error.cni_version = "1.0.0".into();
    let json = json!({"cniVersion": "1.0.0", "code": 7, "msg": "ipam.ranges: is empty"});
    assert_eq!(json!(error), json);
    assert_eq!(serde_json::from_value::<Error>(json).unwrap(), error);
}

#[test]
fn a_list_becomes_one_input_for_each_plugin() {
    let list = ConfList::parse(
        &json!({
            "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "name": "pods",
            "plugins": [
                {"type": "seaway-cni", "bridge": "cni0"},
                {"type": "portmap", "capabilities": {"portMappings": true, "mac": false}}
            ]
        })
        .to_string(),
    )
    .unwrap();
    let offered = json!({"portMappings": [{"hostPort": 80}], "bandwidth": {}, "mac": "x"});
    let offered: Map<_, _> = offered.as_object().unwrap().clone();
    assert_eq!(
        list.plugin_input(0, &offered, None),
        json!({"type": "seaway-cni", "bridge": "cni0", "cniVersion": "1.1.0", "name": "pods"})
    );
    assert_eq!(
        list.plugin_input(1, &offered, Some(&AddResult::default())),
        json!({"type": "portmap", "cniVersion": "1.1.0", "name": "pods",
               "runtimeConfig": {"portMappings": [{"hostPort": 80}]}, "prevResult": {"dns": {}}})
    );
    let valid = Attachment {
        container_id: "c1".into(),
        ifname: "eth0".into(),
    };
    assert_eq!(
        list.gc_input(1, &[valid])[VALID_ATTACHMENTS],
        json!([{"containerID": "c1", "ifname": "eth0"}])
    );
}

#[test]
fn lists_that_cannot_be_used_name_the_field() {
    for (conf, wants) in [
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}),
            "plugins: must name",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "", "plugins": [{"type": "x"}]}),
            "name: must be a name",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}),
            "plugins[0].type: must",
        ),
        (
            json!({"cniVersion": "7", "name": "n", "plugins": [{"type": "x"}]}),
            "cniVersion: CNI",
        ),
        (
            json!({"cniVersion": "1.0.0", "plugins": [{"type": "x"}]}),
            "missing field `name`",
        ),
    ] {
        let error = ConfList::parse(&conf.to_string()).unwrap_err().to_string();
        assert!(error.starts_with(wants), "{conf}: {error}");
    }
    // libcni's way with booleans.
    let quoted = json!({"name": "n", "disableGC": "TRUE", "disableCheck": "false",
        "plugins": [{"type": "x"}]});
    let list = ConfList::parse(&quoted.to_string()).unwrap();
    assert_eq!((list.disable_gc, list.disable_check), (true, false));
    assert_eq!(list.cni_version, "0.2.0");
    let odd = json!({"name": "n", "disableGC": 1, "plugins": [{"type": "x"}]});
    let error = ConfList::parse(&odd.to_string()).unwrap_err().to_string();
    assert!(error.contains("must be true or false, not 1"), "{error}");
    // A single plugin's configuration is a list of one.
    let one = json!({"cniVersion": "0.4.0", "name": "n", "type": "ptp", "mtu": 9});
    let list = ConfList::parse(&one.to_string()).unwrap();
    assert_eq!(
        (list.plugin_type(0), list.plugin_input(0, &Map::new(), None)),
        (Some("ptp"), one)
    );
}

/// Row N11 of the specification: plugins beside the list, by the network's name.
#[test]
fn plugins_beside_the_list_come_behind_it_unless_it_is_complete() {
    let beside = |name: &str| match name {
        "n" => Ok(vec![
            r#"{"type":"b"}"#.to_owned(),
            r#"{"type":"c"}"#.to_owned(),
        ]),
        "odd" => Ok(vec![r#"{"mtu":9}"#.to_owned()]),
        _ => Err("read odd: no".to_owned()),
    };
    let row = |conf: serde_json::Value, wanted: Result<&[&str], &str>| {
        let list = ConfList::parse_with(&conf.to_string(), beside);
        let types = list.map(|list| {
            let all = (0..list.plugins.len()).filter_map(|at| list.plugin_type(at));
            all.map(str::to_owned).collect::<Vec<_>>()
        });
        let wanted = wanted.map(|all| all.iter().map(|t| (*t).to_owned()).collect());
        assert_eq!(
            types.map_err(|e| e.to_string()),
            wanted.map_err(str::to_owned),
            "{conf}"
        );
    };
    let a = json!([{"type": "a"}]);
    row(json!({"name": "n", "plugins": a}), Ok(&["a", "b", "c"]));
    row(json!({"name": "n"}), Ok(&["b", "c"]));
    row(
        json!({"name": "n", "loadOnlyInlinedPlugins": true, "plugins": a}),
        Ok(&["a"]),
    );
    row(
        json!({"name": "n", "loadOnlyInlinedPlugins": true}),
        Err("plugins: must name at least one plugin"),
    );
    row(json!({"name": "n", "type": "a"}), Ok(&["a"]));
    let why = "plugins[1].type: must be the name of a program";
    row(json!({"name": "odd", "plugins": a}), Err(why));
    row(json!({"name": "gone", "plugins": a}), Err("read odd: no"));
    row(
        json!({"name": "../n", "plugins": a}),
        Err("name: must be a name"),
    );
}
