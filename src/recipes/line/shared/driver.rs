//! The task of one shared line: reads and follows what the machine wants, and tells the tickets.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::machine::{Effect, Follow as Wanted, Machine, Wants};
use super::picture::Picture;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Position, Ttl};
use crate::recipes::line::driver::{Listing, Pause, Seat, answer, in_flight, list};
use crate::recipes::line::newcomers::Newcomers;
use crate::recipes::line::rule::Shared;
use crate::recipes::line::{Input, Joining, Line, Lines, Role};
use crate::runtime::Instant;
use crate::session::Loss;
use crate::store::{About, Get, Layout, Scope, View};
use crate::watcher::{Follow, Watcher};

/// Runs until the last handle on the line is gone, or the client was shut down.
pub(in crate::recipes::line) async fn drive(
    lines: Arc<Lines>,
    line: Weak<Line>,
    place: Arc<Shared>,
    ttl: Ttl,
    mut inputs: mpsc::UnboundedReceiver<Input>,
) {
    let mut driver = Driver::new(lines, line, place, ttl);
    loop {
        driver.tell();
        let wake = driver.arrange();
        tokio::select! {
            biased;
            () = driver.lines.closed.cancelled() => return,
            input = inputs.recv() => match input {
                Some(input) => driver.take(input),
                None => return,
            },
            view = in_flight(&mut driver.listing) => driver.listed(view),
            item = next_item(&mut driver.following) => driver.told(item),
            () = driver.lines.runtime.clock.sleep_until(wake) => driver.woken(),
        }
    }
}

struct Driver {
    lines: Arc<Lines>,
    line: Weak<Line>,
    place: Arc<Shared>,
    layout: Layout,
    machine: Machine,
    tickets: BTreeMap<Position, Seat>,
    newcomers: Newcomers,
    listing: Option<Listing>,
    following: Option<Following>,
    /// Whether to follow costs nothing.
    lingers: bool,
    /// While it is followed where that is cheap.
    kept: Option<Kept>,
    /// No read or watch is begun while it lasts: the last one failed.
    pause: Pause,
    /// Bounds how long a lost event can go unnoticed.
    recheck_every: Duration,
    recheck: Instant,
}

struct Following {
    items: Watcher,
    /// One of those for keys that are only held.
    permit: Option<OwnedSemaphorePermit>,
}

/// Keeps a line, and so its task, for as long as it is followed.
struct Kept(Arc<Line>);

