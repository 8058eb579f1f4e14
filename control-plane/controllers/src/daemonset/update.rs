//! The move of a DaemonSet to a new template.

use k8s_openapi::api::core::v1::Pod;

use super::{Daemons, tolerations};
use crate::meta;
use crate::view::Now;
use crate::write::Write;

impl Daemons<'_> {
    fn limits(&self) -> Option<(i32, i32)> {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|it| it.type_.as_deref()) == Some("OnDelete") {
            return None;
        }
        let rolling = strategy.and_then(|it| it.rolling_update.as_ref());
        let wanted = i32::try_from(self.wanted.len()).unwrap_or(i32::MAX);
        let part = |value: Option<&_>| value.map(|value| meta::scaled(value, wanted, true));
        let surge = part(rolling.and_then(|it| it.max_surge.as_ref())).unwrap_or(0);
        let unavailable = part(rolling.and_then(|it| it.max_unavailable.as_ref()));
        Some((surge, unavailable.unwrap_or(if surge > 0 { 0 } else { 1 })))
    }

    pub(super) fn available(&self, pod: &Pod, now: Now) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        meta::pod_available_at(pod, min_ready).is_some_and(|at| at <= now.wall)
    }

    /// Replaces pods of older templates, as many at a time as may be missing or be too many.
    pub(super) fn update(&self, now: Now) -> Vec<Write> {
        let Some((surge, max_unavailable)) = self.limits() else {
            return Vec::new();
        };
        if surge > 0 {
            return self.surge(surge, now);
        }
        let mut unavailable = 0;
        let (mut broken, mut candidates) = (Vec::new(), Vec::new());
        for node in &self.wanted {
            let Some(pod) = self.active(node).next() else {
                unavailable += 1;
                continue;
            };
            let available = self.available(pod, now);
            unavailable += i32::from(!available);
            if !self.is_new(pod) {
                if available {
                    candidates.push(pod)
                } else {
                    broken.push(pod)
                }
            }
        }
        // What does not work anyway costs nothing.
        let room = usize::try_from(max_unavailable - unavailable).unwrap_or(0);
        broken
            .into_iter()
            .chain(candidates.into_iter().take(room))
            .map(|pod| self.remove(pod))
            .collect()
    }

    fn surge(&self, surge: i32, now: Now) -> Vec<Write> {
        let mut room = surge;
        let (mut writes, mut waiting) = (Vec::new(), Vec::new());
        for node in &self.wanted {
            let (new, old): (Vec<_>, Vec<_>) = self.active(node).partition(|pod| self.is_new(pod));
            match (new.first(), old.first()) {
                (Some(new), Some(old)) if self.available(new, now) => writes.push(self.remove(old)),
                (Some(_), Some(_)) => room -= 1,
                (None, Some(_)) => waiting.push(node),
                _ => {}
            }
        }
        let room = usize::try_from(room).unwrap_or(0);
        let tolerations = tolerations(self.spec);
        writes.extend(
            waiting
                .into_iter()
                .take(room)
                .map(|node| self.create(node, &tolerations)),
        );
        writes
    }
}
