//! The clock that decisions are made by.
//!
//! A deadline must keep running while the machine sleeps, and must not move when somebody sets
//! the wall clock. On Linux that is `CLOCK_BOOTTIME`. Elsewhere the clock falls back to the
//! monotonic one, which on some systems stands still during suspend: there a resumed process
//! may take up to the time it slept longer to notice that its lock is lost.
//!
//! tokio's timers only wake a task; after each wake the task reads this clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::Duration;

/// A reading of a [`Clock`]: the time since some origin that only this clock knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The reading `since_origin` after the clock's origin.
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// Where a [`Clock`] gets the time from. Never goes back.
pub trait TimeSource: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Instant;

    /// The time since 1970, UTC, by the machine's wall clock. It can be wrong and can go back, so
    /// it decides nothing about what is held: it is for people to read, and for delays that
    /// outlive a process.
    fn wall(&self) -> Duration;
}

/// The clock that decisions are made by. Cloning gives the same clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn TimeSource>);

impl Clock {
    /// The time since the machine started, suspend included (on Linux; elsewhere see above).
    pub fn boot() -> Self {
        Self::from_source(system::System)
    }

    /// tokio's clock: what tests can pause. Only for use without real sockets.
    pub fn tokio() -> Self {
        Self::from_source(TokioTime {
            origin: tokio::time::Instant::now(),
        })
    }

    /// A clock of the caller's own.
    pub fn from_source(source: impl TimeSource) -> Self {
        Self(Arc::new(source))
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        self.0.now()
    }

    /// The time since 1970, UTC, by the machine's wall clock: see [`TimeSource::wall`].
    pub fn wall(&self) -> Duration {
        self.0.wall()
    }

    /// Whether `deadline` is now or in the past.
    pub fn has_passed(&self, deadline: Instant) -> bool {
        self.now() >= deadline
    }

    /// Returns once this clock reads `deadline` or later.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn sleep_until(&self, deadline: Instant) {
        loop {
            let left = deadline.since(self.now());
            if left.is_zero() {
                return;
            }
            // A nap of at most a minute: after a suspend tokio's timer may be late by as long
            // as the machine slept, and `tokio::time::sleep` has a far end of its own.
            tokio::time::sleep(left.min(Duration::from_secs(60))).await;
        }
    }

    /// Returns after this much time on this clock.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::boot()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug)]
struct TokioTime {
    origin: tokio::time::Instant,
}

impl TimeSource for TokioTime {
    fn now(&self) -> Instant {
        Instant(tokio::time::Instant::now().saturating_duration_since(self.origin))
    }

    fn wall(&self) -> Duration {
        // A date like any other: what is derived from it must not differ from run to run.
        const START: Duration = Duration::from_secs(1_800_000_000);
        START + self.now().0
    }
}

#[allow(clippy::disallowed_methods)] // this is the one place that wraps it
fn system_wall() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(all(target_os = "linux", not(tenure_fallback_clock)))]
mod system {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::{Instant, TimeSource};

    #[derive(Debug)]
    pub(super) struct System;

    impl TimeSource for System {
        fn now(&self) -> Instant {
            let now = clock_gettime(ClockId::Boottime);
            let (secs, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
            Instant(Duration::from_secs(secs) + Duration::from_nanos(nanos))
        }

        fn wall(&self) -> Duration {
            super::system_wall()
        }
    }
}

#[cfg(any(not(target_os = "linux"), tenure_fallback_clock))]
mod system {
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::{Instant, TimeSource};

    static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();

    #[derive(Debug)]
    pub(super) struct System;

    impl TimeSource for System {
        #[allow(clippy::disallowed_methods)] // this is the one place that wraps it
        fn now(&self) -> Instant {
            let now = std::time::Instant::now();
            Instant(now.saturating_duration_since(*ORIGIN.get_or_init(|| now)))
        }

        fn wall(&self) -> Duration {
            super::system_wall()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleeping_ends_when_the_clock_says_so_and_not_before() {
        let clock = Clock::tokio();
        let start = clock.now();
        clock.sleep(Duration::from_secs(3_600)).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(3_600));
    }

    #[test]
    fn the_system_clock_goes_forward() {
        let clock = Clock::boot();
        let first = clock.now();
        while clock.now() <= first {}
    }
}
