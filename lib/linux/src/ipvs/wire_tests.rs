use super::*;

/// What the real tool sent and heard.
const RECORDED: &str = include_str!("recorded.txt");

/// Attributes for tunnels, which the tool sends and translation has no use for
/// (`IPVS_DEST_ATTR_TUN_TYPE`, `_PORT`, `_FLAGS`).
const TUNNEL: std::ops::RangeInclusive<u16> = 13..=15;

fn recorded(command: &str, direction: &str) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    for line in RECORDED.lines() {
        let Some(hex) = line.strip_prefix(&format!("{command} {direction} ")) else {
            continue;
        };
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect();
        all.push((bytes[0], bytes[4..].to_vec()));
    }
    assert!(!all.is_empty(), "{command} is not recorded");
    all
}

/// Only the attributes of `inside` that `keep` says.
fn only(bytes: &[u8], inside: u16, keep: impl Fn(u16) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in crate::nfnetlink::attributes(bytes) {
        put_nested(&mut out, kind, |out| {
            for (inner, value) in crate::nfnetlink::attributes(value) {
                if kind != inside || keep(inner) {
                    put(out, inner, value);
                }
            }
        });
    }
    out
}

fn tcp(to: &str) -> ServerId {
    let to: SocketAddr = to.parse().unwrap();
    ServerId::Address {
        protocol: Protocol::Tcp,
        ip: to.ip(),
        port: to.port(),
    }
}

fn rr(id: ServerId) -> Server {
    Server {
        id,
        scheduler: Some(Scheduler::Rr),
        options: Options::default(),
        persistence: None,
    }
}

const MARK: u32 = 1_592_721_409;

fn dns() -> ServerId {
    ServerId::Address {
        protocol: Protocol::Udp,
        ip: [10, 96, 0, 1].into(),
        port: 53,
    }
}

#[test]
fn servers_are_written_as_the_tool_writes_them() {
    let mut maglev = rr(dns());
    maglev.scheduler = Some(Scheduler::Mh);
    maglev.options.hash_port = true;
    let mut sticky = rr(tcp("10.96.0.2:443"));
    sticky.persistence = Some(10800);
    let mut weighted = rr(tcp("[fd00::1]:80"));
    weighted.scheduler = Some(Scheduler::Wrr);
    let mut changed = sticky.clone();
    changed.scheduler = Some(Scheduler::Wlc);
    changed.persistence = Some(300);
    let flagged = |to: &str, scheduler: Scheduler, flags: &[&str]| {
        let mut server = rr(tcp(to));
        server.scheduler = Some(scheduler);
        for flag in flags {
            assert!(server.options.add_flag(scheduler, flag));
        }
        server
    };
    let (sh, mh) = (Scheduler::Sh, Scheduler::Mh);
    let mark = |ipv6| ServerId::Mark { ipv6, mark: MARK };
    let cases = [
        (
            "-A -t 10.96.0.1:80 -s rr",
            Command::AddServer(rr(tcp("10.96.0.1:80"))),
        ),
        (
            "-A -u 10.96.0.1:53 -s mh -b mh-port",
            Command::AddServer(maglev),
        ),
        (
            "-A -t 10.96.0.2:443 -s rr -p 10800",
            Command::AddServer(sticky),
        ),
        ("-A -t [fd00::1]:80 -s wrr", Command::AddServer(weighted)),
        (
            "-A -f 1592721409 -s rr",
            Command::AddServer(rr(mark(false))),
        ),
        (
            "-A -f 1592721409 -6 -s rr",
            Command::AddServer(rr(mark(true))),
        ),
        (
            "-E -t 10.96.0.2:443 -s wlc -p 300",
            Command::SetServer(changed),
        ),
        (
            "-A -t 10.96.0.3:80 -s sh -b sh-fallback,sh-port",
            Command::AddServer(flagged("10.96.0.3:80", sh, &["sh-fallback", "sh-port"])),
        ),
        (
            "-A -t 10.96.0.4:80 -s mh -b mh-fallback",
            Command::AddServer(flagged("10.96.0.4:80", mh, &["mh-fallback"])),
        ),
        (
            "-E -t 10.96.0.4:80 -s sh -b sh-port",
            Command::SetServer(flagged("10.96.0.4:80", sh, &["sh-port"])),
        ),
        (
            "-A -t [fd00::5]:80 -s fo",
            Command::AddServer(flagged("[fd00::5]:80", Scheduler::Fo, &[])),
        ),
        (
            "-A -t 10.96.0.6:80 -s ovf",
            Command::AddServer(flagged("10.96.0.6:80", Scheduler::Ovf, &[])),
        ),
    ];
    for (tool, command) in cases {
        let (number, bytes) = recorded(&format!("ipvsadm {tool}"), ">").remove(0);
        let request = encode(&command);
        assert_eq!(request.command, number, "{tool}");
        assert_eq!(request.attributes, bytes, "{tool}");
    }
    // For what is only named, the tool sends all properties; we send the name.
    let (number, bytes) = recorded("ipvsadm -D -u 10.96.0.1:53", ">").remove(0);
    let request = encode(&Command::DeleteServer(dns()));
    assert_eq!(request.command, number);
    assert_eq!(
        request.attributes,
        only(&bytes, ATTR_SERVICE, |kind| kind <= SVC_FWMARK)
    );
}

