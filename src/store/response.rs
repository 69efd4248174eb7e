//! What a store answers. All of these have constructors, so that stores outside this crate can
//! make them.

use std::time::Duration;

use bytes::Bytes;

use crate::error::Result;
use crate::key::{Index, Key, LeaseId, Position, Sequence, Ttl};
use crate::runtime::Instant;
use crate::store::Expiry;

/// What is stored at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Where.
    pub key: Key,
    /// What; empty for a directory and in a keys-only read.
    pub value: Bytes,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// When it came to be. On v2 stores a plain `set` makes this new; an update keeps it.
    pub created: Index,
    /// When it was last written or, on etcd v2, refreshed.
    pub modified: Index,
    /// How long it has left, if it goes away by itself; in the server's grain.
    pub ttl: Option<Duration>,
    /// The lease it hangs on, where the store has leases.
    pub lease: Option<LeaseId>,
}

impl Node {
    /// A file without an expiry.
    pub fn file(key: Key, value: impl Into<Bytes>, created: Index, modified: Index) -> Self {
        let value = value.into();
        Self {
            key,
            value,
            is_dir: false,
            created,
            modified,
            ttl: None,
            lease: None,
        }
    }

    /// A directory without an expiry.
    pub fn dir(key: Key, created: Index, modified: Index) -> Self {
        Self {
            is_dir: true,
            ..Self::file(key, Bytes::new(), created, modified)
        }
    }

    /// Says how long it has left.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.ttl = ttl;
        self
    }

    /// Says which lease it hangs on.
    #[must_use]
    pub fn with_lease(mut self, lease: Option<LeaseId>) -> Self {
        self.lease = lease;
        self
    }

    /// The expiry that keeps what this node has: never, its lease, or as long as it had left when
    /// it was read, in whole seconds and at least one, so that a key read in its last instant does
    /// not become permanent.
    ///
    /// # Errors
    /// `InvalidTtl` when it has more left than [`Ttl::MAX`]: say another expiry.
    pub fn expiry(&self) -> Result<Expiry> {
        match (self.lease, self.ttl) {
            (Some(lease), _) => Ok(Expiry::With(lease)),
            (None, None) => Ok(Expiry::Never),
            (None, Some(left)) => {
                let part = u64::from(left.subsec_nanos() > 0);
                let whole = Duration::from_secs(left.as_secs().saturating_add(part));
                let ttl = Ttl::new(whole.max(Ttl::MIN.get()));
                ttl.map(Expiry::After).map_err(|error| error.at(&self.key))
            }
        }
    }

    /// The value as text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }

    /// Its place among nodes that are ordered by creation. Not for tickets of a line, whose
    /// place [`Layout::ticket`](super::Layout::ticket) tells.
    pub fn position(&self) -> Position {
        Position::new(Sequence::from(self.created), self.key.clone())
    }
}

/// The answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct View {
    /// The answer was true here: everything up to this index is in it, nothing later.
    pub index: Index,
    /// The node, if there is one; or the children or the tree in key order.
    pub nodes: Vec<Node>,
    /// Whether there are more nodes after the last one.
    pub more: bool,
}

impl View {
    /// A whole answer.
    pub fn new(index: Index, nodes: Vec<Node>) -> Self {
        Self {
            index,
            nodes,
            more: false,
        }
    }

    /// Says that there are more nodes.
    #[must_use]
    pub fn and_more(mut self, more: bool) -> Self {
        self.more = more;
        self
    }
}

/// The answer to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// What is there now.
    pub node: Node,
    /// What was there before, where the store tells.
    pub previous: Option<Node>,
}

impl Written {
    /// `node` took the place of `previous`.
    pub fn new(node: Node, previous: Option<Node>) -> Self {
        Self { node, previous }
    }

    /// The index of this write.
    pub fn index(&self) -> Index {
        self.node.modified
    }
}

/// The answer to an append.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The new node.
    pub node: Node,
    /// The live siblings created before it, as of its own index, where the store tells them in
    /// the same step.
    pub before: Option<Vec<Node>>,
}

impl Appended {
    /// The new node, and if the store told them the live ones before it.
    pub fn new(node: Node, before: Option<Vec<Node>>) -> Self {
        Self { node, before }
    }
}

/// The answer to a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Withdrawn {
    /// The store's index afterwards.
    pub index: Index,
    /// Whether this call removed a node.
    pub removed: bool,
    /// Whether it is certain that no node of this tag is there or will ever be. If not, a late
    /// commit can still make one, which then lives for its own time-to-live: look again.
    pub settled: bool,
}

impl Withdrawn {
    /// What a withdrawal found.
    pub fn new(index: Index, removed: bool, settled: bool) -> Self {
        Self {
            index,
            removed,
            settled,
        }
    }
}

/// The answer to a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// The index of the deletion.
    pub index: Index,
    /// What was there before, where the store tells.
    pub previous: Option<Node>,
}

impl Deleted {
    /// `previous` went away at `index`.
    pub fn new(index: Index, previous: Option<Node>) -> Self {
        Self { index, previous }
    }
}

