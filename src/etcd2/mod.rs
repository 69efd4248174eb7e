//! The store on etcd's v2 keys API: etcd up to 3.5 started with `--enable-v2`, and whatever else
//! speaks it.
//!
//! | the contract | here |
//! |---|---|
//! | linearizable read | `quorum=true`, which is a proposal; a read that names an index is local |
//! | ticket | POST: 20 digits in key order |
//! | lease | the driver's own list of keys, each with the lease's time-to-live, renewed one by one |
//! | watch | one long poll at a time on a connection of its own |
//! | commit | not there |
//!
//! # What to know about v2
//! * Values are UTF-8; anything else is refused with `InvalidValue` before it is sent.
//! * A condition on an empty value, a deletion on one too long for a URL, and a put of an empty
//!   value on [`Present`](crate::store::Condition::Present) cost one linearizable read more: the
//!   server cannot be asked for them directly. (The last it would take for a directory too, and
//!   give that a time-to-live.)
//! * A time-to-live is measured by wall clocks, in whole seconds, and ends up to half a second
//!   late: see [`Builder::max_skew`]. A node whose time has run out but that is not swept yet is
//!   not reported by reads; conditions still meet it.
//! * A tree is read in one answer, because etcd v2 cannot page; one of more than 64 MiB is `Protocol`. One that is nested more than 60
//!   directories deep is `Protocol`, because its JSON is nested twice as deep.
//! * Listing the children of a file is `NotADirectory`; a key below a file is simply not there.
//! * A watch moves on only while it is read. One that is left alone after an event while more than
//!   1,000 others happen in the store ends with `HistoryLost`.
//! * A watch that no server answers goes on trying for [`Builder::watch_patience`].

mod access;
mod builder;
pub mod client;
mod clocks;
mod code;
mod driver;
mod error;
mod lease;
mod members;
mod read;
mod request;
#[cfg(feature = "srv")]
mod srv;
mod time;
mod updates;
mod watch;
mod wire;
mod write;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

#[cfg(feature = "srv")]
#[cfg_attr(docsrs, doc(cfg(feature = "srv")))]
pub use crate::transport::{Service, Srv};
pub use builder::Builder;
pub use client::Client;
pub use code::Code;
use driver::Driver;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId};
use crate::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Freshness, Get, Grant, Granted,
    Layout, Put, Renew, Renewed, Store, Updates, View, Watch, Withdraw, Withdrawn, Written,
};

/// A store on etcd v2. Cloning is cheap and shares connections and leases.
///
/// Dropping the last clone, and the watches made by it, closes the connections.
#[derive(Clone)]
pub struct Etcd2(Arc<Driver>);

impl Etcd2 {
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

    /// Asks whether there is an etcd with a v2 API: one local read of a key that nobody has.
    ///
    /// # Errors
    /// `Unreachable` names every endpoint and why, after the operation timeout; `Untrusted` does so
    /// at once, if TLS finds trust nowhere; `Unsupported` is an etcd without v2; `Protocol` is
    /// something else; `Unauthorized` refuses the user.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn probe(&self) -> Result<()> {
        let key = Key::new("/_tenure/probe")?;
        let deadline = self.0.deadline();
        let found = self.0.fetch(&key, Freshness::Any, deadline).await;
        found.map(|_| ()).map_err(|it| it.during("connect"))
    }

    /// The complete keys client on the same connections.
    pub fn client(&self) -> Client {
        Client::of(self.0.clone())
    }

    /// What errors and traces call this store: `etcd2 http://h1:2379,…`.
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl fmt::Debug for Etcd2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Etcd2").field(&self.name()).finish()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Etcd2 {
    fn about(&self) -> About {
        About::new(self.0.name.clone(), Layout::Numbered).of_text()
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
        outcome.map_err(|it| it.during("append").at(&append.dir))
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        withdraw.check(self.name())?;
        let outcome = self.0.withdraw(&withdraw).await;
        outcome.map_err(|it| it.during("withdraw").at(&withdraw.dir))
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        let outcome = self.0.delete(&delete).await;
        outcome.map_err(|it| it.during("delete").at(&delete.key))
    }

    fn watch(&self, watch: Watch) -> Updates {
        updates::updates(self.0.clone(), watch)
    }

    async fn commit(&self, _: Commit) -> Result<Committed> {
        let text = "etcd v2 writes one key at a time: it has no transactions";
        Err(Error::new(ErrorKind::Unsupported, text).during("commit"))
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
