//! The scenario tables on the real kernel: the proxy itself on a node of namespaces, every row a
//! connection. Needs root. Prints how many rows each mode was asked.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

mod cases;
mod sockets;

/// The lab and what is done in it.
mod tables {
    pub(crate) mod group;
    pub(crate) mod lab;
    pub(crate) mod probe;
    pub(crate) mod run;
    pub(crate) mod serve;
    pub(crate) mod settle;
    pub(crate) mod site;
    pub(crate) mod trouble;
}

use std::sync::atomic::{AtomicUsize, Ordering};

use api::cidr::Family;
use linux::iptables::{self, Iptables};
use linux::{Host as _, NetNs};
use proxy::backend::ebpf::Place;
use proxy::backend::ebpf::object::InUse;
use proxy::backend::{self, Mode, NodePortScope, Settings};
use tables::lab::Lab;
use tables::run::{Way, run};
use tables::trouble::Trouble;

/// Runs all tables one way. A mode that this kernel or this version does not have is skipped.
#[track_caller]
fn check(name: &str, mode: Mode, flags: &'static [&'static str], prepare: fn(&mut Lab)) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED tables on the kernel, {name}: needs root");
        return;
    }
    if let Some(why) = unavailable(mode) {
        println!("SKIPPED tables on the kernel, {name}: {why}");
        return;
    }
    let count = run(&Way {
        mode,
        flags,
        prepare,
    });
    let rows = |family| count.rows.get(&family).copied().unwrap_or_default();
    println!(
        "COUNTED proxy table rows on the kernel, {name}: {} IPv4, {} IPv6, {} of SCTP left out, in {} labs",
        rows(Family::V4),
        rows(Family::V6),
        count.sctp,
        count.labs
    );
    assert!(
        count.failures.is_empty(),
        "{} rows fail:\n{}",
        count.failures.len(),
        count.failures.join("\n")
    );
    if flags.contains(&"--ebpf-xdp") {
        let before = count.before_stack;
        println!("COUNTED packets of the table rows translated before the stack: {before}");
        assert!(before > 2000, "{before}");
    }
}

/// Why a mode cannot be run here, if it cannot.
fn unavailable(mode: Mode) -> Option<String> {
    let settings = |family| Settings {
        family,
        mark: 0x4000,
        detect_local: None,
        node_ports: NodePortScope::All,
        localhost_node_ports: false,
        random_fully: true,
        drop_invalid: true,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    };
    // Tests ask at the same time, and what one has pinned another must not take away.
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let asked = ASKED.fetch_add(1, Ordering::Relaxed);
    let pins = format!("/sys/fs/bpf/seaway-test-{}-{asked}", std::process::id());
    let place = Place {
        cgroup: None,
        pin_dir: pins.into(),
        node: "unavailable".to_owned(),
        flows_max: Some(1024),
        attach: None,
        xdp: None,
    };
    let open = move || {
        let opened = backend::open(mode, &place, settings).map(drop);
        backend::ebpf::apply::cleanup(&place, InUse::Refuse).unwrap();
        opened
    };
    match NetNs::anonymous().unwrap().run(open).unwrap() {
        Ok(()) => None,
        // These are on every machine that runs the tests.
        Err(error) if mode == Mode::Iptables => panic!("{error:#}"),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// A lab for troubles; `None`, said, where the mode cannot be run.
fn trouble(name: &str, mode: Mode) -> Option<Trouble> {
    let why = if nix::unistd::geteuid().is_root() {
        unavailable(mode)
    } else {
        Some("needs root".to_owned())
    };
    match why {
        Some(why) => {
            println!("SKIPPED {name} in mode {}: {why}", mode.name());
            None
        }
        None => Some(Trouble::new(mode)),
    }
}

/// Where IPVS is, the other modes may lack what they need: it has tests of its own below.
const MODES: [Mode; 3] = [Mode::Iptables, Mode::Nftables, Mode::Ebpf];

#[test]
fn troubles_of_the_api_server() {
    for mode in MODES {
        if let Some(trouble) = trouble("troubles_of_the_api_server", mode) {
            trouble.of_the_server();
        }
    }
}

/// All modes at once: it is a minute for each.
#[test]
fn a_minute_without_the_api_server() {
    let troubles = Mode::ALL.map(|mode| trouble("a_minute_without_the_api_server", mode));
    std::thread::scope(|scope| {
        for trouble in troubles.into_iter().flatten() {
            scope.spawn(|| trouble.of_a_minute());
        }
    });
}

#[test]
fn killed_at_random_moments() {
    for mode in MODES {
        if let Some(trouble) = trouble("killed_at_random_moments", mode) {
            trouble.of_the_proxy();
        }
    }
}

#[test]
fn ipvs_in_troubles_of_the_api_server() {
    if let Some(trouble) = trouble("ipvs_in_troubles_of_the_api_server", Mode::Ipvs) {
        trouble.of_the_server();
    }
}

#[test]
fn ipvs_killed_at_random_moments() {
    if let Some(trouble) = trouble("ipvs_killed_at_random_moments", Mode::Ipvs) {
        trouble.of_the_proxy();
    }
}

#[test]
fn iptables_nft() {
    check("iptables (nft back end)", Mode::Iptables, &[], |_| {});
}

/// On a node whose rules are in the old tables.
#[test]
fn iptables_legacy() {
    check("iptables (legacy back end)", Mode::Iptables, &[], |lab| {
        lab.node.run(|| {
            for family in [iptables::Family::V4, iptables::Family::V6] {
                let legacy = Iptables::of(family, iptables::Backend::Legacy).unwrap();
                let other = "*filter\n:OTHER - [0:0]\n-A OTHER -j RETURN\nCOMMIT\n";
                legacy.restore(other).unwrap();
                let found = Iptables::detect(family).unwrap().backend();
                assert_eq!(found, iptables::Backend::Legacy);
            }
        });
    });
}

#[test]
fn nftables() {
    check("nftables", Mode::Nftables, &[], |_| {});
}

#[test]
fn ipvs() {
    check("ipvs", Mode::Ipvs, &[], |_| {});
}

#[test]
fn ebpf() {
    check("ebpf", Mode::Ebpf, &[], |_| {});
}

/// Before the stack, for which packets must come with their checksums, as they do from outside.
#[test]
fn ebpf_xdp() {
    let flags = &["--ebpf-xdp", "native"];
    check("ebpf with XDP", Mode::Ebpf, flags, |lab| {
        for site in [&mut lab.cli, &mut lab.bad, &mut lab.void, &mut lab.rem] {
            site.kernel.set_tx_checksum("eth0", false).unwrap();
        }
    });
}
