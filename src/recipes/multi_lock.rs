//! Several locks at once: all of them, or none.
//!
//! # Protocol
//! Whoever waits for one lock holds only such as come before it in the order of their keys. All
//! clients keep that order, so two that want overlapping sets never wait for each other in a circle.
//!
//! On stores with commits (etcd v3, embedded) what is free is taken in one step:
//!
//! ```text
//! rest, in the order of keys, up to 64
//!   ├─ one commit: IF nobody stands in any line THEN a ticket in each ──▶ all held
//!   └─ refused, names the first line that is not free
//!        ├─▶ those before it in one commit
//!        ├─▶ queue in that line, first come, first served, with those before it held
//!        └─▶ the rest in one commit
//! ```
//!
//! The second refusal is the last: from there on each is taken by itself, as on etcd v2. While one is
//! waited for, those that are held already are watched: the loss of one ends it. If one fails, those
//! before it are given back. All are held when it is reported.
//!
//! To queue in all lines in one step would be one write always, and wrong. M queues in `a`, behind B
//! who holds it, and in `b`, where nobody is; B, who goes by the order of keys, then queues in `b`
//! behind M. Both renew, and wait for each other for ever. So nobody stands in a line while he waits
//! in one before it.
//!
//! Given back are all in one commit where the store has them, else in reverse.
//!
//! # What is guaranteed
//! For each lock what [`lock`](super::lock) says, with a token of its own. Not that all are taken
//! at one instant, unless all are free: else one who waits for the last keeps those before from
//! others. Take few, and hold them briefly.
//!
//! No circle can be made by locks taken this way, nor together with locks that are taken one by one in
//! the order of their keys. Who holds another lock already, taken otherwise, can still make one.
//!
//! # Cost
//! For n locks of up to 64; of more, for each 64. "Writes" are those that the whole cluster agrees on.
//!
//! | | writes on etcd v3 and the embedded store | round trips |
//! |---|---|---|
//! | acquire, all free | 1 | 1 |
//! | acquire, one not free | up to 4 | 4, and the wait |
//! | acquire, several not free | up to n + 2 | n + 2, and the waits |
//! | try, all free | 1 | 1 |
//! | try, one not free | 1; none while the same one is still not free | 2; then 1 |
//! | release, or drop | 1 | 1 |
//!
//! On etcd v2 each lock costs what it costs alone, one after the other. A lock in which this process
//! itself stands is known not to be free: nothing is sent to find that out.
//!
//! In one step are taken only lines below which there is nothing else either: beside a lock whose name
//! goes on from that of one of these (`a/b` and `a`), or a
//! [request to give back](super::lock::Lock::request_release) of the last minutes, each may be taken by
//! itself. So of two that try then perhaps none gets them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{BoxFuture, select_all};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::recipes::guard::LockGuard;
use crate::recipes::line;
use crate::recipes::lock::{Lock, Together};
use crate::runtime::Clock;
use crate::session::Loss;

/// How often one acquire may be told that one of several is not free, before it takes each by itself.
const REFUSALS: usize = 2;

/// Several locks that are taken together. Made by [`Client::lock_all`](crate::Client::lock_all).
///
/// As with a [`Lock`], acquiring through the same value while its guard lives is
/// [`AlreadyHeld`](ErrorKind::AlreadyHeld).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// let client = tenure::Client::connect("embedded:").await?;
/// let guard = client.lock_all(["account/7", "account/3"]).acquire().await?;
/// for (name, token) in guard.tokens() {
///     println!("{name} is held, with the token {token}");
/// }
/// guard.release().await?;
/// // Each token is larger than all that its lock had before.
/// let again = client.lock_all(["account/7", "account/3"]).acquire().await?;
/// # assert_eq!(again.tokens().len(), 2);
/// # Ok(()) }
/// ```
pub struct MultiLock {
    clock: Clock,
    /// In the order of their keys.
    locks: Result<Arc<[(String, Lock)]>>,
    /// Which was not free at the last try.
    not_free: AtomicUsize,
}

