//! The client: one store, its sessions, its janitor, and the recipes that use them.

#[cfg(feature = "etcd2")]
mod by_hand;
mod url;

pub use url::StoreUrl;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId, Name, Tag, Ttl};
use crate::recipes::by_hand::HandLock;
use crate::recipes::cache::{CacheBuilder, Feeds};
use crate::recipes::election::Election;
use crate::recipes::line::Lines;
use crate::recipes::lock::Lock;
use crate::recipes::multi_lock::MultiLock;
use crate::recipes::queue::Queue;
use crate::recipes::semaphore::Semaphore;
use crate::runtime::{Runtime, Tasks};
use crate::session::{Janitor, OwnSession, Session, SessionState, Who, new_lease, sessions};
use crate::store::{Get, Layout, Node, Scope, Store};
use crate::watcher::Watcher;

/// A handle on a store, from which recipes are made. Cloning is cheap and shares everything.
///
/// All recipes of a client share one session (one for each time-to-live in use): a lease that is
/// granted at first use and kept alive by a background task on the tokio runtime. Dropping the
/// last clone, recipe and guard ends it; [`Client::shutdown`] does so and waits. The tasks run on
/// the tokio runtime in which the client was made, and end with it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tenure::Result<()> {
/// let client = tenure::Client::connect("embedded:").await?;
/// let guard = client.lock("reports/nightly").acquire().await?;
/// println!("working under fencing token {}", guard.token());
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
}

/// What a client's recipes share.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) layout: Layout,
    pub(crate) runtime: Runtime,
    pub(crate) lines: Arc<Lines>,
    pub(crate) janitor: Janitor,
    feeds: Arc<Feeds>,
    /// Whose sessions these are.
    pub(crate) who: Who,
    tasks: Tasks,
    /// Cancelled when the client is about to be shut down.
    pub(crate) draining: CancellationToken,
    /// The workers that are to end before it is.
    workers: TaskTracker,
    ttl: Ttl,
    sessions: Mutex<BTreeMap<Ttl, Session>>,
    /// Closes the sessions that belong to one lock each.
    own: Mutex<Vec<CancellationToken>>,
    closed: AtomicBool,
    seen: AtomicU64,
    /// The name under which jobs are pushed, and the nonce of the last.
    producer: (LeaseId, Mutex<u64>),
}

impl Client {
    /// Connects to the store that a URL names, and checks that it answers.
    ///
    /// [`StoreUrl`] has the forms of URLs.
    ///
    /// # Errors
    /// [`InvalidOptions`](ErrorKind::InvalidOptions) for a URL of another form; what the first
    /// request failed with: [`Unreachable`](ErrorKind::Unreachable),
    /// [`Unsupported`](ErrorKind::Unsupported) (v2 is switched off),
    /// [`Protocol`](ErrorKind::Protocol) (that is no etcd), [`Unauthorized`](ErrorKind::Unauthorized).
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self> {
        Self::connect_with(url, Runtime::default()).await
    }

