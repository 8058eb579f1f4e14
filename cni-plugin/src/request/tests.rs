//! Rows for what is read, and for what is said of what is wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use std::net::IpAddr;

use super::*;

/// Variables of an ordinary ADD, with changes.
fn env(changes: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let usual = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/p"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    for (key, value) in usual.iter().chain(changes) {
        env.insert((*key).to_owned(), (*value).to_owned());
    }
    env
}

/// The least configuration, with `changes` merged in (null removes).
fn conf(changes: Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "seaway-cni",
        "ipam": {"type": "seaway", "ranges": [[{"subnet": "10.1.0.0/24"}]]}
    });
    merge(&mut conf, changes);
    conf
}

fn merge(into: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else {
        return;
    };
    for (key, value) in changes {
        match into.get_mut(&key) {
            Some(there @ Value::Object(_)) if value.is_object() => merge(there, value),
            _ => {
                into[key] = value;
            }
        }
    }
}

fn parse(command: Command, vars: &[(&str, &str)], conf: &Value) -> Result<Request, Error> {
    let env = env(vars);
    Request::parse(Role::Seaway, command, &|name| env.get(name).cloned(), conf)
}

#[track_caller]
fn refused(command: Command, vars: &[(&str, &str)], conf: &Value, code: ErrorCode, msg: &str) {
    let error = parse(command, vars, conf).unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (code, msg), "{conf}");
}

#[test]
fn defaults() {
    let request = parse(Command::Add, &[], &conf(json!({}))).unwrap();
    assert_eq!(request.version, Version::V1_1_0);
    let ipam = request.net.ipam.unwrap();
    assert_eq!(ipam.data_dir.to_str(), Some("/var/lib/cni/networks"));
    expect_test::expect![[r#"
        BridgeConf {
            name: "cni0",
            mtu: None,
            gateway: true,
            default_route: true,
            force_address: false,
            hairpin: true,
            promisc: false,
            isolated: false,
            check_mac: false,
            detect_duplicates: false,
            container_interface: true,
            vlans: None,
        }
    "#]]
    .assert_debug_eq(&request.net.bridge);
    let range = &ipam.sets[0].ranges()[0];
    assert_eq!(range.to_string(), "10.1.0.1-10.1.0.254");
    assert_eq!(range.gateway.to_string(), "10.1.0.1");
}

/// Each row: changes of an ordinary configuration, and what is said of them.
#[track_caller]
fn check(rows: &[(Value, ErrorCode, &str)]) {
    for (changes, code, msg) in rows {
        refused(Command::Add, &[], &conf(changes.clone()), *code, msg);
    }
}

const IDENTIFIER: &str =
    "name: must start with a letter or digit and hold only those, '.', '-' and '_'";
const CONFIG: ErrorCode = ErrorCode::INVALID_CONFIG;
const DECODE: ErrorCode = ErrorCode::DECODE;
const UNSUPPORTED: ErrorCode = ErrorCode::UNSUPPORTED_FIELD;

#[test]
fn fields_that_are_wrong_are_named() {
    let versions = "is not one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
    let new = format!("cniVersion: CNI version \"2.0.0\" {versions}");
    check(&[
        (
            json!({"cniVersion": "2.0.0"}),
            ErrorCode::INCOMPATIBLE_VERSION,
            &new,
        ),
        (json!({"name": null}), CONFIG, IDENTIFIER),
        (json!({"name": "../x"}), CONFIG, IDENTIFIER),
        (
            json!({"bridge": "a-name-that-is-long"}),
            CONFIG,
            "bridge: is longer than 15 bytes",
        ),
        (
            json!({"bridge": 7}),
            DECODE,
            "bridge: must be a text, not 7",
        ),
        (
            json!({"mtu": -1}),
            DECODE,
            "mtu: must be a whole number, not -1",
        ),
        (json!({"mtu": 12}), CONFIG, "mtu: must be from 68 to 65535"),
        (
            json!({"hairpinMode": 1}),
            DECODE,
            "hairpinMode: must be true or false, not 1",
        ),
        (
            json!({"hairpinMode": true, "promiscMode": true}),
            CONFIG,
            "promiscMode: cannot be set together with hairpinMode",
        ),
        (
            json!({"hairpin": true}),
            UNSUPPORTED,
            "hairpin: no such field",
        ),
        (
            json!({"ipMasqBackend": "pf"}),
            CONFIG,
            "ipMasqBackend: \"pf\" is neither nftables nor iptables",
        ),
        (
            json!({"vlan": 4095}),
            CONFIG,
            "vlan: must be from 1 to 4094, not 4095",
        ),
        (
            json!({"vlanTrunk": [{"id": 3}, {"minID": 9, "maxID": 8}]}),
            CONFIG,
            "vlanTrunk[1].minID: is larger than maxID",
        ),
        (
            json!({"vlanTrunk": [{"minID": 9}]}),
            CONFIG,
            "vlanTrunk[0].maxID: must be set as minID is",
        ),
        (
            json!({"vlanTrunk": [{}]}),
            CONFIG,
            "vlanTrunk[0]: names no VLAN",
        ),
        (
            json!({"disableContainerInterface": true}),
            CONFIG,
            "disableContainerInterface: cannot be set together with ipam",
        ),
        (
            json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}),
            CONFIG,
            "runtimeConfig.mac: is a group address",
        ),
        (
            json!({"runtimeConfig": {"ips": ["x"]}}),
            CONFIG,
            "runtimeConfig.ips[0]: is not an IP address",
        ),
        (
            json!({"args": {"cni": {"ips": [4]}}}),
            DECODE,
            "args.cni.ips[0]: must be a text, not 4",
        ),
    ]);
}

