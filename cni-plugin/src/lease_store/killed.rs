//! Processes that lease and give back, in any order, killed before any change of a file: no address
//! is lost or given twice.

use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;
use crate::ipam::{Range, RangeSet, allocate, reach};

/// More than the pool has, so that it is full at times.
const PODS: usize = 20;

/// Changes of files in a call, and a few more: some calls are not killed.
const STEPS: RangeInclusive<usize> = 0..=40;

/// What a process does, from taking the lock to letting it go. Each has the number of changes that it
/// lives to make.
#[derive(Debug, Clone)]
enum Call {
    /// An ADD gets its addresses.
    Add(usize, usize),
    /// A DEL, or an ADD that failed later, gives them back.
    Release(usize, usize),
    /// GC with the pods of which the runtime knows.
    Gc(usize),
    /// The machine starts again, and the first call since is an ADD.
    Boot(usize, usize),
}

fn call() -> impl Strategy<Value = Call> {
    let (pod, steps) = (0..PODS, STEPS);
    prop_oneof![
        8 => (pod.clone(), steps.clone()).prop_map(|(pod, steps)| Call::Add(pod, steps)),
        5 => (pod.clone(), steps.clone()).prop_map(|(pod, steps)| Call::Release(pod, steps)),
        1 => steps.clone().prop_map(Call::Gc),
        1 => (pod, steps).prop_map(|(pod, steps)| Call::Boot(pod, steps)),
    ]
}

/// What the runtime knows of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pod {
    /// It has no network.
    Gone,
    /// Its call was killed: it may have any of its addresses, until DEL or GC.
    Unknown,
    /// It has these.
    Has(Vec<IpAddr>),
}

struct World {
    dir: tempfile::TempDir,
    sets: Vec<RangeSet>,
    pods: Vec<Pod>,
}

fn owner(pod: usize) -> Attachment {
    Attachment {
        container_id: format!("pod{pod}"),
        ifname: "eth0".into(),
    }
}

impl World {
    fn new() -> Self {
        let set = |net: &str| {
            let subnet = net.parse().unwrap();
            let (start, end) = reach(subnet).unwrap();
            let gateway = start;
            RangeSet::new(vec![Range {
                subnet,
                start,
                end,
                gateway,
            }])
            .unwrap()
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            sets: vec![set("10.1.0.0/28"), set("fd00::/124")],
            pods: vec![Pod::Gone; PODS],
        }
    }

    /// A process that will be killed after so many changes.
    fn store(&self, steps: usize) -> Result<LeaseStore, LeaseError> {
        let dir = self.dir.path().join("pods");
        fs::create_dir_all(&dir).unwrap();
        let store = LeaseStore::lock(dir)?;
        store.fuse.set(steps);
        Ok(store)
    }

    /// As `verbs::addressing` leases, without what follows an error: the process is dead then.
    fn add(&self, pod: usize, steps: usize) -> Result<Option<Vec<IpAddr>>, LeaseError> {
        let boot = fs::read_to_string(BOOT_ID).unwrap();
        let store = self.store(steps)?.forget_earlier_boot(boot.trim())?;
        if !store.of(&owner(pod))?.is_empty() {
            return Ok(None);
        }
        let last = [store.last(0)?, store.last(1)?];
        let Ok(leases) = allocate(&self.sets, &[], &store.taken()?, &last) else {
            return Ok(None);
        };
        store.acquire(&owner(pod), &leases)?;
        Ok(Some(leases.iter().map(|l| l.address.ip()).collect()))
    }

    fn gc(&self, steps: usize) -> Result<(), LeaseError> {
        let store = self.store(steps)?;
        for (address, owner) in store.all()? {
            let has = |(pod, state): (usize, &Pod)| {
                matches!(state, Pod::Has(_)) && owner == self::owner(pod)
            };
            if !self.pods.iter().enumerate().any(has) {
                store.evict(address, &owner)?;
            }
        }
        store.sweep()
    }

    fn run(&mut self, call: &Call) {
        match *call {
            Call::Add(pod, steps) => match self.add(pod, steps) {
                Ok(Some(ips)) => {
                    assert!(!matches!(self.pods[pod], Pod::Has(_)), "ADD twice");
                    self.pods[pod] = Pod::Has(ips);
                }
                // Refused: nothing has changed.
                Ok(None) => {}
                Err(_) if matches!(self.pods[pod], Pod::Has(_)) => {}
                Err(_) => self.pods[pod] = Pod::Unknown,
            },
            Call::Release(pod, steps) => {
                let released = self.store(steps).and_then(|s| s.release(&owner(pod)));
                self.pods[pod] = match (&self.pods[pod], released) {
                    (Pod::Has(ips), Ok(released)) => {
                        assert_eq!(&released, ips, "what was leased comes back");
                        Pod::Gone
                    }
                    (_, Ok(_)) => Pod::Gone,
                    (Pod::Gone, Err(_)) => Pod::Gone,
                    (_, Err(_)) => Pod::Unknown,
                };
            }
            Call::Gc(steps) => {
                if self.gc(steps).is_ok() {
                    self.forget(|state| *state == Pod::Unknown);
                }
            }
            Call::Boot(pod, steps) => {
                let boot = self.dir.path().join("pods").join(BOOT_FILE);
                if boot.exists() {
                    fs::write(boot, "another").unwrap();
                    // Whatever is left of them is nobody's, and goes at the latest with GC.
                    for state in &mut self.pods {
                        if *state != Pod::Gone {
                            *state = Pod::Unknown;
                        }
                    }
                }
                self.run(&Call::Add(pod, steps));
            }
        }
        self.check();
    }

    fn forget(&mut self, which: impl Fn(&Pod) -> bool) {
        for state in self.pods.iter_mut().filter(|state| which(state)) {
            *state = Pod::Gone;
        }
    }

    /// What must hold whenever nobody has the lock.
    fn check(&self) {
        let all = self.store(0).unwrap().all().unwrap();
        let mut theirs = BTreeMap::new();
        for (pod, state) in self.pods.iter().enumerate() {
            let Pod::Has(ips) = state else { continue };
            for ip in ips {
                assert_eq!(theirs.insert(*ip, owner(pod)), None, "{ip} was given twice");
                assert_eq!(all.get(ip), Some(&owner(pod)), "the lease of {ip} is lost");
            }
        }
        for (ip, lease) in &all {
            let unknown = |pod| self.pods[pod] == Pod::Unknown && *lease == owner(pod);
            let known = theirs.get(ip) == Some(lease) || (0..PODS).any(unknown);
            assert!(known, "{ip} is nobody's, but leased to {lease:?}");
        }
    }

    /// Everything comes back, and the pool is as large as it was.
    fn end(mut self) {
        for pod in 0..PODS {
            self.run(&Call::Release(pod, usize::MAX));
        }
        self.run(&Call::Gc(usize::MAX));
        let names = fs::read_dir(self.dir.path().join("pods")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let stays = [
            BOOT_FILE,
            ASIDE,
            "lock",
            "last_reserved_ip.0",
            "last_reserved_ip.1",
        ];
        let left: Vec<String> = names.filter(|n| !stays.contains(&n.as_str())).collect();
        assert!(left.is_empty(), "{left:?}");
        let given = (0..PODS).filter_map(|pod| self.add(pod, usize::MAX).unwrap());
        assert_eq!(
            given.count(),
            13,
            "16 without network, broadcast and gateway"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_address_is_lost_or_given_twice(calls in prop::collection::vec(call(), 1..60)) {
        let mut world = World::new();
        for call in &calls {
            world.run(call);
        }
        world.end();
    }
}
