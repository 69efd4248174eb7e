//! Looking at a queue.
//!
//! A look is one read of the whole queue at one index (of a raw queue two: the jobs, then their
//! registers at that index or later, so that no job is taken for ready because the news of its
//! claim was older). The payloads are read with it.

use bytes::Bytes;

use super::Queue;
use super::census::{Census, JobInfo, JobState, Stats};
use super::job::JobId;
use super::paths::Paths;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Freshness, Get, Node, Store};

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

    /// The jobs that were given up, with those whose purge was cut short if they are to be purged.
    pub(super) async fn given_up(
        &self,
        operation: &'static str,
        half_purged: bool,
    ) -> Result<Vec<JobId>> {
        let paths = self.begin(operation)?;
        let census = self.census(operation, &paths).await?;
        let dead = census.jobs();
        let dead = dead.filter(|job| matches!(job.state, JobState::Dead { .. }));
        let dead = dead.map(|job| job.id);
        let half = census.half_purged().filter(|_| half_purged);
        Ok(dead.chain(half.cloned()).collect())
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
