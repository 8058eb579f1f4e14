//! The kinds the controllers read in full, in one table: names on the wire, typed caches, typed events.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::cache::Cache;

macro_rules! kinds {
    ($($kind:ident $field:ident $prefix:literal $api_version:literal $plural:literal $namespaced:literal;)*) => {
        /// A kind with a typed cache.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            /// `/api/v1` or `/apis/GROUP/VERSION`.
            pub(crate) fn prefix(self) -> &'static str {
                match self { $(Self::$kind => $prefix),* }
            }

            pub(crate) fn api_version(self) -> &'static str {
                match self { $(Self::$kind => $api_version),* }
            }

            pub(crate) fn plural(self) -> &'static str {
                match self { $(Self::$kind => $plural),* }
            }

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind)),* }
            }

            pub(crate) fn namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced),* }
            }

            /// Reads an object of this kind from JSON.
            pub(crate) fn decode(self, json: &str) -> serde_json::Result<Object> {
                Ok(match self { $(Self::$kind => {
                    let mut object: $kind = serde_json::from_str(json)?;
                    object.trim();
                    Object::$kind(Arc::new(object))
                }),* })
            }
        }

        /// An object of any cached kind.
        #[derive(Clone, Debug)]
        pub(crate) enum Object { $($kind(Arc<$kind>)),* }

        impl Object {
            pub(crate) fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),* }
            }
        }

        /// A change the view has taken in: what was there, what is there.
        #[derive(Debug)]
        pub(crate) enum Touch { $($kind { old: Option<Arc<$kind>>, new: Option<Arc<$kind>> }),* }

        impl Touch {
            pub(crate) fn kind(&self) -> Kind {
                match self { $(Self::$kind { .. } => Kind::$kind),* }
            }

            /// The metadata of the newest form: of the new object, or of the one that is gone.
            pub(crate) fn meta(&self) -> Option<&ObjectMeta> {
                match self { $(Self::$kind { old, new } => new.as_ref().or(old.as_ref()).map(|object| &object.metadata)),* }
            }

            pub(crate) fn is_removal(&self) -> bool {
                match self { $(Self::$kind { new, .. } => new.is_none()),* }
            }
        }

        /// One typed cache for each kind.
        #[derive(Default)]
        pub(crate) struct Caches { $(pub(crate) $field: Cache<$kind>),* }

        impl Caches {
            pub(crate) fn synced(&self) -> bool {
                true $(&& self.$field.synced())*
            }

            pub(crate) fn init(&mut self, kind: Kind) {
                match kind { $(Kind::$kind => self.$field.init()),* }
            }

            pub(crate) fn init_done(&mut self, kind: Kind) -> Vec<Touch> {
                match kind { $(Kind::$kind => self.$field.init_done().into_iter()
                    .map(|old| Touch::$kind { old: Some(old), new: None }).collect()),* }
            }

            /// Drops creations of our own that the watches never showed.
            pub(crate) fn sweep(&mut self) -> Vec<Touch> {
                let mut touches = Vec::new();
                $(touches.extend(self.$field.sweep().into_iter()
                    .map(|old| Touch::$kind { old: Some(old), new: None }));)*
                touches
            }

            /// Takes in an object as the watch (or the initial list) gave it.
            pub(crate) fn seen(&mut self, object: Object) -> Option<Touch> {
                match object { $(Object::$kind(object) => self.$field.seen(Arc::clone(&object))
                    .map(|old| Touch::$kind { old, new: Some(object) })),* }
            }

            /// Takes in an object as the answer to a write of our own.
            pub(crate) fn written(&mut self, object: Object, created: bool) -> Option<Touch> {
                match object { $(Object::$kind(object) => self.$field.written(Arc::clone(&object), created)
                    .map(|old| Touch::$kind { old, new: Some(object) })),* }
            }

            /// The watch says that an object is gone.
            pub(crate) fn gone(&mut self, object: &Object) -> Option<Touch> {
                match object { $(Object::$kind(object) => self.$field.gone(&object.metadata)
                    .map(|old| Touch::$kind { old: Some(old), new: None })),* }
            }

            /// A delete of our own was answered with "it is gone".
            pub(crate) fn deleted(&mut self, kind: Kind, namespace: &str, name: &str, uid: &str) -> Option<Touch> {
                match kind { $(Kind::$kind => self.$field.deleted(namespace, name, uid)
                    .map(|old| Touch::$kind { old: Some(old), new: None })),* }
            }
        }
    };
}

