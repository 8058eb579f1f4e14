//! Rows for what is wrong with leases.

use super::*;

fn owner(container: &str) -> Attachment {
    Attachment {
        container_id: container.into(),
        ifname: if container.is_empty() { "" } else { "eth0" }.into(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One lease and one state of the node; what is found.
#[track_caller]
fn check(lease: Option<(&str, bool)>, seen: &Scan, wants: &[&str]) {
    let record = |(container, young): (&str, bool)| Record {
        owner: owner(container),
        young,
    };
    let leases = lease.map(|lease| (ip("10.1.0.2"), record(lease)));
    let found = findings("pods", &leases.into_iter().collect(), seen);
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts, wants);
}

#[test]
fn a_lease_stays_while_anything_speaks_for_it() {
    let nothing = Scan::default();
    let address = Scan {
        used: [ip("10.1.0.2")].into(),
        ..Scan::default()
    };
    let link = Scan {
        host_links: [host_link_name("pods", &owner("c1"))].into(),
        ..Scan::default()
    };
    let attached = |container: &str| Scan {
        attached: [(owner(container), vec![ip("10.1.0.2")])].into(),
        ..address.clone()
    };
    let gone = "10.1.0.2: leased to c1 eth0, which no longer exists";
    check(Some(("c1", false)), &nothing, &[gone]);
    check(Some(("c1", true)), &nothing, &[]);
    check(Some(("c1", false)), &address, &[]);
    check(Some(("c1", false)), &link, &[]);
    check(Some(("c1", false)), &attached("c1"), &[]);
    // Files that say nothing.
    check(
        Some(("", false)),
        &nothing,
        &["10.1.0.2: the lease names no container"],
    );
    check(Some(("", true)), &nothing, &[]);
    let foreign = "10.1.0.2: the lease names no container, but an interface has the address";
    check(Some(("", false)), &address, &[foreign]);
    let not_noted = "10.1.0.2: in use by c1 eth0, but not leased to it";
    check(Some(("", false)), &attached("c1"), &[not_noted]);
    // A lease that is lost, or another's.
    check(None, &attached("c1"), &[not_noted]);
    check(Some(("c2", false)), &attached("c1"), &[not_noted]);
    check(None, &address, &[]);
}

#[test]
fn repairs_leave_nothing_to_find_and_take_nothing_from_a_pod() {
    let dir = tempfile::tempdir().unwrap();
    let store = LeaseStore::open(dir.path(), "pods").unwrap();
    let files = dir.path().join("pods");
    std::fs::write(files.join("10.1.0.2"), "gone\r\neth0").unwrap();
    std::fs::write(files.join("10.1.0.3"), [0xff, 0xfe]).unwrap();
    std::fs::create_dir(files.join("10.1.0.4")).unwrap();
    std::fs::write(files.join("10.1.0.6"), "other\r\neth0").unwrap();
    std::fs::write(files.join("last_reserved_ip.0"), "nonsense").unwrap();
    let seen = Scan {
        used: [ip("10.1.0.5"), ip("10.1.0.4"), ip("10.1.0.6")].into(),
        attached: [
            (owner("c5"), vec![ip("10.1.0.5")]),
            (owner("c4"), vec![ip("10.1.0.4")]),
        ]
        .into(),
        ..Scan::default()
    };
    let look = || {
        let old = |(address, owner)| {
            let young = false;
            (address, Record { owner, young })
        };
        findings(
            "pods",
            &store.all().unwrap().into_iter().map(old).collect(),
            &seen,
        )
    };
    assert_eq!(look().len(), 4);
    for finding in look() {
        assert!(repair(&store, &finding).unwrap());
    }
    assert_eq!(look(), []);
    let all = store.all().unwrap();
    let kept: Vec<String> = all
        .iter()
        .map(|(ip, o)| format!("{ip} {}", o.container_id))
        .collect();
    assert_eq!(kept, ["10.1.0.4 c4", "10.1.0.5 c5", "10.1.0.6 other"]);
    assert_eq!(store.last(0).unwrap(), None);
    // The owner finds its own again, and gives it back.
    assert_eq!(store.release(&owner("c4")).unwrap(), [ip("10.1.0.4")]);
}
