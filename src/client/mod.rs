//! The client: one store, its sessions, its janitor, and the recipes that use them.

mod builder;
#[cfg(feature = "etcd2")]
mod by_hand;
mod shared;
mod shutdown;
mod url;

pub use builder::ClientBuilder;
pub(crate) use builder::Reopen;
pub(crate) use shared::{Core, Keep};
pub use shutdown::Shutdown;
pub use url::StoreUrl;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::key::{Key, Name};
use crate::recipes::by_hand::HandLock;
use crate::recipes::cache::CacheBuilder;
use crate::recipes::election::Election;
use crate::recipes::lock::Lock;
use crate::recipes::multi_lock::MultiLock;
use crate::recipes::queue::Queue;
use crate::recipes::semaphore::Semaphore;
use crate::runtime::Runtime;
use crate::session::{Session, SessionState, Who, sessions};
use crate::store::{Get, Node, Scope, Store};
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

impl Client {
    /// Connects to the store that a URL names, and checks that it answers.
    ///
    /// [`StoreUrl`] has the forms of URLs.
    ///
    /// # Errors
    /// [`InvalidOptions`](crate::ErrorKind::InvalidOptions) for a URL of another form; what the first
    /// request failed with: [`Unreachable`](crate::ErrorKind::Unreachable),
    /// [`Unsupported`](crate::ErrorKind::Unsupported) (v2 is switched off),
    /// [`Protocol`](crate::ErrorKind::Protocol) (that is no etcd), [`Unauthorized`](crate::ErrorKind::Unauthorized).
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
    /// [`InvalidOptions`](crate::ErrorKind::InvalidOptions) for a URL of another form, or files that it
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
        ClientBuilder::new(store)
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
    /// line with other programs.
    ///
    /// On etcd v3 that is the line of Go's `concurrency.NewMutex(session, key)` and of `etcdctl lock
    /// KEY`; the key may be any text that those accept, such as `my/app/lock` or `/my-lock/` (but
    /// not below a prefix in the store's URL). They take **everything** below `key/` for an owner:
    /// a line at `a/b` blocks them, not us, at `a`, and a mutex and an election of one key block
    /// each other. `etcdctl lock` lets its command run on when the lock is lost, and ends with 0.
    ///
    /// On etcd v2 python-etcd's `Lock(client, name)` uses `/_locks/<name>`. It renews with a plain
    /// `set`, which can bring an expired ticket back: with such contenders exclusion rests on the
    /// fencing token alone.
    pub fn raw_lock(&self, key: impl AsRef<str>) -> Lock {
        let dir = self.core.raw_line(key.as_ref());
        Lock::new(self.core.clone(), dir, self.core.ttl)
    }

    /// All locks of these names at once, or none: see [`multi_lock`](crate::recipes::multi_lock). On
    /// etcd v3 and the embedded store 1 write and 1 round trip if all are free, up to 64, and as much
    /// to give them back; on etcd v2 they are taken one after the other. Mixes with those who take
    /// some of the same locks one inside the other, as long as they do so in the order of the names'
    /// keys.
    ///
    /// A bad name, a name given twice, or none at all is reported by the first acquire.
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

    /// The election whose candidates lie directly below this key, whatever made the key: on etcd v3
    /// that of Go's `concurrency.NewElection(session, key)` and of `etcdctl elect KEY`. What
    /// [`raw_lock`](Self::raw_lock) says about keys holds here too.
    pub fn raw_election(&self, key: impl AsRef<str>) -> Election {
        let dir = self.core.raw_line(key.as_ref());
        Election::new(self.core.clone(), dir, self.core.ttl)
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
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("store", &self.core.store)
            .field("ttl", &self.core.ttl)
            .finish_non_exhaustive()
    }
}
