//! Which objects: the kind as it stands in paths, and which of them.

/// A kind of object as the API's paths name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// The plural, lower-case name.
    pub plural: &'static str,
}

impl Resource {
    /// A kind of the core group, in `v1`.
    pub const fn core(plural: &'static str) -> Self {
        Self::new("", "v1", plural)
    }

    /// A kind of any group.
    pub const fn new(group: &'static str, version: &'static str, plural: &'static str) -> Self {
        Self {
            group,
            version,
            plural,
        }
    }

    /// The kind of a type of ours.
    pub const fn of<T: api::meta::Resource>() -> Self {
        Self::new(T::GROUP, T::VERSION, T::PLURAL)
    }

    /// Nodes.
    pub const NODES: Self = Self::core("nodes");
    /// Pods.
    pub const PODS: Self = Self::core("pods");
    /// Services.
    pub const SERVICES: Self = Self::core("services");
    /// Namespaces.
    pub const NAMESPACES: Self = Self::core("namespaces");
    /// Config maps.
    pub const CONFIG_MAPS: Self = Self::core("configmaps");
    /// Secrets.
    pub const SECRETS: Self = Self::core("secrets");
    /// Service accounts.
    pub const SERVICE_ACCOUNTS: Self = Self::core("serviceaccounts");
    /// Events.
    pub const EVENTS: Self = Self::core("events");
    /// Endpoint slices.
    pub const ENDPOINT_SLICES: Self = Self::new("discovery.k8s.io", "v1", "endpointslices");
    /// Network policies.
    pub const NETWORK_POLICIES: Self = Self::new("networking.k8s.io", "v1", "networkpolicies");
    /// Leases.
    pub const LEASES: Self = Self::new("coordination.k8s.io", "v1", "leases");
    /// Deployments.
    pub const DEPLOYMENTS: Self = Self::new("apps", "v1", "deployments");

    /// The path of all of them (no `name`), of one, or of a part of one such as `status`. No
    /// `namespace` means a kind without namespaces, or all namespaces.
    pub fn path(self, namespace: Option<&str>, name: Option<&str>, part: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        let mut push = |words: &[&str]| {
            for word in words {
                path.push('/');
                path.push_str(word);
            }
        };
        if let Some(namespace) = namespace {
            push(&["namespaces", namespace]);
        }
        push(&[self.plural]);
        if let Some(name) = name {
            push(&[name]);
        }
        if let Some(part) = part {
            push(&[part]);
        }
        path
    }
}

/// Which objects of a kind. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only those of this namespace.
    pub namespace: Option<String>,
    /// Label selector in the API's syntax, e.g. `!service.kubernetes.io/headless,tier in (a,b)`.
    pub labels: String,
    /// Field selector in the API's syntax, e.g. `spec.nodeName=node-1`.
    pub fields: String,
}

impl Selection {
    /// All objects with these labels.
    pub fn labels(selector: impl Into<String>) -> Self {
        Self {
            labels: selector.into(),
            ..Self::default()
        }
    }

    /// All objects with these fields.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self {
            fields: selector.into(),
            ..Self::default()
        }
    }

    /// The same, of one namespace only.
    #[must_use]
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(resource: Resource, place: (Option<&str>, Option<&str>, Option<&str>), expect: &str) {
        assert_eq!(resource.path(place.0, place.1, place.2), expect);
    }

    #[test]
    fn paths() {
        assert_eq!(
            Resource::of::<api::discovery::EndpointSlice>(),
            Resource::ENDPOINT_SLICES
        );
        check(Resource::NODES, (None, None, None), "/api/v1/nodes");
        check(
            Resource::NODES,
            (None, Some("n1"), Some("status")),
            "/api/v1/nodes/n1/status",
        );
        check(
            Resource::PODS,
            (Some("default"), Some("p"), None),
            "/api/v1/namespaces/default/pods/p",
        );
        check(
            Resource::ENDPOINT_SLICES,
            (None, None, None),
            "/apis/discovery.k8s.io/v1/endpointslices",
        );
        check(
            Resource::LEASES,
            (Some("kube-node-lease"), Some("n1"), None),
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1",
        );
    }
}