kinds! {
    Pod pods "/api/v1" "v1" "pods" true;
    Node nodes "/api/v1" "v1" "nodes" false;
    Namespace namespaces "/api/v1" "v1" "namespaces" false;
    Service services "/api/v1" "v1" "services" true;
    ServiceAccount service_accounts "/api/v1" "v1" "serviceaccounts" true;
    ConfigMap config_maps "/api/v1" "v1" "configmaps" true;
    Lease leases "/apis/coordination.k8s.io/v1" "coordination.k8s.io/v1" "leases" true;
    EndpointSlice slices "/apis/discovery.k8s.io/v1" "discovery.k8s.io/v1" "endpointslices" true;
    ReplicaSet replica_sets "/apis/apps/v1" "apps/v1" "replicasets" true;
    Deployment deployments "/apis/apps/v1" "apps/v1" "deployments" true;
    StatefulSet stateful_sets "/apis/apps/v1" "apps/v1" "statefulsets" true;
    DaemonSet daemon_sets "/apis/apps/v1" "apps/v1" "daemonsets" true;
    ControllerRevision revisions "/apis/apps/v1" "apps/v1" "controllerrevisions" true;
    PersistentVolumeClaim claims "/api/v1" "v1" "persistentvolumeclaims" true;
    Job jobs "/apis/batch/v1" "batch/v1" "jobs" true;
}

/// The only ConfigMaps that are cached.
pub(crate) const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// The only namespace whose Leases are cached.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";

impl Kind {
    /// True when the cache holds every object of the kind (ConfigMaps and Leases are watched in part).
    pub(crate) fn complete(self) -> bool {
        !matches!(self, Self::ConfigMap | Self::Lease)
    }
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Drops what no controller reads, so that the caches stay small. Nothing may therefore replace a cached object as a
/// whole: all updates are patches.
pub(crate) trait Trim: Resource {
    fn trim(&mut self) {
        trim_meta(self.meta_mut());
    }
}

fn trim_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

impl Trim for Pod {
    fn trim(&mut self) {
        trim_meta(&mut self.metadata);
        let Some(spec) = &mut self.spec else { return };
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            container.env = None;
            container.env_from = None;
            container.command = None;
            container.args = None;
            container.volume_mounts = None;
            container.lifecycle = None;
            container.liveness_probe = None;
            container.readiness_probe = None;
            container.startup_probe = None;
        }
        if let Some(status) = &mut self.status {
            for container in status.container_statuses.iter_mut().flatten() {
                container.volume_mounts = None;
                container.last_state = None;
            }
        }
    }
}

impl Trim for Node {
    fn trim(&mut self) {
        trim_meta(&mut self.metadata);
        if let Some(status) = &mut self.status {
            status.images = None;
            status.volumes_in_use = None;
            status.volumes_attached = None;
        }
    }
}

impl Trim for Namespace {}
impl Trim for Service {}
impl Trim for ServiceAccount {}
impl Trim for ConfigMap {}
impl Trim for Lease {}
impl Trim for EndpointSlice {}
impl Trim for ReplicaSet {}
impl Trim for Deployment {}
impl Trim for StatefulSet {}
impl Trim for DaemonSet {}
impl Trim for ControllerRevision {}
impl Trim for PersistentVolumeClaim {}
impl Trim for Job {}
