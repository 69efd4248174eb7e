#![doc = include_str!("../README.md")]
//!
//! # Finding your way
//! * [`Client`] is where to start: it opens a store and makes recipes.
//! * [`recipes::lock`] has the lock's whole protocol: steps, guarantees, assumptions, cost; and so
//!   have [`recipes::multi_lock`], [`recipes::election`], [`recipes::semaphore`], [`recipes::queue`]
//!   and [`recipes::cache`].
//! * [`store`] is the trait that every store implements; [`embedded`], [`etcd2`] and [`etcd3`] do.
//! * [`StoreExt`] has the short verbs, the same over every store; a [`Watcher`] follows a tree.
//! * [`etcd3`] says what etcd v3 costs, which versions and permissions it needs, and what is not
//!   supported; [`etcd2`] does so for v2. v2 and v3 of one etcd are two stores.
//! * `etcd2::client` is the complete client of etcd's v2 API, with a table for those who come from
//!   python-etcd. [`StoreUrl`] has the forms of store URLs.
//! * [`Error`] says what happened, to which key, on which server; match on [`ErrorKind`].
//! * [`_design`] says why it is built like this.
//!
//! # Traces
//! Events of the `tracing` crate, at `debug` unless said, under these targets:
//!
//! | target | events and fields |
//! |---|---|
//! | `tenure::session` | `session state` (`lease`, `state`), `lost` (`key`, `loss`), `renewal failed` and `lease gone` (`lease`, `error`), `not moved yet`, `not rewritten yet` and `not announced` (`key`, `error`); `warn`: a TTL below 5 s, many keys renewed one by one, a lease left to its TTL |
//! | `tenure::lock` | `lock held` (`key`, `token`), `lock released` (`key`, `token`, `ok`) |
//! | `tenure::election` | `elected` (`key`, `token`), `proclaimed`, `resigned` (`key`, `token`, `ok`), `campaign failed`, `leadership lost`, `not resigned` (`error`) |
//! | `tenure::semaphore` | `permit held` (`key`, `token`, `weight`), `permit released` (`key`, `token`, `ok`); `warn`: a ticket without a weight (`ticket`) |
//! | `tenure::line` | `append unanswered`, `release failed`, `cannot see the line` (`dir`, `error`); `warn`: an intruder (`dir`, `ticket`) |
//! | `tenure::queue` | `claimed`, `taken over` (`claim`), `a job failed` (`id`, `attempt`, `reason`), `not claimed`, `not given back` (`id`, `error`), `push failed` (`jobs`, `error`), `registering anew` (`root`, `loss`), `not tidied yet`, `a delivery was lost` (`error`); `warn`: what is no state of a job (`key`), a job that cannot be claimed (`error`) |
//! | `tenure::cache` | `warn`: `bad value` (`key`, `error`, `cause`), `the watch ended` (`prefix`, `error`, `retry_in`), `not taken` and `not kept` (`error`): the file |
//! | `tenure::watcher` | `interrupted` (`key`, `error`) |
//! | `tenure::janitor` | `withdrawal failed` (`dir`, `tag`, `error`); `warn`: a ticket left to its TTL |
//! | `tenure::transport` | `no answer`, `poll failed` (`server`, `path`, `reason`, `took`); `discovered` (`domain`, `endpoints`); `trace`: `answered`, `poll open` (`status`) |
//! | `tenure::etcd3` | `watches interrupted` (`watches`, `error`) |
//! | `tenure::etcd2` | `watch interrupted`, `resync interrupted` (`key`, `error`), `warn`: the members' clocks differ by more than `max_skew` (`spread`, `ahead`, `behind`) |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

mod client;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
pub mod embedded;
mod error;
#[cfg(feature = "etcd2")]
#[cfg_attr(docsrs, doc(cfg(feature = "etcd2")))]
pub mod etcd2;
#[cfg(feature = "etcd3")]
#[cfg_attr(docsrs, doc(cfg(feature = "etcd3")))]
pub mod etcd3;
mod key;
pub mod recipes;
pub mod runtime;
mod session;
pub mod store;
#[cfg(feature = "testkit")]
#[cfg_attr(docsrs, doc(cfg(feature = "testkit")))]
pub mod testkit;
#[cfg(any(feature = "etcd2", feature = "etcd3"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "etcd2", feature = "etcd3"))))]
pub mod transport;
pub mod watcher;

pub use client::{Client, ClientBuilder, Shutdown, StoreUrl};
pub use error::{Error, ErrorKind, Result};
pub use key::{Index, Key, LeaseId, Name, Position, Sequence, Tag, Ttl};
pub use recipes::by_hand::{AcquireByHand, HandLock};
pub use recipes::cache::{
    Cache, CacheBuilder, CacheSource, CacheState, Change, Changed, Changes, Diff, Snapshot,
};
pub use recipes::contender::Contender;
pub use recipes::election::{Campaign, Election, Leader};
pub use recipes::guard::{Hold, LockGuard};
pub use recipes::leadership::Leadership;
pub use recipes::lock::{Acquire, Lock};
pub use recipes::multi_lock::{AcquireAll, MultiGuard, MultiLock};
pub use recipes::observe::Leaders;
pub use recipes::queue::{
    Batch, Claimant, Consumer, Delivery, Job, JobId, JobInfo, JobState, Mend, MendAll, Priority,
    Push, Pushed, Queue, Stats, Worker,
};
pub use recipes::revocation::Revocation;
pub use recipes::semaphore::{AcquirePermit, Permit, Semaphore};
pub use session::{HoldState, Loss, SessionState, Who};
pub use store::{Store, StoreExt};
pub use watcher::{Follow, Watcher};

/// How it works and why: the project's design page.
pub mod _design {
    #![doc = include_str!("../design.md")]
}
