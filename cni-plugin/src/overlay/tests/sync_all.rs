//! Everything compared and mended, on a host in memory.

use super::*;

#[test]
fn applied_twice_changes_nothing_and_the_conflist_comes_last() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    let first = sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!(first.failures, [""; 0]);
    assert!(first.changes > 0);
    let text = std::fs::read_to_string(dir.path().join("net.d/10-seaway.conflist")).unwrap();
    let before = dump(&kernel);
    let second = sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!(second.changes, 0);
    assert_eq!(dump(&kernel), before);
    // A node leaves, another comes; all leave.
    sync(&mut host, &dir, &peers(&[3, 4]));
    assert!(!kernel.dump().contains("10.244.2.0"));
    sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!(dump(&kernel), before);
    let pods = Pods {
        mtu: 1430,
        subnets: own().subnets,
    };
    assert_eq!(text, files::conflist(&settings(dir.path().into()), &pods));
    let names: Vec<_> = std::fs::read_dir(dir.path().join("net.d"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["10-seaway.conflist"]);
}

#[test]
fn a_failure_at_any_step_is_mended_by_the_next_sync() {
    let dir = tempfile::tempdir().unwrap();
    let good = {
        let kernel = FakeKernel::new();
        sync(&mut fake(&kernel), &dir, &peers(&[2, 3]));
        dump(&kernel)
    };
    for step in 1.. {
        for failing in [Failing::Once(step), Failing::From(step)] {
            let dir = tempfile::tempdir().unwrap();
            let kernel = FakeKernel::new();
            let mut host = fake(&kernel);
            kernel.fail(failing);
            let first = sync(&mut host, &dir, &peers(&[2, 3]));
            let written = dir.path().join("net.d/10-seaway.conflist").exists();
            if first.failures.is_empty() {
                assert!(step > 20 && written, "{step}");
                return;
            }
            assert!(!written, "{:?}", first.failures);
            kernel.fail(Failing::Never);
            let second = sync(&mut host, &dir, &peers(&[2, 3]));
            assert_eq!(second.failures, [""; 0], "after {:?}", first.failures);
            assert_eq!(dump(&kernel), good, "after {:?}", first.failures);
        }
    }
}

type Break<'a> = &'a dyn Fn(&mut FakeHost);

#[test]
fn what_someone_broke_is_mended_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    sync(&mut host, &dir, &peers(&[2]));
    let good = dump(&kernel);
    let foreign = Mac([2, 0, 0, 0, 0, 9]);
    let breaks: [(&str, Break<'_>); 6] = [
        ("= link seaway.1 up\n", &|h| {
            h.set_link("seaway.1", &LinkChange::down()).unwrap();
        }),
        (
            "= link seaway.1 mtu 1450 address 0a:ed:6d:c3:a3:b9\n",
            &|h| {
                let change = LinkChange {
                    mtu: Some(1400),
                    mac: Some(foreign),
                    ..LinkChange::default()
                };
                h.set_link("seaway.1", &change).unwrap();
            },
        ),
        (
            "- addr 192.0.2.1/32 dev seaway.1\n+ addr 10.244.1.0/32 dev seaway.1\n",
            &|h| {
                h.del_addr("seaway.1", net("10.244.1.0/32")).unwrap();
                h.add_addr("seaway.1", &Addr::new(net("192.0.2.1/32")))
                    .unwrap();
            },
        ),
        (
            "- neigh 192.0.2.1 lladdr 02:00:00:00:00:09 dev seaway.1\n",
            &|h| {
                let neigh = Neigh::permanent(ip("192.0.2.1"), foreign);
                h.replace_neigh("seaway.1", &neigh).unwrap();
            },
        ),
        (
            "- fdb 02:00:00:00:00:09 dst 192.0.2.1 dev seaway.1\n",
            &|h| {
                let entry = FdbEntry {
                    mac: foreign,
                    dst: Some(ip("192.0.2.1")),
                };
                h.replace_fdb("seaway.1", &entry).unwrap();
            },
        ),
        (
            "+ fdb 0a:8a:fa:bb:ab:b7 dst 172.31.250.12 dev seaway.1\n",
            &|h| {
                let mut entry = h.fdb("seaway.1").unwrap().remove(0);
                entry.dst = Some(ip("192.0.2.1"));
                h.replace_fdb("seaway.1", &entry).unwrap();
            },
        ),
    ];
    for (expect, break_it) in breaks {
        break_it(&mut host);
        let settings = settings(dir.path().into());
        let (plan, entries) = planned(&own(), &underlay(), &peers(&[2]));
        let seen = observe(&mut host, &settings, &plan.desired).unwrap();
        let changes = diff::diff(&settings, &plan.desired, &entries, &seen);
        let text: String = changes.iter().map(|c| format!("{c}\n")).collect();
        assert_eq!(text, expect);
        assert!(apply::apply(&mut host, &changes).is_empty());
        assert_eq!(dump(&kernel), good);
    }
}