impl MultiLock {
    pub(crate) fn new(client: &Client, names: Vec<String>) -> Self {
        let locks = names
            .into_iter()
            .map(|name| {
                let lock = client.lock(&name);
                (name, lock)
            })
            .collect();
        Self {
            clock: client.runtime().clock.clone(),
            locks: in_order(locks).map(Arc::from),
            not_free: AtomicUsize::new(usize::MAX),
        }
    }

    /// How long after its holder's death each lock can stay taken: see [`Lock::ttl`].
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.locks = self.locks.map(|locks| {
            let locks = locks.iter();
            locks
                .map(|(name, lock)| (name.clone(), lock.clone().ttl(ttl)))
                .collect()
        });
        self
    }

    /// Waits for all of them: `locks.acquire().await`, or with one limit for all
    /// `locks.acquire().timeout(limit).await`. On etcd v3 1 write and 1 round trip if all are free:
    /// see the [module](self).
    ///
    /// # Errors
    /// * [`InvalidOptions`](ErrorKind::InvalidOptions): no name, or one twice.
    /// * Those of [`Lock::acquire`]; the key says which lock. Those that were held already are being
    ///   given back in the background.
    /// * [`Lost`](ErrorKind::Lost): one that was held already was lost while another was waited for.
    ///
    /// # Cancel safety
    /// Dropping the future gives back, in the background, what it had.
    pub fn acquire(&self) -> AcquireAll {
        AcquireAll {
            clock: self.clock.clone(),
            locks: self.locks.clone(),
            timeout: None,
        }
    }

    /// Takes all of them if nobody is seen in any line; `None` if one is not free.
    ///
    /// On etcd v3 and the embedded store up to 64 in one step: of two that try for the same free locks
    /// one gets them, and who does not get them has not taken one of them for a moment. A try costs 1
    /// write; after one that failed 1 read, until the lock that was in the way is gone. Of more than
    /// 64, and on etcd v2 of all, those that were taken before one that is not free are given back;
    /// there each costs what [`Lock::try_acquire`] costs.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<MultiGuard>> {
        let locks = self.locks.clone()?;
        begin(&locks)?;
        if locks.iter().any(|(_, it)| it.is_busy_here()) || self.is_still_not_free(&locks).await? {
            return Ok(None);
        }
        let mut held = MultiGuard::none();
        while let Some(rest @ [_, _, ..]) = locks.get(held.guards.len()..) {
            let some: Vec<_> = rest.iter().take(line::MOST).collect();
            match while_held(&held, together(&some)).await? {
                Together::Held(guards) => held.add_all(&some, guards),
                Together::Busy(place) => {
                    let place = held.guards.len() + place;
                    self.not_free.store(place, Ordering::Relaxed);
                    if self.is_still_not_free(&locks).await? {
                        held.release().await?;
                        return Ok(None);
                    }
                    // Gone since, or no ticket: which of the two shows when it is tried by itself.
                    break;
                }
                Together::Untold => break,
            }
        }
        for (name, lock) in locks.iter().skip(held.guards.len()) {
            match while_held(&held, lock.try_acquire()).await? {
                Some(guard) => held.add(name, guard),
                None => {
                    held.release().await?;
                    return Ok(None);
                }
            }
        }
        held.check().map(|()| Some(held))
    }

    /// Looks at the lock that was not free at the last try: who tries again and again is to write
    /// nothing meanwhile.
    async fn is_still_not_free(&self, locks: &[(String, Lock)]) -> Result<bool> {
        let place = self.not_free.load(Ordering::Relaxed);
        let Some((_, lock)) = locks.get(place) else {
            return Ok(false);
        };
        let busy = lock.is_seen_busy().await?;
        if !busy {
            self.not_free.store(usize::MAX, Ordering::Relaxed);
        }
        Ok(busy)
    }
}

