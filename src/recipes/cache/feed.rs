//! Feeds: one watch for each prefix and client, whoever reads it.
//!
//! A feed's task goes on for as long as somebody holds its handle. A watcher that ends is replaced
//! by a new one, which begins with a list: at once when the store is another one, after 5 to 30 s
//! when it is that again and again, or when the error is one that somebody has to do something
//! about.
//!
//! Beside the watch the store is read now and then ([`Looks`]), because a server can lose an event
//! without a word (etcd#18089): what differs then is told by a new watcher's list.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::audit::Verdict;
use super::board::{self, State, Writer};
use super::fold::{Fold, Post, Stored, What};
use super::health::{CacheState, Health};
use super::look::{self, Looks, Wanted};
use crate::client::Reopen;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::{Instant, Runtime, Tasks};
use crate::store::{Freshness, Scope, Store};
use crate::watcher::{Follow, Watcher};

/// Each pause after an error that will not pass is drawn between half of this and all; it doubles.
const SLOW: Duration = Duration::from_secs(10);
/// The longest, likewise.
const SLOWEST: Duration = Duration::from_secs(30);

pub(super) type Board = board::Board<Stored, What>;
pub(super) type Reader = board::Reader<Stored, What>;

/// All feeds of a client.
pub(crate) struct Feeds {
    store: Arc<dyn Store>,
    reopen: Option<Reopen>,
    runtime: Runtime,
    tasks: Tasks,
    open: Mutex<BTreeMap<Key, Weak<Feed>>>,
    closed: CancellationToken,
}

impl Feeds {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        reopen: Option<Reopen>,
        runtime: Runtime,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            reopen,
            runtime,
            tasks,
            open: Mutex::default(),
            closed: CancellationToken::new(),
        })
    }

    /// Ends all feeds, and lets no more begin.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Ends with this client's feeds.
    pub(super) fn closer(&self) -> CancellationToken {
        self.closed.child_token()
    }

    /// The feed of this prefix; begins with its first handle.
    pub(super) fn feed(self: &Arc<Self>, prefix: &Key) -> Result<Arc<Feed>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "the client was shut down"));
        }
        if let Some(feed) = open.get(prefix).and_then(Weak::upgrade) {
            return Ok(feed);
        }
        let writer = Writer::new(State::new(Health::loading()));
        let stop = self.closed.child_token();
        let wanted = Arc::new(Wanted::default());
        let feed = Arc::new(Feed {
            prefix: prefix.clone(),
            wanted: wanted.clone(),
            board: writer.board(),
            feeds: Arc::downgrade(self),
            _stop: stop.clone().drop_guard(),
        });
        let driver = Driver {
            store: self.store.clone(),
            reopen: self.reopen.clone(),
            runtime: self.runtime.clone(),
            prefix: prefix.clone(),
            wanted,
            source: Source::Due(self.runtime.clock.now()),
            failures: 0,
            changed: None,
        };
        self.tasks.spawn(driver.run(writer, stop));
        open.insert(prefix.clone(), Arc::downgrade(&feed));
        Ok(feed)
    }
}

impl fmt::Debug for Feeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeds").finish_non_exhaustive()
    }
}

/// A handle on a feed. With the last one gone its task ends.
#[derive(Debug)]
pub(super) struct Feed {
    prefix: Key,
    wanted: Arc<Wanted>,
    pub(super) board: Board,
    feeds: Weak<Feeds>,
    _stop: DropGuard,
}

impl Feed {
    /// Somebody waits for this index, and the watch may not tell of it: it tells of changes below
    /// the prefix.
    pub(super) fn look_for(&self, index: Index) {
        self.wanted.ask(index);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let Some(feeds) = self.feeds.upgrade() else {
            return;
        };
        let mut open = feeds.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Another one may have taken its place already.
        if open
            .get(&self.prefix)
            .is_some_and(|feed| feed.strong_count() == 0)
        {
            open.remove(&self.prefix);
        }
    }
}

struct Driver {
    store: Arc<dyn Store>,
    reopen: Option<Reopen>,
    runtime: Runtime,
    prefix: Key,
    wanted: Arc<Wanted>,
    source: Source,
    /// How many watchers in a row have ended before their first list.
    failures: u32,
    /// When the store was another one for the last time.
    changed: Option<Instant>,
}

