//! The built-in kinds this control plane serves: the facts of Kubernetes 1.36's discovery document.
//!
//! Left out, on purpose: CustomResourceDefinitions and APIServices (no dynamic kinds yet),
//! componentstatuses (deprecated upstream), flow control and dynamic resource allocation, the
//! `proxy` subresources, and `pods/ephemeralcontainers` and `pods/resize`, which no kubelet here acts
//! on yet. Asking for one of these gets the API's usual 404.

use serde_json::{Value, json};

mod rows;

pub use rows::kinds;

/// Verbs of an ordinary stored resource.
pub const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Verbs of a review-like resource: nothing is stored.
pub const CREATE_ONLY: &[&str] = &["create"];
/// Verbs of namespaces: a collection of namespaces cannot be deleted at once.
pub const NO_DELETE_COLLECTION: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
/// Verbs of `status` and `scale`.
pub const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

/// A group, a version and a kind name, as in `apiVersion` and `kind` of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvk {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version in the group.
    pub version: &'static str,
    /// CamelCase kind.
    pub kind: &'static str,
}

impl Gvk {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The JSON form used by discovery and OpenAPI.
    pub fn to_json(&self) -> Value {
        json!({"group": self.group, "kind": self.kind, "version": self.version})
    }
}

/// A subresource such as `pods/log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// The last path segment: `status`, `scale`, `log`, ...
    pub name: &'static str,
    /// What it answers or accepts (`pods/eviction` accepts a `policy/v1` Eviction).
    pub gvk: Gvk,
    /// Verbs it accepts.
    pub verbs: &'static [&'static str],
}

/// One served kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version in the group.
    pub version: &'static str,
    /// CamelCase kind, e.g. `Pod`.
    pub kind: &'static str,
    /// Kind of a list, e.g. `PodList`.
    pub list_kind: &'static str,
    /// Lower-case plural: the path segment.
    pub plural: &'static str,
    /// Lower-case singular.
    pub singular: &'static str,
    /// What kubectl also accepts, e.g. `po`.
    pub short_names: &'static [&'static str],
    /// `all` for what `kubectl get all` lists.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself.
    pub verbs: &'static [&'static str],
    /// Subresources in alphabetical order.
    pub subresources: &'static [Subresource],
    /// Name of the object's type in the OpenAPI components and the field tables.
    pub type_name: &'static str,
    /// The kind under which objects are stored, when it is another one (`events.k8s.io/v1` Event
    /// is stored as core `v1` Event). `convert` translates.
    pub stored_as: Option<Gvk>,
    /// What a client that writes such an object has to be told (the text of a `Warning:` header),
    /// because this control plane only stores the object.
    pub warning: Option<&'static str>,
}

impl Kind {
    /// Group, version and kind in one value.
    pub fn gvk(&self) -> Gvk {
        Gvk {
            group: self.group,
            version: self.version,
            kind: self.kind,
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods` or `deployments.apps`, as error messages name a resource.
    pub fn group_resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// `Pod` or `Deployment.apps`, as `is invalid` messages name a kind.
    pub fn group_kind(&self) -> String {
        match self.group {
            "" => self.kind.to_owned(),
            group => format!("{}.{group}", self.kind),
        }
    }

    /// Whether the resource itself accepts `verb`.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether objects are stored at all (reviews and bindings are not).
    pub fn is_stored(&self) -> bool {
        self.allows("get")
    }

    /// The subresource called `name`.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The kind whose objects are stored for this one; itself unless `stored_as` says otherwise.
    pub fn storage(&'static self) -> &'static Kind {
        self.stored_as
            .and_then(|g| kind_by_gvk(g.group, g.version, g.kind))
            .unwrap_or(self)
    }
}

/// `v1` for the core group, `group/version` otherwise.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Splits an `apiVersion` into group and version (`v1` is the core group).
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The kind served at `/api{s}/group/version/.../plural`.
pub fn kind_by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The kind of an object with this group, version and kind name.
pub fn kind_by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .find(|k| k.kind == kind && k.group == group && k.version == version)
}

/// The kind an object names by its own `apiVersion` and `kind`.
pub fn kind_of(object: &Value) -> Option<&'static Kind> {
    let (group, version) = split_api_version(object.get("apiVersion")?.as_str()?);
    kind_by_gvk(group, version, object.get("kind")?.as_str()?)
}

/// Every group with its versions, preferred version first, in upstream's order of groups.
/// The core group (`""`) is the first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for kind in kinds() {
        match found.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) => {
                if !versions.contains(&kind.version) {
                    versions.push(kind.version);
                }
            }
            None => found.push((kind.group, vec![kind.version])),
        }
    }
    found
}
