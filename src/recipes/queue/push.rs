//! Pushing one job.
//!
//! # Protocol
//! 1. With a delay, the **register** first: `ready 0 <not before>`, if there is none. It ends by
//!    itself some time after the delay: a job without a register is ready, so that changes nothing,
//!    and a producer that dies here leaves nothing.
//! 2. The **job**: its payload under its own name, if that is absent. Pushed without an id it has
//!    a name that nobody else makes, so however often this is sent, there is one job.
//! 3. With an id, a delay, or after a lost answer, the register is **read** at an index at which
//!    the job was there. `done`: it was done before; the job is deleted again, as whoever sees a
//!    job that is done does. A leftover of another delay is put right.
//!
//! On a raw queue a job without id, priority and delay is a plain append, which the store names:
//! after a lost answer nothing tells whether it is there.
//!
//! # What is guaranteed
//! * A push that was answered is one job. One that ends as `Ambiguous` is at most one. Any other
//!   error leaves none.
//! * Of all pushes with one id and one priority, from the first until the job is done and for 10
//!   minutes more, one makes a job. A request that comes later than that after it was sent can
//!   make a job again.
//! * Two concurrent pushes of one id with different delays: either delay can count.
//!
//! # Cost
//! 1 write, 1 round trip. With an id 1 local read more, with a delay 1 write and 1 read more.

use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::job::{JobId, Priority};
use super::outcome::{self, Created, Found, Verdict};
use super::paths::Paths;
use super::register::{self, Register};
use super::{Batch, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, Name, Ttl};
use crate::store::{Append, Expiry, Freshness, Get, Put, Store};

/// How long a push tries to find out what became of it, unless it is told otherwise.
pub(super) const BUDGET: Duration = Duration::from_secs(15);
/// How long after its delay a register stays, for clocks that differ.
const SLACK: Duration = Duration::from_secs(3_600);

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// What the job is called.
    pub id: JobId,
    /// An index of the store by which it was there.
    pub index: Index,
    /// Whether the job of this id had been pushed before: nothing was added.
    pub duplicate: bool,
}

impl Queue {
    /// Adds a job: `queue.push("payload").await`. See [`Push`] for what can be said about it.
    ///
    /// The payload is kept as it is, up to what the store takes: etcd v3 any bytes, in requests of up
    /// to 1.5 MiB unless its `--max-request-bytes` says otherwise; etcd v2 UTF-8, up to 10 MiB once it
    /// is escaped.
    ///
    /// # Errors
    /// * [`InvalidName`](ErrorKind::InvalidName), [`InvalidValue`](ErrorKind::InvalidValue),
    ///   [`Closed`](ErrorKind::Closed): nothing was sent.
    /// * [`Full`](ErrorKind::Full): the queue is [bounded](Self::bound).
    /// * [`Ambiguous`](ErrorKind::Ambiguous): the job may be there, or still come. With an
    ///   [id](Push::id) it is harmless to push it again.
    /// * [`Timeout`](ErrorKind::Timeout): the time ran out before the job was sent.
    /// * What else the store says: nothing was added.
    ///
    /// # Cancel safety
    /// Dropping the future leaves one job or none. What it may leave besides, the note of a delay,
    /// ends by itself within an hour of it (of a delay of more than 22 hours: when a consumer sees
    /// it without its job).
    pub fn push(&self, payload: impl Into<Bytes>) -> Push {
        Push::new(self.clone(), payload.into())
    }

    /// Adds jobs in this order, with an answer for each: see [`Batch`].
    pub fn push_all<P: Into<Bytes>>(&self, payloads: impl IntoIterator<Item = P>) -> Batch {
        Batch::new(self.clone(), payloads.into_iter().map(Into::into).collect())
    }

    /// Refuses pushes through this value while `limit` jobs or more are there, dead ones included.
    ///
    /// The bound is approximate: of the producers that push at once each can still add one. It is
    /// for those who ask for it; other producers are not held back.
    ///
    /// Cost: a linearizable list of the jobs at each push. etcd v2 answers that with the payloads:
    /// for short queues of small jobs only.
    #[must_use]
    pub fn bound(mut self, limit: usize) -> Self {
        self.bound = Some(limit);
        self
    }

