//! Leases.

use std::time::Duration;

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
    /// The keys that still matter, the most urgent first: where they are renewed one by one, in this
    /// order. A key that is not among them is renewed no more.
    pub keys: Vec<Attached>,
    /// How long the caller listens, if that is less than the store's own timeout. A store that
    /// answers for each key answers within it, with what it knows by then: a key without an answer
    /// must not cost the others theirs, nor a server that hangs the whole of a short term.
    pub patience: Option<Duration>,
}

impl Renew {
    /// Another term for `lease` and `keys`, counted from `at`.
    pub fn new(lease: LeaseId, at: Instant, keys: Vec<Attached>) -> Self {
        Self {
            lease,
            at,
            keys,
            patience: None,
        }
    }

    /// To be answered within this.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }
}
