//! The last so many events, and which of them a watch wants.
//!
//! Invariant: the ring holds consecutive indexes, ending at the store's. Refreshes are in it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::event::Event;
use crate::key::{Index, Key};
use crate::store::{Filter, Scope};

/// What a watch follows.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    pub(crate) key: Key,
    pub(crate) scope: Scope,
    pub(crate) filter: Filter,
}

/// The ring.
#[derive(Debug, PartialEq)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    limit: usize,
    forgotten: bool,
}

impl Interest {
    /// Whether the watch reports this event.
    ///
    /// Paths are matched by segment, and what is hidden below the key stays so (etcd's history
    /// does neither). The removal of a directory concerns whoever watches in it.
    pub(crate) fn wants(&self, event: &Event) -> bool {
        let at = &event.node.key;
        let matches = *at == self.key
            || self.scope == Scope::Tree
                && at.is_within(&self.key)
                && !at.is_hidden_below(&self.key)
            || event.removes_dir() && self.key.is_within(at);
        matches && !event.refresh && (self.filter == Filter::All || event.action.removes())
    }
}

impl History {
    /// An empty ring for `limit` events, at least one.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            events: VecDeque::new(),
            limit: limit.max(1),
            forgotten: false,
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        if self.events.len() >= self.limit {
            self.events.pop_front();
            self.forgotten = true;
        }
        self.events.push_back(event);
    }

    /// The events from `from` on; `Err` with the oldest index that is still known if that is
    /// later. A store that has forgotten nothing knows everything.
    pub(crate) fn since(&self, from: Index) -> Result<impl Iterator<Item = &Arc<Event>>, Index> {
        let oldest = self.events.front().map(|event| event.index());
        let skip = match oldest {
            Some(oldest) if self.forgotten && from < oldest => return Err(oldest),
            Some(oldest) => from.get().saturating_sub(oldest.get()),
            None => 0,
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(self.events.iter().skip(skip))
    }

    /// The same without what a journal does not tell.
    #[cfg(test)]
    pub(crate) fn without_commits(&self) -> Self {
        let plain = |event: &Arc<Event>| {
            let mut event = Event::clone(event);
            event.commit = None;
            Arc::new(event)
        };
        Self {
            events: self.events.iter().map(plain).collect(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::core::event::{Action, Node};

    fn event(index: u64, action: Action, key: &str, dir: bool) -> Arc<Event> {
        let index = Index::new(index).unwrap();
        let node = Node {
            key: Key::new(key).unwrap(),
            dir,
            value: None,
            nodes: Vec::new(),
            created: index,
            modified: index,
            expires: None,
            lease: None,
        };
        Arc::new(Event {
            action,
            node,
            previous: None,
            refresh: false,
            commit: None,
        })
    }

    fn interest(key: &str, scope: Scope) -> Interest {
        Interest {
            key: Key::new(key).unwrap(),
            scope,
            filter: Filter::All,
        }
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_says_so() {
        let mut history = History::new(3);
        let at = |n| Index::new(n).unwrap();
        assert!(
            history
                .since(at(1))
                .is_ok_and(|mut events| events.next().is_none())
        );
        for index in 4..=6 {
            history.push(event(index, Action::Set, "/a", false));
        }
        assert_eq!(history.since(at(1)).unwrap().count(), 3);
        history.push(event(7, Action::Set, "/a", false));
        assert_eq!(history.since(at(4)).err(), Some(at(5)));
        assert_eq!(history.since(at(5)).unwrap().count(), 3);
        assert_eq!(history.since(at(7)).unwrap().count(), 1);
        assert_eq!(history.since(at(8)).unwrap().count(), 0);
        assert_eq!(history.since(at(u64::MAX)).unwrap().count(), 0);
    }

    #[test]
    fn paths_are_matched_by_segment() {
        let deletion = event(4, Action::Delete, "/w/de", true);
        assert!(!interest("/w/delta", Scope::Node).wants(&deletion));
        assert!(interest("/w/de/x", Scope::Node).wants(&deletion));
        let write = event(4, Action::Set, "/ab", false);
        assert!(!interest("/a", Scope::Tree).wants(&write));
    }

    #[test]
    fn a_tree_watch_sees_what_is_below_and_a_node_watch_does_not() {
        let write = event(4, Action::Set, "/a/b/c", false);
        for (key, scope, wants) in [
            ("/", Scope::Tree, true),
            ("/a", Scope::Tree, true),
            ("/a", Scope::Node, false),
            ("/a/b/c", Scope::Node, true),
            ("/a/b/c/d", Scope::Tree, false),
        ] {
            assert_eq!(interest(key, scope).wants(&write), wants, "{key}");
        }
    }

    #[test]
    fn hidden_keys_are_hidden_from_above_only() {
        let write = event(4, Action::Set, "/a/_h/c", false);
        for (key, wants) in [
            ("/", false),
            ("/a", false),
            ("/a/_h", true),
            ("/a/_h/c", true),
        ] {
            assert_eq!(interest(key, Scope::Tree).wants(&write), wants, "{key}");
        }
    }

    #[test]
    fn only_the_removal_of_a_directory_reaches_below_it() {
        let file = event(4, Action::Delete, "/a", false);
        let dir = event(4, Action::Expire, "/a", true);
        let made = event(4, Action::Set, "/a", true);
        let below = interest("/a/_h/x", Scope::Tree);
        assert!(below.wants(&dir));
        assert!(!below.wants(&file) && !below.wants(&made));
    }

    #[test]
    fn a_watch_for_deletions_is_spared_the_rest() {
        let deletes = Interest {
            filter: Filter::Deletes,
            ..interest("/a", Scope::Node)
        };
        assert!(!deletes.wants(&event(4, Action::Set, "/a", false)));
        assert!(!deletes.wants(&event(4, Action::CompareAndSwap, "/a", false)));
        for action in [Action::Delete, Action::CompareAndDelete, Action::Expire] {
            assert!(deletes.wants(&event(4, action, "/a", false)));
        }
    }
}
