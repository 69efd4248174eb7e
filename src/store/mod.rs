//! The narrow waist: what every store can do, and nothing that only one of them can.
//!
//! [`Store`] has few methods, each with all its options in one request value, and no default
//! methods; conveniences are in [`StoreExt`]. Decorators ([`Prefixed`], `testkit::Faulty`) are
//! stores themselves. Every implementation, also one outside this crate, must pass the suite in
//! `tenure::conformance` (feature `conformance`).
//!
//! # What every store promises
//! * **One order.** Every mutation has an [`Index`](crate::Index); a reply's index says up to where it knows.
//! * **Nothing expired is ever read.**
//! * **Never a silent resend.** A request that may have been sent is not sent again by the
//!   driver unless repeating it is provably harmless. When no answer came, the error's kind is
//!   [`Ambiguous`](crate::ErrorKind::Ambiguous): it may have taken effect, *or may still*.
//! * **Hidden keys.** A segment that starts with `_` below the key that is listed or watched
//!   hides the node.
//! * **Cancel safety.** Dropping the future of a mutation leaves its outcome unknown, like an
//!   ambiguous error; dropping a read or a watch loses nothing.

mod ext;
mod layout;
mod prefixed;
mod request;
mod response;
mod settle;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use ext::StoreExt;
pub use layout::{Layout, Ticket};
pub use prefixed::Prefixed;
pub use request::{
    Append, Attached, Check, Commit, Condition, Delete, Expiry, Filter, Freshness, Get, Grant,
    Naming, Operation, Page, Put, Renew, Scope, Select, Watch, Withdraw,
};
pub use response::{
    Appended, Change, Committed, Deleted, Event, Granted, KeyRenewal, Node, Renewed, Update, View,
    Withdrawn, Written,
};

use crate::error::Result;
use crate::key::LeaseId;

/// A stream of [`Update`]s. The first is [`Update::Open`]; it ends only after an error.
pub type Updates = BoxStream<'static, Result<Update>>;

/// A store of keys: see the [module](self) for what all of them promise.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What kind of store this is. Constant for the life of the value.
    fn about(&self) -> About;

    /// Reads a node, its direct children, or its whole tree ([`Select`]). Absence is not an error:
    /// the view is empty.
    ///
    /// The children of a file are none, or `NotADirectory` where the store can tell. The tree of a
    /// file is the file.
    ///
    /// Cost: 1 round trip, and on etcd v3 another for a node that is not there; on etcd v2 a
    /// [`Freshness::Linearizable`] read is also a proposal.
    ///
    /// # Errors
    /// `ClusterChanged` when the store never reached the index asked for; what every read can meet:
    /// `Unreachable`, `Timeout`, `Unavailable`, `Unauthorized`, `Protocol`.
    async fn get(&self, get: Get) -> Result<View>;

    /// Writes a node, creating the directories above it.
    ///
    /// # Errors
    /// `AlreadyExists` for a failed [`Condition::Absent`]; `NotFound` where a condition other
    /// than `Any` and `Absent` meets nothing; `ConditionFailed` for any other difference;
    /// `NotAFile` on a directory, `NotADirectory` below a file; `NotFound` for an expiry with a
    /// lease that is gone.
    async fn put(&self, put: Put) -> Result<Written>;

    /// Adds a node to a directory, under a name that the store makes ([`Naming`]). Cost: 1 write,
    /// 1 round trip.
    ///
    /// The store sends it once. After an `Ambiguous` outcome look for the tag, and
    /// [`withdraw`](Store::withdraw) it where it is not wanted any more (a [`Naming::Raw`] append
    /// has no tag, and can only be sent again by whoever can bear two of it). On a store where
    /// [`About::cancels`] holds, an append whose tag was withdrawn by somebody who knew of no node
    /// fails with `ConditionFailed`.
    async fn append(&self, append: Append) -> Result<Appended>;

    /// Removes what an append made, or may still make.
    ///
    /// Cost: 1 write, 1 round trip; without [`Withdraw::node`] etcd v2 reads first, linearizably.
    ///
    /// Idempotent: the node is found by its tag, so repeating this harms nobody. Succeeds when
    /// there is nothing (any more).
    ///
    /// With a [`Withdraw::node`] only the node of that creation is removed. So where the tag is the
    /// name ([`Layout::Leased`]) a tag can be appended again whose append was answered, and whose
    /// node was removed by the first withdrawal that was tried: no repeat of these two can harm the
    /// next node of that name. After a withdrawal that failed, or found nothing, take a fresh tag.
    ///
    /// # Errors
    /// `Unsupported` for [`Naming::Raw`], whose nodes have no tag to be found by.
    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn>;

    /// Deletes a node, or with `recursive` a directory and all in it.
    ///
    /// # Errors
    /// `NotFound` when there is nothing; `ConditionFailed` when the condition does not hold;
    /// `NotAFile` for a directory unless `recursive`.
    async fn delete(&self, delete: Delete) -> Result<Deleted>;

    /// Follows a key or a tree.
    ///
    /// Every change at or after [`Watch::from`] (or after the index in [`Update::Open`]) arrives
    /// once and in order. The deletion of a directory is one event for all in it. An error ends
    /// the stream: `HistoryLost` means list again; after any other, watch again from the index
    /// after the last one seen.
    fn watch(&self, watch: Watch) -> Updates;

    /// Applies all operations if all checks hold, or none.
    ///
    /// With appends among them it is sent once, like an append; each can be
    /// [withdrawn](Store::withdraw) by its tag, and where [`About::cancels`] holds a commit that
    /// comes after that does nothing.
    ///
    /// # Errors
    /// `ConditionFailed` names the first check that does not hold; `Unsupported` where
    /// [`About::commits`] is false.
    async fn commit(&self, commit: Commit) -> Result<Committed>;

    /// Makes a lease live, or finds that it is; either way with a whole term that counts from this
    /// call. Repeating it is harmless: the client chose the id.
    ///
    /// Cost: 1 write where the store has leases, else nothing.
    async fn grant(&self, grant: Grant) -> Result<Granted>;

    /// Asks for another full term for a lease and the keys that hang on it.
    ///
    /// A store with real leases renews the lease and answers for no key. One without renews
    /// exactly `keys`, and answers for each, within the patience of the request; it errs only when
    /// it could tell about none of them.
    ///
    /// Cost: 1 request; on a store without leases 1 write for each key.
    ///
    /// # Errors
    /// `NotFound` when the lease is gone: it will not come back.
    async fn renew(&self, renew: Renew) -> Result<Renewed>;

    /// Ends a lease and deletes what hangs on it. Idempotent.
    ///
    /// Cost: 1 write; on a store without leases 1 for each key that still hangs on it.
    async fn revoke(&self, lease: LeaseId) -> Result<()>;
}

