//! What one process knows about a shared line: pure, no clock, no I/O.
//!
//! It keeps one [`Picture`] for all tickets of this process, replaced by lists and changed by
//! events, in order. Of the tickets before mine any picture at or after my append shows all that
//! will ever be there, and perhaps some that have left since: so it is safe to admit on, however
//! old it is by then, and the limit in it was in force while I waited.
//!
//! Tickets of this process leave the picture with the acknowledgement of their deletion, before
//! the event comes; `gone` keeps what is older from bringing them back.
//!
//! # What it costs
//! Nothing is read for a ticket that was found to fit when it was appended and is held for a
//! moment. For others the tree is followed, from the picture that there is, until no ticket of
//! this process is left in line: then each change is one event, and a handoff no read at all. Where
//! watches are cheap it is followed for a second more: who comes back meanwhile reads nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::machine::SHORT_HOLD;
use super::super::rule::{Refusal, Shared};
use super::picture::{Fit, Picture};
use crate::key::{Index, Key, Position};
use crate::runtime::Instant;
use crate::store::{Event, Layout};

/// For so long a line is followed after our last ticket, where that is cheap.
pub(super) const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Machine {
    layout: Layout,
    place: Arc<Shared>,
    /// Whether to follow costs nothing.
    lingers: bool,
    /// Until when it is followed without a ticket of ours.
    warm_until: Option<Instant>,
    picture: Option<Picture>,
    /// Everything up to here is in the last list: events of then or before are not news.
    listed: Option<Index>,
    ours: BTreeMap<Position, Ours>,
    /// Deletions that were acknowledged and are newer than the picture.
    gone: BTreeMap<Key, Index>,
    /// A list is wanted that is not older than this.
    stale: Option<Index>,
    /// Nobody is admitted on a picture that is older than this.
    doubt: Option<Index>,
    /// Whether events come.
    followed: bool,
    effects: Vec<Effect>,
}

/// A ticket of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ours {
    /// The index of its append.
    at: Index,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Waiting,
    /// Since when.
    Holding(Instant),
    /// Given up, or told to give up; it is being taken back.
    Leaving,
}

/// What the driver must tell somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// This ticket fits, under this limit.
    Admit(Position, u32),
    /// This ticket will not be admitted.
    Refuse(Position, Refusal),
    /// This ticket is not there any more.
    Gone(Position),
}

/// What the driver should be doing. Asked for after every input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// Read the tree at or after this index.
    pub(super) list: Option<Index>,
    pub(super) follow: Follow,
    /// Ask again at this time.
    pub(super) wake: Option<Instant>,
}

/// Whether the tree is to be followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Follow {
    /// Not, or not any more.
    #[default]
    No,
    /// If it is being followed already.
    Keep,
    /// From after this index; whether somebody waits, and not only holds.
    From(Index, bool),
}

impl Machine {
    pub(super) fn new(layout: Layout, place: Arc<Shared>, lingers: bool) -> Self {
        Self {
            layout,
            place,
            lingers,
            warm_until: None,
            picture: None,
            listed: None,
            ours: BTreeMap::new(),
            gone: BTreeMap::new(),
            stale: None,
            doubt: None,
            followed: false,
            effects: Vec::new(),
        }
    }

    /// A ticket of ours was appended at `at` and waits.
    pub(super) fn join(&mut self, ticket: Position, at: Index) {
        self.enter(ticket, at, Role::Waiting);
    }

    /// A ticket of ours was appended at `at` and already found to fit.
    pub(super) fn join_holding(&mut self, ticket: Position, at: Index, now: Instant) {
        self.enter(ticket, at, Role::Holding(now));
    }

    /// Our ticket was admitted and told so.
    pub(super) fn holding(&mut self, ticket: &Position, now: Instant) {
        if let Some(ours) = self.ours.get_mut(ticket) {
            ours.role = Role::Holding(now);
        }
    }

    /// Our ticket was given up; its deletion is under way.
    pub(super) fn leaving(&mut self, ticket: &Position, now: Instant) {
        if let Some(ours) = self.ours.get_mut(ticket) {
            ours.role = Role::Leaving;
        }
        if self.lingers && self.followed {
            self.warm_until = Some(now + LINGER);
        }
    }

    /// Our ticket was found to be gone at `index`; whether it was `removed` just then.
    pub(super) fn left(&mut self, ticket: &Position, index: Index, removed: bool) {
        self.ours.remove(ticket);
        if !removed {
            // It may have ended long before, and what took it may have taken others of ours.
            self.suspect(index);
        }
        if self.known() < Some(index) {
            self.gone.insert(ticket.key.clone(), index);
        }
        if let Some(picture) = &mut self.picture {
            picture.remove(&ticket.key);
        }
        self.settle();
    }

    /// The tree was read.
    pub(super) fn listed(&mut self, mut picture: Picture) {
        let index = picture.index;
        if self.stale.is_some_and(|stale| stale <= index) {
            self.stale = None;
        }
        if self.doubt.is_some_and(|doubt| doubt <= index) {
            self.doubt = None;
        }
        match &mut self.picture {
            Some(known) if known.index > index => known.correct(&picture),
            known => {
                for (key, gone) in &self.gone {
                    if *gone > index {
                        picture.remove(key);
                    }
                }
                *known = Some(picture);
                self.listed = Some(index);
            }
        }
        self.settle();
    }

