//! A cluster-wide mutex: fair, fenced, and honest about being lost.
//!
//! # Protocol
//! The lock `N` is a line of tickets in the directory `/_locks/N`.
//!
//! 1. **Append** a ticket, which hangs on the session's lease and carries a fresh tag.
//! 2. **Look** who is before it, in a view that is at least as new as the ticket. Nobody: it is
//!    held. Somebody: wait until they are gone; tickets before mine can only disappear.
//! 3. Before it is reported as held: the ticket is there, and its safe deadline is not reached.
//! 4. **Release** by deleting the ticket, compared with its tag and its creation.
//!
//! The ticket's number is the **fencing token**: it rises from holder to holder.
//!
//! On the embedded store and on etcd v2 this is python-etcd's line (`/_locks/N/<20 digits>`, a
//! unique value, ordered by name), so both can stand in it. On etcd v3 it is the line of Go's
//! `concurrency.Mutex` and of `etcdctl lock /_locks/N` (`/_locks/N/<lease>…`, ordered by creation).
//!
//! # What is guaranteed
//! * At most one guard is [held](super::guard::Hold::is_held) at a time, as long as this machine's clock
//!   and the store's run at rates within half a percent of each other, and, on etcd v2, the
//!   members' wall clocks stay within the configured skew. The assumption is needed because a
//!   lease ends by a clock. And as long as nobody else deletes its ticket: by force, or, on etcd v3,
//!   a leader that comes back from a pause longer than the TTL and ends what was renewed meanwhile
//!   (etcd#12528). Such a loss is told as soon as its watch tells it, and within half the TTL if no
//!   watch does.
//!   **No assumption** is needed for the token to rise.
//! * First come, first served, across processes; nobody is woken who is not next.
//! * A holder that dies is followed within the TTL and 0.7 s (etcd looks for expired keys every
//!   0.5 s), if the cluster has a leader all that time.
//! * Dropping a guard, or an acquire at any await, leaves no ticket, at the latest when its
//!   TTL ends; releasing never frees a successor's lock.
//!
//!   What stays, but for etcd v3, is the empty directory `/_locks/N`, one for each name ever used:
//!   do not make names from unbounded ids, or delete empty directories now and then.
//!
//! # What is not guaranteed
//! A lock cannot stop a process that believes, for a moment too long, that it holds: paused just
//! after a check, its write arrives when another holds the lock. Only the resource can refuse
//! that write, by remembering the highest token it has seen. Where the resource is this store,
//! [`Hold::put`](super::guard::Hold::put) does it (on stores with commits). Without the token, mutual exclusion ends
//! where the resource begins ([Kleppmann 2016], [Jepsen: etcd 3.4.3]).
//!
//! # Cost
//! | | writes | requests on etcd v2 | on etcd v3 and the embedded store |
//! |---|---|---|---|
//! | acquire, free | 1 | 2 | 1 |
//! | acquire, contended | 1 | 4; behind another of this process hardly more than 1 | 1, and 1 or 2 when the line is first followed |
//! | release | 1 | 1 | 1 |
//! | held or waiting, each TTL/3 | 1 on etcd v2 | 1 | 1 for all locks of the client |
//! | waiting, each TTL/2; on etcd v2 also held longer than 250 ms | 0 | 1 | 1 |
//! | held longer than 250 ms, each TTL/2 | 0 | 0 | 1 for each 128 locks of the client |
//! | held longer than 250 ms | 0 | 1 | 1 or 2 |
//! | the first time for a session, after 250 ms: [who it is](crate::Client::who) | 1 | 1 | 1 |
//!
//! A line in which this process waits for another is followed as a whole on etcd v3: its deletions
//! are told on the one stream that all watches share, so a handoff reads nothing. Who comes back
//! within a second finds it followed still.
//!
//! A lock held longer than 250 ms has its own key watched. On etcd v3 that is a watch on the shared
//! stream, for however many locks, and a look at all of them each TTL/2 (10,000 held locks: one
//! keep-alive each TTL/3 and 79 reads each TTL/2); on etcd v2 one idle connection each, for up to 64
//! locks of a client; beyond that a deletion by force is noticed at the next renewal.
//!
//! [Kleppmann 2016]: https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
//! [Jepsen: etcd 3.4.3]: https://jepsen.io/analyses/etcd-3.4.3

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Ttl};
use crate::recipes::contender::{self, Contender};
use crate::recipes::guard::LockGuard;
use crate::recipes::line::{Ticket, Volley};
use crate::recipes::revocation;