#[test]
fn fields_of_ipam_that_are_wrong_are_named() {
    check(&[
        (
            json!({"ipam": {"type": "../dhcp"}}),
            CONFIG,
            "ipam.type: \"../dhcp\" is no name of a program",
        ),
        (
            json!({"ipam": {"type": null}}),
            CONFIG,
            "ipam.type: must be set",
        ),
        (
            json!({"ipam": []}),
            DECODE,
            "ipam: must be an object, not []",
        ),
        (
            json!({"ipam": {"ranges": []}}),
            CONFIG,
            "ipam.ranges: must name at least one range",
        ),
        (
            json!({"ipam": {"range": 1}}),
            UNSUPPORTED,
            "ipam.range: no such field",
        ),
        (
            json!({"ipam": {"dataDir": "here"}}),
            CONFIG,
            "ipam.dataDir: must be an absolute path",
        ),
        (
            json!({"ipam": {"routes": [{"gw": "10.1.0.1"}]}}),
            CONFIG,
            "ipam.routes[0].dst: must be set",
        ),
        (
            json!({"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}}),
            CONFIG,
            "ipam.routes[0].gw: is not of the destination's family",
        ),
    ]);
}

#[test]
fn ranges_that_are_wrong_are_named() {
    let small = "ipam.ranges[0][0].subnet: is too small to hold a gateway and a pod";
    let rows = [
        (json!([[]]), "ipam.ranges[0]: must name at least one range"),
        (json!([[{}]]), "ipam.ranges[0][0].subnet: must be set"),
        (
            json!([[{"subnet": "10.1.0.0"}]]),
            "ipam.ranges[0][0].subnet: \"10.1.0.0\" is not a network like 10.1.0.0/16",
        ),
        (
            json!([[{"subnet": "10.1.0.5/24"}]]),
            "ipam.ranges[0][0].subnet: has bits of a host set; the network is 10.1.0.0/24",
        ),
        (json!([[{"subnet": "10.1.0.0/31"}]]), small),
        (json!([[{"subnet": "fd00::/127"}]]), small),
        (
            json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}]]),
            "ipam.ranges[0][0].rangeStart: 10.2.0.1 is not in 10.1.0.0/24",
        ),
        (
            json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}]]),
            "ipam.ranges[0][0].rangeStart: 10.1.0.9 comes after rangeEnd 10.1.0.8",
        ),
        (
            json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]),
            "ipam.ranges[0]: mixes IPv4 and IPv6; give each a set of its own",
        ),
        (
            json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.128/25"}]]),
            "ipam.ranges[0]: 10.1.0.1-10.1.0.254 and 10.1.0.129-10.1.0.254 overlap",
        ),
        (
            json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]),
            "ipam.ranges: 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.126 overlap",
        ),
    ];
    for (ranges, msg) in rows {
        refused(
            Command::Add,
            &[],
            &conf(json!({"ipam": {"ranges": ranges}})),
            CONFIG,
            msg,
        );
    }
}

