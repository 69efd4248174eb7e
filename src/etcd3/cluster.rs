//! What a cluster tells of itself: its members, and how each server is.

use std::sync::Arc;

use futures_util::future::join_all;

use super::Etcd3;
use super::driver::bytes;
use super::proto::{MemberEntry, MemberListRequest, RangeRequest, StatusRequest, StatusResponse};
use super::rpc::Wire;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::Instant;
use crate::transport::Endpoint;

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty until it has started for the first time.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it, as it says itself; none until it has started.
    pub client_urls: Vec<String>,
    /// Whether it only learns and does not vote.
    pub is_learner: bool,
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Which member it is.
    pub member: u64,
    /// Whom it takes for the leader, if it knows one. A leader that was cut off goes on claiming
    /// to be it for a while.
    pub leader: Option<u64>,
    /// Its version: `3.4.23`.
    pub version: String,
    /// Bytes that its database takes on disk.
    pub db_size: u64,
    /// Bytes of these that are in use; the rest comes back by a defragmentation.
    pub db_size_in_use: u64,
    /// Raft's term.
    pub raft_term: u64,
    /// The last entry of raft's log that is committed.
    pub raft_index: u64,
    /// The last entry that it has applied.
    pub raft_applied_index: u64,
    /// Whether it only learns and does not vote.
    pub is_learner: bool,
    /// What is wrong, in its own words: raised alarms (`NOSPACE`, `CORRUPT`), no leader.
    pub errors: Vec<String>,
}

impl Status {
    /// Whether it takes itself for the leader.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.member)
    }
}

/// What one server said of itself, or why it said nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Which one: `http://host:port`.
    pub server: String,
    /// What it said.
    pub status: Result<Status>,
}

/// How one server is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Health {
    /// Which one: `http://host:port`.
    pub server: String,
    /// Whether it answers a linearizable read, and no alarm is raised; else why not.
    pub healthy: Result<()>,
}

/// Facts of the cluster. None of them costs a proposal, or needs a permission.
impl Etcd3 {
    /// All members of the cluster. One request to one server, or to the next if it does not answer;
    /// etcd before 3.5 answers what that server knows, which may be old while it is cut off.
    ///
    /// # Errors
    /// Those of every read: `Unreachable`, `Timeout`, `Unavailable`, `Unauthorized`, `Protocol`,
    /// `ClusterChanged`.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn members(&self) -> Result<Vec<Member>> {
        let request = MemberListRequest { linearizable: true };
        let wire = &self.0.wire;
        let answer = wire.ask_any(&request, wire.deadline()).await;
        let answer = answer.map_err(|error| error.during("members"))?;
        Ok(answer.members.into_iter().map(Member::of).collect())
    }

    /// What every server that this client knows says of itself: one request each, all at once. One
    /// that does not answer within an attempt (a third of [`timeout`](super::Builder::timeout) at
    /// most) is reported, not an error.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn status(&self) -> Vec<ServerStatus> {
        let each = self.each().await;
        let asked = each.iter().map(async |(endpoint, until)| ServerStatus {
            server: endpoint.origin.to_string(),
            status: self.0.wire.status(endpoint, *until).await,
        });
        join_all(asked).await
    }

    /// How every server that this client knows is: two requests each, all at once. One that does
    /// not answer both within an attempt (a third of [`timeout`](super::Builder::timeout) at most) is
    /// reported, not an error.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn health(&self) -> Vec<Health> {
        let each = self.each().await;
        let asked = each.iter().map(async |(endpoint, until)| Health {
            server: endpoint.origin.to_string(),
            healthy: self.0.wire.health(endpoint, *until).await,
        });
        join_all(asked).await
    }

    /// The id of the cluster, once a server has answered: for
    /// [`expected_cluster_id`](super::Builder::expected_cluster_id). Asks nobody.
    pub fn cluster_id(&self) -> Option<u64> {
        self.0.wire.cluster.get().copied()
    }

    /// Every server, and until when it may answer.
    async fn each(&self) -> Vec<(Arc<Endpoint>, Instant)> {
        let wire = &self.0.wire;
        wire.refresh_members(wire.deadline()).await;
        let until = wire.stream_limits().answer;
        let all = wire.endpoints.all();
        all.iter().map(|it| (it.clone(), until)).collect()
    }
}

impl Wire {
    async fn status(self: &Arc<Self>, endpoint: &Arc<Endpoint>, until: Instant) -> Result<Status> {
        let answer = self.once(&StatusRequest {}, endpoint, false, until).await;
        let answer = answer.map_err(|trouble| trouble.into_error(&endpoint.origin));
        answer.map(Status::of).map_err(|it| it.during("status"))
    }

    async fn health(self: &Arc<Self>, endpoint: &Arc<Endpoint>, until: Instant) -> Result<()> {
        let request = RangeRequest {
            key: bytes(&Key::new("/_tenure/probe")?),
            ..RangeRequest::default()
        };
        let read = self.once(&request, endpoint, true, until).await;
        let read = read.map_err(|trouble| trouble.into_error(&endpoint.origin));
        match read.map_err(|it| it.during("health")) {
            // That this user may not read that key is a sign of life too.
            Err(error) if error.kind() != ErrorKind::Forbidden => return Err(error),
            _ => {}
        }
        let status = self.status(endpoint, until).await?;
        if status.errors.is_empty() {
            return Ok(());
        }
        let text = format!("the server says: {}", status.errors.join("; "));
        let error = Error::new(ErrorKind::Unavailable, text).during("health");
        Err(error.on(&*endpoint.origin))
    }
}

impl Member {
    fn of(entry: MemberEntry) -> Self {
        Self {
            id: entry.id,
            name: entry.name,
            peer_urls: entry.peer_urls,
            client_urls: entry.client_urls,
            is_learner: entry.is_learner,
        }
    }
}

impl Status {
    fn of(answer: StatusResponse) -> Self {
        Self {
            member: answer.header.map_or(0, |it| it.member_id),
            leader: Some(answer.leader).filter(|it| *it != 0),
            version: answer.version,
            db_size: u64::try_from(answer.db_size).unwrap_or(0),
            db_size_in_use: u64::try_from(answer.db_size_in_use).unwrap_or(0),
            raft_term: answer.raft_term,
            raft_index: answer.raft_index,
            raft_applied_index: answer.raft_applied_index,
            is_learner: answer.is_learner,
            errors: answer
                .errors
                .iter()
                .map(|it| it.trim().to_owned())
                .collect(),
        }
    }
}
