//! Ages and durations as kubectl prints them.

use jiff::Timestamp;

/// A duration in kubectl's short form: `5s`, `3m20s`, `47m`, `5h3m`, `26h`, `3d4h`, `400d`, `2y35d`.
/// More than a second in the future is `<invalid>` (clocks of two machines may differ by a little).
pub fn human_duration(seconds: i64) -> String {
    let pair = |a: i64, unit_a: &str, b: i64, unit_b: &str| match b {
        0 => format!("{a}{unit_a}"),
        _ => format!("{a}{unit_a}{b}{unit_b}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The time from `since` (RFC 3339) to `now`; `<unknown>` when there is none.
pub(super) fn age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(since) => human_duration(seconds_between(since, now)),
        Err(_not_a_time) => "<unknown>".to_owned(),
    }
}

/// Whole seconds from `a` to `b`, towards zero, as Go's `Duration.Seconds` is cut.
pub(super) fn seconds_between(a: Timestamp, b: Timestamp) -> i64 {
    b.duration_since(a).as_secs()
}
