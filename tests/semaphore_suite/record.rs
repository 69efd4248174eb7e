//! What was held from when to when, and which limit was in force: to be checked at the end.

use std::sync::{Arc, Mutex};

use tenure::Permit;
use tenure::runtime::{Clock, Instant};

/// Written down while it happens.
#[derive(Debug)]
pub(crate) struct Record {
    clock: Clock,
    holds: Arc<Mutex<Vec<Held>>>,
    limits: Mutex<Vec<Limit>>,
}

/// A limit, and when it may have been in force.
#[derive(Clone, Debug)]
struct Limit {
    number: u32,
    from: Instant,
    to: Option<Instant>,
}

/// One permit, for as long as it was believed to be held.
#[derive(Clone, Debug)]
struct Held {
    token: u64,
    weight: u32,
    /// What it says it was admitted under.
    limit: u32,
    asked: Instant,
    from: Instant,
    to: Option<Instant>,
}

/// Ends a hold in the record when it is dropped: before the permit is given back.
pub(crate) struct Believed {
    clock: Clock,
    holds: Arc<Mutex<Vec<Held>>>,
    nth: usize,
}

impl Drop for Believed {
    fn drop(&mut self) {
        self.holds.lock().unwrap()[self.nth].to = Some(self.clock.now());
    }
}

impl Record {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            holds: Arc::default(),
            limits: Mutex::default(),
        }
    }

    /// The limit is this now, since then at the earliest.
    pub(crate) fn limit(&self, number: u32, from: Instant) {
        let mut limits = self.limits.lock().unwrap();
        if let Some(last) = limits.last_mut() {
            last.to = Some(self.clock.now());
        }
        limits.push(Limit {
            number,
            from,
            to: None,
        });
    }

    /// A permit is held now that was asked for then.
    pub(crate) fn acquired(&self, asked: Instant, permit: &Permit) -> Believed {
        let mut holds = self.holds.lock().unwrap();
        holds.push(Held {
            token: permit.token(),
            weight: permit.weight(),
            limit: permit.limit(),
            asked,
            from: self.clock.now(),
            to: None,
        });
        Believed {
            clock: self.clock.clone(),
            holds: self.holds.clone(),
            nth: holds.len() - 1,
        }
    }

    /// Whenever somebody was admitted, the weights then held fitted into the limit of the latest
    /// of them; and each limit was in force while its permit was waited for. Returns how many
    /// holds that was.
    pub(crate) fn check(&self, what: &str) -> usize {
        let holds = self.holds.lock().unwrap();
        let limits = self.limits.lock().unwrap();
        for hold in holds.iter() {
            let now = hold.from;
            let held = holds
                .iter()
                .filter(|it| it.from <= now && it.to.is_none_or(|to| to > now));
            let held: Vec<_> = held.collect();
            let sum: u32 = held.iter().map(|it| it.weight).sum();
            let latest = held.iter().max_by_key(|it| it.token);
            let limit = latest.map_or(0, |it| it.limit);
            assert!(sum <= limit, "{what}: {sum} of {limit} are held: {held:?}");
            let in_force = limits.iter().any(|it| {
                let ended = it.to.is_some_and(|to| to < hold.asked);
                it.number == hold.limit && it.from <= now && !ended
            });
            assert!(in_force, "{what}: no such limit then: {hold:?}, {limits:?}");
        }
        holds.len()
    }
}