    /// How many more jobs there may be; `None` without a bound.
    pub(super) async fn room(&self, paths: &Paths) -> Result<Option<usize>> {
        let Some(limit) = self.bound else {
            return Ok(None);
        };
        let list = Get::children(paths.jobs.clone()).keys_only();
        let view = self.core.store.get(list).await?;
        self.core.saw(view.index);
        let jobs = view.nodes.iter().filter(|node| !node.is_dir).count();
        if jobs >= limit {
            let text = format!("{jobs} jobs are there, of at most {limit}");
            return Err(Error::new(ErrorKind::Full, text).at(&paths.jobs));
        }
        Ok(Some(limit - jobs))
    }

    /// What must be right before anything is sent.
    pub(super) fn begin(&self, operation: &'static str) -> Result<Paths> {
        let paths = self.paths.clone()?;
        self.core
            .open()
            .map_err(|error| error.during(operation).at(&paths.jobs))?;
        Ok(paths)
    }
}

/// A pending [`Queue::push`]. Does nothing until awaited.
#[derive(Clone, Debug)]
#[must_use = "a push does nothing until awaited"]
pub struct Push {
    queue: Queue,
    payload: Bytes,
    id: Option<Result<Name>>,
    priority: Priority,
    due: Due,
    timeout: Duration,
}

/// When a job may be delivered.
#[derive(Clone, Copy, Debug)]
enum Due {
    Now,
    /// So long after the push is awaited.
    After(Duration),
    /// At this time since 1970.
    At(Duration),
}

impl Push {
    pub(super) fn new(queue: Queue, payload: Bytes) -> Self {
        Self {
            queue,
            payload,
            id: None,
            priority: Priority::NORMAL,
            due: Due::Now,
            timeout: BUDGET,
        }
    }

    /// Says what the job is: of all pushes with the same id and priority, until 10 minutes after
    /// it is done, one adds a job, and the others are [duplicates](Pushed::duplicate). 1 to 512
    /// bytes without control characters.
    pub fn id(mut self, id: impl AsRef<str>) -> Self {
        self.id = Some(Name::new(id));
        self
    }

    /// The lane: jobs of a higher one come first. [`Priority::NORMAL`] unless said.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Not to be delivered before so long from when this is awaited. By the wall clocks of the
    /// producer and of the consumers.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.due = Due::After(delay);
        self
    }

    /// Not to be delivered before this time, by the wall clocks of the consumers.
    pub fn at(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        self.due = Due::At(since.unwrap_or_default());
        self
    }

    /// How long it may take in all, finding out what became of it included; 15 s unless said.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<Pushed> {
        let paths = self.queue.begin("push")?;
        let job = Job::new(&self, &paths).map_err(|error| error.at(&paths.jobs))?;
        let outcome = tokio::select! {
            biased;
            outcome = job.push() => outcome,
            () = self.queue.core.runtime.clock.sleep(self.timeout) => Err(job.out_of_time()),
        };
        match &outcome {
            Ok(pushed) => self.queue.core.saw(pushed.index),
            Err(error) => {
                tracing::debug!(target: "tenure::queue", jobs = %paths.jobs, %error, "push failed");
            }
        }
        outcome.map_err(|error| error.during("push").at(&paths.jobs))
    }
}

impl IntoFuture for Push {
    type Output = Result<Pushed>;
    type IntoFuture = BoxFuture<'static, Result<Pushed>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// One job on its way.
struct Job<'a> {
    push: &'a Push,
    paths: &'a Paths,
    /// What it is called; the store says if `None`.
    id: Option<JobId>,
    /// The time before which it is not delivered, since 1970; zero without a delay.
    not_before: Duration,
    /// For how long the register stays that says so.
    expiry: Expiry,
    /// Whether the job may have been sent.
    sent: AtomicBool,
}

