//! Defaults of the kinds that run pods.

use serde_json::{Value, json};

use super::{Object, at, each, make, pod, set, set_text};

fn template(spec: &mut Object) {
    at(spec, "template", |template| {
        make(template, "metadata", |_| {});
        at(template, "spec", pod::spec);
    });
}

pub(super) fn deployment(o: &mut Object) {
    make(o, "spec", |spec| {
        set(spec, "replicas", 1);
        make(spec, "strategy", |strategy| {
            set_text(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                make(strategy, "rollingUpdate", |update| {
                    set(update, "maxUnavailable", "25%");
                    set(update, "maxSurge", "25%");
                });
            }
        });
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
        template(spec);
    });
}

pub(super) fn replica_set(o: &mut Object) {
    make(o, "spec", |spec| {
        set(spec, "replicas", 1);
        template(spec);
    });
}

pub(super) fn replication_controller(o: &mut Object) {
    let labels = o
        .get("spec")
        .and_then(|s| s.pointer("/template/metadata/labels"))
        .filter(|l| l.as_object().is_some_and(|l| !l.is_empty()))
        .cloned();
    if let Some(labels) = labels {
        make(o, "metadata", |metadata| {
            if metadata
                .get("labels")
                .and_then(Value::as_object)
                .is_none_or(|l| l.is_empty())
            {
                metadata.insert("labels".into(), labels.clone());
            }
        });
        make(o, "spec", |spec| {
            if spec
                .get("selector")
                .and_then(Value::as_object)
                .is_none_or(|l| l.is_empty())
            {
                spec.insert("selector".into(), labels);
            }
        });
    }
    replica_set(o);
}

pub(super) fn daemon_set(o: &mut Object) {
    make(o, "spec", |spec| {
        make(spec, "updateStrategy", |strategy| {
            set_text(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                make(strategy, "rollingUpdate", |update| {
                    set(update, "maxUnavailable", 1);
                    set(update, "maxSurge", 0);
                });
            }
        });
        set(spec, "revisionHistoryLimit", 10);
        template(spec);
    });
}

pub(super) fn stateful_set(o: &mut Object) {
    make(o, "spec", |spec| {
        set_text(spec, "podManagementPolicy", "OrderedReady");
        make(spec, "updateStrategy", |strategy| {
            set_text(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                make(strategy, "rollingUpdate", |update| {
                    set(update, "partition", 0)
                });
            }
        });
        make(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set_text(policy, "whenDeleted", "Retain");
            set_text(policy, "whenScaled", "Retain");
        });
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        each(spec, "volumeClaimTemplates", |claim| {
            set_text(claim, "apiVersion", "v1");
            set_text(claim, "kind", "PersistentVolumeClaim");
            at(claim, "spec", |spec| set(spec, "volumeMode", "Filesystem"));
            make(claim, "status", |status| {
                set_text(status, "phase", "Pending")
            });
        });
        template(spec);
    });
}

pub(super) fn job(o: &mut Object) {
    let labels = o
        .get("spec")
        .and_then(|s| s.pointer("/template/metadata/labels"))
        .cloned();
    make(o, "metadata", |metadata| {
        if metadata
            .get("labels")
            .and_then(Value::as_object)
            .is_none_or(|l| l.is_empty())
            && let Some(labels) = labels
        {
            metadata.insert("labels".into(), labels);
        }
    });
    make(o, "spec", |spec| {
        let is_unset = |spec: &Object, name: &str| spec.get(name).is_none_or(Value::is_null);
        if is_unset(spec, "completions") && is_unset(spec, "parallelism") {
            set(spec, "completions", 1);
        }
        set(spec, "parallelism", 1);
        let per_index = !is_unset(spec, "backoffLimitPerIndex");
        set(
            spec,
            "backoffLimit",
            if per_index { i64::from(i32::MAX) } else { 6 },
        );
        set(spec, "completionMode", "NonIndexed");
        set(spec, "suspend", false);
        let has_failure_policy = !is_unset(spec, "podFailurePolicy");
        let replacement = if has_failure_policy {
            "Failed"
        } else {
            "TerminatingOrFailed"
        };
        set(spec, "podReplacementPolicy", replacement);
        at(spec, "podFailurePolicy", |policy| {
            each(policy, "rules", |rule| {
                each(rule, "onPodConditions", |c| set_text(c, "status", "True"));
            });
        });
        set(spec, "manualSelector", false);
        template(spec);
    });
}

pub(super) fn cron_job(o: &mut Object) {
    make(o, "spec", |spec| {
        set_text(spec, "concurrencyPolicy", "Allow");
        set(spec, "suspend", false);
        set(spec, "successfulJobsHistoryLimit", 3);
        set(spec, "failedJobsHistoryLimit", 1);
        at(spec, "jobTemplate", |job| at(job, "spec", template));
    });
}

pub(super) fn autoscaler(o: &mut Object, with_metrics: bool) {
    make(o, "spec", |spec| {
        set(spec, "minReplicas", 1);
        if !with_metrics {
            return;
        }
        if spec
            .get("metrics")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
        {
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            let cpu = json!({"name": "cpu", "target": target});
            spec.insert(
                "metrics".into(),
                json!([{"type": "Resource", "resource": cpu}]),
            );
        }
        at(spec, "behavior", |behavior| {
            let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            make(behavior, "scaleUp", |rules| {
                set(rules, "stabilizationWindowSeconds", 0);
                set(rules, "selectPolicy", "Max");
                set(rules, "policies", json!([pods, percent]));
            });
            make(behavior, "scaleDown", |rules| {
                set(rules, "selectPolicy", "Max");
                set(rules, "policies", json!([percent]));
            });
        });
    });
}
