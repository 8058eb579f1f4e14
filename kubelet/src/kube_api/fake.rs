//! An API server of a few maps, for tests.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::{ApiError, ApiFuture, Data, KubeApi, Token, TokenAsk};
use crate::pod::PodId;
use crate::volumes::payload::Kind;

/// What it holds and was asked.
#[derive(Default)]
pub struct FakeApi {
    objects: Mutex<BTreeMap<(Kind, String), Data>>,
    /// Status patches, in order.
    pub patches: Mutex<Vec<Value>>,
    /// Names of pods removed.
    pub deleted: Mutex<Vec<String>>,
    /// So many requests fail first.
    pub failures: Mutex<u32>,
}

impl FakeApi {
    /// Sets or removes an object of any namespace.
    pub fn set(&self, kind: Kind, name: &str, data: Option<Data>) {
        let key = (kind, name.to_owned());
        let mut objects = self.objects.lock().unwrap();
        match data {
            Some(data) => objects.insert(key, data),
            None => objects.remove(&key),
        };
    }

    fn fail(&self) -> Result<(), ApiError> {
        let mut left = self.failures.lock().unwrap();
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(ApiError::Other("injected".to_owned()))
    }
}

impl KubeApi for FakeApi {
    fn patch_status<'a>(&'a self, _: &'a PodId, body: Value) -> ApiFuture<'a, Pod> {
        async move {
            self.fail()?;
            self.patches.lock().unwrap().push(body);
            Ok(Pod::default())
        }
        .boxed()
    }

    fn delete_pod<'a>(&'a self, pod: &'a PodId) -> ApiFuture<'a, ()> {
        async move {
            self.fail()?;
            self.deleted.lock().unwrap().push(pod.name.clone());
            Ok(())
        }
        .boxed()
    }

    fn token<'a>(&'a self, ask: &'a TokenAsk) -> ApiFuture<'a, Token> {
        async move {
            self.fail()?;
            Ok(Token {
                text: format!("token-of-{}", ask.account),
                expires: Timestamp::now() + SignedDuration::from_secs(ask.expiration_seconds),
            })
        }
        .boxed()
    }

    fn object<'a>(
        &'a self,
        kind: Kind,
        _: &'a str,
        name: &'a str,
        _: &'a str,
    ) -> ApiFuture<'a, Option<Data>> {
        async move {
            self.fail()?;
            let objects = self.objects.lock().unwrap();
            Ok(objects.get(&(kind, name.to_owned())).cloned())
        }
        .boxed()
    }

    fn release(&self, _: &str) {}
}
