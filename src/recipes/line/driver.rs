//! The task of one line: reads and watches what the machine wants, and tells the tickets.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::machine::{Effect, Machine, Wants};
use super::newcomers::Newcomers;
use super::{Input, Joining, Line, Lines, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, Position, Ttl};
use crate::runtime::{Entropy, Instant};
use crate::session::{Loss, Term};
use crate::store::{Change, Freshness, Get, Layout, Store, Update, Updates, View, Watch};

/// Runs until the last handle on the line is gone, or the client was shut down.
pub(super) async fn drive(
    lines: Arc<Lines>,
    line: Weak<Line>,
    dir: Key,
    ttl: Ttl,
    mut inputs: mpsc::UnboundedReceiver<Input>,
) {
    let mut driver = Driver::new(lines, line, dir, ttl);
    loop {
        driver.tell();
        let wake = driver.arrange();
        driver.forget_what_nobody_asks_for(&inputs);
        tokio::select! {
            biased;
            () = driver.lines.closed.cancelled() => return,
            input = inputs.recv() => match input {
                Some(input) => driver.take(input),
                None => return,
            },
            view = in_flight(&mut driver.listing) => driver.listed(view),
            update = next_seen(&mut driver.eye) => {
                if driver.saw(update) {
                    driver.see_the_rest();
                }
            }
            (key, update) = next_update(&mut driver.watches) => driver.updated(&key, update),
            () = driver.lines.runtime.clock.sleep_until(wake) => driver.woken(),
        }
    }
}

/// A read that is under way.
pub(super) type Listing = BoxFuture<'static, Result<View>>;

struct Driver {
    lines: Arc<Lines>,
    line: Weak<Line>,
    dir: Key,
    layout: Layout,
    machine: Machine,
    tickets: BTreeMap<Position, Seat>,
    newcomers: Newcomers,
    listing: Option<Listing>,
    watches: BTreeMap<Key, KeyWatch>,
    /// The deletions of the whole line, while it is followed.
    eye: Option<Updates>,
    /// Keeps the line, and so this task, while it is followed.
    warm: Option<Arc<Line>>,
    /// No read or watch is begun while it lasts: the last one failed.
    pause: Pause,
    /// Bounds how long a lost event can go unnoticed.
    recheck_every: Duration,
    recheck: Instant,
}

/// One ticket of this process.
pub(super) struct Seat {
    pub(super) term: Arc<Term>,
    pub(super) admitted: Option<oneshot::Sender<Result<u32>>>,
}

struct KeyWatch {
    updates: Updates,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Driver {
    fn new(lines: Arc<Lines>, line: Weak<Line>, dir: Key, ttl: Ttl) -> Self {
        let recheck_every = ttl.get() / 2;
        let recheck = lines.runtime.clock.now() + recheck_every;
        let about = lines.store.about();
        Self {
            layout: about.layout,
            lines,
            line,
            dir,
            machine: Machine::new(about.ranks),
            tickets: BTreeMap::new(),
            newcomers: Newcomers::default(),
            listing: None,
            watches: BTreeMap::new(),
            eye: None,
            warm: None,
            pause: Pause::default(),
            recheck_every,
            recheck,
        }
    }

    fn now(&self) -> Instant {
        self.lines.runtime.clock.now()
    }

    fn take(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Join {
                ticket:
                    Joining {
                        position,
                        at,
                        term,
                        known,
                        ttl,
                        announcer,
                    },
                role,
            } => {
                self.pace(ttl, now);
                let (admitted, holding) = match role {
                    Role::Waiting(admitted) => (Some(admitted), false),
                    Role::Holding => (None, true),
                };
                self.tickets
                    .insert(position.clone(), Seat { term, admitted });
                self.newcomers.joined(now, position.clone(), announcer);
                if holding {
                    self.machine.join_holding(position, at, now);
                } else {
                    self.machine.join(position, at);
                }
                if let Some(view) = known {
                    self.learn(&view);
                }
            }
            Input::Leaving(position) => {
                self.tickets.remove(&position);
                self.machine.leaving(&position, now);
            }
            Input::Left(position, withdrawn) => {
                self.tickets.remove(&position);
                self.machine
                    .left(&position, withdrawn.index, withdrawn.removed);
            }
            Input::Pace(ttl) => self.pace(ttl, now),
        }
    }

    /// Of tickets with several TTLs the shortest counts.
    fn pace(&mut self, ttl: Ttl, now: Instant) {
        self.recheck_every = self.recheck_every.min(ttl.get() / 2);
        self.recheck = self.recheck.min(now + self.recheck_every);
    }

