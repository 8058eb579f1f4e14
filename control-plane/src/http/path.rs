//! From a path to a resource: `/api/v1/namespaces/default/pods/x/log` and its kin.

use http::Method;
use percent_encoding::percent_decode_str;
use schema::kinds::{Kind, Subresource, kind_by_resource};

use super::error::{ApiError, Result};

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kind in the path.
    pub kind: &'static Kind,
    /// Namespace; none for cluster-scoped kinds and for all namespaces together.
    pub namespace: Option<String>,
    /// Name; none for collections.
    pub name: Option<String>,
    /// Subresource, such as `status`.
    pub subresource: Option<&'static Subresource>,
}

impl Target {
    /// The name, for handlers that are only reached with one.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("")
    }

    /// The namespace or an empty string.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("")
    }
}

/// Reads a resource path; none when the path is not below `/api/VERSION` or `/apis/GROUP/VERSION`.
pub fn parse(path: &str) -> Option<Result<Target>> {
    let mut segments: Vec<String> = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        match percent_decode_str(segment).decode_utf8() {
            Ok(segment) => segments.push(segment.into_owned()),
            Err(_not_utf8) => return Some(Err(ApiError::no_such_path())),
        }
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match &segments[..] {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return None,
    };
    Some(resource(group, version, rest))
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Result<Target> {
    let (namespace, rest) = match rest {
        ["namespaces", _, "status" | "finalize"] => (None, rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        _ => (None, rest),
    };
    let (plural, name, sub) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, sub] => (*plural, Some(*name), Some(*sub)),
        _ => return Err(ApiError::no_such_path()),
    };
    let kind = kind_by_resource(group, version, plural).ok_or_else(ApiError::no_such_path)?;
    let misplaced = match namespace {
        Some(_) => !kind.namespaced,
        None => kind.namespaced && name.is_some(),
    };
    if misplaced {
        return Err(ApiError::no_such_path());
    }
    let subresource = match sub {
        Some(sub) => Some(kind.subresource(sub).ok_or_else(ApiError::no_such_path)?),
        None => None,
    };
    Ok(Target {
        kind,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        subresource,
    })
}

/// Kubernetes' verb of a request, as RBAC rules name it.
pub fn verb(method: &Method, target: &Target, watch: bool) -> Result<&'static str> {
    let named = target.name.is_some();
    let verb = match *method {
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD if watch => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT if named => "update",
        Method::PATCH if named => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    };
    let allowed = match target.subresource {
        Some(sub) => sub.verbs.contains(&verb),
        None => target.kind.allows(verb) && !(named && verb == "create"),
    };
    if allowed {
        Ok(verb)
    } else {
        Err(ApiError::method_not_allowed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, path: &str, expected: &str) {
        let shown = match parse(path) {
            None => "not a resource".to_owned(),
            Some(Err(error)) => error.code.as_u16().to_string(),
            Some(Ok(target)) => {
                let verb = verb(&method.parse().unwrap(), &target, false)
                    .map_or_else(|error| error.code.as_u16().to_string(), str::to_owned);
                let sub = target.subresource.map_or("-", |sub| sub.name);
                let resource = target.kind.group_resource();
                let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                format!(
                    "{verb} {resource} {} {} {sub}",
                    dash(target.namespace),
                    dash(target.name)
                )
            }
        };
        assert_eq!(shown, expected, "{method} {path}");
    }

    #[test]
    fn paths() {
        check("GET", "/api/v1/pods", "list pods - - -");
        check("GET", "/api/v1/namespaces", "list namespaces - - -");
        check("GET", "/api/v1/namespaces/x", "get namespaces - x -");
        check(
            "PUT",
            "/api/v1/namespaces/x/finalize",
            "update namespaces - x finalize",
        );
        check("GET", "/api/v1/namespaces/x/pods", "list pods x - -");
        check(
            "DELETE",
            "/api/v1/namespaces/x/pods",
            "deletecollection pods x - -",
        );
        check("POST", "/api/v1/namespaces/x/pods", "create pods x - -");
        check("POST", "/api/v1/namespaces/x/pods/p", "405 pods x p -");
        check("GET", "/api/v1/namespaces/x/pods/p/log", "get pods x p log");
        check(
            "POST",
            "/api/v1/namespaces/x/pods/p/exec",
            "create pods x p exec",
        );
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/x/deployments/d/scale",
            "patch deployments.apps x d scale",
        );
        check("GET", "/api/v1/nodes/a%2Fb", "get nodes - a/b -");
        check("GET", "/api/v1/namespaces/x/nodes/n", "404");
        check("GET", "/api/v1/pods/p", "404");
        check("GET", "/api/v1/nothing", "404");
        check("GET", "/api/v2/pods", "404");
        check("GET", "/apis/apps/v1", "not a resource");
        check("GET", "/api", "not a resource");
        check("GET", "/version", "not a resource");
        check(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "create selfsubjectaccessreviews.authorization.k8s.io - - -",
        );
    }
}
