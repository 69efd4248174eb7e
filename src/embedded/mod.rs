//! The embedded store: in this process, linearizable, for tests and for services of one process.
//!
//! A synchronous core with the semantics of etcd's v2 store, commits and leases added, behind one
//! lock that is never held across an await. There is no background task: whoever comes next
//! first ends what has expired, and an open watch comes by itself at the time of the next expiry.
//! For more than one process there is etcd.

mod core;
mod journal;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::core::{Core, Outcome};
use crate::runtime::{Clock, Runtime};
use crate::store::Layout;

/// A store in this process. Cloning gives the same store; it is gone with its last clone and
/// its last watch.
///
/// Watches must be polled in a tokio runtime with time enabled, because they wait for expiries.
/// One may have [`Builder::HISTORY_LIMIT`] events unread, then it ends with
/// [`HistoryLost`](crate::ErrorKind::HistoryLost).
///
/// A granted lease that is granted again begins a new term, like one that is renewed, and keeps
/// the longer of both times-to-live. A commit refuses operations of which one is at or below the
/// key of another.
///
/// # Cancel safety
/// Every method of [`Store`](crate::Store) is done at its first poll: a future that was dropped
/// unpolled has done nothing, and none is ever dropped halfway.
///
/// ```
/// use tenure::embedded::Embedded;
/// use tenure::store::Expiry;
/// use tenure::{Key, StoreExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tenure::Result<()> {
/// let store = Embedded::new();
/// let key = Key::new("/config/colour")?;
/// store.set(&key, "red".into(), Expiry::Never).await?;
/// let node = store.node(&key).await?;
/// assert_eq!(node.as_ref().and_then(|node| node.text()), Some("red"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

/// Makes an [`Embedded`] store with options.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    runtime: Runtime,
    history_limit: usize,
    layout: Layout,
}

impl Embedded {
    /// An empty store on the operating system's clock, with a history of
    /// [`Builder::HISTORY_LIMIT`] events.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// An empty store with options.
    pub fn builder() -> Builder {
        Builder {
            runtime: Runtime::default(),
            history_limit: Builder::HISTORY_LIMIT,
            layout: Layout::Numbered,
        }
    }
}

impl Builder {
    /// How many events a store remembers by default, as etcd does.
    pub const HISTORY_LIMIT: usize = 1000;

    /// Reads the time from this runtime's clock. Default: the operating system's.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// How many events the store remembers, and how many one watch may have unread; at least 1.
    /// Default: [`Builder::HISTORY_LIMIT`].
    pub fn history_limit(mut self, events: usize) -> Self {
        self.history_limit = events;
        self
    }

    /// How the tickets of lines are named: as on etcd v2 ([`Layout::Numbered`], the default), or as
    /// on etcd v3 ([`Layout::Leased`]), so that what a service does there can be tested here. Nothing
    /// else changes: the store still has directories, and no keys that break the rules.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// The store.
    pub fn build(self) -> Embedded {
        let clock = self.runtime.clock;
        let mut core = Core::new(self.history_limit, clock.now());
        core.layout = self.layout;
        Embedded {
            shared: Arc::new(Shared {
                clock,
                layout: self.layout,
                core: Mutex::new(core),
            }),
        }
    }
}

/// What the clones and watches of one store share.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    layout: Layout,
    core: Mutex<Core>,
}

impl Shared {
    /// One turn at the core, at the present time: the only way to its verbs.
    fn turn<T>(&self, verb: impl FnOnce(&mut Core) -> Outcome<T>) -> Outcome<T> {
        let mut core = self.lock();
        core.advance(self.clock.now())?;
        let outcome = verb(&mut core);
        let (woken, told) = core.finish();
        drop(core);
        // Not under the lock: whoever is woken may want it at once.
        for waker in woken {
            waker.wake();
        }
        told.and(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // The core does not panic, and each of its steps leaves it whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Embedded {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.shared.lock().index();
        f.debug_struct("Embedded")
            .field("index", &index.get())
            .finish_non_exhaustive()
    }
}
