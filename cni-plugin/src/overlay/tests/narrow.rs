//! Paths that carry less than the link.

use super::super::path::{self, Target, Verdict};
use super::*;

/// The routes of one other node as text, with the packet size of each, and what was said.
fn routes(settings: &Settings, direct: bool, narrow: &[(&str, u32)]) -> Vec<String> {
    let mut ground = underlay();
    if direct {
        ground.routes = vec![
            (net("172.31.250.0/24"), true),
            (net("fd00:31:250::/64"), true),
        ];
    }
    let mut plan = plan::plan(settings, &own(), &ground);
    plan.ground.narrow = narrow.iter().map(|(to, mtu)| (ip(to), *mtu)).collect();
    let peer = peers(&[2]).entitled("n2", drop);
    let mut said = Vec::new();
    let all = plan::entries(settings, &plan.ground, "n2", &peer, |why| said.push(why));
    let routes = all.into_iter().filter_map(|entry| match entry {
        Entry::Route(route) => {
            let lock = if route.mtu_locked { " lock" } else { "" };
            let mtu = route.mtu.map(|mtu| format!(" mtu{lock} {mtu}"));
            Some(format!("{}{}", route.dst, mtu.unwrap_or_default()))
        }
        _ => None,
    });
    routes.chain(said).collect()
}

#[test]
fn routes_have_what_the_path_leaves() {
    let vxlan = settings("/x".into());
    let both = [("172.31.250.12", 1400), ("fd00:31:250::12", 1400)];
    let plain = ["10.244.2.0/24", "fd00:10:244:2::/64"];
    assert_eq!(routes(&vxlan, false, &[]), plain);
    assert_eq!(
        routes(&vxlan, false, &both),
        ["10.244.2.0/24 mtu 1350", "fd00:10:244:2::/64 mtu lock 1330"]
    );
    // Another node's path, and one that carries what the link does by now.
    let others = [("172.31.250.13", 1400), ("fd00:31:250::12", 1500)];
    assert_eq!(routes(&vxlan, false, &others), plain);
    assert_eq!(
        routes(&vxlan, false, &[("fd00:31:250::12", 1349), both[0]]),
        [
            "10.244.2.0/24 mtu 1350",
            "fd00:10:244:2::/64",
            "node n2: the path to fd00:31:250::12 carries packets of 1349 bytes, which leaves 1279 to IPv6 pods, which need 1280",
        ]
    );
    let directly = Settings {
        backend: Backend::Vxlan(Vxlan {
            direct_routing: true,
            ..Vxlan::default()
        }),
        ..settings("/x".into())
    };
    assert_eq!(
        routes(&directly, true, &both),
        ["10.244.2.0/24 mtu 1400", "fd00:10:244:2::/64 mtu lock 1400"]
    );
    assert_eq!(
        routes(&directly, false, &both),
        ["10.244.2.0/24 mtu 1350", "fd00:10:244:2::/64 mtu lock 1330"]
    );
}

#[test]
fn what_is_probed() {
    let peer = peers(&[2]).entitled("n2", drop);
    let targets = |settings: &Settings| {
        let ground = plan::plan(settings, &own(), &underlay()).ground;
        path::targets(settings, &ground, &peer)
    };
    let target = |from, to, top| Target {
        from: ip(from),
        to: ip(to),
        top,
    };
    let all = |top| {
        vec![
            target("172.31.250.11", "172.31.250.12", top),
            target("fd00:31:250::11", "fd00:31:250::12", top),
        ]
    };
    let mut settings = settings("/x".into());
    assert_eq!(targets(&settings), all(1500));
    settings.backend.set_mtu(1450);
    assert_eq!(targets(&settings), all(1450));
    // One way for the pods of both families.
    let over_v4 = WireGuard {
        mode: WireGuardMode::V4,
        ..WireGuard::default()
    };
    let wireguard = Settings {
        backend: Backend::WireGuard(over_v4),
        ..settings
    };
    assert_eq!(targets(&wireguard), all(1500)[..1]);
    assert_eq!(
        path::targets(
            &wireguard,
            &plan::plan(&wireguard, &own(), &underlay()).ground,
            &Peer::default()
        ),
        []
    );
}

#[test]
fn a_path_that_changes_has_its_routes_follow() {
    let mut overlay = Overlay::new(settings("/x".into()));
    let to = ip("172.31.250.12");
    let mut set = |verdict| overlay.set_path(to, verdict);
    for (verdict, changed) in [
        (Some(Verdict::Silent), false),
        (Some(Verdict::Whole), false),
        (Some(Verdict::Narrow(1400)), true),
        (Some(Verdict::Narrow(1400)), false),
        // It starts anew: nothing is learned of the path.
        (Some(Verdict::Silent), false),
        (Some(Verdict::Narrow(1300)), true),
        (Some(Verdict::Whole), true),
        (Some(Verdict::Whole), false),
        (Some(Verdict::Narrow(1400)), true),
        (None, true),
    ] {
        assert_eq!(set(verdict), changed, "{verdict:?}");
    }
}