impl<'a> Job<'a> {
    fn new(push: &'a Push, paths: &'a Paths) -> Result<Self> {
        let core = &push.queue.core;
        let now = core.runtime.clock.wall();
        if core.store.about().text_only {
            check_text(&push.payload)?;
        }
        let not_before = match push.due {
            Due::Now => Duration::ZERO,
            Due::After(delay) => now.saturating_add(delay),
            Due::At(time) => time,
        };
        // What is due by now has no delay.
        let not_before = if not_before > now {
            register::not_before(not_before, Duration::ZERO)
        } else {
            Duration::ZERO
        };
        let plain = not_before.is_zero() && push.priority == Priority::NORMAL;
        let id = match &push.id {
            Some(id) => Some(JobId::chosen(&id.clone()?, push.priority)),
            None if paths.is_raw && plain => None,
            None => Some(JobId::generated(core.job_tag(), push.priority)),
        };
        let lasts = not_before.saturating_sub(now) + SLACK;
        Ok(Self {
            push,
            paths,
            id,
            not_before,
            expiry: Ttl::new(lasts).map_or(Expiry::Never, Expiry::After),
            sent: AtomicBool::new(false),
        })
    }

    async fn push(&self) -> Result<Pushed> {
        self.push.queue.room(self.paths).await?;
        let Some(id) = &self.id else {
            return self.append().await;
        };
        let (job, register) = (self.paths.job(id)?, self.paths.register(id)?);
        let noted = if self.not_before.is_zero() {
            None
        } else {
            match self.note(&job, &register).await? {
                Noted::At(index) => Some(index),
                Noted::Duplicate(index) => return Ok(self.pushed(id, index, true)),
            }
        };
        self.sent.store(true, Ordering::Release);
        let put = Put::new(job.clone(), self.push.payload.clone(), Expiry::Never);
        let core = &self.push.queue.core;
        let created = match outcome::create(core, put).await {
            Ok(created) => created,
            Err(error) if error.changed_nothing() => {
                if let Some(index) = noted {
                    // It also ends by itself.
                    drop(outcome::remove(core, &register, index).await);
                }
                return Err(error);
            }
            Err(error) => return Err(self.unknown(error)),
        };
        let (made, again) = match created {
            Created::Made { at, again } => (at, again),
            Created::Found { node, ours, at } => {
                if self.is_chosen() && !(ours && node.value == self.push.payload) {
                    return Ok(self.pushed(id, at, true));
                }
                (node.modified, true)
            }
            Created::Gone { ours, at } => {
                return Ok(self.pushed(id, at, self.is_chosen() && !ours));
            }
        };
        let mut duplicate = false;
        if self.is_chosen() || noted.is_some() || again {
            let settled = self.settle(&register, Freshness::AtLeast(made)).await;
            if settled.map_err(|error| self.unknown(error))? {
                // Whoever sees it deletes it, too.
                drop(outcome::remove(core, &job, made).await);
                duplicate = self.is_chosen();
            }
        }
        Ok(self.pushed(id, made, duplicate))
    }

    /// What plain producers do.
    async fn append(&self) -> Result<Pushed> {
        self.sent.store(true, Ordering::Release);
        let jobs = self.paths.jobs.clone();
        let append = Append::raw(jobs, self.push.payload.clone(), Expiry::Never);
        let appended = self.push.queue.core.store.append(append).await;
        let node = match appended {
            Ok(appended) => appended.node,
            Err(error) if error.changed_nothing() => return Err(error),
            Err(error) => return Err(self.unknown(error)),
        };
        let id = Paths::id_in(&self.paths.jobs, &node.key).ok_or_else(|| {
            let text = "the store gave the job a name outside the queue";
            Error::new(ErrorKind::Protocol, text).at(&node.key)
        })?;
        Ok(self.pushed(&id, node.created, false))
    }

