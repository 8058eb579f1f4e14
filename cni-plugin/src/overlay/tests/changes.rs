//! One node, or one entry, at a time.

use super::*;

#[test]
fn lists_and_changes_of_nodes() {
    let settings = settings("/x".into());
    let mut nodes = Nodes::default();
    let mut take = |event| nodes.take(&settings, event);
    let listed = |i| Event::InitApply(node(node_json(i)));
    let nothing = News::default();
    let all = News {
        all: true,
        ..News::default()
    };
    let some = |name: &str| News {
        names: [name.to_owned()].into(),
        ..News::default()
    };
    assert_eq!(take(Event::Init), nothing);
    assert_eq!(
        (take(listed(1)), take(listed(2))),
        (nothing.clone(), nothing.clone())
    );
    assert_eq!(take(Event::InitDone), all);
    // The same list again changes nothing, nor does what does not concern us.
    assert_eq!(take(Event::Init), nothing);
    assert_eq!(
        (take(listed(2)), take(listed(1))),
        (nothing.clone(), nothing.clone())
    );
    assert_eq!(take(Event::InitDone), nothing);
    let mut value = node_json(2);
    value["metadata"]["annotations"]["other/annotation"] = json!("y");
    assert_eq!(take(Event::Apply(node(value))), nothing);
    assert_eq!(take(Event::Apply(node(node_json(3)))), some("n3"));
    // One that says nonsense is told of by its name.
    let mut value = node_json(3);
    value["metadata"]["annotations"][node::PUBLIC_IP] = json!("x");
    assert_eq!(take(Event::Apply(node(value))), some("n3"));
    assert_eq!(take(Event::Delete(node(node_json(3)))), some("n3"));
    assert_eq!(take(Event::Delete(node(node_json(3)))), nothing);
    // This node's deletion is not a reason to do anything; its change concerns everything.
    assert_eq!(take(Event::Delete(node(node_json(1)))), nothing);
    let mut value = node_json(1);
    value["spec"]["podCIDRs"] = json!(["10.244.9.0/24"]);
    assert_eq!(take(Event::Apply(node(value))), all);
}

/// A change of one node costs what it changes: the kernel is asked for nothing, and what is made is
/// what a full comparison would make.
#[test]
fn one_node_at_a_time_ends_where_all_at_once_does() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path().into());
    let (kernel, fresh) = (FakeKernel::new(), FakeKernel::new());
    let mut host = fake(&kernel);
    let mut peers = peers(&[2, 3]);
    let (_, mut overlay) = sync_with(&settings, &mut host, &peers);
    let step = |peers: &mut Peers, overlay: &mut Overlay, host: &mut FakeHost, change| {
        let (name, peer): (&str, Option<Peer>) = change;
        let names = peers.set(name, peer);
        kernel.fail(Failing::Never);
        let synced = overlay.nodes(host, peers, &names);
        assert_eq!(synced.failures, [""; 0]);
        assert_eq!(synced.changes, kernel.changes());
        synced.changes
    };
    let new = |i: u8| Some(self::peers(&[i]).entitled(&format!("n{i}"), |_| {}));
    // Three entries for each family.
    assert_eq!(step(&mut peers, &mut overlay, &mut host, ("n4", new(4))), 6);
    assert_eq!(step(&mut peers, &mut overlay, &mut host, ("n2", None)), 6);
    // Another outer address: the forwarding entry alone.
    let mut moved = new(3).unwrap();
    moved.v4.as_mut().unwrap().public = ip("172.31.250.33");
    assert_eq!(
        step(&mut peers, &mut overlay, &mut host, ("n3", Some(moved))),
        1
    );
    sync_with(&settings, &mut fake(&fresh), &peers);
    assert_eq!(dump(&kernel), dump(&fresh));
    // Whoever claims the same waits until the first goes.
    let mut same = new(5).unwrap();
    same.v6 = None;
    same.v4.as_mut().unwrap().subnet = net("10.244.4.0/24");
    step(&mut peers, &mut overlay, &mut host, ("n5", Some(same)));
    let problems: Vec<_> = overlay.problems().cloned().collect();
    assert_eq!(
        problems,
        ["node n5 is left out: 10.244.4.0/24 is another node's too"]
    );
    step(&mut peers, &mut overlay, &mut host, ("n4", None));
    assert_eq!(overlay.problems().count(), 0);
    let fresh = FakeKernel::new();
    sync_with(&settings, &mut fake(&fresh), &peers);
    assert_eq!(dump(&kernel), dump(&fresh));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever nodes come, go and claim, in whatever order: the same as all at once.
    #[test]
    fn any_order_of_changes_of_nodes(
        changes in prop::collection::vec((2_u8..7, 2_u8..7, any::<bool>()), 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path().into());
        let (kernel, fresh) = (FakeKernel::new(), FakeKernel::new());
        let mut host = fake(&kernel);
        let mut peers = Peers::default();
        let (_, mut overlay) = sync_with(&settings, &mut host, &peers);
        for (i, claim, there) in changes {
            let name = format!("n{i}");
            let mut peer = self::peers(&[i]).entitled(&name, |_| {});
            // Some claim the network of another.
            peer.v4.as_mut().unwrap().subnet = net(&format!("10.244.{claim}.0/24"));
            let names = peers.set(&name, there.then_some(peer));
            let synced = overlay.nodes(&mut host, &peers, &names);
            prop_assert_eq!(synced.failures, [""; 0]);
        }
        let (_, all) = sync_with(&settings, &mut fake(&fresh), &peers);
        prop_assert_eq!(dump(&kernel), dump(&fresh));
        let words = |o: &Overlay| o.problems().cloned().collect::<Vec<_>>();
        prop_assert_eq!(words(&overlay), words(&all));
        prop_assert_eq!(overlay.all(&mut host, &own(), &peers).unwrap().changes, 0);
    }
}

/// What the kernel tells is mended for itself, with nothing listed.
#[test]
fn told_entries_are_mended_alone() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    let settings = settings(dir.path().into());
    let (_, mut overlay) = sync_with(&settings, &mut host, &peers(&[2]));
    let good = dump(&kernel);
    let (_, entries) = planned(&own(), &underlay(), &peers(&[2]));
    for (key, entry) in &entries {
        // As it should be: our own echo.
        assert_eq!(overlay.told(&mut host, key, Some(entry)).changes, 0);
        // Removed.
        apply::apply(&mut host, &[diff::Change::Del(entry.clone())]);
        assert_ne!(dump(&kernel), good);
        assert_eq!(overlay.told(&mut host, key, None).failures, [""; 0]);
        assert_eq!(dump(&kernel), good);
    }
    // One of nobody's.
    let foreign = Entry::Neigh(
        "seaway.1".into(),
        Neigh::permanent(ip("192.0.2.1"), Mac([2, 0, 0, 0, 0, 9])),
    );
    apply::apply(&mut host, &[diff::Change::Set(foreign.clone())]);
    overlay.told(&mut host, &foreign.key(), Some(&foreign));
    assert_eq!(dump(&kernel), good);
    // Its echo.
    let synced = overlay.told(&mut host, &foreign.key(), None);
    assert_eq!(synced, Synced::default());
}
