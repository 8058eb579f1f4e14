//! Mode ebpf as processes, programs and interfaces come and go: restarts under traffic, several processes,
//! other sizes of the maps, cleanup. Needs root.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::ebpf::{ALL, SPEC, lab, under_traffic};
use crate::lab::talk::still_alive;
use crate::lab::{Lab, service};
use linux::Host as _;
use linux::bpf::{link_info, open_pinned};
use linux::link::LinkChange;
use nix::sys::signal::Signal;

/// Programs replaced while connections are made.
const RESTARTS: usize = 20;

/// Endpoints changed meanwhile.
const CHANGES: usize = 200;

#[test]
fn programs_and_endpoints_change_under_traffic() {
    let Some(lab) = lab("programs_and_endpoints_change_under_traffic") else {
        return;
    };
    // The two that stay open and idle are not to be the ones that are given up.
    let mut lab = lab.with(&["--ebpf-flows-max=1000000"]);
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let mut old = [
        lab.p1.connect("172.30.0.41:80"),
        lab.cli.connect("192.168.0.2:30041"),
    ];
    let (p1, cli) = (lab.p1.twin(), lab.cli.twin());
    let asked = [
        (&p1, "172.30.0.41:80"),
        (&p1, "[fd00:172::41]:80"),
        (&cli, "192.168.0.2:30041"),
        (&cli, "[2001:db8::2]:30041"),
    ];
    let good = under_traffic(&asked, |_| {
        for restart in 0..RESTARTS {
            // Every endpoint that was ever there goes on serving.
            for change in 0..CHANGES / RESTARTS {
                let n = 1 + (restart + change) % 3;
                let mut some = ALL[..n].to_vec();
                some.extend(&ALL[3..3 + n]);
                lab.write("web.yaml", &service("web", SPEC, &some));
                std::thread::yield_now();
            }
            lab.stop(Signal::SIGKILL);
            lab.start();
        }
    });
    println!(
        "COUNTED connections during {RESTARTS} replacements of the programs and {CHANGES} changes of endpoints: {good}, all answered"
    );
    assert!(good > 1000, "{good}");
    for stream in &mut old {
        still_alive(stream);
    }
    // What an earlier process wrote is found and not written again.
    assert!(lab.log_text().contains("adopted=true"));
}

#[test]
fn after_cleanup_nothing_is_translated_and_nothing_is_left() {
    let Some(mut lab) = lab("after_cleanup_nothing_is_translated_and_nothing_is_left") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    let pins = lab.pins().unwrap();
    assert!(pins.exists());
    lab.stop(Signal::SIGTERM);
    lab.p1.answer("172.30.0.41:80");
    lab.cleanup();
    assert!(!pins.exists());
    let to: SocketAddr = "172.30.0.41:80".parse().unwrap();
    // Links let go of programs when the last reference is gone.
    lab.wait("the programs to go", |lab| {
        lab.p1
            .run(|| TcpStream::connect_timeout(&to, std::time::Duration::from_millis(200)).is_err())
    });
    lab.wait("node ports to go", |lab| {
        lab.cli.ask("192.168.0.2:30041") == Err(ErrorKind::ConnectionRefused)
    });
}

/// As on kernels before TCX: filters stay when the proxy is killed, are replaced under traffic, give
/// way to links and come back, and go with `--cleanup`.
#[test]
fn filters_of_clsact_serve_clients_outside_as_links_do() {
    let Some(lab) = lab("filters_of_clsact_serve_clients_outside_as_links_do") else {
        return;
    };
    // The connections that stay open and idle are not to be the ones that are given up.
    let lab = lab.with(&["--ebpf-flows-max=1000000"]);
    let mut lab = lab.with(&["--ebpf-attach", "clsact"]);
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let filters = |lab: &Lab, way| lab.run_program("tc", &["filter", "show", "dev", "eth0", way]);
    for way in ["ingress", "egress"] {
        let text = filters(&lab, way);
        assert!(
            text.contains(&format!("seaway_{way} direct-action")),
            "{text}"
        );
    }
    let mut old = [
        lab.cli.connect("192.168.0.2:30041"),
        lab.cli.connect("[2001:db8::2]:30041"),
    ];
    let cli = lab.cli.twin();
    let asked = [(&cli, "192.168.0.2:30041"), (&cli, "[2001:db8::2]:30041")];
    let good = under_traffic(&asked, |_| {
        for _ in 0..3 {
            lab.stop(Signal::SIGKILL);
            lab.start();
        }
    });
    assert!(good > 100, "{good}");
    // Adding and removing the discipline the kernel stops a device for a moment: nobody connects then.
    for attach in ["tcx", "clsact"] {
        lab.stop(Signal::SIGKILL);
        lab.more_flags(&["--ebpf-attach", attach]);
        lab.start();
        let text = filters(&lab, "egress");
        let expect = usize::from(attach == "clsact");
        assert_eq!(text.matches("seaway_egress").count(), expect, "{text}");
        for stream in &mut old {
            still_alive(stream);
        }
        lab.cli.answer("[2001:db8::2]:30041");
    }
    // Somebody takes the discipline away with all that is in it.
    lab.run_program("tc", &["qdisc", "del", "dev", "eth0", "clsact"]);
    lab.run_program("ip", &["address", "add", "198.51.100.77/32", "dev", "eth0"]);
    lab.wait("the filters of both ways to be back", |lab| {
        ["ingress", "egress"]
            .iter()
            .all(|way| filters(lab, way).contains(&format!("seaway_{way}")))
    });
    lab.cli.answer("192.168.0.2:30041");
    // What others have there stays.
    let other = "ingress prio 77 protocol ip u32 match u32 0 0 flowid 1:1";
    let words: Vec<&str> = ["filter", "add", "dev", "eth0"]
        .into_iter()
        .chain(other.split(' '))
        .collect();
    lab.run_program("tc", &words);
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    assert!(!filters(&lab, "ingress").contains("seaway"));
    assert!(filters(&lab, "ingress").contains("pref 77"));
    let of_bridge = lab.run_program("tc", &["qdisc", "show", "dev", "cni0"]);
    assert!(!of_bridge.contains("clsact"), "{of_bridge}");
}

