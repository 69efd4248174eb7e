//! Looking at a queue and putting right what went wrong in it.
//!
//! A look is one read of the whole queue at one index (of a raw queue two: the jobs, then their
//! registers at that index or later, so that no job is taken for ready because the news of its
//! claim was older). The payloads are read with it.
//!
//! A change is the compare-and-swap of one register, as consumers do it: a job that somebody else
//! requeues or purges meanwhile is theirs.

use std::time::Duration;

use bytes::Bytes;

use super::Queue;
use super::census::{Census, JobInfo, JobState, Stats};
use super::job::JobId;
use super::outcome::{self, Found, Verdict};
use super::paths::Paths;
use super::register::Register;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Ttl;
use crate::store::{Expiry, Freshness, Get, Node, Store};

/// How long the register of a job that was purged stays: the dedupe window.
const WINDOW: Duration = Duration::from_secs(600);

impl Queue {
    /// Counts what is to do. 1 linearizable read of everything, payloads included (raw: 2).
    ///
    /// # Errors
    /// What a read meets. On etcd v2 an answer of more than 64 MiB is refused.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn stats(&self) -> Result<Stats> {
        let paths = self.begin("count jobs")?;
        Ok(self.census("count jobs", &paths).await?.stats())
    }

    /// The jobs that are not done, in the order of their delivery. Cost and errors as of
    /// [`stats`](Self::stats).
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn jobs(&self) -> Result<Vec<JobInfo>> {
        let paths = self.begin("list jobs")?;
        Ok(self.census("list jobs", &paths).await?.jobs().collect())
    }

    /// The jobs that were given up, in the order in which they were to be delivered. Cost as of
    /// [`stats`](Self::stats).
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn dead(&self) -> Result<Vec<JobInfo>> {
        let mut jobs = self.jobs().await?;
        jobs.retain(|job| matches!(job.state, JobState::Dead { .. }));
        Ok(jobs)
    }

    /// The payload of a job. 1 linearizable read.
    ///
    /// # Errors
    /// `NotFound` when there is no such job (any more).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn payload(&self, id: &JobId) -> Result<Bytes> {
        let job = self.begin("read a job")?.job(id)?;
        let view = self.core.store.get(Get::node(job.clone())).await?;
        let node = view.nodes.into_iter().find(|node| !node.is_dir);
        node.map(|node| node.value).ok_or_else(|| {
            let text = format!("there is no job {id}, or it is done");
            Error::new(ErrorKind::NotFound, text)
                .during("read a job")
                .at(&job)
        })
    }

    /// Lets a job that was given up be delivered again, as often as a new one. It keeps its place.
    /// 1 read, 1 write.
    ///
    /// # Errors
    /// `NotFound` when there is no such job, or it is not dead. `Ambiguous`: it may be requeued,
    /// or still be; to say it again is harmless.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it requeued or not.
    pub async fn requeue(&self, id: &JobId) -> Result<()> {
        let paths = self.begin("requeue")?;
        let outcome = self.requeue_at(&paths, id).await;
        outcome.map_err(|error| error.during("requeue").at(&paths.jobs))
    }

    /// Requeues all that were given up, and says how many.
    ///
    /// # Errors
    /// The first that [`requeue`](Self::requeue) meets. Those before it are requeued.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the first few requeued.
    pub async fn requeue_all(&self) -> Result<usize> {
        let mut count = 0;
        for job in self.dead().await? {
            count += usize::from(unless_gone(self.requeue(&job.id).await)?);
        }
        Ok(count)
    }

    /// Removes a job that was given up. 2 reads, 2 writes.
    ///
    /// For 10 minutes another push of its id is a duplicate.
    ///
    /// # Errors
    /// `NotFound` when there is no such job, or it is not dead. `Ambiguous` and others: it may not
    /// be removed, or not wholly; to say it again is harmless.
    ///
    /// # Cancel safety
    /// Dropping the future can leave a job that is done and not yet deleted: a consumer deletes
    /// it, or the next purge of it.
    pub async fn purge(&self, id: &JobId) -> Result<()> {
        let paths = self.begin("purge")?;
        let outcome = self.purge_at(&paths, id).await;
        outcome.map_err(|error| error.during("purge").at(&paths.jobs))
    }

    /// Removes all that were given up, and says how many.
    ///
    /// # Errors
    /// The first that [`purge`](Self::purge) meets. Those before it are removed.
    ///
    /// # Cancel safety
    /// As [`purge`](Self::purge).
    pub async fn purge_dead(&self) -> Result<usize> {
        let mut count = 0;
        for job in self.dead().await? {
            count += usize::from(unless_gone(self.purge(&job.id).await)?);
        }
        Ok(count)
    }

    async fn requeue_at(&self, paths: &Paths, id: &JobId) -> Result<()> {
        let register = paths.register(id)?;
        let ready = Register::Ready {
            attempts: 0,
            not_before: Duration::ZERO,
        };
        outcome::swap(&self.core, &register, Freshness::Linearizable, |seen| {
            match dead(&seen.register) {
                Some(_) => Ok(Verdict::Write(ready.clone(), Expiry::Never, ())),
                // Ours has come, and consumers have gone on from it.
                None if seen.unanswered && !is_purged(&seen.register) => Ok(Verdict::Leave(())),
                None => Err(not_dead(id, &seen.register)),
            }
        })
        .await
    }

    async fn purge_at(&self, paths: &Paths, id: &JobId) -> Result<()> {
        let register = paths.register(id)?;
        let window = Ttl::new(WINDOW).map(Expiry::After)?;
        outcome::swap(&self.core, &register, Freshness::Linearizable, |seen| {
            match dead(&seen.register) {
                Some(attempts) => {
                    let done = Register::Done { attempts, claim: 0 };
                    Ok(Verdict::Write(done, window, ()))
                }
                // Ours has come; or an earlier one did not get to the job.
                None if is_purged(&seen.register) => Ok(Verdict::Leave(())),
                None => Err(not_dead(id, &seen.register)),
            }
        })
        .await?;
        let job = paths.job(id)?;
        let view = self.core.store.get(Get::node(job.clone())).await?;
        match view.nodes.first() {
            Some(node) => outcome::remove(&self.core, &job, node.modified).await,
            None => Ok(()),
        }
    }

    async fn census<'a>(&self, operation: &'static str, paths: &'a Paths) -> Result<Census<'a>> {
        let nodes = self.nodes(paths).await;
        let nodes = nodes.map_err(|error| error.during(operation).at(&paths.jobs))?;
        let now = self.core.runtime.clock.wall();
        Ok(Census::new(paths, now, nodes))
    }

    async fn nodes(&self, paths: &Paths) -> Result<Vec<Node>> {
        let store = &self.core.store;
        if !paths.is_raw {
            return Ok(store.get(Get::tree(paths.root.clone())).await?.nodes);
        }
        let jobs = store.get(Get::children(paths.jobs.clone())).await?;
        let known = Get::tree(paths.root.clone()).fresh(Freshness::AtLeast(jobs.index));
        let known = store.get(known).await?;
        Ok(jobs.nodes.into_iter().chain(known.nodes).collect())
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

fn is_purged(found: &Found) -> bool {
    matches!(found, Found::Register(Register::Done { claim: 0, .. }))
}

fn not_dead(id: &JobId, found: &Found) -> Error {
    let is = match found {
        Found::Register(Register::Ready { .. }) => "it is waiting to be delivered",
        Found::Register(Register::Claimed { .. }) => "it is claimed",
        Found::Register(Register::Done { .. }) => "it is done",
        _ => "it is waiting to be delivered, or there is no such job",
    };
    let text = format!("job {id} is not dead: {is}");
    Error::new(ErrorKind::NotFound, text)
}

/// Whether it was done; not, when somebody else was faster.
fn unless_gone(outcome: Result<()>) -> Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