/// What kind of store this is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct About {
    /// What errors and traces call it: `embedded`, `etcd2 http://h1:2379,…`. Holds no secret.
    pub name: Arc<str>,
    /// How recipes' nodes are named and read back.
    pub layout: Layout,
    /// Whether [`Store::commit`] works; where [`cancels`](Self::cancels) holds too, also with
    /// [`Operation::Append`] and [`Condition::Empty`].
    pub commits: bool,
    /// Whether a withdrawn append can no longer take effect; otherwise only its own expiry
    /// bounds a late one.
    pub cancels: bool,
    /// Whether an append of a ticket tells who is before it, [`Appended::before`] (`None` only in a
    /// line too long to tell), and watches are cheap: they share a connection, and one that begins
    /// now is told of each change at once. Then a short line is followed as a whole, and a handoff
    /// costs no read; otherwise each waiting ticket follows the one before it.
    pub ranks: bool,
    /// Whether a key is either a file or a directory. Where it is not so, every key is independent
    /// of those above and below it: nothing is `NotAFile` or `NotADirectory` to a write, a tree is
    /// deleted key by key, and directories are only shown in what is read.
    pub directories: bool,
    /// Whether values must be UTF-8.
    pub text_only: bool,
    /// Whether keys may be any text: no `/` in front, one behind, empty segments, `..`. Other
    /// programs have lines under such keys, and a recipe that is told to join one hands the store
    /// keys that are not [plain](crate::Key::is_plain). They are to be taken letter by letter; what
    /// is read or watched under a plain key shows none of them. Where it is not so, such a recipe
    /// fails with `InvalidKey`, and the store never sees such a key.
    pub verbatim: bool,
}

impl About {
    /// Describes a store that has directories, and neither commits nor cancel marks nor ranks.
    pub fn new(name: impl Into<Arc<str>>, layout: Layout) -> Self {
        Self {
            name: name.into(),
            layout,
            commits: false,
            cancels: false,
            ranks: false,
            directories: true,
            text_only: false,
            verbatim: false,
        }
    }

    /// Says that keys may be [any text](Self::verbatim).
    #[must_use]
    pub fn with_verbatim_keys(mut self) -> Self {
        self.verbatim = true;
        self
    }

    /// Says that [`Store::commit`] works.
    #[must_use]
    pub fn with_commits(mut self) -> Self {
        self.commits = true;
        self
    }

    /// Says that values must be UTF-8.
    #[must_use]
    pub fn of_text(mut self) -> Self {
        self.text_only = true;
        self
    }

    /// Says that a withdrawn append can no longer take effect.
    #[must_use]
    pub fn with_cancels(mut self) -> Self {
        self.cancels = true;
        self
    }

    /// Says that an append of a ticket tells who is before it, and that watches are cheap.
    #[must_use]
    pub fn with_ranks(mut self) -> Self {
        self.ranks = true;
        self
    }

    /// Says that every key is independent of those above and below it.
    #[must_use]
    pub fn without_directories(mut self) -> Self {
        self.directories = false;
        self
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store + ?Sized> Store for Arc<S> {
    fn about(&self) -> About {
        (**self).about()
    }

    async fn get(&self, get: Get) -> Result<View> {
        (**self).get(get).await
    }

    async fn put(&self, put: Put) -> Result<Written> {
        (**self).put(put).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        (**self).append(append).await
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        (**self).withdraw(withdraw).await
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        (**self).delete(delete).await
    }

    fn watch(&self, watch: Watch) -> Updates {
        (**self).watch(watch)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        (**self).commit(commit).await
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        (**self).grant(grant).await
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        (**self).renew(renew).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        (**self).revoke(lease).await
    }
}