/// Interfaces that stay keep their programs while others come, go and get other names; one that moves
/// to a pod loses them.
#[test]
fn interfaces_that_come_and_go_disturb_no_other() {
    let Some(mut lab) = lab("interfaces_that_come_and_go_disturb_no_other") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let links = lab.pins().unwrap().join("node/links");
    // The kernel gives every link another number: the same ones are there still, or they are not.
    let numbers = |index: u32| {
        let numbers = ["egress", "ingress"].map(|way| {
            let link = open_pinned(&links.join(format!("tcx-{index}-{way}")));
            link.and_then(|link| link_info(link.as_fd()))
                .map(|info| info.id)
        });
        numbers.into_iter().flatten().collect::<Vec<u32>>()
    };
    let index = |lab: &mut Lab, name| lab.node.kernel.link(name).unwrap().unwrap().index;
    let stay = ["eth0", "rem0", "cni0"].map(|name| index(&mut lab, name));
    let before = stay.map(numbers);
    assert!(before.iter().all(|ids| ids.len() == 2), "{before:?}");
    let cli = lab.cli.twin();
    let asked = [(&cli, "192.168.0.2:30041"), (&cli, "[2001:db8::2]:30041")];
    under_traffic(&asked, |answered| {
        for round in 0..40 {
            // Both ends on the node, as some plugins make them: one is moved to the pod later.
            let words = format!("link add x{round} type veth peer name y{round}");
            lab.run_program("ip", &words.split(' ').collect::<Vec<_>>());
            if round % 2 == 0 {
                let words = format!("link set x{round} name z{round}");
                lab.run_program("ip", &words.split(' ').collect::<Vec<_>>());
                lab.run_program("ip", &["link", "del", &format!("z{round}")]);
            }
        }
        let moved = index(&mut lab, "y1");
        lab.wait("programs at a new interface", |_| numbers(moved).len() == 2);
        let to_pod = LinkChange {
            netns: Some(lab.p1.kernel.netns()),
            ..LinkChange::default()
        };
        lab.node.kernel.set_link("y1", &to_pod).unwrap();
        lab.wait("its programs to go", |_| numbers(moved).is_empty());
        lab.wait("clients", |_| answered.load(Ordering::Relaxed) > 10);
    });
    assert_eq!(stay.map(numbers), before);
}

#[test]
fn a_second_process_for_the_same_node_is_refused() {
    let Some(mut lab) = lab("a_second_process_for_the_same_node_is_refused") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let (code, log) = lab.second(&[]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is in use by another process"), "{log}");
    lab.p1.answer("172.30.0.41:80");
    lab.stop(Signal::SIGKILL);
    lab.start();
}

/// The pins of a live process are its own: `--cleanup` says whose they are, and another mode takes them
/// away when that process has ended, and serves on.
#[test]
fn a_live_process_keeps_its_pins() {
    let Some(mut lab) = lab("a_live_process_keeps_its_pins") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let pins = lab.pins().unwrap();
    let is_served = |lab: &Lab| {
        ["172.30.0.41:80", "[fd00:172::41]:80", "192.168.0.2:30041"]
            .iter()
            .all(|to| lab.p1.ask(to).is_ok() && lab.node.ask(to).is_ok())
    };
    let holder = format!("is in use by another process ({})", lab.pid());
    let (code, log) = lab.second(&["--cleanup"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains(&holder) && log.contains("end it first"),
        "{log}"
    );
    assert!(pins.join("node/links/connect4").exists());
    assert!(is_served(&lab));
    lab.start_other(&["--mode=nftables"]);
    lab.wait("word of the live process", |lab| {
        lab.other_log().contains("taken away when that has ended")
    });
    assert!(lab.other_log().contains(&holder), "{}", lab.other_log());
    assert!(pins.join("node/links/connect4").exists());
    assert!(is_served(&lab));
    lab.stop(Signal::SIGKILL);
    lab.wait("the pins to go", |_| !pins.exists());
    // The kernel lets go of programs a moment after their last pin.
    lab.wait("another mode to serve", is_served);
}

#[test]
fn other_sizes_take_running_connections_over() {
    let Some(mut lab) = lab("other_sizes_take_running_connections_over") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let mut old = [
        lab.p1.connect("172.30.0.41:80"),
        lab.cli.connect("192.168.0.2:30041"),
    ];
    lab.stop(Signal::SIGKILL);
    let mut lab = lab.with(&["--ebpf-flows-max=20000"]);
    lab.start();
    for stream in &mut old {
        still_alive(stream);
    }
    assert_eq!(
        old[0].peer_addr().unwrap(),
        "172.30.0.41:80".parse().unwrap()
    );
    lab.p1.answer("172.30.0.41:80");
    lab.cli.answer("192.168.0.2:30041");
    let layouts = std::fs::read_dir(lab.pins().unwrap().join("node")).unwrap();
    let layouts = layouts.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("maps-")
    });
    assert_eq!(layouts.count(), 1);
}
