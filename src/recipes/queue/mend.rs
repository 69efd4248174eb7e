//! Requeueing and purging what was given up.
//!
//! ```text
//!  dead ── requeue: one swap of the register ──▶ ready
//!   │
//!   └── purge: with commits one step ─────────────────────────▶ done, the job gone
//!           without: register ──▶ done, the job there ──▶ job ──▶ done, the job gone
//! ```
//!
//! A job is what its register says, and that is one node: so at no moment, and wherever this is cut
//! short, is a job both dead and ready, or neither. The one state in between is that of a purge
//! without commits: done, and the job still there. Nobody delivers it; the next consumer that sees
//! it deletes it, and so does the next purge of it, or of all.
//!
//! The swap compares the index that was read, so a write that comes late changes nothing that
//! somebody has written since.

use std::future::IntoFuture;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Queue;
use super::job::JobId;
use super::outcome::{self, Found, Seen, Verdict};
use super::paths::Paths;
use super::push::BUDGET;
use super::register::Register;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Ttl;
use crate::store::{Delete, Expiry, Freshness, Get, Store};

/// How long the register of a job that was purged stays: the dedupe window.
const WINDOW: Duration = Duration::from_secs(600);

impl Queue {
    /// Lets a job that was given up be delivered again, as often as a new one. It keeps its place.
    /// `queue.requeue(&id).await`, or with another limit than 15 s
    /// `queue.requeue(&id).timeout(limit).await`. 1 read, 1 write.
    ///
    /// # Errors
    /// `NotFound` when there is no such job, or it is not dead. [`Timeout`](ErrorKind::Timeout): the
    /// time ran out before anything was sent, so it is dead as before. `Ambiguous`: it may be
    /// requeued, or still be; to say it again is harmless.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it requeued or not.
    pub fn requeue(&self, id: &JobId) -> Mend {
        Mend::new(self, id, Deed::Requeue)
    }

    /// Requeues all that were given up, and says how many.
    ///
    /// # Errors
    /// The first that [`requeue`](Self::requeue) meets, which says how many were requeued before.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the first few requeued.
    pub fn requeue_all(&self) -> MendAll {
        MendAll::new(self, Deed::Requeue)
    }

    /// Removes a job that was given up: `queue.purge(&id).await`, or with another limit than 15 s
    /// `queue.purge(&id).timeout(limit).await`. 1 read and 1 write on stores with commits; 2 of each
    /// on etcd v2.
    ///
    /// For 10 minutes another push of its id is a duplicate.
    ///
    /// # Errors
    /// `NotFound` when there is no such job, or it is not dead. [`Timeout`](ErrorKind::Timeout): the
    /// time ran out before anything was sent, so it is dead as before. `Ambiguous`: it may be
    /// removed, or still be, or not wholly; the text says which. To say it again is harmless. Any
    /// other: nothing was changed.
    ///
    /// # Cancel safety
    /// On etcd v2 dropping the future can leave a job that is done and not yet deleted: a consumer
    /// deletes it, or the next purge of it or of all. Else it is purged or not.
    pub fn purge(&self, id: &JobId) -> Mend {
        Mend::new(self, id, Deed::Purge)
    }

    /// Removes all that were given up, and what earlier purges left half removed; says how many.
    ///
    /// # Errors
    /// The first that [`purge`](Self::purge) meets, which says how many were removed before.
    ///
    /// # Cancel safety
    /// As [`purge`](Self::purge).
    pub fn purge_dead(&self) -> MendAll {
        MendAll::new(self, Deed::Purge)
    }
}

/// What is done to a dead job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Requeue,
    Purge,
}

impl Deed {
    fn name(self) -> &'static str {
        match self {
            Self::Requeue => "requeue",
            Self::Purge => "purge",
        }
    }
}

/// A pending [`Queue::requeue`] or [`Queue::purge`]. Does nothing until awaited.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until awaited"]
pub struct Mend {
    queue: Queue,
    id: JobId,
    deed: Deed,
    timeout: Duration,
}

impl Mend {
    fn new(queue: &Queue, id: &JobId, deed: Deed) -> Self {
        Self {
            queue: queue.clone(),
            id: id.clone(),
            deed,
            timeout: BUDGET,
        }
    }

    /// How long it may take in all, finding out what became of it included; 15 s unless said.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<()> {
        let paths = self.queue.begin(self.deed.name())?;
        let doing = Doing {
            mend: &self,
            paths: &paths,
            stage: AtomicU8::new(Stage::Unsent as u8),
        };
        let outcome = tokio::select! {
            biased;
            outcome = doing.run() => outcome,
            () = self.queue.core.runtime.clock.sleep(self.timeout) => {
                let text = format!("no certain answer within {:?}", self.timeout);
                Err(doing.explained(Error::new(ErrorKind::Timeout, text)))
            }
        };
        outcome.map_err(|error| error.during(self.deed.name()).at(&paths.jobs))
    }
}

impl IntoFuture for Mend {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'static, Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A pending [`Queue::requeue_all`] or [`Queue::purge_dead`]. Does nothing until awaited.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until awaited"]
pub struct MendAll {
    queue: Queue,
    deed: Deed,
    timeout: Option<Duration>,
}

impl MendAll {
    fn new(queue: &Queue, deed: Deed) -> Self {
        Self {
            queue: queue.clone(),
            deed,
            timeout: None,
        }
    }

