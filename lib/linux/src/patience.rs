//! How long things are waited for.

use std::time::Duration;

/// A wait on this machine. Where everything takes longer, as in a guest whose processor is emulated,
/// `SEAWAY_TIME_SCALE` says how many times.
pub fn scaled(time: Duration) -> Duration {
    let scale = std::env::var("SEAWAY_TIME_SCALE").ok();
    time * scale.and_then(|text| text.parse().ok()).unwrap_or(1)
}
