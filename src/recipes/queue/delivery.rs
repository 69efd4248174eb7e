//! A job in the hands of whoever does it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::claim::{Claimed, claim_lost};
use super::job::JobId;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::recipes::guard::run_while;
use crate::runtime::{Clock, Instant};
use crate::session::{HoldState, Loss, Term};

/// A job that was given to this consumer, until it is acked, given back, dropped or lost.
///
/// It is **held** while the consumer's node in the store surely lives, its own `max_run` has not
/// passed, and nobody else has changed the job's state. Work under it with [`run`](Self::run), and
/// hand the [`token`](Self::token) to whatever the effect is on: a job can be delivered twice.
///
/// Dropping it gives the job back at once, with the attempt counted.
#[must_use = "a delivery that is dropped is given back"]
#[clippy::has_significant_drop]
pub struct Delivery {
    claim: Arc<Claim>,
    /// Whether nothing is left to give back.
    is_settled: bool,
}

/// The job inside a [`Delivery`], for a worker's handler: what it says and how long it is held,
/// without the right to end it. Cloning is cheap.
#[derive(Clone)]
pub struct Job {
    claim: Arc<Claim>,
}

/// What a delivery, its job handles and the consumer's task share.
pub(super) struct Claim {
    pub(super) claimed: Claimed,
    /// Of the job.
    key: Key,
    payload: Bytes,
    /// The consumer's.
    term: Arc<Term>,
    /// Ends when `max_run` has passed, or when somebody else has ended the claim.
    own: Term,
    clock: Clock,
    max_run: Duration,
    orders: mpsc::UnboundedSender<Order>,
    /// Whether the user has got it.
    is_handed: AtomicBool,
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is done.
    Ack,
    /// It is to be delivered again after this long, unless that was its last attempt.
    Again(Duration, String),
    /// As if it had never been delivered.
    Uncounted,
    /// It is given up.
    Reject(String),
}

/// What the consumer's task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// End the claim of this nonce; answers whether the job was given up.
    Settle(u64, Ending, oneshot::Sender<Result<bool>>),
    /// The delivery of this nonce was dropped.
    Dropped(u64),
    /// Claim no more, and end when nothing is left.
    Stop,
}

impl Claim {
    /// A claim of which the consumer's task knows.
    pub(super) fn new(
        claimed: Claimed,
        node: crate::store::Node,
        term: Arc<Term>,
        (clock, max_run): (Clock, Duration),
        orders: mpsc::UnboundedSender<Order>,
    ) -> Arc<Self> {
        let (key, value, now) = (node.key.clone(), node.value.clone(), clock.now());
        let own = Term::new(key, value, clock.clone(), now, now + max_run);
        Arc::new(Self {
            claimed,
            key: node.key,
            payload: node.value,
            term,
            own,
            clock,
            max_run,
            orders,
            is_handed: AtomicBool::new(false),
        })
    }

    pub(super) fn is_handed(&self) -> bool {
        self.is_handed.load(Ordering::Acquire)
    }

    /// When its `max_run` ends; `None` if that is over.
    pub(super) fn limit(&self) -> Option<Instant> {
        self.own.deadline()
    }

    /// Somebody else has ended it, or it was given back.
    pub(super) fn lose(&self, loss: Loss) {
        self.own.lose(loss);
    }

    pub(super) fn check(&self) -> Result<()> {
        self.term.check()?;
        self.own.check()
    }

    fn state(&self) -> HoldState {
        match self.own.state() {
            HoldState::Lost => HoldState::Lost,
            _ => self.term.state(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.term.deadline()?.min(self.own.deadline()?))
    }

    async fn lost(&self) -> Loss {
        tokio::select! {
            biased;
            loss = self.own.lost() => loss,
            loss = self.term.lost() => loss,
        }
    }

    fn extend(&self, length: Duration) -> Result<()> {
        let until = self.clock.now() + length;
        if self.own.deadline().is_some_and(|limit| limit < until) {
            self.own.end_at(until);
        }
        self.check().map_err(|error| error.during("extend"))
    }

    fn lost_error(&self, cause: Error) -> Error {
        claim_lost(&self.key).caused_by(cause)
    }
}

impl Delivery {
    pub(super) fn new(claim: Arc<Claim>) -> Self {
        Self {
            claim,
            is_settled: false,
        }
    }

    /// It is the user's from now on: its time begins.
    pub(super) fn hand_out(&self) {
        self.claim.is_handed.store(true, Ordering::Release);
        self.claim
            .own
            .end_at(self.claim.clock.now() + self.claim.max_run);
    }

    /// A handle on the job without the right to end it.
    pub fn job(&self) -> Job {
        Job {
            claim: self.claim.clone(),
        }
    }

    /// What the job is called.
    pub fn id(&self) -> &JobId {
        &self.claim.claimed.id
    }

    /// What it says.
    pub fn payload(&self) -> &Bytes {
        &self.claim.payload
    }

    /// Which delivery of the job this is, from 1. One that nobody got is not counted.
    pub fn attempt(&self) -> u32 {
        self.claim.claimed.attempts
    }

    /// The fencing token: larger than that of every earlier delivery of this job. A resource that
    /// refuses tokens smaller than the largest it has seen for a job is safe from a consumer that
    /// does not know yet that it has lost it.
    pub fn token(&self) -> u64 {
        self.claim.claimed.index.get()
    }

