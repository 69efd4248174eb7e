//! The store itself: synchronous, and in the shape of etcd v2's store.
//!
//! | file | verbs |
//! |---|---|
//! | `verbs` | etcd's own: get, set, create, create in order, update, compare-and-…, delete, refresh |
//! | `commit` | conditional puts and deletes, one or many at once |
//! | `lease` | grant, renew, revoke |
//! | `line` | append and withdraw, with cancel marks |
//! | `watch` | register, look, leave |
//!
//! All of them check first and then call the few methods of the `machine`, which cannot fail and
//! are the only ones that change anything: what they do is what the journal tells, and replaying
//! the journal is calling them again.
//!
//! Invariants: every mutation takes the next index and one place in the history. The timeline
//! holds exactly the nodes, leases and marks that end by themselves. A node with a lease is in
//! that lease's list, and the lease is alive. [`Core::advance`] comes before every verb
//! (`Shared::turn` sees to it), so a verb never meets anything that has expired.

mod commit;
mod error;
mod event;
mod expiry;
mod history;
mod hub;
mod lease;
mod line;
mod logbook;
mod machine;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rig;
mod shape;
mod tree;
mod verbs;
mod watch;

use std::collections::BTreeMap;
use std::task::Waker;

pub(crate) use commit::NotCommitted;
pub(crate) use error::{Code, Refusal};
pub(crate) use event::{Action, Age, Event, Node};
pub(crate) use history::Interest;
pub(crate) use hub::WatcherId;
pub(crate) use watch::Look;

use super::journal::{Life, Payload, Step};
use crate::key::{Index, LeaseId, Tag};
use crate::runtime::Instant;
use crate::store::{Expiry, Layout};
use expiry::{Due, Timeline};
use history::History;
use hub::Hub;
use lease::Lease;
use logbook::Logbook;
use tree::{Content, Missing, Stored, Term, Tree};

/// What the verbs return.
pub(crate) type Outcome<T> = Result<T, Refusal>;

/// The store.
#[derive(Debug)]
pub(crate) struct Core {
    tree: Tree,
    index: Index,
    history: History,
    timeline: Timeline,
    leases: BTreeMap<LeaseId, Lease>,
    marks: BTreeMap<Tag, Term>,
    hub: Hub,
    /// How old the store was when the clock read `clock_at`.
    age: Age,
    clock_at: Instant,
    /// The head of the timeline as the watchers know it.
    announced: Option<Age>,
    logbook: Option<Logbook>,
    /// How the tickets of lines are named.
    pub(crate) layout: Layout,
    /// The first index of the commit that is being done.
    commit: Option<Index>,
}

impl Core {
    /// An empty store whose first write will have index 4, as on a fresh etcd.
    pub(crate) fn new(history_limit: usize, now: Instant) -> Self {
        let index = FIRST_INDEX;
        Self {
            tree: Tree::new(index),
            index,
            history: History::new(history_limit),
            timeline: Timeline::default(),
            leases: BTreeMap::new(),
            marks: BTreeMap::new(),
            hub: Hub::default(),
            age: Age::ZERO,
            clock_at: now,
            announced: None,
            logbook: None,
            layout: Layout::Numbered,
            commit: None,
        }
    }

    /// Brings the store to `now`: ends all that is due, in order.
    ///
    /// # Errors
    /// After the journal failed the store is stopped.
    pub(crate) fn advance(&mut self, now: Instant) -> Outcome<()> {
        if self.logbook.as_ref().is_some_and(Logbook::is_broken) {
            return Err(self.refusal(Code::Stopped, ""));
        }
        self.age += now.since(self.clock_at);
        self.clock_at = self.clock_at.max(now);
        while let Some(due) = self.timeline.pop(self.age) {
            match due {
                Due::Key(key) => drop(self.remove(Action::Expire, &key)),
                Due::Lease(lease) => self.end(lease, Action::Expire),
                Due::Mark(tag) => drop(self.marks.remove(&tag)),
            }
        }
        Ok(())
    }

    /// Ends a turn: tells the journal, and says whom to wake when the lock is free.
    ///
    /// # Errors
    /// When the journal fails the outcome of this turn is unknown, and the store stops.
    pub(crate) fn finish(&mut self) -> (Vec<Waker>, Outcome<()>) {
        let next = self.timeline.next();
        if next.is_some_and(|next| self.announced.is_none_or(|known| next < known)) {
            self.hub.wake_all();
        }
        self.announced = next;
        let told = self.tell();
        if told.is_err() {
            self.hub.wake_all();
        }
        (self.hub.take_woken(), told)
    }

    /// The index of the last mutation.
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    /// How old the store is: what nodes' expiries are compared with.
    pub(crate) fn age(&self) -> Age {
        self.age
    }

    /// What the clock reads when the store is so old.
    pub(crate) fn instant_of(&self, age: Age) -> Instant {
        self.clock_at + age.saturating_sub(self.age)
    }
}

/// What a fresh single etcd starts with.
const FIRST_INDEX: Index = match Index::new(3) {
    Some(index) => index,
    None => unreachable!(),
};

impl From<Expiry> for Life {
    fn from(expiry: Expiry) -> Self {
        match expiry {
            Expiry::Never => Self::Forever,
            Expiry::After(ttl) => Self::For(ttl.get()),
            Expiry::With(lease) => Self::With(lease),
        }
    }
}
