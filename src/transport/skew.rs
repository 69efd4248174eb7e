//! By how much the servers' wall clocks differ, as far as their answers prove it. Pure.
//!
//! A server that told its time `w` while a request was under way from `sent` to `received`, by our
//! own clock, is ahead of us by something within `[w − received, w − sent]`. What two answers of
//! one server have in common is narrower. If they have nothing in common its clock was set: both
//! count, since a time-to-live may have been stamped by either.
//!
//! ```text
//! server A   ──────[=====]────────────       proven spread: from the smallest upper bound
//! server B   ──────────────[===]──────       to the largest lower bound
//!                        └┘
//! ```
//!
//! Our clock's origin does not matter, since only differences are told. Its rate does: what it
//! drifts within the window counts as spread, as far as it can be told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::runtime::Instant;

/// For how long what an answer told counts.
const WINDOW: Duration = Duration::from_secs(600);
/// For how long answers narrow the same bounds; then new ones begin, because clocks drift.
const EPOCH: Duration = Duration::from_secs(300);
/// How many bounds are kept for one server. Only one whose clock jumps about has so many.
const KEPT: usize = 16;

/// What is known of the servers' clocks.
#[derive(Debug, Default)]
pub(crate) struct Clocks(Mutex<BTreeMap<Arc<str>, Known>>);

#[derive(Debug, Default)]
struct Known {
    bounds: Vec<Bounds>,
    /// When it last told its time, or was asked to.
    asked: Option<Instant>,
}

/// How far a server is ahead of us, in nanoseconds: something between these.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    low: i128,
    high: i128,
    first: Instant,
    last: Instant,
}

/// A proven difference between two servers' clocks, or between two times of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// At least so much.
    pub(crate) by: Duration,
    pub(crate) ahead: Arc<str>,
    pub(crate) behind: Arc<str>,
}

impl Clocks {
    /// The server told its time while a request was under way: it was at least `wall` and less
    /// than `wall + resolution`.
    pub(crate) fn told(
        &self,
        server: &Arc<str>,
        wall: Duration,
        resolution: Duration,
        (sent, received): (Instant, Instant),
    ) {
        let bounds = Bounds {
            low: nanos(wall) - reading(received),
            high: nanos(wall + resolution) - reading(sent),
            first: received,
            last: received,
        };
        let mut clocks = self.lock();
        let known = clocks.entry(server.clone()).or_default();
        known.asked = known.asked.max(Some(received));
        known.forget(received);
        let last = known.bounds.last_mut();
        if !last.is_some_and(|last| last.takes(&bounds)) {
            known.bounds.push(bounds);
        }
        if known.bounds.len() > KEPT {
            known.bounds.remove(0);
        }
    }

    /// Whether a server has neither told its time nor been asked for so long; if so, it counts as
    /// asked now.
    pub(crate) fn ask(&self, server: &Arc<str>, after: Duration, now: Instant) -> bool {
        let mut clocks = self.lock();
        let asked = &mut clocks.entry(server.clone()).or_default().asked;
        let due = asked.is_none_or(|asked| now.since(asked) >= after);
        if due {
            *asked = Some(now);
        }
        due
    }

