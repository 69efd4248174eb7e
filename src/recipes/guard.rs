//! What holding gives: a token, a deadline, and the truth about both.

use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Ttl};
use crate::recipes::line::Ticket;
use crate::recipes::revocation::{self, Revocation};
use crate::runtime::Instant;
use crate::session::{HoldState, Loss, Term};
use crate::store::{Commit, Condition, Delete, Expiry, Put, Store};

/// What is held, for as long as it is: what a [`LockGuard`], a leadership and a semaphore's permit
/// have in common. They dereference to it.
///
/// Work under it with [`run`](Self::run), or check [`is_held`](Self::is_held) before each effect,
/// and hand the [`token`](Self::token) to whatever the effect is on.
pub struct Hold {
    ticket: Ticket,
    term: Arc<Term>,
    token: u64,
}

/// A lock that is held, until it is released, dropped or lost; see [`Hold`] for what it gives.
///
/// Dropping it gives the lock back in the background; [`release`](Self::release) does so and
/// reports.
#[must_use = "an unused guard gives the lock back at once"]
#[clippy::has_significant_drop]
pub struct LockGuard {
    hold: Hold,
    _counted: Counted,
}

/// Counts a guard of the [`Lock`](super::lock::Lock) value. The next one can come before the one
/// that was released is dropped, so a flag would not do.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(guards: Arc<AtomicUsize>) -> Self {
        guards.fetch_add(1, Ordering::AcqRel);
        Self(guards)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl LockGuard {
    pub(super) fn new(mut ticket: Ticket, guards: Arc<AtomicUsize>) -> Result<Self> {
        ticket.reuse_tag();
        Ok(Self {
            hold: Hold::new(ticket)?,
            _counted: Counted::new(guards),
        })
    }

    /// Returns once somebody has [asked](super::lock::Lock::request_release) the holder of this
    /// token to give the lock back, also if that was before the call. To honour it is up to the
    /// holder. Follows one key of the store, only while it is awaited.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost) when the lock is lost; what keeps the key from being followed and
    /// will not pass.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call finds the request.
    pub async fn revocation(&self) -> Result<Revocation> {
        let (ticket, term) = (self.ticket(), self.term());
        let asked = revocation::requested(ticket.core(), ticket.dir(), self.token(), term).await;
        asked.map_err(|error| error.during("revocation").at(self.key()))
    }

    /// Gives the lock back and reports. The next in line can have it when this returns. 1 write,
    /// 1 round trip.
    ///
    /// A ticket that somebody deleted behind our back, and so recently that nobody has noticed,
    /// counts as given back: from the store's answer the two cannot be told apart once a reply
    /// may have been lost.
    ///
    /// While the store does not answer it tries again until the term ends, one TTL at most; with a
    /// timeout around it the rest is left to the background.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost) when it had been lost before: somebody else may have held it
    /// meanwhile. Otherwise what the last attempt failed with; the ticket is then taken back in
    /// the background, and ends with its TTL at the latest.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn release(self) -> Result<()> {
        let (key, token) = (self.key().clone(), self.token);
        let released = self.hold.give_back().await;
        tracing::debug!(target: "tenure::lock", %key, token, ok = released.is_ok(), "lock released");
        released
    }
}

impl LockGuard {
    /// Gives several locks back, in this order; the first error is the one that is reported.
    pub(super) async fn release_all(guards: Vec<Self>) -> Result<()> {
        let taken_apart = guards.into_iter().map(|guard| {
            let (key, token) = (guard.key().clone(), guard.token);
            (guard.hold.ticket, (key, token, guard._counted))
        });
        let (tickets, locks): (Vec<_>, Vec<_>) = taken_apart.unzip();
        let mut first = Ok(());
        for (released, (key, token, _)) in Ticket::release_all(tickets).await.into_iter().zip(locks)
        {
            tracing::debug!(target: "tenure::lock", %key, token, ok = released.is_ok(), "lock released");
            first = first.and(released.map_err(|error| error.during("release").at(&key)));
        }
        first
    }
}

impl LockGuard {
    /// Gives several locks back in the background, in this order.
    pub(super) fn drop_all(guards: Vec<Self>) {
        let taken_apart = guards.into_iter();
        let taken_apart = taken_apart.map(|guard| (guard.hold.ticket, guard._counted));
        let (tickets, counted): (Vec<_>, Vec<_>) = taken_apart.unzip();
        Ticket::drop_all(tickets);
        drop(counted);
    }
}

impl Deref for LockGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl Hold {
    pub(super) fn new(ticket: Ticket) -> Result<Self> {
        let term = ticket.term()?.clone();
        let token = ticket.sequence()?.get();
        Ok(Self {
            ticket,
            term,
            token,
        })
    }

    /// The fencing token: larger than that of every earlier holder. A resource that
    /// refuses tokens smaller than the largest it has seen is safe whatever happens to clocks.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The key of the ticket that it is held by. On etcd v3 a lock that is released and soon taken
    /// again may get the same one: what tells two holds apart is the [`token`](Self::token), and
    /// [`Condition::Created`] of it compares with this one.
    pub fn key(&self) -> &Key {
        self.term.key()
    }

    /// Until when it is surely held, by the [`Clock`](crate::runtime::Clock) of the client
    /// (the machine's boot time); moves on with every renewal. `None` once it is lost.
    pub fn deadline(&self) -> Option<Instant> {
        self.term.deadline()
    }

