//! What can go wrong, and the plan that says when: scripted faults first, then the dice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// The kinds of calls that a fault can hit: the methods of [`Store`](crate::Store).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // each is the method of that name
pub enum Call {
    Get,
    Put,
    Append,
    Withdraw,
    Delete,
    Watch,
    Commit,
    Grant,
    Renew,
    Revoke,
}

impl Call {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Get,
        Self::Put,
        Self::Append,
        Self::Withdraw,
        Self::Delete,
        Self::Watch,
        Self::Commit,
        Self::Grant,
        Self::Renew,
        Self::Revoke,
    ];

    /// The name of the method.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Append => "append",
            Self::Withdraw => "withdraw",
            Self::Delete => "delete",
            Self::Watch => "watch",
            Self::Commit => "commit",
            Self::Grant => "grant",
            Self::Renew => "renew",
            Self::Revoke => "revoke",
        }
    }

    /// Whether it can change the store, so that a missing answer leaves the outcome unknown.
    pub const fn is_mutation(self) -> bool {
        !matches!(self, Self::Get | Self::Watch)
    }

    /// Whether a driver may send it twice for one call, whatever it changes.
    pub const fn is_repeatable(self) -> bool {
        matches!(
            self,
            Self::Withdraw | Self::Grant | Self::Renew | Self::Revoke
        )
    }
}

/// One thing that goes wrong with one call.
///
/// "No answer" means: after the patience of the [`Faulty`](super::Faulty), the call fails as
/// `Ambiguous` if it is a mutation, as `Timeout` if it is a read or the opening of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It never reaches the store. No answer.
    LostRequest,
    /// The store does it. No answer.
    LostReply,
    /// No answer; and the store does it so long after the caller was told. A read is just lost.
    LateCommit(Duration),
    /// It reaches the store so much later. Then all goes well.
    Delay(Duration),
    /// The store does it at once, and the answer takes so long.
    SlowReply(Duration),
    /// All goes well; and it reaches the store once more so much later, as the first copy of a
    /// request does that was sent again elsewhere. Only of calls that a driver may send twice
    /// (withdraw, grant, renew, revoke); on others nothing goes wrong.
    Echo(Duration),
    /// The store refuses: `Unavailable`.
    Unavailable,
    /// It cannot be sent: `Unreachable`.
    Unreachable,
    /// It never reaches the store and the call never returns. For tests of the caller's own
    /// deadline.
    Hang,
}

/// How likely each fault is, from 0 (never) to 1, and what happens on open watches.
///
/// One die is thrown per call, so the odds of a call's faults should not add up to more than 1.
/// A watch's items throw their own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Odds {
    /// [`Fault::LostRequest`].
    pub lost_request: f64,
    /// [`Fault::LostReply`].
    pub lost_reply: f64,
    /// [`Fault::LateCommit`], by a delay between nothing and `longest`.
    pub late_commit: f64,
    /// [`Fault::Delay`], likewise.
    pub delay: f64,
    /// [`Fault::SlowReply`], likewise.
    pub slow_reply: f64,
    /// [`Fault::Echo`], by a delay between nothing and `longest`.
    pub echo: f64,
    /// [`Fault::Unavailable`].
    pub unavailable: f64,
    /// [`Fault::Unreachable`].
    pub unreachable: f64,
    /// The longest of the delays above; nothing by default.
    pub longest: Duration,
    /// Per item of a watch: it ends with `Unavailable` in the item's place.
    pub watch_ends: f64,
    /// Per item of a watch: it and those after it come up to `longest` later.
    pub watch_delay: f64,
    /// Per event of a watch: it comes twice. No correct store does this: it is for tests of
    /// code that should survive an incorrect one.
    pub watch_repeats: f64,
}

impl Odds {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything that a correct store on a bad network can do, each this likely; no echoes, which
    /// are for a driver to cause.
    pub fn network(each: f64, longest: Duration) -> Self {
        Self {
            lost_request: each,
            lost_reply: each,
            late_commit: each,
            delay: each,
            slow_reply: each,
            echo: 0.0,
            unavailable: each,
            unreachable: each,
            longest,
            watch_ends: each,
            watch_delay: each,
            watch_repeats: 0.0,
        }
    }
}

/// Whether the store can be reached at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outage {
    /// It can.
    #[default]
    None,
    /// Connections are refused: calls fail at once as `Unreachable`, and so do open watches.
    Refused,
    /// Packets vanish: calls get no answer and change nothing; open watches say nothing, and go
    /// on when it is over.
    Silent,
}

/// What happens to the item of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ItemFault {
    Ends,
    Delay(Duration),
    Repeats,
}

/// What open watches need to know at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Signal {
    pub(super) outage: Outage,
    /// How often the open watches were broken on purpose.
    pub(super) breaks: u64,
}

