//! Writes: single, appended, taken back, deleted, and several at once.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::store::Node;

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
    /// Nothing is listed below the key, which may be a directory or nothing at all. Only as a check
    /// of a [`Commit`]; a write on this condition is `Unsupported`. Where there are
    /// [no directories](crate::store::About::directories), what is hidden below it counts too.
    Empty,
}

impl Condition {
    /// Refuses what cannot be the condition of a write.
    pub(crate) fn check_of_write(&self) -> Result<()> {
        match self {
            Self::Empty => Err(Self::only_a_check()),
            _ => Ok(()),
        }
    }

    pub(crate) fn only_a_check() -> Error {
        let text = "that nothing lies below a key is a check of a commit, no condition of a write";
        Error::new(ErrorKind::Unsupported, text)
    }
}

/// When a node goes away by itself. There is no default: a TTL is never lost by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// Never.
    Never,
    /// After this long, unless it is written again. One of five minutes or more can be up to a
    /// quarter longer where that spares writes (etcd v3).
    After(Ttl),
    /// With this lease.
    With(LeaseId),
}

/// A write: see [`Store::put`](crate::Store::put).
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
    /// A ticket of a line: the store chooses ([`Layout`](crate::store::Layout) says how); nodes sort by
    /// their append.
    Ticket,
    /// The tag is the name and the value is stored as it is.
    Tag,
    /// As a ticket, but the value is stored as it is and the tag nowhere: what plain producers
    /// append.
    ///
    /// Nobody can tell such a node from one that another has appended, so after an `Ambiguous`
    /// outcome there is no finding out: to append again may be to append twice.
    /// [`withdraw`](crate::Store::withdraw) is `Unsupported`; delete the node by its key instead.
    Raw,
}

/// An append: see [`Store::append`](crate::Store::append).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Append {
    /// The directory to add to; made if missing.
    pub dir: Key,
    /// The mark by which this append is recognised for ever; [`Tag::NONE`] for [`Naming::Raw`].
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

    /// A node that says this and nothing else, named in the order of its append.
    pub fn raw(dir: Key, body: impl Into<Bytes>, expiry: Expiry) -> Self {
        Self {
            dir,
            tag: Tag::NONE,
            body: body.into(),
            naming: Naming::Raw,
            expiry,
        }
    }

    /// Refuses what cannot be one of several.
    fn check_of_commit(&self) -> Result<()> {
        if self.naming != Naming::Raw {
            return Ok(());
        }
        let text =
            "a raw append is made by itself: its name depends on what others append meanwhile";
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// Gives the node something to say.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// Takes an append back: see [`Store::withdraw`](crate::Store::withdraw).
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

    /// Refuses what no store can take back.
    pub(crate) fn check(&self, store: &str) -> Result<()> {
        if self.naming != Naming::Raw {
            return Ok(());
        }
        let text = "a raw append has no tag to be found by: delete the node by its key";
        Err(Error::new(ErrorKind::Unsupported, text)
            .during("withdraw")
            .at(&self.dir)
            .on(store))
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

/// A deletion: see [`Store::delete`](crate::Store::delete).
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
    /// Add a node to a directory, as [`Store::append`](crate::Store::append) does, without telling
    /// who is before it. A tag that was withdrawn, or has a node there, is a condition that does not
    /// hold, and its key is that of the directory. [`Naming::Raw`] is `Unsupported`.
    Append(Append),
}

/// A guarded write of several keys: see [`Store::commit`](crate::Store::commit).
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

    /// Adds an append.
    #[must_use]
    pub fn append(mut self, append: Append) -> Self {
        self.operations.push(Operation::Append(append));
        self
    }

    /// Refuses what no store can do in one.
    pub(crate) fn check_operations(&self) -> Result<()> {
        self.operations.iter().try_for_each(|operation| {
            let (key, outcome) = match operation {
                Operation::Put(put) => (&put.key, put.when.check_of_write()),
                Operation::Delete(delete) => (&delete.key, delete.when.check_of_write()),
                Operation::Append(append) => (&append.dir, append.check_of_commit()),
            };
            outcome.map_err(|error| error.at(key))
        })
    }
}
