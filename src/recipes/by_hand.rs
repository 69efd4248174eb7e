//! A lock whose state is in the object instead of in a guard: taken, renewed and given back by
//! hand.
//!
//! ```text
//!            acquire, try_acquire
//! not held ─────────────────────────▶ held ──┐ renew
//!   ▲  ▲           release            │  ▲   │
//!   │  └──────────────────────────────┤  └───┘
//!   └──────────── lost ───────────────┘
//! ```
//!
//! It is the [lock](super::lock), with the same line, guarantees and token; prefer that where a
//! scope can hold the guard. What differs is the session: it belongs to this lock alone, so that
//! [`renew`](HandLock::renew) can change its time-to-live (one background task for each lock, and
//! where the store has leases one lease).
//!
//! It is renewed in the background, also when nobody calls `renew`: there are no eternal keys. The
//! process may end at any time, and the lock ends within the TTL.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Ttl};
use crate::recipes::guard::{LockGuard, run_under};
use crate::recipes::lock::Lock;
use crate::session::{Loss, OwnSession};
use crate::store::Get;

/// A lock that is taken and given back by hand. Made by
/// [`Client::get_lock`](crate::Client::get_lock).
///
/// Dropping it while it is held gives the lock back in the background.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// use std::time::Duration;
///
/// let client = tenure::Client::connect("embedded:").await?;
/// let mut lock = client.get_lock("/customer1", Duration::from_secs(60));
/// lock.acquire().await?;
/// assert!(lock.is_locked().await?);
/// lock.renew(Duration::from_secs(60)).await?;
/// lock.release().await?;
/// assert!(!lock.is_locked().await?);
///
/// let sum = lock.scoped(async |held| held.token().map(|_| 1 + 1)).await?;
/// assert_eq!(sum, Some(2));
/// # Ok(()) }
/// ```
pub struct HandLock {
    core: Arc<Core>,
    lock: Lock,
    session: Option<Arc<OwnSession>>,
    held: Option<LockGuard>,
}

impl HandLock {
    pub(crate) fn new(core: Arc<Core>, name: &str, ttl: Duration) -> Self {
        let name = name.strip_prefix('/').unwrap_or(name);
        let dir = match name {
            "" => Err(Error::new(ErrorKind::InvalidName, "a lock needs a name")),
            name => Key::new(format!("/_locks/{name}")),
        };
        let session = Ttl::new(ttl).map(|ttl| Arc::new(OwnSession::new(ttl)));
        Self {
            lock: Lock::keeping(core.clone(), dir, session.clone().map(Keep::Own)),
            core,
            session: session.ok(),
            held: None,
        }
    }

