//! The resources of the API server as its discovery tells them, for garbage collection and for emptying namespaces.

/// One resource (a plural name in a group and version).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceInfo {
    /// `v1` or `group/version`.
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl ResourceInfo {
    /// The group, empty for the core group.
    pub(crate) fn group(&self) -> &str {
        group_of(&self.api_version)
    }

    /// `/api/v1` or `/apis/group/version`.
    pub(crate) fn prefix(&self) -> String {
        if self.api_version.contains('/') {
            format!("/apis/{}", self.api_version)
        } else {
            format!("/api/{}", self.api_version)
        }
    }

    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// `plural` or `plural.group`, as error messages and the namespace conditions write it.
    pub(crate) fn qualified(&self) -> String {
        match self.group() {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

/// The group of an apiVersion, empty for the core group.
pub(crate) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The resource that serves a kind of an owner reference: the same group, whatever the version.
pub(crate) fn find<'a>(
    resources: &'a [ResourceInfo],
    api_version: &str,
    kind: &str,
) -> Option<&'a ResourceInfo> {
    let group = group_of(api_version);
    resources
        .iter()
        .find(|resource| resource.kind == kind && resource.group() == group)
}
