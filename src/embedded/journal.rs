//! The seam where a store becomes durable: an ordered log of everything that was done to it.
//!
//! Replaying the entries in order ([`Core::replay`](super::core::Core::replay)) gives the same
//! store: indexes, nodes, leases, cancel marks and history. Times are durations, never readings
//! of a clock, so they mean the same after a restart; the time that the store was down does not
//! count against anybody.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::core::Action;
use crate::key::{Index, Key, LeaseId, Tag};

/// Where the log goes.
pub(crate) trait Journal: fmt::Debug + Send {
    /// Keeps these entries, all or none: they are what one call did. Called under the store's
    /// lock, in order, before the caller learns the outcome.
    ///
    /// After an error the store serves nobody any more: its memory is ahead of its log.
    fn record(&mut self, entries: &[Entry]) -> io::Result<()>;
}

/// One step of a store's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The store's index after it.
    pub(crate) index: Index,
    /// How long after the entry before it, or after the store began.
    pub(crate) after: Duration,
    /// What was done.
    pub(crate) step: Step,
}

/// What was done. Each is an effect, not a request: replaying checks no conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A node was written.
    Write {
        action: Action,
        key: Key,
        payload: Payload,
        life: Life,
    },
    /// A node was removed, with all that was in it.
    Remove { action: Action, key: Key },
    /// A lease began or was renewed: a full term from now.
    Grant { lease: LeaseId, ttl: Duration },
    /// A lease ended; what hung on it was removed before.
    Forget { lease: LeaseId },
    /// Appends with this tag are refused from now on.
    Mark { tag: Tag, life: Life },
}

/// What a write puts into a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// This value.
    File(Bytes),
    /// A directory.
    #[cfg_attr(not(test), allow(dead_code))] // for the HTTP front end
    Dir,
    /// What it holds already: a refresh, of which nobody is told.
    Keep,
}

/// How long something stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until it is removed.
    Forever,
    /// So long from now.
    For(Duration),
    /// As long as a lease.
    With(LeaseId),
}
