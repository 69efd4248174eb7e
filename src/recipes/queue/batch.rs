//! Pushing many jobs, in order.
//!
//! Where the store can write several keys at once, up to 128 jobs (or half a MiB of payloads) go
//! in one commit: all of them are there, or none. Their names rise, so among jobs of one index
//! they keep their order. A commit without an answer is sent again under the same names when its
//! last job, which is delivered last, is not there. Elsewhere, and on a raw queue, they are pushed
//! one after the other: two on the way at once could change places.
//!
//! Because the order matters, the first failure ends the batch: see [`Queue::push_all`].

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Queue;
use super::job::{JobId, Priority};
use super::outcome::{self, Created, Making};
use super::push::{self, BUDGET, Push, Pushed};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Instant;
use crate::store::{Commit, Condition, Expiry, Put, Store};

/// The most jobs in one commit: what etcd v3 takes unless it is told otherwise.
const JOBS: usize = 128;
/// The most payload in one commit, unless it is of one job: a third of what etcd v3 takes.
const BYTES: usize = 512 * 1024;

/// A pending [`Queue::push_all`]. Does nothing until awaited; then answers for each payload, in
/// their order.
///
/// The first failure ends it. That job has the error; those that were to share a commit with it
/// have the same. Those after it were not sent, and have an error that
/// [changed nothing](Error::changed_nothing): of the same kind if that kind says so, else
/// [`Unavailable`](ErrorKind::Unavailable).
///
/// # Cost
/// A write and a round trip for each commit, or for each job.
///
/// # Cancel safety
/// Dropping the future leaves the first few of the jobs pushed, in order, each once.
#[derive(Clone, Debug)]
#[must_use = "a push does nothing until awaited"]
pub struct Batch {
    queue: Queue,
    payloads: Vec<Bytes>,
    priority: Priority,
    timeout: Option<Duration>,
}

impl Batch {
    pub(super) fn new(queue: Queue, payloads: Vec<Bytes>) -> Self {
        Self {
            queue,
            payloads,
            priority: Priority::NORMAL,
            timeout: None,
        }
    }

    /// The lane of all of them; [`Priority::NORMAL`] unless said.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// How long all of it may take; unless said, each write has 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Vec<Result<Pushed>> {
        let core = &self.queue.core;
        let end = self.timeout.map(|limit| core.runtime.clock.now() + limit);
        let mut answers = Vec::with_capacity(self.payloads.len());
        let mut rest = self.payloads.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(self.next(rest));
            rest = others;
            match self.left(end) {
                Ok(left) => self.push(some, left, &mut answers).await,
                Err(error) => answers.push(Err(error)),
            }
            if let Some(Err(first)) = answers.last() {
                let untried = untried(first);
                answers.resize(self.payloads.len(), Err(untried));
                break;
            }
        }
        answers
    }

    /// How many of the payloads go together.
    fn next(&self, rest: &[Bytes]) -> usize {
        let raw = self.queue.paths.as_ref().is_ok_and(|it| it.is_raw);
        if raw || !self.queue.core.store.about().commits {
            return 1;
        }
        let mut bytes = 0;
        let fits = rest.iter().take(JOBS).take_while(|payload| {
            bytes += payload.len();
            bytes <= BYTES
        });
        fits.count().max(1)
    }

    /// How long the next write may take.
    fn left(&self, end: Option<Instant>) -> Result<Duration> {
        let Some(end) = end else {
            return Ok(BUDGET);
        };
        let left = end.since(self.queue.core.runtime.clock.now());
        if left.is_zero() {
            let text = "the time for the batch ran out before this job was sent";
            return Err(Error::new(ErrorKind::Unavailable, text).during("push"));
        }
        Ok(left)
    }

    async fn push(&self, some: &[Bytes], limit: Duration, answers: &mut Vec<Result<Pushed>>) {
        if let [payload] = some {
            let push = Push::new(self.queue.clone(), payload.clone());
            answers.push(push.priority(self.priority).timeout(limit).await);
            return;
        }
        let outcome = tokio::select! {
            biased;
            outcome = self.commit(some) => outcome,
            () = self.queue.core.runtime.clock.sleep(limit) => {
                let text = format!("no certain answer within {limit:?}: the jobs may be there, or come");
                Err(Error::new(ErrorKind::Ambiguous, text))
            }
        };
        match outcome {
            Ok(pushed) => answers.extend(pushed),
            Err(error) => {
                let jobs = self.queue.paths.as_ref().map(|it| &it.jobs);
                let error = error.during("push");
                let error = jobs.map_or(error.clone(), |jobs| error.at(jobs));
                answers.extend(some.iter().map(|_| Err(error.clone())));
            }
        }
    }

    /// Pushes several in one write.
    async fn commit(&self, some: &[Bytes]) -> Result<Vec<Result<Pushed>>> {
        let paths = self.queue.begin("push")?;
        let core = &self.queue.core;
        if core.store.about().text_only {
            some.iter().try_for_each(|it| push::check_text(it))?;
        }
        let room = self.queue.room(&paths).await?.unwrap_or(usize::MAX);
        let (some, over) = some.split_at(some.len().min(room));
        let mut ids = Vec::with_capacity(some.len());
        let mut commit = Commit::new();
        for payload in some {
            let id = JobId::generated(core.job_tag(), self.priority);
            let put = Put::new(paths.job(&id)?, payload.clone(), Expiry::Never);
            commit = commit.put(put.when(Condition::Absent));
            ids.push(id);
        }
        let Some(last) = ids.last() else {
            return Ok(Vec::new());
        };
        let last = paths.job(last)?;
        let created = outcome::create_by(core, &last, &Making::Commit(commit)).await;
        let index = match created.map_err(unknown)? {
            // The names are ours alone, so what is there, or was, is the commit.
            Created::Made { at, .. } | Created::Found { at, .. } | Created::Gone { at, .. } => at,
        };
        core.saw(index);
        let pushed = ids.into_iter().map(|id| {
            Ok(Pushed {
                id,
                index,
                duplicate: false,
            })
        });
        let full = over.iter().map(|_| {
            let text = "there was room for the jobs before this one only";
            Err(Error::new(ErrorKind::Full, text)
                .during("push")
                .at(&paths.jobs))
        });
        Ok(pushed.chain(full).collect())
    }
}

impl IntoFuture for Batch {
    type Output = Vec<Result<Pushed>>;
    type IntoFuture = BoxFuture<'static, Vec<Result<Pushed>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// What a commit failed with, for each of its jobs.
fn unknown(error: Error) -> Error {
    if error.changed_nothing() {
        return error;
    }
    error.into_kind(
        ErrorKind::Ambiguous,
        "either all the jobs of this write are there, or may come, or none",
    )
}

/// What is said of the jobs after the first that failed.
fn untried(first: &Error) -> Error {
    let kind = if first.changed_nothing() {
        first.kind()
    } else {
        ErrorKind::Unavailable
    };
    let text = "not sent, because a job before it was not pushed";
    let error = Error::new(kind, text).during("push");
    match first.key() {
        Some(key) => error.at(key),
        None => error,
    }
}
