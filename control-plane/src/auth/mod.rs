//! Who asks, and whether they may.

pub mod nodes;
pub mod rbac;
pub mod tokens;

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::app::App;
use crate::http::error::{ApiError, Result};

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of everybody whose name is proven.
pub const AUTHENTICATED: &str = "system:authenticated";

/// A user with proven name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name, such as `system:node:n1`.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Unique id, for service accounts.
    pub uid: String,
    /// Further facts, e.g. the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user of some groups; `system:authenticated` is added.
    pub fn new(name: impl Into<String>, groups: Vec<String>) -> Self {
        let mut user = Self {
            name: name.into(),
            groups,
            ..Self::default()
        };
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        user
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// What is known of the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A part of this process.
    Internal(User),
    /// A client that proved its name with a certificate.
    Certificate(User),
    /// A client without certificate.
    Unknown,
}

/// What an authorization decision is about.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// RBAC's verb.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural, empty when `path` is asked about.
    pub resource: &'a str,
    /// Subresource or an empty string.
    pub subresource: &'a str,
    /// Namespace or an empty string.
    pub namespace: &'a str,
    /// Name or an empty string.
    pub name: &'a str,
    /// Path outside the resources.
    pub path: &'a str,
}

/// Finds out who asks. None of the ways known to us: 401.
pub async fn authenticate(app: &App, peer: &Peer, headers: &HeaderMap) -> Result<User> {
    let user = match peer {
        Peer::Internal(user) | Peer::Certificate(user) => user.clone(),
        Peer::Unknown => {
            let bearer = headers
                .get(AUTHORIZATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| {
                    let (scheme, token) = value.split_once(' ')?;
                    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
                })
                .ok_or_else(ApiError::unauthorized)?;
            app.tokens
                .authenticate(&*app.store, bearer, &[])
                .await
                .ok_or_else(ApiError::unauthorized)?
        }
    };
    impersonate(app, user, headers).await
}

/// Honours `Impersonate-User` and `Impersonate-Group` for those who may.
async fn impersonate(app: &App, user: User, headers: &HeaderMap) -> Result<User> {
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect()
    };
    let Some(name) = texts("impersonate-user").into_iter().next() else {
        return Ok(user);
    };
    let groups = texts("impersonate-group");
    let asked =
        std::iter::once(("users", &name)).chain(groups.iter().map(|group| ("groups", group)));
    for (resource, name) in asked {
        let attributes = Attributes {
            verb: "impersonate",
            group: "",
            resource,
            subresource: "",
            namespace: "",
            name,
            path: "",
        };
        authorize(app, &user, &attributes).await?;
    }
    Ok(User::new(name, groups))
}

/// Refuses with 403 what the user may not do.
pub async fn authorize(app: &App, user: &User, attributes: &Attributes<'_>) -> Result<()> {
    match decide(app, user, attributes).await? {
        None => Ok(()),
        Some(reason) => Err(refusal(user, attributes, &reason)),
    }
}

/// None when allowed, otherwise why not (which may be empty: no rule allows it).
pub async fn decide(app: &App, user: &User, attributes: &Attributes<'_>) -> Result<Option<String>> {
    if user.in_group(MASTERS) {
        return Ok(None);
    }
    if !app.rbac.allows(&*app.store, user, attributes).await? {
        return Ok(Some(String::new()));
    }
    nodes::objection(app, user, attributes).await
}

fn refusal(user: &User, asked: &Attributes<'_>, reason: &str) -> ApiError {
    use http::StatusCode;
    let who = &user.name;
    if !asked.path.is_empty() {
        let message = format!(
            "forbidden: User {who:?} cannot {} path {:?}",
            asked.verb, asked.path
        );
        return ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message);
    }
    let qualified = match asked.group {
        "" => asked.resource.to_owned(),
        group => format!("{}.{group}", asked.resource),
    };
    let mut resource = asked.resource.to_owned();
    if !asked.subresource.is_empty() {
        resource = format!("{resource}/{}", asked.subresource);
    }
    let scope = match asked.namespace {
        "" => " at the cluster scope".to_owned(),
        namespace => format!(" in the namespace {namespace:?}"),
    };
    let object = if asked.name.is_empty() {
        qualified
    } else {
        format!("{qualified} {:?}", asked.name)
    };
    let mut message = format!(
        "{object} is forbidden: User {who:?} cannot {} resource {resource:?} in API group {:?}{scope}",
        asked.verb, asked.group
    );
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    let mut error = ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message);
    error.details = crate::http::error::details(asked.group, asked.resource, asked.name);
    error
}