/// Sorts by key, the one order that all clients share, and refuses what cannot be meant.
fn in_order(mut locks: Vec<(String, Lock)>) -> Result<Vec<(String, Lock)>> {
    if locks.is_empty() {
        let text = "no lock is named: holding none of them means nothing";
        return Err(Error::new(ErrorKind::InvalidOptions, text).during("lock all"));
    }
    for (_, lock) in &locks {
        lock.dir().map_err(|error| error.during("lock all"))?;
    }
    locks.sort_by_key(|(_, lock)| lock.dir().ok());
    let mut previous = None;
    for (name, lock) in &locks {
        let dir = lock.dir()?;
        if previous.as_ref() == Some(&dir) {
            let text = format!("the lock {name:?} is named twice: it would wait for itself");
            let error = Error::new(ErrorKind::InvalidOptions, text);
            return Err(error.during("lock all").at(&dir));
        }
        previous = Some(dir);
    }
    Ok(locks)
}

/// Waits for the next one while none of those before is lost.
async fn while_held<T>(held: &MultiGuard, next: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        (key, loss) = held.first_lost() => Err(loss.into_error().during("lock all").at(key)),
        outcome = next => outcome,
    }
}

impl fmt::Debug for MultiLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiLock")
            .field("locks", &self.locks)
            .finish_non_exhaustive()
    }
}

/// A pending [`MultiLock::acquire`]. Does nothing until awaited.
#[must_use = "an acquire does nothing until awaited"]
pub struct AcquireAll {
    clock: Clock,
    locks: Result<Arc<[(String, Lock)]>>,
    timeout: Option<Duration>,
}

impl AcquireAll {
    /// Gives up after this long, counted from the first poll: one budget for all locks.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<MultiGuard> {
        let locks = self.locks?;
        let Some(timeout) = self.timeout else {
            return all(&locks).await;
        };
        tokio::select! {
            biased;
            outcome = all(&locks) => outcome,
            () = self.clock.sleep(timeout) => {
                let text = format!("not all acquired within {timeout:?}");
                Err(Error::new(ErrorKind::Timeout, text).during("lock all"))
            }
        }
    }
}

/// What is free is taken at once; what is not is waited for, with those before it held.
async fn all(locks: &[(String, Lock)]) -> Result<MultiGuard> {
    begin(locks)?;
    let mut held = MultiGuard::none();
    // The one that was found not to be free, and how often one may be.
    let (mut busy, mut refusals) = (None, REFUSALS);
    while let Some((name, lock)) = locks.get(held.guards.len()) {
        let next = held.guards.len();
        let before = locks.get(next..busy.unwrap_or(locks.len()));
        let free = before.into_iter().flatten().take(line::MOST);
        let free: Vec<_> = free.take_while(|(_, it)| !it.is_busy_here()).collect();
        if refusals == 0 || free.len() < 2 {
            let guard = while_held(&held, lock.acquire().into_future()).await?;
            held.add(name, guard);
            busy = busy.filter(|it| *it > next);
            continue;
        }
        match while_held(&held, together(&free)).await? {
            Together::Held(guards) => held.add_all(&free, guards),
            Together::Busy(place) => (busy, refusals) = (Some(next + place), refusals - 1),
            Together::Untold => refusals = 0,
        }
    }
    held.check().map(|()| held)
}

/// What must be right with each before anything is sent.
fn begin(locks: &[(String, Lock)]) -> Result<()> {
    let begun = locks.iter().try_for_each(|(_, it)| it.begin().map(drop));
    begun.map_err(|error| error.during("lock all"))
}

async fn together(locks: &[&(String, Lock)]) -> Result<Together> {
    let locks: Vec<_> = locks.iter().map(|(_, lock)| lock).collect();
    Lock::take_together(&locks).await
}

