//! What one process knows about a line: pure, no clock, no I/O.
//!
//! A line is a directory of tickets ordered by position. A ticket is admitted when no live
//! ticket is before it. The machine knows the tickets of this process exactly, and those of
//! others from lists and from the watches that it asks for.
//!
//! # Why an old view is safe to admit on
//! Tickets join at the end only, and a ticket that is gone never comes back. So of the tickets
//! before mine, any view taken at or after my append shows all that will ever be there, and
//! perhaps some that have left since. `complete` is the index up to which that holds: every
//! ticket appended at or before it is in `live`, or is gone.
//!
//! (An assumption about strangers: python-etcd renews by a plain `set`, which can bring an
//! expired ticket back. Such an *intruder* below a held ticket is reported; the next waiter
//! counts it; the holder's fencing token is what keeps it harmless.)
//!
//! # What it costs
//! Only the first waiting ticket of a process needs to know who is before it, so a list is asked
//! for when a ticket becomes first and was appended after the last list. Tickets of this process
//! leave with an acknowledgement, so a handoff inside a process costs no read at all. A foreign
//! predecessor is watched, one key; when it goes, one list tells whether others are still before
//! us, and whether we are still there ourselves: nobody is admitted whose lease was revoked.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::key::{Index, Key, Position};
use crate::runtime::Instant;

/// A ticket of ours that has been held this long has its own key watched; a shorter hold pays
/// nothing.
pub(super) const SHORT_HOLD: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Machine {
    live: BTreeMap<Position, Owner>,
    /// Deletions after `complete`: a list taken earlier may still show these tickets.
    gone: BTreeMap<Key, Index>,
    complete: Option<Index>,
    /// A list is needed that is not older than this.
    stale: Option<Index>,
    effects: Vec<Effect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Another process.
    Foreign,
    /// This process, with the index of the append.
    Ours(Index, Role),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Waiting,
    /// Since when.
    Holding(Instant),
    /// Given up at this time; the janitor is taking it back.
    Leaving(Instant),
}

/// What the driver must tell somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// This ticket is first.
    Admit(Position),
    /// This ticket of ours is not there any more.
    Gone(Position),
    /// This foreign ticket appeared before one that is held.
    Intruder(Position),
}

/// What the driver should be doing. Asked for after every input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// Read the line at or after this index.
    pub(super) list: Option<Index>,
    /// Watch these keys for their deletion, from these indexes.
    pub(super) watch: BTreeMap<Key, Index>,
    /// Ask again at this time.
    pub(super) wake: Option<Instant>,
}

impl Machine {
    /// A ticket of ours was appended at `at` and waits.
    pub(super) fn join(&mut self, ticket: Position, at: Index) {
        self.enter(ticket, at, Role::Waiting);
    }

    /// A ticket of ours was appended at `at` and already found to be first.
    pub(super) fn join_holding(&mut self, ticket: Position, at: Index, now: Instant) {
        self.enter(ticket, at, Role::Holding(now));
    }

    /// Our ticket was admitted and taken.
    pub(super) fn holding(&mut self, ticket: &Position, now: Instant) {
        if let Some(Owner::Ours(_, role)) = self.live.get_mut(ticket) {
            *role = Role::Holding(now);
        }
    }

    /// Our ticket was given up; its deletion is under way.
    pub(super) fn leaving(&mut self, ticket: &Position, now: Instant) {
        if let Some(Owner::Ours(_, role)) = self.live.get_mut(ticket) {
            *role = Role::Leaving(now);
        }
        self.admit();
    }

    /// Our ticket was found to be gone at `index`; whether it was `removed` just then.
    pub(super) fn left(&mut self, ticket: &Position, index: Index, removed: bool) {
        self.live.remove(ticket);
        if !removed {
            // It may have ended long before, and what took it may have taken others of ours.
            self.stale = self.stale.max(Some(index));
        }
        self.remember_gone(&ticket.key, index);
        self.admit();
    }

    /// The line held exactly `tickets` at `index`.
    pub(super) fn listed(&mut self, index: Index, tickets: Vec<Position>) {
        if self.complete.is_some_and(|complete| complete > index) {
            return;
        }
        let lowest_held = self.lowest_held();
        let mut seen = BTreeMap::new();
        for ticket in tickets {
            if self.gone.get(&ticket.key).is_some_and(|gone| *gone > index) {
                continue;
            }
            let owner = self.live.get(&ticket).copied().unwrap_or(Owner::Foreign);
            if !self.live.contains_key(&ticket)
                && lowest_held.as_ref().is_some_and(|held| ticket < *held)
            {
                self.effects.push(Effect::Intruder(ticket.clone()));
            }
            seen.insert(ticket, owner);
        }
        for (ticket, owner) in std::mem::take(&mut self.live) {
            match owner {
                // Appended after the list was taken: the list could not show it.
                Owner::Ours(at, _) if at > index => {
                    seen.insert(ticket, owner);
                }
                Owner::Ours(..) if !seen.contains_key(&ticket) => {
                    self.effects.push(Effect::Gone(ticket));
                }
                Owner::Ours(..) | Owner::Foreign => {}
            }
        }
        self.live = seen;
        self.complete = Some(index);
        self.gone.retain(|_, gone| *gone > index);
        if self.stale.is_some_and(|stale| stale <= index) {
            self.stale = None;
        }
        self.admit();
    }