#[test]
fn destinations_are_written_as_the_tool_writes_them() {
    let v4: SocketAddr = "10.244.0.5:8080".parse().unwrap();
    let v6: SocketAddr = "[fd00:1::5]:8080".parse().unwrap();
    let server = tcp("10.96.0.1:80");
    let mark = ServerId::Mark {
        ipv6: false,
        mark: MARK,
    };
    let cases = [
        (
            "-a -t 10.96.0.1:80 -r 10.244.0.5:8080 -m -w 1",
            Command::AddDestination(server, v4, 1),
        ),
        (
            "-a -t [fd00::1]:80 -r [fd00:1::5]:8080 -m -w 1",
            Command::AddDestination(tcp("[fd00::1]:80"), v6, 1),
        ),
        (
            "-a -f 1592721409 -r 10.244.0.5:8080 -m -w 1",
            Command::AddDestination(mark, v4, 1),
        ),
        (
            "-e -t 10.96.0.1:80 -r 10.244.0.5:8080 -m -w 0",
            Command::SetDestination(server, v4, 0),
        ),
    ];
    for (tool, command) in cases {
        let (number, bytes) = recorded(&format!("ipvsadm {tool}"), ">").remove(0);
        let bytes = only(&bytes, ATTR_SERVICE, |kind| kind <= SVC_FWMARK);
        let bytes = only(&bytes, ATTR_DEST, |kind| !TUNNEL.contains(&kind));
        let request = encode(&command);
        assert_eq!(request.command, number, "{tool}");
        assert_eq!(request.attributes, bytes, "{tool}");
    }
    let tool = "ipvsadm -d -t 10.96.0.1:80 -r 10.244.0.6:8080";
    let (number, bytes) = recorded(tool, ">").remove(0);
    let bytes = only(&bytes, ATTR_SERVICE, |kind| kind <= SVC_FWMARK);
    let named = [DEST_AF, DEST_ADDR, DEST_PORT];
    let bytes = only(&bytes, ATTR_DEST, |kind| named.contains(&kind));
    let to = "10.244.0.6:8080".parse().unwrap();
    let request = encode(&Command::DeleteDestination(server, to));
    assert_eq!((request.command, request.attributes), (number, bytes));
}

#[test]
fn lists_are_asked_for_as_the_tool_asks() {
    let sent = recorded("ipvsadm -Ln", ">");
    let ours = [
        list_servers(),
        list_destinations(tcp("10.96.0.1:80")),
        list_destinations(tcp("[fd00::1]:80")),
        list_destinations(ServerId::Mark {
            ipv6: true,
            mark: MARK,
        }),
    ];
    for request in ours {
        assert!(
            sent.contains(&(request.command, request.attributes.clone())),
            "{request:?}"
        );
    }
}

