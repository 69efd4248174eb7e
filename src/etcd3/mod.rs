//! The store on etcd's v3 API, by gRPC: etcd 3.4 and later.
//!
//! | the contract | here |
//! |---|---|
//! | linearizable read | no proposal; a read that names an index is answered by the server at hand if that has reached it |
//! | ticket | `<lease>-<nonce>` in order of creation, in one transaction that also reads who is before it |
//! | lease | a real one; all are kept alive on one stream, without a proposal |
//! | watch | all on one stream, which moves to another server when its own is silent or without a leader |
//! | commit | one transaction of at most 128 operations |
//!
//! # What to know about v3
//! * **There are no directories.** Every key is independent of those above and below it: a write
//!   to `/a` is not refused because `/a/b` is there, nor the other way round. A key below which
//!   others lie, and which is not written itself, reads as a directory whose indexes are those of
//!   the creation of its first key, and lists show it so; a *page* of a list shows none. Deleting a
//!   tree is one event for each key, all at one index.
//! * A time-to-live below five minutes is a lease of its own, a proposal more at the write and one
//!   at the end. A longer one is a lease that is shared by writes of about that length: what hangs
//!   on it can live up to a quarter longer. Nodes name their lease and not how
//!   long they have left. They are there until the server has revoked the lease, up to about half
//!   a second after its end, for every reader alike.
//! * A deletion does not tell whether it was an expiry.
//! * A [`Commit`] of more than 128 operations, or of conditions that need more than 128
//!   comparisons, is `InvalidOptions`.
//! * A raw append takes a name of 20 digits that is larger than all that are there, by a
//!   transaction that is tried again when somebody else was quicker.
//! * **v2 and v3 of one etcd are two stores**: neither sees the other's keys, and a lock of one does
//!   not keep out who takes it by the other.
//!
//! # What it costs
//! | what | proposals | requests |
//! |---|---|---|
//! | any read of a node, any page of a list | 0 | 1 |
//! | put, delete, commit, append of a ticket with those before it | 1 | 1 |
//! | put with a time-to-live of its own | 2 | 2 |
//! | lease: grant, revoke | 1 | 1 |
//! | lease: renewal | 0 | 1 message on a stream |
//! | watch | 0 | 1 message on a stream; [`Builder::watchdog_period`] 1 more for all of them |
//! | withdrawal of what may have been appended | 1 | 1; now and then 1 more for a lease of marks |
//! | lock and unlock, uncontended | 2 | 2 |
//!
//! Reads that take more than twice what is normal are asked of a second server too.
//!
//! # Which etcd
//! 3.4 and later; developed on 3.4.23. Only calls are used that all of them have, and neither the
//! Lock nor the Election service. `etcdctl lock`, `etcdctl elect` and Go's `concurrency` stand in
//! the same lines.
//!
//! Not supported: `etcd grpc-proxy`. Its reads, writes and leases work, its watches do not: on those
//! that it shares it names cluster 0, which ends them with a `Protocol` error that says so. Proxies
//! and load balancers of TCP are fine: give them as the endpoint, and leave
//! [`Builder::discover_members`] off.
//!
//! # Which permissions
//! With authentication on, a user's roles need to read and write what the recipes in use lie below.
//! With a prefix in the store's URL that is the prefix: `etcdctl role grant-permission team readwrite
//! /myservice/ --prefix=true`. Without one:
//!
//! | key | who needs it |
//! |---|---|
//! | `/_locks/`, `/_elections/`, `/_semaphores/`, `/_queues/` | the recipes of these names |
//! | `/_cancelled/` ([`Builder::marks`]) | all of them: marks that keep late requests from leaving a ticket |
//! | `/_sessions/` | all of them: who is who |
//! | `/_meta/`, `/_meta_raw/` | requests to let go of a lock |
//!
//! A user is a name and a password ([`Builder::user`]), or the common name of the client certificate
//! ([`Builder::tls`]) where etcd runs with `--client-cert-auth`. etcd's table of members and its status
//! need no permission.

