//! How a client is made, of a store and its options.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Client, Core, StoreUrl};
use crate::error::Result;
use crate::key::Ttl;
use crate::recipes::cache::Feeds;
use crate::recipes::line::Lines;
use crate::runtime::{Runtime, Tasks};
use crate::session::{Janitor, Who, new_lease};
use crate::store::Store;

/// Options of a [`Client`].
#[must_use = "a builder does nothing until `build`"]
pub struct ClientBuilder {
    store: Arc<dyn Store>,
    ttl: Ttl,
    runtime: Runtime,
    app: Option<String>,
    reopen: Option<Reopen>,
}

/// Makes the store anew.
pub(crate) type Reopen = Arc<dyn Fn() -> Result<Arc<dyn Store>> + Send + Sync>;

impl ClientBuilder {
    pub(super) fn new(store: impl Store) -> Self {
        Self {
            store: Arc::new(store),
            ttl: Ttl::DEFAULT,
            runtime: Runtime::default(),
            app: None,
            reopen: None,
        }
    }

    /// The time-to-live that recipes use unless they say otherwise: how long after its holder's
    /// death a lock can stay taken. Default 10 s; 1 s to 24 h; below 5 s a warning is traced.
    pub fn ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = ttl;
        self
    }

    /// The clock and the random numbers; by default the operating system's.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// What the client calls itself to those who ask [who holds](Client::who) something. Default:
    /// the executable's file name.
    pub fn app(mut self, name: impl Into<String>) -> Self {
        self.app = Some(name.into());
        self
    }

    /// How to make the store anew, without asking it anything yet. Default: not known; where the
    /// client is made of a URL, from that.
    ///
    /// A driver stays with the cluster that it first met: what is locked there means nothing in
    /// another. A [`cache`](Client::cache) is to go on when its cluster is replaced, and needs a
    /// store of its own for that.
    pub fn reopen(
        mut self,
        reopen: impl Fn() -> Result<Arc<dyn Store>> + Send + Sync + 'static,
    ) -> Self {
        self.reopen = Some(Arc::new(reopen));
        self
    }

    pub(super) fn reopen_from(self, url: StoreUrl, runtime: Runtime) -> Self {
        let client = self.runtime(runtime.clone());
        if url.is_embedded() {
            return client; // anew it would be empty
        }
        client.reopen(move || url.store(&runtime))
    }

    /// Makes the client.
    ///
    /// # Panics
    /// Outside a tokio runtime: the client's tasks live there.
    pub fn build(self) -> Client {
        let Self {
            store,
            ttl,
            runtime,
            app,
            reopen,
        } = self;
        let tasks = Tasks::here();
        let core = Core {
            layout: store.about().layout,
            producer: (new_lease(&runtime.entropy), Mutex::default()),
            lines: Lines::new(store.clone(), runtime.clone(), tasks.clone()),
            feeds: Feeds::new(store.clone(), reopen, runtime.clone(), tasks.clone()),
            janitor: Janitor::start(store.clone(), runtime.clone(), &tasks),
            store,
            runtime,
            who: Who::here(app),
            tasks,
            draining: CancellationToken::new(),
            workers: TaskTracker::new(),
            ttl,
            sessions: Mutex::default(),
            own: Mutex::default(),
            closed: AtomicBool::new(false),
            seen: AtomicU64::new(0),
        };
        Client {
            core: Arc::new(core),
        }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("store", &self.store)
            .field("ttl", &self.ttl)
            .field("runtime", &self.runtime)
            .finish_non_exhaustive()
    }
}