#[test]
fn answers_are_read() {
    let heard = recorded("ipvsadm -Ln", "<");
    let servers: Vec<Server> = heard
        .iter()
        .filter_map(|(_, bytes)| server(bytes))
        .collect();
    let ids: Vec<String> = servers
        .iter()
        .map(|server| {
            let name = server.scheduler.unwrap().name();
            let stays = server
                .persistence
                .map(|s| format!(" {s} s"))
                .unwrap_or_default();
            let port = if server.options.hash_port {
                " port"
            } else {
                ""
            };
            format!("{} {name}{stays}{port}", server.id)
        })
        .collect();
    let expect = [
        "tcp [fd00::1]:80 wrr",
        "tcp 10.96.0.1:80 rr",
        "udp 10.96.0.1:53 mh port",
        "tcp 10.96.0.2:443 wlc 300 s",
        "mark 0x5eef0001 IPv6 rr",
        "mark 0x5eef0001 IPv4 rr",
    ];
    assert_eq!(ids, expect);
    let flags: Vec<(String, Option<Scheduler>, Options)> = recorded("ipvsadm -L -n", "<")
        .iter()
        .filter_map(|(_, bytes)| server(bytes))
        .map(|server| (server.id.to_string(), server.scheduler, server.options))
        .collect();
    let options = |fallback, hash_port| Options {
        fallback,
        hash_port,
        ..Options::default()
    };
    let expect = [
        ("tcp 10.96.0.6:80", Scheduler::Ovf, options(false, false)),
        ("tcp 10.96.0.4:80", Scheduler::Sh, options(false, true)),
        ("tcp [fd00::5]:80", Scheduler::Fo, options(false, false)),
        ("tcp 10.96.0.3:80", Scheduler::Sh, options(true, true)),
    ];
    assert_eq!(
        flags,
        expect.map(|(id, scheduler, options)| (id.to_owned(), Some(scheduler), options))
    );
    let found: Vec<(String, u32)> = heard
        .iter()
        .filter_map(|(_, bytes)| destination(bytes, false))
        .inspect(|to| assert!(to.translated && to.active == 0 && to.inactive == 0))
        .map(|to| (to.address.to_string(), to.weight))
        .collect();
    let expect = [
        ("10.244.0.6:8080", 1),
        ("10.244.0.5:8080", 0),
        ("[fd00:1::5]:8080", 1),
        ("10.244.0.5:8080", 1),
    ];
    assert_eq!(found, expect.map(|(to, weight)| (to.to_owned(), weight)));
}

#[test]
fn time_outs() {
    let wanted = Timeouts {
        tcp: Duration::from_secs(7200),
        tcp_fin: Duration::from_secs(120),
        udp: Duration::from_secs(300),
    };
    let (number, bytes) = recorded("ipvsadm --set 7200 120 300", ">").remove(0);
    let request = set_timeouts(&wanted);
    assert_eq!((request.command, request.attributes), (number, bytes));
    let asked = recorded("ipvsadm -L --timeout", ">").remove(0);
    assert_eq!(asked, (get_timeouts().command, get_timeouts().attributes));
    let (_, heard) = recorded("ipvsadm -L --timeout", "<").remove(0);
    assert_eq!(timeouts(&heard), wanted);
}

#[test]
fn broken_answers_are_left_out() {
    for (_, bytes) in recorded("ipvsadm -Ln", "<") {
        for length in 0..bytes.len() {
            let _server = server(&bytes[..length]);
            let _destination = destination(&bytes[..length], true);
            let mut broken = bytes.clone();
            broken[length] ^= 0xff;
            let _server = server(&broken);
            let _destination = destination(&broken, true);
        }
    }
    assert_eq!(server(&[]), None);
}
