//! A configuration that is always at hand: a tree of keys kept as an immutable snapshot, typed,
//! with its changes, through outages, lost history and restarts.
//!
//! # Protocol
//! 1. **List** the prefix, linearizably, and **watch** it from the index after. Every change makes
//!    a new snapshot that shares with the old one what is the same, and takes its place behind an
//!    atomic pointer: reads never wait, and never meet a half of a change.
//! 2. **A watch that breaks** is taken up where it broke: nothing is lost, nothing comes twice.
//! 3. **History that the store has forgotten** is answered with a new list, which is compared with
//!    the last state, key by key: by the index of creation, so that a deletion with a new creation
//!    is seen, and by value. The index of modification is left out, because refreshing a
//!    time-to-live moves it. What differs is told as *one* [`Change::Resync`].
//! 4. **Another cluster**, or one restored from a backup, is told ([`Change::Trouble`]) and listed
//!    anew, through a store made anew, because a driver stays with the cluster that it first met:
//!    clients made of a URL know how, others by [`reopen`](crate::ClientBuilder::reopen). So is a
//!    store that has refused (credentials, roles), after 5 to 30 s. A cache never stops for good
//!    while it lives.
//! 5. **A watch that says nothing** of what has happened (a server that lost an event, etcd#18089; a
//!    member whose watches lag by more than 10 s) is found out: each 5 to 10 min the store is read
//!    beside the watch and compared with what the watch had led to at that index. What differs is
//!    logged, and told as one `Resync`.
//! 6. Each new value goes through the **decoder**. One that is refused, or at which the decoder
//!    panics, is told ([`Change::Bad`]) and changes nothing: the last good one stays.
//!
//! One watch for each prefix and client, whatever the number of caches, clones and subscribers:
//! typed caches are made of what one feed tells.
//!
//! # What is guaranteed
//! * A [`Snapshot`] is what the store held at its index. Indexes of snapshots never fall, with **one
//!   exception**: when the store is another one (4).
//! * The changes that a subscriber is given, applied to [`Changes::base`], are the snapshot: none is
//!   missed, none invented. Writes of one commit come in one item. A subscriber that is more than
//!   1,024 writes behind gets one `Resync` from what it read last to now, so memory is bounded and
//!   lag is never silent.
//! * When the store is quiet and reachable, the snapshot is what a linearizable read gives.
//! * During an outage the last values stay, [`Stale`](CacheState::Stale) with their
//!   [age](Cache::age).
//!
//! # What is not guaranteed
//! * A read of the cache is not linearizable. Who has just written, and wants to see it, waits with
//!   [`Cache::caught_up_to`] for the index of the write.
//! * [`Live`](CacheState::Live) is what the watch can tell: a server that falls silent is reported
//!   by etcd's drivers after 10 s (`watch_patience`), and one that lags or loses an event is noticed
//!   when the store is read beside the watch (5).
//! * Between two lists only what came of it is seen, not each change.
//! * Keys hidden below the prefix (a segment begins with `_`) are not seen. Directories are no
//!   entries. Of keys that expire, only the end is seen, when the store tells it.
//! * A typed value that is refused leaves the last good one of that *key*, even if the key was
//!   deleted and created in between while the history was lost.
//!
//! # Cost
//! | | writes | requests on etcd v2 | on etcd v3, embedded |
//! |---|---|---|---|
//! | start | 0 | 2: a list (a proposal, because it is linearizable), a watch | 2: a list (1 for each 4 MB), a watch |
//! | each change | 0 | 1 | 0 |
//! | quiet | 0 | 1 each 30 s | 0 |
//! | each 5 to 10 min, and at most 0.2 % of the time | 0 | 1: a list (a proposal) | 1: a list |
//! | a read, another cache, a subscriber | 0 | 0 | 0 |
//! | lost history | 0 | 2: a list, a watch | 2 |
//!
//! Memory: the values once, and twice a tree of about 100 bytes for each key (what is stored, what
//! it was decoded to).
//!
//! # Failure times
//! A change is seen one way after its commit. After an outage the watch is tried again each second
//! at the latest. A member that is cut off is left within the driver's watchdog (3 s) and what its
//! cluster takes to answer.
//!
//! # Source
//! List and watch: etcd's and Kubernetes' reflectors. Comparing creations: CURATOR-911. The shape of
//! resync events: `kube-runtime`'s watcher.

