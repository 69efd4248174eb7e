//! A queue of jobs in the order of their appends, each delivered at least once.

mod admin;
mod batch;
mod census;
mod claim;
mod consumer;
mod delivery;
mod driver;
mod job;
mod machine;
mod outcome;
mod paths;
mod push;
mod register;
mod registration;
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
