//! The three patch forms that change an object by a document: strategic merge, JSON merge
//! (RFC 7386) and JSON patch (RFC 6902). Server-side apply is in `apply`.

use serde_json::Value;

use crate::kinds::Kind;
use crate::types;

mod lists;
mod strategic;
#[cfg(test)]
mod tests;

/// More operations than this in one JSON patch are refused, as upstream does.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Why a patch was not applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The patch is not a patch: HTTP 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed and does not fit the object: HTTP 422.
    #[error("{0}")]
    Rejected(String),
}

/// Applies a strategic merge patch, as Go's `strategicpatch` does, `$patch`, `$retainKeys`,
/// `$setElementOrder` and `$deleteFromPrimitiveList` included.
pub fn strategic_merge(kind: &Kind, original: &Value, patch: &Value) -> Result<Value, Error> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Error::Malformed(
            "a strategic merge patch must be a JSON object".into(),
        ));
    };
    let schema = types::get(kind.type_name);
    strategic::merge_map(original.clone(), patch.clone(), schema).map(Value::Object)
}

/// Applies an RFC 7386 JSON merge patch.
pub fn json_merge(original: &Value, patch: &Value) -> Result<Value, Error> {
    if !patch.is_object() {
        return Err(Error::Malformed(
            "a JSON merge patch must be a JSON object".into(),
        ));
    }
    let mut out = original.clone();
    json_patch::merge(&mut out, patch);
    Ok(out)
}

/// Applies an RFC 6902 JSON patch.
pub fn json_patch(original: &Value, patch: &Value) -> Result<Value, Error> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| Error::Malformed(format!("error decoding patch: {e}")))?;
    if operations.0.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(Error::Malformed(format!(
            "the allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {}",
            operations.0.len()
        )));
    }
    let mut out = original.clone();
    json_patch::patch(&mut out, &operations).map_err(|e| {
        Error::Rejected(format!(
            "the server rejected our request due to an error in our request: {e}"
        ))
    })?;
    Ok(out)
}
