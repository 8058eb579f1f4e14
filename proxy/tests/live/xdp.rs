//! Mode ebpf before the network stack (XDP): the same services for clients outside, taken there when
//! their packets come with checksums; who takes what is read from the metrics. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use crate::lab::{self, Lab, place::Place, service};
use crate::live::ebpf::{ALL, SPEC, names, under_traffic};
use aya::programs::Program;
use linux::{Host as _, bpf};
use nix::sys::signal::Signal;
use proxy::backend::ebpf::{self, object};

/// Bytes sent there and back.
const BULK: usize = 500_000;

const TO: [&str; 4] = [
    "192.168.0.2:30041",
    "[2001:db8::2]:30041",
    "198.51.100.7:80",
    "[2001:db8:7::7]:80",
];

/// A lab in which two links lead outside: that of the client, and that of the endpoint elsewhere.
fn lab(name: &str, mode: &str) -> Option<Lab> {
    let mut lab = Lab::new(name)?.with_sockets();
    for net in ["192.0.2.1/24", "2001:db8:2::1/64"] {
        lab.run_program("ip", &["address", "add", net, "dev", "rem0"]);
    }
    // As packets of other machines do, these come with their checksums.
    for place in [&mut lab.cli, &mut lab.p3] {
        place.kernel.set_tx_checksum("eth0", false).unwrap();
    }
    Some(lab.with(&["--ebpf-xdp", mode]))
}

fn web(endpoints: &[(&str, &str)]) -> String {
    let more =
        "{externalIPs: [198.51.100.7, \"2001:db8:7::7\"], ipFamilyPolicy: RequireDualStack, ";
    service("web", &SPEC.replacen('{', more, 1), endpoints)
}

/// How the program runs on a link of the node, as `ip` tells it.
fn program(lab: &Lab, link: &str) -> Option<&'static str> {
    let text = lab.run_program("ip", &["link", "show", "dev", link]);
    let has = |word: &str| text.contains(&format!(" {word} "));
    match (has("xdp"), has("xdpgeneric")) {
        (true, _) => Some("native"),
        (_, true) => Some("generic"),
        _ => None,
    }
}

/// What was done so far, of `translated`, `dropped`, `left_checksum`, `left_no_metadata`.
fn count(lab: &Lab, action: &str) -> u64 {
    let (_, text) = lab.node.get("127.0.0.1:10249", "/metrics").unwrap();
    let start = format!("seaway_ebpf_xdp_packets_total{{action=\"{action}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap().parse().unwrap()
}

/// Packets of TCP and UDP that a place has found broken.
fn broken(place: &Place) -> u64 {
    place.run(|| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let (four, six) = (read("snmp").unwrap(), read("snmp6").unwrap());
        let lines: Vec<&str> = four.lines().collect();
        let of_pairs = lines.chunks(2).filter_map(|pair| {
            let at = pair[0].split(' ').position(|name| name == "InCsumErrors")?;
            pair[1].split(' ').nth(at)?.parse::<u64>().ok()
        });
        let is_of_csum = |line: &&str| line.contains("InCsumErrors");
        let of_six = six.lines().filter(is_of_csum);
        let of_six = of_six.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        of_pairs.chain(of_six).sum()
    })
}

/// A connection that carries much, there and back.
fn bulk(from: &Place, to: &str) {
    let mut stream = from.connect(to);
    stream
        .set_read_timeout(Some(lab::talk::patience()))
        .unwrap();
    let sent: Vec<u8> = (0..BULK).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let mut heard = vec![0; BULK];
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        stream.read_exact(&mut heard).unwrap();
    });
    assert!(sent == heard, "{to}: another content");
}

fn datagrams(from: &Place, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    for _ in 0..10 {
        let socket = from.run(|| UdpSocket::bind(any).unwrap());
        socket
            .set_read_timeout(Some(lab::talk::patience()))
            .unwrap();
        assert!(lab::talk::ask_udp(&socket, to).is_some(), "{to}");
    }
}

/// Everybody is reached by all addresses, and every answer comes.
fn serves(lab: &Lab) {
    for to in TO {
        assert_eq!(names(&lab.cli, to, 60).len(), 3, "{to}");
        datagrams(&lab.cli, to);
        bulk(&lab.cli, to);
    }
}