mod audit;
mod board;
mod changes;
mod disk;
mod feed;
mod fold;
mod health;
mod look;
mod snapshot;
mod typed;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::DropGuard;

pub use changes::{Change, Changed, Changes, Diff};
pub(crate) use feed::Feeds;
pub use health::{CacheSource, CacheState};
pub use snapshot::Snapshot;

use self::board::{Board, Writer};
use self::changes::Items;
use self::feed::Feed;
use self::typed::{Decoder, Typed};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Clock;

/// Between two looks for an index that somebody waits for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The keys below a prefix, with their values as `T`. Made by
/// [`Client::cache`](crate::Client::cache). Cloning is cheap and gives the same cache; with the last
/// clone and the last [`Changes`] gone its work ends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// use tenure::{Key, StoreExt, store::Expiry};
///
/// let client = tenure::Client::connect("embedded:").await?;
/// let limit = Key::new("/config/limit")?;
/// client.store().set(&limit, "10".into(), Expiry::Never).await?;
///
/// let config = client
///     .cache("/config")
///     .decode(|_, value| String::from_utf8_lossy(value).parse::<u32>())
///     .start()?;
/// config.synced().await?;
/// assert_eq!(config.get("limit").as_deref(), Some(&10));
///
/// let written = client.store().set(&limit, "many".into(), Expiry::Never).await?;
/// config.caught_up_to(written.index()).await?;
/// assert_eq!(config.get("limit").as_deref(), Some(&10), "the last good one");
/// assert_eq!(config.snapshot().bad().count(), 1);
/// # Ok(()) }
/// ```
pub struct Cache<T> {
    inner: Arc<Inner<T>>,
}

struct Inner<T> {
    prefix: Key,
    board: Board<T, Items<T>>,
    clock: Clock,
    feed: Arc<Feed>,
    _stop: DropGuard,
}

impl<T: Send + Sync + 'static> Cache<T> {
    /// What it follows.
    pub fn prefix(&self) -> &Key {
        &self.inner.prefix
    }

    /// Returns once there is a complete list from the store: at once if there has been one. What
    /// comes from disk does not count. After that [`Cache::state`] tells how things are.
    ///
    /// Waits for as long as the store cannot be reached; put a limit around it.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed): the client was shut down.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn synced(&self) -> Result<()> {
        self.caught_up_to(Index::MIN).await
    }

    /// Returns once the snapshot is at this index or later: after a write of one's own, when the
    /// cache has it. With the index of a linearizable read of the store, what is read from the cache
    /// afterwards is linearizable too.
    ///
    /// The index of a write *outside* the prefix is nothing that a watch tells of: after 100 ms the
    /// prefix is read once more, and again while that does not succeed, with pauses that double up
    /// to 30 s. (Signs of life of the watch would do, if etcd before 3.4.25 did not send them ahead
    /// of events: etcd#15697.)
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed): the client was shut down.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn caught_up_to(&self, index: Index) -> Result<()> {
        let reached = self.inner.board.wait(|state| {
            let reached = state.index.is_some_and(|now| now >= index);
            reached.then_some(())
        });
        let look = async {
            let mut pause = Duration::from_millis(100);
            loop {
                self.inner.clock.sleep(pause).await;
                self.inner.feed.look_for(index);
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        };
        tokio::select! {
            biased;
            reached = reached => reached.ok_or_else(|| {
                let error = Error::new(ErrorKind::Closed, "the client was shut down");
                error.during("follow").at(&self.inner.prefix)
            }),
            () = look => Ok(()), // it never ends
        }
    }

    /// All values at one index. Never waits.
    pub fn snapshot(&self) -> Snapshot<T> {
        Snapshot::new(self.inner.prefix.clone(), self.inner.board.now())
    }

    /// The present value at a key, or at a name below the prefix. Never waits. To read several that
    /// belong together take a [`snapshot`](Self::snapshot).
    pub fn get(&self, key: impl AsRef<str>) -> Option<Arc<T>> {
        let (board, prefix) = (&self.inner.board, &self.inner.prefix);
        board.look(|state| snapshot::get(state, prefix, key.as_ref()))
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.inner.board.look(|state| state.entries.size())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every change from now on, for this subscriber alone.
    pub fn changes(&self) -> Changes<T> {
        Changes::new(self.inner.clone())
    }

    /// Whether it follows the store.
    pub fn state(&self) -> CacheState {
        self.inner.board.look(|state| state.health.state)
    }

    /// How long ago the values were known to be those of the store, on the client's clock: zero
    /// while [`Live`](CacheState::Live). `None` while nothing is known.
    ///
    /// It counts from the last word of the store (a list, a change, on etcd v2 each 30 s a sign of
    /// life), so it never says too little. For values from disk it rests on the wall clocks of then
    /// and now.
    pub fn age(&self) -> Option<Duration> {
        let clock = &self.inner.clock;
        self.inner.board.look(|state| state.health.age(clock))
    }

    /// Where the values come from.
    pub fn source(&self) -> CacheSource {
        self.inner.board.look(|state| state.health.source)
    }

    /// Why it does not follow the store; `None` while it does.
    pub fn last_error(&self) -> Option<Error> {
        self.inner.board.look(|state| state.health.error.clone())
    }

    /// Why the file was not taken at the start, or could not be written the last time.
    pub fn disk_error(&self) -> Option<Error> {
        self.inner
            .board
            .look(|state| state.health.disk_error.clone())
    }
}

// Not derived: that would ask for `T: Clone`.
impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<T> fmt::Debug for Cache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("prefix", &self.inner.prefix)
            .finish_non_exhaustive()
    }
}

