//! What this node tells, and what others do.

use super::*;

#[test]
fn the_address_that_is_told() {
    let overwrite = (node::PUBLIC_IP_OVERWRITE, "192.0.2.1");
    let chosen = (node::NODE_PUBLIC_IP, "192.0.2.3");
    let broken = (node::PUBLIC_IP_OVERWRITE, "fd00::1");
    for (annotations, flag, expect) in [
        (&[][..], None, "172.31.250.11"),
        (&[chosen], None, "192.0.2.3"),
        (&[chosen], Some("192.0.2.2"), "192.0.2.2"),
        (&[overwrite, chosen], Some("192.0.2.2"), "192.0.2.1"),
        (&[broken], None, "172.31.250.11"),
    ] {
        let mut own = own();
        own.annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let settings = Settings {
            public: flag.into_iter().map(ip).collect(),
            ..settings("/x".into())
        };
        let plan = plan::plan(&settings, &own, &underlay());
        let told = plan.annotations[node::PUBLIC_IP].as_deref();
        assert_eq!(told, Some(expect), "{annotations:?} {flag:?}");
        // IPv6 has its own.
        let told = plan.annotations[node::PUBLIC_IPV6].as_deref();
        assert_eq!(told, Some("fd00:31:250::11"));
    }
}

#[test]
fn old_flannel_tells_no_vni_and_one_without_a_family_tells_null() {
    let backend = settings("/x".into()).backend;
    let read = |key: &str, text: &str| {
        let mut value = node_json(2);
        value["metadata"]["annotations"][key] = json!(text);
        let mut problems = Vec::new();
        let peer = node::peer(&node(value), &backend, &mut problems);
        assert_eq!(problems, [""; 0]);
        (peer.v4.is_some(), peer.v6.is_some())
    };
    let old = r#"{"VtepMAC":"0a:00:00:00:00:01"}"#;
    assert_eq!(read(node::BACKEND_DATA, old), (true, true));
    assert_eq!(read(node::BACKEND_V6_DATA, "null"), (true, false));
    // Not flannel's nor ours.
    assert_eq!(read(node::SUBNET_MANAGER, "false"), (false, false));
}

#[test]
fn a_kernel_that_spoils_checksums_does_not_get_to() {
    for (kernel, broken) in [("5.4.0", true), ("6.1.0", false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut host = fake(&FakeKernel::new());
        let settings = Settings {
            kernel: kernel.into(),
            ..settings(dir.path().into())
        };
        let (_, mut overlay) = sync_with(&settings, &mut host, &peers(&[]));
        assert_eq!(host.tx_checksum("seaway.1").unwrap(), !broken);
        host.set_tx_checksum("seaway.1", true).unwrap();
        overlay.all(&mut host, &own(), &peers(&[])).unwrap();
        assert_eq!(host.tx_checksum("seaway.1").unwrap(), !broken);
    }
}
