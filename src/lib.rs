#![doc = include_str!("../README.md")]
//!
//! # Finding your way
//! * [`Client`] is where to start: it opens a store and makes recipes.
//! * [`recipes::lock`] has the lock's whole protocol: steps, guarantees, assumptions, cost.
//! * [`store`] is the trait that every store implements; [`embedded`], [`etcd2`] and [`etcd3`] do.
//! * [`StoreExt`] has the short verbs, the same over every store; a [`Watcher`] follows a tree.
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
//! | `tenure::session` | `session state` (`lease`, `state`), `lost` (`key`, `loss`), `renewal failed` and `lease gone` (`lease`, `error`), `not moved yet` (`key`, `error`); `warn`: a TTL below 5 s, many keys renewed one by one, a lease left to its TTL |
//! | `tenure::lock` | `lock held` (`key`, `token`), `lock released` (`key`, `token`, `ok`) |
//! | `tenure::line` | `append unanswered`, `release failed`, `cannot see the line` (`dir`, `error`); `warn`: an intruder (`dir`, `ticket`) |
//! | `tenure::watcher` | `interrupted` (`key`, `error`) |
//! | `tenure::janitor` | `withdrawal failed` (`dir`, `tag`, `error`); `warn`: a ticket left to its TTL |
//! | `tenure::transport` | `no answer`, `poll failed` (`server`, `path`, `reason`, `took`); `trace`: `answered`, `poll open` (`status`) |
//! | `tenure::etcd3` | `watches interrupted` (`watches`, `error`) |
//! | `tenure::etcd2` | `watch interrupted`, `resync interrupted` (`key`, `error`), `discovered` (`domain`, `endpoints`); `warn`: the members' clocks differ by more than `max_skew` (`spread`, `ahead`, `behind`) |
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
pub use recipes::guard::{Hold, LockGuard};
pub use recipes::lock::{Acquire, Lock};
pub use recipes::queue::{JobId, Priority, Queue};
pub use session::{HoldState, Loss, SessionState};
pub use store::{Store, StoreExt};
pub use watcher::{Follow, Watcher};

/// How it works and why: the project's design page.
pub mod _design {
    #![doc = include_str!("../design.md")]
}
