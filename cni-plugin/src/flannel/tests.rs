//! Rows for flannel's file and for what is made of it.

use super::*;

const BOTH: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:10::/56\nFLANNEL_IPV6_SUBNET=fd00:10:0:3::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn made(conf: Value, env: &str) -> Value {
    let mut whole = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"});
    for (key, value) in conf.as_object().unwrap() {
        whole[key] = value.clone();
    }
    Flannel::parse(&whole)
        .unwrap()
        .delegate(&SubnetEnv::parse(env).unwrap())
}

#[test]
fn only_what_the_user_left_out_is_filled_in() {
    assert_eq!(
        made(json!({}), BOTH),
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "ipMasq": false, "mtu": 1450,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.3.0/24"}], [{"subnet": "fd00:10:0:3::/64"}]],
                "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:10::/56"}]
            }
        })
    );
    let own = made(
        json!({
            "runtimeConfig": {"mac": "x"},
            "ipam": {"type": "dhcp", "routes": [{"dst": "10.0.0.0/8"}]},
            "delegate": {"type": "macvlan", "mtu": 9000, "ipMasq": true, "master": "eth0"}
        }),
        &BOTH.replace("true", "false"),
    );
    assert_eq!(
        own,
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "runtimeConfig": {"mac": "x"},
            "type": "macvlan", "mtu": 9000, "ipMasq": true, "master": "eth0",
            "ipam": {"type": "dhcp", "routes": [
                {"dst": "10.0.0.0/8"}, {"dst": "10.244.0.0/16"}, {"dst": "fd00:10::/56"}
            ]}
        })
    );
    assert_eq!(
        made(json!({}), &BOTH.replace("IPMASQ=true", "IPMASQ=false"))["ipMasq"],
        true
    );
    let several = BOTH.replace("10.244.0.0/16", "10.244.0.0/16,10.245.0.0/16");
    assert_eq!(
        made(json!({}), &several)["ipam"]["routes"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (text, wants) in [
        ("", "FLANNEL_MTU: missing"),
        ("FLANNEL_MTU=x", "FLANNEL_MTU: \"x\""),
        ("FLANNEL_MTU=1", "FLANNEL_IPMASQ: missing"),
        (
            "FLANNEL_MTU=1\nFLANNEL_IPMASQ=true",
            "FLANNEL_NETWORK and FLANNEL_IPV6_NETWORK: missing",
        ),
        (
            "FLANNEL_MTU=1\nFLANNEL_IPMASQ=true\nFLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=x",
            "FLANNEL_SUBNET: \"x\" is no network",
        ),
    ] {
        assert_eq!(SubnetEnv::parse(text).unwrap_err(), wants);
    }
    let error = Flannel::parse(&json!({"delegate": {"name": "x"}})).unwrap_err();
    assert!(
        error.msg.starts_with("delegate.name: is the network's"),
        "{error}"
    );
    let missing = Flannel::parse(&json!({"subnetFile": "/no/such"})).unwrap();
    let error = missing.subnet_env().unwrap_err();
    assert_eq!(error.code, ErrorCode::TRY_AGAIN);
}

#[test]
fn what_a_container_was_added_with_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("flannel");
    assert_eq!(recall(&dir, "c1").unwrap(), None);
    remember(&dir, "c1", &json!({"type": "bridge"})).unwrap();
    assert_eq!(recall(&dir, "c1").unwrap(), Some(json!({"type": "bridge"})));
    fs::write(dir.join("c1"), "{").unwrap();
    assert_eq!(recall(&dir, "c1").unwrap(), None);
    forget(&dir, "c1").unwrap();
    forget(&dir, "c1").unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}
