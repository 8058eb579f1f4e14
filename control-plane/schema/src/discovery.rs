//! Discovery documents: the aggregated v2 form that kubectl asks first, and the legacy form that
//! `kubectl drain` and `auth can-i` still read.

use serde_json::{Map, Value, json};

use crate::kinds::{Kind, Subresource, api_version, groups, kinds};

/// `Content-Type` of the aggregated documents.
pub const AGGREGATED_CONTENT_TYPE: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `GET /api` in aggregated form: the core group.
pub fn aggregated_api() -> Value {
    group_list(groups().into_iter().filter(|(group, _)| group.is_empty()))
}

/// `GET /apis` in aggregated form: every named group.
pub fn aggregated_apis() -> Value {
    group_list(groups().into_iter().filter(|(group, _)| !group.is_empty()))
}

fn group_list(groups: impl Iterator<Item = (&'static str, Vec<&'static str>)>) -> Value {
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = sorted(group, version)
                        .into_iter()
                        .map(aggregated_resource)
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn sorted(group: &str, version: &str) -> Vec<&'static Kind> {
    let mut found: Vec<&'static Kind> = kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    found.sort_by_key(|k| k.plural);
    found
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut out = Map::new();
    out.insert("resource".into(), kind.plural.into());
    out.insert("responseKind".into(), kind.gvk().to_json());
    out.insert(
        "scope".into(),
        if kind.namespaced {
            "Namespaced"
        } else {
            "Cluster"
        }
        .into(),
    );
    out.insert("singularResource".into(), kind.singular.into());
    out.insert("verbs".into(), kind.verbs.into());
    if !kind.short_names.is_empty() {
        out.insert("shortNames".into(), kind.short_names.into());
    }
    if !kind.categories.is_empty() {
        out.insert("categories".into(), kind.categories.into());
    }
    if !kind.subresources.is_empty() {
        let subresources: Vec<Value> = kind
            .subresources
            .iter()
            .map(|s| {
                json!({"subresource": s.name, "responseKind": s.gvk.to_json(), "verbs": s.verbs})
            })
            .collect();
        out.insert("subresources".into(), subresources.into());
    }
    Value::Object(out)
}

/// `GET /api` in legacy form. `server` is `host:port` as clients reach it.
pub fn legacy_api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// `GET /apis` in legacy form.
pub fn legacy_groups() -> Value {
    let found: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| legacy_group_value(group, &versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": found})
}

/// `GET /apis/GROUP` in legacy form.
pub fn legacy_group(group: &str) -> Option<Value> {
    let (name, versions) = groups()
        .into_iter()
        .find(|(g, _)| *g == group && !g.is_empty())?;
    let Value::Object(body) = legacy_group_value(name, &versions) else {
        return None;
    };
    let mut out = Map::new();
    out.insert("kind".into(), "APIGroup".into());
    out.insert("apiVersion".into(), "v1".into());
    out.extend(body);
    Some(Value::Object(out))
}

fn legacy_group_value(group: &str, versions: &[&str]) -> Value {
    let entry = |v: &&str| json!({"groupVersion": api_version(group, v), "version": v});
    let all: Vec<Value> = versions.iter().map(entry).collect();
    let preferred = versions.first().map(entry);
    json!({"name": group, "versions": all, "preferredVersion": preferred})
}

/// `GET /api/v1` and `GET /apis/GROUP/VERSION` in legacy form.
pub fn legacy_resources(group: &str, version: &str) -> Option<Value> {
    let found = sorted(group, version);
    if found.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for kind in found {
        resources.push(legacy_resource(kind));
        for subresource in kind.subresources {
            resources.push(legacy_subresource(kind, subresource));
        }
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": resources,
    }))
}

fn legacy_resource(kind: &Kind) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), kind.plural.into());
    out.insert("singularName".into(), kind.singular.into());
    out.insert("namespaced".into(), kind.namespaced.into());
    out.insert("kind".into(), kind.kind.into());
    out.insert("verbs".into(), kind.verbs.into());
    if !kind.short_names.is_empty() {
        out.insert("shortNames".into(), kind.short_names.into());
    }
    if !kind.categories.is_empty() {
        out.insert("categories".into(), kind.categories.into());
    }
    Value::Object(out)
}

fn legacy_subresource(kind: &Kind, subresource: &Subresource) -> Value {
    let mut out = Map::new();
    out.insert(
        "name".into(),
        format!("{}/{}", kind.plural, subresource.name).into(),
    );
    out.insert("singularName".into(), "".into());
    out.insert("namespaced".into(), kind.namespaced.into());
    if (subresource.gvk.group, subresource.gvk.version) != (kind.group, kind.version) {
        out.insert("group".into(), subresource.gvk.group.into());
        out.insert("version".into(), subresource.gvk.version.into());
    }
    out.insert("kind".into(), subresource.gvk.kind.into());
    out.insert("verbs".into(), subresource.verbs.into());
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let all = json!({
            "/api": aggregated_api(),
            "/apis": aggregated_apis(),
            "/api legacy": legacy_api_versions("10.0.0.1:6443"),
            "/apis legacy": legacy_groups(),
            "/apis/apps legacy": legacy_group("apps"),
            "/api/v1 legacy": legacy_resources("", "v1"),
        });
        let text = serde_json::to_string_pretty(&all).unwrap() + "\n";
        expect_test::expect_file!["../tests/data/discovery.json"].assert_eq(&text);
        assert_eq!(legacy_resources("apps", "v2"), None);
        assert_eq!(legacy_group(""), None);
    }

    /// Both forms say the same of every resource and subresource.
    #[test]
    fn aggregated_and_legacy_agree() {
        let mut lists = aggregated_api()["items"].as_array().unwrap().clone();
        lists.extend(aggregated_apis()["items"].as_array().unwrap().clone());
        let mut count = 0;
        for group in &lists {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in group["versions"].as_array().unwrap() {
                let legacy = legacy_resources(name, version["version"].as_str().unwrap()).unwrap();
                let legacy = legacy["resources"].as_array().unwrap();
                for resource in version["resources"].as_array().unwrap() {
                    let found = legacy
                        .iter()
                        .find(|l| l["name"] == resource["resource"])
                        .unwrap();
                    assert_eq!(found["verbs"], resource["verbs"]);
                    assert_eq!(found["kind"], resource["responseKind"]["kind"]);
                    assert_eq!(
                        found["namespaced"] == true,
                        resource["scope"] == "Namespaced"
                    );
                    count += 1;
                    for sub in resource["subresources"].as_array().into_iter().flatten() {
                        let name = format!(
                            "{}/{}",
                            resource["resource"].as_str().unwrap(),
                            sub["subresource"].as_str().unwrap()
                        );
                        let found = legacy.iter().find(|l| l["name"] == name.as_str()).unwrap();
                        assert_eq!(found["verbs"], sub["verbs"]);
                    }
                }
            }
        }
        assert_eq!(count, kinds().len());
    }
}
