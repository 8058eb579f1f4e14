use super::*;
use crate::testing::pod;

struct Fixed(downward::Facts);

impl Lookup for Fixed {
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        (name == "cm").then(|| {
            BTreeMap::from([
                ("color".to_owned(), b"blue".to_vec()),
                ("shape".to_owned(), b"round".to_vec()),
                ("picture".to_owned(), vec![0, 1, 2]),
            ])
        })
    }
    fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        (name == "s").then(|| BTreeMap::from([("key".to_owned(), b"hidden".to_vec())]))
    }
    fn facts(&self) -> &downward::Facts {
        &self.0
    }
}

#[test]
fn expansion_rows() {
    let get = |name: &str| (name == "A").then(|| "1".to_owned());
    for (text, expect) in [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$(B)", "$(B)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("$", "$"),
        ("$()", "$()"),
        ("a$", "a$"),
    ] {
        assert_eq!(expand(text, get), expect, "{text}");
    }
}

fn vars(env: &str) -> Result<Vec<(String, String)>, Error> {
    let p = pod(&format!(
        "p: {{containers: [{{name: c, image: i, {env}}}]}}"
    ));
    let c = p.spec.as_ref().unwrap().containers[0].clone();
    let services = [Service {
        name: "my-db".into(),
        cluster_ip: "10.96.0.9".into(),
        ports: vec![("sql".into(), 5432, "TCP".into())],
    }];
    environment(&p, &c, &services, &Fixed(downward::Facts::default()))
}

#[track_caller]
fn value(env: &str, name: &str) -> Option<String> {
    let all = vars(env).unwrap();
    all.into_iter().find(|(n, _)| n == name).map(|(_, v)| v)
}

#[test]
fn later_variables_see_earlier_ones_and_services() {
    let env = "env: [{name: A, value: \"1\"}, {name: B, value: \"$(A)-$(MY_DB_SERVICE_HOST)-$(C)\"}, {name: C, value: x}]";
    assert_eq!(value(env, "B").unwrap(), "1-10.96.0.9-$(C)");
    assert_eq!(value(env, "MY_DB_PORT").unwrap(), "tcp://10.96.0.9:5432");
    assert_eq!(value(env, "MY_DB_SERVICE_PORT_SQL").unwrap(), "5432");
    let own = "env: [{name: MY_DB_SERVICE_HOST, value: mine}]";
    assert_eq!(value(own, "MY_DB_SERVICE_HOST").unwrap(), "mine");
}

#[test]
fn env_from_is_overridden_by_env() {
    let env = "envFrom: [{prefix: P_, configMapRef: {name: cm}}, {secretRef: {name: s}}], env: [{name: P_color, value: red}]";
    assert_eq!(value(env, "P_color").unwrap(), "red");
    assert_eq!(value(env, "P_shape").unwrap(), "round");
    assert_eq!(value(env, "key").unwrap(), "hidden");
    assert_eq!(value(env, "P_picture"), None);
}

#[test]
fn missing_sources_name_themselves_unless_optional() {
    let key = |name: &str, key: &str, optional: bool| {
        format!(
            "env: [{{name: A, valueFrom: {{configMapKeyRef: {{name: {name}, key: {key}, optional: {optional}}}}}}}]"
        )
    };
    assert_eq!(
        vars(&key("cm", "nope", false)).unwrap_err().to_string(),
        "couldn't find key nope in ConfigMap default/cm"
    );
    assert_eq!(
        vars(&key("no", "nope", false)).unwrap_err().to_string(),
        "configmap \"no\" not found"
    );
    assert_eq!(value(&key("cm", "nope", true), "A"), None);
    assert_eq!(value(&key("no", "nope", true), "A"), None);
    assert_eq!(
        vars("envFrom: [{secretRef: {name: no}}]")
            .unwrap_err()
            .to_string(),
        "secret \"no\" not found"
    );
}

#[test]
fn the_pod_speaks_of_itself() {
    let field =
        |path: &str| format!("env: [{{name: A, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}]");
    assert_eq!(value(&field("metadata.name"), "A").unwrap(), "p");
    assert_eq!(value(&field("metadata.uid"), "A").unwrap(), "uid-p");
}
