//! What a store is asked for: one value per method, made by a constructor that takes what is
//! required and refined by methods that take what is not.

use std::num::NonZeroUsize;

use bytes::Bytes;

use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::runtime::Instant;
use crate::store::Node;

/// One key, or that key and all below it; for a read, its direct children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The key itself.
    Node,
    /// A read: the direct children. A watch: the key and everything below it.
    Tree,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// Whatever the server at hand knows.
    Any,
    /// Not older than this index.
    AtLeast(Index),
    /// Everything that was acknowledged before the read began.
    Linearizable,
}

/// A part of a long list of children.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// At most so many nodes. A store that cannot page returns all of them.
    pub limit: NonZeroUsize,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// The index of the first page; a store that keeps revisions answers as of then.
    pub at: Option<Index>,
}

impl Page {
    /// The first `limit` nodes.
    pub fn first(limit: NonZeroUsize) -> Self {
        Self {
            limit,
            after: None,
            at: None,
        }
    }

    /// The `limit` nodes after `key`, as of the first page's index.
    pub fn after(limit: NonZeroUsize, key: Key, at: Index) -> Self {
        Self {
            limit,
            after: Some(key),
            at: Some(at),
        }
    }
}

/// A read: see [`Store::get`](super::Store::get).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Get {
    /// The node, or the parent of the nodes.
    pub key: Key,
    /// The node itself or its children.
    pub scope: Scope,
    /// How fresh the answer must be.
    pub freshness: Freshness,
    /// Leave out the values where the store can.
    pub keys_only: bool,
    /// Only a part of the children.
    pub page: Option<Page>,
}

impl Get {
    /// Reads the node at `key`, linearizably.
    pub fn node(key: Key) -> Self {
        let freshness = Freshness::Linearizable;
        Self {
            key,
            scope: Scope::Node,
            freshness,
            keys_only: false,
            page: None,
        }
    }

    /// Reads the direct children of `key`, in key order, linearizably.
    pub fn children(key: Key) -> Self {
        Self {
            scope: Scope::Tree,
            ..Self::node(key)
        }
    }

    /// Changes how fresh the answer must be.
    #[must_use]
    pub fn fresh(mut self, freshness: Freshness) -> Self {
        self.freshness = freshness;
        self
    }

    /// Leaves out the values where the store can.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// Asks for a part of the children.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = Some(page);
        self
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is no node at the key.
    Absent,
    /// There is a node at the key.
    Present,
    /// The node holds this value.
    Value(Bytes),
    /// The node was last modified at this index.
    Index(Index),
    /// Both of these.
    Both {
        /// The value it holds.
        value: Bytes,
        /// The index at which it was last modified.
        index: Index,
    },
    /// The node was created at this index. Not on etcd v2 (`Unsupported`).
    Created(Index),
}

/// When a node goes away by itself. There is no default: a TTL is never lost by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// Never.
    Never,
    /// After this long, unless it is written again.
    After(Ttl),
    /// With this lease.
    With(LeaseId),
}

/// A write: see [`Store::put`](super::Store::put).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Put {
    /// Where.
    pub key: Key,
    /// What.
    pub value: Bytes,
    /// On what condition.
    pub when: Condition,
    /// For how long.
    pub expiry: Expiry,
}

impl Put {
    /// An unconditional write.
    pub fn new(key: Key, value: impl Into<Bytes>, expiry: Expiry) -> Self {
        Self {
            key,
            value: value.into(),
            when: Condition::Any,
            expiry,
        }
    }

    /// Makes the write conditional.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.when = condition;
        self
    }
}

/// Who chooses the name of an appended node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// A ticket of a line: the store chooses ([`Layout`](super::Layout) says how); nodes sort by
    /// their append.
    Ticket,
    /// The tag is the name and the value is stored as it is.
    Tag,
}

/// An append: see [`Store::append`](super::Store::append).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Append {
    /// The directory to add to; made if missing.
    pub dir: Key,
    /// The mark by which this append is recognised for ever.
    pub tag: Tag,
    /// What the node says besides its tag; for a lock nothing.
    pub body: Bytes,
    /// How the node is named.
    pub naming: Naming,
    /// For how long.
    pub expiry: Expiry,
}

impl Append {
    /// A ticket with an empty body.
    pub fn ticket(dir: Key, tag: Tag, expiry: Expiry) -> Self {
        Self {
            dir,
            tag,
            body: Bytes::new(),
            naming: Naming::Ticket,
            expiry,
        }
    }

    /// A node named by its tag.
    pub fn tagged(dir: Key, tag: Tag, body: impl Into<Bytes>, expiry: Expiry) -> Self {
        Self {
            dir,
            tag,
            body: body.into(),
            naming: Naming::Tag,
            expiry,
        }
    }