/// A mutex that all clients of one store share by its name. Made by
/// [`Client::lock`](crate::Client::lock).
///
/// Several `Lock` values of one name, in one process or in many, queue. Acquiring through the
/// *same* value while its guard lives is [`AlreadyHeld`](ErrorKind::AlreadyHeld): it would wait
/// for itself. A clone is another value: give each task one, because of two tasks that share a
/// value the second queues or gets `AlreadyHeld`, whichever comes first.
pub struct Lock {
    core: Arc<Core>,
    dir: Result<Key>,
    keep: Result<Keep>,
    /// How many guards this value has: none or one, and for a moment two.
    guards: Arc<AtomicUsize>,
}

impl Lock {
    pub(crate) fn new(core: Arc<Core>, dir: Result<Key>, ttl: Ttl) -> Self {
        Self::keeping(core, dir, Ok(Keep::Shared(ttl)))
    }

    pub(super) fn keeping(core: Arc<Core>, dir: Result<Key>, keep: Result<Keep>) -> Self {
        Self {
            core,
            dir,
            keep,
            guards: Arc::default(),
        }
    }

    /// How long after its holder's death the lock can stay taken; 1 s to 24 h. A value out of
    /// range is reported by the first acquire. etcd v2 counts whole seconds and rounds up.
    ///
    /// Locks of one client with the same TTL share a session, which lives as long as the client:
    /// use a few TTLs, not computed ones.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.keep = Ttl::new(ttl).map(Keep::Shared);
        self
    }

    /// Waits for the lock: `lock.acquire().await`, or with a limit
    /// `lock.acquire().timeout(limit).await`.
    ///
    /// # Errors
    /// * [`InvalidName`](ErrorKind::InvalidName), [`InvalidTtl`](ErrorKind::InvalidTtl),
    ///   [`AlreadyHeld`](ErrorKind::AlreadyHeld), [`Closed`](ErrorKind::Closed): nothing was sent.
    /// * [`Unreachable`](ErrorKind::Unreachable), [`Unauthorized`](ErrorKind::Unauthorized) and
    ///   others that the store gives: nothing was changed.
    /// * [`Timeout`](ErrorKind::Timeout): the limit passed, or there was no answer; what was sent
    ///   is being taken back.
    /// * [`Lost`](ErrorKind::Lost): the session ended, or the ticket was deleted, while it waited.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in line. A ticket that may have been sent is taken
    /// back in the background.
    pub fn acquire(&self) -> Acquire {
        Acquire {
            lock: self.handle(),
            timeout: None,
        }
    }

    /// Takes the lock if nobody is seen in line. Looks first, and writes nothing if somebody is
    /// there; if another comes between the look and the append, the ticket is taken back, and this
    /// is `None`.
    ///
    /// The look is a local read on etcd v2, so `None` can be a moment out of date, also while a
    /// guard of this process is still being given back. Cost: 1 read if taken; 1 write and 3
    /// requests if free; 2 writes after a lost race.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire). How long it takes is bounded by the store's own limit for
    /// each request (etcd's drivers: 5 s).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>> {
        let lock = self.handle();
        let (dir, keep) = lock.begin()?;
        let taken = Ticket::try_take(&lock.core, &dir, &keep, &Bytes::new()).await;
        match taken.map_err(|error| error.during("try lock"))? {
            Some(ticket) => lock.guard(ticket).map(Some),
            None => Ok(None),
        }
    }

    /// Everybody who stands in line, in order; the first one holds. One linearizable read.
    /// [`Client::who`](crate::Client::who) tells who they are.
    ///
    /// # Errors
    /// [`InvalidName`](ErrorKind::InvalidName), and those of every read.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn contenders(&self) -> Result<Vec<Contender>> {
        let line = contender::in_line(&self.core, &self.dir()?).await;
        line.map_err(|error| error.during("contenders"))
    }

    /// Who holds the lock now; `None` if nobody does. One linearizable read.
    ///
    /// # Errors
    /// As [`contenders`](Self::contenders).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn owner(&self) -> Result<Option<Contender>> {
        let line = contender::in_line(&self.core, &self.dir()?).await;
        let line = line.map_err(|error| error.during("owner"))?;
        Ok(line.into_iter().next())
    }

    /// Asks whoever holds the lock now to give it back, and says why. The holder hears of it if it
    /// awaits [`LockGuard::revocation`], and may do as it likes: see
    /// [`revocation`]. Returns the token that was asked back; `None` if
    /// nobody holds.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout): it may have been asked; asking again does no harm. Otherwise
    /// those of every read and write.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether it was asked.
    pub async fn request_release(&self, reason: impl AsRef<str>) -> Result<Option<u64>> {
        let dir = self.dir()?;
        let asked = revocation::request(&self.core, &dir, reason.as_ref()).await;
        asked.map_err(|error| error.during("request release").at(&dir))
    }

    /// Takes all of these at once if nobody stands in any of their lines. They have one time-to-live.
    pub(super) async fn take_together(locks: &[&Self]) -> Result<Together> {
        let begun: Result<Vec<_>> = locks.iter().map(|lock| lock.begin()).collect();
        let (dirs, keeps): (Vec<_>, Vec<_>) = begun?.into_iter().unzip();
        let (Some(first), Some(keep)) = (locks.first(), keeps.first()) else {
            return Ok(Together::Held(Vec::new()));
        };
        Ok(match Ticket::take_all(&first.core, &dirs, keep).await? {
            Volley::Held(tickets) => {
                let guards = locks.iter().zip(tickets);
                let guards: Result<_> = guards.map(|(lock, ticket)| lock.guard(ticket)).collect();
                Together::Held(guards?)
            }
            Volley::Busy(place) => Together::Busy(place),
            Volley::Untold => Together::Untold,
        })
    }

    /// Whether this process has tickets in its line: then it is not free.
    pub(super) fn is_busy_here(&self) -> bool {
        let dir = self.dir.as_ref();
        dir.is_ok_and(|dir| self.core.lines.are_occupied(dir))
    }

    /// Whether anybody is seen in its line, as [`try_acquire`](Self::try_acquire) looks.
    pub(super) async fn is_seen_busy(&self) -> Result<bool> {
        let seen = Ticket::is_seen_in(&self.core, &self.dir()?).await;
        seen.map_err(|error| error.during("try lock"))
    }

    /// The directory of the line.
    pub(super) fn dir(&self) -> Result<Key> {
        self.dir.clone()
    }

    /// The same value, for a future that outlives the borrow.
    fn handle(&self) -> Self {
        Self {
            guards: self.guards.clone(),
            ..self.clone()
        }
    }

    /// What must be right before anything is sent.
    pub(super) fn begin(&self) -> Result<(Key, Keep)> {
        let (dir, keep) = (self.dir.clone()?, self.keep.clone()?);
        self.core
            .open()
            .map_err(|error| error.during("lock").at(&dir))?;
        if self.guards.load(Ordering::Acquire) > 0 {
            let text = "this lock value already has a guard; clone the value to queue behind it";
            return Err(Error::new(ErrorKind::AlreadyHeld, text)
                .during("lock")
                .at(&dir));
        }
        Ok((dir, keep))
    }

    async fn queue(&self, dir: &Key, keep: &Keep) -> Result<LockGuard> {
        let mut ticket = Ticket::take(&self.core, dir, keep, &Bytes::new()).await?;
        ticket.admitted().await?;
        self.guard(ticket)
    }

    fn guard(&self, ticket: Ticket) -> Result<LockGuard> {
        let guard = LockGuard::new(ticket, self.guards.clone())?;
        tracing::debug!(target: "tenure::lock", key = %guard.key(), token = guard.token(), "lock held");
        Ok(guard)
    }
}

