//! When it is time to ask a cluster which members it has: with the first operation, once a minute,
//! and after a failover; at least five seconds apart.
//!
//! One operation asks, those beside it do not wait for it. What becomes of it does not concern
//! them: a list that cannot be had, or read, changes nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::runtime::Instant;

/// How old the list of members gets.
const REFRESH: Duration = Duration::from_secs(60);
/// The least time between two attempts to get one.
const RETRY: Duration = Duration::from_secs(5);

/// The most that an operation waits for a list.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// When the list was asked for, and whether it came.
#[derive(Debug, Default)]
pub(crate) struct Discovery(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// When the list was last asked for.
    tried: Option<Instant>,
    /// Whether it came.
    came: bool,
    /// How often the current endpoint had changed by then.
    moves: u64,
}

impl Discovery {
    /// Whether it is the caller who asks for the list now. `moves` is how often the current
    /// endpoint has changed.
    pub(crate) fn claim(&self, moves: u64, now: Instant) -> bool {
        let mut it = self.lock();
        let due = it.tried.is_none_or(|tried| {
            let wait = if it.came && it.moves == moves {
                REFRESH
            } else {
                RETRY
            };
            now.since(tried) >= wait
        });
        if due {
            // Who drops its operation half-way leaves it to one of the next.
            (it.tried, it.came, it.moves) = (Some(now), false, moves);
        }
        due
    }

    /// The list has come.
    pub(crate) fn came(&self) {
        self.lock().came = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    #[test]
    fn the_list_is_asked_for_at_first_each_minute_and_after_a_failover() {
        let discovery = Discovery::default();
        assert!(discovery.claim(0, at(10)));
        assert!(!discovery.claim(0, at(14)), "one asks, and rests");
        assert!(discovery.claim(0, at(15)), "it never came");
        discovery.came();
        assert!(!discovery.claim(0, at(74)));
        assert!(discovery.claim(0, at(75)));
        discovery.came();
        assert!(!discovery.claim(1, at(79)));
        assert!(discovery.claim(1, at(80)), "another server is asked now");
    }
}
