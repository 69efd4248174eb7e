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
//! All of them check first and then call the few methods of the machine below, which cannot fail
//! and are the only ones that change anything: what they do is what the journal tells, and
//! replaying the journal is calling them again.
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
mod tree;
mod verbs;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

pub(crate) use commit::NotCommitted;
pub(crate) use error::{Code, Refusal};
pub(crate) use event::{Action, Age, Event, Node};
pub(crate) use history::Interest;
pub(crate) use hub::WatcherId;
pub(crate) use watch::Look;

use super::journal::{Entry, Journal, Life, Payload, Step};
use crate::key::{Index, Key, LeaseId, Tag};
use crate::runtime::Instant;
use expiry::{Due, Timeline};
use history::History;
use hub::Hub;
use lease::Lease;
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
}

/// What the journal has not been told yet.
#[derive(Debug)]
struct Logbook {
    journal: Box<dyn Journal>,
    pending: Vec<Entry>,
    last_at: Age,
    broken: bool,
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
        }
    }

    /// The store that these entries tell of, going on at `now`.
    #[cfg_attr(not(test), allow(dead_code))] // for durable stores
    pub(crate) fn replay<'a>(
        entries: impl IntoIterator<Item = &'a Entry>,
        history_limit: usize,
        now: Instant,
    ) -> Self {
        let mut core = Self::new(history_limit, now);
        for entry in entries {
            core.age += entry.after;
            match &entry.step {
                Step::Write {
                    action,
                    key,
                    payload,
                    life,
                } => drop(core.write(*action, key, payload.clone(), *life)),
                Step::Remove { action, key } => drop(core.remove(*action, key)),
                Step::Grant { lease, ttl } => core.begin_term(*lease, *ttl),
                Step::Forget { lease } => core.forget(*lease),
                Step::Mark { tag, life } => core.mark(*tag, *life),
            }
        }
        core
    }

    /// Tells this journal of everything from now on.
    #[cfg_attr(not(test), allow(dead_code))] // for durable stores
    pub(crate) fn keep(&mut self, journal: Box<dyn Journal>) {
        self.logbook = Some(Logbook {
            journal,
            pending: Vec::new(),
            last_at: self.age,
            broken: false,
        });
    }

    /// Brings the store to `now`: ends all that is due, in order.
    ///
    /// # Errors
    /// After the journal failed the store is stopped.
    pub(crate) fn advance(&mut self, now: Instant) -> Outcome<()> {
        if self.logbook.as_ref().is_some_and(|logbook| logbook.broken) {
            return Err(self.refusal(Code::Stopped, String::new()));
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
        let told = match &mut self.logbook {
            Some(logbook) if !logbook.pending.is_empty() => {
                let told = logbook.journal.record(&logbook.pending);
                logbook.pending.clear();
                logbook.broken = told.is_err();
                told
            }
            _ => Ok(()),
        };
        let told = told.map_err(|error| {
            self.hub.wake_all();
            self.refusal(Code::JournalFailed, error.to_string())
        });
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

/// The machine. Callers have checked that it makes sense.
impl Core {
    /// Writes a node. `Set` and `Create` make a new one; the others keep its `created`, and of a
    /// directory everything but its life.
    fn write(&mut self, action: Action, key: &Key, payload: Payload, life: Life) -> Arc<Event> {
        self.index = self.index.next();
        self.note(|| Step::Write {
            action,
            key: key.clone(),
            payload: payload.clone(),
            life,
        });
        let index = self.index;
        let term = self.term(life);
        let before = self.tree.find(key).ok();
        let previous = before.map(|stored| self.node(stored));
        let refresh = payload == Payload::Keep && before.is_some();
        let content = match payload {
            Payload::File(value) => Content::File(value),
            Payload::Dir => Content::Dir(BTreeMap::new()),
            Payload::Keep => {
                let kept = before.and_then(Stored::value).cloned();
                Content::File(kept.unwrap_or_default())
            }
        };
        if let Some(previous_term) = before.map(|stored| stored.term) {
            self.unhook(key, previous_term);
        }
        let anew = matches!(action, Action::Set | Action::Create);
        match self.tree.find_mut(key) {
            Some(stored) if !anew => {
                stored.term = term;
                if !stored.is_dir() {
                    stored.modified = index;
                    stored.content = content;
                }
            }
            _ => self.tree.insert(Stored {
                key: key.clone(),
                created: index,
                modified: index,
                term,
                content,
            }),
        }
        self.hook(key, term);
        let mut node = match self.tree.find(key) {
            Ok(stored) => self.node(stored),
            Err(_) => self.gone(key, index, false),
        };
        node.modified = index;
        self.publish(Event {
            action,
            node,
            previous,
            refresh,
        })
    }

    /// Removes a node with all that is in it; `None` if there is none.
    fn remove(&mut self, action: Action, key: &Key) -> Option<Arc<Event>> {
        let stored = self.tree.remove(key)?;
        self.index = self.index.next();
        self.note(|| Step::Remove {
            action,
            key: key.clone(),
        });
        let node = self.gone(key, stored.created, stored.is_dir());
        let previous = Some(self.node(&stored));
        stored.walk(&mut |stored| self.unhook(&stored.key, stored.term));
        Some(self.publish(Event {
            action,
            node,
            previous,
            refresh: false,
        }))
    }

    /// Refuses appends with this tag from now on.
    fn mark(&mut self, tag: Tag, life: Life) {
        self.note(|| Step::Mark { tag, life });
        let term = self.term(life);
        match self.marks.insert(tag, term) {
            Some(Term::At(age)) => self.timeline.remove(age, Due::Mark(tag)),
            Some(Term::Lease(lease)) => {
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.marks.remove(&tag);
                }
            }
            Some(Term::Never) | None => {}
        }
        match term {
            Term::Never => {}
            Term::At(age) => self.timeline.add(age, Due::Mark(tag)),
            Term::Lease(lease) => {
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.marks.insert(tag);
                }
            }
        }
    }

    fn publish(&mut self, event: Event) -> Arc<Event> {
        let event = Arc::new(event);
        self.history.push(Arc::clone(&event));
        self.hub.publish(&event, self.history.limit());
        event
    }

    fn note(&mut self, step: impl FnOnce() -> Step) {
        if let Some(logbook) = &mut self.logbook {
            logbook.pending.push(Entry {
                index: self.index,
                after: self.age.saturating_sub(logbook.last_at),
                step: step(),
            });
            logbook.last_at = self.age;
        }
    }

    /// Lets a node end with its term.
    fn hook(&mut self, key: &Key, term: Term) {
        match term {
            Term::Never => {}
            Term::At(age) => self.timeline.add(age, Due::Key(key.clone())),
            Term::Lease(lease) => {
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.keys.insert(key.clone());
                }
            }
        }
    }

    fn unhook(&mut self, key: &Key, term: Term) {
        match term {
            Term::Never => {}
            Term::At(age) => self.timeline.remove(age, Due::Key(key.clone())),
            Term::Lease(lease) => {
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.keys.remove(key);
                }
            }
        }
    }
}