#[test]
fn variables_that_are_wrong_are_named() {
    let id = "must start with a letter or digit and hold only those, '.', '-' and '_'";
    let rows = [
        (
            "CNI_CONTAINERID",
            "",
            "CNI_CONTAINERID: must be set".to_owned(),
        ),
        ("CNI_CONTAINERID", "-x", format!("CNI_CONTAINERID: {id}")),
        ("CNI_CONTAINERID", "a/b", format!("CNI_CONTAINERID: {id}")),
        ("CNI_NETNS", "", "CNI_NETNS: must be set".to_owned()),
        ("CNI_IFNAME", "", "CNI_IFNAME: must be set".to_owned()),
        (
            "CNI_IFNAME",
            "sixteen-bytes-it",
            "CNI_IFNAME: is longer than 15 bytes".to_owned(),
        ),
        (
            "CNI_IFNAME",
            "..",
            "CNI_IFNAME: cannot be the name of an interface".to_owned(),
        ),
        (
            "CNI_IFNAME",
            "a b",
            "CNI_IFNAME: must not hold '/', ':' or blanks".to_owned(),
        ),
        (
            "CNI_ARGS",
            "IP",
            "CNI_ARGS: \"IP\" is not KEY=VALUE".to_owned(),
        ),
        (
            "CNI_ARGS",
            "IP=x",
            "CNI_ARGS: IP: \"x\" is not an IP address".to_owned(),
        ),
        (
            "CNI_ARGS",
            "MAC=x",
            "CNI_ARGS: MAC: \"x\" is not a hardware address".to_owned(),
        ),
        (
            "CNI_ARGS",
            "FOO=x",
            "CNI_ARGS: unknown key \"FOO\"".to_owned(),
        ),
    ];
    for (name, value, msg) in rows {
        let conf = conf(json!({}));
        refused(
            Command::Add,
            &[(name, value)],
            &conf,
            ErrorCode::INVALID_ENVIRONMENT,
            &msg,
        );
    }
    let error = Command::parse(&|_| None).unwrap_err();
    assert_eq!(error.msg, "CNI_COMMAND: must be set");
}

#[test]
fn the_later_place_of_a_wish_counts_more() {
    let mac = |changes: Value| {
        let vars = [(
            "CNI_ARGS",
            "IgnoreUnknown=1;MAC=0a:00:00:00:00:01;FOO=1;IP=10.1.0.9/24",
        )];
        match parse(Command::Add, &vars, &conf(changes)).unwrap().verb {
            Verb::Add(pod) => (pod.mac.unwrap().to_string(), pod.ips),
            other => panic!("{other:?}"),
        }
    };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(
        mac(json!({})),
        ("0a:00:00:00:00:01".into(), vec![ip("10.1.0.9")])
    );
    let args = json!({"cni": {"mac": "0a:00:00:00:00:02", "ips": ["10.1.0.7"]}});
    assert_eq!(mac(json!({"args": args})).0, "0a:00:00:00:00:02");
    let runtime = json!({"mac": "0a:00:00:00:00:03", "ips": ["fd00::5/64"]});
    let (mac, ips) = mac(json!({"args": args, "runtimeConfig": runtime}));
    assert_eq!(mac, "0a:00:00:00:00:03");
    assert_eq!(ips, [ip("10.1.0.7"), ip("10.1.0.9"), ip("fd00::5")]);
}

