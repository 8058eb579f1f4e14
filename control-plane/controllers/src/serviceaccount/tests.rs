use serde_json::json;

use crate::config::Config;
use crate::fake::Sim;
use crate::kinds::Kind;

#[test]
fn every_namespace_has_an_account_and_the_ca() {
    let mut sim = Sim::new(Config {
        root_ca_pem: "PEM".to_owned(),
        ..Config::default()
    });
    sim.put(
        Kind::Namespace,
        json!({"metadata": {"name": "team"}, "spec": {"finalizers": ["kubernetes"]}}),
    );
    sim.settle();
    assert!(sim.get(Kind::ServiceAccount, "team", "default").is_some());
    let ca = |sim: &Sim| {
        sim.get(Kind::ConfigMap, "team", "kube-root-ca.crt")
            .cloned()
    };
    assert_eq!(ca(&sim).unwrap()["data"]["ca.crt"], "PEM");
    sim.remove(Kind::ServiceAccount, "team", "default");
    sim.remove(Kind::ConfigMap, "team", "kube-root-ca.crt");
    sim.settle();
    assert!(sim.get(Kind::ServiceAccount, "team", "default").is_some());
    assert!(ca(&sim).is_some());
    sim.edit(Kind::ConfigMap, "team", "kube-root-ca.crt", |map| {
        map["data"]["ca.crt"] = json!("x")
    });
    sim.settle();
    assert_eq!(ca(&sim).unwrap()["data"]["ca.crt"], "PEM");
}