fn vxlan_of(plan: &Plan) -> NewVxlan {
    match &plan.desired.devices["seaway.1"].kind {
        DeviceKind::Vxlan { new, .. } => new.clone(),
        DeviceKind::WireGuard(_) => panic!(),
    }
}

#[test]
fn a_device_is_made_anew_only_if_it_must() {
    let want = planned(&own(), &underlay(), &peers(&[]));
    let fitting = vxlan_of(&want.0);
    for (new, anew) in [
        (fitting.clone(), false),
        (
            NewVxlan {
                mtu: Some(1300),
                mac: None,
                ..fitting.clone()
            },
            false,
        ),
        (
            NewVxlan {
                vni: 2,
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                port: 4789,
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                local: Some(ip("172.31.250.99")),
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                learning: true,
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                gbp: true,
                ..fitting
            },
            true,
        ),
    ] {
        let mut host = fake(&FakeKernel::new());
        host.add_vxlan(&new).unwrap();
        let settings = settings("/x".into());
        let seen = observe(&mut host, &settings, &want.0.desired).unwrap();
        let text = lines(&want, &seen);
        assert_eq!(text.contains("- link seaway.1\n"), anew, "{new:?}\n{text}");
        let changes = diff::diff(&settings, &want.0.desired, &want.1, &seen);
        assert!(apply::apply(&mut host, &changes).is_empty());
        let seen = observe(&mut host, &settings, &want.0.desired).unwrap();
        assert_eq!(lines(&want, &seen), "");
    }
}

#[test]
fn a_node_that_forwards_keeps_listening_to_routers() {
    for (there, expect) in [("1", "2"), ("0", "0"), ("2", "2")] {
        let dir = tempfile::tempdir().unwrap();
        let mut host = fake(&FakeKernel::new());
        host.preset_sysctl("net/ipv6/conf/eth0/accept_ra", there);
        sync(&mut host, &dir, &peers(&[]));
        let now = host.sysctl("net/ipv6/conf/eth0/accept_ra").unwrap();
        assert_eq!(now, expect);
    }
}

#[test]
fn another_device_in_the_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = fake(&FakeKernel::new());
    let flannel = NewVxlan {
        name: "flannel.1".into(),
        ..vxlan_of(&planned(&own(), &underlay(), &peers(&[])).0)
    };
    host.add_vxlan(&flannel).unwrap();
    let synced = sync(&mut host, &dir, &peers(&[]));
    let named = synced
        .failures
        .iter()
        .any(|f| f.contains("flannel.1 has VNI 1 and port 8472 already"));
    assert!(named || synced.failures.is_empty(), "{:?}", synced.failures);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn from_any_nodes_to_any_nodes(
        before in prop::collection::btree_set(2_u8..9, 0..6),
        after in prop::collection::btree_set(2_u8..9, 0..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::new();
        let mut host = fake(&kernel);
        let of = |set: std::collections::BTreeSet<u8>| peers(&set.into_iter().collect::<Vec<_>>());
        let after = of(after);
        sync(&mut host, &dir, &of(before));
        let there = sync(&mut host, &dir, &after);
        prop_assert_eq!(there.failures, [""; 0]);
        prop_assert_eq!(sync(&mut host, &dir, &after).changes, 0);
        let fresh = FakeKernel::new();
        sync(&mut fake(&fresh), &dir, &after);
        prop_assert_eq!(dump(&kernel), dump(&fresh));
    }
}
