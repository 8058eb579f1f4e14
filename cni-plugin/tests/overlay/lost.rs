//! Notifications that the kernel could not deliver.

use linux::route::{PROTOCOL_BOOT, Route};
use linux::{Host, NetNs, Replacement};
use serde_json::json;

use crate::lab::{Lab, wait_until};

/// A table that no overlay looks at.
const TABLE: u32 = 4711;

/// What waits to be read in sockets of this namespace, in bytes, and how many notifications were
/// dropped for them (`/proc/net/netlink`, its columns `Rmem` and `Drops`).
fn sockets(netns: &NetNs) -> [u64; 2] {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netlink");
    let text = netns.run(read).unwrap().unwrap();
    let sum = |column: usize| {
        let lines = text.lines().skip(1);
        let of_line = |line: &str| line.split_whitespace().nth(column)?.parse::<u64>().ok();
        lines.filter_map(of_line).sum()
    };
    [sum(4), sum(8)]
}

/// The daemon is busy (with a node that takes its time) while more happens than the kernel keeps for it, and
/// then its address goes, of which it is never told.
#[test]
fn what_the_kernel_could_not_tell_is_found_all_the_same() {
    let test = "what_the_kernel_could_not_tell_is_found_all_the_same";
    let Some(lab) = Lab::new(test, 1, false) else {
        return;
    };
    let node = &lab.nodes[0];
    let mut host = node.kernel();
    let whole = node.state("seaway.1");
    assert!(whole.contains("addr 10.244.1.0/32"), "{whole}");
    // The daemon has heard of what it made itself, and of its link's addresses (one of IPv6 comes
    // late). Were it not so, it would compare everything for another reason than the one looked for.
    host.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
        .unwrap();
    let mut at_rest = 0;
    let mut last = sockets(&node.netns);
    wait_until("the daemon to be at rest", || {
        let now = sockets(&node.netns);
        at_rest = if now == last && now[0] == 0 {
            at_rest + 1
        } else {
            0
        };
        last = now;
        at_rest == 100
    });
    let [_, before] = last;

    let held = lab.api.hold();
    // Of no consequence.
    lab.api.change("n9", |node| {
        *node = json!({"metadata": {"name": "n9"}});
    });
    wait_until("the daemon to be busy", || held.waiting() == 1);
    let mut flood: Vec<Route> = (0..=u8::MAX)
        .map(|last| {
            let to = std::net::IpAddr::from([192, 0, 2, last]);
            let mut route = Route::to(api::cidr::host_net(to)).dev("eth0");
            route.table = TABLE;
            route.protocol = PROTOCOL_BOOT;
            route
        })
        .collect();
    let mut mtu = 1000;
    wait_until("more to happen than is kept", || {
        mtu = 2001 - mtu;
        for route in &mut flood {
            route.mtu = Some(mtu);
        }
        let all: Vec<_> = flood.iter().map(Replacement::Route).collect();
        assert_eq!(host.replace_many(&all), [0; 0]);
        sockets(&node.netns)[1] > before
    });
    let address = host.addrs("seaway.1").unwrap().remove(0).net;
    host.del_addr("seaway.1", address).unwrap();
    assert_ne!(node.state("seaway.1"), whole);
    drop(held);
    wait_until("the address to be back", || node.state("seaway.1") == whole);
    // It listens again: the next one is told.
    host.del_addr("seaway.1", address).unwrap();
    wait_until("the address to be back again", || {
        node.state("seaway.1") == whole
    });
}