/// What came of taking several at once: a [`Volley`] as guards.
pub(super) enum Together {
    /// All are held.
    Held(Vec<LockGuard>),
    /// None is: in this one's line there is something, and in those before it nothing.
    Busy(usize),
    /// Each has to be taken by itself.
    Untold,
}

impl Clone for Lock {
    /// Another value of the same lock: it queues behind this one's guard.
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            dir: self.dir.clone(),
            keep: self.keep.clone(),
            guards: Arc::default(),
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("dir", &self.dir)
            .field("ttl", &self.keep.as_ref().map(Keep::ttl))
            .finish_non_exhaustive()
    }
}

/// A pending [`Lock::acquire`]. Does nothing until awaited.
#[derive(Debug)]
#[must_use = "an acquire does nothing until awaited"]
pub struct Acquire {
    lock: Lock,
    timeout: Option<Duration>,
}

impl Acquire {
    /// Gives up after this long, counted from the first poll: one budget for everything.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<LockGuard> {
        let (dir, keep) = self.lock.begin()?;
        let Some(timeout) = self.timeout else {
            return self.lock.queue(&dir, &keep).await;
        };
        tokio::select! {
            biased;
            outcome = self.lock.queue(&dir, &keep) => outcome,
            () = self.lock.core.runtime.clock.sleep(timeout) => {
                let text = format!("not acquired within {timeout:?}");
                Err(Error::new(ErrorKind::Timeout, text).during("lock").at(&dir))
            }
        }
    }
}

impl IntoFuture for Acquire {
    type Output = Result<LockGuard>;
    type IntoFuture = BoxFuture<'static, Result<LockGuard>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
