//! The columns of each kind, as upstream's printers define them.

use crate::kinds::Kind;

/// One column.
#[derive(Debug, PartialEq, Eq)]
pub struct Column {
    /// Header; kubectl prints it in capitals.
    pub name: &'static str,
    /// OpenAPI type of the cells.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column with the object's name.
    pub format: &'static str,
    /// A sentence for people.
    pub description: &'static str,
    /// Above 0: shown by `-o wide` only.
    pub priority: i32,
}

const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        description: "",
        priority: 0,
    }
}

const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        description: "",
        priority: 1,
    }
}

const fn int(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        format: "",
        description: "",
        priority: 0,
    }
}

const fn flag(name: &'static str) -> Column {
    Column {
        name,
        kind: "boolean",
        format: "",
        description: "",
        priority: 0,
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace.",
    priority: 0,
};
const AGE: Column = Column {
    name: "Age",
    kind: "string",
    format: "",
    description: "Time since the object was created on the server.",
    priority: 0,
};
const CREATED_AT: Column = Column {
    name: "Created At",
    kind: "date",
    format: "",
    description: "When the object was created on the server.",
    priority: 0,
};
const CONTAINERS: Column = wide("Containers");
const IMAGES: Column = wide("Images");
const SELECTOR: Column = wide("Selector");

const PLAIN: &[Column] = &[NAME, CREATED_AT];
const REPLICAS: &[Column] = &[
    NAME,
    int("Desired"),
    int("Current"),
    int("Ready"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const ROLE_BINDING: &[Column] = &[
    NAME,
    text("Role"),
    AGE,
    wide("Users"),
    wide("Groups"),
    wide("ServiceAccounts"),
];
const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    Column {
        priority: 1,
        ..NAME
    },
];

/// The columns of a kind.
pub(super) fn of(kind: &Kind) -> &'static [Column] {
    match kind.group {
        "" => core(kind.kind),
        "apps" | "batch" | "policy" | "autoscaling" => workloads(kind.kind),
        _ => named_group(kind),
    }
}

fn core(kind: &str) -> &'static [Column] {
    const POD: &[Column] = &[
        NAME,
        text("Ready"),
        text("Status"),
        text("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ];
    const SERVICE: &[Column] = &[
        NAME,
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        AGE,
        SELECTOR,
    ];
    const NODE: &[Column] = &[
        NAME,
        text("Status"),
        text("Roles"),
        AGE,
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ];
    const VOLUME: &[Column] = &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        AGE,
        wide("VolumeMode"),
    ];
    const CLAIM: &[Column] = &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ];
    match kind {
        "Pod" => POD,
        "Service" => SERVICE,
        "Node" => NODE,
        "PersistentVolume" => VOLUME,
        "PersistentVolumeClaim" => CLAIM,
        "Event" => EVENT,
        "ReplicationController" => REPLICAS,
        "Endpoints" => const { &[NAME, text("Endpoints"), AGE] },
        "Namespace" => const { &[NAME, text("Status"), AGE] },
        "ConfigMap" => const { &[NAME, text("Data"), AGE] },
        "Secret" => const { &[NAME, text("Type"), text("Data"), AGE] },
        "ServiceAccount" => const { &[NAME, text("Secrets"), AGE] },
        "ResourceQuota" => const { &[NAME, text("Request"), text("Limit"), AGE] },
        "PodTemplate" => const { &[NAME, text("Containers"), text("Images"), text("Pod Labels")] },
        _ => PLAIN,
    }
}

