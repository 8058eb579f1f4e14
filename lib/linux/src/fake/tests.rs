//! The fake applies, and fails when asked to.

use super::*;
use crate::addr::Addr;
use crate::host::Host;
use crate::link::{LinkChange, NewBridge, NewVeth};
use crate::route::Route;

fn wire(kernel: &FakeKernel) -> crate::Result<()> {
    let (mut node, mut pod) = (kernel.add_netns(), kernel.add_netns());
    node.add_bridge(&NewBridge {
        name: "cni0".into(),
        ..NewBridge::default()
    })?;
    node.add_veth(&NewVeth {
        name: "veth1".into(),
        master: Some("cni0".into()),
        peer_name: "eth0".into(),
        peer_netns: Some(pod.netns()),
        ..NewVeth::default()
    })?;
    node.set_link(
        "veth1",
        &LinkChange {
            hairpin: Some(true),
            ..LinkChange::up()
        },
    )?;
    pod.set_link("eth0", &LinkChange::up())?;
    pod.add_addr("eth0", &Addr::new("10.0.0.2/24".parse().unwrap()))?;
    let default = Route::to("0.0.0.0/0".parse().unwrap());
    pod.add_route(&default.via("10.0.0.1".parse().unwrap()).dev("eth0"))
}

#[test]
fn changes_apply_and_a_deleted_veth_takes_all_with_it() {
    let kernel = FakeKernel::new();
    wire(&kernel).unwrap();
    expect_test::expect![[r#"
        netns 0
          link cni0 bridge mtu 1500 down
          link lo mtu 65536 down
          link veth1 veth mtu 1500 up master cni0 hairpin
        netns 1
          link eth0 veth mtu 1500 up
            address 10.0.0.2/24
          link lo mtu 65536 down
          route default via 10.0.0.1 dev eth0
    "#]]
    .assert_eq(&kernel.dump());
    let mut node = FakeHost {
        world: Arc::clone(&kernel.world),
        space: 0,
    };
    node.delete_link("veth1").unwrap();
    assert!(!kernel.dump().contains("veth") && !kernel.dump().contains("route"));
    assert!(node.delete_link("veth1").unwrap_err().is_not_found());
}

#[test]
fn the_nth_change_fails_and_says_so() {
    for n in 1..=6 {
        let kernel = FakeKernel::new();
        kernel.fail(Failing::Once(n));
        let error = wire(&kernel).unwrap_err();
        assert!(error.to_string().ends_with("(injected failure)"), "{error}");
        assert_eq!(kernel.changes(), n);
    }
}