fn clients_are_served(name: &str, mode: &str) {
    let Some(mut lab) = lab(name, mode) else {
        return;
    };
    lab.write("web.yaml", &web(ALL));
    let none = "{clusterIP: 172.30.0.44, externalIPs: [198.51.100.8], ports: [{port: 80}]}";
    lab.write("none.yaml", &service("none", none, &[]));
    let ranges = "{type: LoadBalancer, clusterIP: 172.30.0.43, loadBalancerSourceRanges: [192.0.2.0/24], ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: [{ip: 198.51.100.9}]}}";
    lab.write("ranges.yaml", &service("ranges", ranges, ALL));
    lab.start();
    let links = ["eth0", "rem0", "cni0", "v1", "v2"];
    let programs = links.map(|link| program(&lab, link));
    assert_eq!(programs, [Some(mode), Some(mode), None, None, None]);
    serves(&lab);
    let refused = Err(ErrorKind::ConnectionRefused);
    assert_eq!(lab.cli.ask("198.51.100.8:80"), refused);
    assert_eq!(lab.cli.ask("198.51.100.9:80"), Err(ErrorKind::TimedOut));
    let translated = count(&lab, "translated");
    // Bulk alone is more, in segments of the link's size.
    assert!(translated > 4 * (BULK / 1500) as u64, "{translated}");
    assert!(count(&lab, "dropped") > 0);
    assert_eq!(count(&lab, "left_no_metadata"), 0);
    // Without checksums, which a device of the client's would add, ingress does it all.
    let left = count(&lab, "left_checksum");
    for place in [&mut lab.cli, &mut lab.p3] {
        place.kernel.set_tx_checksum("eth0", true).unwrap();
    }
    serves(&lab);
    let (now, more) = (
        count(&lab, "translated"),
        count(&lab, "left_checksum") - left,
    );
    println!(
        "COUNTED packets in mode ebpf with XDP ({mode}): {translated} translated before the stack, {more} without checksum left to it"
    );
    // What no socket sends, like the last acknowledgement of a connection, has its checksum always.
    assert!(now - translated < more / 10, "{translated} {now} {more}");
    assert!(more > 4 * 60 * 4, "{more}");
    for place in [&lab.p1, &lab.p2, &lab.p3, &lab.cli, &lab.node] {
        assert_eq!(broken(place), 0);
    }
}

#[test]
fn clients_are_served_in_the_driver() {
    clients_are_served("xdp: clients_are_served_in_the_driver", "native");
}

#[test]
fn clients_are_served_with_every_driver() {
    clients_are_served("xdp: clients_are_served_with_every_driver", "generic");
}

/// One service's endpoint is another's address: who has been translated is not asked about again.
#[test]
fn what_was_translated_is_not_translated_again() {
    const THERE: &str = "198.51.100.77";
    let Some(mut lab) = lab("xdp: what_was_translated_is_not_translated_again", "native") else {
        return;
    };
    lab.cli.serve("cli");
    let address = format!("{THERE}/32");
    lab.cli.run(|| {
        let words = ["address", "add", &address, "dev", "lo"];
        linux::exec::Exec::new("ip").args(words).run().unwrap();
    });
    let first = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("first.yaml", &service("first", first, &[(THERE, "other")]));
    let second = format!(
        "{{clusterIP: 172.30.0.42, externalIPs: [{THERE}], ports: [{{port: {}}}]}}",
        lab::talk::PORT
    );
    lab.write("second.yaml", &service("second", &second, &ALL[..2]));
    for mode in ["native", "off", "generic"] {
        lab.more_flags(&["--ebpf-xdp", mode]);
        lab.start();
        let before = count(&lab, "translated");
        for _ in 0..10 {
            let (who, _) = lab.cli.answer(TO[0]);
            assert_eq!(who, "cli", "{mode}");
        }
        // From elsewhere the second service is there.
        let (who, _) = lab.p3.answer(&format!("{THERE}:{}", lab::talk::PORT));
        assert!(["p1", "p2"].contains(&who.as_str()), "{who}");
        let more = count(&lab, "translated") - before;
        assert_eq!(more > 0, mode != "off", "{mode}: {more}");
        lab.stop(Signal::SIGKILL);
    }
}