impl IntoFuture for AcquireAll {
    type Output = Result<MultiGuard>;
    type IntoFuture = BoxFuture<'static, Result<MultiGuard>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for AcquireAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcquireAll")
            .field("locks", &self.locks)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Several locks that are held, until they are released, dropped, or one of them is lost.
///
/// Dropping it gives them back in the background, where it can in one step as a release does.
#[must_use = "an unused guard gives the locks back at once"]
#[clippy::has_significant_drop]
pub struct MultiGuard {
    /// In the order in which they were taken.
    guards: Vec<(String, LockGuard)>,
}

impl MultiGuard {
    fn none() -> Self {
        Self { guards: Vec::new() }
    }

    fn add(&mut self, name: &str, guard: LockGuard) {
        self.guards.push((name.to_owned(), guard));
    }

    fn add_all(&mut self, locks: &[&(String, Lock)], guards: Vec<LockGuard>) {
        for ((name, _), guard) in locks.iter().zip(guards) {
            self.add(name, guard);
        }
    }

    /// The fencing token of each lock, by the name that it was asked for with.
    ///
    /// Of one lock they rise from holder to holder. Between the locks of one guard they say nothing:
    /// on etcd v3 those of locks that were taken in one step are equal.
    pub fn tokens(&self) -> BTreeMap<&str, u64> {
        let tokens = self.guards.iter();
        tokens
            .map(|(name, guard)| (&**name, guard.token()))
            .collect()
    }

    /// The guard of each lock, with its name, in the order in which they were taken.
    pub fn guards(&self) -> impl ExactSizeIterator<Item = (&str, &LockGuard)> {
        self.guards.iter().map(|(name, guard)| (&**name, guard))
    }

    /// Whether all of them are still held now.
    pub fn is_held(&self) -> bool {
        self.guards.iter().all(|(_, guard)| guard.is_held())
    }

    /// Returns when the first of them is lost.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> Loss {
        self.first_lost().await.1
    }

    /// Runs a future for as long as all of them are held: checks before every poll, and drops the
    /// future when one is lost.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost), with the key of the one that was lost: the future was cancelled at
    /// some await.
    ///
    /// # Cancel safety
    /// As that of the future itself. The guard is kept.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output> {
        let mut lost = pin!(self.first_lost());
        let mut future = pin!(future);
        poll_fn(|cx| {
            // The clock decides, even when a late timer has not woken `lost` yet.
            if let Err(error) = self.check() {
                return Poll::Ready(Err(error.during("run")));
            }
            if let Poll::Ready((key, loss)) = lost.as_mut().poll(cx) {
                return Poll::Ready(Err(loss.into_error().during("run").at(key)));
            }
            future.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Gives all of them back, and reports. 1 write, 1 round trip on etcd v3 and the embedded store;
    /// where that fails, and on etcd v2, each by itself, the last one first.
    ///
    /// # Errors
    /// Each is tried; the first error is the one that is reported. See [`LockGuard::release`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn release(mut self) -> Result<()> {
        let guards = std::mem::take(&mut self.guards).into_iter().rev();
        LockGuard::release_all(guards.map(|(_, guard)| guard).collect()).await
    }

    fn check(&self) -> Result<()> {
        let mut guards = self.guards.iter();
        guards.try_for_each(|(_, guard)| guard.term().check())
    }

    /// Which is lost first; never returns while there are none.
    async fn first_lost(&self) -> (&Key, Loss) {
        if self.guards.is_empty() {
            return std::future::pending().await;
        }
        let losses = self.guards.iter();
        let losses = losses.map(|(_, guard)| Box::pin(async { (guard.key(), guard.lost().await) }));
        select_all(losses).await.0
    }
}

impl Drop for MultiGuard {
    fn drop(&mut self) {
        // The last one first: a vector would drop them the other way round.
        let guards = std::mem::take(&mut self.guards).into_iter().rev();
        LockGuard::drop_all(guards.map(|(_, guard)| guard).collect());
    }
}

impl fmt::Debug for MultiGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guards = self.guards.iter().map(|(_, guard)| guard);
        f.debug_list().entries(guards).finish()
    }
}
