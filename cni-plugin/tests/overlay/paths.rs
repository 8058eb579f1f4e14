//! Paths between nodes that carry less than their links.

use std::net::IpAddr;
use std::time::Duration;

use cni_plugin::overlay::backend::{Backend, HostGw};
use cni_plugin::overlay::model::Settings;
use cni_plugin::overlay::path::Pace;
use linux::Host;
use linux::link::LinkChange;
use linux::route::Route;

use crate::lab::{self, Lab, Pod, kernel, wait_until};

/// Looks all the time; is as patient as the daemon is.
fn pace(settings: &mut Settings) {
    settings.pace = Some(Pace {
        every: Duration::from_millis(100),
        ..Pace::default()
    });
}

/// The packet sizes of the routes of node `n1`.
fn sizes(lab: &Lab) -> Vec<Option<u32>> {
    let routes = lab.nodes[0].our_routes();
    routes.into_iter().map(|route| route.mtu).collect()
}

/// The largest packet that reaches the other pod whole, and what a larger one is told by its own
/// node.
fn reaches(from: &Pod, to: &Pod, rows: [(u32, &str); 2]) {
    for (address, (mtu, words)) in to.ips.iter().zip(rows) {
        // Headers of IPv4 and ICMP are 28 bytes, of IPv6 and ICMPv6 48.
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let size = usize::try_from(mtu - headers).unwrap();
        wait_until("the largest packet to pass", || {
            lab::ping(&from.netns, *address, size)
        });
        let said = lab::ping_text(&from.netns, *address, size + 1);
        assert!(said.contains(words), "{address}: {said}");
    }
}

/// The fabric's cable to a node carries less than the node's own end: what is larger is gone
/// without a word.
#[test]
fn a_path_that_swallows_large_packets_is_measured_and_routes_fit() {
    let test = "a_path_that_swallows_large_packets_is_measured_and_routes_fit";
    if linux::exec::which("ping").is_none() {
        println!("SKIPPED {test}: ping is not installed (iputils-ping)");
        return;
    }
    let Some(lab) = Lab::with(test, 3, true, &pace) else {
        return;
    };
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let fabric = |mtu| {
        let change = LinkChange {
            mtu: Some(mtu),
            ..LinkChange::default()
        };
        kernel(&lab.fabric).set_link("n2", &change).unwrap();
    };
    assert_eq!(sizes(&lab), [None; 4]);
    fabric(1400);
    // Node n3 has nothing to do with it.
    let narrow = [Some(1350), None, Some(1330), None];
    wait_until("the routes to fit", || sizes(&lab) == narrow);
    let told = [
        (1350, "Frag needed and DF set (mtu = 1350)"),
        (1330, "Packet too big: mtu=1330"),
    ];
    reaches(&a, &b, told);
    // What someone makes of them is put right.
    let mut route = lab.nodes[0].our_routes().remove(0);
    route.mtu = None;
    lab.nodes[0].kernel().replace_route(&route).unwrap();
    wait_until("the route to fit again", || sizes(&lab) == narrow);
    // Not enough for pods of IPv6, enough for those of IPv4.
    fabric(1300);
    wait_until("what can follow to do so", || {
        sizes(&lab) == [Some(1250), None, None, None]
    });
    fabric(9000);
    wait_until("the routes to be as before", || sizes(&lab) == [None; 4]);
}

/// A router between the nodes has a smaller link behind it, and says so.
#[test]
fn a_router_that_says_what_passes_is_believed_when_it_is_true() {
    let test = "a_router_that_says_what_passes_is_believed_when_it_is_true";
    if linux::exec::which("ping").is_none() {
        println!("SKIPPED {test}: ping is not installed (iputils-ping)");
        return;
    }
    let Some(lab) = Lab::with(test, 2, true, &pace) else {
        return;
    };
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let mut router = kernel(&lab.fabric);
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/br0/send_redirects", "0"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ] {
        router.set_sysctl(key, value).unwrap();
    }
    // Not even with forwarding on may it send the nodes past itself.
    for node in &lab.nodes {
        let mut host = node.kernel();
        for key in [
            "net/ipv4/conf/all/accept_redirects",
            "net/ipv4/conf/eth0/accept_redirects",
            "net/ipv6/conf/eth0/accept_redirects",
        ] {
            host.set_sysctl(key, "0").unwrap();
        }
    }
    let single = |ip: IpAddr| Route::to(api::cidr::host_net(ip)).dev("eth0");
    let through = |add: bool| {
        for (from, to) in [(0, 1), (1, 0)] {
            for (to, via) in lab.nodes[to].ips.iter().zip(&lab.outside) {
                let mut route = single(*to).via(*via);
                // Not the daemon's.
                route.protocol = linux::route::PROTOCOL_BOOT;
                let mut host = lab.nodes[from].kernel();
                let done = match add {
                    true => host.add_route(&route),
                    false => host.del_route(&route),
                };
                done.unwrap();
            }
        }
    };
    for node in &lab.nodes {
        for ip in &node.ips {
            let mut route = single(*ip).dev("br0");
            route.mtu = Some(1400);
            route.mtu_locked = true;
            router.add_route(&route).unwrap();
        }
    }
    through(true);
    wait_until("the routes to fit", || {
        sizes(&lab) == [Some(1350), Some(1330)]
    });
    let told = [
        (1350, "Frag needed and DF set (mtu = 1350)"),
        (1330, "Packet too big: mtu=1330"),
    ];
    reaches(&a, &b, told);
    through(false);
    wait_until("the routes to be as before", || sizes(&lab) == [None; 2]);
}

/// Without tunnels the route has the whole of what the path carries.
#[test]
fn host_gw_fits_its_routes_too() {
    let host_gw = |settings: &mut Settings| {
        settings.backend = Backend::HostGw(HostGw::default());
        pace(settings);
    };
    let Some(lab) = Lab::with("host_gw_fits_its_routes_too", 2, true, &host_gw) else {
        return;
    };
    let change = LinkChange {
        mtu: Some(1400),
        ..LinkChange::default()
    };
    kernel(&lab.fabric).set_link("n2", &change).unwrap();
    wait_until("the routes to fit", || sizes(&lab) == [Some(1400); 2]);
    // Nobody answers any more: what was learned stays, until the node is gone.
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    kernel(&lab.fabric).set_link("n2", &down).unwrap();
    lab.api.change("n2", |node| {
        node["metadata"]["labels"]["seen"] = serde_json::json!("again");
    });
    assert_eq!(sizes(&lab), [Some(1400); 2]);
    lab.api.delete("n2");
    wait_until("the routes to go", || sizes(&lab).is_empty());
}
