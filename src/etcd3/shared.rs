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
//!
//! One grant, however many ask at once, and whoever waits for it can carry it on: one who began it
//! and is not polled any more must not keep the others waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
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

/// The leases in use, each by the seconds that it was granted for.
#[derive(Clone, Default)]
pub(super) struct SharedLeases(Arc<Mutex<Terms>>);

#[derive(Default)]
struct Terms {
    leases: BTreeMap<u64, Lease>,
    /// Those that are being granted, for as long as somebody waits for them.
    granting: BTreeMap<u64, WeakShared<Granting>>,
}

type Granting = BoxFuture<'static, Result<()>>;

struct Lease {
    lease: LeaseId,
    until: Instant,
    uses: u32,
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
            let (granting, mine) = {
                let mut terms = self.shared.lock();
                if let Some(lease) = terms.take(term, clock.now()) {
                    return Ok(Some(lease));
                }
                let under_way = terms.granting.get(&term).and_then(WeakShared::upgrade);
                // One that has failed is there until all who waited have been told.
                match under_way.filter(|it| it.peek().is_none()) {
                    Some(granting) => (granting, false),
                    None => {
                        let granting = self.granting(term, use_for, by);
                        if let Some(weak) = granting.downgrade() {
                            terms.granting.insert(term, weak);
                        }
                        (granting, true)
                    }
                }
            };
            // It ends in its time. What fails another, whose time is less, does not fail this one.
            if let (Err(error), true) = (granting.await, mine) {
                return Err(error);
            }
        }
    }

    /// A lease that others can use once it is there.
    fn granting(&self, term: u64, use_for: Duration, by: Instant) -> Shared<Granting> {
        let (wire, keeper, shared) = (self.wire.clone(), self.keeper.clone(), self.shared.clone());
        let granting = async move {
            let lease = new_lease(&wire.runtime.entropy);
            let until = wire.runtime.clock.now() + use_for;
            keeper.grant(&wire, lease, term, by).await?;
            let (leases, uses) = (&mut shared.lock().leases, 0);
            leases.insert(term, Lease { lease, until, uses });
            Ok(())
        };
        granting.boxed().shared()
    }

    /// Takes a shared lease out of use, because somebody has revoked it.
    pub(super) fn forget_shared(&self, gone: LeaseId) {
        let mut terms = self.shared.lock();
        terms.leases.retain(|_, it| it.lease != gone);
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
            self.forget_shared(lease);
        }
        // The caller named no lease, so that cannot be the answer.
        let text = "somebody has revoked the lease of this time-to-live: try again";
        outcome.map_err(|error| error.into_kind(ErrorKind::Unavailable, text))
    }
}

impl SharedLeases {
    fn lock(&self) -> MutexGuard<'_, Terms> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terms {
    /// The lease of this term, for one use more.
    fn take(&mut self, term: u64, now: Instant) -> Option<LeaseId> {
        self.leases.retain(|_, it| now < it.until && it.uses < USES);
        let shared = self.leases.get_mut(&term)?;
        shared.uses += 1;
        Some(shared.lease)
    }
}

impl fmt::Debug for SharedLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLeases")
            .field("terms", &self.lock().leases.len())
            .finish()
    }
}

/// Whether a server refused a write because of its lease, not because of a condition.
fn is_lease_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.index().is_none()
}

/// For how many seconds the shared lease of a time-to-live is granted, and how long it is used. It
/// can be longer than any [`Ttl`].
fn term(ttl: Ttl) -> Option<(u64, Duration)> {
    if ttl.get() < SHARED_FROM {
        return None;
    }
    let seconds = ttl.whole_secs();
    let step = 1 << (seconds / 8).ilog2();
    let half = Duration::from_millis(step * 500);
    Some((seconds.next_multiple_of(step) + step, half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_lease_lasts_long_enough_for_its_last_use_and_at_most_a_quarter_longer() {
        let mut terms = std::collections::BTreeSet::new();
        for seconds in 300..=Ttl::MAX.whole_secs() {
            let ttl = Ttl::new(Duration::from_secs(seconds)).unwrap();
            let (term, used) = term(ttl).unwrap();
            assert!(
                Duration::from_secs(term) >= ttl.get() + used * 2,
                "{seconds}"
            );
            assert!(term <= seconds + seconds / 4, "{seconds}");
            assert!(used >= Duration::from_secs(1), "{seconds}");
            terms.insert(term);
        }
        assert!(terms.len() < 100, "{} different terms", terms.len());
    }

    #[test]
    fn what_is_short_has_its_own() {
        let ttl = |seconds| Ttl::new(Duration::from_secs(seconds)).unwrap();
        assert_eq!(term(ttl(299)), None);
        assert!(term(ttl(300)).is_some());
    }
}
