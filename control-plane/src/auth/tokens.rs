//! Tokens of service accounts: JWTs signed with the cluster's `sa.key` (ES256).
//!
//! Claims as kube-apiserver's bound tokens have them; a token is only good as long as the service
//! account, and the pod or secret it is bound to, exist with the same uid.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use schema::kinds::kind_by_resource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::User;
use crate::http::error::{ApiError, Result};
use crate::rest::object;
use crate::store::Store;

/// Who signs the tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Length of an uncompressed P-256 point: a tag and two coordinates.
const POINT_BYTES: usize = 65;

/// Signs and checks tokens.
pub struct Tokens {
    private: EncodingKey,
    public: DecodingKey,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: u64,
    iat: u64,
    nbf: u64,
    iss: String,
    jti: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
}

/// What a token belongs to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: Reference,
    /// The pod it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

/// Name and uid of an object.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// Unique id.
    pub uid: String,
}

impl Tokens {
    /// Reads `sa.key` and `sa.pub`.
    pub fn load(private: &Path, public: &Path) -> anyhow::Result<Self> {
        let named = |path: &Path| path.display().to_string();
        let key = PrivatePkcs8KeyDer::from_pem_file(private).with_context(|| named(private))?;
        let spki = SubjectPublicKeyInfoDer::from_pem_file(public).with_context(|| named(public))?;
        // A P-256 SubjectPublicKeyInfo ends with the uncompressed point (RFC 5480, 2.2).
        let point = spki
            .len()
            .checked_sub(POINT_BYTES)
            .and_then(|at| spki.get(at..));
        let point = point.filter(|point| point.first() == Some(&4));
        let point = point.with_context(|| format!("{}: no P-256 key", named(public)))?;
        Ok(Self {
            private: EncodingKey::from_ec_der(key.secret_pkcs8_der()),
            public: DecodingKey::from_ec_der(point),
        })
    }

    /// Signs a token that ends at `expires` (Unix seconds).
    pub fn sign(
        &self,
        bound: Bound,
        audiences: &[String],
        now: u64,
        expires: u64,
    ) -> Result<String> {
        let aud = if audiences.is_empty() {
            vec![ISSUER.to_owned()]
        } else {
            audiences.to_vec()
        };
        let claims = Claims {
            aud,
            exp: expires,
            iat: now,
            nbf: now,
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!(
                "system:serviceaccount:{}:{}",
                bound.namespace, bound.serviceaccount.name
            ),
            bound,
        };
        encode(&Header::new(Algorithm::ES256), &claims, &self.private)
            .map_err(|e| ApiError::internal(format!("signing a token: {e}")))
    }

    /// The user of a token, when it is valid for one of `audiences` (empty: the API server).
    pub async fn authenticate(
        &self,
        store: &dyn Store,
        token: &str,
        audiences: &[String],
    ) -> Option<User> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.validate_nbf = true;
        if audiences.is_empty() {
            validation.set_audience(&[ISSUER]);
        } else {
            validation.set_audience(audiences);
        }
        let claims = decode::<Claims>(token, &self.public, &validation)
            .ok()?
            .claims;
        let bound = claims.bound;
        let namespace = &bound.namespace;
        let account = &bound.serviceaccount;
        let mut checks = vec![("serviceaccounts", account)];
        checks.extend(bound.pod.as_ref().map(|pod| ("pods", pod)));
        checks.extend(bound.secret.as_ref().map(|secret| ("secrets", secret)));
        for (plural, reference) in checks {
            let kind = kind_by_resource("", "v1", plural)?;
            let kv = store
                .get(&object::key(kind, namespace, &reference.name))
                .await
                .ok()?
                .0?;
            let found: Value = serde_json::from_slice(&kv.value).ok()?;
            if object::text(&found, "/metadata/uid") != reference.uid {
                return None;
            }
        }
        let groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
        let name = format!("system:serviceaccount:{namespace}:{}", account.name);
        let mut user = User::new(name, groups);
        user.uid.clone_from(&account.uid);
        let mut extra = BTreeMap::new();
        let mut note = |key: &str, value: &str| {
            extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        };
        note("credential-id", &format!("JTI={}", claims.jti));
        if let Some(pod) = &bound.pod {
            note("pod-name", &pod.name);
            note("pod-uid", &pod.uid);
        }
        if let Some(node) = &bound.node {
            note("node-name", &node.name);
            note("node-uid", &node.uid);
        }
        user.extra = extra;
        Some(user)
    }
}
