//! Table T11: the state machine, on a clock of its own.

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    health: Health,
    start: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            health: Health::new(PATIENCE),
            start: Instant::now(),
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn queued(&self, family: Family, seconds: u64) {
        self.health.queued(family, self.at(seconds));
    }

    fn synced(&self, family: Family) {
        self.health.synced(family, SystemTime::now());
    }

    /// `healthz` and `livez` so many seconds after the start.
    #[track_caller]
    fn check(&self, seconds: u64, healthz: bool, livez: bool) {
        let now = self.at(seconds);
        assert_eq!(
            self.health.is_healthy(Question::Healthz, now),
            healthz,
            "healthz at {seconds}"
        );
        assert_eq!(
            self.health.is_healthy(Question::Livez, now),
            livez,
            "livez at {seconds}"
        );
        let (answer, body) = self
            .health
            .answer(Question::Healthz, now, SystemTime::now());
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((answer, &body["healthy"]), (healthz, &json!(healthz)));
    }
}

#[test]
fn no_update_yet_is_healthy() {
    World::new().check(100_000, true, true);
}

#[test]
fn a_change_may_wait_for_so_long() {
    let world = World::new();
    world.queued(Family::V4, 10);
    world.check(10, true, true);
    world.check(69, true, true);
    world.check(70, false, false);
    world.check(71, false, false);
    world.synced(Family::V4);
    world.check(71, true, true);
    world.check(100_000, true, true);
}

#[test]
fn a_newer_change_does_not_hide_an_old_one() {
    let world = World::new();
    world.queued(Family::V4, 0);
    world.queued(Family::V4, 50);
    world.check(59, true, true);
    world.check(60, false, false);
    world.synced(Family::V4);
    world.queued(Family::V4, 61);
    world.check(120, true, true);
    world.check(121, false, false);
}

#[test]
fn each_family_counts() {
    let world = World::new();
    world.queued(Family::V4, 0);
    world.queued(Family::V6, 0);
    world.synced(Family::V4);
    world.check(59, true, true);
    world.check(60, false, false);
    world.synced(Family::V6);
    world.check(60, true, true);
    world.queued(Family::V4, 60);
    world.check(120, false, false);
    world.synced(Family::V6);
    world.check(120, false, false);
    world.synced(Family::V4);
    world.check(120, true, true);
}

#[test]
fn a_node_that_goes_is_alive_but_gets_no_traffic() {
    let world = World::new();
    world.queued(Family::V4, 0);
    world.synced(Family::V4);
    world.health.node_goes(true);
    world.check(1, false, true);
    world.queued(Family::V4, 10);
    world.check(70, false, false);
    world.synced(Family::V4);
    world.check(70, false, true);
    world.health.node_goes(false);
    world.check(71, true, true);
}

#[test]
fn pages() {
    let health = Health::new(PATIENCE);
    let start = Instant::now();
    let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    health.synced(Family::V4, time(100));
    health.queued(Family::V4, start);
    health.synced(Family::V6, time(160));
    let (_, body) = health.answer(Question::Healthz, start, time(200));
    let expect = r#"{"lastUpdated":"1970-01-01T00:03:20Z","currentTime":"1970-01-01T00:03:20Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"healthy":true,"synced":true,"lastUpdated":"1970-01-01T00:03:20Z"},"IPv6":{"healthy":true,"synced":true,"lastUpdated":"1970-01-01T00:03:20Z"}}}"#;
    assert_eq!(body, expect);
    let (_, body) = health.answer(Question::Livez, start + PATIENCE, time(260));
    let expect = r#"{"lastUpdated":"1970-01-01T00:01:40Z","currentTime":"1970-01-01T00:04:20Z","healthy":false,"status":{"IPv4":{"healthy":false,"synced":true,"lastUpdated":"1970-01-01T00:01:40Z"},"IPv6":{"healthy":true,"synced":true,"lastUpdated":"1970-01-01T00:04:20Z"}}}"#;
    assert_eq!(body, expect);
}
