//! What a call returns.

use std::fmt;
use std::sync::Arc;

use super::super::driver::Reply;
use super::Node;
use crate::key::Index;

/// What a call found or did, or what a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Response {
    /// What was done.
    pub action: Action,
    /// The node as it is now. After a deletion it has neither value nor time-to-live; when a
    /// directory that held the key was deleted, it is that directory.
    pub node: Node,
    /// The node as it was before, if there was one.
    pub prev_node: Option<Node>,
    /// The server's index: of a read the one at which it is true, of an event the one at which the
    /// server began to wait, or that of the event if that is larger.
    pub etcd_index: Index,
    /// Raft's index, as far as the server tells.
    pub raft_index: Option<u64>,
    /// Raft's term, as far as the server tells.
    pub raft_term: Option<u64>,
    /// Whether the key is new: python-etcd's `newKey`, HTTP's 201.
    pub created: bool,
    /// Who answered: `http://host:port`.
    pub server: Arc<str>,
}

impl Response {
    pub(super) fn of(reply: Reply) -> Self {
        let (now, body) = (reply.index, reply.body);
        let created = match body.action {
            Action::Create => true,
            Action::Set => body.previous.is_none(),
            _ => false,
        };
        Self {
            action: body.action,
            node: Node::of(body.node, now),
            prev_node: body.previous.map(|it| Node::of(it, now)),
            etcd_index: now,
            raft_index: reply.raft.index,
            raft_term: reply.raft.term,
            created,
            server: reply.server,
        }
    }

    /// An event at this index.
    pub(super) fn event(index: Index, reply: Reply) -> Self {
        let response = Self::of(reply);
        Self {
            etcd_index: response.etcd_index.max(index),
            ..response
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// A read.
    Get,
    /// A write without a condition.
    Set,
    /// A write where nothing was.
    Create,
    /// A write where something was.
    Update,
    /// A write on a value or index.
    CompareAndSwap,
    /// A deletion.
    Delete,
    /// A deletion on a value or index.
    CompareAndDelete,
    /// The end of a time-to-live.
    Expire,
}

impl Action {
    const ALL: [Self; 8] = [
        Self::Get,
        Self::Set,
        Self::Create,
        Self::Update,
        Self::CompareAndSwap,
        Self::Delete,
        Self::CompareAndDelete,
        Self::Expire,
    ];

    /// As etcd writes it: `compareAndSwap`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Create => "create",
            Self::Update => "update",
            Self::CompareAndSwap => "compareAndSwap",
            Self::Delete => "delete",
            Self::CompareAndDelete => "compareAndDelete",
            Self::Expire => "expire",
        }
    }

    /// Whether the node is gone after it.
    pub const fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::CompareAndDelete | Self::Expire)
    }

    pub(in crate::etcd2) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == name)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