    /// How long all of it may take; unless said, the list and each job have 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<usize> {
        let clock = &self.queue.core.runtime.clock;
        let end = self.timeout.map(|limit| clock.now() + limit);
        let left = || end.map_or(BUDGET, |end| end.since(clock.now()));
        let limit = left();
        let ids = tokio::select! {
            biased;
            ids = self.queue.given_up(self.deed.name(), self.deed == Deed::Purge) => ids?,
            () = clock.sleep(limit) => {
                let text = format!("no list of the dead within {limit:?}; nothing was changed");
                return Err(Error::new(ErrorKind::Timeout, text).during(self.deed.name()));
            }
        };
        let (mut count, of) = (0, ids.len());
        for id in ids {
            match Mend::new(&self.queue, &id, self.deed).timeout(left()).await {
                Ok(()) => count += 1,
                // Somebody else was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let kind = error.kind();
                    let note = format!("this is of job {id}; before it {count} of {of} were done");
                    return Err(error.into_kind(kind, &note));
                }
            }
        }
        Ok(count)
    }
}

impl IntoFuture for MendAll {
    type Output = Result<usize>;
    type IntoFuture = BoxFuture<'static, Result<usize>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// How far it has come, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// Nothing was sent, or the store refused all that was.
    Unsent,
    /// The register may be written, or still be.
    Sent,
    /// The register is written, and the job is still to be deleted.
    Written,
}

/// One requeue or purge under way.
struct Doing<'a> {
    mend: &'a Mend,
    paths: &'a Paths,
    stage: AtomicU8,
}

impl Doing<'_> {
    async fn run(&self) -> Result<()> {
        let outcome = match self.mend.deed {
            Deed::Requeue => self.requeue().await,
            Deed::Purge => self.purge().await,
        };
        outcome.map_err(|error| self.explained(error))
    }

    async fn requeue(&self) -> Result<()> {
        let core = &self.mend.queue.core;
        let register = self.paths.register(&self.mend.id)?;
        let ready = Register::Ready {
            attempts: 0,
            not_before: Duration::ZERO,
        };
        outcome::swap(core, &register, Freshness::Linearizable, |seen| {
            self.looked(&seen);
            match dead(&seen.register) {
                Some(_) => {
                    self.set(Stage::Sent);
                    Ok(Verdict::Write(ready.clone(), Expiry::Never, ()))
                }
                // Ours has come, and consumers have gone on from it.
                None if seen.unanswered && !is_purged(&seen.register) => Ok(Verdict::Leave(())),
                None => Err(self.not_dead(&seen.register)),
            }
        })
        .await
    }

    async fn purge(&self) -> Result<()> {
        let core = &self.mend.queue.core;
        let register = self.paths.register(&self.mend.id)?;
        let job = self.paths.job(&self.mend.id)?;
        let window = Ttl::new(WINDOW).map(Expiry::After)?;
        let commits = core.store.about().commits;
        let is_whole = outcome::swap(core, &register, Freshness::Linearizable, |seen| {
            self.looked(&seen);
            match dead(&seen.register) {
                Some(attempts) => {
                    self.set(Stage::Sent);
                    let done = Register::Done { attempts, claim: 0 };
                    Ok(match commits {
                        true => Verdict::End(done, window, Delete::new(job.clone()), true),
                        false => Verdict::Write(done, window, false),
                    })
                }
                // Ours has come; or an earlier one did not get to the job.
                None if is_purged(&seen.register) => Ok(Verdict::Leave(false)),
                None => Err(self.not_dead(&seen.register)),
            }
        })
        .await?;
        if is_whole {
            return Ok(());
        }
        self.set(Stage::Written);
        let view = core.store.get(Get::node(job.clone())).await?;
        match view.nodes.first() {
            Some(node) => outcome::remove(core, &job, node.modified).await,
            None => Ok(()),
        }
    }

    /// What is there now says what became of all that was answered.
    fn looked(&self, seen: &Seen) {
        if !seen.unanswered {
            self.set(Stage::Unsent);
        }
    }

    fn set(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// What an error means for the job.
    fn explained(&self, error: Error) -> Error {
        let stage = self.stage.load(Ordering::Acquire);
        if stage == Stage::Written as u8 {
            let note = "the job is done and nobody is given it, but it may not be deleted yet: a \
                        consumer deletes it, or a purge within 10 minutes";
            return error.into_kind(ErrorKind::Ambiguous, note);
        }
        match error.kind() {
            ErrorKind::Timeout if stage == Stage::Unsent as u8 => {
                error.into_kind(ErrorKind::Timeout, "nothing was changed")
            }
            ErrorKind::Timeout | ErrorKind::Ambiguous | ErrorKind::Protocol
                if stage == Stage::Sent as u8 =>
            {
                let note = match self.mend.deed {
                    Deed::Requeue => "the job may be requeued, or still be",
                    Deed::Purge => "the job may be purged, or still be",
                };
                let note = format!("{note}; to say it again is harmless");
                error.into_kind(ErrorKind::Ambiguous, &note)
            }
            _ => error,
        }
    }

    fn not_dead(&self, found: &Found) -> Error {
        let is = match found {
            Found::Register(Register::Ready { .. }) => "it is waiting to be delivered",
            Found::Register(Register::Claimed { .. }) => "it is claimed",
            Found::Register(Register::Done { .. }) => "it is done",
            _ => "it is waiting to be delivered, or there is no such job",
        };
        let text = format!("job {} is not dead: {is}", self.mend.id);
        Error::new(ErrorKind::NotFound, text)
    }
}

/// The deliveries of a job that was given up.
fn dead(found: &Found) -> Option<u32> {
    match found {
        Found::Register(Register::Dead { attempts, .. }) => Some(*attempts),
        // Listed as dead, so that there is a way out.
        Found::Unreadable => Some(0),
        _ => None,
    }
}

/// Whether a purge ended it.
pub(super) fn is_purged(found: &Found) -> bool {
    matches!(found, Found::Register(Register::Done { claim: 0, .. }))
}