enum Source {
    /// A watcher is to begin at this time.
    Due(Instant),
    Open(Watcher),
}

impl Driver {
    async fn run(mut self, writer: Writer<Stored, What>, stop: CancellationToken) {
        let clock = self.runtime.clock.clone();
        let (mut fold, mut looks) = (Fold::new(), Looks::new(self.runtime.clone()));
        let wanted = self.wanted.clone();
        loop {
            let settles_at = fold.settles_at();
            let settled = async {
                match settles_at {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let post = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = looks.next() => {
                    if matches!(event, look::Event::Due) {
                        self.look(&mut looks, Freshness::Linearizable, &fold);
                    }
                    None
                }
                index = wanted.next() => {
                    if index > fold.state().index && let Some(index) = index {
                        self.look(&mut looks, Freshness::AtLeast(index), &fold);
                    }
                    None
                }
                item = self.next() => match item {
                    Ok(item) => {
                        match item {
                            Follow::Snapshot(_) => {
                                self.failures = 0;
                                looks.end();
                            }
                            Follow::Interrupted(_) => looks.end(),
                            _ => {}
                        }
                        fold.take(item, clock.now())
                    }
                    Err(error) => {
                        looks.end();
                        self.rest(&error);
                        fold.failed(error)
                    }
                },
                () = settled => fold.settled(),
            };
            let told = post.is_some();
            if let Some((state, what)) = post {
                writer.post(state, what);
            }
            if told {
                looks.note(fold.state());
            }
            if let Some((state, what)) = self.judge(looks.verdict(), &mut fold) {
                writer.post(state, what);
            }
            // A store in this process can have a thousand changes ready: let the readers in.
            tokio::task::consume_budget().await;
        }
    }

    /// Reads the store beside the watch. While that is known to be behind there is nothing to learn.
    fn look(&self, looks: &mut Looks, freshness: Freshness, fold: &Fold) {
        match fold.state().health.state {
            CacheState::Live => looks.begin((&self.store, &self.prefix), freshness, fold.state()),
            CacheState::Loading | CacheState::Stale => looks.end(),
        }
    }

    fn judge(&mut self, verdict: Verdict, fold: &mut Fold) -> Post {
        let now = self.runtime.clock.now();
        match verdict {
            Verdict::Same(index) => fold.confirmed(index, now),
            Verdict::Lost(index) => {
                tracing::warn!(
                    target: "tenure::cache", prefix = %self.prefix, %index,
                    "the watch has not told what the store holds: listing anew"
                );
                self.source = Source::Due(now);
                None
            }
            Verdict::Open | Verdict::Unknown => None,
        }
    }

    /// What the watcher tells next. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Follow> {
        loop {
            match &mut self.source {
                Source::Due(at) => {
                    self.runtime.clock.sleep_until(*at).await;
                    let (store, key) = (self.store.clone(), self.prefix.clone());
                    let watcher = Watcher::new(store, key, Scope::Tree, &self.runtime);
                    self.source = Source::Open(watcher);
                }
                Source::Open(watcher) => {
                    return watcher.next().await.unwrap_or_else(|| {
                        let text = "a watcher ended without an error";
                        Err(Error::new(ErrorKind::Protocol, text))
                    });
                }
            }
        }
    }

    /// Lets the watcher that has ended be followed by another.
    fn rest(&mut self, error: &Error) {
        let changed = error.kind() == ErrorKind::ClusterChanged;
        let now = self.runtime.clock.now();
        let last = match changed {
            true => self.changed.replace(now),
            false => None,
        };
        // Two clusters behind one name are another store with each request.
        let settled = last.is_none_or(|last| now.since(last) >= SLOWEST);
        let pause = match self.failures {
            0 if changed && settled => Duration::ZERO,
            many => SLOWEST.min(SLOW.saturating_mul(2_u32.saturating_pow(many))),
        };
        self.failures = self.failures.saturating_add(1);
        if changed && let Some(Ok(store)) = self.reopen.as_ref().map(|reopen| reopen()) {
            // The driver at hand stays with the cluster that it first met.
            self.store = store;
        }
        let pause = self.runtime.entropy.jitter(pause);
        tracing::warn!(
            target: "tenure::cache", prefix = %self.prefix, %error, retry_in = ?pause,
            "the watch ended"
        );
        self.source = Source::Due(now + pause);
    }
}