    /// The tree was changed.
    pub(super) fn changed(&mut self, event: &Event) {
        self.followed = true;
        let Some(picture) = &mut self.picture else {
            return;
        };
        if self.listed.is_some_and(|listed| event.index <= listed) {
            return;
        }
        if self
            .gone
            .get(&event.key)
            .is_none_or(|gone| *gone < event.index)
        {
            picture.apply(self.layout, &self.place, event);
        } else {
            picture.index = picture.index.max(event.index);
        }
        let lost = |(ticket, ours): (&Position, &Ours)| {
            event.removes(&ticket.key) && ours.role != Role::Leaving
        };
        if self.ours.iter().any(lost) {
            // What took it may have taken others of ours, in the same moment.
            self.suspect(event.index);
        }
        self.settle();
    }

    /// Nothing else was changed up to this index.
    pub(super) fn unchanged(&mut self, index: Index) {
        self.followed = true;
        if let Some(picture) = &mut self.picture {
            picture.index = picture.index.max(index);
        }
        self.settle();
    }

    /// No events come for the moment: what is to be known must be read.
    pub(super) fn interrupted(&mut self) {
        self.followed = false;
        self.recheck();
    }

    /// Events come from now on, or not any more.
    pub(super) fn follow(&mut self, followed: bool) {
        self.followed = followed;
    }

    /// Reads again, in case an event was lost. Nobody waits for that.
    pub(super) fn recheck(&mut self) {
        self.stale = self.stale.max(self.known());
    }

    /// The store is another than before: what was known is not.
    pub(super) fn forget(&mut self) {
        self.picture = None;
        self.listed = None;
        self.stale = None;
        self.doubt = None;
        self.followed = false;
        self.gone.clear();
    }

    /// What to tell, in order.
    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What to be doing.
    pub(super) fn wants(&self, now: Instant) -> Wants {
        let mut wants = Wants::default();
        let (mut waits, mut long, mut newest) = (false, false, None);
        for ours in self.ours.values() {
            match ours.role {
                Role::Waiting => waits = true,
                Role::Holding(since) if now >= since + SHORT_HOLD => long = true,
                Role::Holding(since) => {
                    let due = since + SHORT_HOLD;
                    wants.wake = Some(wants.wake.map_or(due, |wake| wake.min(due)));
                }
                Role::Leaving => continue,
            }
            newest = newest.max(Some(ours.at));
        }
        let Some(newest) = newest else {
            if let Some(until) = self.warm_until.filter(|until| now < *until) {
                wants.follow = Follow::Keep;
                wants.wake = Some(until);
            }
            return wants;
        };
        if !waits && !long {
            wants.follow = Follow::Keep;
            return wants;
        }
        let known = self.known();
        wants.list = self.stale;
        match known {
            // The event of the newest append is on its way, if events come.
            Some(known) if known >= newest || self.followed => {
                wants.follow = Follow::From(known, waits);
            }
            _ => {
                wants.list = wants.list.max(known).max(Some(newest));
                wants.follow = Follow::Keep;
            }
        }
        wants
    }

    fn enter(&mut self, ticket: Position, at: Index, role: Role) {
        self.ours.insert(ticket, Ours { at, role });
        self.settle();
    }

    /// Up to where everything is known.
    fn known(&self) -> Option<Index> {
        self.picture.as_ref().map(|picture| picture.index)
    }

    /// Something took a ticket of ours at or before this index.
    fn suspect(&mut self, index: Index) {
        self.stale = self.stale.max(Some(index));
        self.doubt = self.doubt.max(Some(index));
    }

    /// Draws the conclusions from the picture: who is gone, who is in, who need not wait.
    fn settle(&mut self) {
        let Some(picture) = &self.picture else {
            return;
        };
        self.gone.retain(|_, gone| *gone > picture.index);
        // What was appended after the picture was taken is not in it.
        let shown = |ours: &Ours| ours.at <= picture.index;
        let effects = &mut self.effects;
        self.ours.retain(|ticket, ours| {
            let lost = shown(ours) && !picture.has(ticket) && ours.role != Role::Leaving;
            if lost {
                effects.push(Effect::Gone(ticket.clone()));
            }
            !lost
        });
        if self.doubt.is_some() {
            return;
        }
        let mut waiting = self
            .ours
            .iter_mut()
            .filter(|(_, ours)| ours.role == Role::Waiting && shown(ours));
        let (limit, standings) = match picture.standings() {
            Ok(known) => known,
            Err(refusal) => {
                for (ticket, ours) in waiting {
                    ours.role = Role::Leaving;
                    effects.push(Effect::Refuse(ticket.clone(), refusal.clone()));
                }
                return;
            }
        };
        let mut next = waiting.next();
        for standing in standings {
            let Some((ticket, ours)) = &mut next else {
                break;
            };
            if standing.ticket != *ticket {
                continue;
            }
            match standing.fit {
                Fit::In => {
                    let effect = Effect::Admit(ticket.clone(), limit);
                    if !effects.contains(&effect) {
                        effects.push(effect);
                    }
                }
                Fit::Waits => {}
                Fit::Never => {
                    ours.role = Role::Leaving;
                    let weight = standing.weight;
                    let refusal = Refusal::TooHeavy { weight, limit };
                    effects.push(Effect::Refuse(ticket.clone(), refusal));
                }
            }
            next = waiting.next();
        }
    }
}
#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