    /// Waits for the lock: `lock.acquire().await`, or with a limit
    /// `lock.acquire().timeout(limit).await`.
    ///
    /// # Errors
    /// [`AlreadyHeld`](ErrorKind::AlreadyHeld) while this value holds it; `InvalidKey` for a name
    /// that makes no key; else as [`Lock::acquire`]. One that was lost can be acquired again.
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub fn acquire(&mut self) -> AcquireByHand<'_> {
        AcquireByHand {
            lock: self,
            timeout: None,
        }
    }

    /// Takes the lock if nobody is in line; whether it did.
    ///
    /// # Errors
    /// As [`Lock::try_acquire`].
    ///
    /// # Cancel safety
    /// As [`Lock::try_acquire`].
    pub async fn try_acquire(&mut self) -> Result<bool> {
        self.forget_lost();
        self.held = self.lock.try_acquire().await?;
        Ok(self.held.is_some())
    }

    /// Asks the store, freshly, whether this value holds the lock: its ticket is there, and it is
    /// the first. `false` without a request when it was released or is known to be lost.
    ///
    /// Cost: 1 linearizable read of the line; on etcd v2 that is a proposal.
    ///
    /// # Errors
    /// What a read can fail with. That says nothing about the lock: see [`token`](Self::token).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn is_locked(&self) -> Result<bool> {
        let Some(guard) = self.held.as_ref().filter(|guard| guard.is_held()) else {
            return Ok(false);
        };
        let Some(dir) = guard.key().parent() else {
            return Ok(false);
        };
        let view = self.core.store.get(Get::children(dir.clone())).await;
        let view = view.map_err(|error| error.during("is locked").at(guard.key()))?;
        let tickets = view.nodes.iter();
        let tickets = tickets.filter_map(|node| self.core.layout.ticket(&dir, node));
        let mut tickets: Vec<_> = tickets.collect();
        tickets.sort_by(|a, b| a.position.cmp(&b.position));
        let mine = guard.ticket().position()?;
        if !tickets.iter().any(|ticket| ticket.position == *mine) {
            guard.term().lose(Loss::Deleted);
        }
        let first = tickets.first().is_some_and(|it| it.position == *mine);
        Ok(first && guard.is_held())
    }

    /// The fencing token of this hold ([`Hold::token`](super::guard::Hold::token)); `None` when it is not held, as far as
    /// can be told without asking.
    pub fn token(&self) -> Option<u64> {
        let held = self.held.as_ref().filter(|guard| guard.is_held());
        held.map(|guard| guard.token())
    }

    /// The guard behind it: its deadline, its state, and [`lost`](super::guard::Hold::lost). `None` before
    /// an acquire and after a release.
    pub fn guard(&self) -> Option<&LockGuard> {
        self.held.as_ref()
    }

    /// Renews now, and makes this the time-to-live from now on: 1 s to 24 h. Not needed to keep the
    /// lock: it is renewed in the background every third of the TTL.
    ///
    /// Cost with the TTL that it has: 1 renewal. With another: 1 linearizable read and 1 write, and
    /// where the store has leases 2 writes more, for the new lease and the end of the old one.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost): it is not held any more, or was not. Anything else: it is held
    /// on, with the TTL of before ([`InvalidTtl`](ErrorKind::InvalidTtl); `Timeout` and others: no
    /// answer, or a refusal).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the lock held, with one of the two TTLs.
    pub async fn renew(&self, ttl: Duration) -> Result<()> {
        let ttl = Ttl::new(ttl).map_err(|error| error.during("renew"))?;
        let (Some(guard), Some(session)) = (&self.held, &self.session) else {
            let text = "this lock is not held: acquire it first";
            return Err(Error::new(ErrorKind::Lost, text).during("renew"));
        };
        let renewing = session.renewing();
        match guard.renew(ttl).await {
            Ok(()) => renewing.done(ttl),
            Err(error) => {
                renewing.failed();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives the lock back; whether it was held until now. To release what is not held, or was
    /// lost, is fine.
    ///
    /// # Errors
    /// As [`LockGuard::release`], a loss excepted. The lock is not held in any case, and what is
    /// left of it is taken back in the background.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn release(&mut self) -> Result<bool> {
        let Some(guard) = self.held.take() else {
            return Ok(false);
        };
        match guard.release().await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Lost => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Acquires, works, and releases, whether the work ends, panics, is dropped or loses the lock.
    /// The work is polled only while the lock is held ([`Hold::run`](super::guard::Hold::run)).
    ///
    /// # Errors
    /// Those of [`acquire`](Self::acquire); [`Lost`](ErrorKind::Lost): the work was cancelled at
    /// some await. A release that fails is left to the background and not reported.
    ///
    /// # Cancel safety
    /// As that of the work. The lock is given back in the background.
    pub async fn scoped<T>(&mut self, work: impl AsyncFnOnce(&Self) -> T) -> Result<T> {
        self.acquire().await?;
        let scope = Scope(self);
        let term = scope.0.held.as_ref().map(|guard| guard.term().clone());
        let Some(term) = term else {
            return Err(Loss::Closed.into_error());
        };
        let outcome = run_under(&term, work(scope.0)).await;
        // The error of a release is traced, and what was done under the lock is done.
        drop(scope.0.release().await);
        outcome
    }

    /// A guard that was lost does not stand in the way of the next.
    fn forget_lost(&mut self) {
        if self.held.as_ref().is_some_and(|guard| !guard.is_held()) {
            self.held = None;
        }
    }
}

impl fmt::Debug for HandLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandLock")
            .field("lock", &self.lock)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Gives the lock back however a scope ends.
struct Scope<'a>(&'a mut HandLock);

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        drop(self.0.held.take());
    }
}

/// A pending [`HandLock::acquire`]. Does nothing until awaited.
#[derive(Debug)]
#[must_use = "an acquire does nothing until awaited"]
pub struct AcquireByHand<'a> {
    lock: &'a mut HandLock,
    timeout: Option<Duration>,
}

impl AcquireByHand<'_> {
    /// Gives up after this long, counted from the first poll: one budget for everything.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl<'a> IntoFuture for AcquireByHand<'a> {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'a, Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.lock.forget_lost();
            let acquire = self.lock.lock.acquire();
            let guard = match self.timeout {
                Some(timeout) => acquire.timeout(timeout).await?,
                None => acquire.await?,
            };
            self.lock.held = Some(guard);
            Ok(())
        })
    }
}