    /// A watched key was deleted.
    pub(super) fn deleted(&mut self, key: &Key, index: Index) {
        let hit: Vec<Position> = self
            .live
            .keys()
            .filter(|ticket| ticket.key.is_within(key))
            .cloned()
            .collect();
        for ticket in hit {
            match self.live.remove(&ticket) {
                Some(Owner::Ours(_, Role::Leaving(_))) | None => {}
                // What took it may have taken others of ours.
                Some(Owner::Ours(..)) => {
                    self.effects.push(Effect::Gone(ticket.clone()));
                    self.stale = self.stale.max(Some(index));
                }
                // Others may have left unwatched while this one was in front of us, and so may
                // our own: it is not watched while it waits.
                Some(Owner::Foreign) => self.stale = self.stale.max(Some(index)),
            }
            self.remember_gone(&ticket.key, index);
        }
        self.admit();
    }

    /// What is known may be out of date: read again before anything else.
    pub(super) fn doubt(&mut self) {
        let joined = self.live.values().find_map(|owner| match owner {
            Owner::Ours(at, _) => Some(*at),
            Owner::Foreign => None,
        });
        self.stale = self.stale.max(self.complete.or(joined));
    }

    /// What to tell, in order.
    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What to be doing.
    pub(super) fn wants(&self, now: Instant) -> Wants {
        let mut wants = Wants::default();
        for (ticket, owner) in &self.live {
            if let Owner::Ours(at, Role::Holding(since)) = owner {
                self.watch_own(&mut wants, ticket, *at, *since, now);
            }
        }
        let Some((first, at)) = self.first_waiting() else {
            wants.list = self.stale.filter(|_| !wants.watch.is_empty());
            return wants;
        };
        let newest = self.complete.map_or(at, |complete| complete.max(at));
        let known = self.complete == Some(newest);
        let newest = self.stale.map_or(newest, |stale| stale.max(newest));
        match self.live.range(..first.clone()).next_back() {
            Some((before, Owner::Ours(at, Role::Holding(since) | Role::Leaving(since)))) => {
                self.watch_own(&mut wants, before, *at, *since, now);
                wants.list = self.stale;
            }
            // A ticket of ours that waits is before the first that waits: there is none.
            Some((_, Owner::Ours(_, Role::Waiting))) => {}
            Some((before, Owner::Foreign)) if known => {
                let seen = self.complete.unwrap_or(at);
                wants.watch.insert(before.key.clone(), seen.next());
                wants.list = self.stale;
            }
            // Admitted already, only not taken yet.
            None if known && self.stale.is_none() => {}
            Some((_, Owner::Foreign)) | None => wants.list = Some(newest),
        }
        wants
    }

    /// Puts a ticket of ours in, unless it is known to be gone already.
    fn enter(&mut self, ticket: Position, at: Index, role: Role) {
        let known = self.live.contains_key(&ticket);
        let missed = self.complete.is_some_and(|complete| complete >= at) && !known;
        if missed || self.gone.contains_key(&ticket.key) {
            self.effects.push(Effect::Gone(ticket));
        } else {
            self.live.insert(ticket, Owner::Ours(at, role));
            self.admit();
        }
    }

    fn remember_gone(&mut self, key: &Key, index: Index) {
        if self.complete.is_none_or(|complete| complete < index) {
            self.gone.insert(key.clone(), index);
        }
    }

    /// Admits the first waiting ticket if nothing is before it, and nothing has happened since
    /// that may have taken the ticket itself.
    fn admit(&mut self) {
        let Some((first, at)) = self.first_waiting() else {
            return;
        };
        let known = self.complete.is_some_and(|complete| complete >= at);
        if known && self.stale.is_none() && self.live.range(..first.clone()).next().is_none() {
            let effect = Effect::Admit(first);
            if !self.effects.contains(&effect) {
                self.effects.push(effect);
            }
        }
    }

    fn first_waiting(&self) -> Option<(Position, Index)> {
        self.live.iter().find_map(|(ticket, owner)| match owner {
            Owner::Ours(at, Role::Waiting) => Some((ticket.clone(), *at)),
            _ => None,
        })
    }

    fn lowest_held(&self) -> Option<Position> {
        let held = |owner: &Owner| matches!(owner, Owner::Ours(_, Role::Holding(_)));
        self.live
            .iter()
            .find(|(_, owner)| held(owner))
            .map(|(ticket, _)| ticket.clone())
    }

    fn watch_own(
        &self,
        wants: &mut Wants,
        ticket: &Position,
        at: Index,
        since: Instant,
        now: Instant,
    ) {
        let due = since + SHORT_HOLD;
        if now < due {
            wants.wake = Some(wants.wake.map_or(due, |wake| wake.min(due)));
        } else {
            let alive = self.complete.map_or(at, |complete| complete.max(at));
            wants.watch.insert(ticket.key.clone(), alive.next());
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
