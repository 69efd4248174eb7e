//! Leader election: candidates stand in line, and the first one leads.
//!
//! # Protocol
//! The election `N` is a line of tickets in the directory `/_elections/N`: the lock's line
//! ([`lock`](super::lock)), in which each ticket says something, its **proposal**.
//!
//! 1. **Campaign**: append a ticket with the proposal, and wait until no ticket is before it.
//! 2. Before it is reported as won: the ticket is there, and its safe deadline is not reached. A
//!    candidate whose session has died is told so while it waits, and never wins.
//! 3. **Proclaim** another proposal by writing the own ticket, on the condition of its value and of
//!    the index at which it was last written: known from the write before, or read if a renewal may
//!    have moved it. It is done in the session's own task, between two
//!    renewals. What is sent again names the index again, so of all attempts one takes effect.
//! 4. **Resign** by deleting the ticket, compared with its tag.
//! 5. **Observe** by following the directory: the leader is the first ticket in it.
//!
//! A ticket's number is the **term** ([`Hold::token`](super::guard::Hold::token)).
//!
//! # What is guaranteed
//! * At most one [`Leadership`] is [held](super::guard::Hold::is_held) at a time, under the lock's
//!   assumptions about clocks and strangers. **No assumption** is needed for terms to rise from leader
//!   to leader.
//! * A leader that dies is followed within the TTL and 0.7 s, by the candidate that has waited
//!   longest; one that resigns, within 3 round trips.
//! * Only the leader of a term changes its proposal. Proposals of one term are seen in the order in
//!   which they were proclaimed; a proclamation that was given up and arrives late brings none back.
//! * [`Election::leader`] is linearizable. [`Election::observe`] tells every observer terms that
//!   rise, and `None` when nobody leads.
//! * Dropping a leadership, or a campaign at any await, leaves no ticket, at the latest when its TTL
//!   ends; resigning never removes a successor's ticket.
//!
//! # What is not guaranteed
//! What a lock cannot do an election cannot: a leader that was paused just after a check acts when
//! another leads already. Hand the term to whatever the leader's effects are on, and let it refuse
//! smaller ones; see [`lock`](super::lock).
//!
//! The leader that is read or observed may not know yet that it leads, or may have died within its
//! TTL. Several candidates of one client are several tickets: each can win.
//!
//! # Cost
//! | | writes | requests on etcd v3, embedded | on etcd v2 |
//! |---|---|---|---|
//! | campaign, nobody leads | 1 | 1 | 2 |
//! | campaign, behind another | 1 | 1, and once a watch and a list | 4 |
//! | proclaim | 1 | 1 | 1, after a renewal 2, of which one is a linearizable read |
//! | resign | 1 | 1 | 1 |
//! | leader, candidates | 0 | 1 | 1, which is a proposal |
//! | leading or waiting, each TTL/3 | 1 on etcd v2 | 1 for the whole client | 1 |
//! | leading for longer than 250 ms, or waiting, each TTL/2 | 0 | 1; for who leads and the locks that the client holds 1 for each 128 | 1 |
//! | the first campaign of a session says [who it is](crate::Client::who) | 1 | 1 | 1 |
//! | observe | 0 | a list and a watch | a list, and a poll for each change of the line |
//!
//! An election is for few changes of leader: each observer is told of every candidate's coming and
//! going by the store, though it tells its user of leaders only.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Ttl};
use crate::recipes::contender::{self, Contender};
use crate::recipes::leadership::Leadership;
use crate::recipes::line::Ticket;
use crate::recipes::observe::Leaders;
use crate::runtime::Retry;

/// An election that all clients of one store share by its name. Made by
/// [`Client::election`](crate::Client::election). Clones are the same election.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// let client = tenure::Client::connect("embedded:").await?;
/// let election = client.election("scheduler");
/// let leadership = election.campaign("10.0.0.7:8080").await?;
/// let leader = election.leader().await?.expect("we lead");
/// assert_eq!((leader.token(), &leader.proposal()[..]), (leadership.token(), &b"10.0.0.7:8080"[..]));
/// leadership.proclaim("10.0.0.7:8443").await?;
/// leadership.resign().await?;
/// assert!(election.leader().await?.is_none());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Election {
    core: Arc<Core>,
    dir: Result<Key>,
    keep: Result<Keep>,
}

impl Election {
    pub(crate) fn new(core: Arc<Core>, dir: Result<Key>, ttl: Ttl) -> Self {
        let keep = Ok(Keep::Shared(ttl));
        Self { core, dir, keep }
    }

