//! Sending one request and understanding its answer: what all operations of the driver share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, Method};

use super::access::Accepted;
use super::clocks::Warned;
use super::error::{Access, refused, unreadable};
use super::lease::Leases;
use super::members::Members;
use super::request::{self, Params};
use super::wire::Body;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::{Instant, Runtime};
use crate::transport::{Answer, Call, Repeat, Transport};

/// What every operation needs.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) transport: Transport,
    pub(super) runtime: Runtime,
    pub(super) name: Arc<str>,
    pub(super) max_skew: Duration,
    pub(super) poll_period: Duration,
    pub(super) watch_patience: Duration,
    pub(super) watchdog_period: Duration,
    pub(super) leases: Leases,
    pub(super) members: Members,
    pub(super) warned: Warned,
    /// The cluster that the first answer came from.
    pub(super) cluster: OnceLock<Box<str>>,
    pub(super) options: Options,
    pub(super) accepted: Accepted,
}

/// What the keys client can read back.
#[derive(Debug)]
pub(super) struct Options {
    /// Begins with `/` and does not end with one.
    pub(super) version_prefix: String,
    pub(super) user: Option<String>,
    pub(super) allow_reconnect: bool,
    pub(super) allow_redirect: bool,
    pub(super) use_proxies: bool,
    pub(super) timeout: Duration,
    pub(super) max_idle: usize,
}

/// A success.
#[derive(Debug)]
pub(super) struct Reply {
    /// The server's index when it answered.
    pub(super) index: Index,
    pub(super) body: Body,
    pub(super) raft: Raft,
    pub(super) server: Arc<str>,
}

/// Where raft was, as far as the server tells.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raft {
    pub(super) index: Option<u64>,
    pub(super) term: Option<u64>,
}

impl Driver {
    pub(super) fn deadline(&self) -> Instant {
        self.transport.deadline()
    }

    /// The same for a caller who does not listen for longer than this.
    pub(super) fn deadline_within(&self, patience: Option<Duration>) -> Instant {
        let sooner = patience.map(|patience| self.runtime.clock.now() + patience);
        sooner.map_or_else(|| self.deadline(), |sooner| sooner.min(self.deadline()))
    }

    /// A GET or DELETE of a key.
    pub(super) fn query(&self, method: Method, key: &Key, params: &Params) -> Result<Call> {
        request::query(&self.options.version_prefix, method, key, params)
    }

    /// A PUT or POST of a key.
    pub(super) fn form(&self, method: Method, key: &Key, params: Params) -> Result<Call> {
        request::form(&self.options.version_prefix, method, key, params)
    }

    /// Sends a GET, to the endpoint `skip` places after the current one first.
    pub(super) async fn read(&self, call: &Call, skip: usize, deadline: Instant) -> Result<Reply> {
        self.exchange(call, Access::Read, Repeat::Harmless, skip, deadline)
            .await
    }

    /// Sends a write; only if `repeat` allows it again after it may have been sent.
    pub(super) async fn write(
        &self,
        call: &Call,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<Reply> {
        self.exchange(call, Access::Write, repeat, 0, deadline)
            .await
    }

    /// Sends any request; an answer that is no success is an error.
    pub(super) async fn ask(
        &self,
        call: &Call,
        access: Access,
        repeat: Repeat,
        skip: usize,
        deadline: Instant,
    ) -> Result<Answer> {
        self.refresh_members(deadline).await;
        let answer = self.transport.call(call, repeat, skip, deadline).await?;
        let place = |error: Error| error.on(&*answer.server);
        self.check_cluster(&answer.headers).map_err(place)?;
        self.accepted.note(call, answer.status);
        if answer.status.is_success() {
            return Ok(answer);
        }
        let error = refused(answer.status, &answer.body, access);
        // A body of a refusal has the index too, but not every one.
        let error = place(match (error.index(), etcd_index(&answer.headers)) {
            (None, Some(index)) => error.seen_at(index),
            _ => error,
        });
        Err(self.explained(error, deadline).await)
    }

    async fn exchange(
        &self,
        call: &Call,
        access: Access,
        repeat: Repeat,
        skip: usize,
        deadline: Instant,
    ) -> Result<Reply> {
        let answer = self.ask(call, access, repeat, skip, deadline).await?;
        let server = answer.server.clone();
        let place = |error: Error| error.on(&*server);
        let body = serde_json::from_slice(&answer.body)
            .map_err(|cause| place(unreadable(&answer.body, access, cause)))?;
        self.note_expiration(call, &answer, &body);
        let index = etcd_index(&answer.headers).ok_or_else(|| {
            let text = "the answer has no X-Etcd-Index: is this an etcd v2 endpoint?";
            place(Error::new(access.misunderstood(), text))
        })?;
        Ok(Reply {
            index,
            body,
            raft: raft(&answer.headers),
            server,
        })
    }

    /// Learns the cluster from the first answer and compares it with every later one.
    pub(super) fn check_cluster(&self, headers: &HeaderMap) -> Result<()> {
        let Some(id) = headers
            .get("x-etcd-cluster-id")
            .and_then(|it| it.to_str().ok())
        else {
            return Ok(());
        };
        let known = self.cluster.get_or_init(|| id.into());
        if **known == *id {
            return Ok(());
        }
        let text = format!("this is cluster {id}, and so far it was {known}");
        Err(Error::new(ErrorKind::ClusterChanged, text))
    }
}

/// The index that an answer's headers tell; a zero there means that the server does not say.
pub(super) fn etcd_index(headers: &HeaderMap) -> Option<Index> {
    Index::new(number(headers, "x-etcd-index")?)
}

/// Where raft was, as an answer's headers tell.
pub(super) fn raft(headers: &HeaderMap) -> Raft {
    Raft {
        index: number(headers, "x-raft-index"),
        term: number(headers, "x-raft-term"),
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
