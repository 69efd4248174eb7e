//! Leases that several writes share.
//!
//! A time-to-live is a lease, and a lease of its own costs two proposals: its grant, and its
//! revocation at the end. That would double what a job of a queue costs, whose end is remembered
//! for ten minutes. So writes with a long time-to-live take the same lease as others of about that
//! length:
//!
//! ```text
//!  granted         used until             the end of the shortest              the lease's
//!     ├─────── ½ step ┤    ½ step            ttl, rounded up to steps ─────────┤
//!     put ──────────────── at least its time-to-live ──────────▶               deleted
//! ```
//!
//! A step is between a sixteenth and an eighth of the time-to-live. Invariant: what hangs on a
//! shared lease lives for its time-to-live at least, counted from when its write was sent and half
//! a step longer, and at most a quarter longer. At most 1,000 nodes hang on one, so that their end
//! is no event that stops the server.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::driver::Driver;
use super::lease::new_lease;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{LeaseId, Ttl};
use crate::runtime::Instant;
use crate::store::{Expiry, Grant};

/// A shorter time-to-live is a lease of its own, and so exact.
const SHARED_FROM: Duration = Duration::from_secs(5 * 60);
/// The most nodes on one lease.
const USES: u32 = 1_000;

/// The leases in use, each by the term it was granted for.
#[derive(Clone, Default)]
pub(super) struct SharedLeases(Arc<Mutex<BTreeMap<Ttl, Slot>>>);

#[derive(Default)]
struct Slot {
    in_use: Option<InUse>,
    /// One that is being asked for, as long as somebody waits for it.
    granting: Option<WeakShared<Granting>>,
}

#[derive(Debug)]
struct InUse {
    lease: LeaseId,
    until: Instant,
    uses: u32,
}

/// Fails with the time that it had.
type Granting = BoxFuture<'static, Result<(), (Error, Instant)>>;

impl SharedLeases {
    /// The lease for this term, used once more; if there is none, what is to be waited for. No lock
    /// is held meanwhile: one who began it and is not polled any more keeps nobody waiting.
    fn take(
        &self,
        term: Ttl,
        now: Instant,
        begin: impl FnOnce() -> Granting,
    ) -> Result<LeaseId, Shared<Granting>> {
        let mut leases = self.lock();
        let slot = leases.entry(term).or_default();
        slot.in_use.take_if(|it| now >= it.until || it.uses >= USES);
        if let Some(it) = &mut slot.in_use {
            it.uses += 1;
            return Ok(it.lease);
        }
        let under_way = slot.granting.as_ref().and_then(WeakShared::upgrade);
        // One that has ended is there until all who waited have been told.
        if let Some(granting) = under_way.filter(|it| it.peek().is_none()) {
            return Err(granting);
        }
        let granting = begin().shared();
        slot.granting = granting.downgrade();
        Err(granting)
    }

    /// Takes a lease out of use, because somebody has revoked it.
    pub(super) fn forget(&self, gone: LeaseId) {
        for slot in self.lock().values_mut() {
            slot.in_use.take_if(|it| it.lease == gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ttl, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leases = self.lock();
        let in_use = leases.values().filter_map(|slot| slot.in_use.as_ref());
        f.debug_set().entries(in_use).finish()
    }
}

/// The leases that a write is made with.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// Granted for it alone.
    own: Vec<LeaseId>,
    shared: Vec<LeaseId>,
    /// Whether the caller has named one.
    is_given: bool,
}

impl Driver {
    /// The lease that an expiry hangs on.
    pub(super) async fn lease_of(
        &self,
        expiry: Expiry,
        prepared: &mut Prepared,
        by: Instant,
    ) -> Result<Option<LeaseId>> {
        let ttl = match expiry {
            Expiry::Never => return Ok(None),
            Expiry::With(lease) => {
                prepared.is_given = true;
                return Ok(Some(lease));
            }
            Expiry::After(ttl) => ttl,
        };
        if let Some(lease) = self.shared_lease(ttl, by).await? {
            prepared.shared.push(lease);
            return Ok(Some(lease));
        }
        let lease = new_lease(&self.wire.runtime.entropy);
        // Nothing hangs on it yet: what goes wrong until then ends with it.
        self.grant_by(&Grant::new(lease, ttl), by).await?;
        prepared.own.push(lease);
        Ok(Some(lease))
    }

