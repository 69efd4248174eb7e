//! A cluster-wide semaphore: so many permits, taken in order, by weight, and given back even by the
//! dead.
//!
//! # Protocol
//! The semaphore `N` is a line of tickets in `/_semaphores/N/line`, and a limit beside it, the
//! decimal number in `/_semaphores/N/permits`. First use creates the limit, and nothing but
//! [`resize`](Semaphore::resize) changes it.
//!
//! 1. **Append** a ticket with its weight, which hangs on the session's lease and carries a fresh
//!    tag: the same line as that of the [lock](super::lock), which is a semaphore of one.
//! 2. **Look** at line and limit in one view that is at least as new as the ticket. It is admitted
//!    if its weight and those of *all* tickets before it fit into the limit. Otherwise follow both,
//!    and look again with every change; of the tickets before mine each can only disappear.
//! 3. Before it is reported as held: the ticket is there, and its safe deadline is not reached.
//! 4. **Release** by deleting the ticket, compared with its tag.
//!
//! A weighted acquire is one ticket, so it is taken whole or not at all: two that each want several
//! permits never wait for each other with some in hand.
//!
//! # What is guaranteed
//! * The weights of the permits that are [held](super::guard::Hold::is_held) at a time never exceed
//!   the limit that the latest of them was [admitted under](Permit::limit); and that limit was in
//!   force at some moment between its acquire and its admission. Assumed is what the lock assumes:
//!   clocks that run within half a percent of each other, on etcd v2 members' wall clocks within the
//!   configured skew, and that nobody else deletes tickets. **No assumption** is needed for the tokens to rise.
//! * First come, first served, across processes and weights: a heavy one at the head is not
//!   overtaken by lighter ones, so nobody starves. The price is that permits stay free meanwhile.
//! * What a holder that dies held is free again within the TTL and 0.7 s, if the cluster has a leader
//!   all that time. Dropping a permit, or an acquire at any await, leaves no ticket, at the latest
//!   when its TTL ends.
//! * Growing admits waiters at once. Shrinking revokes nobody: those above the new limit keep what
//!   they have, and nobody is admitted until enough of them have left. A waiter that weighs more than
//!   the new limit is told so ([`TooHeavy`](ErrorKind::TooHeavy)).
//!
//! # What is not guaranteed
//! Just after a resize a process that has not heard of it yet may admit by the limit of before: what
//! is held is never more than the larger of the two. And as with the lock, a process that was paused
//! just after a check acts late: the [`token`](super::guard::Hold::token) tells a permit from those
//! admitted before it, but a resource cannot tell from tokens alone who still holds one.
//!
//! # Cost
//! | | writes | requests on etcd v2 | on etcd v3, embedded |
//! |---|---|---|---|
//! | first use of a value | 0, 1 when it makes the limit | 1, to make it 3 | the same |
//! | acquire, fits | 1 | 2 | 2; 1 while the line is followed |
//! | acquire, waits | 1 | 2, and one for each change of line or limit | 2, a watch and a list; 1 while the line is followed |
//! | release | 1 | 1 | 1 |
//! | held or waiting, each TTL/3 | 1 on etcd v2 | 1 | 1 for all of the client |
//! | held longer than 250 ms, or waiting, each TTL/2 | 0 | 1 | 1 |
//!
//! While somebody of a process waits, or holds for longer than 250 ms, it follows the line by one
//! watch, whatever the number of its tickets; where watches share a connection, for one more second
//! after that. Handing on a permit reads nothing.
//!
//! The protocol is Lamport's queue with weights, as in Curator's and ZooKeeper's semaphores, without
//! their second lock: one append instead of four writes, and no order in which two takers of several
//! permits can block each other.

mod limit;
mod permit;

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use permit::Permit;

use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Ttl};
use crate::recipes::contender::Contender;
use crate::recipes::line::shared::picture::{self, Fit, Picture};
use crate::recipes::line::{Refusal, Rule, Shared, Ticket};
use crate::store::{Freshness, Get};
use limit::LimitNode;

