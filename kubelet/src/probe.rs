//! Probes: when a result changes something (pure), and how one is made (`check`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

pub mod check;
pub mod run;

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Holds back the other two until it succeeds once.
    Startup,
    /// Kills the container when it fails.
    Liveness,
    /// Takes the pod out of its services while it fails.
    Readiness,
}

impl Kind {
    /// As events spell it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The probe of this kind in a container's spec.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// A probe's timing with the API's defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Before the first.
    pub initial_delay: Duration,
    /// Between two.
    pub period: Duration,
    /// For one.
    pub timeout: Duration,
    /// Successes in a row until it counts as good.
    pub success_threshold: u32,
    /// Failures in a row until it counts as bad.
    pub failure_threshold: u32,
}

impl Timing {
    /// The timing of `probe`.
    pub fn of(probe: &Probe) -> Self {
        let get = |value: Option<i32>, default: u32| {
            let value = value.and_then(|v| u32::try_from(v).ok());
            value.filter(|v| *v > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(get(value, default).into());
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: get(probe.success_threshold, 1),
            failure_threshold: get(probe.failure_threshold, 3),
        }
    }
}

/// Counts results in a row and says when the verdict changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    verdict: Option<bool>,
    last: Option<bool>,
    run: u32,
}

impl Counter {
    /// Before the first result. Readiness begins as bad, liveness as good, startup as unknown.
    pub fn new(kind: Kind, timing: &Timing) -> Self {
        let verdict = match kind {
            Kind::Startup => None,
            Kind::Liveness => Some(true),
            Kind::Readiness => Some(false),
        };
        Self {
            success_threshold: timing.success_threshold,
            failure_threshold: timing.failure_threshold,
            verdict,
            last: None,
            run: 0,
        }
    }

    /// Takes one result; the new verdict when it changed.
    pub fn push(&mut self, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = Some(good);
        let threshold = if good {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.run < threshold || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` and `-` are results; the answer shows the verdict's changes at their places.
    #[track_caller]
    fn check(kind: Kind, thresholds: (u32, u32), results: &str, expect: &str) {
        let timing = Timing {
            success_threshold: thresholds.0,
            failure_threshold: thresholds.1,
            ..Timing::of(&Probe::default())
        };
        let mut counter = Counter::new(kind, &timing);
        let changes: String = results
            .chars()
            .map(|r| match counter.push(r == '+') {
                Some(true) => '+',
                Some(false) => '-',
                None => '.',
            })
            .collect();
        assert_eq!(changes, expect);
    }

    #[test]
    fn verdicts() {
        check(Kind::Readiness, (1, 3), "+--+---+", "+.....-+");
        check(Kind::Readiness, (2, 1), "++-++", ".+-.+");
        check(Kind::Readiness, (1, 3), "----", "....");
        check(Kind::Liveness, (1, 3), "++--+---", ".......-");
        check(Kind::Startup, (1, 3), "--+", "..+");
        check(Kind::Startup, (1, 3), "---", "..-");
    }

    #[test]
    fn defaults_are_the_apis() {
        let t = Timing::of(&Probe::default());
        assert_eq!(
            (t.period, t.timeout, t.failure_threshold),
            (Duration::from_secs(10), Duration::from_secs(1), 3)
        );
    }
}
