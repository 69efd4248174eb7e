//! Reads and watches.

use std::num::NonZeroUsize;

use crate::key::{Index, Key};

/// What a read answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// The node at the key.
    Node,
    /// The direct children of the key.
    Children,
    /// The node at the key and everything below it, at one index. Directories are among them
    /// where the store has any; what is hidden below the key is not. In the order of the keys'
    /// bytes, so what is above comes before what is below.
    Tree,
}

/// What a watch follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The key itself.
    Node,
    /// The key and everything below it that is not hidden.
    Tree,
}

impl Scope {
    /// The read that shows what a watch of this scope follows.
    pub const fn select(self) -> Select {
        match self {
            Self::Node => Select::Node,
            Self::Tree => Select::Tree,
        }
    }
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

/// A part of a long list.
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

/// A read: see [`Store::get`](crate::Store::get).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Get {
    /// The node, or what the nodes are below.
    pub key: Key,
    /// The node itself, its children, or all of its tree.
    pub select: Select,
    /// How fresh the answer must be.
    pub freshness: Freshness,
    /// Leave out the values where the store can.
    pub keys_only: bool,
    /// Only a part of the children or of the tree.
    pub page: Option<Page>,
}

impl Get {
    /// Reads the node at `key`, linearizably.
    pub fn node(key: Key) -> Self {
        let freshness = Freshness::Linearizable;
        Self {
            key,
            select: Select::Node,
            freshness,
            keys_only: false,
            page: None,
        }
    }

    /// Reads the direct children of `key`, in key order, linearizably.
    pub fn children(key: Key) -> Self {
        Self {
            select: Select::Children,
            ..Self::node(key)
        }
    }

    /// Reads the node at `key` and all below it, in key order, linearizably.
    pub fn tree(key: Key) -> Self {
        Self {
            select: Select::Tree,
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

    /// Asks for a part of the children or of the tree.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = Some(page);
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

/// A watch: see [`Store::watch`](crate::Store::watch).
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
