//! Rows for the allocator, and the property that no address is leased twice.

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> Range {
    Range {
        subnet: subnet.parse().unwrap(),
        start: ip(start),
        end: ip(end),
        gateway: ip(gateway),
    }
}

fn set(ranges: Vec<Range>) -> RangeSet {
    RangeSet::new(ranges).unwrap()
}

fn small() -> RangeSet {
    set(vec![range(
        "10.1.0.0/29",
        "10.1.0.1",
        "10.1.0.6",
        "10.1.0.1",
    )])
}

/// What an empty pool gives, one after the other, each kept.
fn sequence(set: &RangeSet, mut last: Option<IpAddr>, n: usize) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut given = Vec::new();
    for _ in 0..n {
        match allocate(std::slice::from_ref(set), &[], &taken, &[last]) {
            Ok(leases) => {
                let address = leases[0].address.ip();
                assert!(taken.insert(address), "{address} was given twice");
                last = Some(address);
                given.push(leases[0].address.to_string());
            }
            Err(error) => given.push(error.to_string()),
        }
    }
    given
}

#[test]
fn addresses_go_around_and_skip_the_gateway() {
    let full = "IP pool 10.1.0.0/29 full: 5 of 5";
    assert_eq!(
        sequence(&small(), None, 6),
        [
            "10.1.0.2/29",
            "10.1.0.3/29",
            "10.1.0.4/29",
            "10.1.0.5/29",
            "10.1.0.6/29",
            full
        ]
    );
    assert_eq!(
        sequence(&small(), Some(ip("10.1.0.4")), 6),
        [
            "10.1.0.5/29",
            "10.1.0.6/29",
            "10.1.0.2/29",
            "10.1.0.3/29",
            "10.1.0.4/29",
            full
        ]
    );
    // The last one given may be in no range any more.
    assert_eq!(sequence(&small(), Some(ip("10.9.0.4")), 1), ["10.1.0.2/29"]);
    assert_eq!(sequence(&small(), Some(ip("10.1.0.6")), 1), ["10.1.0.2/29"]);
}

#[test]
fn ranges_of_a_set_follow_each_other() {
    let two = set(vec![
        range("10.1.0.0/24", "10.1.0.9", "10.1.0.10", "10.1.0.1"),
        range("10.2.0.0/16", "10.2.0.1", "10.2.0.2", "10.2.0.2"),
    ]);
    let full = "IP pool 10.1.0.0/24, 10.2.0.0/16 full: 3 of 3";
    assert_eq!(
        sequence(&two, None, 4),
        ["10.1.0.9/24", "10.1.0.10/24", "10.2.0.1/16", full]
    );
    let from_second = sequence(&two, Some(ip("10.2.0.1")), 4);
    assert_eq!(
        from_second,
        ["10.1.0.9/24", "10.1.0.10/24", "10.2.0.1/16", full]
    );
}

#[test]
fn ends_of_the_address_space_do_not_overflow() {
    let top = set(vec![range(
        "255.255.255.248/29",
        "255.255.255.254",
        "255.255.255.255",
        "255.255.255.249",
    )]);
    assert_eq!(
        sequence(&top, Some(ip("255.255.255.255")), 1),
        ["255.255.255.254/29"]
    );
    let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:";
    let (start, end) = (format!("{all}fffe"), format!("{all}ffff"));
    let top = set(vec![range(
        &format!("{all}fff0/124"),
        &start,
        &end,
        &format!("{all}fff1"),
    )]);
    assert_eq!(sequence(&top, Some(ip(&end)), 1), [format!("{start}/124")]);
}

#[test]
fn reach_of_networks() {
    for (net, wants) in [
        ("10.1.0.0/24", Some("10.1.0.1-10.1.0.254")),
        ("10.1.0.0/30", Some("10.1.0.1-10.1.0.2")),
        ("10.1.0.0/31", None),
        ("0.0.0.0/0", Some("0.0.0.1-255.255.255.254")),
        ("fd00::/126", Some("fd00::1-fd00::3")),
        ("fd00::/127", None),
    ] {
        let found = reach(net.parse().unwrap()).map(|(a, b)| format!("{a}-{b}"));
        assert_eq!(found.as_deref(), wants, "{net}");
    }
}

#[test]
fn both_families_and_wishes() {
    let sets = [
        small(),
        set(vec![range("fd00::/64", "fd00::1", "fd00::ffff", "fd00::1")]),
    ];
    let give = |wishes: &[&str], taken: &[&str]| {
        let wishes: Vec<IpAddr> = wishes.iter().map(|w| ip(w)).collect();
        let taken = taken.iter().map(|t| ip(t)).collect();
        match allocate(&sets, &wishes, &taken, &[None, None]) {
            Ok(leases) => leases
                .iter()
                .map(|l| l.address.to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(give(&[], &["fd00::2"]), "10.1.0.2/29 fd00::3/64");
    assert_eq!(give(&["fd00::9"], &[]), "10.1.0.2/29 fd00::9/64");
    assert_eq!(
        give(&["10.1.0.5", "fd00::9"], &[]),
        "10.1.0.5/29 fd00::9/64"
    );
    assert_eq!(
        give(&["10.1.0.5"], &["10.1.0.5"]),
        "requested address 10.1.0.5 is taken"
    );
    assert_eq!(
        give(&["10.1.0.1"], &[]),
        "requested address 10.1.0.1 is the gateway's"
    );
    let none = "is in none of the ranges that have one to give";
    assert_eq!(
        give(&["10.7.0.1"], &[]),
        format!("requested address 10.7.0.1 {none}")
    );
    assert_eq!(
        give(&["10.1.0.5", "10.1.0.6"], &[]),
        format!("requested address 10.1.0.6 {none}")
    );
}

proptest! {
    /// Any sequence of leases and releases: an address is never leased twice, is never a gateway's,
    /// is always in its range, and is only refused when there is none.
    #[test]
    fn an_address_is_never_leased_twice(
        prefix in 24u8..=30,
        operations in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..300),
    ) {
        let net: IpNetwork = format!("10.5.0.0/{prefix}").parse().unwrap();
        let (start, end) = reach(net).unwrap();
        let sets = [set(vec![Range { subnet: net, start, end, gateway: start }])];
        let capacity = usize::try_from(sets[0].capacity()).unwrap();
        let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
        let mut last = None;
        for (lease, which) in operations {
            if lease || taken.is_empty() {
                match allocate(&sets, &[], &taken, &[last]) {
                    Ok(leases) => {
                        let address = leases[0].address.ip();
                        prop_assert!(address != start && (start..=end).contains(&address));
                        prop_assert!(taken.insert(address));
                        last = Some(address);
                    }
                    Err(_) => prop_assert_eq!(taken.len(), capacity),
                }
            } else {
                let address = *which.get(&taken.iter().copied().collect::<Vec<_>>());
                taken.remove(&address);
            }
        }
    }
}
