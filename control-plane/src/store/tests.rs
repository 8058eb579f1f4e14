//! One suite for every store, a model check against a plain map, and the kill -9 test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs a case against every built-in store.
fn each(case: impl AsyncFn(Arc<dyn Store>)) {
    block_on(case(Arc::new(Memory::new())));
    let dir = tempfile::tempdir().unwrap();
    block_on(case(Arc::new(
        Embedded::open(&dir.path().join("s.redb")).unwrap(),
    )));
}

fn all(prefix: &str) -> Range<'_> {
    Range {
        prefix,
        ..Range::default()
    }
}

fn keys(page: &Page) -> Vec<&str> {
    page.items.iter().map(|kv| &*kv.key).collect()
}

#[test]
fn create_read_replace_delete() {
    each(async |store| {
        let first = store.txn(vec![Op::create("/a/1", "x")]).await.unwrap();
        let (kv, rev) = store.get("/a/1").await.unwrap();
        let kv = kv.unwrap();
        assert_eq!(
            (kv.create_rev, kv.mod_rev, &kv.value[..]),
            (first, first, &b"x"[..])
        );
        assert_eq!(rev, first);
        let second = store
            .txn(vec![Op::replace("/a/1", first, "y")])
            .await
            .unwrap();
        let kv = store.get("/a/1").await.unwrap().0.unwrap();
        assert_eq!((kv.create_rev, kv.mod_rev), (first, second));
        store.txn(vec![Op::delete("/a/1", second)]).await.unwrap();
        assert_eq!(store.get("/a/1").await.unwrap().0, None);
        assert_eq!(store.current_rev(), second + 1);
    });
}

#[test]
fn a_failed_expectation_changes_nothing() {
    each(async |store| {
        let rev = store.txn(vec![Op::create("/a", "1")]).await.unwrap();
        let ops = vec![Op::create("/b", "1"), Op::create("/a", "2")];
        match store.txn(ops).await.unwrap_err() {
            Error::Conflict { index, current, .. } => {
                assert_eq!(index, 1);
                assert_eq!(current.unwrap().mod_rev, rev);
            }
            other => panic!("{other}"),
        }
        assert_eq!(store.get("/b").await.unwrap().0, None);
        assert!(
            store
                .txn(vec![Op::replace("/a", rev + 7, "2")])
                .await
                .is_err()
        );
        assert!(store.txn(vec![Op::delete("/c", 1)]).await.is_err());
        assert_eq!(store.current_rev(), rev);
    });
}

#[test]
fn a_transaction_has_one_revision_and_removing_nothing_has_none() {
    each(async |store| {
        let rev = store
            .txn(vec![Op::create("/a", "1"), Op::create("/b", "1")])
            .await
            .unwrap();
        let page = store.list(all("/")).await.unwrap();
        assert!(page.items.iter().all(|kv| kv.mod_rev == rev));
        assert_eq!(store.txn(vec![Op::remove("/nothing")]).await.unwrap(), rev);
    });
}

#[test]
fn pages_show_the_revision_they_began_at() {
    each(async |store| {
        for name in ["/p/a", "/p/b", "/p/c", "/q/a"] {
            store.txn(vec![Op::create(name, "1")]).await.unwrap();
        }
        let first = store
            .list(Range {
                limit: 2,
                ..all("/p/")
            })
            .await
            .unwrap();
        assert_eq!((keys(&first), first.remaining), (vec!["/p/a", "/p/b"], 1));
        store.txn(vec![Op::remove("/p/c")]).await.unwrap();
        store.txn(vec![Op::create("/p/bb", "1")]).await.unwrap();
        let rest = Range {
            after: Some("/p/b"),
            at: Some(first.rev),
            ..all("/p/")
        };
        let second = store.list(rest).await.unwrap();
        assert_eq!((keys(&second), second.rev), (vec!["/p/c"], first.rev));
        store.compact(store.current_rev()).unwrap();
        assert!(matches!(
            store.list(rest).await,
            Err(Error::Compacted { .. })
        ));
        let ahead = Range {
            at: Some(store.current_rev() + 1),
            ..all("/p/")
        };
        assert!(matches!(store.list(ahead).await, Err(Error::Future { .. })));
    });
}

