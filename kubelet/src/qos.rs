//! Quality of service class and the cgroup limits of containers and pods. Pure.

use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use runtime::Limits;

use crate::pod;
use crate::quantity::{milli, units};

/// Period of the CPU quota.
pub const CPU_PERIOD_US: u64 = 100_000;
/// Smallest quota the kernel takes.
const CPU_QUOTA_MIN_US: i64 = 1000;
/// cpu.shares of one whole CPU, the least and the most (as upstream's `MilliCPUToShares`).
const SHARES_PER_CPU: i64 = 1024;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;

/// status.qosClass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Every container has equal requests and limits of CPU and memory.
    Guaranteed,
    /// Something is asked for or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        })
    }
}

/// What one container asks for, in thousandths of a CPU and in bytes. A limit stands in for a missing request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// requests.cpu
    pub cpu_request: Option<i64>,
    /// limits.cpu
    pub cpu_limit: Option<i64>,
    /// requests.memory
    pub memory_request: Option<i64>,
    /// limits.memory
    pub memory_limit: Option<i64>,
}

/// Reads the resources of a container; zero counts as not set.
pub fn amounts(resources: Option<&ResourceRequirements>) -> Amounts {
    let get = |limits: bool, name: &str| {
        let r = resources?;
        let map = if limits { &r.limits } else { &r.requests };
        let q = map.as_ref()?.get(name)?;
        let value = if name == "cpu" { milli(q) } else { units(q) };
        value.filter(|v| *v > 0)
    };
    let (cpu_limit, memory_limit) = (get(true, "cpu"), get(true, "memory"));
    Amounts {
        cpu_request: get(false, "cpu").or(cpu_limit),
        cpu_limit,
        memory_request: get(false, "memory").or(memory_limit),
        memory_limit,
    }
}

/// The class of a pod.
pub fn class(pod: &Pod) -> Class {
    let all: Vec<_> = pod::all_containers(pod)
        .map(|(c, _)| amounts(c.resources.as_ref()))
        .collect();
    if all.iter().all(|a| *a == Amounts::default()) {
        return Class::BestEffort;
    }
    let guaranteed = all.iter().all(|a| {
        a.cpu_limit.is_some()
            && a.memory_limit.is_some()
            && a.cpu_request == a.cpu_limit
            && a.memory_request == a.memory_limit
    });
    if guaranteed {
        Class::Guaranteed
    } else {
        Class::Burstable
    }
}

/// The cgroup limits of one container.
pub fn container_limits(container: &Container) -> Limits {
    let a = amounts(container.resources.as_ref());
    limits(a.cpu_request.unwrap_or(0), a.cpu_limit, a.memory_limit)
}

/// The cgroup limits of the pod as a whole: sums, and a limit only when every container has one.
pub fn pod_limits(pod: &Pod) -> Limits {
    let amounts_of = |c: &Container| amounts(c.resources.as_ref());
    let apps: Vec<_> = pod::app_containers(pod).iter().map(amounts_of).collect();
    let inits: Vec<_> = pod::init_containers(pod)
        .map(|(c, _)| amounts_of(c))
        .collect();
    let whole = |get: fn(&Amounts) -> Option<i64>| {
        let sum: i64 = apps.iter().filter_map(get).sum();
        inits.iter().filter_map(get).fold(sum, i64::max)
    };
    let limit = |get: fn(&Amounts) -> Option<i64>| {
        let all = apps.iter().chain(&inits).all(|a| get(a).is_some());
        all.then(|| whole(get))
    };
    limits(
        whole(|a| a.cpu_request),
        limit(|a| a.cpu_limit),
        limit(|a| a.memory_limit),
    )
}

fn limits(cpu_request: i64, cpu_limit: Option<i64>, memory_limit: Option<i64>) -> Limits {
    let shares = (cpu_request * SHARES_PER_CPU / 1000).clamp(SHARES_MIN, SHARES_MAX);
    let period = i64::try_from(CPU_PERIOD_US).unwrap_or(i64::MAX);
    Limits {
        cpu_shares: Some(shares.unsigned_abs()),
        cpu_period_us: cpu_limit.map(|_| CPU_PERIOD_US),
        pids: None,
        cpu_quota_us: cpu_limit.map(|m| (m * period / 1000).max(CPU_QUOTA_MIN_US)),
        memory_bytes: memory_limit,
    }
}

/// oom_score_adj of a container, as upstream's `GetContainerOOMScoreAdjust`.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i32 {
    const BEST_EFFORT: i64 = 1000;
    const GUARANTEED: i64 = -997;
    let score = match class(pod) {
        Class::Guaranteed => GUARANTEED,
        Class::BestEffort => BEST_EFFORT,
        Class::Burstable => {
            let asked = amounts(container.resources.as_ref()).memory_request;
            let share = asked.unwrap_or(0).saturating_mul(1000) / node_memory_bytes.max(1);
            (1000 - share).clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
        }
    };
    i32::try_from(score).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn classes() {
        let one = |resources: &str| {
            pod(&format!(
                "p: {{containers: [{{name: c, image: i, resources: {resources}}}]}}"
            ))
        };
        for (resources, expect) in [
            ("{}", Class::BestEffort),
            ("{requests: {cpu: 0}}", Class::BestEffort),
            ("{requests: {cpu: 100m}}", Class::Burstable),
            ("{limits: {cpu: 1, memory: 64Mi}}", Class::Guaranteed),
            (
                "{limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 100m, memory: 64Mi}}",
                Class::Burstable,
            ),
            ("{limits: {memory: 64Mi}}", Class::Burstable),
        ] {
            // Bare numbers parse as JSON numbers; the API takes quantities as strings.
            let text = resources
                .replace(": 0}", ": \"0\"}")
                .replace(": 1,", ": \"1\",");
            assert_eq!(class(&one(&text)), expect, "{resources}");
        }
    }

    #[test]
    fn pods_are_limited_only_when_all_containers_are() {
        let p = pod(
            "p: {containers: [{name: a, image: i, resources: {limits: {cpu: 200m, memory: 1Mi}}},
             {name: b, image: i, resources: {requests: {cpu: 300m}}}]}",
        );
        let limits = pod_limits(&p);
        assert_eq!(limits.cpu_shares, Some(512));
        assert_eq!((limits.cpu_quota_us, limits.memory_bytes), (None, None));
        let a = container_limits(&p.spec.as_ref().unwrap().containers[0]);
        assert_eq!(a.cpu_quota_us, Some(20_000));
        assert_eq!(a.memory_bytes, Some(1 << 20));
    }
}
