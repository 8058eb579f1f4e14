use proptest::prelude::*;

use super::*;

fn nets(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[track_caller]
fn check(cluster: &str, mask: u8, used: &[&str], want: Option<&str>) {
    let got = allocate(cluster.parse().unwrap(), mask, &nets(used));
    assert_eq!(
        got,
        want.map(|text| text.parse().unwrap()),
        "{cluster} /{mask} without {used:?}"
    );
}

#[test]
fn allocation_rows() {
    check("10.244.0.0/16", 24, &[], Some("10.244.0.0/24"));
    check(
        "10.244.0.0/16",
        24,
        &["10.244.0.0/24"],
        Some("10.244.1.0/24"),
    );
    check(
        "10.244.0.0/16",
        24,
        &["10.244.1.0/24"],
        Some("10.244.0.0/24"),
    );
    check(
        "10.244.0.0/16",
        24,
        &["10.244.0.0/23"],
        Some("10.244.2.0/24"),
    );
    check(
        "10.244.0.0/16",
        24,
        &["10.244.0.128/25", "10.244.1.5/32"],
        Some("10.244.2.0/24"),
    );
    check(
        "10.244.0.0/16",
        24,
        &["10.96.0.0/16", "fd00::/8"],
        Some("10.244.0.0/24"),
    );
    check("10.0.0.0/8", 24, &["10.0.0.0/16"], Some("10.1.0.0/24"));
    check(
        "10.244.0.0/24",
        25,
        &["10.244.0.0/25", "10.244.0.128/25"],
        None,
    );
    check("10.244.0.0/24", 24, &[], Some("10.244.0.0/24"));
    check("10.244.0.0/24", 24, &["10.0.0.0/8"], None);
    check("10.244.0.0/24", 23, &[], None);
    check("0.0.0.0/0", 24, &["0.0.0.0/1"], Some("128.0.0.0/24"));
    check(
        "255.255.255.0/24",
        25,
        &["255.255.255.0/25"],
        Some("255.255.255.128/25"),
    );
    check("255.255.255.0/24", 25, &["255.255.255.0/24"], None);
    check("fd00:10:244::/56", 64, &[], Some("fd00:10:244::/64"));
    check(
        "fd00:10:244::/56",
        64,
        &["fd00:10:244::/64"],
        Some("fd00:10:244:1::/64"),
    );
    check(
        "fd00:10:244::/63",
        64,
        &["fd00:10:244::/64", "fd00:10:244:1::/64"],
        None,
    );
    check("::/0", 64, &["::/1"], Some("8000::/64"));
}

proptest! {
    /// Whatever is taken, in whatever sizes, a new slice overlaps nothing and lies inside the cluster.
    #[test]
    fn slices_never_overlap(
        prefix in 8_u8..=20,
        extra in 0_u8..=8,
        used in prop::collection::vec((any::<u32>(), 8_u8..=32), 0..12),
        count in 1_usize..40,
    ) {
        let cluster = IpNetwork::new(std::net::Ipv4Addr::new(10, 0, 0, 0).into(), prefix).unwrap();
        let mut taken: Vec<IpNetwork> = used
            .iter()
            .map(|(address, prefix)| {
                let address = std::net::Ipv4Addr::from(*address & 0x00ff_ffff | 0x0a00_0000);
                IpNetwork::new(address.into(), *prefix).unwrap()
            })
            .collect();
        for _ in 0..count {
            let Some(slice) = allocate(cluster, prefix + extra, &taken) else { break };
            let (start, end) = bounds(slice);
            let (first, last) = bounds(cluster);
            prop_assert!(start >= first && end <= last);
            for other in &taken {
                let (other_start, other_end) = bounds(*other);
                prop_assert!(end < other_start || start > other_end, "{slice} overlaps {other}");
            }
            taken.push(slice);
        }
    }
}
