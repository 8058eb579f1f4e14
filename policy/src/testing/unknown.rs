//! Addresses of this node's networks that belong to no known pod.

use super::*;

#[test]
fn an_address_nobody_knows_is_closed_while_an_isolated_pod_waits_for_one() {
    let mut model = denied();
    let judge = |model: &Model, from: &str, to: &str| {
        outcome(model, "forward", from, to, Circumstances::FIRST)
    };
    assert_eq!(judge(&model, "10.0.0.3", "10.0.0.5"), Outcome::Pass);
    model.set_pod(&Key::new("x", "new"), Some(pod("n1", &[])));
    assert_eq!(judge(&model, "10.0.0.3", "10.0.0.5"), Outcome::Drop);
    assert_eq!(judge(&model, "fd00::5", "2001:db8::1"), Outcome::Drop);
    // Known pods, and other nodes' addresses, go on.
    assert_eq!(judge(&model, "192.0.2.1", "10.0.0.3"), Outcome::Pass);
    assert_eq!(judge(&model, "10.0.0.3", "10.0.0.77"), Outcome::Pass);
    model.set_pod(&Key::new("x", "new"), Some(pod("n1", &["10.0.0.5"])));
    assert_eq!(judge(&model, "10.0.0.3", "10.0.0.5"), Outcome::Drop);
    assert_eq!(judge(&model, "10.0.0.3", "10.0.0.6"), Outcome::Pass);
    // Nobody waits on another node's behalf, or for a pod that is not isolated.
    model.set_pod(&Key::new("x", "far"), Some(pod("n2", &[])));
    model.set_pod(&Key::new("y", "new"), Some(pod("n1", &[])));
    assert_eq!(judge(&model, "10.0.0.3", "10.0.0.6"), Outcome::Pass);
}

#[test]
fn an_address_nobody_knows_is_closed_at_all_times_if_asked_for() {
    let mut model = Model::new("n1");
    model.set_nets(vec![
        "10.0.0.0/24".parse().unwrap(),
        "fd00::/64".parse().unwrap(),
    ]);
    let known = [("a", "10.0.0.3"), ("b", "fd00::3")];
    for (name, ip) in known {
        model.set_pod(&Key::new("x", name), Some(pod("n1", &[ip])));
    }
    let rows = [
        ("10.0.0.3", "192.0.2.1", true),
        ("192.0.2.1", "10.0.0.3", true),
        ("2001:db8::1", "fd00::3", true),
        ("10.0.0.4", "192.0.2.1", false),
        ("192.0.2.1", "10.0.0.4", false),
        ("fd00::4", "2001:db8::1", false),
        // Of another node.
        ("10.0.0.3", "10.0.1.4", true),
    ];
    for closes in [false, true] {
        model.close_unknown(closes);
        assert!(model.take_dirty().whole);
        for (from, to, passes) in rows {
            let found = outcome(&model, "forward", from, to, Circumstances::FIRST);
            let expected = if passes || !closes {
                Outcome::Pass
            } else {
                Outcome::Drop
            };
            assert_eq!(found, expected, "{from} -> {to}, {closes}");
        }
        model.close_unknown(!closes);
    }
}