    /// A lease that lasts for so long from now at least; `None` for what is to have its own.
    pub(super) async fn shared_lease(&self, ttl: Ttl, by: Instant) -> Result<Option<LeaseId>> {
        let Some((term, use_for)) = term(ttl) else {
            return Ok(None);
        };
        let clock = &self.wire.runtime.clock;
        loop {
            let begin = || self.begin_grant(term, use_for, by);
            let granting = match self.shared.take(term, clock.now(), begin) {
                Ok(lease) => return Ok(Some(lease)),
                Err(granting) => granting,
            };
            tokio::select! {
                biased;
                granted = granting => match granted {
                    Ok(()) => {}
                    // Whoever began it had less time.
                    Err((_, theirs)) if clock.has_passed(theirs) && !clock.has_passed(by) => {}
                    Err((error, _)) => return Err(error),
                },
                () = clock.sleep_until(by) => {
                    let text = "no lease was granted in time";
                    return Err(Error::new(ErrorKind::Timeout, text));
                }
            }
        }
    }

    /// A grant that any of those who wait for it can carry on.
    fn begin_grant(&self, term: Ttl, use_for: Duration, by: Instant) -> Granting {
        let (wire, keeper, leases) = (self.wire.clone(), self.keeper.clone(), self.shared.clone());
        let lease = new_lease(&wire.runtime.entropy);
        let until = wire.runtime.clock.now() + use_for;
        let granting = async move {
            let granted = keeper.grant(&wire, &Grant::new(lease, term), by).await;
            granted.map_err(|error| (error, by))?;
            leases.lock().entry(term).or_default().in_use = Some(InUse {
                lease,
                until,
                uses: 0,
            });
            Ok(())
        };
        granting.boxed()
    }

    /// Of a write that certainly has not happened, revokes what was granted for it alone.
    pub(super) async fn tidy<T>(&self, prepared: Prepared, outcome: Result<T>) -> Result<T> {
        let error = match &outcome {
            Err(error) if error.changed_nothing() => error,
            _ => return outcome,
        };
        for lease in prepared.own {
            // One that stays ends by itself.
            let _ = self.revoke(lease).await;
        }
        if prepared.is_given || prepared.shared.is_empty() || !is_lease_gone(error) {
            return outcome;
        }
        for lease in prepared.shared {
            self.shared.forget(lease);
        }
        // The caller named no lease, so that cannot be the answer.
        let text = "somebody has revoked the lease of this time-to-live: try again";
        outcome.map_err(|error| error.into_kind(ErrorKind::Unavailable, text))
    }
}

/// Whether a server refused a write because of its lease, not because of a condition.
fn is_lease_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.index().is_none()
}

/// For how long the shared lease of a time-to-live is granted, and how long it is used.
fn term(ttl: Ttl) -> Option<(Ttl, Duration)> {
    if ttl.get() < SHARED_FROM {
        return None;
    }
    let seconds = ttl.whole_secs();
    let step = 1 << (seconds / 8).ilog2();
    let term = Duration::from_secs(seconds.next_multiple_of(step) + step);
    let half = Duration::from_millis(step * 500);
    Some((Ttl::new(term).ok()?, half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_lease_lasts_long_enough_for_its_last_use_and_at_most_a_quarter_longer() {
        let mut terms = std::collections::BTreeSet::new();
        for seconds in 300..70_000 {
            let ttl = Ttl::new(Duration::from_secs(seconds)).unwrap();
            let (term, used) = term(ttl).unwrap();
            assert!(term.get() >= ttl.get() + used * 2, "{seconds}");
            assert!(term.get() <= ttl.get() + ttl.get() / 4, "{seconds}");
            assert!(used >= Duration::from_secs(1), "{seconds}");
            terms.insert(term);
        }
        assert!(terms.len() < 100, "{} different terms", terms.len());
    }

    #[test]
    fn what_is_short_or_would_be_too_long_has_its_own() {
        let ttl = |seconds| Ttl::new(Duration::from_secs(seconds)).unwrap();
        assert_eq!(term(ttl(299)), None);
        assert!(term(ttl(300)).is_some());
        assert_eq!(term(Ttl::MAX), None);
    }
}