#[test]
fn a_watch_resumes_without_gap_and_without_repetition() {
    each(async |store| {
        let start = store.txn(vec![Op::create("/w/a", "1")]).await.unwrap();
        let second = store
            .txn(vec![Op::replace("/w/a", start, "2")])
            .await
            .unwrap();
        let mut watch = store.watch("/w/", start).unwrap();
        store.txn(vec![Op::create("/other", "1")]).await.unwrap();
        store.txn(vec![Op::remove("/w/a")]).await.unwrap();
        let event = watch.next().await.unwrap();
        assert_eq!(
            (event.rev, event.before.as_ref().unwrap().mod_rev),
            (second, start)
        );
        let event = watch.next().await.unwrap();
        assert_eq!(
            (
                event.now.is_none(),
                &event.before.as_ref().unwrap().value[..]
            ),
            (true, &b"2"[..])
        );
        assert!(watch.ready().is_none());
        store.compact(second).unwrap();
        assert!(matches!(
            store.watch("/w/", start),
            Err(Error::Compacted { .. })
        ));
        assert!(store.watch("/w/", second).is_ok());
    });
}

#[test]
fn an_acknowledged_write_is_already_with_the_watchers() {
    each(async |store| {
        let mut watch = store.watch("/", 0).unwrap();
        for n in 0..50 {
            let rev = store
                .txn(vec![Op::create(format!("/k{n}"), "v")])
                .await
                .unwrap();
            assert_eq!(watch.ready().unwrap().rev, rev);
        }
    });
}

#[test]
fn a_slow_watch_is_closed_and_the_rest_goes_on() {
    each(async |store| {
        let mut slow = store.watch("/", 0).unwrap();
        let ops = |round: usize| {
            (0..1_000)
                .map(|n| Op::create(format!("/{round}/{n}"), "v"))
                .collect()
        };
        for round in 0..9 {
            store.txn(ops(round)).await.unwrap();
        }
        let mut seen = 0;
        while slow.next().await.is_some() {
            seen += 1;
        }
        assert!(seen < 9_000, "{seen}");
    });
}

#[test]
fn many_writers_of_one_key_take_turns() {
    each(async |store| {
        store.txn(vec![Op::create("/n", "0")]).await.unwrap();
        let add = || async {
            for _ in 0..20 {
                loop {
                    let kv = store.get("/n").await.unwrap().0.unwrap();
                    let n: u32 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    let op = Op::replace("/n", kv.mod_rev, (n + 1).to_string());
                    match store.txn(vec![op]).await {
                        Ok(_) => break,
                        Err(Error::Conflict { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        };
        futures::future::join_all((0..8).map(|_| add())).await;
        assert_eq!(&store.get("/n").await.unwrap().0.unwrap().value[..], b"160");
    });
}

#[test]
fn embedded_finds_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let before = block_on(async {
        let store = Embedded::open(&path).unwrap();
        store
            .txn(vec![Op::create("/a", "1"), Op::create("/b", "2")])
            .await
            .unwrap();
        store.txn(vec![Op::remove("/a")]).await.unwrap();
        store.list(all("/")).await.unwrap()
    });
    let store = Embedded::open(&path).unwrap();
    assert_eq!(block_on(store.list(all("/"))).unwrap(), before);
    assert!(store.watch("/", before.rev).is_ok());
    assert!(matches!(
        store.watch("/", before.rev - 1),
        Err(Error::Compacted { .. })
    ));
    assert!(block_on(store.txn(vec![Op::create("/c", "1")])).unwrap() > before.rev);
}

#[test]
fn a_second_process_is_told_that_the_file_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let _first = Embedded::open(&path).unwrap();
    assert!(matches!(Embedded::open(&path), Err(Error::Backend { .. })));
}

#[test]
fn store_flag_names() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open("memory", dir.path()).is_ok());
    let message = |kind| open(kind, dir.path()).err().unwrap().to_string();
    assert_eq!(
        message("etcd://x"),
        "--store etcd://x: etcd is not yet supported, use embedded"
    );
    assert!(message("sqlite").contains("use embedded, memory"));
}

/// The child of the crash test: writes for ever and prints each number once it is acknowledged.
#[test]
fn crash_child() {
    let Ok(path) = std::env::var("SEAWAY_CRASH_STORE") else {
        return;
    };
    let store = Embedded::open(Path::new(&path)).unwrap();
    block_on(async {
        for n in 0..u64::MAX {
            let ops = vec![
                Op::create(format!("/one/{n}"), format!("value {n}")),
                Op::create(format!("/two/{n}"), format!("value {n}")),
            ];
            store.txn(ops).await.unwrap();
            println!("acknowledged {n}");
        }
    });
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the child must be killed, not waited for"
)]
fn kill_9_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let path = dir.path().join(format!("{round}.redb"));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash_child", "--nocapture"])
            .env("SEAWAY_CRASH_STORE", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut last = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some((_, number)) = line.unwrap().split_once("acknowledged ") {
                let number: u64 = number.parse().unwrap();
                last = Some(number);
                if number == 20 + round * 7 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let last = last.unwrap();
        let store = Embedded::open(&path).unwrap();
        block_on(async {
            for n in 0..=last {
                let kv = store.get(&format!("/one/{n}")).await.unwrap().0.unwrap();
                assert_eq!(&kv.value[..], format!("value {n}").as_bytes());
            }
            let one = store.list(all("/one/")).await.unwrap().items.len();
            let two = store.list(all("/two/")).await.unwrap().items.len();
            assert_eq!(one, two, "a transaction is there as a whole or not at all");
            assert_eq!(usize::try_from(store.current_rev()).unwrap(), one);
        });
    }
}