impl Kept {
    fn new(line: Arc<Line>) -> Self {
        line.tickets.fetch_add(1, Ordering::AcqRel);
        Self(line)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.tickets.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Driver {
    fn new(lines: Arc<Lines>, line: Weak<Line>, place: Arc<Shared>, ttl: Ttl) -> Self {
        let recheck_every = ttl.get() / 2;
        let recheck = lines.runtime.clock.now() + recheck_every;
        let About { layout, ranks, .. } = lines.store.about();
        Self {
            machine: Machine::new(layout, place.clone(), ranks),
            lingers: ranks,
            kept: None,
            lines,
            line,
            place,
            layout,
            tickets: BTreeMap::new(),
            newcomers: Newcomers::default(),
            listing: None,
            following: None,
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
            Input::Join { ticket, role } => {
                let Joining {
                    position,
                    at,
                    term,
                    known,
                    ttl,
                    announcer,
                } = ticket;
                self.newcomers.joined(now, position.clone(), announcer);
                self.pace(ttl, now);
                let (admitted, holding) = match role {
                    Role::Waiting(admitted) => (Some(admitted), false),
                    Role::Holding => (None, true),
                };
                self.tickets
                    .insert(position.clone(), Seat { term, admitted });
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
                self.machine.leaving(&position, self.now());
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
                    Effect::Admit(position, limit) => {
                        let now = self.now();
                        self.machine.holding(&position, now);
                        if let Some(seat) = self.tickets.get_mut(&position) {
                            answer(seat, Ok(limit));
                        }
                    }
                    Effect::Refuse(position, refusal) => {
                        if let Some(seat) = self.tickets.get_mut(&position) {
                            let error = refusal.into_error().during("wait");
                            answer(seat, Err(error.at(&self.place.limit)));
                        }
                    }
                    Effect::Gone(position) => {
                        if let Some(seat) = self.tickets.remove(&position) {
                            seat.term.lose(Loss::Deleted);
                        }
                    }
                }
            }
        }
    }

    /// Begins and ends reads and the watch as the machine wants; returns when to look again.
    fn arrange(&mut self) -> Instant {
        let now = self.now();
        let Wants { list, follow, wake } = self.machine.wants(now);
        let mut next = wake.map_or(self.recheck, |wake| wake.min(self.recheck));
        let is_here = |position: &_| self.tickets.contains_key(position);
        if let Some(settled) = self.newcomers.settle(now, is_here) {
            next = next.min(settled);
        }
        if follow == Wanted::No && self.following.take().is_some() {
            self.machine.follow(false);
        }
        if self.following.is_none() {
            self.kept = None;
        }
        if let Wanted::From(_, waits) = follow {
            self.pay_for_following(waits);
        }
        if let Some(until) = self.pause.after(now) {
            return next.min(until);
        }
        if let (Wanted::From(index, waits), None) = (follow, &self.following) {
            self.begin_to_follow(index, waits);
        }
        match list {
            Some(at_least) if self.listing.is_none() => self.begin_list(at_least),
            Some(_) => {}
            None => self.listing = None,
        }
        next
    }

    fn begin_list(&mut self, at_least: Index) {
        let store = self.lines.store.clone();
        let get = Get::tree(self.place.root.clone());
        self.listing = Some(list(store, get, at_least));
    }

    fn begin_to_follow(&mut self, known: Index, waits: bool) {
        let permit = if waits {
            None
        } else {
            match self.lines.own_watches.clone().try_acquire_owned() {
                Ok(permit) => Some(permit),
                // The next renewal or reading tells.
                Err(_) => return,
            }
        };
        let (store, root) = (self.lines.store.clone(), self.place.root.clone());
        let runtime = &self.lines.runtime;
        let items = if self.lingers {
            self.kept = self.line.upgrade().map(Kept::new);
            Watcher::from_now(store, root, Scope::Tree, runtime, known)
        } else {
            Watcher::after(store, root, Scope::Tree, runtime, known)
        };
        self.following = Some(Following { items, permit });
        self.machine.follow(true);
    }

    /// A watch that was opened for one who waited counts once nobody does; it ends if there are too
    /// many of those.
    fn pay_for_following(&mut self, waits: bool) {
        let Some(following) = &mut self.following else {
            return;
        };
        if waits {
            following.permit = None;
        } else if following.permit.is_none() {
            match self.lines.own_watches.clone().try_acquire_owned() {
                Ok(permit) => following.permit = Some(permit),
                Err(_) => {
                    self.following = None;
                    self.machine.follow(false);
                }
            }
        }
    }

    fn listed(&mut self, outcome: Result<View>) {
        self.listing = None;
        match outcome {
            Ok(view) => self.learn(&view),
            Err(error) => self.failed(&error),
        }
    }

    fn learn(&mut self, view: &View) {
        let picture = Picture::of(self.layout, &self.place, view);
        self.machine.listed(picture);
    }

    fn told(&mut self, item: Option<Result<Follow>>) {
        match item {
            Some(Ok(Follow::Snapshot(view))) => {
                self.learn(&view);
                self.machine.follow(true);
            }
            Some(Ok(Follow::Event(event))) => self.machine.changed(&event),
            Some(Ok(Follow::Progress(index))) => self.machine.unchanged(index),
            Some(Ok(Follow::Interrupted(_))) => self.machine.interrupted(),
            Some(Ok(Follow::Resumed(_))) => {}
            Some(Err(error)) => {
                self.following = None;
                self.machine.interrupted();
                self.failed(&error);
            }
            // Against the rules: an end without an error.
            None => {
                self.following = None;
                self.machine.interrupted();
            }
        }
    }

    fn woken(&mut self) {
        let now = self.now();
        if now >= self.recheck {
            self.recheck = now + self.recheck_every;
            self.machine.recheck();
        }
    }

    /// Pauses after a failure that may pass; tells the waiters of one that will not. How long to
    /// hope is their session's business: it ends them at its deadline.
    fn failed(&mut self, error: &Error) {
        let passing = error.is_transient()
            || matches!(error.kind(), ErrorKind::Ambiguous | ErrorKind::HistoryLost);
        if error.kind() == ErrorKind::ClusterChanged {
            self.machine.forget();
        }
        if !passing {
            self.tickets
                .values_mut()
                .for_each(|seat| answer(seat, Err(error.clone())));
        }
        tracing::debug!(target: "tenure::line", dir = %self.place.line, %error, "cannot see the line");
        let now = self.now();
        self.pause.begin(now, &self.lines.runtime.entropy);
    }
}

/// The next item of what is followed; never returns if nothing is.
fn next_item(
    following: &mut Option<Following>,
) -> impl Future<Output = Option<Result<Follow>>> + '_ {
    poll_fn(|cx| match following {
        Some(following) => Pin::new(&mut following.items).poll_next_unpin(cx),
        None => Poll::Pending,
    })
}