#[test]
fn the_runtimes_name_servers_count_more() {
    let dns = |changes: Value| parse(Command::Add, &[], &conf(changes)).unwrap().net.dns;
    let own = json!({"dns": {"nameservers": ["10.96.0.10"], "domain": "a"}});
    assert_eq!(dns(own.clone()).nameservers, ["10.96.0.10"]);
    let mut both = own;
    both["runtimeConfig"] = json!({"dns": {"servers": ["10.0.0.1"], "searches": ["a.b"]}});
    let wished = dns(both);
    assert_eq!(
        (wished.nameservers, wished.search),
        (vec!["10.0.0.1".to_owned()], vec!["a.b".to_owned()])
    );
    assert_eq!(wished.domain, "");
}

#[test]
fn ports_and_rates_that_are_wrong_are_named() {
    let row = |runtime: Value| json!({"runtimeConfig": runtime});
    let ports = |mapping: Value| row(json!({"portMappings": mapping}));
    check(&[
        (
            ports(json!([{"hostPort": 0, "containerPort": 1}])),
            CONFIG,
            "runtimeConfig.portMappings[0].hostPort: must be from 1 to 65535, not 0",
        ),
        (
            ports(json!([{"hostPort": 1, "containerPort": 65536}])),
            CONFIG,
            "runtimeConfig.portMappings[0].containerPort: must be from 1 to 65535, not 65536",
        ),
        (
            ports(json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}])),
            CONFIG,
            "runtimeConfig.portMappings[0].protocol: \"icmp\" is none of tcp, udp, sctp",
        ),
        (
            ports(json!([{"hostPort": 1, "containerPort": 1, "hostIP": "x"}])),
            CONFIG,
            "runtimeConfig.portMappings[0].hostIP: \"x\" is not an IP address",
        ),
        (
            ports(
                json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]),
            ),
            CONFIG,
            "runtimeConfig.portMappings: host port 1/tcp leads to two ports",
        ),
        (
            json!({"conditionsV4": ["!", "-d", "192.0.2.0/24"],
                   "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1}]}}),
            UNSUPPORTED,
            "conditionsV4: needs backend \"iptables\"",
        ),
        (
            json!({"markMasqBit": 32}),
            CONFIG,
            "markMasqBit: must be from 0 to 31",
        ),
        (
            row(json!({"bandwidth": {"ingressRate": 8}})),
            CONFIG,
            "runtimeConfig.bandwidth.ingressBurst: must be set as the rate is",
        ),
        (
            row(json!({"bandwidth": {"egressRate": 8, "egressBurst": 34_359_738_368u64}})),
            CONFIG,
            "runtimeConfig.bandwidth.egressBurst: must be less than 4 GiB",
        ),
    ]);
    // As containerd writes it.
    let containerd = row(json!({
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        "bandwidth": {"IngressRate": 8000, "IngressBurst": 4_294_967_295u32, "EgressRate": 0,
                      "EgressBurst": 0}
    }));
    let net = parse(Command::Add, &[], &conf(containerd)).unwrap().net;
    assert_eq!(
        (net.ports.mappings[0].host_port, net.shaping.egress),
        (8080, None)
    );
    assert_eq!(net.shaping.ingress.unwrap().rate, 1000);
    // What a runtime says that has no limits.
    let none = row(json!({"bandwidth": {"ingressRate": 0, "ingressBurst": 0}}));
    let net = parse(Command::Add, &[], &conf(none)).unwrap().net;
    assert!(net.shaping.is_empty());
}