    /// Returns the deadline once it is later than `known`; `None` once it is lost. For
    /// those who pass the deadline on.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn extended(&self, known: Instant) -> Option<Instant> {
        self.term.extended(known).await
    }

    /// Whether it is held, in doubt, or lost; by the clock now.
    pub fn state(&self) -> HoldState {
        self.term.state()
    }

    /// Whether it is still held now: not lost, and before its safe deadline.
    pub fn is_held(&self) -> bool {
        self.term.check().is_ok()
    }

    /// Returns when it is lost: at its deadline if no renewal was acknowledged, and at once
    /// when the ticket is seen deleted.
    ///
    /// After the machine has slept this may come late: timers stand still meanwhile.
    /// [`is_held`](Self::is_held), [`state`](Self::state) and [`run`](Self::run) are right at once.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> Loss {
        self.term.lost().await
    }

    /// Runs a future for as long as it is held: checks before every poll, and drops the future when
    /// it is lost.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost): the future was cancelled at some await.
    ///
    /// # Cancel safety
    /// As that of the future itself. The guard is kept.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output> {
        run_under(&self.term, future)
            .await
            .map_err(|error| error.at(self.key()))
    }

    /// Renews it now, with this time-to-live from now on. Only for a lock whose session is its own.
    pub(super) async fn renew(&self, ttl: Ttl) -> Result<()> {
        let renewed = self.ticket.renew(ttl).await;
        renewed.map_err(|error| error.during("renew").at(self.key()))
    }

    pub(super) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Until when it is held, for whoever outlives a borrow of the guard.
    pub(super) fn term(&self) -> &Arc<Term> {
        &self.term
    }

    /// Gives the place in line back: what each guard's release does.
    pub(super) async fn give_back(self) -> Result<()> {
        let released = self.ticket.release().await;
        released.map_err(|error| error.during("release").at(self.term.key()))
    }

    /// Writes a key in the same store if, and only if, this is still held *there*: one step
    /// that compares the ticket and writes. 1 write, 1 round trip.
    ///
    /// What is compared is when the ticket was created: one that somebody deleted and made anew is
    /// not it, be it under the same lease; a value that somebody puts on top of it changes nothing.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost): the ticket is gone, nothing was written.
    /// [`Unsupported`](ErrorKind::Unsupported) on stores without commits (etcd v2).
    /// [`Ambiguous`](ErrorKind::Ambiguous): it may have been written, or may still be for as long as
    /// this is held, over what was written since; once it is given back or lost no more comes.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown.
    pub async fn put(&self, key: &Key, value: impl Into<Bytes>, expiry: Expiry) -> Result<()> {
        let put = Put::new(key.clone(), value, expiry);
        self.fenced(Commit::new().put(put))
            .await
            .map_err(|error| error.during("fenced put"))
    }

    /// Deletes a key in the same store if, and only if, this is still held there. Succeeds
    /// when there is nothing to delete.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    /// As [`put`](Self::put).
    pub async fn delete(&self, key: &Key) -> Result<()> {
        let delete = Delete::new(key.clone());
        self.fenced(Commit::new().delete(delete))
            .await
            .map_err(|error| error.during("fenced delete"))
    }

    async fn fenced(&self, commit: Commit) -> Result<()> {
        self.term.check()?;
        let node = self.ticket.node()?;
        let commit = commit.check(node.key.clone(), Condition::Created(node.created));
        match self.ticket.core().store.commit(commit).await {
            Ok(_) => Ok(()),
            Err(error) if is_about(&error, &node.key) => {
                self.term.lose(Loss::Deleted);
                Err(Loss::Deleted.into_error().at(&node.key).caused_by(error))
            }
            Err(error) if error.is_ambiguous() => {
                let note = "it may have been done, or may still be for as long as this is held: read \
                            it back, or give this back, after which no more comes";
                Err(error.into_kind(ErrorKind::Ambiguous, note))
            }
            Err(error) => Err(error),
        }
    }
}

/// Polls a future for as long as a term lasts.
pub(super) async fn run_under<F: Future>(term: &Term, future: F) -> Result<F::Output> {
    run_while(|| term.check(), term.lost(), future).await
}

/// Polls a future for as long as something is held, which `check` says and `lost` waits for.
pub(super) async fn run_while<F: Future>(
    check: impl Fn() -> Result<()>,
    lost: impl Future<Output = Loss>,
    future: F,
) -> Result<F::Output> {
    let mut lost = pin!(lost);
    let mut future = pin!(future);
    poll_fn(|cx| {
        // The clock decides, even when a late timer has not woken `lost` yet: a process that
        // was stopped for longer than its term must not do one more step.
        if let Err(error) = check() {
            return Poll::Ready(Err(error.during("run")));
        }
        if let Poll::Ready(loss) = lost.as_mut().poll(cx) {
            return Poll::Ready(Err(loss.into_error().during("run")));
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

fn is_about(error: &Error, ticket: &Key) -> bool {
    let kinds = [ErrorKind::ConditionFailed, ErrorKind::NotFound];
    kinds.contains(&error.kind()) && error.key() == Some(ticket)
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockGuard").field(&self.hold).finish()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("key", self.key())
            .field("token", &self.token)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
