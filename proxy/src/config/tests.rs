use clap::Parser;

use super::*;

fn config(flags: &[&str]) -> Result<Config, String> {
    let args = Args::try_parse_from([&["proxy"], flags].concat()).map_err(|e| e.to_string())?;
    Config::new(&args, args.configuration(), "Node-1").map_err(|e| e.to_string())
}

#[test]
fn defaults() {
    let config = config(&[]).unwrap();
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.from, From::ApiServer(None));
    assert_eq!(config.detect, Detect::Fixed(Vec::new()));
    assert_eq!(config.mark, 0x4000);
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.healthz.unwrap().to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:10249");
    assert_eq!((config.oom_score_adj, config.bind_hard_fail), (-999, false));
    assert!(config.localhost_node_ports && config.drop_invalid && !config.masquerade_all);
}

#[track_caller]
fn check_error(flags: &[&str], expect: &str) {
    let error = config(flags).unwrap_err();
    assert!(error.contains(expect), "{error}");
}

#[test]
fn errors_name_the_flag() {
    check_error(&["--mode", "x"], "--mode: \"x\" is unknown");
    check_error(
        &["--cluster-cidr", "10.0.0.0"],
        "--cluster-cidr: \"10.0.0.0\" is not",
    );
    check_error(
        &["--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"],
        "more than one IPv4",
    );
    check_error(&["--cluster-dns", "x"], "--cluster-dns: \"x\"");
    check_error(&["--healthz-bind-address", "x"], "--healthz-bind-address");
    check_error(&["--nodeport-addresses", "1.2.3.4"], "--nodeport-addresses");
    check_error(
        &["--detect-local-mode", "BridgeInterface"],
        "--pod-bridge-interface",
    );
    check_error(
        &["--iptables-masquerade-bit", "32"],
        "--iptables-masquerade-bit",
    );
    check_error(&["--oom-score-adj", "1001"], "--oom-score-adj");
    check_error(&["--iptables-sync-period", "5"], "--iptables-sync-period");
    check_error(&["--nonsense"], "--nonsense");
}

#[test]
fn flags_of_schedulers() {
    use linux::ipvs::Options;
    let of = |flags: &[&str]| config(flags).unwrap().ipvs.of_servers();
    let options = |fallback, hash_port| Options {
        fallback,
        hash_port,
        ..Options::default()
    };
    assert_eq!(of(&[]), options(false, false));
    assert_eq!(of(&["--ipvs-scheduler=sh"]), options(false, false));
    assert_eq!(of(&["--ipvs-scheduler=mh"]), options(false, true));
    for name in ["sh", "mh"] {
        let with = |flags: &str| {
            of(&[
                &format!("--ipvs-scheduler={name}"),
                &format!("--ipvs-scheduler-flags={flags}"),
            ])
        };
        assert_eq!(with(&format!("{name}-fallback")), options(true, false));
        assert_eq!(with(&format!("{name}-port")), options(false, true));
        let both = format!("{name}-port,{name}-fallback");
        assert_eq!(with(&both), options(true, true));
    }
    check_error(
        &["--ipvs-scheduler=mh", "--ipvs-scheduler-flags=sh-port"],
        "--ipvs-scheduler-flags: \"sh-port\" is none of mh-fallback, mh-port",
    );
    check_error(
        &["--ipvs-scheduler-flags=mh-port"],
        "--ipvs-scheduler-flags: \"mh-port\": scheduler rr has no flags",
    );
    check_error(
        &["--ipvs-scheduler=xx"],
        "is none of rr, wrr, lc, wlc, lblc",
    );
    let text = "ipvs: {scheduler: sh, schedulerFlags: [sh-fallback]}";
    assert_eq!(
        from_file(text, &[]).unwrap().ipvs.of_servers(),
        options(true, false)
    );
    let wrong = from_file("ipvs: {schedulerFlags: [x]}", &[]).unwrap_err();
    assert!(wrong.contains("ipvs.schedulerFlags"), "{wrong}");
}

fn from_file(text: &str, flags: &[&str]) -> Result<Config, String> {
    let flags = [&["proxy", "--config", "/f"], flags].concat();
    let args = Args::try_parse_from(flags).map_err(|e| e.to_string())?;
    let text = format!(
        "apiVersion: {}\nkind: {}\n{text}\n",
        file::API_VERSION,
        file::KIND
    );
    let settings = KubeProxyConfiguration::parse(&text).map_err(|e| e.to_string())?;
    Config::new(&args, settings, "Node-1").map_err(|e| e.to_string())
}

#[test]
fn a_file_in_place_of_flags() {
    let text = "hostnameOverride: In-File\nbindAddress: 192.0.2.7\nclientConnection: {kubeconfig: /k}\nclusterCIDR: 10.0.0.0/8,fd00::/8\nnodePortAddresses: [primary]\nmode: iptables\niptables: {masqueradeBit: 3, syncPeriod: 7s}\nlogging: {verbosity: 4}\nconntrack: {tcpBeLiberal: true}";
    let config = from_file(text, &[]).unwrap();
    assert_eq!(config.node_name, "in-file");
    assert_eq!(config.node_ip.unwrap().to_string(), "192.0.2.7");
    assert_eq!(config.from, From::ApiServer(Some("/k".into())));
    assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!((config.mark, config.sync_period.as_secs()), (8, 7));
    assert!(!config.drop_invalid);
    assert_eq!(config.log_filter(None), "debug");
    assert_eq!(config.log_filter(Some("warn")), "warn");
    let flags = ["--hostname-override", "by-flag"];
    assert_eq!(from_file(text, &flags).unwrap().node_name, "by-flag");
}

#[test]
fn errors_name_the_file_and_the_key() {
    for (text, expect) in [
        ("clusterCIDR: x", "--config /f: clusterCIDR: "),
        ("oomScoreAdj: 2000", "--config /f: oomScoreAdj: 2000 is not"),
        ("nftables: {masqueradeBit: 40}", "masqueradeBit: 40 is not"),
        (
            "detectLocalMode: Guess",
            "detectLocalMode: \"Guess\" is unknown",
        ),
        (
            "detectLocalMode: BridgeInterface",
            "detectLocal.bridgeInterface: is needed",
        ),
        ("mode: userspace", "mode: \"userspace\" is unknown"),
    ] {
        let error = from_file(text, &[]).unwrap_err();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn addresses_of_pages() {
    let page = |text: &str| listen(text, 10).map(|address| address.map(|a| a.to_string()));
    assert_eq!(page(""), Ok(None));
    for (text, expect) in [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("127.0.0.1", "127.0.0.1:10"),
        ("[::1]:80", "[::1]:80"),
        ("::1", "[::1]:10"),
        ("[::]", "[::]:10"),
        (":80", "0.0.0.0:80"),
    ] {
        assert_eq!(page(text), Ok(Some(expect.to_owned())));
    }
    assert!(page("x").is_err() && page("127.0.0.1:99999").is_err());
}

#[test]
fn booleans_as_go_writes_them() {
    assert!(config(&["--masquerade-all"]).unwrap().masquerade_all);
    assert!(config(&["--masquerade-all=true"]).unwrap().masquerade_all);
    assert!(
        !config(&["--iptables-localhost-nodeports=false"])
            .unwrap()
            .localhost_node_ports
    );
}
