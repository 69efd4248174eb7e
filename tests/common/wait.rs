//! Waiting until something is so, for as long as only a hang takes.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::time::Duration;

use tenure::runtime::Clock;

/// Far more than any step takes on a slow machine.
pub const LONG: Duration = Duration::from_secs(30);
/// The same for what waits for programs to start and to build.
const LONGER: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(5);

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = Clock::boot();
    let limit = clock.now() + LONG;
    while !is_so() {
        assert!(!clock.has_passed(limit), "{what}: not so");
        tokio::time::sleep(POLL).await;
    }
}

/// The same on this thread, for what programs do.
pub fn until_blocking(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = Clock::boot();
    let limit = clock.now() + LONGER;
    while !is_so() {
        assert!(!clock.has_passed(limit), "{what}: not so");
        std::thread::sleep(POLL * 2);
    }
}
