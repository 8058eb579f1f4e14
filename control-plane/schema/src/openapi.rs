//! OpenAPI v3: an index and one document per group version, built when asked for.
//!
//! kubectl reads from it whether a kind's PATCH takes `fieldValidation` (then the server checks
//! fields), and `kubectl explain` reads the schemas. Nothing stays in memory: a document is put
//! together from the compressed schema lines and dropped again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::kinds::{Kind, api_version, groups, kinds};

static SCHEMAS: &[u8] = include_bytes!("../data/openapi.txt.gz");
const REFERENCE: &str = "#/components/schemas/";

/// One group version's document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The JSON text.
    pub body: Vec<u8>,
    /// What the index says as `hash`: also the document's ETag.
    pub hash: String,
}

/// `GET /openapi/v3`: where each group version's document stands.
pub fn index() -> Value {
    let hash = hash();
    let mut paths = serde_json::Map::new();
    for (group, versions) in groups() {
        for version in versions {
            let path = document_path(group, version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// `Content-Type` of the OpenAPI v2 document. Clients ask for it with `@` before `v1.0`, which is not
/// a media type and which they do not take back.
pub const V2_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `GET /openapi/v2` as protobuf (gnostic's `openapi.v2.Document`): a document without paths and
/// definitions. kubectl asks for it only about kinds that no v3 document has, and must find nothing
/// there to say that there is no such kind.
pub fn v2_document() -> Vec<u8> {
    let field = |tag: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
        let mut out = vec![tag << 3 | 2, length];
        out.extend_from_slice(content);
        out
    };
    let info = [field(1, b"Kubernetes"), field(2, b"v1.36.0")].concat();
    // 1 swagger, 2 info, 8 paths, 9 definitions
    [
        field(1, b"2.0"),
        field(2, &info),
        field(8, b""),
        field(9, b""),
    ]
    .concat()
}

/// `api/v1` or `apis/apps/v1`: the key in the index and the path below `/openapi/v3/`.
pub fn document_path(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", api_version(group, version))
}

/// The document at `path` (`api/v1`, `apis/apps/v1`); `None` for a group version not served.
pub fn document(path: &str) -> Option<Document> {
    let (group, version) = groups()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |v| (group, v)))
        .find(|(group, version)| document_path(group, version) == path)?;
    let served: Vec<&Kind> = kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    let paths = paths(&served);
    let roots: BTreeSet<&str> = served.iter().map(|k| k.type_name).collect();
    let mut body = format!(
        "{{\"openapi\":\"3.0.0\",\"info\":{{\"title\":\"Kubernetes\",\"version\":\"v1.36.0\"}},\"paths\":{paths},\"components\":{{\"schemas\":{{"
    );
    components(roots, &mut body);
    body.push_str("}}}");
    Some(Document {
        body: body.into_bytes(),
        hash: hash(),
    })
}

/// Changes when the data or the table of kinds changes: documents may be cached by it for ever.
fn hash() -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(SCHEMAS);
    for kind in kinds() {
        digest.update(kind.type_name);
        digest.update(kind.plural);
    }
    digest
        .finalize()
        .iter()
        .take(16)
        .fold(String::new(), |mut out, byte| {
            // Writing to a String cannot fail.
            let _infallible = write!(out, "{byte:02X}");
            out
        })
}

/// Writes the schemas that `roots` need, transitively, as members of a JSON object.
fn components(roots: BTreeSet<&str>, body: &mut String) {
    let mut text = String::new();
    // The data is part of the program; a test reads it to the end.
    if flate2::read::GzDecoder::new(SCHEMAS)
        .read_to_string(&mut text)
        .is_err()
    {
        return;
    }
    let schemas: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let mut wanted: Vec<&str> = roots.into_iter().collect();
    let mut found = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        let Some(schema) = schemas.get(name) else {
            continue;
        };
        if found.insert(name, *schema).is_none() {
            wanted.extend(references(schema));
        }
    }
    for (index, (name, schema)) in found.into_iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _infallible = write!(body, "{comma}\"{name}\":{schema}");
    }
}

fn references(schema: &str) -> impl Iterator<Item = &str> {
    schema
        .split(REFERENCE)
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
}

fn paths(served: &[&Kind]) -> Value {
    let mut paths = serde_json::Map::new();
    for kind in served {
        let prefix = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let collection = if kind.namespaced {
            format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural)
        } else {
            format!("{prefix}/{}", kind.plural)
        };
        let mut on_collection = serde_json::Map::new();
        for (verb, method, action) in [("list", "get", "list"), ("create", "post", "post")] {
            if kind.allows(verb) {
                on_collection.insert(method.into(), operation(kind, action));
            }
        }
        if kind.namespaced && kind.allows("list") {
            let all = json!({"get": operation(kind, "list")});
            paths.insert(format!("{prefix}/{}", kind.plural), all);
        }
        let mut on_object = serde_json::Map::new();
        for (verb, method) in [
            ("get", "get"),
            ("update", "put"),
            ("patch", "patch"),
            ("delete", "delete"),
        ] {
            if kind.allows(verb) {
                on_object.insert(method.into(), operation(kind, method));
            }
        }
        if !on_object.is_empty() {
            paths.insert(format!("{collection}/{{name}}"), on_object.into());
        }
        paths.insert(collection, on_collection.into());
    }
    paths.into()
}

fn operation(kind: &Kind, action: &str) -> Value {
    let schema = json!({"$ref": format!("{REFERENCE}{}", kind.type_name)});
    let mut out = json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind.gvk().to_json(),
        "responses": {"200": {"description": "OK"}},
    });
    let query = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    match action {
        "get" => {
            out["responses"]["200"]["content"] = json!({"application/json": {"schema": schema}});
        }
        "post" | "put" => {
            let names = ["dryRun", "fieldManager", "fieldValidation"];
            out["parameters"] = names.map(query).to_vec().into();
            out["requestBody"] = json!({"content": {"*/*": {"schema": schema}}, "required": true});
        }
        "patch" => {
            let mut parameters = ["dryRun", "fieldManager", "fieldValidation"]
                .map(query)
                .to_vec();
            parameters.push(json!({"name": "force", "in": "query", "schema": {"type": "boolean"}}));
            out["parameters"] = parameters.into();
            let any = json!({"schema": {"type": "object"}});
            out["requestBody"] = json!({"required": true, "content": {
                "application/apply-patch+yaml": any, "application/json-patch+json": any,
                "application/merge-patch+json": any, "application/strategic-merge-patch+json": any}});
        }
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_whole() {
        let index = index();
        for (path, entry) in index["paths"].as_object().unwrap() {
            let document = document(path).unwrap();
            assert!(
                entry["serverRelativeURL"]
                    .as_str()
                    .unwrap()
                    .ends_with(&document.hash)
            );
            let parsed: Value = serde_json::from_slice(&document.body).unwrap();
            let text = String::from_utf8(document.body).unwrap();
            let schemas = parsed["components"]["schemas"].as_object().unwrap();
            for name in references(&text) {
                assert!(schemas.contains_key(name), "{path}: {name}");
            }
        }
        assert_eq!(document("apis/none/v1"), None);
    }

    #[test]
    fn the_v2_document_is_empty_and_well_formed() {
        assert_eq!(
            v2_document(),
            b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.36.0\x42\x00\x4a\x00"
        );
    }

    #[test]
    fn patch_takes_field_validation() {
        let document = document("apis/apps/v1").unwrap();
        let parsed: Value = serde_json::from_slice(&document.body).unwrap();
        let patch =
            &parsed["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"]["kind"],
            "Deployment"
        );
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    }
}