/// When which fault happens. Shared by a `Faulty`, its clones and its watches.
#[derive(Debug)]
pub(super) struct Plan {
    state: Mutex<State>,
    signal: watch::Sender<Signal>,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    odds: BTreeMap<Call, Odds>,
    next: BTreeMap<Call, VecDeque<Fault>>,
    nth: BTreeMap<(Call, u64), Fault>,
    nth_of_all: BTreeMap<u64, Fault>,
    calls: BTreeMap<Call, u64>,
    all_calls: u64,
    patience: Duration,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                rng: fastrand::Rng::with_seed(seed),
                odds: BTreeMap::new(),
                next: BTreeMap::new(),
                nth: BTreeMap::new(),
                nth_of_all: BTreeMap::new(),
                calls: BTreeMap::new(),
                all_calls: 0,
                patience: Duration::from_secs(1),
            }),
            signal: watch::Sender::new(Signal::default()),
        }
    }

    pub(super) fn set_odds(&self, calls: &[Call], odds: Odds) {
        let mut state = self.lock();
        state.odds.extend(calls.iter().map(|&call| (call, odds)));
    }

    pub(super) fn next(&self, call: Call, fault: Fault) {
        self.lock().next.entry(call).or_default().push_back(fault);
    }

    pub(super) fn nth(&self, call: Call, n: u64, fault: Fault) {
        self.lock().nth.insert((call, n), fault);
    }

    pub(super) fn nth_of_all(&self, n: u64, fault: Fault) {
        self.lock().nth_of_all.insert(n, fault);
    }

    /// Forgets what was scripted and the odds; keeps the counts.
    pub(super) fn calm(&self) {
        let mut state = self.lock();
        state.odds.clear();
        state.next.clear();
        state.nth.clear();
        state.nth_of_all.clear();
    }

    pub(super) fn calls(&self, call: Call) -> u64 {
        self.lock().calls.get(&call).copied().unwrap_or_default()
    }

    pub(super) fn all_calls(&self) -> u64 {
        self.lock().all_calls
    }

    pub(super) fn patience(&self) -> Duration {
        self.lock().patience
    }

    pub(super) fn set_patience(&self, patience: Duration) {
        self.lock().patience = patience;
    }

    pub(super) fn set_outage(&self, outage: Outage) {
        self.signal.send_modify(|signal| signal.outage = outage);
    }

    pub(super) fn outage(&self) -> Outage {
        self.signal.borrow().outage
    }

    pub(super) fn break_watches(&self) {
        self.signal.send_modify(|signal| signal.breaks += 1);
    }

    pub(super) fn signals(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    /// Counts a call and says what is to happen to it.
    pub(super) fn draw(&self, call: Call) -> Option<Fault> {
        let state = &mut *self.lock();
        state.all_calls += 1;
        let count = state.calls.entry(call).or_default();
        *count += 1;
        let count = *count;
        if let Some(fault) = state.nth_of_all.remove(&state.all_calls) {
            return Some(fault);
        }
        if let Some(fault) = state.nth.remove(&(call, count)) {
            return Some(fault);
        }
        if let Some(fault) = state.next.get_mut(&call).and_then(VecDeque::pop_front) {
            return Some(fault);
        }
        let odds = state.odds.get(&call).copied()?;
        let (mut die, delay) = (Die(state.rng.f64()), odds.longest.mul_f64(state.rng.f64()));
        Some(match () {
            () if die.falls(odds.lost_request) => Fault::LostRequest,
            () if die.falls(odds.lost_reply) => Fault::LostReply,
            () if die.falls(odds.late_commit) => Fault::LateCommit(delay),
            () if die.falls(odds.delay) => Fault::Delay(delay),
            () if die.falls(odds.slow_reply) => Fault::SlowReply(delay),
            () if die.falls(odds.echo) => Fault::Echo(delay),
            () if die.falls(odds.unavailable) => Fault::Unavailable,
            () if die.falls(odds.unreachable) => Fault::Unreachable,
            () => return None,
        })
    }

    /// Says what is to happen to the next item of an open watch.
    pub(super) fn draw_item(&self) -> Option<ItemFault> {
        let state = &mut *self.lock();
        let odds = state.odds.get(&Call::Watch).copied()?;
        let (mut die, delay) = (Die(state.rng.f64()), odds.longest.mul_f64(state.rng.f64()));
        Some(match () {
            () if die.falls(odds.watch_ends) => ItemFault::Ends,
            () if die.falls(odds.watch_delay) => ItemFault::Delay(delay),
            () if die.falls(odds.watch_repeats) => ItemFault::Repeats,
            () => return None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number between 0 and 1, compared with one slice after the other.
struct Die(f64);

impl Die {
    fn falls(&mut self, odds: f64) -> bool {
        self.0 -= odds;
        self.0 < 0.0
    }
}
