//! The verbs on a node in memory, with a failure at every change.

use std::path::Path;

use linux::fake::{Failing, FakeHost, FakeKernel};
use serde_json::json;

use std::fs;

use api::cni::Attachment;

use super::*;
use crate::firewall::fake::FakeFirewall;
use crate::lease_store::LeaseStore;

/// A node and a pod in memory, leases in a directory of their own.
struct Lab {
    kernel: FakeKernel,
    node: FakeHost,
    pod: FakeHost,
    firewall: FakeFirewall,
    dir: tempfile::TempDir,
    /// What the configuration says besides.
    options: Value,
}

/// Everything that a pod can have.
fn everything() -> Value {
    json!({
        "ipMasq": true, "macspoofchk": true, "vlan": 5, "vlanTrunk": [{"id": 7}],
        "runtimeConfig": {
            "portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}],
            "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000,
                          "egressRate": 8000, "egressBurst": 8000}
        }
    })
}

/// No plugin is called that would want to know more.
fn call(conf: &Value) -> Call<'_> {
    Call {
        env: &|_| None,
        conf,
    }
}

impl Lab {
    fn new() -> Self {
        Self::with(json!({}))
    }

    fn with(options: Value) -> Self {
        let kernel = FakeKernel::new();
        let (node, pod) = (kernel.add_netns(), kernel.add_netns());
        Self {
            firewall: FakeFirewall::new(&kernel),
            kernel,
            node,
            pod,
            dir: tempfile::tempdir().unwrap(),
            options,
        }
    }

    fn request(&self, command: Command, container: &str, changes: &Value) -> Request {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "seaway-cni",
            "ipam": {
                "type": "seaway", "dataDir": self.dir.path(),
                "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]
            }
        });
        for (key, value) in changes.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let env = |name: &str| match name {
            "CNI_CONTAINERID" => Some(container.to_owned()),
            "CNI_NETNS" => Some("/run/netns/p".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            _ => None,
        };
        Request::parse(Role::Seaway, command, &env, &conf).unwrap()
    }

    fn add(&self) -> Result<AddResult, Error> {
        let request = self.request(Command::Add, "c1", &self.options);
        let Verb::Add(pod) = request.verb else {
            panic!("not ADD")
        };
        add(
            &request.net,
            &pod,
            &mut self.node.clone(),
            &mut self.pod.clone(),
            &mut self.firewall.clone(),
            call(&Value::Null),
        )
    }

    fn del(&self, with_pod: bool) -> Result<(), Error> {
        let request = self.request(Command::Del, "c1", &self.options);
        let Verb::Del { owner, .. } = request.verb else {
            panic!("not DEL")
        };
        let inside = with_pod.then(|| self.pod.clone());
        del(
            &request.net,
            &owner,
            &mut self.node.clone(),
            inside,
            &mut self.firewall.clone(),
            call(&Value::Null),
        )
    }

    /// Leases in the directory.
    fn leases(&self) -> usize {
        match LeaseStore::open_existing(self.dir.path(), "pods").unwrap() {
            Some(store) => store.taken().unwrap().len(),
            None => 0,
        }
    }

    /// What is there of pods: everything but the node's bridge and settings, which stay.
    fn pods(&self) -> String {
        let dump = self.kernel.dump();
        let mut lines = Vec::new();
        let mut bridge = false;
        for line in dump.lines() {
            let of_node = |name: &str| line.starts_with(&format!("  link {name}"));
            bridge = of_node("cni0") || of_node("vg") || bridge && line.starts_with("    ");
            if !bridge && !line.contains("sysctl") {
                lines.push(line);
            }
        }
        lines.join("\n") + &self.firewall.dump().join("\n")
    }

    /// Everything of pods is forgotten but what is listed.
    fn gc(&self, valid: &[Attachment]) {
        let net = self.request(Command::Del, "c1", &self.options).net;
        let firewall = &mut self.firewall.clone();
        gc(
            &net,
            valid,
            &mut self.node.clone(),
            firewall,
            call(&Value::Null),
        )
        .unwrap();
    }
}

