use super::*;

#[track_caller]
fn check_ip(text: &str, expect: Option<&str>) {
    assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), expect);
}

#[test]
fn addresses_are_read_as_decimal() {
    check_ip("172.030.099.011", Some("172.30.99.11"));
    check_ip("000.0.0.00", Some("0.0.0.0"));
    check_ip("1.2.3.4", Some("1.2.3.4"));
    check_ip("1.2.3", None);
    check_ip("1.2.3.4.5", None);
    check_ip("1.2.3.256", None);
    check_ip("1.2.3.0x4", None);
    check_ip("1.2.3.+4", None);
    check_ip("", None);
    check_ip("fd00::a", Some("fd00::a"));
    check_ip("::ffff:10.0.0.1", Some("10.0.0.1"));
    check_ip("::ffff:010.0.0.01", Some("10.0.0.1"));
    check_ip("fd00::g", None);
    check_ip("fe80::1%eth0", None);
}

#[track_caller]
fn check_net(text: &str, expect: Option<&str>) {
    let net = parse_cidr(text).ok().map(|net| net.to_string());
    assert_eq!(net.as_deref(), expect);
}

#[test]
fn networks_are_cut_to_their_length() {
    check_net("10.0.0.7/8", Some("10.0.0.0/8"));
    check_net(" 203.0.113.0/25", Some("203.0.113.0/25"));
    check_net("010.000.0.0/08", Some("10.0.0.0/8"));
    check_net("fd00:10:244::1/56", Some("fd00:10:244::/56"));
    check_net("0.0.0.0/0", Some("0.0.0.0/0"));
    check_net("10.0.0.0", None);
    check_net("10.0.0.0/33", None);
    check_net("10.0.0.0/", None);
    check_net("10.0.0.0/-1", None);
    check_net("/8", None);
}

#[test]
fn nth_addresses() {
    let net = parse_cidr("10.96.0.0/16").unwrap();
    assert_eq!(nth_host(&net, 1).unwrap().to_string(), "10.96.0.1");
    assert_eq!(nth_host(&net, 65535).unwrap().to_string(), "10.96.255.255");
    assert_eq!(nth_host(&net, 65536), None);
    let net = parse_cidr("fd00:10:96::/112").unwrap();
    assert_eq!(nth_host(&net, 10).unwrap().to_string(), "fd00:10:96::a");
    assert_eq!(nth_host(&net, 1 << 16), None);
    let all = parse_cidr("::/0").unwrap();
    assert!(nth_host(&all, u128::MAX).is_some());
    assert_eq!(Family::V4.loopback().to_string(), "127.0.0.0/8");
}