/// So many permits, which all clients of one store share by the semaphore's name. Made by
/// [`Client::semaphore`](crate::Client::semaphore).
///
/// One value can have any number of permits at once. Cloning is cheap; clones are the same value.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// let client = tenure::Client::connect("embedded:").await?;
/// let licences = client.semaphore("licences").permits(3);
/// let one = licences.acquire().await?;
/// let two = licences.acquire().weight(2).await?;
/// assert!(licences.try_acquire().await?.is_none());
/// two.release().await?;
/// assert!(licences.try_acquire().await?.is_some());
/// # drop(one); Ok(()) }
/// ```
#[derive(Clone)]
pub struct Semaphore {
    core: Arc<Core>,
    place: Result<Arc<Shared>>,
    keep: Result<Keep>,
    limit: Arc<LimitNode>,
}

impl Semaphore {
    pub(crate) fn new(core: Arc<Core>, root: Result<Key>, ttl: Ttl) -> Self {
        let place = root.and_then(|root| {
            Ok(Arc::new(Shared {
                line: root.join("line")?,
                limit: root.join("permits")?,
                root,
            }))
        });
        Self {
            core,
            place,
            keep: Ok(Keep::Shared(ttl)),
            limit: Arc::default(),
        }
    }

    /// How many permits there are, at least 1. First use creates the limit; if another is stored
    /// already, every call says so ([`LimitMismatch`](ErrorKind::LimitMismatch)) before anything is
    /// queued. That is looked at until it is right once for this value; later resizes count.
    ///
    /// Without it whatever limit is stored counts, and none is [`NotFound`](ErrorKind::NotFound).
    #[must_use]
    pub fn permits(mut self, permits: u32) -> Self {
        self.limit = Arc::new(LimitNode::declared(permits));
        self
    }