    /// Connects as [`connect`](Self::connect) does, with this clock, these random numbers, and,
    /// if it has one, renewals on its [own thread](Runtime::with_own_thread).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn connect_with(url: impl AsRef<str>, runtime: Runtime) -> Result<Self> {
        let url = StoreUrl::parse(url.as_ref())?;
        let store = url.open(&runtime).await?;
        Ok(Self::builder(store).reopen_from(url, runtime).build())
    }

    /// A client of the store that a URL names, without asking it anything yet: as
    /// [`connect`](Self::connect), for a service that has to start while the store is down.
    ///
    /// # Errors
    /// [`InvalidOptions`](ErrorKind::InvalidOptions) for a URL of another form, or files that it
    /// names and that cannot be used.
    ///
    /// # Panics
    /// Outside a tokio runtime: the client's tasks live there.
    pub fn open(url: impl AsRef<str>) -> Result<Self> {
        Self::open_with(url, Runtime::default())
    }

    /// As [`open`](Self::open), with this clock and these random numbers: see
    /// [`connect_with`](Self::connect_with).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open_with(url: impl AsRef<str>, runtime: Runtime) -> Result<Self> {
        let url = StoreUrl::parse(url.as_ref())?;
        let store = url.store(&runtime)?;
        Ok(Self::builder(store).reopen_from(url, runtime).build())
    }

    /// A client of this store, without asking it anything yet.
    ///
    /// # Panics
    /// Outside a tokio runtime: the client's tasks live there.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// A client of this store, with options.
    pub fn builder(store: impl Store) -> ClientBuilder {
        ClientBuilder {
            store: Arc::new(store),
            ttl: Ttl::DEFAULT,
            runtime: Runtime::default(),
            app: None,
            reopen: None,
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.core.store
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.core.runtime
    }

    /// The lock of this name. A bad name is reported by the first acquire.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        let dir = Name::new(name).and_then(|name| Key::root().join("_locks")?.join(name.segment()));
        Lock::new(self.core.clone(), dir, self.core.ttl)
    }

    /// The lock whose tickets lie directly below this key, whatever made the key: for sharing a
    /// line with other programs. python-etcd's `Lock(client, name)` uses `/_locks/<name>`.
    ///
    /// python-etcd renews with a plain `set`, which can bring an expired ticket back: with such
    /// contenders exclusion rests on the fencing token alone.
    pub fn raw_lock(&self, key: impl AsRef<str>) -> Lock {
        Lock::new(self.core.clone(), Key::new(key), self.core.ttl)
    }

    /// All locks of these names at once: see [`multi_lock`](crate::recipes::multi_lock). A bad name,
    /// a name given twice, or none at all is reported by the first acquire.
    pub fn lock_all<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> MultiLock {
        let names = names.into_iter().map(|name| name.as_ref().to_owned());
        MultiLock::new(self, names.collect())
    }

    /// The election of this name. A bad name is reported by the first use.
    pub fn election(&self, name: impl AsRef<str>) -> Election {
        let dir =
            Name::new(name).and_then(|name| Key::root().join("_elections")?.join(name.segment()));
        Election::new(self.core.clone(), dir, self.core.ttl)
    }

    /// The election whose candidates lie directly below this key, whatever made the key.
    pub fn raw_election(&self, key: impl AsRef<str>) -> Election {
        Election::new(self.core.clone(), Key::new(key), self.core.ttl)
    }

    /// The lock of this name to be taken and given back by hand, as python-etcd has it: one object
    /// with `acquire`, `is_locked`, `renew` and `release`, and a session of its own.
    ///
    /// The line is `/_locks/<name>`; one leading `/` of the name is dropped, and others make
    /// directories, so python-etcd (0.4.1 and later) queues in the same line. That means two names of
    /// which one continues the other (`a` and `a/b`) share directories; to python, not to us, the
    /// tickets of `a/b` stand in the line of `a` too. And see [`raw_lock`](Self::raw_lock) about
    /// python's renewals.
    ///
    /// A bad name or TTL (1 s to 24 h) is reported by the first acquire.
    pub fn get_lock(&self, name: impl AsRef<str>, ttl: Duration) -> HandLock {
        HandLock::new(self.core.clone(), name.as_ref(), ttl)
    }

    /// The queue of this name. A bad name is reported by the first use.
    pub fn queue(&self, name: impl AsRef<str>) -> Queue {
        Queue::named(self.core.clone(), name.as_ref(), self.core.ttl)
    }

    /// The queue of the jobs that lie directly below this key, whoever appends them: for plain
    /// producers, in any language, that write with an in-order POST on etcd v2. What is known
    /// about the jobs lies elsewhere.
    pub fn raw_queue(&self, key: impl AsRef<str>) -> Queue {
        Queue::raw(self.core.clone(), Key::new(key), self.core.ttl)
    }

    /// The semaphore of this name. A bad name is reported by the first acquire.
    pub fn semaphore(&self, name: impl AsRef<str>) -> Semaphore {
        let root =
            Name::new(name).and_then(|name| Key::root().join("_semaphores")?.join(name.segment()));
        Semaphore::new(self.core.clone(), root, self.core.ttl)
    }

    /// Follows a key, alone or with all below it: what is there now, and every change from then on.
    /// See [`watcher`](crate::watcher) for what is promised.
    ///
    /// Belongs to whoever polls it: a [`shutdown`](Self::shutdown) does not end it.
    pub fn follow(&self, key: &Key, scope: Scope) -> Watcher {
        Watcher::new(self.store().clone(), key.clone(), scope, &self.core.runtime)
    }

    /// A copy of all keys below this one, always at hand: see [`cache`](crate::recipes::cache) for
    /// what is promised.
    ///
    /// A bad key is reported by [`CacheBuilder::start`].
    pub fn cache(&self, prefix: impl AsRef<str>) -> CacheBuilder {
        CacheBuilder::new(self.core.feeds.clone(), Key::new(prefix))
    }

    /// What the session that recipes share by default is doing; `None` before its first use. Locks
    /// with a TTL of their own have another.
    ///
    /// This is no health check: a store without leases (etcd v2) is asked about keys only, so a
    /// session without keys is `Live` without anybody having been asked.
    pub fn session_state(&self) -> Option<SessionState> {
        self.core.sessions().get(&self.core.ttl).map(Session::state)
    }

    /// Whose session this is ([`Contender::session`](crate::recipes::contender::Contender::session)), read linearizably. `None` when it has ended,
    /// or is too young to have said so: a session is announced once something of it has stood in
    /// line or been held for 250 ms, or when it campaigns.
    ///
    /// It is what the session says of itself, for people to read.
    ///
    /// # Errors
    /// Those of every read.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn who(&self, session: u64) -> Result<Option<Who>> {
        let key = sessions()?.join(&format!("{session:016x}"))?;
        let view = self.core.store.get(Get::node(key)).await;
        let view = view.map_err(|error| error.during("who"))?;
        Ok(view.nodes.first().and_then(|node| Who::parse(&node.value)))
    }

    /// All sessions that have [announced](Self::who) themselves, by their number, in one
    /// linearizable read.
    ///
    /// # Errors
    /// Those of every read.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn sessions(&self) -> Result<BTreeMap<u64, Who>> {
        let view = self.core.store.get(Get::children(sessions()?)).await;
        let view = view.map_err(|error| error.during("sessions"))?;
        let read = |node: &Node| {
            let session = u64::from_str_radix(node.key.name(), 16).ok()?;
            Some((session, Who::parse(&node.value)?))
        };
        Ok(view.nodes.iter().filter_map(read).collect())
    }

    /// Returns once everything that was given up (dropped guards, cancelled acquires) has been
    /// taken back or left to its time-to-live.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn idle(&self) {
        self.core.janitor.idle().await;
    }

    /// Returns once a [`shutdown`](Self::shutdown) has begun: for loops of your own, which can end
    /// what they have begun. The shutdown does not wait for them.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn closing(&self) {
        self.core.draining.cancelled().await;
    }

    /// Ends the client: lets [workers](crate::recipes::queue::Worker) end the jobs that they have
    /// begun, for at most half of `deadline`; then refuses new work, revokes the sessions (which
    /// deletes what hangs on them), finishes what was given up, and waits for the tasks, for at
    /// most `deadline` in all.
    ///
    /// Guards that are still held are lost: release them first.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting; the shutdown goes on as far as tasks still run.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        let core = &self.core;
        let limit = core.runtime.clock.now() + deadline;
        core.draining.cancel();
        core.workers.close();
        tokio::select! {
            biased;
            () = core.workers.wait() => {}
            () = core.runtime.clock.sleep(deadline / 2) => {}
        }
        core.closed.store(true, Ordering::Release);
        // First, because it frees most: clean-ups can take all the time there is.
        for session in std::mem::take(&mut *core.sessions()).into_values() {
            session.close();
        }
        for closer in std::mem::take(&mut *core.own()) {
            closer.cancel();
        }
        core.feeds.close();
        tokio::select! {
            biased;
            () = core.janitor.idle() => {}
            // The last eighth is for the tasks to end.
            () = core.runtime.clock.sleep_until(limit - deadline / 8) => {}
        }
        core.janitor.stop();
        // Every session is closed, and with it all that stood in a line.
        core.lines.close();
        tokio::select! {
            biased;
            () = core.tasks.ended() => {}
            () = core.runtime.clock.sleep_until(limit) => {}
        }
        Shutdown {
            left_to_ttl: core.janitor.left() + core.janitor.open(),
            tasks_left: core.tasks.len(),
        }
    }
}

/// What a [shutdown](Client::shutdown) could not finish in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Tickets that the server will remove at the end of their time-to-live, since the client
    /// was made.
    pub left_to_ttl: usize,
    /// Background tasks that still run: those that still wait for the store.
    pub tasks_left: usize,
}

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

    fn reopen_from(self, url: StoreUrl, runtime: Runtime) -> Self {
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

    fn own(&self) -> MutexGuard<'_, Vec<CancellationToken>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<Ttl, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("store", &self.core.store)
            .field("ttl", &self.core.ttl)
            .finish_non_exhaustive()
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

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}
