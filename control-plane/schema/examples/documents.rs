//! Prints every discovery and OpenAPI document as one JSON object of path and body, for reading and
//! for answering a client without a server:
//!
//!     cargo run -p seaway-schema --example documents > documents.json

use serde_json::{Map, Value};

#[expect(clippy::print_stdout, reason = "printing is what this example is for")]
fn main() {
    let mut out: Map<String, Value> = Map::new();
    out.insert("/api".into(), schema::discovery::aggregated_api());
    out.insert("/apis".into(), schema::discovery::aggregated_apis());
    out.insert("/openapi/v3".into(), schema::openapi::index());
    for (group, versions) in schema::kinds::groups() {
        for version in versions {
            let path = schema::openapi::document_path(group, version);
            out.insert(
                format!("/{path}"),
                schema::discovery::legacy_resources(group, version).unwrap_or_default(),
            );
            let body = schema::openapi::document(&path)
                .map(|d| d.body)
                .unwrap_or_default();
            out.insert(
                format!("/openapi/v3/{path}"),
                serde_json::from_slice(&body).unwrap_or_default(),
            );
        }
    }
    println!("{}", Value::Object(out));
}
