//! Distributed coordination primitives for services, on etcd or on an embedded store.
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
mod key;
pub mod recipes;
pub mod runtime;
mod session;
pub mod store;
#[cfg(feature = "testkit")]
#[cfg_attr(docsrs, doc(cfg(feature = "testkit")))]
pub mod testkit;
#[cfg(feature = "etcd2")]
#[cfg_attr(docsrs, doc(cfg(feature = "etcd2")))]
pub mod transport;

pub use client::{Client, ClientBuilder, Shutdown};
pub use error::{Error, ErrorKind, Result};
pub use key::{Index, Key, LeaseId, Name, Position, Sequence, Tag, Ttl};
pub use recipes::guard::LockGuard;
pub use recipes::lock::{Acquire, Lock};
pub use session::{Loss, SessionState, State};
pub use store::{Store, StoreExt};