/// Shapes.
impl Core {
    fn term(&self, life: Life) -> Term {
        match life {
            Life::Forever => Term::Never,
            Life::For(duration) => Term::At(self.age.saturating_add(duration)),
            Life::With(lease) => Term::Lease(lease),
        }
    }

    /// A node as others see it, without its children.
    fn node(&self, stored: &Stored) -> Node {
        let (expires, lease) = match stored.term {
            Term::Never => (None, None),
            Term::At(age) => (Some(age), None),
            Term::Lease(id) => (self.leases.get(&id).map(|lease| lease.deadline), Some(id)),
        };
        Node {
            key: stored.key.clone(),
            dir: stored.is_dir(),
            value: stored.value().cloned(),
            nodes: Vec::new(),
            created: stored.created,
            modified: stored.modified,
            expires,
            lease,
        }
    }

    /// What the event of a removal says about the node.
    fn gone(&self, key: &Key, created: Index, dir: bool) -> Node {
        Node {
            key: key.clone(),
            dir,
            value: None,
            nodes: Vec::new(),
            created,
            modified: self.index,
            expires: None,
            lease: None,
        }
    }

    fn refusal(&self, code: Code, cause: impl Into<String>) -> Refusal {
        Refusal {
            code,
            key: None,
            cause: cause.into(),
            index: self.index,
        }
    }

    /// A refusal whose cause is a key, as most are.
    fn refusal_at(&self, code: Code, key: &Key) -> Refusal {
        Refusal {
            key: Some(key.clone()),
            ..self.refusal(code, key.as_str())
        }
    }

    fn missing(&self, key: &Key, missing: Missing<'_>) -> Refusal {
        match missing {
            Missing::NotADirectory(file) => Refusal {
                key: Some(key.clone()),
                ..self.refusal(Code::NotADirectory, file.as_str())
            },
            Missing::Nothing { parent, name } => {
                let parent = if parent.is_root() {
                    ""
                } else {
                    parent.as_str()
                };
                Refusal {
                    key: Some(key.clone()),
                    ..self.refusal(Code::KeyNotFound, format!("{parent}/{name}"))
                }
            }
        }
    }

    /// The node at `key`, or etcd's reason why there is none.
    fn find(&self, key: &Key) -> Outcome<&Stored> {
        match self.tree.find(key) {
            Ok(stored) => Ok(stored),
            Err(missing) => Err(self.missing(key, missing)),
        }
    }

    /// Refuses a life that hangs on a lease that is gone.
    fn check_life(&self, key: &Key, life: Life) -> Outcome<()> {
        match life {
            Life::With(lease) if !self.leases.contains_key(&lease) => Err(Refusal {
                key: Some(key.clone()),
                ..self.no_lease(lease)
            }),
            _ => Ok(()),
        }
    }
}

/// What a fresh single etcd starts with.
const FIRST_INDEX: Index = match Index::new(3) {
    Some(index) => index,
    None => unreachable!(),
};

impl From<crate::store::Expiry> for Life {
    fn from(expiry: crate::store::Expiry) -> Self {
        match expiry {
            crate::store::Expiry::Never => Self::Forever,
            crate::store::Expiry::After(ttl) => Self::For(ttl.get()),
            crate::store::Expiry::With(lease) => Self::With(lease),
        }
    }
}