/// Options of a [`Cache`].
#[must_use = "a builder does nothing until `start`"]
pub struct CacheBuilder<T = Bytes> {
    feeds: Arc<Feeds>,
    prefix: Result<Key>,
    decoder: Arc<Decoder<T>>,
    disk: Option<PathBuf>,
}

impl CacheBuilder<Bytes> {
    pub(crate) fn new(feeds: Arc<Feeds>, prefix: Result<Key>) -> Self {
        Self {
            feeds,
            prefix,
            decoder: Arc::new(|_, value| Ok(value.clone())),
            disk: None,
        }
    }
}

impl<T: Send + Sync + 'static> CacheBuilder<T> {
    /// Makes values of another type: `decode` gets each new value once and returns what is to be
    /// kept, or why it cannot. Default: the bytes as they are.
    ///
    /// An error, and a panic, are told as [`Change::Bad`], and leave the last good value. It runs in
    /// the cache's task: it should not block.
    pub fn decode<U, E>(
        self,
        decode: impl Fn(&Key, &[u8]) -> std::result::Result<U, E> + Send + Sync + 'static,
    ) -> CacheBuilder<U>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        CacheBuilder {
            feeds: self.feeds,
            prefix: self.prefix,
            decoder: Arc::new(move |key, value| decode(key, value).map_err(Into::into)),
            disk: self.disk,
        }
    }

    /// Keeps the last good values in this file, for the next start: what it has is there, stale,
    /// until the first list. Default: no file.
    ///
    /// It is written after changes, at most once a second, each 5 min without changes, and when the
    /// cache ends; aside, synced, and moved into place, for its owner only. A file that is damaged,
    /// of another prefix or of a later version is not taken, and a write that fails is tried again
    /// after 30 s: see [`Cache::disk_error`].
    pub fn disk(mut self, path: impl Into<PathBuf>) -> Self {
        self.disk = Some(path.into());
        self
    }

    /// Begins to follow. Asks the store nothing yet, so it works while there is none: see
    /// [`Cache::synced`]. With a [file](Self::disk) it blocks to read it.
    ///
    /// # Errors
    /// [`InvalidKey`](ErrorKind::InvalidKey) for the prefix; [`Closed`](ErrorKind::Closed).
    pub fn start(self) -> Result<Cache<T>> {
        let prefix = self.prefix?;
        let feed = self.feeds.feed(&prefix)?;
        let runtime = self.feeds.runtime().clone();
        let reader = feed.board.read();
        let clock = runtime.clock.clone();
        let mut typed = Typed::new(prefix.clone(), runtime, self.decoder, self.disk);
        typed.begin(&reader.seen);
        let writer = Writer::new(typed.state());
        let board = writer.board();
        let stop = self.feeds.closer();
        let guard = stop.clone().drop_guard();
        self.feeds.tasks().spawn(typed.run(reader, writer, stop));
        let inner = Inner {
            prefix,
            board,
            clock,
            feed,
            _stop: guard,
        };
        Ok(Cache {
            inner: Arc::new(inner),
        })
    }
}

impl<T> fmt::Debug for CacheBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("prefix", &self.prefix)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}
