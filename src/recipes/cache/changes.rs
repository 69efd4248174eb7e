//! What a subscriber of a cache is told.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::Inner;
use super::board::{Read, State, differing};
use super::snapshot::Snapshot;
use crate::error::Error;
use crate::key::{Index, Key};

/// What [`Changes`] yields.
#[derive(Debug)]
#[non_exhaustive]
pub enum Change<T> {
    /// What one write did, or one commit; what changed nothing here is not told.
    Update(Diff<T>),
    /// What became of everything since, where the changes one by one are not known or not kept:
    /// the first list, a list after lost history or of another cluster, and whatever a subscriber
    /// was too slow to read. Nothing may have changed.
    Resync(Diff<T>),
    /// A value that the decoder refuses. The last good one stays, if there was one.
    Bad {
        /// Where.
        key: Key,
        /// Why; what the decoder said is its [`source`](std::error::Error::source).
        error: Error,
    },
    /// The store cannot be followed, and somebody has to do something about it (credentials,
    /// roles), or it has become another one (`ClusterChanged`). It is tried again.
    Trouble(Error),
}

/// What changed from one index to another.
#[derive(Debug)]
#[non_exhaustive]
pub struct Diff<T> {
    /// The snapshot before; `None` before the first list.
    pub from: Option<Index>,
    /// The snapshot after. Smaller than `from` only when the store has become another one.
    pub to: Index,
    /// Each key that changed, once, in order.
    pub changed: Vec<Changed<T>>,
}

/// What changed at one key: old and new, or one of them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Changed<T> {
    /// Where.
    pub key: Key,
    /// What was there; `None` if nothing was.
    pub old: Option<Arc<T>>,
    /// What is there now; `None` if nothing is.
    pub new: Option<Arc<T>>,
}

/// A step of a cache: most are one item for its subscribers, or none.
pub(super) type Items<T> = Arc<[Arc<Change<T>>]>;

/// The changes of a [`Cache`](super::Cache), each once and in order. Made by
/// [`Cache::changes`](super::Cache::changes).
///
/// At most 1,024 writes wait for a subscriber; one that is further behind gets one
/// [`Change::Resync`] from what it read last to what is there now. It keeps the cache alive, and
/// ends when the client is shut down.
///
/// # Cancel safety
/// Dropping a future of the next item loses nothing.
#[must_use = "a stream does nothing until polled"]
pub struct Changes<T> {
    base: Snapshot<T>,
    items: BoxStream<'static, Arc<Change<T>>>,
}

impl<T: Send + Sync + 'static> Changes<T> {
    pub(super) fn new(cache: Arc<Inner<T>>) -> Self {
        let reader = cache.board.read();
        let base = Snapshot::new(cache.prefix.clone(), reader.seen.clone());
        let steps = stream::unfold((cache, reader), |(cache, mut reader)| async {
            let items: Items<T> = match reader.next().await? {
                Read::Step(step) => step.item.unwrap_or_default(),
                Read::Lagged { before, after } => {
                    let diff = Diff::between(&before, &after);
                    diff.map(|diff| Arc::new(Change::Resync(diff)))
                        .into_iter()
                        .collect()
                }
            };
            Some((items, (cache, reader)))
        });
        let items = steps.flat_map(|items| {
            let count = items.len();
            stream::iter((0..count).filter_map(move |at| items.get(at).cloned()))
        });
        Self {
            base,
            items: items.boxed(),
        }
    }

    /// Where it begins: the snapshot to which the first change leads on.
    pub fn base(&self) -> &Snapshot<T> {
        &self.base
    }
}

impl<T> Stream for Changes<T> {
    type Item = Arc<Change<T>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.items.as_mut().poll_next(cx)
    }
}

impl<T> fmt::Debug for Changes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl<T> Diff<T> {
    /// `None` where nothing has been listed yet.
    fn between(before: &State<T>, after: &State<T>) -> Option<Self> {
        let found = differing(&before.entries, &after.entries, |_, _| false);
        let changed = found.into_iter().map(|(key, new)| Changed {
            old: before.entries.get(&key).cloned(),
            key,
            new,
        });
        Some(Self {
            from: before.index,
            to: after.index?,
            changed: changed.collect(),
        })
    }
}