fn workloads(kind: &str) -> &'static [Column] {
    const DEPLOYMENT: &[Column] = &[
        NAME,
        text("Ready"),
        int("Up-to-date"),
        int("Available"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const DAEMON_SET: &[Column] = &[
        NAME,
        int("Desired"),
        int("Current"),
        int("Ready"),
        int("Up-to-date"),
        int("Available"),
        text("Node Selector"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const JOB: &[Column] = &[
        NAME,
        text("Status"),
        text("Completions"),
        text("Duration"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const CRON_JOB: &[Column] = &[
        NAME,
        text("Schedule"),
        text("Timezone"),
        text("Suspend"),
        int("Active"),
        text("Last Schedule"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const AUTOSCALER: &[Column] = &[
        NAME,
        text("Reference"),
        text("Targets"),
        text("MinPods"),
        text("MaxPods"),
        text("Replicas"),
        AGE,
    ];
    match kind {
        "Deployment" => DEPLOYMENT,
        "DaemonSet" => DAEMON_SET,
        "ReplicaSet" => REPLICAS,
        "StatefulSet" => const { &[NAME, text("Ready"), AGE, CONTAINERS, IMAGES] },
        "ControllerRevision" => const { &[NAME, text("Controller"), int("Revision"), AGE] },
        "Job" => JOB,
        "CronJob" => CRON_JOB,
        "HorizontalPodAutoscaler" => AUTOSCALER,
        "PodDisruptionBudget" => {
            const {
                &[
                    NAME,
                    text("Min Available"),
                    text("Max Unavailable"),
                    int("Allowed Disruptions"),
                    AGE,
                ]
            }
        }
        _ => PLAIN,
    }
}

fn named_group(kind: &Kind) -> &'static [Column] {
    const SIGNING_REQUEST: &[Column] = &[
        NAME,
        AGE,
        text("SignerName"),
        text("Requestor"),
        text("RequestedDuration"),
        text("Condition"),
    ];
    const STORAGE_CLASS: &[Column] = &[
        NAME,
        text("Provisioner"),
        text("ReclaimPolicy"),
        text("VolumeBindingMode"),
        flag("AllowVolumeExpansion"),
        AGE,
    ];
    const CSI_DRIVER: &[Column] = &[
        NAME,
        flag("AttachRequired"),
        flag("PodInfoOnMount"),
        flag("StorageCapacity"),
        text("TokenRequests"),
        flag("RequiresRepublish"),
        text("Modes"),
        AGE,
    ];
    const INGRESS: &[Column] = &[
        NAME,
        text("Class"),
        text("Hosts"),
        text("Address"),
        text("Ports"),
        AGE,
    ];
    const PRIORITY_CLASS: &[Column] = &[
        NAME,
        int("Value"),
        flag("Global-Default"),
        AGE,
        text("PreemptionPolicy"),
    ];
    match (kind.group, kind.kind) {
        ("events.k8s.io", "Event") => EVENT,
        ("discovery.k8s.io", "EndpointSlice") => {
            const {
                &[
                    NAME,
                    text("AddressType"),
                    text("Ports"),
                    text("Endpoints"),
                    AGE,
                ]
            }
        }
        ("networking.k8s.io", "Ingress") => INGRESS,
        ("networking.k8s.io", "IngressClass") => {
            const { &[NAME, text("Controller"), text("Parameters"), AGE] }
        }
        ("networking.k8s.io", "NetworkPolicy") => const { &[NAME, text("Pod-Selector"), AGE] },
        ("networking.k8s.io", "ServiceCIDR") => const { &[NAME, text("CIDRs"), AGE] },
        ("networking.k8s.io", "IPAddress") => const { &[NAME, text("ParentRef"), AGE] },
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => ROLE_BINDING,
        ("certificates.k8s.io", _) => SIGNING_REQUEST,
        ("coordination.k8s.io", "Lease") => const { &[NAME, text("Holder"), AGE] },
        ("node.k8s.io", "RuntimeClass") => const { &[NAME, text("Handler"), AGE] },
        ("scheduling.k8s.io", "PriorityClass") => PRIORITY_CLASS,
        ("storage.k8s.io", "StorageClass") => STORAGE_CLASS,
        ("storage.k8s.io", "CSINode") => const { &[NAME, int("Drivers"), AGE] },
        ("storage.k8s.io", "CSIDriver") => CSI_DRIVER,
        ("storage.k8s.io", "VolumeAttachment") => {
            const {
                &[
                    NAME,
                    text("Attacher"),
                    text("PV"),
                    text("Node"),
                    flag("Attached"),
                    AGE,
                ]
            }
        }
        ("storage.k8s.io", "VolumeAttributesClass") => const { &[NAME, text("DriverName"), AGE] },
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => const { &[NAME, int("Webhooks"), AGE] },
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            const { &[NAME, int("Validations"), text("ParamKind"), AGE] }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            const { &[NAME, text("PolicyName"), text("ParamRef"), AGE] }
        }
        _ => PLAIN,
    }
}
