//! What the core answers and remembers: nodes and events in the shape of etcd v2.

use std::time::Duration;

use bytes::Bytes;

use crate::key::{Index, Key, LeaseId};

/// A point in the life of a store: how long it has lived, restarts not counted.
///
/// The core keeps deadlines in it, so that they survive a restart in which the clock starts over.
pub(crate) type Age = Duration;

/// A node as it was when it was read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) key: Key,
    pub(crate) dir: bool,
    /// `None` for directories, and in the events of removals.
    pub(crate) value: Option<Bytes>,
    /// The children that a read of a directory lists; hidden ones are not among them.
    pub(crate) nodes: Vec<Self>,
    pub(crate) created: Index,
    pub(crate) modified: Index,
    /// When it goes away, as far as was known then (a lease may be renewed).
    pub(crate) expires: Option<Age>,
    pub(crate) lease: Option<LeaseId>,
}

/// What was done, in etcd's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Set,
    Create,
    Update,
    CompareAndSwap,
    Delete,
    CompareAndDelete,
    Expire,
}

impl Action {
    /// etcd's name of it.
    #[cfg_attr(not(test), allow(dead_code))] // for the HTTP front end
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Create => "create",
            Self::Update => "update",
            Self::CompareAndSwap => "compareAndSwap",
            Self::Delete => "delete",
            Self::CompareAndDelete => "compareAndDelete",
            Self::Expire => "expire",
        }
    }

    /// Whether the node is gone afterwards.
    pub(crate) fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::CompareAndDelete | Self::Expire)
    }
}

/// One mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) action: Action,
    /// The node afterwards; `node.modified` is the index of this event.
    pub(crate) node: Node,
    pub(crate) previous: Option<Node>,
    /// A refresh has an index and a place in the history, but nobody is told.
    pub(crate) refresh: bool,
    /// The first index of the commit that it belongs to, if it came of one. A journal does not
    /// tell it: no watch outlives a restart.
    pub(crate) commit: Option<Index>,
}

impl Event {
    /// The index that this mutation took.
    pub(crate) fn index(&self) -> Index {
        self.node.modified
    }

    /// Whether etcd answers 201: the node was not there before.
    #[cfg_attr(not(test), allow(dead_code))] // for the HTTP front end
    pub(crate) fn is_creation(&self) -> bool {
        match self.action {
            Action::Create => true,
            Action::Set => self.previous.is_none(),
            _ => false,
        }
    }

    /// Whether a directory went, and with it all that was in it.
    pub(crate) fn removes_dir(&self) -> bool {
        self.action.removes() && self.node.dir
    }
}
