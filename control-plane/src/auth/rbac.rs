//! Role based access: evaluates the Role, ClusterRole and binding objects in the store.
//!
//! The parsed objects are kept and brought up to date from a watch before every decision, so a
//! binding counts for the very next request.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use api::selector::{LabelSelector, LabelSelectorSpec};
use serde::Deserialize;

use super::{Attributes, User};
use crate::http::error::Result;
use crate::store::{Range, Store, Watch};

const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Aggregation {
    cluster_role_selectors: Vec<LabelSelectorSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    labels: Option<BTreeMap<String, String>>,
}

/// The fields of all four kinds together.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    metadata: Metadata,
    rules: Option<Vec<Rule>>,
    aggregation_rule: Option<Aggregation>,
    role_ref: RoleRef,
    subjects: Option<Vec<Subject>>,
}

/// The evaluator.
#[derive(Default)]
pub struct Rbac(Mutex<Option<State>>);

struct State {
    watch: Watch,
    /// By key without the prefix, e.g. `rolebindings/default/x`.
    objects: BTreeMap<String, Object>,
}

impl Rbac {
    /// Whether some rule allows this.
    pub async fn allows(
        &self,
        store: &dyn Store,
        user: &User,
        asked: &Attributes<'_>,
    ) -> Result<bool> {
        self.refresh(store).await?;
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = &*guard else {
            return Ok(false);
        };
        Ok(state
            .rules_of(user, asked.namespace)
            .any(|rule| rule.allows(asked)))
    }

    /// The rules that hold for a user in a namespace, as JSON, for SelfSubjectRulesReview.
    pub async fn rules(
        &self,
        store: &dyn Store,
        user: &User,
        namespace: &str,
    ) -> Result<Vec<serde_json::Value>> {
        self.refresh(store).await?;
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = &*guard else {
            return Ok(Vec::new());
        };
        Ok(state.rules_of(user, namespace).map(Rule::to_json).collect())
    }

    /// The rules of the role a binding refers to.
    pub async fn rules_of_role(
        &self,
        store: &dyn Store,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Result<Vec<serde_json::Value>> {
        self.refresh(store).await?;
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = &*guard else {
            return Ok(Vec::new());
        };
        let key = match kind {
            "ClusterRole" => format!("clusterroles/{name}"),
            _ => format!("roles/{namespace}/{name}"),
        };
        Ok(state
            .rules_in(&key)
            .into_iter()
            .map(Rule::to_json)
            .collect())
    }

    async fn refresh(&self, store: &dyn Store) -> Result<()> {
        let fresh = {
            let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            guard.as_mut().is_some_and(State::catch_up)
        };
        if fresh {
            return Ok(());
        }
        let page = store
            .list(Range {
                prefix: PREFIX,
                ..Range::default()
            })
            .await?;
        let watch = store.watch(PREFIX, page.rev)?;
        let mut state = State {
            watch,
            objects: BTreeMap::new(),
        };
        for kv in page.items {
            state.set(&kv.key, Some(&kv.value));
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(())
    }
}

impl State {
    /// Takes in what changed; false when the watch broke and everything must be read anew.
    fn catch_up(&mut self) -> bool {
        while let Some(event) = self.watch.ready() {
            self.set(&event.key, event.now.as_ref().map(|kv| &kv.value[..]));
        }
        !self.watch.is_closed()
    }

    fn set(&mut self, key: &str, value: Option<&[u8]>) {
        let key = key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
        match value.map(serde_json::from_slice) {
            Some(Ok(object)) => {
                self.objects.insert(key, object);
            }
            Some(Err(error)) => tracing::warn!(key, "RBAC object is ignored: {error}"),
            None => {
                self.objects.remove(&key);
            }
        }
    }

    fn rules_of<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Rule> + 'a {
        let cluster = self.below("clusterrolebindings/".to_owned());
        let local =
            (!namespace.is_empty()).then(|| self.below(format!("rolebindings/{namespace}/")));
        cluster
            .chain(local.into_iter().flatten())
            .filter(|(_, binding)| {
                binding
                    .subjects
                    .iter()
                    .flatten()
                    .any(|subject| subject.is(user))
            })
            .flat_map(move |(key, binding)| {
                let role = match binding.role_ref.kind.as_str() {
                    "ClusterRole" => format!("clusterroles/{}", binding.role_ref.name),
                    "Role" if key.starts_with("rolebindings/") => {
                        format!("roles/{namespace}/{}", binding.role_ref.name)
                    }
                    _ => String::new(),
                };
                self.rules_in(&role)
            })
    }

    fn below(&self, prefix: String) -> impl Iterator<Item = (&String, &Object)> {
        self.objects
            .range(prefix.clone()..)
            .take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// The rules of a role, with those of the roles it gathers by label, and of those they gather.
    fn rules_in(&self, key: &str) -> Vec<&Rule> {
        let mut seen = BTreeSet::new();
        let mut open = vec![key];
        let mut rules = Vec::new();
        while let Some(key) = open.pop() {
            let Some(role) = self.objects.get(key).filter(|_| seen.insert(key)) else {
                continue;
            };
            rules.extend(role.rules.iter().flatten());
            for spec in role
                .aggregation_rule
                .iter()
                .flat_map(|rule| &rule.cluster_role_selectors)
            {
                let Ok(selector) = LabelSelector::from_spec(spec) else {
                    continue;
                };
                for (other, found) in self.below("clusterroles/".to_owned()) {
                    if found
                        .metadata
                        .labels
                        .as_ref()
                        .is_some_and(|labels| selector.matches(labels))
                    {
                        open.push(other);
                    }
                }
            }
        }
        rules
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.in_group(&self.name),
            "ServiceAccount" => {
                user.name == format!("system:serviceaccount:{}:{}", self.namespace, self.name)
            }
            _ => false,
        }
    }
}

impl Rule {
    fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.path.is_empty() {
            return self
                .non_resource_urls
                .iter()
                .any(|url| match url.strip_suffix('*') {
                    Some(start) => asked.path.starts_with(start),
                    None => url == asked.path,
                });
        }
        let resource = if asked.subresource.is_empty() {
            has(&self.resources, asked.resource)
        } else {
            self.resources.iter().any(|own| match own.split_once('/') {
                _ if own == "*" => true,
                Some((resource, sub)) => {
                    (resource == "*" || resource == asked.resource) && sub == asked.subresource
                }
                None => false,
            })
        };
        let named = self.resource_names.is_empty()
            || self.resource_names.iter().any(|name| name == asked.name);
        has(&self.api_groups, asked.group) && resource && named
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "verbs": self.verbs,
            "apiGroups": self.api_groups,
            "resources": self.resources,
            "resourceNames": self.resource_names,
            "nonResourceURLs": self.non_resource_urls,
        })
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|own| own == "*" || own == value)
}
