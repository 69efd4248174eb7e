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
//! leave with an acknowledgement, so a handoff inside a process costs no read at all. For others
//! there are two ways:
//!
//! ```text
//! Shut ──a foreign ticket is waited for, appends tell who is before──▶ Opening ──▶ Open(at)
//!   ▲                                                                                 │
//!   └──── nobody waits or holds, and has not for a second; or the line is long ───────┘
//! ```
//!
//! * **Shut**: the predecessor is watched, one key; when it goes, one list tells whether others are
//!   still before us, and whether we are still there ourselves.
//! * **Open**: all deletions in the line are told, after `at`. With a list at or after `at`, or an
//!   append that came later and told who was before it, the line is *covered*: the next one needs
//!   no read at all, and neither does the one after it. What is told of deletions must be kept for as
//!   long as an append is under way: its answer may be older.
//!
//! Either way nobody is admitted whose lease was revoked: a ticket of ours that went is told, or
//! looked for.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::key::{Index, Key, Position};
use crate::runtime::Instant;

/// A ticket of ours that has been held this long has its own key watched; a shorter hold pays
/// nothing.
pub(super) const SHORT_HOLD: Duration = Duration::from_millis(250);

/// For so long the line is followed after our last ticket: who comes back needs no read.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// A line of more tickets is not begun to be followed for one waiter, and one of more than four
/// times as many not followed any longer: each deletion is told to all who follow.
const SHORT: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Whether the line may be followed as a whole.
    follows: bool,
    eye: Eye,
    /// Until when it is followed without a ticket of ours.
    warm_until: Option<Instant>,
    live: BTreeMap<Position, Owner>,
    /// Deletions after `complete`: a list taken earlier may still show these tickets.
    gone: BTreeMap<Key, Index>,
    /// What was forgotten of those: no list older than this is of use.
    forgotten: Option<Index>,
    complete: Option<Index>,
    /// A list is needed that is not older than this.
    stale: Option<Index>,
    effects: Vec<Effect>,
}

/// How the line as a whole is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Eye {
    #[default]
    Shut,
    Opening,
    /// Every deletion after this index is told, in order.
    Open(Index),
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

impl Owner {
    /// Whether it is ours and was appended after this index.
    fn came_after(self, index: Index) -> bool {
        matches!(self, Self::Ours(at, _) if at > index)
    }
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
    /// Follow the deletions of the whole line.
    pub(super) follow: bool,
    /// Ask again at this time.
    pub(super) wake: Option<Instant>,
}

impl Machine {
    /// Knows nothing yet. `follows`: where appends tell who is before, so that it pays to follow the
    /// line.
    pub(super) fn new(follows: bool) -> Self {
        Self {
            follows,
            ..Self::default()
        }
    }

    /// The line is going to be followed.
    pub(super) fn opening(&mut self) {
        self.eye = Eye::Opening;
    }

    /// From now on every deletion after `index` is told.
    pub(super) fn opened(&mut self, index: Index) {
        self.eye = Eye::Open(index);
    }

    /// The line is not followed any more.
    pub(super) fn shut(&mut self) {
        self.eye = Eye::Shut;
    }

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
        self.warm_until = (self.eye != Eye::Shut).then(|| now + LINGER);
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

    /// A key was deleted that is watched, or lies in the line that is followed.
    pub(super) fn deleted(&mut self, key: &Key, index: Index) {
        if self.complete.is_some_and(|complete| index <= complete) {
            return;
        }
        let covered = self.is_covered();
        // The answer to an append, or a list, that is under way may be older.
        self.remember_gone(key, index);
        let hit: Vec<Position> = self
            .live
            .iter()
            .filter(|(ticket, owner)| ticket.key.is_within(key) && !owner.came_after(index))
            .map(|(ticket, _)| ticket.clone())
            .collect();
        for ticket in hit {
            self.remember_gone(&ticket.key, index);
            match self.live.remove(&ticket) {
                Some(Owner::Ours(_, Role::Leaving(_))) | None => continue,
                Some(Owner::Ours(..)) => {
                    // It went together with what was before it.
                    let admitted = Effect::Admit(ticket.clone());
                    self.effects.retain(|effect| *effect != admitted);
                    self.effects.push(Effect::Gone(ticket.clone()));
                }
                Some(Owner::Foreign) => {}
            }
            if !covered {
                // What took it may have taken others of ours; and others may have left unwatched
                // while this one was in front of us.
                self.stale = self.stale.max(Some(index));
            }
        }
        self.admit();
    }

    /// What happened at `index` may have taken any of the tickets.
    pub(super) fn missed(&mut self, index: Index) {
        self.stale = self.stale.max(Some(index));
    }

