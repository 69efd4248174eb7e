//! What a client's recipes share: the store, the sessions, and the tasks that serve them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::recipes::cache::Feeds;
use crate::recipes::line::Lines;
use crate::runtime::{Runtime, Tasks};
use crate::session::{Janitor, OwnSession, Session, Who};
use crate::store::{Layout, Store};

/// What a client's recipes share.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) layout: Layout,
    pub(crate) runtime: Runtime,
    pub(crate) lines: Arc<Lines>,
    pub(crate) janitor: Janitor,
    pub(super) feeds: Arc<Feeds>,
    /// Whose sessions these are.
    pub(crate) who: Who,
    pub(super) tasks: Tasks,
    /// Cancelled when the client is about to be shut down.
    pub(crate) draining: CancellationToken,
    /// The workers that are to end before it is.
    pub(super) workers: TaskTracker,
    pub(super) ttl: Ttl,
    pub(super) sessions: Mutex<BTreeMap<Ttl, Session>>,
    /// Closes the sessions that belong to one lock each.
    pub(super) own: Mutex<Vec<CancellationToken>>,
    pub(super) closed: AtomicBool,
    pub(super) seen: AtomicU64,
    /// The name under which jobs are pushed, and the nonce of the last.
    pub(super) producer: (LeaseId, Mutex<u64>),
}

/// Which session keeps something alive.
#[derive(Clone, Debug)]
pub(crate) enum Keep {
    /// The one that everything of this time-to-live shares.
    Shared(Ttl),
    /// One that belongs to one lock.
    Own(Arc<OwnSession>),
}

impl Keep {
    pub(crate) fn ttl(&self) -> Ttl {
        match self {
            Self::Shared(ttl) => *ttl,
            Self::Own(own) => own.ttl(),
        }
    }
}

impl Core {
    /// The session that keeps this alive; a new one if there is none or it is over.
    pub(crate) fn session(&self, keep: &Keep) -> Result<Session> {
        let ttl = match keep {
            Keep::Shared(ttl) => *ttl,
            Keep::Own(own) => return own.get(|ttl| self.own_session(ttl)),
        };
        let mut sessions = self.sessions();
        // With the lock held: a shutdown that comes now finds what is put in below.
        self.open()?;
        if let Some(session) = sessions.get(&ttl).filter(|session| !session.is_over()) {
            return Ok(session.clone());
        }
        let session = self.start_session(ttl);
        if let Some(over) = sessions.insert(ttl, session.clone()) {
            // What still hangs on it keeps it: a shutdown must find it too.
            let mut own = self.own();
            own.retain(|closer| !closer.is_cancelled());
            own.push(over.closer());
        }
        Ok(session)
    }

    fn own_session(&self, ttl: Ttl) -> Result<Session> {
        let mut own = self.own();
        // With the lock held, as above.
        self.open()?;
        let session = self.start_session(ttl);
        own.retain(|closer| !closer.is_cancelled());
        own.push(session.closer());
        Ok(session)
    }

    /// Runs a task of a recipe, on the runtime in which the client was made.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// A worker that a shutdown waits for, until this is dropped.
    pub(crate) fn working(&self) -> TaskTrackerToken {
        self.workers.token()
    }

    /// The key of a line that other programs share, as they wrote it.
    pub(super) fn raw_line(&self, text: &str) -> Result<Key> {
        let plain = Key::new(text);
        if !self.store.about().verbatim {
            return plain;
        }
        match plain {
            Ok(root) if root.is_root() => {
                let text = "the root is no line: to other programs the line of this name lies \
                            at `//`, and everything else lies in it";
                Err(Error::new(ErrorKind::InvalidKey, text))
            }
            Ok(plain) => Ok(plain),
            Err(_) => Key::verbatim(text),
        }
    }

    /// A tag that nothing else has, of what hangs on no session. They rise.
    pub(crate) fn job_tag(&self) -> Tag {
        let (name, last) = &self.producer;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Tag::next_nonce(*last, self.runtime.clock.wall(), self.runtime.entropy.u64());
        Tag::new(*name, *last)
    }

    fn start_session(&self, ttl: Ttl) -> Session {
        let (store, runtime) = (self.store.clone(), self.runtime.clone());
        Session::start(store, runtime, ttl, &self.who, &self.tasks)
    }

    /// An error if the client was shut down.
    pub(crate) fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the client was shut down"));
        }
        Ok(())
    }

    /// Remembers that the store has reached this index.
    pub(crate) fn saw(&self, index: Index) {
        self.seen.fetch_max(index.get(), Ordering::AcqRel);
    }

    /// Forgets it: the store is another, or was restored from a backup.
    pub(crate) fn forget_seen(&self) {
        self.seen.store(0, Ordering::Release);
    }

    /// The latest index that this client knows of.
    pub(crate) fn seen(&self) -> Option<Index> {
        Index::new(self.seen.load(Ordering::Acquire))
    }

    pub(super) fn own(&self) -> MutexGuard<'_, Vec<CancellationToken>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, BTreeMap<Ttl, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}