    /// Tells the tickets what the machine found out.
    fn tell(&mut self) {
        loop {
            let effects = self.machine.effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Admit(position) => {
                        let now = self.now();
                        self.machine.holding(&position, now);
                        // The view is as good as new.
                        self.recheck = now + self.recheck_every;
                        if let Some(seat) = self.tickets.get_mut(&position) {
                            answer(seat, Ok(1));
                        }
                    }
                    Effect::Gone(position) => {
                        if let Some(seat) = self.tickets.remove(&position) {
                            seat.term.lose(Loss::Deleted);
                        }
                    }
                    Effect::Intruder(position) => tracing::warn!(
                        target: "tenure::line", dir = %self.dir, ticket = %position.key,
                        "a ticket came back before one that is held: somebody renews with a plain set; \
                         only the fencing token excludes them"
                    ),
                }
            }
        }
    }

    /// Begins and ends reads and watches as the machine wants; returns when to look again.
    fn arrange(&mut self) -> Instant {
        let now = self.now();
        let Wants {
            list,
            watch,
            follow,
            wake,
        } = self.machine.wants(now);
        self.watches.retain(|key, _| watch.contains_key(key));
        if !follow && self.eye.take().is_some() {
            self.machine.shut();
        }
        self.warm = follow
            .then(|| self.warm.take().or_else(|| self.line.upgrade()))
            .flatten();
        let mut next = wake.map_or(self.recheck, |wake| wake.min(self.recheck));
        let is_here = |position: &_| self.tickets.contains_key(position);
        if let Some(settled) = self.newcomers.settle(now, is_here) {
            next = next.min(settled);
        }
        match self.pause.after(now) {
            Some(until) => next = next.min(until),
            None => {
                if follow && self.eye.is_none() {
                    let watch = Watch::tree(self.dir.clone()).deletes_only();
                    self.eye = Some(self.lines.store.watch(watch));
                    self.machine.opening();
                }
                // A list that is wanted may show that a new watch is not.
                if list.is_none() {
                    for (key, from) in watch {
                        if !self.watches.contains_key(&key) {
                            self.open_watch(key, from);
                        }
                    }
                }
                match list {
                    Some(at_least) if self.listing.is_none() => self.begin_list(at_least),
                    Some(_) => {}
                    None => self.listing = None,
                }
            }
        }
        next
    }

    /// Whatever was sent before the line is free of appends has joined when its inbox is empty, and
    /// what is sent after that is newer than all that was told.
    fn forget_what_nobody_asks_for(&mut self, inputs: &mpsc::UnboundedReceiver<Input>) {
        if self.machine.remembers()
            && self.listing.is_none()
            && self.line.upgrade().is_none_or(|line| !line.expects())
            && inputs.is_empty()
        {
            self.machine.caught_up();
        }
    }

    fn begin_list(&mut self, at_least: Index) {
        let store = self.lines.store.clone();
        let get = Get::children(self.dir.clone()).keys_only();
        self.listing = Some(list(store, get, at_least));
    }

    fn open_watch(&mut self, key: Key, from: Index) {
        let ours = self.tickets.keys().any(|position| position.key == key);
        let permit = if ours {
            match self.lines.own_watches.clone().try_acquire_owned() {
                Ok(permit) => Some(permit),
                // The next renewal tells, a third of a term later at most.
                Err(_) => return,
            }
        } else {
            None
        };
        let updates = self
            .lines
            .store
            .watch(Watch::node(key.clone()).from(from).deletes_only());
        self.watches.insert(
            key,
            KeyWatch {
                updates,
                _permit: permit,
            },
        );
    }

    fn listed(&mut self, outcome: Result<View>) {
        self.listing = None;
        match outcome {
            Ok(view) => self.learn(&view),
            Err(error) => self.failed(&error),
        }
    }

    fn learn(&mut self, view: &View) {
        let position = |node: &_| {
            self.layout
                .ticket(&self.dir, node)
                .map(|ticket| ticket.position)
        };
        let tickets = view.nodes.iter().filter_map(position).collect();
        self.machine.listed(view.index, tickets);
    }

    fn updated(&mut self, key: &Key, update: Option<Result<Update>>) {
        match update {
            Some(Ok(Update::Event(event))) if matches!(event.change, Change::Delete { .. }) => {
                self.machine.deleted(&event.key, event.index);
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                self.watches.remove(key);
                self.machine.doubt();
                self.failed(&error);
            }
            // Against the rules; an end tells nothing about the key.
            None => {
                self.watches.remove(key);
                self.machine.doubt();
                let text = "a watch ended without an error";
                self.failed(&Error::new(ErrorKind::Unavailable, text));
            }
        }
    }

    /// Takes in what the eye tells; whether more belongs to it.
    fn saw(&mut self, update: Option<Result<Update>>) -> bool {
        match update {
            Some(Ok(Update::Open(index))) => self.machine.opened(index),
            Some(Ok(Update::Event(event))) => {
                if matches!(event.change, Change::Delete { .. }) {
                    self.machine.deleted(&event.key, event.index);
                    if event.key.below(&self.dir).is_none() {
                        self.machine.missed(event.index);
                    }
                }
                return event.more;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => self.blinked(&error),
            None => {
                let text = "a watch ended without an error";
                self.blinked(&Error::new(ErrorKind::Unavailable, text));
            }
        }
        false
    }

    /// What happened in one step is taken in as one: of tickets that went together none was first
    /// for a moment.
    fn see_the_rest(&mut self) {
        while let Some(update) = next_seen(&mut self.eye).now_or_never() {
            if !self.saw(update) {
                return;
            }
        }
    }

    fn blinked(&mut self, error: &Error) {
        self.eye = None;
        self.machine.shut();
        self.machine.doubt();
        self.failed(error);
    }

    fn woken(&mut self) {
        let now = self.now();
        if now >= self.recheck {
            self.recheck = now + self.recheck_every;
            self.machine.doubt();
        }
    }

    /// Pauses after a failure that may pass; tells the waiters of one that will not. How long to
    /// hope is their session's business: it ends them at its deadline.
    fn failed(&mut self, error: &Error) {
        let passing = error.is_transient()
            || matches!(error.kind(), ErrorKind::Ambiguous | ErrorKind::HistoryLost);
        if error.kind() == ErrorKind::ClusterChanged
            && let Some(index) = error.index()
        {
            // What is watched may wait for an index that is long in coming.
            (self.eye, self.listing) = (None, None);
            self.watches.clear();
            self.machine.forget(index);
        }
        if !passing {
            self.tickets
                .values_mut()
                .for_each(|seat| answer(seat, Err(error.clone())));
        }
        tracing::debug!(target: "tenure::line", dir = %self.dir, %error, "cannot see the line");
        let now = self.now();
        self.pause.begin(now, &self.lines.runtime.entropy);
    }
}

