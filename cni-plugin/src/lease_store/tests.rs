//! The files of leases: whole or not at all, also when many write at once.

use std::net::IpAddr;
use std::thread;

use super::*;
use crate::ipam::{Range, RangeSet, allocate, reach};

fn owner(container: &str) -> Attachment {
    Attachment {
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn lease(text: &str, gateway: &str) -> Lease {
    Lease {
        address: text.parse().unwrap(),
        gateway: Some(ip(gateway)),
    }
}

fn dual() -> [Lease; 2] {
    [
        lease("10.1.0.2/24", "10.1.0.1"),
        lease("fd00::2/64", "fd00::1"),
    ]
}

#[test]
fn leases_are_written_found_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = LeaseStore::open(dir.path(), "pods").unwrap();
    store.acquire(&owner("a"), &dual()).unwrap();
    let file = dir.path().join("pods/10.1.0.2");
    assert_eq!(
        fs::read_to_string(file).unwrap(),
        "a\r\neth0",
        "host-local reads this"
    );
    assert_eq!(store.last(0).unwrap(), Some(ip("10.1.0.2")));
    assert_eq!(store.last(1).unwrap(), Some(ip("fd00::2")));
    assert_eq!(
        store.of(&owner("a")).unwrap(),
        [ip("10.1.0.2"), ip("fd00::2")]
    );
    assert!(store.of(&owner("b")).unwrap().is_empty());
    assert!(store.release(&owner("b")).unwrap().is_empty());
    assert_eq!(store.release(&owner("a")).unwrap().len(), 2);
    assert!(store.release(&owner("a")).unwrap().is_empty());
    assert!(store.taken().unwrap().is_empty());
    assert_eq!(
        store.last(0).unwrap(),
        Some(ip("10.1.0.2")),
        "the next one goes on from here"
    );
}

#[test]
fn a_store_that_never_was_is_not_made_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        LeaseStore::open_existing(dir.path(), "pods")
            .unwrap()
            .is_none()
    );
    assert!(!dir.path().join("pods").exists());
}

#[test]
fn leases_of_an_earlier_boot_belong_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("pods");
    // Files of host-local, before we first came here: kept.
    fs::create_dir(&pods).unwrap();
    fs::write(pods.join("10.1.0.9"), "old\r\neth0").unwrap();
    assert_eq!(
        LeaseStore::open(dir.path(), "pods")
            .unwrap()
            .taken()
            .unwrap()
            .len(),
        1
    );
    // The machine has started again since.
    fs::write(pods.join("boot_id"), "another-boot").unwrap();
    let store = LeaseStore::open(dir.path(), "pods").unwrap();
    assert!(store.taken().unwrap().is_empty());
    store.acquire(&owner("a"), &dual()).unwrap();
    drop(store);
    assert_eq!(
        LeaseStore::open(dir.path(), "pods")
            .unwrap()
            .taken()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn what_a_killed_process_left_aside_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("pods");
    let store = LeaseStore::open(dir.path(), "pods").unwrap();
    fs::write(pods.join(ASIDE), "half").unwrap();
    assert!(store.taken().unwrap().is_empty());
    store.acquire(&owner("a"), &dual()).unwrap();
    assert!(!pods.join(ASIDE).exists());
}

#[test]
fn files_of_old_plugins_name_the_container_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = LeaseStore::open(dir.path(), "pods").unwrap();
    fs::write(dir.path().join("pods/10.1.0.7"), "a").unwrap();
    assert_eq!(store.release(&owner("a")).unwrap(), [ip("10.1.0.7")]);
}

#[test]
fn a_list_of_addresses_is_believed_only_as_far_as_the_leases_agree() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("pods");
    let store = LeaseStore::open(dir.path(), "pods").unwrap();
    store.acquire(&owner("a"), &dual()).unwrap();
    // Someone else gave one address back and to another container.
    fs::write(pods.join("10.1.0.2"), "b\r\neth0").unwrap();
    assert_eq!(store.of(&owner("a")).unwrap(), [ip("fd00::2")]);
    assert_eq!(store.release(&owner("a")).unwrap(), [ip("fd00::2")]);
    assert_eq!(store.release(&owner("b")).unwrap(), [ip("10.1.0.2")]);
    // A list without leases, as a process killed in between leaves it.
    store.acquire(&owner("c"), &dual()).unwrap();
    store.remove(ip("10.1.0.2")).unwrap();
    store.remove(ip("fd00::2")).unwrap();
    assert!(store.of(&owner("c")).unwrap().is_empty());
    store.release(&owner("c")).unwrap();
    let left: Vec<_> = fs::read_dir(&pods)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with("owner")),
        "{left:?}"
    );
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pods"), "a file").unwrap();
    let error = LeaseStore::open(dir.path(), "pods")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("make directory ") && error.contains("/pods: "),
        "{error}"
    );
}

#[test]
fn many_at_once_never_get_the_same_address() {
    let dir = tempfile::tempdir().unwrap();
    let net = "10.1.0.0/24".parse().unwrap();
    let (start, end) = reach(net).unwrap();
    let sets = [RangeSet::new(vec![Range {
        subnet: net,
        start,
        end,
        gateway: start,
    }])
    .unwrap()];
    let work = |worker: usize| {
        let mut given = Vec::new();
        for n in 0..25 {
            // Each call is a process of its own in life: opens, locks, writes, unlocks.
            let store = LeaseStore::open(dir.path(), "pods").unwrap();
            let last = [store.last(0).unwrap()];
            let leases = allocate(&sets, &[], &store.taken().unwrap(), &last).unwrap();
            store
                .acquire(&owner(&format!("{worker}-{n}")), &leases)
                .unwrap();
            given.push(leases[0].address.ip());
            if n % 5 == 4 {
                store.release(&owner(&format!("{worker}-{n}"))).unwrap();
                given.pop();
            }
        }
        given
    };
    let mut held: Vec<IpAddr> = thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect()
    });
    let (count, files) = (
        held.len(),
        LeaseStore::open(dir.path(), "pods")
            .unwrap()
            .taken()
            .unwrap(),
    );
    held.sort();
    held.dedup();
    assert_eq!((held.len(), files.len()), (count, count));
}
