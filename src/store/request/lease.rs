//! Leases.

use bytes::Bytes;

use crate::key::{Key, LeaseId, Ttl};
use crate::runtime::Instant;

/// Asks for a lease: see [`Store::grant`](crate::Store::grant).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Grant {
    /// Its name.
    pub lease: LeaseId,
    /// How long a term is.
    pub ttl: Ttl,
}

impl Grant {
    /// A lease of this name with terms of this length.
    pub fn new(lease: LeaseId, ttl: Ttl) -> Self {
        Self { lease, ttl }
    }
}

/// A key that hangs on a lease, and the value that shows it is still ours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attached {
    /// The key.
    pub key: Key,
    /// The value that we wrote there.
    pub value: Bytes,
}

impl Attached {
    /// A key and the value we wrote there.
    pub fn new(key: Key, value: Bytes) -> Self {
        Self { key, value }
    }
}

/// Asks for another term: see [`Store::renew`](crate::Store::renew).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Renew {
    /// The lease.
    pub lease: LeaseId,
    /// The caller's clock when it called. The store never reads it: it gives back the one from
    /// which an acknowledged term counts, this one or that of an earlier, unanswered attempt.
    pub at: Instant,
    /// The keys that still matter. A key that is not among them is renewed no more.
    /// Where they are renewed one by one: in this order.
    pub keys: Vec<Attached>,
    /// When the caller needs an answer, if that is sooner than the store's own timeout: what is
    /// known by then counts, and what is not told of is asked for again. Without one of its own, a
    /// server that hangs would be asked for the whole of a short term, and one that is in order and
    /// has many keys to renew would never be heard.
    pub by: Option<Instant>,
}

impl Renew {
    /// Another term for `lease` and `keys`, counted from `at`.
    pub fn new(lease: LeaseId, at: Instant, keys: Vec<Attached>) -> Self {
        Self {
            lease,
            at,
            keys,
            by: None,
        }
    }

    /// An answer is needed by then.
    #[must_use]
    pub fn by(mut self, by: Instant) -> Self {
        self.by = Some(by);
        self
    }
}
