use super::*;

/// A clock, and a loop that does what is due and notes it: `12.5 sync`, in milliseconds.
struct World {
    start: Instant,
    now: Instant,
    pacer: Pacer,
    /// How long a sync takes, and whether it succeeds.
    sync: Duration,
    ok: bool,
    verify: Duration,
    ready: bool,
    done: Vec<String>,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    fn new(min: Duration) -> Self {
        let start = Instant::now();
        let pace = Pace {
            sync_period: ms(30_000),
            min_sync_period: min,
        };
        Self {
            start,
            now: start,
            pacer: Pacer::new(pace, start),
            sync: Duration::ZERO,
            ok: true,
            verify: Duration::ZERO,
            ready: true,
            done: Vec::new(),
        }
    }

    /// Does what is due until `at` after the start.
    fn until(&mut self, at: Duration) {
        let end = self.start + at;
        loop {
            let wake = self.pacer.wake(self.ready).max(self.now);
            if wake > end {
                self.now = end;
                return;
            }
            self.now = wake;
            let began = self.now;
            let what = match self.pacer.due(began, self.ready) {
                Due::Nothing => panic!("woken for nothing"),
                Due::Verify => {
                    self.now += self.verify;
                    self.pacer.verified(began, self.now);
                    "verify"
                }
                Due::Full => {
                    self.pacer.full(began);
                    self.pacer.changed(began);
                    "full"
                }
                Due::Sync => {
                    self.now += self.sync;
                    self.pacer.synced(began, self.now, self.ok);
                    if self.ok { "sync" } else { "failed" }
                }
            };
            let at = (began - self.start).as_micros() as f64 / 1000.0;
            self.done.push(format!("{at} {what}"));
        }
    }

    fn change(&mut self, at: Duration) {
        self.until(at);
        self.pacer.changed(self.now);
    }

    #[track_caller]
    fn check(&mut self, until: Duration, expect: &[&str]) {
        self.until(until);
        assert_eq!(std::mem::take(&mut self.done), expect);
    }
}

#[test]
fn the_first_change_is_synced_at_once() {
    let mut world = World::new(ms(1000));
    world.change(ms(7));
    world.check(ms(7), &["7 sync"]);
}

#[test]
fn min_interval_counts_from_the_end_of_a_sync() {
    let mut world = World::new(ms(1000));
    world.sync = ms(300);
    world.change(ms(0));
    world.change(ms(310));
    world.check(ms(1299), &["0 sync"]);
    world.check(ms(2000), &["1300 sync"]);
    // After a quiet time there is no wait, but for what came together.
    world.change(ms(10_000));
    world.check(ms(10_100), &["10002 sync"]);
}

#[test]
fn a_burst_is_one_sync() {
    let mut world = World::new(ms(1000));
    world.change(ms(0));
    for at in [10, 200, 500, 999] {
        world.change(ms(at));
    }
    world.check(ms(5000), &["0 sync", "1000 sync"]);
}

#[test]
fn without_a_min_interval_a_sync_is_followed_by_as_long_a_rest() {
    let mut world = World::new(ms(0));
    world.sync = ms(40);
    world.change(ms(0));
    world.change(ms(41));
    world.check(ms(1000), &["0 sync", "80 sync"]);
    // The rest is a second at most.
    world.sync = ms(5000);
    world.change(ms(2000));
    world.change(ms(7003));
    world.check(ms(20_000), &["2002 sync", "8002 sync"]);
}

#[test]
fn quick_syncs_wait_for_nothing() {
    let mut world = World::new(ms(0));
    world.sync = Duration::from_micros(50);
    for at in [0, 1, 2, 3] {
        world.change(ms(at));
    }
    world.check(ms(10), &["0 sync", "1 sync", "2 sync", "3 sync"]);
}

#[test]
fn a_failed_sync_is_tried_again_and_later_each_time() {
    let mut world = World::new(ms(0));
    world.ok = false;
    world.change(ms(0));
    world.check(
        ms(1600),
        &[
            "0 failed",
            "100 failed",
            "300 failed",
            "700 failed",
            "1500 failed",
        ],
    );
    // Ten seconds at most.
    world.until(ms(60_000));
    let mut syncs = world.done.iter().filter(|line| line.contains("failed"));
    assert_eq!(syncs.next_back().map(String::as_str), Some("52700 failed"));
    world.done.clear();
    world.ok = true;
    world.check(ms(62_700), &["62700 sync"]);
    // A later failure starts with the short wait again.
    world.ok = false;
    world.change(ms(63_000));
    world.check(ms(63_150), &["63000 failed", "63100 failed"]);
}

#[test]
fn a_change_does_not_hurry_a_retry() {
    let mut world = World::new(ms(0));
    world.ok = false;
    world.change(ms(0));
    world.change(ms(20));
    world.check(ms(99), &["0 failed"]);
}

#[test]
fn max_interval_without_any_change() {
    let mut world = World::new(ms(1000));
    world.check(
        ms(95_000),
        &["30000 verify", "60000 verify", "90000 verify"],
    );
    world.until(FULL_PERIOD + ms(1));
    let last: Vec<&str> = world.done[world.done.len() - 3..]
        .iter()
        .map(String::as_str)
        .collect();
    assert_eq!(last, ["3600000 full", "3600000 sync", "3600000 verify"]);
}

#[test]
fn a_change_does_not_put_a_verification_off() {
    let mut world = World::new(ms(0));
    for at in 1..40 {
        world.change(ms(at * 1000));
    }
    assert_eq!(
        world
            .done
            .iter()
            .filter(|line| line.contains("verify"))
            .count(),
        1
    );
}

#[test]
fn suspicion_is_looked_into_soon_but_not_all_the_time() {
    let mut world = World::new(ms(0));
    world.verify = ms(50);
    world.until(ms(100));
    world.pacer.suspect(world.now);
    world.pacer.suspect(world.now);
    world.check(ms(200), &["102 verify"]);
    world.pacer.suspect(world.now);
    world.check(ms(1000), &["652 verify"]);
}

#[test]
fn nothing_is_synced_before_it_may_be() {
    let mut world = World::new(ms(0));
    world.ready = false;
    world.change(ms(1));
    world.check(ms(5000), &[]);
    world.ready = true;
    world.check(ms(5000), &["5000 sync"]);
}

#[test]
fn a_verification_that_looks_at_nothing_is_followed_by_no_rest() {
    let mut world = World::new(ms(0));
    world.verify = Duration::from_micros(900);
    world.until(ms(100));
    world.pacer.suspect(world.now);
    world.check(ms(200), &["102 verify"]);
    world.pacer.suspect(world.now);
    world.check(ms(300), &["202 verify"]);
}
