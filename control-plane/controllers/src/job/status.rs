//! The status of a job.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Run, Verdict};
use crate::meta;

pub(super) fn condition<'a>(status: Option<&'a JobStatus>, kind: &str) -> Option<&'a JobCondition> {
    status?
        .conditions
        .as_ref()?
        .iter()
        .find(|it| it.type_ == kind && it.status == "True")
}

impl Run<'_> {
    pub(super) fn status(&self, verdict: &Verdict) -> JobStatus {
        let some = |count: usize| i32::try_from(count).ok().filter(|count| *count != 0);
        let old = self.job.status.as_ref();
        let mut status = old.cloned().unwrap_or_default();
        let going = matches!(verdict, Verdict::GoesOn);
        status.active = if going { some(self.active.len()) } else { None };
        status.ready = Some(if going {
            i32::try_from(
                self.active
                    .iter()
                    .filter(|pod| meta::pod_ready(pod))
                    .count(),
            )
            .unwrap_or(0)
        } else {
            0
        });
        status.succeeded = Some(self.succeeded_count()).filter(|count| *count != 0);
        status.failed = some(self.failed.len());
        status.terminating = Some(0);
        status.start_time = match verdict {
            Verdict::Suspended => None,
            _ => status.start_time.or(Some(Time(self.now.wall))),
        };
        if self.indexed() {
            status.completed_indexes =
                Some(ranges(&self.done_indexes())).filter(|it| !it.is_empty());
        }
        match verdict {
            Verdict::GoesOn => {}
            Verdict::Complete => {
                let text = "Reached expected number of succeeded pods";
                self.set(
                    &mut status,
                    "SuccessCriteriaMet",
                    "CompletionsReached",
                    text,
                );
                self.set(&mut status, "Complete", "CompletionsReached", text);
                status.completion_time = Some(Time(self.now.wall));
            }
            Verdict::Failed { reason, message } => {
                self.set(&mut status, "FailureTarget", reason, message);
                self.set(&mut status, "Failed", reason, message);
            }
            Verdict::Suspended => {
                self.set(&mut status, "Suspended", "JobSuspended", "Job suspended")
            }
        }
        if !matches!(verdict, Verdict::Suspended)
            && let Some(conditions) = &mut status.conditions
        {
            conditions.retain(|it| it.type_ != "Suspended");
            if conditions.is_empty() {
                status.conditions = None;
            }
        }
        status
    }

    fn set(&self, status: &mut JobStatus, kind: &str, reason: &str, message: &str) {
        if condition(Some(status), kind).is_some() {
            return;
        }
        status
            .conditions
            .get_or_insert_default()
            .push(JobCondition {
                type_: kind.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_probe_time: Some(Time(self.now.wall)),
                last_transition_time: Some(Time(self.now.wall)),
            });
    }
}

/// `0-2,5`: how completed indexes are written.
pub(super) fn ranges(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}