#[test]
fn add_then_del_leaves_only_the_bridge() {
    let lab = Lab::new();
    let start = lab.pods();
    let result = lab.add().unwrap();
    assert_eq!(result.addresses_of("eth0").len(), 2);
    assert_eq!(lab.leases(), 2);
    expect_test::expect![[r#"
        netns 0
          link cni0 bridge mtu 1500 up
            address 10.1.0.1/24
            address fd00:1::1/64
          link lo mtu 65536 down
          link vethf842bfb2cb4 veth mtu 1500 up master cni0 hairpin alias "seaway:pods:c1:eth0"
          sysctl net/ipv4/ip_forward = 1
          sysctl net/ipv6/conf/all/forwarding = 1
        netns 1
          link eth0 veth mtu 1500 up
            address 10.1.0.2/24
            address fd00:1::2/64
          link lo mtu 65536 up
          route default (IPv6) via fd00:1::1 dev eth0
          route default via 10.1.0.1 dev eth0
    "#]]
    .assert_eq(&lab.kernel.dump());
    let again = "eth0 of c1 has address 10.1.0.2 already; DEL must come before another ADD";
    assert_eq!(lab.add().unwrap_err().msg, again);
    assert_eq!(
        lab.leases(),
        2,
        "the refused ADD has taken nothing and given nothing back"
    );
    lab.del(true).unwrap();
    assert_eq!(lab.leases(), 0);
    // Only `lo`, which the pod keeps, is another than before.
    assert_eq!(
        lab.pods(),
        start.replace(
            "netns 1\n  link lo mtu 65536 down",
            "netns 1\n  link lo mtu 65536 up"
        )
    );
    lab.del(true).unwrap();
    lab.del(false).unwrap();
}

#[test]
fn every_change_of_add_may_fail() {
    for options in [json!({}), everything()] {
        let count = {
            let lab = Lab::with(options.clone());
            lab.add().unwrap();
            lab.kernel.changes()
        };
        assert!(count > 10, "{count} changes");
        for n in 1..=count {
            let lab = Lab::with(options.clone());
            let start = lab.pods();
            lab.kernel.fail(Failing::Once(n));
            let error = lab.add().unwrap_err();
            assert_eq!(error.code, ErrorCode::KERNEL);
            assert!(error.msg.ends_with("(injected failure)"), "{error}");
            assert_eq!(lab.leases(), 0, "change {n}");
            assert_eq!(lab.pods(), start, "change {n}");
            // And it works when it is tried again.
            lab.add().unwrap();
        }
    }
}

#[test]
fn add_may_be_killed_before_every_change() {
    enum Way {
        Del { with_pod: bool },
        Gc,
    }
    for options in [json!({}), everything()] {
        for way in [
            Way::Del { with_pod: true },
            Way::Del { with_pod: false },
            Way::Gc,
        ] {
            for n in 1.. {
                let lab = Lab::with(options.clone());
                let start = lab.pods();
                lab.kernel.fail(Failing::From(n));
                let done = lab.add().is_ok();
                lab.kernel.fail(Failing::Never);
                for _twice in 0..2 {
                    match way {
                        Way::Del { with_pod } => lab.del(with_pod).unwrap(),
                        Way::Gc => lab.gc(&[]),
                    }
                }
                assert_eq!(lab.leases(), 0, "change {n}");
                let after = lab.pods().replace(
                    "netns 1\n  link lo mtu 65536 up",
                    "netns 1\n  link lo mtu 65536 down",
                );
                assert_eq!(after, start, "change {n}");
                lab.add().unwrap();
                if done {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_taken_back_is_told() {
    let lab = Lab::new();
    // Everything from the pair's own settings on fails, also its removal.
    let at = (1..).find(|n| {
        let lab = Lab::new();
        lab.kernel.fail(Failing::Once(*n));
        lab.add().unwrap_err().msg.contains("hairpin")
    });
    lab.kernel.fail(Failing::From(at.unwrap()));
    let error = lab.add().unwrap_err().msg;
    assert!(
        error.contains("; also, taking back what was done: delete link veth"),
        "{error}"
    );
}

#[test]
fn del_keeps_the_address_while_an_interface_has_it() {
    let lab = Lab::new();
    lab.add().unwrap();
    let changes = ["set veth", "delete link veth"];
    for (n, title) in (1..).zip(changes) {
        lab.kernel.fail(Failing::Once(n));
        let error = lab.del(true).unwrap_err();
        assert!(error.msg.starts_with(title), "{error:?}");
        assert_eq!(lab.leases(), 2);
        if n == 1 {
            // The link went all the same.
            lab.del(true).unwrap();
            lab.add().unwrap();
        }
    }
    lab.del(true).unwrap();
    assert_eq!(lab.leases(), 0);
}

#[test]
fn gc_removes_all_that_is_not_listed() {
    let lab = Lab::new();
    lab.add().unwrap();
    let other = Attachment {
        container_id: "c9".into(),
        ifname: "eth0".into(),
    };
    let net = lab.request(Command::Add, "c1", &json!({})).net;
    let c1 = Attachment {
        container_id: "c1".into(),
        ifname: "eth0".into(),
    };
    let collect = |valid: &[Attachment]| {
        let firewall = &mut lab.firewall.clone();
        gc(
            &net,
            valid,
            &mut lab.node.clone(),
            firewall,
            call(&Value::Null),
        )
        .unwrap();
    };
    collect(&[c1, other.clone()]);
    assert_eq!(lab.leases(), 2);
    collect(&[other]);
    assert_eq!(lab.leases(), 0);
    assert!(!lab.kernel.dump().contains("veth"));
}

#[test]
fn a_full_pool_says_so_and_status_too() {
    let lab = Lab::new();
    let ranges = json!([[{"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.2"}]]);
    let ipam = json!({"ipam": {"type": "seaway", "dataDir": lab.dir.path(), "ranges": ranges}});
    let attach = |container: &str, pod: &FakeHost| {
        let request = lab.request(Command::Add, container, &ipam);
        let Verb::Add(wanted) = request.verb else {
            panic!("not ADD")
        };
        add(
            &request.net,
            &wanted,
            &mut lab.node.clone(),
            &mut pod.clone(),
            &mut lab.firewall.clone(),
            call(&Value::Null),
        )
    };
    attach("c1", &lab.pod).unwrap();
    let error = attach("c2", &lab.kernel.add_netns()).unwrap_err();
    assert_eq!(error.code, ErrorCode::ADDRESS);
    assert_eq!(error.msg, "IP pool 10.1.0.0/29 full: 1 of 1");
    let error = status(
        &lab.request(Command::Status, "x", &ipam).net,
        call(&Value::Null),
    )
    .unwrap_err();
    assert_eq!(error.code, ErrorCode::NOT_AVAILABLE);
    assert_eq!(error.msg, "IP pool 10.1.0.0/29 full: 1 of 1");
}

#[test]
fn a_resolver_configuration_becomes_dns() {
    let lab = Lab::new();
    let file = lab.dir.path().join("resolv.conf");
    fs::write(&file, "nameserver 10.96.0.10\n").unwrap();
    let ipam = |file: &Path| {
        json!({"ipam": {"type": "seaway", "dataDir": lab.dir.path(),
            "ranges": [[{"subnet": "10.1.0.0/24"}]], "resolvConf": file}})
    };
    let attach = |file: &Path| {
        let request = lab.request(Command::Add, "c1", &ipam(file));
        let Verb::Add(pod) = request.verb else {
            panic!("not ADD")
        };
        let (node, inside) = (&mut lab.node.clone(), &mut lab.pod.clone());
        let firewall = &mut lab.firewall.clone();
        add(
            &request.net,
            &pod,
            node,
            inside,
            firewall,
            call(&Value::Null),
        )
    };
    let error = attach(Path::new("/no/such")).unwrap_err();
    assert_eq!(error.code, ErrorCode::IO);
    assert!(
        error.msg.starts_with("ipam.resolvConf: read /no/such: "),
        "{error}"
    );
    assert_eq!(attach(&file).unwrap().dns.nameservers, ["10.96.0.10"]);
}

#[test]
fn version_needs_no_network() {
    let env = |name: &str| (name == "CNI_COMMAND").then(|| "VERSION".to_owned());
    let answer = run("seaway-cni", &env, br#"{"cniVersion": "0.4.0"}"#)
        .unwrap()
        .unwrap();
    let versions = json!([
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"
    ]);
    assert_eq!(
        answer,
        json!({"cniVersion": "0.4.0", "supportedVersions": versions})
    );
    assert_eq!(run("x", &env, b"").unwrap().unwrap()["cniVersion"], "1.1.0");
}

/// Row C15 of the specification: at boot, flannel's file comes later than the first pods.
#[test]
fn without_flannels_file_add_may_be_tried_again_and_status_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("subnet.env");
    let conf = json!({
        "cniVersion": "1.1.0", "name": "f", "type": "flannel",
        "subnetFile": file, "dataDir": dir.path().join("data"),
        "delegate": {"type": "seaway-cni"},
        "ipam": {"type": "host-local", "dataDir": dir.path().join("leases")},
    });
    let env = |key: &str| (key == "CNI_CONTAINERID").then(|| "c1".to_owned());
    let call = |command| roles::flannel(command, &env, &conf);
    let text = format!(
        "{} is not there: flannel has not started on this node yet",
        file.display()
    );
    for (command, code) in [
        (Command::Add, ErrorCode::TRY_AGAIN),
        (Command::Check, ErrorCode::TRY_AGAIN),
        (Command::Gc, ErrorCode::TRY_AGAIN),
        (Command::Status, ErrorCode::NOT_AVAILABLE),
    ] {
        let error = call(command).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (code, text.as_str()));
    }
    assert_eq!(
        (ErrorCode::TRY_AGAIN.0, ErrorCode::NOT_AVAILABLE.0),
        (11, 50)
    );
    // What was never added is deleted, and nothing was left by the attempts.
    assert_eq!(call(Command::Del).unwrap(), Value::Null);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let env_text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(&file, env_text).unwrap();
    assert_eq!(call(Command::Status).unwrap(), Value::Null);
}