/// The program stays when the proxy is killed, is replaced under traffic, changes its way, goes when it
/// is switched off, and with `--cleanup`.
#[test]
fn killed_and_started_again_under_traffic() {
    let Some(lab) = lab("xdp: killed_and_started_again_under_traffic", "native") else {
        return;
    };
    let mut lab = lab.with(&["--ebpf-flows-max=1000000"]);
    lab.write("web.yaml", &web(ALL));
    lab.start();
    let mut old = [lab.cli.connect(TO[0]), lab.cli.connect(TO[1])];
    let cli = lab.cli.twin();
    let before = count(&lab, "translated");
    let asked = [(&cli, TO[0]), (&cli, TO[1])];
    let good = under_traffic(&asked, |_| {
        for _ in 0..4 {
            lab.stop(Signal::SIGKILL);
            assert_eq!(program(&lab, "eth0"), Some("native"));
            lab.start();
        }
    });
    println!(
        "COUNTED connections while the program before the stack was replaced: {good}, all answered"
    );
    assert!(good > 100, "{good}");
    assert!(count(&lab, "translated") > before + 2 * good as u64);
    for mode in ["generic", "auto", "off", "auto"] {
        lab.stop(Signal::SIGKILL);
        lab.more_flags(&["--ebpf-xdp", mode]);
        let was = program(&lab, "eth0");
        lab.start();
        let expect = match mode {
            "off" => None,
            "generic" => Some("generic"),
            // What is there is good enough.
            _ => was.or(Some("native")),
        };
        assert_eq!(program(&lab, "eth0"), expect, "{mode}");
        for stream in &mut old {
            lab::talk::still_alive(stream);
        }
        lab.cli.answer(TO[1]);
    }
    // Somebody takes a link away that comes back with another.
    lab.run_program("ip", &["link", "set", "eth0", "down"]);
    lab.run_program("ip", &["link", "set", "eth0", "up"]);
    assert_eq!(program(&lab, "eth0"), Some("native"));
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    lab.wait("the programs to go", |lab| {
        ["eth0", "rem0"]
            .iter()
            .all(|link| program(lab, link).is_none())
    });
}

/// Somebody else's program stays, and clients are served without ours.
#[test]
fn a_program_of_others_is_left_alone() {
    let Some(mut lab) = lab("xdp: a_program_of_others_is_left_alone", "auto") else {
        return;
    };
    let pin_dir = lab.pins().unwrap().join("of-others");
    let place = ebpf::Place {
        cgroup: None,
        pin_dir,
        node: "others".to_owned(),
        flows_max: Some(1024),
        attach: None,
        xdp: None,
    };
    let index = lab.node.kernel.link("eth0").unwrap().unwrap().index;
    let other = lab.node.run(|| {
        // With empty maps it passes everything.
        let (mut object, _maps) = object::open(&place).unwrap();
        let Some(Program::Xdp(program)) = object.ebpf().program_mut("before_stack") else {
            panic!("no program");
        };
        program.load().unwrap();
        let link = bpf::attach_xdp(program.fd().unwrap().as_fd(), index, false).unwrap();
        object::remove_pins(&place).unwrap();
        link
    });
    let info = bpf::link_info(other.as_fd()).unwrap();
    lab.write("web.yaml", &web(ALL));
    lab.start();
    serves(&lab);
    let text = lab.log_text();
    assert_eq!(text.matches("eth0 goes without XDP").count(), 1, "{text}");
    assert!(text.contains("another program is there"), "{text}");
    assert_eq!(program(&lab, "rem0"), Some("native"));
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    let now = bpf::link_info(other.as_fd()).unwrap();
    assert_eq!((now.ifindex(), now.program), (index, info.program));
}

/// A driver that cannot: clients are served without, or in the other way where that may be.
#[test]
fn a_driver_that_refuses_costs_no_service() {
    let Some(mut lab) = lab("xdp: a_driver_that_refuses_costs_no_service", "native") else {
        return;
    };
    // More than a page, which this driver's program would have to see at once.
    for place in [&lab.cli, &lab.node] {
        place.run(|| {
            let words = ["link", "set", "eth0", "mtu", "9000"];
            linux::exec::Exec::new("ip").args(words).run().unwrap();
        });
    }
    lab.write("web.yaml", &web(ALL));
    for (mode, expect) in [("native", None), ("auto", Some("generic"))] {
        lab.more_flags(&["--ebpf-xdp", mode]);
        lab.start();
        assert_eq!(program(&lab, "eth0"), expect, "{mode}");
        serves(&lab);
        lab.stop(Signal::SIGTERM);
    }
    let text = lab.log_text();
    assert_eq!(text.matches("eth0 goes without XDP").count(), 1, "{text}");
}