    /// The largest difference that recent answers prove; `None` if they prove none.
    pub(crate) fn spread(&self, now: Instant) -> Option<Spread> {
        let mut clocks = self.lock();
        // Who has not been heard of in a window may have left the cluster.
        clocks.retain(|_, known| {
            known.forget(now);
            !known.bounds.is_empty() || known.asked.is_some_and(|at| now.since(at) < WINDOW)
        });
        let all = || {
            let clocks = clocks.iter();
            clocks.flat_map(|(server, known)| known.bounds.iter().map(move |it| (server, it)))
        };
        let (ahead, most) = all().max_by_key(|(_, it)| it.low)?;
        let (behind, least) = all().min_by_key(|(_, it)| it.high)?;
        let by = most.low - least.high;
        (by > 0).then(|| Spread {
            by: Duration::from_nanos(u64::try_from(by).unwrap_or(u64::MAX)),
            ahead: ahead.clone(),
            behind: behind.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, now: Instant) {
        self.bounds.retain(|it| now.since(it.last) < WINDOW);
    }
}

impl Bounds {
    /// Narrows these by those, if both can be true of one clock that nobody has set.
    fn takes(&mut self, other: &Self) -> bool {
        let (low, high) = (self.low.max(other.low), self.high.min(other.high));
        if low > high || other.last.since(self.first) >= EPOCH {
            return false;
        }
        self.last = self.last.max(other.last);
        (self.low, self.high) = (low, high);
        true
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / 4)
}

fn reading(at: Instant) -> i128 {
    nanos(at.since(Instant::new(Duration::ZERO)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Duration = Duration::ZERO;

    fn at(millis: u64) -> Instant {
        Instant::new(Duration::from_millis(millis))
    }

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// At `ours` by our clock the server said that it was `wall`; the request took 10 ms.
    fn tell(clocks: &Clocks, server: &str, ours: u64, wall: u64) {
        let span = (at(ours), at(ours + 10));
        clocks.told(&server.into(), millis(wall), EXACT, span);
    }

    fn spread(clocks: &Clocks, now: u64) -> u128 {
        clocks.spread(at(now)).map_or(0, |it| it.by.as_millis())
    }

    #[test]
    fn what_a_request_took_is_not_taken_for_skew() {
        let clocks = Clocks::default();
        for (server, ours) in [("a", 1_000), ("b", 2_000), ("c", 3_000)] {
            tell(&clocks, server, ours, 500_000 + ours + 5);
            tell(&clocks, server, ours + 100, 500_100 + ours);
        }
        assert_eq!(clocks.spread(at(4_000)), None);
    }

    #[test]
    fn the_spread_is_what_is_proven_and_names_the_two_servers() {
        let clocks = Clocks::default();
        tell(&clocks, "a", 1_000, 501_005);
        tell(&clocks, "b", 1_000, 503_005);
        tell(&clocks, "c", 1_000, 502_005);
        let spread = clocks.spread(at(2_000)).unwrap();
        // Two seconds, less what each of the two requests may have taken one way.
        assert_eq!(spread.by, millis(2_000 - 10));
        assert_eq!((&*spread.ahead, &*spread.behind), ("b", "a"));
    }

    #[test]
    fn more_answers_prove_more() {
        let clocks = Clocks::default();
        let second = Duration::from_secs(1);
        tell(&clocks, "a", 1_000, 501_000);
        let dates = [(2_000, 502_000), (3_700, 504_000), (4_300, 504_000)];
        let mut proven = Vec::new();
        for (ours, wall) in dates {
            let span = (at(ours), at(ours + 10));
            clocks.told(&"b".into(), millis(wall), second, span);
            proven.push(spread(&clocks, 5_000));
        }
        // b is ahead of a by 300 ms: whole seconds show it when they turn.
        assert_eq!(proven, [0, 290, 290]);
    }

    #[test]
    fn a_clock_that_is_set_counts_before_and_after_for_a_window() {
        let clocks = Clocks::default();
        tell(&clocks, "a", 1_000, 501_000);
        tell(&clocks, "a", 2_000, 507_000);
        let spread = clocks.spread(at(3_000)).unwrap();
        assert_eq!(spread.by, millis(5_000 - 10));
        assert_eq!(spread.ahead, spread.behind);
        tell(&clocks, "a", 601_500, 1_106_500);
        assert_eq!(
            clocks.spread(at(601_600)),
            None,
            "the first is 10 minutes old"
        );
    }

    #[test]
    fn a_clock_that_is_centuries_off_is_not_taken_for_a_good_one() {
        let clocks = Clocks::default();
        tell(&clocks, "a", 1_000, 501_000);
        tell(&clocks, "b", 1_000, 250_000_000_000_000);
        assert!(spread(&clocks, 2_000) > 10_000_000_000_000);
    }

    #[test]
    fn a_server_is_asked_once_in_a_while() {
        let (clocks, minute) = (Clocks::default(), Duration::from_secs(60));
        assert!(clocks.ask(&"a".into(), minute, at(0)));
        assert!(!clocks.ask(&"a".into(), minute, at(59_000)));
        assert!(clocks.ask(&"a".into(), minute, at(60_000)));
        tell(&clocks, "a", 100_000, 1);
        assert!(!clocks.ask(&"a".into(), minute, at(130_000)));
    }

    #[test]
    fn a_clock_that_jumps_about_costs_no_more_memory() {
        let clocks = Clocks::default();
        for number in 0..1_000 {
            tell(&clocks, "a", 1_000 + number, 10_000 * (number % 7));
        }
        assert!(clocks.lock().values().all(|it| it.bounds.len() <= KEPT));
    }
}
