//! Keys and values as flannel writes them, and who gets which network.

use super::*;
use crate::overlay::netconf;

fn key(text: &str) -> LeaseKey {
    text.parse().unwrap()
}

#[test]
fn keys() {
    for text in ["10.244.1.0-24", "10.244.1.0-24&fd00:10:244:1::-64"] {
        assert_eq!(key(text).to_string(), text);
    }
    for bad in [
        "",
        "10.244.1.0",
        "10.244.1.0-33",
        "10.244.1.1-24",
        "10.244.1.0-0",
        "fd00::-64",
        "10.244.1.0-24&10.244.2.0-24",
        "10.244.1.0-24&",
    ] {
        assert!(bad.parse::<LeaseKey>().is_err(), "{bad}");
    }
}

#[test]
fn values_and_annotations() {
    let text = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}}"#;
    let attrs: Attrs = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&attrs).unwrap(), text);
    let annotations = attrs.annotations();
    assert_eq!(
        annotations[node::BACKEND_DATA],
        r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}"#
    );
    assert_eq!(annotations.len(), 4);
    // What is told comes back the same.
    let all = annotations
        .into_iter()
        .map(|(key, value)| (key, Some(value)));
    let blank = first(|_| Some([192, 0, 2, 1].into()), false).unwrap();
    assert_eq!(blank.changed(&all.collect()), attrs);
    let mut v6 = attrs.clone();
    v6.public_ipv6 = Some("2001:db8::1".parse().unwrap());
    v6.backend_v6_data = attrs.backend_data.clone();
    let text = serde_json::to_string(&v6).unwrap();
    assert!(text.contains(r#""PublicIPv6":"2001:db8::1","#), "{text}");
    // A family is taken back.
    let gone = [
        (node::BACKEND_V6_DATA.to_owned(), None),
        (node::PUBLIC_IPV6.to_owned(), None),
    ];
    assert_eq!(v6.changed(&gone.into()), attrs);
    // As flannel writes host-gw.
    let text = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#;
    let attrs: Attrs = serde_json::from_str(text).unwrap();
    assert_eq!(attrs.annotations()[node::BACKEND_DATA], "null");
    let null = [(node::BACKEND_DATA.to_owned(), Some("null".to_owned()))];
    assert_eq!(
        serde_json::to_string(&attrs.changed(&null.into())).unwrap(),
        text
    );
    // A reservation, which tells nothing yet.
    let bare: Attrs = serde_json::from_str(r#"{"PublicIP":"192.0.2.1"}"#).unwrap();
    let read = node("x", &key("10.244.1.0-24"), Some(&bare)).unwrap();
    assert_eq!(read.metadata.annotations.len(), 1);
}

fn conf(text: &str) -> NetConf {
    netconf::parse(text).unwrap()
}

#[test]
fn who_gets_which_network() {
    let small = conf(r#"{"Network":"10.244.0.0/22","Backend":{"Type":"vxlan"}}"#);
    let dual = conf(
        r#"{"Network":"10.244.0.0/22","EnableIPv6":true,"IPv6Network":"fd00::/62","Backend":{"Type":"vxlan"}}"#,
    );
    let leases = |rows: &[(&str, u8)]| -> Vec<(LeaseKey, Attrs)> {
        let row = |(text, last): &(&str, u8)| {
            let attrs = first(|_| Some([192, 0, 2, *last].into()), false).unwrap();
            (key(text), attrs)
        };
        rows.iter().map(row).collect()
    };
    let taken = &[("10.244.1.0-24", 1), ("10.244.3.0-24", 3)][..];
    let had = |text| Some(key(text));
    for (conf, rows, me, previous, seed, expect) in [
        (&small, taken, 1, None, 0, "10.244.1.0-24"),
        (&small, taken, 9, None, 5, "10.244.2.0-24"),
        (&small, &[], 9, None, 1, "10.244.2.0-24"),
        (&small, &[], 9, None, 2, "10.244.3.0-24"),
        (&small, &[], 9, had("10.244.3.0-24"), 0, "10.244.3.0-24"),
        // It had one that is another's, or that is not allowed.
        (&small, taken, 9, had("10.244.3.0-24"), 0, "10.244.2.0-24"),
        (&small, taken, 9, had("10.99.0.0-24"), 0, "10.244.2.0-24"),
        (&small, taken, 9, had("10.244.2.0-25"), 0, "10.244.2.0-24"),
        // Its own does not fit any more.
        (
            &small,
            &[("10.99.0.0-24", 9)],
            9,
            None,
            0,
            "10.244.1.0-24 -10.99.0.0-24",
        ),
        (
            &dual,
            taken,
            1,
            None,
            0,
            "10.244.2.0-24&fd00:0:0:1::-64 -10.244.1.0-24",
        ),
        (
            &dual,
            &[("10.244.2.0-24&fd00:0:0:1::-64", 2)],
            9,
            None,
            0,
            "10.244.1.0-24&fd00:0:0:2::-64",
        ),
    ] {
        let ip = [192, 0, 2, me].into();
        let choice = choose(conf, &leases(rows), ip, previous, seed).unwrap();
        let old = choice.outdated.map(|key| format!(" -{key}"));
        assert_eq!(format!("{}{}", choice.key, old.unwrap_or_default()), expect);
    }
    let full = leases(&[("10.244.0.0-22", 1)]);
    assert_eq!(
        choose(&small, &full, [192, 0, 2, 9].into(), None, 0).unwrap_err(),
        "no network of 10.244.0.0/22 is free"
    );
}

#[test]
fn the_last_run_is_remembered_by_its_file() {
    let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n\
        FLANNEL_IPV6_SUBNET=fd00:10:244:7::1/64\nFLANNEL_MTU=1430\n";
    assert_eq!(
        previous(text),
        Some(key("10.244.7.0-24&fd00:10:244:7::-64"))
    );
    assert_eq!(previous("FLANNEL_SUBNET=x\n"), None);
    assert_eq!(previous(""), None);
}