/// A random transaction over few keys, so that expectations fail and hold about equally often.
fn any_op() -> impl Strategy<Value = (u8, u8, u8)> {
    (0..4_u8, 0..4_u8, 0..3_u8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// The embedded store, the memory store and a plain map agree on every answer, and a watch
    /// replayed onto an empty map gives the current state.
    #[test]
    fn stores_agree(steps in proptest::collection::vec(proptest::collection::vec(any_op(), 1..3), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Embedded::open(&dir.path().join("s.redb")).unwrap();
        let memory = Memory::new();
        block_on(async {
            let mut watch = disk.watch("/", 0).unwrap();
            for step in &steps {
                let mut ops: BTreeMap<String, Op> = BTreeMap::new();
                for (key, expect, change) in step {
                    let key = format!("/{key}");
                    let seen = memory.get(&key).await.unwrap().0;
                    let expect = match (expect, seen) {
                        (0, _) => Expect::Any,
                        (1, _) => Expect::Absent,
                        (2, Some(kv)) => Expect::ModRev(kv.mod_rev),
                        _ => Expect::ModRev(999),
                    };
                    let change = match change {
                        0 => Change::Delete,
                        1 => Change::Check,
                        _ => Change::Put(Bytes::from(format!("{key}{expect:?}"))),
                    };
                    ops.insert(key.clone(), Op { key, expect, change });
                }
                let ops: Vec<Op> = ops.into_values().collect();
                let (a, b) = (memory.txn(ops.clone()).await, disk.txn(ops).await);
                prop_assert_eq!(a.as_ref().ok(), b.as_ref().ok());
                prop_assert_eq!(memory.list(all("/")).await.unwrap(), disk.list(all("/")).await.unwrap());
            }
            let mut replayed: BTreeMap<Arc<str>, Kv> = BTreeMap::new();
            while let Some(event) = watch.ready() {
                match &event.now {
                    Some(kv) => replayed.insert(event.key.clone(), kv.clone()),
                    None => replayed.remove(&event.key),
                };
            }
            let now: Vec<Kv> = replayed.into_values().collect();
            prop_assert_eq!(now, disk.list(all("/")).await.unwrap().items);
            Ok(())
        })?;
    }
}

/// Prints what group commit makes of parallel writers, for people.
#[test]
fn parallel_writers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("s.redb")).unwrap();
    block_on(async {
        let start = std::time::Instant::now();
        let writes = (0..200).map(|n| store.txn(vec![Op::create(format!("/{n}"), "v")]));
        for result in futures::future::join_all(writes).await {
            result.unwrap();
        }
        println!("200 parallel writes in {:?}", start.elapsed());
        assert_eq!(store.list(all("/")).await.unwrap().items.len(), 200);
    });
}
