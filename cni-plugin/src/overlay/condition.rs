//! The Node's condition that its network is there. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

/// The strategic merge patch of the Node's status that says that its network is not unavailable,
/// as cloud providers expect it of whoever makes the network.
pub fn patch(now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "SeawayIsUp",
        "message": "Pods of this node are reached through Seaway's overlay",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_the_api_takes_them() {
        let patch = patch(Timestamp::UNIX_EPOCH);
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(condition["status"], "False");
    }
}