    /// Gives the node something to say.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// Takes an append back: see [`Store::withdraw`](super::Store::withdraw).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Withdraw {
    /// The directory of the append.
    pub dir: Key,
    /// The tag of the append.
    pub tag: Tag,
    /// How it was to be named.
    pub naming: Naming,
    /// The node as last seen, if the append is known to have made one: saves a look.
    pub node: Option<Node>,
    /// The lease of the append: a cancel mark need not outlive it.
    pub lease: Option<LeaseId>,
}

impl Withdraw {
    /// Takes back the append of `tag` to `dir`, whatever became of it.
    pub fn new(dir: Key, tag: Tag, naming: Naming) -> Self {
        Self {
            dir,
            tag,
            naming,
            node: None,
            lease: None,
        }
    }

    /// Says which node the append made.
    #[must_use]
    pub fn node(mut self, node: Node) -> Self {
        self.node = Some(node);
        self
    }

    /// Says which lease the append was made with.
    #[must_use]
    pub fn lease(mut self, lease: LeaseId) -> Self {
        self.lease = Some(lease);
        self
    }
}

/// A deletion: see [`Store::delete`](super::Store::delete).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delete {
    /// Where.
    pub key: Key,
    /// On what condition; `Any` still wants something to be there.
    pub when: Condition,
    /// Also directories, with all in them. Only without a condition.
    pub recursive: bool,
}

impl Delete {
    /// Deletes one node.
    pub fn new(key: Key) -> Self {
        Self {
            key,
            when: Condition::Any,
            recursive: false,
        }
    }

    /// Deletes a node or a directory with all in it.
    pub fn tree(key: Key) -> Self {
        Self {
            key,
            when: Condition::Any,
            recursive: true,
        }
    }

    /// Makes the deletion conditional.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.when = condition;
        self
    }
}

/// Which changes a watch reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// Writes and deletions.
    All,
    /// Deletions and expiries only.
    Deletes,
}

/// A watch: see [`Store::watch`](super::Store::watch).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Watch {
    /// The key, or the top of the tree. It need not exist.
    pub key: Key,
    /// The key alone, or all below it too.
    pub scope: Scope,
    /// The first index to report; `None`: what comes after the watch is open.
    pub from: Option<Index>,
    /// Which changes to report.
    pub filter: Filter,
}

impl Watch {
    /// Follows one key from now on.
    pub fn node(key: Key) -> Self {
        Self {
            key,
            scope: Scope::Node,
            from: None,
            filter: Filter::All,
        }
    }

    /// Follows a key and all below it from now on.
    pub fn tree(key: Key) -> Self {
        Self {
            scope: Scope::Tree,
            ..Self::node(key)
        }
    }

    /// Starts at this index, inclusive.
    #[must_use]
    pub fn from(mut self, index: Index) -> Self {
        self.from = Some(index);
        self
    }

    /// Reports deletions only.
    #[must_use]
    pub fn deletes_only(mut self) -> Self {
        self.filter = Filter::Deletes;
        self
    }
}

/// One of the conditions of a commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check {
    /// Where to look.
    pub key: Key,
    /// What must hold there.
    pub condition: Condition,
}

impl Check {
    /// `condition` must hold at `key`.
    pub fn new(key: Key, condition: Condition) -> Self {
        Self { key, condition }
    }
}

/// One of the writes of a commit. Their own conditions are checked too.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Write a node.
    Put(Put),
    /// Delete a node; nothing being there is fine, unless a condition says otherwise.
    Delete(Delete),
}

/// A guarded write of several keys: see [`Store::commit`](super::Store::commit).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Commit {
    /// What must hold.
    pub checks: Vec<Check>,
    /// What is done then. No key twice.
    pub operations: Vec<Operation>,
}

impl Commit {
    /// A commit of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check.
    #[must_use]
    pub fn check(mut self, key: Key, condition: Condition) -> Self {
        self.checks.push(Check::new(key, condition));
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, put: Put) -> Self {
        self.operations.push(Operation::Put(put));
        self
    }

    /// Adds a deletion.
    #[must_use]
    pub fn delete(mut self, delete: Delete) -> Self {
        self.operations.push(Operation::Delete(delete));
        self
    }
}

/// Asks for a lease: see [`Store::grant`](super::Store::grant).
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

/// Asks for another term: see [`Store::renew`](super::Store::renew).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Renew {
    /// The lease.
    pub lease: LeaseId,
    /// The caller's clock when it called. The store never reads it: it gives back the one from
    /// which an acknowledged term counts, this one or that of an earlier, unanswered attempt.
    pub at: Instant,
    /// The keys that still matter. A key that is not among them is renewed no more.
    pub keys: Vec<Attached>,
}

impl Renew {
    /// Another term for `lease` and `keys`, counted from `at`.
    pub fn new(lease: LeaseId, at: Instant, keys: Vec<Attached>) -> Self {
        Self { lease, at, keys }
    }
}