    /// How long after its leader's death nobody leads, at most; 1 s to 24 h. A value out of range
    /// is reported by the first campaign. etcd v2 counts whole seconds and rounds up.
    ///
    /// What has the same TTL in one client shares a session: use a few TTLs, not computed ones.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.keep = Ttl::new(ttl).map(Keep::Shared);
        self
    }

    /// Waits until this candidate leads: `election.campaign(proposal).await`, or with a limit
    /// `election.campaign(proposal).timeout(limit).await`. The proposal is what others see of the
    /// leader, an address for example; on etcd v2 it is UTF-8.
    ///
    /// # Errors
    /// * [`InvalidName`](ErrorKind::InvalidName), [`InvalidTtl`](ErrorKind::InvalidTtl),
    ///   [`InvalidValue`](ErrorKind::InvalidValue), [`Closed`](ErrorKind::Closed): nothing was
    ///   changed.
    /// * [`Unreachable`](ErrorKind::Unreachable), [`Unauthorized`](ErrorKind::Unauthorized) and
    ///   others that the store gives: nothing was changed.
    /// * [`Timeout`](ErrorKind::Timeout): the limit passed, or there was no answer; what was sent
    ///   is being taken back.
    /// * [`Lost`](ErrorKind::Lost): the session ended, or the ticket was deleted, while it waited.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the candidacy. A ticket that may have been sent is taken back
    /// in the background.
    pub fn campaign(&self, proposal: impl Into<Bytes>) -> Campaign {
        Campaign {
            election: self.clone(),
            proposal: proposal.into(),
            timeout: None,
        }
    }

    /// Leads if nobody is seen in line. Looks first, and writes nothing if somebody is there; if
    /// another comes between the look and the append, the ticket is taken back, and this is `None`.
    ///
    /// The look is a local read on etcd v2, so `None` can be a moment out of date.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign). How long it takes is bounded by the store's own limit for
    /// each request (etcd's drivers: 5 s).
    ///
    /// # Cancel safety
    /// As [`campaign`](Self::campaign).
    pub async fn try_campaign(&self, proposal: impl Into<Bytes>) -> Result<Option<Leadership>> {
        let (dir, keep) = self.begin()?;
        let taken = Ticket::try_take(&self.core, &dir, &keep, &proposal.into()).await;
        match taken.map_err(|error| error.during("try campaign"))? {
            Some(ticket) => {
                ticket.announce();
                won(ticket).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Campaigns, does the work while it leads, and campaigns again whenever the leadership is
    /// lost; for ever, or until the work ends by itself: then it resigns, and gives its output.
    ///
    /// The work is polled under [`Hold::run`](super::guard::Hold::run): dropped at some await when
    /// the leadership is lost, before the deadline. It borrows the [`Leadership`], to proclaim with
    /// it or to use its term.
    ///
    /// Errors that may pass are tried again, after pauses of 25 ms doubling to 1 s.
    ///
    /// To spawn it, write `async move |leadership: &Leadership| …` and capture what is owned or an
    /// `Arc`: of a captured reference, even a `&'static str`, today's compiler cannot show that it
    /// may cross threads.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
    /// let client = tenure::Client::connect("embedded:").await?;
    /// let election = client.election("scheduler");
    /// let term = election.lead("me", async |leadership| leadership.token()).await?;
    /// assert!(term > 0 && election.leader().await?.is_none());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) when the client is shut down; and what will not pass by itself.
    /// Output is given even if resigning fails: then the ticket ends with its TTL.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work first, and then resigns in the background.
    pub async fn lead<T>(
        &self,
        proposal: impl Into<Bytes>,
        mut work: impl AsyncFnMut(&Leadership) -> T,
    ) -> Result<T> {
        let proposal = proposal.into();
        let mut retry = Retry::new();
        loop {
            let leadership = match self.campaign(proposal.clone()).await {
                Ok(leadership) => leadership,
                Err(error) if self.core.open().is_ok() && may_pass(&error) => {
                    tracing::debug!(target: "tenure::election", %error, "campaign failed");
                    let pause = retry.pause(&self.core.runtime.entropy);
                    self.core.runtime.clock.sleep(pause).await;
                    continue;
                }
                Err(error) => {
                    self.core.open().map_err(|closed| closed.during("lead"))?;
                    return Err(error);
                }
            };
            retry = Retry::new();
            match leadership.run(work(&leadership)).await {
                Ok(output) => {
                    if let Err(error) = leadership.resign().await {
                        tracing::debug!(target: "tenure::election", %error, "not resigned");
                    }
                    return Ok(output);
                }
                Err(error) => {
                    tracing::debug!(target: "tenure::election", %error, "leadership lost");
                }
            }
        }
    }

    /// Who leads now, read linearizably; `None` if nobody does. 1 read.
    ///
    /// # Errors
    /// [`InvalidName`](ErrorKind::InvalidName), and those of every read.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let line = self.line().await.map_err(|error| error.during("leader"))?;
        Ok(line.into_iter().next().map(Leader::from))
    }

    /// Everybody who stands for election, in order: the leader first. One linearizable read.
    ///
    /// # Errors
    /// As [`leader`](Self::leader).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn candidates(&self) -> Result<Vec<Contender>> {
        let line = self.line().await;
        line.map_err(|error| error.during("candidates"))
    }

    /// Who leads: the current leader first (or `None`), then every change; see
    /// [`observe`](super::observe) for what is promised. A bad name is its only item.
    ///
    /// Belongs to whoever polls it: a [`shutdown`](crate::Client::shutdown) does not end it.
    pub fn observe(&self) -> Leaders {
        Leaders::new(&self.core, self.dir.clone())
    }

    async fn line(&self) -> Result<Vec<Contender>> {
        contender::in_line(&self.core, &self.dir.clone()?).await
    }

    /// What must be right before anything is sent.
    fn begin(&self) -> Result<(Key, Keep)> {
        let (dir, keep) = (self.dir.clone()?, self.keep.clone()?);
        self.core
            .open()
            .map_err(|error| error.during("campaign").at(&dir))?;
        Ok((dir, keep))
    }

    async fn queue(&self, dir: &Key, keep: &Keep, proposal: &Bytes) -> Result<Leadership> {
        let mut ticket = Ticket::take(&self.core, dir, keep, proposal).await?;
        ticket.announce();
        ticket.admitted().await?;
        won(ticket)
    }
}

