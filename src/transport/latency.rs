//! How long answers take: what is normal decides what is too long.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Repeat;
use crate::runtime::Instant;

/// How many recent answers count.
const WINDOW: usize = 128;
/// How many answers until the percentile is computed anew.
const REFRESH: usize = 16;

/// An answer that takes less than this is no slow one, whatever is normal.
const UNUSUAL: Duration = Duration::from_millis(200);

/// Until when one attempt may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until when there must be a connection.
    pub(crate) connect: Instant,
    /// Until when there must be an answer; not before `connect`.
    pub(crate) answer: Instant,
}

/// The recent successes.
#[derive(Debug, Default)]
pub(crate) struct Latency(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    recent: Vec<Duration>,
    next: usize,
    p99: Option<Duration>,
}

impl Latency {
    /// Remembers how long an answer took.
    pub(crate) fn record(&self, took: Duration) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = inner.next % WINDOW;
        match inner.recent.get_mut(slot) {
            Some(old) => *old = took,
            None => inner.recent.push(took),
        }
        inner.next = inner.next.wrapping_add(1);
        if inner.p99.is_none() || inner.next.is_multiple_of(REFRESH) {
            let mut sorted = inner.recent.clone();
            sorted.sort_unstable();
            inner.p99 = sorted.get((sorted.len() * 99).div_ceil(100) - 1).copied();
        }
    }

    /// What 99 of 100 recent answers did not exceed; zero before the first.
    pub(crate) fn p99(&self) -> Duration {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.p99.unwrap_or_default()
    }

    /// Whether nobody answers for so long who is in order.
    pub(crate) fn is_unusual(&self, waited: Duration) -> bool {
        waited >= (self.p99() * 4).max(UNUSUAL)
    }

    /// How long to wait for one attempt of an operation that may take `whole`: four times what
    /// is normal and at least a second, but at most a third of the whole, so that two more
    /// servers can be asked. Twice as long after each round in which nobody answered in time.
    pub(crate) fn attempt(&self, whole: Duration, rounds: u32) -> Duration {
        let patient = (self.p99() * 4).max(Duration::from_secs(1));
        let patient = patient.saturating_mul(1 << rounds.min(16));
        patient.min(whole / 3)
    }

    /// After how long a second server is asked for what the first has not answered: twice what 99
    /// of 100 answers take. `None` until it is known what is normal.
    pub(crate) fn hedge_after(&self) -> Option<Duration> {
        let normal = self.p99();
        (!normal.is_zero()).then(|| (normal * 2).max(Duration::from_millis(20)))
    }

    /// What one attempt may take, so that each of the `others` not tried yet gets its share too.
    /// Each round has twice the time of the one before, so that what just takes long (a large tree)
    /// comes in the end. A write that is on its way has a third of the whole: nobody else may be
    /// asked then.
    pub(crate) fn limits(
        &self,
        repeat: Repeat,
        now: Instant,
        deadline: Instant,
        (whole, rounds, others): (Duration, u32, usize),
    ) -> Limits {
        let attempt = self.attempt(whole, rounds);
        let others = u32::try_from(others).unwrap_or(u32::MAX - 1);
        let left = deadline.since(now);
        let share = attempt.min(left / (others + 1));
        // Less than this would leave each before it can answer.
        let least = left.min((self.p99() * 2).max(UNUSUAL));
        let answer = match repeat {
            Repeat::Harmless => now + share.max(least),
            Repeat::NeverSent => deadline.min(now + attempt.max(whole / 3)),
        };
        Limits {
            connect: now + share,
            answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_gets_four_times_the_normal_within_its_bounds() {
        let latency = Latency::default();
        let whole = Duration::from_secs(60);
        assert_eq!(latency.attempt(whole, 0), Duration::from_secs(1));
        for _ in 0..WINDOW {
            latency.record(Duration::from_millis(500));
        }
        assert_eq!(latency.attempt(whole, 0), Duration::from_secs(2));
        assert_eq!(
            latency.attempt(Duration::from_secs(3), 0),
            Duration::from_secs(1)
        );
        let rounds = [0, 1, 2, 9, u32::MAX].map(|it| latency.attempt(whole, it).as_secs());
        assert_eq!(rounds, [2, 4, 8, 20, 20]);
    }

    #[test]
    fn a_second_server_is_asked_after_twice_the_normal_once_that_is_known() {
        let latency = Latency::default();
        assert_eq!(latency.hedge_after(), None);
        latency.record(Duration::from_millis(1));
        assert_eq!(latency.hedge_after(), Some(Duration::from_millis(20)));
        for _ in 0..WINDOW {
            latency.record(Duration::from_millis(50));
        }
        assert_eq!(latency.hedge_after(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn however_little_time_there_is_nobody_is_left_before_an_answer_can_come() {
        let latency = Latency::default();
        let millis = Duration::from_millis;
        let (now, whole) = (Instant::new(millis(0)), Duration::from_secs(5));
        let limits = |left, others| {
            let repeat = Repeat::Harmless;
            let limits = latency.limits(repeat, now, now + millis(left), (whole, 0, others));
            (limits.connect.since(now), limits.answer.since(now))
        };
        assert_eq!(limits(6_000, 2), (millis(1_000), millis(1_000)));
        assert_eq!(limits(900, 2), (millis(300), millis(300)));
        // A connection to nobody takes no more than its share; an answer may.
        assert_eq!(limits(450, 2), (millis(150), UNUSUAL));
        assert_eq!(limits(90, 2), (millis(30), millis(90)));
        latency.record(millis(150));
        assert_eq!(limits(450, 2), (millis(150), millis(300)));
    }

    #[test]
    fn old_answers_are_forgotten() {
        let latency = Latency::default();
        latency.record(Duration::from_secs(9));
        assert_eq!(latency.p99(), Duration::from_secs(9));
        for _ in 0..WINDOW {
            latency.record(Duration::from_millis(1));
        }
        assert_eq!(latency.p99(), Duration::from_millis(1));
    }
}
