//! Configurations as flannel's documentation has them, and broken ones.

use super::*;

#[track_caller]
fn check(text: &str, expect: Result<&str, &str>) {
    let said = parse(text).map(|conf| {
        let cuts: Vec<String> = conf
            .cuts
            .iter()
            .map(|c| format!("{} /{} {}..{}", c.whole, c.length, c.range.0, c.range.1))
            .collect();
        format!("{} {:?}", cuts.join(", "), conf.backend)
    });
    let said = said.as_deref().map_err(String::as_str);
    assert_eq!(said, expect, "{text}");
}

#[test]
fn configurations() {
    let vxlan = r#""Backend":{"Type":"vxlan"}"#;
    check(
        &format!(r#"{{"Network":"10.244.0.0/16",{vxlan}}}"#),
        Ok(
            "10.244.0.0/16 /24 10.244.1.0..10.244.255.0 Vxlan(Vxlan { vni: 1, port: 8472, gbp: false, learning: false, direct_routing: false, mtu: None })",
        ),
    );
    check(
        r#"{"network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0",
            "Backend":{"type":"VXLAN","VNI":7,"Port":4789,"GBP":true,"Learning":true,"DirectRouting":true,"MTU":9000}}"#,
        Ok(
            "10.0.0.0/8 /20 10.10.0.0..10.99.0.0 Vxlan(Vxlan { vni: 7, port: 4789, gbp: true, learning: true, direct_routing: true, mtu: Some(9000) })",
        ),
    );
    check(
        r#"{"EnableIPv6":true,"Network":"10.244.0.0/24","IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#,
        Ok(
            "10.244.0.0/24 /26 10.244.0.64..10.244.0.192, fd00:10:244::/48 /64 fd00:10:244:1::..fd00:10:244:ffff:: HostGw(HostGw { mtu: None })",
        ),
    );
    check(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8::/120","Backend":{"Type":"wireguard","Mode":"auto"}}"#,
        Ok(
            "2001:db8::/120 /122 2001:db8::40..2001:db8::c0 WireGuard(WireGuard { port: 51820, port_v6: 51821, psk: None, mode: Auto, keepalive: 0, mtu: None, key_file: \"/var/lib/seaway/overlay/wireguard.key\", private: None, public: None })",
        ),
    );
}

#[test]
fn what_is_wrong_is_named() {
    let with = |rest: &str| format!(r#"{{"Backend":{{"Type":"vxlan"}}{rest}}}"#);
    for (text, expect) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        (
            r#"{"Network":"10.0.0.0/8"}"#,
            "Backend: missing, which means \"udp\" to flannel; say vxlan, host-gw or wireguard",
        ),
        (
            r#"{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}"#,
            "Backend.Type: \"udp\" is not supported; vxlan, host-gw and wireguard are",
        ),
        (&with(""), "Network: missing"),
        (
            &with(r#","Network":"10.0.0.0""#),
            "Network: \"10.0.0.0\" is not a network (ADDRESS/LENGTH)",
        ),
        (
            &with(r#","Network":"fd00::/48""#),
            "Network: fd00::/48 is not IPv4",
        ),
        (
            &with(r#","EnableIPv4":false"#),
            "EnableIPv4 and EnableIPv6: both are off",
        ),
        (
            &with(r#","Network":"10.0.0.0/29""#),
            "Network: 10.0.0.0/29 is too small",
        ),
        (
            &with(r#","Network":"10.0.0.0/16","SubnetLen":17"#),
            "SubnetLen: 17 is not in 18..=30",
        ),
        (
            &with(r#","Network":"10.0.0.0/16","SubnetMin":"10.1.0.0""#),
            "SubnetMin: \"10.1.0.0\" is not in 10.0.0.0/16",
        ),
        (
            &with(r#","Network":"10.0.0.0/16","SubnetMax":"10.0.9.1""#),
            "SubnetMax: 10.0.9.1 is not the start of a /24",
        ),
        (
            &with(r#","Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0""#),
            "SubnetMin: 10.0.9.0 is above SubnetMax",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
            "Backend.VNI: 16777216 is not in 1..16777216",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Port":"x"}}"#,
            "Backend: invalid type: string \"x\", expected u16",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"wireguard","PSK":"secret"}}"#,
            "Backend.PSK: not a key of 32 bytes in base64",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"wireguard","Mode":"x"}}"#,
            "Backend.Mode: \"x\" is not separate, auto, ipv4 or ipv6",
        ),
    ] {
        check(text, Err(expect));
    }
}

#[test]
fn networks_of_nodes() {
    let conf = parse(r#"{"Network":"10.244.0.0/22","Backend":{"Type":"host-gw"}}"#).unwrap();
    let all: Vec<String> = conf.cuts[0].networks().map(|net| net.to_string()).collect();
    assert_eq!(all, ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
    let has = |text: &str| conf.cuts[0].has(&text.parse().unwrap());
    assert!(has("10.244.3.0/24") && !has("10.244.0.0/24") && !has("10.244.1.0/25"));
    assert!(!has("fd00::/24"));
}
