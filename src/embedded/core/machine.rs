//! The machine: the methods that change a store. None can fail; the verbs have checked before.
//!
//! Each change is noted for the journal exactly as it is done here, under its own index.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::expiry::Due;
use super::{Action, Content, Core, Event, Life, Payload, Step, Stored, Term};
use crate::key::{Key, Tag};

impl Core {
    /// Writes a node. `Set` and `Create` make a new one; the others keep its `created`, and of a
    /// directory everything but its life.
    pub(super) fn write(
        &mut self,
        action: Action,
        key: &Key,
        payload: Payload,
        life: Life,
    ) -> Arc<Event> {
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
            commit: self.commit,
        })
    }

    /// Removes a node with all that is in it; `None` if there is none.
    pub(super) fn remove(&mut self, action: Action, key: &Key) -> Option<Arc<Event>> {
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
            commit: self.commit,
        }))
    }

    /// Refuses appends with this tag from now on.
    pub(super) fn mark(&mut self, tag: Tag, life: Life) {
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
