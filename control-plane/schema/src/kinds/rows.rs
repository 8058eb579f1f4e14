//! One row per kind; upstream's order of groups (kubectl resolves a bare resource name to the
//! first group that has it), plurals in alphabetical order within a version.

use super::{ALL, CREATE_ONLY, GET_PATCH_UPDATE, Gvk, Kind, NO_DELETE_COLLECTION, Subresource};

const NOT_ENFORCED: &str =
    "this control plane stores admission webhooks and policies but does not call or enforce them";

const NOT_RUN: &str = "this control plane stores the object but no controller acts on it yet";
const NO_QUOTA: &str =
    "this control plane stores quotas and limit ranges but does not enforce them yet";
const NO_VOLUMES: &str = "this control plane stores persistent volumes and claims but does not bind or provision them yet";
const NO_BUDGET: &str =
    "disruption budgets are honoured by evictions only; their status is not kept up to date yet";
const NOT_SIGNED: &str =
    "this control plane stores certificate signing requests but does not sign them yet";

const SCALE: Subresource = sub("scale", "autoscaling", "v1", "Scale", GET_PATCH_UPDATE);

const fn sub(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        gvk: Gvk {
            group,
            version,
            kind,
        },
        verbs,
    }
}

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    sub("status", group, version, kind, GET_PATCH_UPDATE)
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    type_name: &'static str,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        list_kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        type_name,
        stored_as: None,
        warning: None,
    }
}

/// Every served kind.
pub fn kinds() -> &'static [Kind] {
    KINDS
}