fn won(ticket: Ticket) -> Result<Leadership> {
    let leadership = Leadership::new(ticket)?;
    let (key, token) = (leadership.key(), leadership.token());
    tracing::debug!(target: "tenure::election", %key, token, "elected");
    Ok(leadership)
}

/// Whether to campaign again may do.
fn may_pass(error: &Error) -> bool {
    let kinds = [ErrorKind::Lost, ErrorKind::Timeout, ErrorKind::Ambiguous];
    error.is_transient() || kinds.contains(&error.kind())
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election")
            .field("dir", &self.dir)
            .field("ttl", &self.keep.as_ref().map(Keep::ttl))
            .finish_non_exhaustive()
    }
}

/// Who leads, as its ticket tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    contender: Contender,
}

impl Leader {
    /// What it campaigned with, or proclaimed last.
    pub fn proposal(&self) -> &Bytes {
        self.contender.body()
    }

    /// The term: larger than that of every earlier leader.
    pub fn token(&self) -> u64 {
        self.contender.token()
    }

    /// The key of its ticket.
    pub fn key(&self) -> &Key {
        self.contender.key()
    }

    /// Its session, for [`Client::who`](crate::Client::who); `None` if another program made the
    /// ticket.
    pub fn session(&self) -> Option<u64> {
        self.contender.session()
    }

    /// When it became a candidate, since 1970, by its own wall clock; for people to read.
    pub fn since(&self) -> Option<Duration> {
        self.contender.since()
    }
}

impl From<Contender> for Leader {
    fn from(contender: Contender) -> Self {
        Self { contender }
    }
}

/// A pending [`Election::campaign`]. Does nothing until awaited.
#[derive(Debug)]
#[must_use = "a campaign does nothing until awaited"]
pub struct Campaign {
    election: Election,
    proposal: Bytes,
    timeout: Option<Duration>,
}

impl Campaign {
    /// Gives up after this long, counted from the first poll: one budget for everything.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<Leadership> {
        let (dir, keep) = self.election.begin()?;
        let elected = self.election.queue(&dir, &keep, &self.proposal);
        let Some(timeout) = self.timeout else {
            return elected.await;
        };
        tokio::select! {
            biased;
            outcome = elected => outcome,
            () = self.election.core.runtime.clock.sleep(timeout) => {
                let text = format!("not elected within {timeout:?}");
                Err(Error::new(ErrorKind::Timeout, text).during("campaign").at(&dir))
            }
        }
    }
}

impl IntoFuture for Campaign {
    type Output = Result<Leadership>;
    type IntoFuture = BoxFuture<'static, Result<Leadership>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
