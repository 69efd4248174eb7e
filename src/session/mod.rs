//! Sessions: a lease that is kept alive on a background task, and everything that hangs on it.
//!
//! ```text
//! Starting ──▶ Live ⇄ Suspect ──▶ Lost
//!     │          └───────┴──────▶ Closed (revoked on purpose)
//!     └──▶ Failed (never granted)
//! ```
//!
//! * A term counts from the instant at which the acknowledged request was **sent**, and ends a
//!   margin before the server can end it. The margin covers clocks that run at different rates,
//!   the time from a check to the act it allows, and on etcd v2 the skew of the members' clocks.
//! * A renewal that fails makes the session suspect, not lost: an outage shorter than what is
//!   left of the term is survived.
//! * Loss is final. An acknowledgement that is processed after the deadline revives nothing.
//!
//! [`machine`] decides, [`driver`] talks to the store, [`retime`] moves a session to a lease of
//! another length, [`rewrite`] gives a key another value, [`who`] says whose session it is,
//! [`term`] is what each ticket or guard sees of it, and the [`janitor`] takes back what was given
//! up.

mod driver;
mod janitor;
mod machine;
mod own;
mod retime;
mod rewrite;
mod spares;
mod term;
mod who;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use janitor::{Chore, Janitor};
pub(crate) use own::OwnSession;
pub(crate) use term::Term;
pub use term::{HoldState, Loss};
pub use who::Who;
pub(crate) use who::{Announcer, sessions};

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId, Tag, Ttl};
use crate::runtime::{Entropy, Instant, Runtime, Tasks};
use crate::store::{Attached, Store};
use machine::Machine;
use rewrite::Doubt;
use spares::{LIFE, Spares};
use term::Content;

/// So many keys that are renewed one by one are worth a warning.
const MANY_KEYS: usize = 200;

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// The lease is being asked for.
    Starting,
    /// The store refused the lease, or could not be reached.
    Failed,
    /// The term is running and the last renewal was answered.
    Live,
    /// The term is running but the last renewal was not answered. Nothing is lost yet.
    Suspect,
    /// The term ended without a renewal, or the store ended the lease.
    Lost,
    /// Nobody needed it any more, or the client was shut down.
    Closed,
}

impl SessionState {
    /// Whether this session can never (again) carry anything.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Lost | Self::Closed)
    }
}

/// A handle on a session. The last one dropped closes it: the driver then revokes the lease.
#[derive(Clone)]
pub(crate) struct Session {
    core: Arc<Core>,
    orders: mpsc::UnboundedSender<Order>,
    _alive: Arc<Alive>,
}

/// What the handles and the driver share.
struct Core {
    store: Arc<dyn Store>,
    runtime: Runtime,
    /// Its name in tags and traces: that of its first lease.
    id: LeaseId,
    /// What is written about it, and where.
    card: who::Card,
    shared: Mutex<Shared>,
    state: watch::Sender<SessionState>,
    /// Told when the next renewal is due sooner.
    sooner: Notify,
    /// Cancelled when the session is to be revoked.
    closing: CancellationToken,
    /// Set when it has been.
    revoked: AtomicBool,
}

/// What becomes of a session, seen by those who must not keep it alive.
pub(crate) struct Fate(Arc<Core>);

impl Fate {
    /// Whether it renews nothing any more.
    pub(crate) fn is_over(&self) -> bool {
        self.0.lock().machine.state().is_over()
    }

    /// Whether its lease was ended, with everything that hung on it.
    pub(crate) fn is_revoked(&self) -> bool {
        self.0.revoked.load(Ordering::Acquire)
    }
}