/// The answer to a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The index of the last of its writes.
    pub index: Index,
    /// For each operation, what is at its key now; `None` after a deletion.
    pub nodes: Vec<Option<Node>>,
}

impl Committed {
    /// The result of each operation.
    pub fn new(index: Index, nodes: Vec<Option<Node>>) -> Self {
        Self { index, nodes }
    }
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// It was written; this is what is there now.
    Put(Node),
    /// It was deleted, with everything below it.
    Delete {
        /// Whether its time ran out; never so where the store does not tell (etcd v3).
        expired: bool,
    },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// When.
    pub index: Index,
    /// Where.
    pub key: Key,
    /// What.
    pub change: Change,
    /// Whether more of the same commit follows at once, so that nobody has ever seen the store with
    /// this and without that. A store that does not say leaves it `false`.
    pub more: bool,
}

impl Event {
    /// `change` happened to `key` at `index`, alone or as the last of its commit.
    pub fn new(index: Index, key: Key, change: Change) -> Self {
        Self {
            index,
            key,
            change,
            more: false,
        }
    }

    /// Says whether more of the same commit follows.
    #[must_use]
    pub fn and_more(mut self, more: bool) -> Self {
        self.more = more;
        self
    }

    /// Whether `key` is gone after this: it, or something above it, was deleted.
    pub fn removes(&self, key: &Key) -> bool {
        matches!(self.change, Change::Delete { .. }) && key.is_within(&self.key)
    }
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// The watch is open: from here on nothing is missed. With [`Watch::from`] unset, every
    /// change after this index follows.
    ///
    /// [`Watch::from`]: super::Watch::from
    Open(Index),
    /// Something changed.
    Event(Event),
    /// Nothing else changed up to this index.
    Progress(Index),
}

/// The answer to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Granted {
    /// How long a term is; never shorter than asked for.
    pub ttl: Ttl,
    /// What a deadline must leave besides the usual margin, because this store measures terms by
    /// clocks that may differ by so much.
    pub skew: Duration,
}

impl Granted {
    /// Terms of this length, by one clock.
    pub fn new(ttl: Ttl) -> Self {
        Self {
            ttl,
            skew: Duration::ZERO,
        }
    }

    /// Says by how much the store's clocks may differ.
    #[must_use]
    pub fn with_skew(mut self, skew: Duration) -> Self {
        self.skew = skew;
        self
    }
}

/// What became of one key in a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyRenewal {
    /// It has a full term, counted from here.
    Live {
        /// The [`Renew::at`](super::Renew::at) of the attempt that is known to have landed, or
        /// of the oldest that may have.
        since: Instant,
    },
    /// It is gone, or somebody else's.
    Gone,
    /// No answer: it may or may not have been renewed.
    Unknown,
    /// There was no time left for it [within the patience of the request](super::Renew::patience): nothing was
    /// sent.
    Untried,
}

/// The answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewed {
    /// How long the new term is.
    pub ttl: Ttl,
    /// From when the lease's new term counts: see [`KeyRenewal::Live`].
    pub since: Instant,
    /// An answer for each key of the request; empty where the lease speaks for all of them.
    pub keys: Vec<(Key, KeyRenewal)>,
    /// As [`Granted::skew`], as it is now. More than was granted widens the margin of the session;
    /// less changes nothing.
    pub skew: Duration,
}

impl Renewed {
    /// A lease renewed for all its keys.
    pub fn new(ttl: Ttl, since: Instant) -> Self {
        Self {
            ttl,
            since,
            keys: Vec::new(),
            skew: Duration::ZERO,
        }
    }

    /// Says by how much the store's clocks may differ.
    #[must_use]
    pub fn with_skew(mut self, skew: Duration) -> Self {
        self.skew = skew;
        self
    }

    /// Answers key by key.
    #[must_use]
    pub fn with_keys(mut self, keys: Vec<(Key, KeyRenewal)>) -> Self {
        self.keys = keys;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_an_expiry_never_makes_permanent_and_never_shortens() {
        let at = Index::new(1).unwrap();
        let node = Node::file(Key::new("/a").unwrap(), "", at, at);
        let kept = |left| match node.clone().with_ttl(Some(left)).expiry() {
            Ok(Expiry::After(ttl)) => ttl.get(),
            other => panic!("{other:?}"),
        };
        let (second, milli) = (Duration::from_secs(1), Duration::from_millis(1));
        assert_eq!(kept(Duration::ZERO), second);
        assert_eq!(kept(milli), second);
        assert_eq!(kept(second), second);
        assert_eq!(kept(second + milli), second * 2);
        assert_eq!(node.expiry().unwrap(), Expiry::Never);
        let lease = LeaseId::new(7);
        let leased = node.clone().with_ttl(Some(second)).with_lease(lease);
        assert_eq!(leased.expiry().unwrap(), Expiry::With(lease.unwrap()));
        let month = node.with_ttl(Some(Ttl::MAX.get() * 30));
        assert_eq!(
            month.expiry().unwrap_err().kind(),
            crate::ErrorKind::InvalidTtl
        );
    }
}