mod asks;
mod auth;
mod builder;
mod cluster;
mod commit;
mod driver;
mod error;
mod hub;
mod keep;
mod lease;
mod line;
mod link;
mod members;
mod proto;
mod read;
mod rpc;
mod shared;
#[cfg(feature = "srv")]
mod srv;
mod stream;
mod txn;
mod watch;
mod write;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use builder::Builder;
pub use cluster::{Health, Member, ServerStatus, Status};
use driver::Driver;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId};
use crate::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Freshness, Get, Grant, Granted,
    Layout, Operation, Put, Renew, Renewed, Store, Updates, View, Watch, Withdraw, Withdrawn,
    Written,
};

/// A store on etcd v3. Cloning is cheap and shares connections and streams.
///
/// Dropping the last clone, and the watches made by it, closes the connections.
#[derive(Clone)]
pub struct Etcd3(Arc<Driver>);

impl Etcd3 {
    /// A store on these endpoints, `http(s)://host:port` separated by commas, with the default
    /// options. Does not connect: see [`probe`](Self::probe).
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new(endpoints: impl Into<String>) -> Result<Self> {
        Self::builder(endpoints).build()
    }

    /// The options of a store on these endpoints.
    pub fn builder(endpoints: impl Into<String>) -> Builder {
        Builder::new(endpoints.into())
    }

    /// Asks whether there is an etcd with a v3 API: one local read of a key that nobody has.
    ///
    /// # Errors
    /// `Unreachable` names every endpoint and why, after the operation timeout; `Untrusted` does so
    /// at once, if TLS finds trust nowhere; `Protocol` and `Unsupported` are something else than
    /// an etcd v3; `Unauthorized` refuses the user. That this user may not read that key is a sign
    /// of life too.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn probe(&self) -> Result<()> {
        let get = Get::node(Key::new("/_tenure/probe")?).fresh(Freshness::Any);
        match self.0.get(&get).await {
            Err(error) if error.kind() != ErrorKind::Forbidden => Err(error.during("connect")),
            _ => Ok(()),
        }
    }

    /// Says of a refusal that it may be about the marks, which go with the key and lie elsewhere.
    fn about_marks(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Forbidden {
            return error;
        }
        let note = format!(
            "they must also allow to read and write below {}",
            self.0.marks
        );
        error.into_kind(ErrorKind::Forbidden, &note)
    }

    /// What errors and traces call this store: `etcd3 http://h1:2379,…`.
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl fmt::Debug for Etcd3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Etcd3").field(&self.name()).finish()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Etcd3 {
    fn about(&self) -> About {
        About::new(self.0.name.clone(), Layout::Leased)
            .with_commits()
            .with_cancels()
            .with_ranks()
            .without_directories()
            .with_verbatim_keys()
    }

    async fn get(&self, get: Get) -> Result<View> {
        let outcome = self.0.get(&get).await;
        outcome.map_err(|it| it.during("get").at(&get.key))
    }

    async fn put(&self, put: Put) -> Result<Written> {
        let outcome = self.0.put(&put).await;
        outcome.map_err(|it| it.during("put").at(&put.key))
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        let outcome = self.0.append(&append).await;
        outcome.map_err(|it| self.about_marks(it).during("append").at(&append.dir))
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        withdraw.check(self.name())?;
        let outcome = self.0.withdraw(&withdraw).await;
        outcome.map_err(|it| self.about_marks(it).during("withdraw").at(&withdraw.dir))
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        let outcome = self.0.delete(&delete).await;
        outcome.map_err(|it| it.during("delete").at(&delete.key))
    }

    fn watch(&self, watch: Watch) -> Updates {
        hub::updates(self.0.clone(), watch)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let outcome = self.0.commit(&commit).await;
        let marked = |it: &Operation| matches!(it, Operation::Append(_));
        let marked = commit.operations.iter().any(marked);
        let about = |it| if marked { self.about_marks(it) } else { it };
        outcome.map_err(|it| about(it).during("commit"))
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        let outcome = self.0.grant(&grant).await;
        outcome.map_err(|it| it.during("grant"))
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let outcome = self.0.renew(&renew).await;
        outcome.map_err(|it| it.during("renew"))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let outcome = self.0.revoke(lease).await;
        outcome.map_err(|it| it.during("revoke"))
    }
}