struct Shared {
    /// What its keys hang on.
    lease: LeaseId,
    /// Other leases that something may hang on: to be ended with it.
    others: BTreeSet<LeaseId>,
    /// The time-to-live that was last asked for.
    asked: Ttl,
    machine: Machine,
    terms: BTreeMap<Key, Arc<Term>>,
    /// What nobody knows the value of: another was sent, and not answered.
    doubtful: Option<Doubt>,
    /// Whether it is to be said whose session this is.
    announced: bool,
    failure: Option<Error>,
    warned: bool,
    /// That of the last tag: they rise.
    nonce: u64,
    /// What can be used again.
    spares: Spares,
}

/// Dropped with the last handle; dropping only sets a flag.
struct Alive(CancellationToken);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Session {
    /// Starts a session and the one task that keeps it, which `tasks` owns.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        runtime: Runtime,
        ttl: Ttl,
        who: &Who,
        tasks: &Tasks,
    ) -> Self {
        let lease = new_lease(&runtime.entropy);
        if ttl < Ttl::MIN_ADVISED {
            tracing::warn!(
                target: "tenure::session", %ttl,
                "a TTL below 5 s: an election of a new etcd leader alone can take longer than is left of it"
            );
        }
        let core = Arc::new(Core {
            store,
            id: lease,
            card: who::Card::new(lease, who),
            shared: Mutex::new(Shared {
                lease,
                others: BTreeSet::new(),
                asked: ttl,
                machine: Machine::new(ttl),
                terms: BTreeMap::new(),
                doubtful: None,
                announced: false,
                failure: None,
                warned: false,
                nonce: 0,
                spares: Spares::default(),
            }),
            state: watch::Sender::new(SessionState::Starting),
            sooner: Notify::new(),
            closing: CancellationToken::new(),
            revoked: AtomicBool::new(false),
            runtime,
        });
        let alive = Arc::new(Alive(core.closing.clone()));
        let (orders, inbox) = mpsc::unbounded_channel();
        tasks.spawn_steady(&core.runtime, driver::drive(core.clone(), inbox));
        Self {
            core,
            orders,
            _alive: alive,
        }
    }

    /// Returns once the lease is granted.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn ready(&self) -> Result<()> {
        let mut state = self.core.state.subscribe();
        let started = state
            .wait_for(|state| *state != SessionState::Starting)
            .await;
        match started.map_or(SessionState::Closed, |state| *state) {
            SessionState::Live | SessionState::Suspect => Ok(()),
            SessionState::Failed => Err(self.failure()),
            SessionState::Starting | SessionState::Closed => {
                Err(Error::new(ErrorKind::Closed, "the session was closed"))
            }
            SessionState::Lost => Err(Loss::Expired.into_error()),
        }
    }

    /// What the session is doing.
    pub(crate) fn state(&self) -> SessionState {
        *self.core.state.borrow()
    }

    /// Whether it is over, by the clock now: its driver may not have woken yet.
    pub(crate) fn is_over(&self) -> bool {
        let now = self.core.runtime.clock.now();
        self.core.lock().machine.expire(now)
    }

    /// The name of the lease that its keys hang on.
    pub(crate) fn lease(&self) -> LeaseId {
        self.core.lock().lease
    }

    /// How long a term is; what was asked for until the store has granted one.
    pub(crate) fn ttl(&self) -> Ttl {
        self.core.lock().machine.ttl()
    }

    /// What becomes of it, without keeping it alive.
    pub(crate) fn fate(&self) -> Fate {
        Fate(self.core.clone())
    }

    /// A tag that no other append has.
    pub(crate) fn tag(&self) -> Tag {
        let Runtime { clock, entropy, .. } = &self.core.runtime;
        let mut shared = self.core.lock();
        shared.nonce = Tag::next_nonce(shared.nonce, clock.wall(), entropy.u64());
        Tag::new(self.core.id, shared.nonce)
    }

    /// A tag for an append to `dir`: one that has done with that line and is hardly older than a
    /// fresh one, or a fresh one. Whether it was used before.
    pub(crate) fn tag_for(&self, dir: &Key) -> (Tag, bool) {
        let spare = self.core.lock().spares.take(dir);
        let wall = self.core.runtime.clock.wall();
        let is_new = |tag: &Tag| tag.made().is_some_and(|made| wall.abs_diff(made) < LIFE);
        match spare.filter(is_new) {
            Some(tag) => (tag, true),
            None => (self.tag(), false),
        }
    }

    /// Nothing of this tag is in the store, and nothing of it can come any more: its append was
    /// answered, and so was the only withdrawal.
    pub(crate) fn spare(&self, dir: &Key, tag: Tag) {
        self.core.lock().spares.put(dir, tag);
    }

    /// From now on keeps `key` alive, which was written with this by a request sent at `sent`.
    pub(crate) fn attach(&self, key: Key, content: impl Into<Content>, sent: Instant) -> Arc<Term> {
        self.core.attach(key, content.into(), sent)
    }

    /// Stops keeping the key of this term alive.
    pub(crate) fn detach(&self, term: &Arc<Term>) {
        self.core.lock().detach(term);
    }

    /// The store has said that the lease is gone.
    pub(crate) fn lose(&self) {
        let mut shared = self.core.lock();
        shared.machine.gone();
        shared.lose_all(Loss::Expired);
        drop(shared);
        self.core.publish(SessionState::Lost);
    }

    /// Renews now, and gives everything that hangs on the session this time-to-live from now on.
    ///
    /// # Errors
    /// `Lost` when something was lost; anything else: it is held on, with one of the two.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing: what was begun goes on.
    pub(crate) async fn renew(&self, ttl: Ttl) -> Result<()> {
        self.order(|done| Order::Renew { ttl, done }).await
    }

    /// Gives a key that it keeps another value, between two renewals.
    ///
    /// # Errors
    /// `Lost` when the key's term ended before the outcome was known; anything else: nothing has
    /// changed, and nothing will.
    ///
    /// # Cancel safety
    /// Dropping the future stops what was not begun; what was begun goes on.
    pub(crate) async fn rewrite(&self, key: Key, value: Bytes) -> Result<()> {
        self.order(|done| Order::Rewrite { key, value, done }).await
    }

    /// Says in the store whose session this is, soon and in the background.
    pub(crate) fn announce(&self) {
        self.announcer().announce();
    }

    /// What says so, for whoever must not keep the session alive.
    pub(crate) fn announcer(&self) -> Announcer {
        Announcer::new(self.orders.clone())
    }

    async fn order(&self, order: impl FnOnce(Done) -> Order) -> Result<()> {
        let (done, answer) = oneshot::channel();
        // A session that is over has stopped listening.
        let _ = self.orders.send(order(done));
        match answer.await {
            Ok(outcome) => outcome,
            Err(_) => Err(Loss::Expired.into_error()),
        }
    }

    /// What closes it, for whoever must not keep it alive.
    pub(crate) fn closer(&self) -> CancellationToken {
        self.core.closing.clone()
    }

    /// Revokes the lease now, whoever still holds a handle.
    pub(crate) fn close(&self) {
        self.core.closing.cancel();
    }

    fn failure(&self) -> Error {
        let Some(cause) = self.core.lock().failure.clone() else {
            return Error::new(ErrorKind::Unavailable, "the store granted no lease");
        };
        // A lease that may have been granted after all harms nobody.
        let kind = match cause.kind() {
            ErrorKind::Ambiguous => ErrorKind::Timeout,
            kind => kind,
        };
        cause.into_kind(kind, "so no lease was granted")
    }
}