    /// The key of the job in the store.
    pub fn key(&self) -> &Key {
        &self.claim.key
    }

    /// Until when it is surely held, by the [`Clock`] of the client; moves on with every renewal,
    /// at most to the end of `max_run`. `None` once it is lost.
    pub fn deadline(&self) -> Option<Instant> {
        self.claim.deadline()
    }

    /// Whether it is held, in doubt, or lost; by the clock now.
    pub fn state(&self) -> HoldState {
        self.claim.state()
    }

    /// Whether it is still held now.
    pub fn is_held(&self) -> bool {
        self.claim.check().is_ok()
    }

    /// Returns when it is lost: [`Loss::Expired`] when the consumer's term or `max_run` has
    /// passed, [`Loss::Deleted`] when the consumer's node or the claim was seen to be gone.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> Loss {
        self.claim.lost().await
    }

    /// Runs a future for as long as it is held: checks before every poll, and drops the future when
    /// it is lost.
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost): the future was cancelled at some await.
    ///
    /// # Cancel safety
    /// As that of the future itself. The delivery is kept.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output> {
        let outcome = run_while(|| self.claim.check(), self.claim.lost(), future).await;
        outcome.map_err(|error| error.at(&self.claim.key))
    }

    /// Lets it run for at least `length` from now, beyond its `max_run`. Writes nothing.
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost): it is not held any more.
    pub fn extend(&self, length: Duration) -> Result<()> {
        self.claim.extend(length)
    }

    /// The job is done: it is never delivered again. 2 writes on etcd v2, of which the first is
    /// waited for; 1 on stores with commits.
    ///
    /// While the store does not answer it is tried again until the consumer's term ends, one TTL
    /// at most.
    ///
    /// # Errors
    /// [`ClaimLost`](crate::ErrorKind::ClaimLost): the claim was over; the job is, or will be,
    /// another's, who is not disturbed. [`Ambiguous`](crate::ErrorKind::Ambiguous): the term ended
    /// before the store answered; the job may be done, or be delivered again. Others that the store
    /// gives.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn ack(self) -> Result<()> {
        self.settle(Ending::Ack).await.map(drop)
    }

    /// Gives the job back: it keeps its place, and is delivered again at once, unless this was its
    /// last attempt: then it is given up, and lies among the dead until it is requeued. 1 write.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn nack(self) -> Result<()> {
        self.nack_after(Duration::ZERO).await
    }

    /// As [`nack`](Self::nack), and delivers it again after `delay` at the earliest, by the wall
    /// clocks of this machine and of that of the next consumer.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn nack_after(self, delay: Duration) -> Result<()> {
        self.settle(Ending::Again(delay, String::new()))
            .await
            .map(drop)
    }

    /// Gives the job up, whatever attempt this is: it lies among the dead, with the reason (its first
    /// 4 KiB), until it is requeued. 1 write.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn reject(self, reason: impl Into<String>) -> Result<()> {
        self.settle(Ending::Reject(reason.into())).await.map(drop)
    }

    /// Ends it; whether the job was given up.
    pub(super) async fn settle(mut self, ending: Ending) -> Result<bool> {
        let operation = match ending {
            Ending::Ack => "ack",
            Ending::Again(..) | Ending::Uncounted => "nack",
            Ending::Reject(_) => "reject",
        };
        let claim = self.claim.clone();
        let place = |error: Error| error.during(operation).at(&claim.key);
        // Without a request; whoever ended it has given it back, or the drop below does.
        claim
            .check()
            .map_err(|cause| place(claim.lost_error(cause)))?;
        let (answer, outcome) = oneshot::channel();
        self.is_settled = true;
        // A task that has ended, with its client, drops the answer's channel.
        let _ = claim
            .orders
            .send(Order::Settle(claim.claimed.nonce, ending, answer));
        match outcome.await {
            Ok(outcome) => outcome.map_err(place),
            Err(_) => Err(place(claim.lost_error(Loss::Closed.into_error()))),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_settled {
            // The consumer's task gives it back; one that has ended has lost it.
            let _ = self
                .claim
                .orders
                .send(Order::Dropped(self.claim.claimed.nonce));
        }
    }
}

impl Job {
    /// What the job is called.
    pub fn id(&self) -> &JobId {
        &self.claim.claimed.id
    }

    /// What it says.
    pub fn payload(&self) -> &Bytes {
        &self.claim.payload
    }

    /// Which delivery of the job this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.claim.claimed.attempts
    }

    /// The fencing token: see [`Delivery::token`].
    pub fn token(&self) -> u64 {
        self.claim.claimed.index.get()
    }

    /// The key of the job in the store.
    pub fn key(&self) -> &Key {
        &self.claim.key
    }

    /// Until when it is surely held: see [`Delivery::deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        self.claim.deadline()
    }

    /// Whether it is still held now.
    pub fn is_held(&self) -> bool {
        self.claim.check().is_ok()
    }

    /// Returns when it is lost: see [`Delivery::lost`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> Loss {
        self.claim.lost().await
    }

    /// Lets it run for at least `length` from now: see [`Delivery::extend`].
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost): it is not held any more.
    pub fn extend(&self, length: Duration) -> Result<()> {
        self.claim.extend(length)
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("key", &self.key)
            .field("attempt", &self.claimed.attempts)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Delivery").field(&self.claim).finish()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.claim).finish()
    }
}
