//! How far a cache can be believed.

use std::time::Duration;

use crate::error::Error;
use crate::runtime::{Clock, Instant};

/// Whether a cache follows the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheState {
    /// Nothing is known yet.
    Loading,
    /// It follows the store, as far as its watch can tell: etcd's drivers report servers that
    /// have fallen silent after their `watch_patience`, 10 s by default.
    Live,
    /// It has the last values that are known, and the store cannot be followed at the moment.
    Stale,
}

/// Where a cache's values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheSource {
    /// There are none yet.
    Nothing,
    /// From a file, of an earlier process.
    Disk,
    /// From the store.
    Store,
}

/// How far a state can be believed.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) state: CacheState,
    pub(super) source: CacheSource,
    /// When the store last said something.
    confirmed: Option<Confirmed>,
    /// Why it is not live.
    pub(super) error: Option<Error>,
    /// Why the file was not read or written.
    pub(super) disk_error: Option<Error>,
}

/// A time on this process's clock, and how much earlier it really was: the clock may not reach
/// back so far.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    at: Instant,
    earlier: Duration,
}

impl Health {
    pub(super) fn loading() -> Self {
        Self {
            state: CacheState::Loading,
            source: CacheSource::Nothing,
            confirmed: None,
            error: None,
            disk_error: None,
        }
    }

    /// The values come from a file, and were confirmed so long ago.
    pub(super) fn loaded(&mut self, age: Duration, now: Instant) {
        self.state = CacheState::Stale;
        self.source = CacheSource::Disk;
        self.confirmed = Some(Confirmed {
            at: now,
            earlier: age,
        });
    }

    /// The store has said something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.source = CacheSource::Store;
        self.confirmed = Some(Confirmed {
            at: now,
            earlier: Duration::ZERO,
        });
    }

    /// The values are those of the store.
    pub(super) fn live(&mut self) {
        self.state = CacheState::Live;
        self.error = None;
    }

    /// The store cannot be followed.
    pub(super) fn failed(&mut self, error: Error) {
        if self.state == CacheState::Live {
            self.state = CacheState::Stale;
        }
        self.error = Some(error);
    }

    /// What the one below knows, except for what was taken from a file while that has nothing.
    pub(super) fn follow(&mut self, below: &Self) {
        if below.source == CacheSource::Store {
            self.state = below.state;
            self.source = below.source;
            self.confirmed = below.confirmed;
        }
        self.error.clone_from(&below.error);
    }

    pub(super) fn age(&self, clock: &Clock) -> Option<Duration> {
        match self.state {
            CacheState::Live => Some(Duration::ZERO),
            CacheState::Loading | CacheState::Stale => self
                .confirmed
                .map(|it| clock.now().since(it.at).saturating_add(it.earlier)),
        }
    }
}