    /// How long after its holder's death a permit can stay taken; 1 s to 24 h. A value out of range
    /// is reported by the first acquire. etcd v2 counts whole seconds and rounds up.
    ///
    /// Recipes of one client with the same TTL share a session, which lives as long as the client:
    /// use a few TTLs, not computed ones.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.keep = Ttl::new(ttl).map(Keep::Shared);
        self
    }

    /// Waits for a permit: `semaphore.acquire().await`, with options
    /// `semaphore.acquire().weight(2).timeout(limit).await`.
    ///
    /// # Errors
    /// * [`InvalidName`](ErrorKind::InvalidName), [`InvalidTtl`](ErrorKind::InvalidTtl),
    ///   [`InvalidOptions`](ErrorKind::InvalidOptions) (a weight or a limit of 0),
    ///   [`LimitMismatch`](ErrorKind::LimitMismatch), [`NotFound`](ErrorKind::NotFound) (no limit is
    ///   stored), [`Closed`](ErrorKind::Closed): nothing was queued.
    /// * [`TooHeavy`](ErrorKind::TooHeavy): the weight is above the limit, or has come to be while it
    ///   waited. [`NotFound`](ErrorKind::NotFound) can come to a waiter too, when somebody deletes
    ///   the limit.
    /// * [`Unreachable`](ErrorKind::Unreachable), [`Unauthorized`](ErrorKind::Unauthorized) and
    ///   others that the store gives: nothing was queued.
    /// * [`Timeout`](ErrorKind::Timeout): the time passed, or there was no answer; what was sent is
    ///   being taken back.
    /// * [`Lost`](ErrorKind::Lost): the session ended, or the ticket was deleted, while it waited.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in line. A ticket that may have been sent is taken
    /// back in the background.
    pub fn acquire(&self) -> AcquirePermit {
        AcquirePermit {
            semaphore: self.clone(),
            weight: 1,
            timeout: None,
        }
    }

    /// Takes a permit if one is free and nobody waits: [`try_acquire_many`](Self::try_acquire_many)
    /// of 1.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Permit>> {
        self.try_acquire_many(1).await
    }

    /// Takes a permit of this weight if there is room for it behind all that are in line. Looks
    /// first, and writes nothing if there is none; if others come between the look and the append,
    /// the ticket is taken back, and this is `None`.
    ///
    /// The look is a local read on etcd v2, so `None` can be a moment out of date, also while a
    /// permit of this process is still being given back. Cost: 1 read if there is no room; 1 write
    /// and 3 requests if there is; 2 writes after a lost race.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire). How long it takes is bounded by the store's own limit for
    /// each request (etcd's drivers: 5 s).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire_many(&self, weight: u32) -> Result<Option<Permit>> {
        self.try_weighted(weight)
            .await
            .map_err(|error| error.during("try permit"))
    }

    /// How many permits there are, held or free.
    ///
    /// Cost: 1 linearizable read.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when no limit is stored; what a read can fail with.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn limit(&self) -> Result<u32> {
        let place = self.place()?;
        let limit = limit::stored(&self.core, &place.limit, Freshness::Linearizable).await?;
        let number = limit.number().map_err(Refusal::into_error);
        number.map_err(|error| error.during("read limit").at(&place.limit))
    }

    /// Changes how many permits there are, and returns how many there were. More of them admit
    /// waiters at once; fewer revoke nobody.
    ///
    /// Of resizes at the same time one comes after the other. To set what is set already writes
    /// nothing. A limit that [`permits`](Self::permits) declares and that is not stored yet is
    /// created first.
    ///
    /// Cost: 1 linearizable read and 1 write.
    ///
    /// # Errors
    /// [`InvalidOptions`](ErrorKind::InvalidOptions) for 0; [`NotFound`](ErrorKind::NotFound) when
    /// there is no limit to change; [`Ambiguous`](ErrorKind::Ambiguous) when nobody could be asked
    /// what became of it: it may be done, or may still be unless the limit is changed before;
    /// calling again is harmless.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown, like an ambiguous error.
    pub async fn resize(&self, permits: u32) -> Result<u32> {
        let place = self.place()?;
        let resized = self.limit.resize(&self.core, &place.limit, permits).await;
        resized.map_err(|error| error.during("resize").at(&place.limit))
    }

    /// All in line, in order, at one index: those who hold and those who wait.
    ///
    /// Who [holds](Contender::holds) is told by the limit of now: after it was shrunk, those who
    /// were admitted under a larger one and are above the new one are shown as if they waited.
    ///
    /// Cost: 1 linearizable read.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when no limit is stored; what a read can fail with.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn contenders(&self) -> Result<Vec<Contender>> {
        let place = self.place()?;
        let contenders = self.read_contenders(place).await;
        contenders.map_err(|error| error.during("list contenders").at(&place.root))
    }

    /// Those of the [`contenders`](Self::contenders) who hold a permit.
    ///
    /// # Errors
    /// As [`contenders`](Self::contenders).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn holders(&self) -> Result<Vec<Contender>> {
        let mut contenders = self.contenders().await?;
        contenders.retain(Contender::holds);
        Ok(contenders)
    }

    async fn read_contenders(&self, place: &Shared) -> Result<Vec<Contender>> {
        let view = self.core.store.get(Get::tree(place.root.clone())).await?;
        let picture = Picture::of(self.core.layout, place, &view);
        let (_, standings) = picture.standings().map_err(Refusal::into_error)?;
        let tickets = view.nodes.iter();
        let tickets = tickets.filter_map(|node| self.core.layout.ticket(&place.line, node));
        let mut contenders: Vec<_> = tickets
            .filter_map(|ticket| {
                let standing = standings.iter().find(|it| *it.ticket == ticket.position)?;
                let holds = standing.fit == Fit::In;
                Some(Contender::new(ticket, standing.weight, holds))
            })
            .collect();
        contenders.sort_by(|a, b| (a.token(), a.key()).cmp(&(b.token(), b.key())));
        Ok(contenders)
    }

    /// What must be right before anything is sent.
    fn begin(&self, weight: u32) -> Result<(&Arc<Shared>, Keep)> {
        let (place, keep) = (self.place()?, self.keep.clone()?);
        if weight == 0 {
            let text = "a weight of 0 takes nothing: the least is 1";
            return Err(Error::new(ErrorKind::InvalidOptions, text).at(&place.root));
        }
        self.core.open().map_err(|error| error.at(&place.root))?;
        Ok((place, keep))
    }

    fn place(&self) -> Result<&Arc<Shared>> {
        self.place.as_ref().map_err(Clone::clone)
    }

    async fn try_weighted(&self, weight: u32) -> Result<Option<Permit>> {
        let (place, keep) = self.begin(weight)?;
        self.limit.verify(&self.core, &place.limit, weight).await?;
        let seen = self.core.seen().map_or(Freshness::Any, Freshness::AtLeast);
        let look = Get::tree(place.root.clone()).fresh(seen);
        let view = self.core.store.get(look).await.inspect_err(|error| {
            if error.kind() == ErrorKind::ClusterChanged {
                // Told once; what this client has seen counts for nothing there.
                self.core.forget_seen();
            }
        })?;
        let picture = Picture::of(self.core.layout, place, &view);
        match picture.has_room(weight) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(refusal) => return Err(refusal.into_error().at(&place.limit)),
        }
        let ticket = self.ticket(place, &keep, weight).await?;
        match ticket.admitted_now().await? {
            Some(ticket) => self.permit(ticket, weight).map(Some),
            None => Ok(None),
        }
    }

    async fn queue(&self, weight: u32) -> Result<Permit> {
        let (place, keep) = self.begin(weight)?;
        self.limit.verify(&self.core, &place.limit, weight).await?;
        let mut ticket = self.ticket(place, &keep, weight).await?;
        ticket.admitted().await?;
        self.permit(ticket, weight)
    }

    async fn ticket(&self, place: &Arc<Shared>, keep: &Keep, weight: u32) -> Result<Ticket> {
        let (rule, body) = (Rule::Shared(place.clone()), picture::body(weight));
        Ticket::take_under(&self.core, &place.line, rule, keep, &body).await
    }

    fn permit(&self, ticket: Ticket, weight: u32) -> Result<Permit> {
        let permit = Permit::new(ticket, weight)?;
        self.limit.saw(permit.limit());
        tracing::debug!(
            target: "tenure::semaphore", key = %permit.key(), token = permit.token(), weight, "permit held"
        );
        Ok(permit)
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("root", &self.place.as_ref().map(|place| &place.root))
            .field("ttl", &self.keep.as_ref().map(Keep::ttl))
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// A pending [`Semaphore::acquire`]. Does nothing until awaited.
#[derive(Debug)]
#[must_use = "an acquire does nothing until awaited"]
pub struct AcquirePermit {
    semaphore: Semaphore,
    weight: u32,
    timeout: Option<Duration>,
}

impl AcquirePermit {
    /// How much it takes, at least 1 and by default that. It is taken whole or not at all.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Gives up after this long, counted from the first poll: one budget for everything.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<Permit> {
        let Self {
            semaphore,
            weight,
            timeout,
        } = self;
        let queue = async {
            let permit = semaphore.queue(weight).await;
            permit.map_err(|error| error.during("acquire permit"))
        };
        let Some(timeout) = timeout else {
            return queue.await;
        };
        tokio::select! {
            biased;
            outcome = queue => outcome,
            () = semaphore.core.runtime.clock.sleep(timeout) => {
                let text = format!("not acquired within {timeout:?}");
                let error = Error::new(ErrorKind::Timeout, text).during("acquire permit");
                Err(match &semaphore.place {
                    Ok(place) => error.at(&place.root),
                    Err(_) => error,
                })
            }
        }
    }
}

impl IntoFuture for AcquirePermit {
    type Output = Result<Permit>;
    type IntoFuture = BoxFuture<'static, Result<Permit>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
