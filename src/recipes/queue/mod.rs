//! A queue of jobs in the order of their appends, each delivered at least once.
//!
//! # Protocol
//! A job is a node that is written once and deleted last. All that changes about it is its
//! **register**, a node of its own, by compare-and-swap on its value and index: absent or `ready n
//! not-before`, `claimed n consumer nonce`, `done n nonce`, `dead n reason`. A **consumer** is a
//! node on its session's lease, beside the registers; what it has claimed is its own for as long as
//! that node lives, so renewals cost per process, and nothing per job.
//!
//! 1. **View.** Each consumer follows the queue's tree: jobs (without payloads), registers,
//!    consumers, at one index. A claim whose consumer is not in that view is a dead one's: the
//!    node was there before the claim.
//! 2. **Whose.** Open jobs in order (higher lane first, then by their append) are paired with the
//!    free slots of all consumers, in the order in which the changes of the queue freed them. All
//!    who have seen the same changes pair alike, so nobody races for the head. Who lets a job
//!    pass for three times as long as claims take of late (50 ms to 2 s, 300 ms at first) is passed
//!    over until it claims again. This is only about cost: what counts is step 3.
//! 3. **Claim** by one compare-and-swap to `claimed n+1`. Then the job is read, at an index not
//!    before the claim's; if it is gone, so is the register.
//! 4. **Ack**: `claimed` to `done`, then the job is deleted, as it was read; where the store has
//!    commits, in one step. **Nack**: to `ready`, or to `dead` after the last attempt; the job
//!    never moves.
//! 5. A claim that came late and that nobody here knows of is put back on sight. Whoever sees a
//!    job that is done, 2 to 4 s later, deletes it; and, after 10 min, a register without a job.
//!
//! # What is guaranteed
//! * A job that was appended is delivered until it is acked, given up or purged.
//! * One that was acked is not delivered again (see below for the one exception).
//! * A job is held by at most one delivery at a time, under the same assumptions as a
//!   [lock](super::lock). **No assumption** is needed for its tokens to rise, nor for this: an ack
//!   that comes after another consumer has claimed the job is [`ClaimLost`] and changes nothing.
//! * One consumer with one slot sees exactly the order of the appends (of each lane). Of several, a
//!   job is first claimed only while fewer older ones are open than they have slots together,
//!   unless one of them let its own pass.
//! * What a dead consumer held is delivered again within the TTL and 0.7 s. An outage shorter than
//!   the term loses nothing.
//! * A job is given up after `max_attempts` deliveries, dead consumers counted.
//!
//! # What is not guaranteed
//! * Exactly one delivery: hand the [token](Delivery::token) to whatever the effect is on.
//! * On stores without commits (etcd v2) an acked job comes again if its consumer dies between the
//!   two writes of the ack and no consumer of the queue runs before the dedupe window (10 min or
//!   more) ends.
//! * That a counted attempt was seen by anybody: a consumer that dies between its claim and its
//!   delivery has used one up.
//! * Delays compare wall clocks of two machines.
//!
//! # Cost
//! | | writes (proposals) on etcd v2 | with commits |
//! |---|---|---|
//! | append | 1 | 1 |
//! | claim | 1, and a read | 1, and a read |
//! | ack | 2, of which 1 is waited for | 1 |
//! | nack, reject, drop | 1 | 1 |
//! | a consumer's node, each TTL/3 | 1 | nothing of its own |
//!
//! With commits, claims that are ready at the same moment share one write, and so do acks: a consumer
//! of 64 slots writes about once in ten jobs of no duration.
//!
//! Memory: about 350 bytes for each job that lies there, in each consumer. etcd v2 sends one change
//! in each answer, to each consumer: about four a job.
//!
//! # Cancel safety
//! Dropping a [`Consumer`], a future of its next item, or a [`Delivery`] loses no job; an ack or a
//! nack that was begun is ended in the background.
//!
//! [`ClaimLost`]: crate::ErrorKind::ClaimLost

mod admin;
mod batch;
mod census;
mod claim;
mod class;
mod consumer;
mod delivery;
mod driver;
mod errand;
mod job;
mod machine;
mod mend;
mod outcome;
mod paths;
mod plan;
mod push;
mod register;
mod registration;
mod step;
mod together;
mod view;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use batch::Batch;
pub use census::{Claimant, JobInfo, JobState, Stats};
pub use consumer::Consumer;
pub use delivery::{Delivery, Job};
pub use job::{JobId, Priority};
pub use mend::{Mend, MendAll};
use paths::Paths;
pub use push::{Push, Pushed};
pub use worker::{Progress, Report, Worker};

use crate::client::{Core, Keep};
use crate::error::Result;
use crate::key::{Key, Name, Ttl};

/// A queue that all clients of one store share by its name. Made by
/// [`Client::queue`](crate::Client::queue). Cloning is cheap.
#[derive(Clone)]
pub struct Queue {
    core: Arc<Core>,
    paths: Result<Paths>,
    keep: Result<Keep>,
    /// How many jobs there may be.
    bound: Option<usize>,
}

impl Queue {
    pub(crate) fn named(core: Arc<Core>, name: &str, ttl: Ttl) -> Self {
        Self {
            core,
            paths: Name::new(name).and_then(|name| Paths::named(&name)),
            keep: Ok(Keep::Shared(ttl)),
            bound: None,
        }
    }

    pub(crate) fn raw(core: Arc<Core>, jobs: Result<Key>, ttl: Ttl) -> Self {
        Self {
            core,
            paths: jobs.and_then(Paths::raw),
            keep: Ok(Keep::Shared(ttl)),
            bound: None,
        }
    }

    /// How long after a consumer's death its jobs can stay undelivered; 1 s to 24 h. A value out
    /// of range is reported by the first use.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.keep = Ttl::new(ttl).map(Keep::Shared);
        self
    }

    /// A stream of deliveries that takes `slots` jobs (1 to 1,000) at once. With one, it sees
    /// exactly the order of the appends. Nothing is sent before it is polled.
    pub fn consumer(&self, slots: usize) -> Consumer {
        Consumer::new(consumer::Options::new(self.clone(), slots))
    }

    /// A loop that does the jobs, several at once if it is told to. Nothing is sent before it is
    /// run.
    pub fn worker(&self) -> Worker {
        Worker::new(self.clone())
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("paths", &self.paths)
            .field("ttl", &self.keep.as_ref().map(Keep::ttl))
            .finish_non_exhaustive()
    }
}