/// A pause after a failure: until when, and its length, which doubles from failure to failure.
#[derive(Default)]
pub(super) struct Pause(Option<(Instant, Duration)>);

impl Pause {
    /// A failure this long after the pause for the one before begins a new series.
    const CALM: Duration = Duration::from_secs(2);

    /// Until when it lasts, if it does.
    pub(super) fn after(&self, now: Instant) -> Option<Instant> {
        self.0.map(|(until, _)| until).filter(|until| now < *until)
    }

    pub(super) fn begin(&mut self, now: Instant, entropy: &Entropy) {
        // A list that succeeds between two watches that fail is no success.
        let length = match self.0 {
            Some((until, length)) if now < until + Self::CALM => length * 2,
            _ => Duration::from_millis(25),
        };
        let length = length.min(Duration::from_secs(1));
        self.0 = Some((now + entropy.jitter(length), length));
    }
}

pub(super) fn answer(seat: &mut Seat, answer: Result<u32>) {
    if let Some(admitted) = seat.admitted.take() {
        // A waiter that has gone away has handed its ticket to the janitor.
        let _ = admitted.send(answer);
    }
}

/// Begins a read whose answer must not be older than this.
pub(super) fn list(store: Arc<dyn Store>, get: Get, at_least: Index) -> Listing {
    Box::pin(async move {
        let view = store.get(get.fresh(Freshness::AtLeast(at_least))).await?;
        if view.index < at_least {
            let text = format!("a list at {} where {at_least} was asked for", view.index);
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(view)
    })
}

/// The read that is under way; never returns if there is none.
pub(super) fn in_flight<'a>(
    listing: &'a mut Option<Listing>,
) -> impl Future<Output = Result<View>> + 'a {
    poll_fn(|cx| match listing {
        Some(view) => Pin::new(view).poll(cx),
        None => Poll::Pending,
    })
}

/// The next update of the line as a whole; never returns if it is not followed.
fn next_seen(eye: &mut Option<Updates>) -> impl Future<Output = Option<Result<Update>>> + '_ {
    poll_fn(|cx| match eye {
        Some(updates) => updates.poll_next_unpin(cx),
        None => Poll::Pending,
    })
}

/// The next update of any watch; never returns if there is none.
fn next_update(
    watches: &mut BTreeMap<Key, KeyWatch>,
) -> impl Future<Output = (Key, Option<Result<Update>>)> {
    poll_fn(|cx| {
        for (key, watch) in watches.iter_mut() {
            if let Poll::Ready(update) = watch.updates.poll_next_unpin(cx) {
                return Poll::Ready((key.clone(), update));
            }
        }
        Poll::Pending
    })
}