static KINDS: &[Kind] = &[
    Kind {
        verbs: CREATE_ONLY,
        ..kind(
            "",
            "v1",
            "Binding",
            "BindingList",
            "bindings",
            "binding",
            "io.k8s.api.core.v1.Binding",
        )
    },
    Kind {
        short_names: &["cm"],
        ..kind(
            "",
            "v1",
            "ConfigMap",
            "ConfigMapList",
            "configmaps",
            "configmap",
            "io.k8s.api.core.v1.ConfigMap",
        )
    },
    Kind {
        short_names: &["ep"],
        ..kind(
            "",
            "v1",
            "Endpoints",
            "EndpointsList",
            "endpoints",
            "endpoints",
            "io.k8s.api.core.v1.Endpoints",
        )
    },
    Kind {
        short_names: &["ev"],
        ..kind(
            "",
            "v1",
            "Event",
            "EventList",
            "events",
            "event",
            "io.k8s.api.core.v1.Event",
        )
    },
    Kind {
        short_names: &["limits"],
        warning: Some(NO_QUOTA),
        ..kind(
            "",
            "v1",
            "LimitRange",
            "LimitRangeList",
            "limitranges",
            "limitrange",
            "io.k8s.api.core.v1.LimitRange",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["ns"],
        verbs: NO_DELETE_COLLECTION,
        subresources: &[
            sub("finalize", "", "v1", "Namespace", &["update"]),
            status("", "v1", "Namespace"),
        ],
        ..kind(
            "",
            "v1",
            "Namespace",
            "NamespaceList",
            "namespaces",
            "namespace",
            "io.k8s.api.core.v1.Namespace",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["no"],
        subresources: &[status("", "v1", "Node")],
        ..kind(
            "",
            "v1",
            "Node",
            "NodeList",
            "nodes",
            "node",
            "io.k8s.api.core.v1.Node",
        )
    },
    Kind {
        short_names: &["pvc"],
        subresources: &[status("", "v1", "PersistentVolumeClaim")],
        warning: Some(NO_VOLUMES),
        ..kind(
            "",
            "v1",
            "PersistentVolumeClaim",
            "PersistentVolumeClaimList",
            "persistentvolumeclaims",
            "persistentvolumeclaim",
            "io.k8s.api.core.v1.PersistentVolumeClaim",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["pv"],
        subresources: &[status("", "v1", "PersistentVolume")],
        warning: Some(NO_VOLUMES),
        ..kind(
            "",
            "v1",
            "PersistentVolume",
            "PersistentVolumeList",
            "persistentvolumes",
            "persistentvolume",
            "io.k8s.api.core.v1.PersistentVolume",
        )
    },
    Kind {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", "", "v1", "PodAttachOptions", &["create", "get"]),
            sub("binding", "", "v1", "Binding", &["create"]),
            sub("eviction", "policy", "v1", "Eviction", &["create"]),
            sub("exec", "", "v1", "PodExecOptions", &["create", "get"]),
            sub("log", "", "v1", "Pod", &["get"]),
            sub(
                "portforward",
                "",
                "v1",
                "PodPortForwardOptions",
                &["create", "get"],
            ),
            status("", "v1", "Pod"),
        ],
        ..kind(
            "",
            "v1",
            "Pod",
            "PodList",
            "pods",
            "pod",
            "io.k8s.api.core.v1.Pod",
        )
    },
    kind(
        "",
        "v1",
        "PodTemplate",
        "PodTemplateList",
        "podtemplates",
        "podtemplate",
        "io.k8s.api.core.v1.PodTemplate",
    ),
    Kind {
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[SCALE, status("", "v1", "ReplicationController")],
        warning: Some(NOT_RUN),
        ..kind(
            "",
            "v1",
            "ReplicationController",
            "ReplicationControllerList",
            "replicationcontrollers",
            "replicationcontroller",
            "io.k8s.api.core.v1.ReplicationController",
        )
    },
    Kind {
        short_names: &["quota"],
        subresources: &[status("", "v1", "ResourceQuota")],
        warning: Some(NO_QUOTA),
        ..kind(
            "",
            "v1",
            "ResourceQuota",
            "ResourceQuotaList",
            "resourcequotas",
            "resourcequota",
            "io.k8s.api.core.v1.ResourceQuota",
        )
    },
    kind(
        "",
        "v1",
        "Secret",
        "SecretList",
        "secrets",
        "secret",
        "io.k8s.api.core.v1.Secret",
    ),
    Kind {
        short_names: &["sa"],
        subresources: &[sub(
            "token",
            "authentication.k8s.io",
            "v1",
            "TokenRequest",
            &["create"],
        )],
        ..kind(
            "",
            "v1",
            "ServiceAccount",
            "ServiceAccountList",
            "serviceaccounts",
            "serviceaccount",
            "io.k8s.api.core.v1.ServiceAccount",
        )
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[status("", "v1", "Service")],
        ..kind(
            "",
            "v1",
            "Service",
            "ServiceList",
            "services",
            "service",
            "io.k8s.api.core.v1.Service",
        )
    },
    kind(
        "apps",
        "v1",
        "ControllerRevision",
        "ControllerRevisionList",
        "controllerrevisions",
        "controllerrevision",
        "io.k8s.api.apps.v1.ControllerRevision",
    ),
    Kind {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status("apps", "v1", "DaemonSet")],
        ..kind(
            "apps",
            "v1",
            "DaemonSet",
            "DaemonSetList",
            "daemonsets",
            "daemonset",
            "io.k8s.api.apps.v1.DaemonSet",
        )
    },
    Kind {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status("apps", "v1", "Deployment")],
        ..kind(
            "apps",
            "v1",
            "Deployment",
            "DeploymentList",
            "deployments",
            "deployment",
            "io.k8s.api.apps.v1.Deployment",
        )
    },
    Kind {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status("apps", "v1", "ReplicaSet")],
        ..kind(
            "apps",
            "v1",
            "ReplicaSet",
            "ReplicaSetList",
            "replicasets",
            "replicaset",
            "io.k8s.api.apps.v1.ReplicaSet",
        )
    },
    Kind {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[SCALE, status("apps", "v1", "StatefulSet")],
        ..kind(
            "apps",
            "v1",
            "StatefulSet",
            "StatefulSetList",
            "statefulsets",
            "statefulset",
            "io.k8s.api.apps.v1.StatefulSet",
        )
    },
    Kind {
        short_names: &["ev"],
        stored_as: Some(Gvk {
            group: "",
            version: "v1",
            kind: "Event",
        }),
        ..kind(
            "events.k8s.io",
            "v1",
            "Event",
            "EventList",
            "events",
            "event",
            "io.k8s.api.events.v1.Event",
        )
    },
    Kind {
        namespaced: false,
        verbs: CREATE_ONLY,
        ..kind(
            "authentication.k8s.io",
            "v1",
            "SelfSubjectReview",
            "SelfSubjectReviewList",
            "selfsubjectreviews",
            "selfsubjectreview",
            "io.k8s.api.authentication.v1.SelfSubjectReview",
        )
    },
    Kind {
        namespaced: false,
        verbs: CREATE_ONLY,
        ..kind(
            "authentication.k8s.io",
            "v1",
            "TokenReview",
            "TokenReviewList",
            "tokenreviews",
            "tokenreview",
            "io.k8s.api.authentication.v1.TokenReview",
        )
    },
    Kind {
        verbs: CREATE_ONLY,
        ..kind(
            "authorization.k8s.io",
            "v1",
            "LocalSubjectAccessReview",
            "LocalSubjectAccessReviewList",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
            "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        )
    },
    Kind {
        namespaced: false,
        verbs: CREATE_ONLY,
        ..kind(
            "authorization.k8s.io",
            "v1",
            "SelfSubjectAccessReview",
            "SelfSubjectAccessReviewList",
            "selfsubjectaccessreviews",
            "selfsubjectaccessreview",
            "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        )
    },
    Kind {
        namespaced: false,
        verbs: CREATE_ONLY,
        ..kind(
            "authorization.k8s.io",
            "v1",
            "SelfSubjectRulesReview",
            "SelfSubjectRulesReviewList",
            "selfsubjectrulesreviews",
            "selfsubjectrulesreview",
            "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        )
    },
    Kind {
        namespaced: false,
        verbs: CREATE_ONLY,
        ..kind(
            "authorization.k8s.io",
            "v1",
            "SubjectAccessReview",
            "SubjectAccessReviewList",
            "subjectaccessreviews",
            "subjectaccessreview",
            "io.k8s.api.authorization.v1.SubjectAccessReview",
        )
    },
    Kind {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status("autoscaling", "v2", "HorizontalPodAutoscaler")],
        warning: Some(NOT_RUN),
        ..kind(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "HorizontalPodAutoscalerList",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
            "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        )
    },
    Kind {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status("autoscaling", "v1", "HorizontalPodAutoscaler")],
        stored_as: Some(Gvk {
            group: "autoscaling",
            version: "v2",
            kind: "HorizontalPodAutoscaler",
        }),
        warning: Some(NOT_RUN),
        ..kind(
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            "HorizontalPodAutoscalerList",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
            "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        )
    },
    Kind {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[status("batch", "v1", "CronJob")],
        warning: Some(NOT_RUN),
        ..kind(
            "batch",
            "v1",
            "CronJob",
            "CronJobList",
            "cronjobs",
            "cronjob",
            "io.k8s.api.batch.v1.CronJob",
        )
    },
    Kind {
        categories: &["all"],
        subresources: &[status("batch", "v1", "Job")],
        ..kind(
            "batch",
            "v1",
            "Job",
            "JobList",
            "jobs",
            "job",
            "io.k8s.api.batch.v1.Job",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["csr"],
        subresources: &[
            sub(
                "approval",
                "certificates.k8s.io",
                "v1",
                "CertificateSigningRequest",
                &["get", "patch", "update"],
            ),
            status("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        ],
        warning: Some(NOT_SIGNED),
        ..kind(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "CertificateSigningRequestList",
            "certificatesigningrequests",
            "certificatesigningrequest",
            "io.k8s.api.certificates.v1.CertificateSigningRequest",
        )
    },
    Kind {
        namespaced: false,
        ..kind(
            "networking.k8s.io",
            "v1",
            "IngressClass",
            "IngressClassList",
            "ingressclasses",
            "ingressclass",
            "io.k8s.api.networking.v1.IngressClass",
        )
    },
    Kind {
        short_names: &["ing"],
        subresources: &[status("networking.k8s.io", "v1", "Ingress")],
        ..kind(
            "networking.k8s.io",
            "v1",
            "Ingress",
            "IngressList",
            "ingresses",
            "ingress",
            "io.k8s.api.networking.v1.Ingress",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["ip"],
        ..kind(
            "networking.k8s.io",
            "v1",
            "IPAddress",
            "IPAddressList",
            "ipaddresses",
            "ipaddress",
            "io.k8s.api.networking.v1.IPAddress",
        )
    },
    Kind {
        short_names: &["netpol"],
        ..kind(
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            "NetworkPolicyList",
            "networkpolicies",
            "networkpolicy",
            "io.k8s.api.networking.v1.NetworkPolicy",
        )
    },
    Kind {
        namespaced: false,
        subresources: &[status("networking.k8s.io", "v1", "ServiceCIDR")],
        ..kind(
            "networking.k8s.io",
            "v1",
            "ServiceCIDR",
            "ServiceCIDRList",
            "servicecidrs",
            "servicecidr",
            "io.k8s.api.networking.v1.ServiceCIDR",
        )
    },
    Kind {
        short_names: &["pdb"],
        subresources: &[status("policy", "v1", "PodDisruptionBudget")],
        warning: Some(NO_BUDGET),
        ..kind(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "PodDisruptionBudgetList",
            "poddisruptionbudgets",
            "poddisruptionbudget",
            "io.k8s.api.policy.v1.PodDisruptionBudget",
        )
    },
    Kind {
        namespaced: false,
        ..kind(
            "rbac.authorization.k8s.io",
            "v1",
            "ClusterRoleBinding",
            "ClusterRoleBindingList",
            "clusterrolebindings",
            "clusterrolebinding",
            "io.k8s.api.rbac.v1.ClusterRoleBinding",
        )
    },
    Kind {
        namespaced: false,
        ..kind(
            "rbac.authorization.k8s.io",
            "v1",
            "ClusterRole",
            "ClusterRoleList",
            "clusterroles",
            "clusterrole",
            "io.k8s.api.rbac.v1.ClusterRole",
        )
    },
    kind(
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "RoleBindingList",
        "rolebindings",
        "rolebinding",
        "io.k8s.api.rbac.v1.RoleBinding",
    ),
    kind(
        "rbac.authorization.k8s.io",
        "v1",
        "Role",
        "RoleList",
        "roles",
        "role",
        "io.k8s.api.rbac.v1.Role",
    ),
    Kind {
        namespaced: false,
        ..kind(
            "storage.k8s.io",
            "v1",
            "CSIDriver",
            "CSIDriverList",
            "csidrivers",
            "csidriver",
            "io.k8s.api.storage.v1.CSIDriver",
        )
    },
    Kind {
        namespaced: false,
        ..kind(
            "storage.k8s.io",
            "v1",
            "CSINode",
            "CSINodeList",
            "csinodes",
            "csinode",
            "io.k8s.api.storage.v1.CSINode",
        )
    },
    kind(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "CSIStorageCapacityList",
        "csistoragecapacities",
        "csistoragecapacity",
        "io.k8s.api.storage.v1.CSIStorageCapacity",
    ),
    Kind {
        namespaced: false,
        short_names: &["sc"],
        warning: Some(NO_VOLUMES),
        ..kind(
            "storage.k8s.io",
            "v1",
            "StorageClass",
            "StorageClassList",
            "storageclasses",
            "storageclass",
            "io.k8s.api.storage.v1.StorageClass",
        )
    },
    Kind {
        namespaced: false,
        subresources: &[status("storage.k8s.io", "v1", "VolumeAttachment")],
        ..kind(
            "storage.k8s.io",
            "v1",
            "VolumeAttachment",
            "VolumeAttachmentList",
            "volumeattachments",
            "volumeattachment",
            "io.k8s.api.storage.v1.VolumeAttachment",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["vac"],
        ..kind(
            "storage.k8s.io",
            "v1",
            "VolumeAttributesClass",
            "VolumeAttributesClassList",
            "volumeattributesclasses",
            "volumeattributesclass",
            "io.k8s.api.storage.v1.VolumeAttributesClass",
        )
    },
    Kind {
        namespaced: false,
        categories: &["api-extensions"],
        warning: Some(NOT_ENFORCED),
        ..kind(
            "admissionregistration.k8s.io",
            "v1",
            "MutatingWebhookConfiguration",
            "MutatingWebhookConfigurationList",
            "mutatingwebhookconfigurations",
            "mutatingwebhookconfiguration",
            "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
        )
    },
    Kind {
        namespaced: false,
        categories: &["api-extensions"],
        subresources: &[status(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicy",
        )],
        warning: Some(NOT_ENFORCED),
        ..kind(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyList",
            "validatingadmissionpolicies",
            "validatingadmissionpolicy",
            "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
        )
    },
    Kind {
        namespaced: false,
        categories: &["api-extensions"],
        warning: Some(NOT_ENFORCED),
        ..kind(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicyBindingList",
            "validatingadmissionpolicybindings",
            "validatingadmissionpolicybinding",
            "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        )
    },
    Kind {
        namespaced: false,
        categories: &["api-extensions"],
        warning: Some(NOT_ENFORCED),
        ..kind(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingWebhookConfiguration",
            "ValidatingWebhookConfigurationList",
            "validatingwebhookconfigurations",
            "validatingwebhookconfiguration",
            "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
        )
    },
    Kind {
        namespaced: false,
        short_names: &["pc"],
        ..kind(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "PriorityClassList",
            "priorityclasses",
            "priorityclass",
            "io.k8s.api.scheduling.v1.PriorityClass",
        )
    },
    kind(
        "coordination.k8s.io",
        "v1",
        "Lease",
        "LeaseList",
        "leases",
        "lease",
        "io.k8s.api.coordination.v1.Lease",
    ),
    Kind {
        namespaced: false,
        ..kind(
            "node.k8s.io",
            "v1",
            "RuntimeClass",
            "RuntimeClassList",
            "runtimeclasses",
            "runtimeclass",
            "io.k8s.api.node.v1.RuntimeClass",
        )
    },
    kind(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "EndpointSliceList",
        "endpointslices",
        "endpointslice",
        "io.k8s.api.discovery.v1.EndpointSlice",
    ),
];