#[test]
fn each_verb_takes_what_it_needs() {
    // DEL has neither a namespace nor a previous result to rely on.
    let request = parse(Command::Del, &[("CNI_NETNS", "")], &conf(json!({}))).unwrap();
    assert!(matches!(request.verb, Verb::Del { netns: None, .. }));
    // Nor do older forms and foreign keys stand in the way.
    let old = json!({
        "cniVersion": "0.3.1", "io.example/x": 1, "_hint": 2, "ipMasq": false, "vlan": 0,
        "ipam": {"ranges": null, "subnet": "10.2.0.0/16", "gateway": "10.2.0.254", "type": "host-local"}
    });
    let request = parse(Command::Del, &[], &conf(old)).unwrap();
    let ipam = request.net.ipam.unwrap();
    assert_eq!(ipam.sets[0].ranges()[0].gateway.to_string(), "10.2.0.254");

    let invalid = ErrorCode::INVALID_CONFIG;
    refused(
        Command::Check,
        &[],
        &conf(json!({})),
        invalid,
        "prevResult: CHECK needs the result of ADD",
    );
    let early = conf(json!({"cniVersion": "0.3.1", "prevResult": {}}));
    let msg = "cniVersion: Check needs at least version 0.4.0, this is 0.3.1";
    refused(
        Command::Check,
        &[],
        &early,
        ErrorCode::INCOMPATIBLE_VERSION,
        msg,
    );
    let msg = "cni.dev/valid-attachments: GC needs the list of attachments to keep";
    refused(Command::Gc, &[], &conf(json!({})), invalid, msg);
    let list = json!({VALID_ATTACHMENTS: [{"containerID": "a", "ifname": "eth0"}]});
    let request = parse(Command::Gc, &[], &conf(list)).unwrap();
    let keep = Attachment {
        container_id: "a".into(),
        ifname: "eth0".into(),
    };
    assert_eq!(request.verb, Verb::Gc(vec![keep]));
    // No addresses at all.
    let request = parse(Command::Add, &[], &conf(json!({"ipam": null}))).unwrap();
    assert_eq!(request.net.ipam, None);
}

#[test]
fn input_that_is_not_json_is_said_to_be() {
    let error = parse_input(b"{\"a\"").unwrap_err();
    assert_eq!(error.code, ErrorCode::DECODE);
    assert!(
        error
            .msg
            .starts_with("the configuration on standard input is not JSON: ")
    );
    let error = parse(Command::Add, &[], &json!([])).unwrap_err();
    assert_eq!(error.msg, "the configuration: must be an object, not []");
}

/// Any JSON, shallow, with the keys and values that matter among the others.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "1.1.0",
        "pods",
        "seaway",
        "10.1.0.0/24",
        "fd00::/64",
        "10.1.0.7",
        "::",
        "",
        "/",
        "0/0",
        "\u{e9}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "subnet",
        "rangeStart",
        "gateway",
        "ranges",
        "routes",
        "dst",
        "gw",
        "type",
        "cni",
        "ips",
        "mac",
        "dataDir",
        "nameservers",
        "containerID",
        "ifname",
        "ipRanges",
    ]);
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let object = prop::collection::btree_map(keys.clone(), inner.clone(), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    /// Whatever stands in a configuration, it is read or refused with a code and some words.
    #[test]
    fn nothing_makes_the_reader_fall_over(
        key in prop::sample::select(vec![
            "cniVersion", "name", "bridge", "mtu", "ipam", "dns", "prevResult", "runtimeConfig",
            "args", "vlan", "vlanTrunk", "ipMasq", VALID_ATTACHMENTS,
        ]),
        value in any_json(),
        command in prop::sample::select(vec![
            Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status,
        ]),
    ) {
        let mut conf = conf(json!({}));
        conf[key] = value;
        if let Err(error) = parse(command, &[], &conf) {
            prop_assert!(error.code.0 < 100 && !error.msg.is_empty());
        }
    }
}