/// What a session is told to do.
enum Order {
    /// To renew now, with this time-to-live from now on.
    Renew { ttl: Ttl, done: Done },
    /// To give a key another value.
    Rewrite { key: Key, value: Bytes, done: Done },
    /// To say whose session it is.
    Announce,
}

/// Where an order's outcome goes.
type Done = oneshot::Sender<Result<()>>;

/// A lease that nobody has asked for yet.
pub(crate) fn new_lease(entropy: &Entropy) -> LeaseId {
    loop {
        // 63 bits: etcd takes positive ids only.
        if let Some(lease) = LeaseId::new(entropy.u64() >> 1) {
            return lease;
        }
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on keeps `key` alive: see [`Session::attach`].
    fn attach(&self, key: Key, content: Content, sent: Instant) -> Arc<Term> {
        let mut shared = self.lock();
        let deadline = shared.machine.deadline_of_key(sent);
        let clock = self.runtime.clock.clone();
        let term = Arc::new(Term::new(key.clone(), content, clock, sent, deadline));
        if shared.machine.state().is_over() {
            term.lose(Loss::Expired);
        } else {
            // Whoever uses a name again has detached it. But a store that goes back to a backup gives
            // the same names again: who had it is there no more.
            if let Some(before) = shared.terms.insert(key, term.clone()) {
                before.lose(Loss::Deleted);
            }
            // Its request may have taken so long that it ends before the next renewal is due.
            if shared.machine.mind(deadline, self.runtime.clock.now()) {
                self.sooner.notify_one();
            }
        }
        term
    }

    fn publish(&self, state: SessionState) {
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
        if changed {
            tracing::debug!(target: "tenure::session", lease = %self.id, ?state, "session state");
        }
    }
}

impl Shared {
    /// What is to be renewed. Not what is lost: to keep that alive would keep the next waiting.
    /// And not what is in doubt: a renewal that compares with a value of before would find another
    /// one, and call the key lost. What ends first comes first: there may not be time for all.
    fn attached(&mut self) -> Vec<Attached> {
        self.terms.retain(|_, term| term.check().is_ok());
        let mut certain: Vec<_> = self.certain().collect();
        certain.sort_by_cached_key(|(_, term)| term.deadline());
        let attached = |(key, term): (&Key, &Arc<Term>)| Attached::new(key.clone(), term.value());
        certain.into_iter().map(attached).collect()
    }

    fn certain(&self) -> impl Iterator<Item = (&Key, &Arc<Term>)> {
        let doubtful = self.doubtful.as_ref().map(|doubt| &doubt.key);
        self.terms
            .iter()
            .filter(move |(key, _)| Some(*key) != doubtful)
    }

    /// A key that came during a renewal, or whose own counts from earlier than the session's,
    /// must not end before the next one.
    fn mind_the_earliest(&mut self, now: Instant) {
        if let Some(earliest) = self.earliest() {
            self.machine.mind(earliest, now);
        }
    }

    /// When the first ends of what is to be renewed.
    fn earliest(&self) -> Option<Instant> {
        self.certain().filter_map(|(_, term)| term.deadline()).min()
    }

    /// The session's term has changed, and the margin has grown by `nearer`. That counts for each
    /// key, also for one that no answer told of: it may have waited for the session's only.
    fn reckon_all(&self, nearer: Duration) {
        let end = |since| self.machine.deadline_of_key(since);
        self.terms
            .values()
            .for_each(|term| term.reckon(end, nearer));
    }

    /// Warns, once, when the store makes each key cost a write for each renewal.
    fn count_keys(&mut self, keys: usize) {
        if keys > MANY_KEYS && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                target: "tenure::session", keys,
                "this store renews key by key: each costs the cluster a write every third of a TTL"
            );
        }
    }

    /// Its key may be another's by now, which stays.
    fn detach(&mut self, term: &Arc<Term>) {
        if let Entry::Occupied(entry) = self.terms.entry(term.key().clone())
            && Arc::ptr_eq(entry.get(), term)
        {
            entry.remove();
        }
    }

    /// Ends every term, for one reason.
    fn lose_all(&mut self, loss: Loss) {
        for (_, term) in std::mem::take(&mut self.terms) {
            term.lose(loss);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lease", &self.lease())
            .field("state", &self.state())
            .finish()
    }
}
