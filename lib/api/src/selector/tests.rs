use std::collections::BTreeMap;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[track_caller]
fn check(selector: &str, pairs: &[(&str, &str)], expect: bool) {
    let parsed = LabelSelector::parse(selector).unwrap();
    assert_eq!(
        parsed.matches(&labels(pairs)),
        expect,
        "{selector} on {pairs:?}"
    );
    let again = LabelSelector::parse(&parsed.to_string()).unwrap();
    assert_eq!(again, parsed, "{selector}");
}

#[test]
fn label_rows() {
    check("", &[], true);
    check("a=b", &[("a", "b")], true);
    check("a==b", &[("a", "c")], false);
    check("a = b , c = d", &[("a", "b"), ("c", "d")], true);
    check("a!=b", &[], true);
    check("a!=b", &[("a", "b")], false);
    check("a in (x,y)", &[("a", "y")], true);
    check("a in (x, y),b", &[("a", "y")], false);
    check("a notin (x,y)", &[("a", "z")], true);
    check("a notin (x,y)", &[], true);
    check("!a", &[], true);
    check("!a", &[("a", "")], false);
    check("a", &[("a", "")], true);
    check("a=", &[("a", "")], true);
    check("a=", &[], false);
    check(
        "app.kubernetes.io/name=x",
        &[("app.kubernetes.io/name", "x")],
        true,
    );
    check("a>5", &[("a", "6")], true);
    check("a<5", &[("a", "6")], false);
    check("a>5", &[("a", "x")], false);
}

#[test]
fn label_selectors_that_do_not_parse() {
    for text in [
        "a in",
        "a in (b",
        "a)b",
        "=b",
        "a=b=c",
        "a,,b",
        "-a",
        "a=-b",
        "a like (b)",
        "a>x",
    ] {
        assert!(LabelSelector::parse(text).is_err(), "{text}");
    }
}

#[test]
fn object_form() {
    let selector = LabelSelector::from_json(&serde_json::json!({
        "matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]},
                             {"key": "e", "operator": "Exists"}]}))
    .unwrap();
    assert_eq!(selector.to_string(), "a=b,c!=d,e");
    assert!(selector.matches(&labels(&[("a", "b"), ("e", "1")])));
    let bad = serde_json::json!({"matchExpressions": [{"key": "c", "operator": "In"}]});
    assert!(LabelSelector::from_json(&bad).is_err());
}

#[test]
fn field_rows() {
    let selector = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed,a==b\\,c").unwrap();
    assert_eq!(selector.required_value("spec.nodeName"), Some("n1"));
    assert_eq!(selector.requirements()[2].value, "b,c");
    let get = |field: &str| match field {
        "spec.nodeName" => Some("n1"),
        "a" => Some("b,c"),
        _ => None,
    };
    assert!(selector.matches_with(get));
    assert!(FieldSelector::parse("").unwrap().is_empty());
    assert!(FieldSelector::parse("spec.nodeName").is_err());
    assert!(FieldSelector::parse("a=b=c").is_err());
    assert_eq!(
        FieldSelector::parse(&selector.to_string()).unwrap(),
        selector
    );
}
