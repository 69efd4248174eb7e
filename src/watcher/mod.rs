//! Following a key or a tree: a list, then every change after it, for as long as it is wanted.
//!
//! ```text
//!             a list at index i            the watch breaks
//! Listing ───────────────────▶ Watching ─────────────────────▶ resting
//!  ▲   │ no answer                │  ▲      watch again,           │
//!  │   ▼                          │  └── from where it broke ──────┘
//!  │ resting                      │ history lost
//!  └──────────────────────────────┘            a fatal error ends it in any state
//! ```
//!
//! # Guarantees
//! * The first item is a [`Follow::Snapshot`]. After a snapshot at index *i* come exactly the
//!   changes after *i*, each once and in order, until the next snapshot. So a copy that is replaced
//!   by each snapshot and changed by each event is at every moment what the store held at some
//!   index.
//! * A watch that breaks is taken up where it broke: nothing is lost, nothing comes twice, also
//!   where several changes share an index.
//! * History that the store has forgotten is answered with a new snapshot, at a later index. What
//!   happened in between is not told, only what came of it: diff it against what was known.
//! * Indexes never go back, from item to item. A store that does (restored from a backup, or
//!   another cluster) is `ClusterChanged`, which is fatal: what was seen before means nothing there.
//! * Errors that may pass are passed on as [`Follow::Interrupted`] and tried again, with pauses of
//!   25 ms doubling to 1 s; success in between does not reset them, a change or progress does.
//!   Anything else ends the stream: it is its last item.
//!
//! # Caveats
//! * Nothing moves while the stream is not polled: there is no task behind it. One that is left
//!   alone while much happens in the store gets a snapshot instead of the changes.
//! * After an interruption the copy is old, by an amount that nobody knows: until a snapshot, or
//!   until [`Follow::Resumed`] and what follows it up to its index.
//! * The deletion of a directory is one event for all in it ([`Event::removes`]).
//!
//! # Cost
//! A linearizable read and a watch. A watch taken up again asks for the last change once more, so
//! that others at its index are not lost.

mod driver;
mod machine;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::BoxStream;

use crate::error::{Error, Result};
use crate::key::{Index, Key};
use crate::runtime::Runtime;
use crate::store::{Event, Scope, Store, View};
use machine::Machine;

/// What a [`Watcher`] yields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Follow {
    /// All there is, at one index; takes the place of whatever was known.
    Snapshot(View),
    /// One change after the last snapshot.
    Event(Event),
    /// Nothing else has changed up to this index.
    Progress(Index),
    /// The store cannot be followed at the moment. It is tried again; nothing is lost.
    Interrupted(Error),
    /// It is followed again after an interruption. The store has reached this index; what has
    /// changed up to there comes at once, if anything has.
    Resumed(Index),
}

/// A stream of what becomes of a key or a tree: see the [module](self) for what it promises. Made
/// by [`Client::follow`](crate::Client::follow).
///
/// Yields `Err` once at most, as its last item.
///
/// # Cancel safety
/// Dropping a future of the next item loses nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// use futures_util::StreamExt as _;
/// use tenure::store::{Expiry, Scope};
/// use tenure::{Follow, Key, StoreExt};
///
/// let client = tenure::Client::connect("embedded:").await?;
/// let dir = Key::new("/config")?;
/// let mut config = client.follow(&dir, Scope::Tree);
/// assert!(matches!(config.next().await, Some(Ok(Follow::Snapshot(_)))));
/// client.store().set(&dir.join("limit")?, "10".into(), Expiry::Never).await?;
/// let Some(Ok(Follow::Event(event))) = config.next().await else { panic!() };
/// assert_eq!(event.key.name(), "limit");
/// # Ok(()) }
/// ```
#[must_use = "a watcher does nothing until polled"]
pub struct Watcher {
    key: Key,
    items: BoxStream<'static, Result<Follow>>,
}

impl Watcher {
    /// Follows `key`, alone or with all below it, in this store.
    pub fn new(store: Arc<dyn Store>, key: Key, scope: Scope, runtime: &Runtime) -> Self {
        Self::from_here(store, key, scope, runtime, Machine::new())
    }

    /// Goes on from a read at `index` that the caller has made: the first item is what changed
    /// after it.
    pub(crate) fn after(
        store: Arc<dyn Store>,
        key: Key,
        scope: Scope,
        runtime: &Runtime,
        index: Index,
    ) -> Self {
        Self::from_here(store, key, scope, runtime, Machine::after(index))
    }

    /// Goes on from a read at `index` that the caller has made, by a watch that begins now, and not
    /// at an index: some stores are slow to tell what comes after one that has passed. The first
    /// item is a snapshot if anything may have happened in between.
    pub(crate) fn from_now(
        store: Arc<dyn Store>,
        key: Key,
        scope: Scope,
        runtime: &Runtime,
        index: Index,
    ) -> Self {
        Self::from_here(store, key, scope, runtime, Machine::from_now(index))
    }

    fn from_here(
        store: Arc<dyn Store>,
        key: Key,
        scope: Scope,
        runtime: &Runtime,
        machine: Machine,
    ) -> Self {
        let items = driver::items(store, key.clone(), scope, runtime.clone(), machine);
        Self { key, items }
    }

    /// What it follows.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Stream for Watcher {
    type Item = Result<Follow>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.items.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