    /// Writes down the delay, unless the job is there already.
    async fn note(&self, job: &Key, register: &Key) -> Result<Noted> {
        let core = &self.push.queue.core;
        let note = self.delayed().value();
        let put = Put::new(register.clone(), note.clone(), self.expiry);
        let late = |error: Error| {
            if error.changed_nothing() {
                return error;
            }
            error.into_kind(
                ErrorKind::Timeout,
                "the delay could not be written down, and the job was not sent",
            )
        };
        match outcome::create(core, put).await.map_err(late)? {
            Created::Made { at, .. } => return Ok(Noted::At(at)),
            Created::Found { node, .. } if node.value == note => {
                return Ok(Noted::At(node.modified));
            }
            // Somebody pushes this id, has pushed it, or died before the job was sent.
            Created::Found { node, at, .. } => {
                let done = matches!(
                    Found::in_node(Some(&node)),
                    Found::Register(Register::Done { .. })
                );
                let there = !done
                    && !core
                        .store
                        .get(Get::node(job.clone()).keys_only())
                        .await?
                        .nodes
                        .is_empty();
                if done || there {
                    return Ok(Noted::Duplicate(at));
                }
            }
            Created::Gone { .. } => {}
        }
        let settled = self.settle(register, Freshness::Linearizable).await;
        let done = settled.map_err(late)?;
        let view = core.store.get(Get::node(register.clone())).await?;
        if done {
            return Ok(Noted::Duplicate(view.index));
        }
        Ok(Noted::At(
            view.nodes.first().map_or(view.index, |node| node.modified),
        ))
    }

    /// Makes the register of a job that has never been delivered say what this push says; tells
    /// whether the job is done.
    async fn settle(&self, register: &Key, fresh: Freshness) -> Result<bool> {
        let core = &self.push.queue.core;
        let now = core.runtime.clock.wall();
        let expiry = self.expiry;
        outcome::swap(core, register, fresh, |seen| {
            Ok(match seen.register {
                Found::Register(Register::Done { .. }) => Verdict::Leave(true),
                Found::Register(Register::Ready {
                    attempts: 0,
                    not_before,
                }) if not_before != self.not_before && not_before > now => {
                    Verdict::Write(self.delayed(), expiry, false)
                }
                Found::Nothing if !self.not_before.is_zero() => {
                    Verdict::Write(self.delayed(), expiry, false)
                }
                _ => Verdict::Leave(false),
            })
        })
        .await
    }

    fn delayed(&self) -> Register {
        Register::Ready {
            attempts: 0,
            not_before: self.not_before,
        }
    }

    fn is_chosen(&self) -> bool {
        self.push.id.is_some()
    }

    fn pushed(&self, id: &JobId, index: Index, duplicate: bool) -> Pushed {
        Pushed {
            id: id.clone(),
            index,
            duplicate,
        }
    }

    fn out_of_time(&self) -> Error {
        let text = format!("no certain answer within {:?}", self.push.timeout);
        let error = Error::new(ErrorKind::Timeout, text);
        if self.sent.load(Ordering::Acquire) {
            return self.unknown(error);
        }
        error
    }

    /// The job was sent, and it is not known what became of it.
    fn unknown(&self, error: Error) -> Error {
        let note = match &self.id {
            Some(id) if self.is_chosen() => {
                format!("job {id} may be there, or come; pushing its id again is harmless")
            }
            Some(id) => format!(
                "job {id} may be there, or come; pushing again can be pushing twice, unless it \
                 has an id"
            ),
            None => "the store names the job, so nothing tells whether it is there; pushing \
                     again can be pushing twice, unless it has an id"
                .into(),
        };
        error.into_kind(ErrorKind::Ambiguous, &note)
    }
}

/// What became of the note of a delay.
enum Noted {
    /// It was written at this index.
    At(Index),
    /// The job is there, or was done, as of this index.
    Duplicate(Index),
}

pub(super) fn check_text(payload: &[u8]) -> Result<()> {
    std::str::from_utf8(payload).map(drop).map_err(|cause| {
        let text = "this store keeps only UTF-8: encode a binary payload, for instance as base64";
        Error::new(ErrorKind::InvalidValue, text).caused_by(cause)
    })
}