    /// What is known may be out of date: read again before anything else.
    pub(super) fn doubt(&mut self) {
        let joined = self.live.values().find_map(|owner| match owner {
            Owner::Ours(at, _) => Some(*at),
            Owner::Foreign => None,
        });
        self.stale = self.stale.max(self.complete.or(joined));
    }

    /// The store was at `index` when it turned out to be another than before, or an earlier one:
    /// what was known counts for nothing, and what is ours has to be seen there.
    pub(super) fn forget(&mut self, index: Index) {
        self.eye = Eye::Shut;
        self.gone.clear();
        (self.forgotten, self.complete) = (None, None);
        self.live.retain(|_, owner| *owner != Owner::Foreign);
        for owner in self.live.values_mut() {
            if let Owner::Ours(at, _) = owner {
                *at = index;
            }
        }
        self.stale = Some(index);
    }

    /// No answer is awaited any more that could be older than what was told: what has gone need not
    /// be remembered.
    pub(super) fn caught_up(&mut self) {
        let last = std::mem::take(&mut self.gone).into_values().max();
        self.forgotten = self.forgotten.max(last);
    }

    /// Whether anything is remembered to have gone.
    pub(super) fn remembers(&self) -> bool {
        !self.gone.is_empty()
    }

    /// What to tell, in order.
    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What to be doing.
    pub(super) fn wants(&self, now: Instant) -> Wants {
        let mut wants = self.wants_of_keys(now);
        wants.list = wants
            .list
            .map(|list| self.forgotten.map_or(list, |it| it.max(list)));
        wants.follow = self.should_follow(now);
        if wants.follow {
            // All of them are told.
            wants.watch.clear();
            if let Some(until) = self.warm_until.filter(|until| now < *until) {
                wants.wake = Some(wants.wake.map_or(until, |wake| wake.min(until)));
            }
        }
        wants
    }

    fn wants_of_keys(&self, now: Instant) -> Wants {
        let mut wants = Wants::default();
        let unseen = self.unseen();
        for (ticket, owner) in &self.live {
            if let Owner::Ours(at, Role::Holding(since)) = owner {
                self.watch_own(&mut wants, ticket, *at, *since, now);
            }
        }
        let Some((first, at)) = self.first_waiting() else {
            let list = self.stale.max(unseen);
            wants.list = list.filter(|_| !wants.watch.is_empty());
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
                wants.list = self.stale.max(unseen);
            }
            // Admitted already, only not taken yet.
            None if known && self.stale.is_none() => {}
            Some((_, Owner::Foreign)) | None => wants.list = Some(newest),
        }
        wants
    }

    /// Whether to follow the line as a whole.
    fn should_follow(&self, now: Instant) -> bool {
        if !self.follows {
            return false;
        }
        let open = self.eye != Eye::Shut;
        let waits_for_another = self.first_waiting().is_some_and(|(first, _)| {
            let before = self.live.range(..first).next_back();
            before.is_some_and(|(_, owner)| *owner == Owner::Foreign)
        });
        if !waits_for_another {
            let ours = |owner: &Owner| *owner != Owner::Foreign;
            let warm = self.warm_until.is_some_and(|until| now < until);
            return open && (warm || self.live.values().any(ours));
        }
        let waiting = |owner: &&Owner| matches!(owner, Owner::Ours(_, Role::Waiting));
        let most = if open { SHORT * 4 } else { SHORT };
        self.live.len() <= most || self.live.values().filter(waiting).nth(1).is_some()
    }

    /// Whether every deletion after what is known is told.
    fn is_covered(&self) -> bool {
        matches!(self.eye, Eye::Open(_)) && self.unseen().is_none()
    }

    /// Up to where something may have happened that was not told.
    fn unseen(&self) -> Option<Index> {
        match self.eye {
            Eye::Open(at) if self.complete.is_none_or(|complete| complete < at) => Some(at),
            _ => None,
        }
    }

    /// Puts a ticket of ours in, unless it is known to be gone already.
    fn enter(&mut self, ticket: Position, at: Index, role: Role) {
        let known = self.live.contains_key(&ticket);
        let missed = self.complete.is_some_and(|complete| complete >= at) && !known;
        // A name can be used again: what went before this append was another ticket.
        let went = self.gone.get(&ticket.key).is_some_and(|gone| *gone > at);
        if missed || went {
            self.effects.push(Effect::Gone(ticket));
        } else {
            self.live.insert(ticket, Owner::Ours(at, role));
            self.admit();
        }
    }

    fn remember_gone(&mut self, key: &Key, index: Index) {
        if self.complete.is_none_or(|complete| complete < index) {
            let gone = self.gone.entry(key.clone()).or_insert(index);
            *gone = index.max(*gone);
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
