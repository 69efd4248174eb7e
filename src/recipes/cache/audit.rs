//! Whether a watch has told everything: the store is read once more beside the watch, and what it
//! held is compared with what the watch had led to at the same index. Pure, no clock, no I/O.
//!
//! ```text
//!                      read at i          the watch comes to i, or nothing differs
//! the states since ──────────────▶ read ──────────────────────────────────────────▶ Same, or Lost
//! then are kept                      └── it does not come for as long as is waited: Lost
//! ```
//!
//! Invariant: a state is what the store held from its index up to that of the next one, if the watch
//! has lost nothing. So neither waits for the other: events go on while the store is read.

use super::board::{Map, State, differing};
use super::fold::{Stored, replaced};
use crate::key::Index;
use crate::store::View;

/// How many states are kept at most.
const MOST: usize = 10_000;

/// A comparison that is under way.
#[derive(Debug)]
pub(super) struct Audit {
    known: Vec<(Option<Index>, Map<Stored>)>,
    read: Option<Read>,
}

#[derive(Debug)]
struct Read {
    index: Index,
    entries: Map<Stored>,
    /// When something in it was last written.
    modified: Option<Index>,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not known yet.
    Open,
    /// The watch has told everything up to this index.
    Same(Index),
    /// It has not.
    Lost(Index),
    /// It cannot be told.
    Unknown,
}

impl Audit {
    /// Begins at this state, before the store is read.
    pub(super) fn new(state: &State<Stored>) -> Self {
        Self {
            known: vec![(state.index, state.entries.clone())],
            read: None,
        }
    }

    /// The watch has led to this state.
    pub(super) fn note(&mut self, state: &State<Stored>) {
        if self.known.last().is_none_or(|(at, _)| *at < state.index) {
            self.known.push((state.index, state.entries.clone()));
        }
    }

    /// The store held this.
    pub(super) fn read(&mut self, view: View) {
        let modified = view.nodes.iter().filter(|node| !node.is_dir);
        let modified = modified.map(|node| node.modified).max();
        let Some((_, newest)) = self.known.last() else {
            return;
        };
        self.read = Some(Read {
            index: view.index,
            entries: replaced(newest, view.nodes),
            modified,
        });
    }

    /// `waited`: the watch has had the time to come to the index of the read.
    pub(super) fn verdict(&self, waited: bool) -> Verdict {
        let Some((newest, entries)) = self.known.last() else {
            return Verdict::Unknown;
        };
        let Some(read) = &self.read else {
            return match self.known.len() > MOST {
                true => Verdict::Unknown,
                false => Verdict::Open,
            };
        };
        let is = |entries| differing(entries, &read.entries, Stored::same).is_empty();
        let at = Some(read.index);
        if *newest < at {
            // What was written since is on its way, also where it made no difference.
            let quiet = read.modified <= *newest;
            return match quiet || waited {
                true if is(entries) => Verdict::Same(read.index),
                true if waited => Verdict::Lost(read.index),
                _ => Verdict::Open,
            };
        }
        match self.known.iter().rfind(|(index, _)| *index <= at) {
            Some((_, entries)) if is(entries) => Verdict::Same(read.index),
            Some(_) => Verdict::Lost(read.index),
            // The read is older than where this began.
            None => Verdict::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::health::Health;
    use super::*;
    use crate::key::Key;
    use crate::store::Node;

    fn index(number: u64) -> Index {
        Index::new(number).unwrap()
    }

    fn key(name: &str) -> Key {
        Key::new(format!("/t/{name}")).unwrap()
    }

    /// Names, and when each was created.
    fn state(at: u64, entries: &[(&str, u64)]) -> State<Stored> {
        let stored = |created| Stored {
            created: Some(index(created)),
            value: "v".into(),
        };
        let entries = entries
            .iter()
            .map(|(name, created)| (key(name), Arc::new(stored(*created))));
        let mut state = State::new(Health::loading());
        (state.index, state.entries) = (Some(index(at)), entries.collect());
        state
    }

    fn view(at: u64, entries: &[(&str, u64)]) -> View {
        let nodes = entries
            .iter()
            .map(|(name, created)| Node::file(key(name), "v", index(*created), index(*created)));
        View::new(index(at), nodes.collect())
    }

    #[test]
    fn it_is_compared_with_what_was_known_at_the_index_of_the_read() {
        let mut it = Audit::new(&state(5, &[("a", 1)]));
        assert_eq!(it.verdict(false), Verdict::Open);
        it.note(&state(7, &[("a", 1), ("b", 7)]));
        it.note(&state(9, &[("b", 7)]));
        for (at, held, wanted) in [
            (5, &[("a", 1)][..], Verdict::Same(index(5))),
            (6, &[("a", 1)], Verdict::Same(index(6))),
            (7, &[("a", 1), ("b", 7)], Verdict::Same(index(7))),
            (8, &[("a", 1), ("b", 7)], Verdict::Same(index(8))),
            (9, &[("b", 7)], Verdict::Same(index(9))),
            (8, &[("b", 7)], Verdict::Lost(index(8))),
            (6, &[("a", 1), ("b", 7)], Verdict::Lost(index(6))),
            (9, &[], Verdict::Lost(index(9))),
            // Created again.
            (8, &[("a", 3), ("b", 7)], Verdict::Lost(index(8))),
            (4, &[("a", 1)], Verdict::Unknown),
        ] {
            it.read(view(at, held));
            assert_eq!(it.verdict(false), wanted, "{at} {held:?}");
        }
    }

    #[test]
    fn a_read_that_is_ahead_waits_for_the_watch_unless_nothing_was_written() {
        let begin = || Audit::new(&state(5, &[("a", 1), ("b", 2)]));
        let mut it = begin();
        it.read(view(9, &[("a", 1), ("b", 2)]));
        assert_eq!(it.verdict(false), Verdict::Same(index(9)));
        // Something was: it is on its way.
        it.read(view(9, &[("a", 1)]));
        assert_eq!(it.verdict(false), Verdict::Open);
        it.note(&state(8, &[("a", 1)]));
        assert_eq!(it.verdict(false), Verdict::Same(index(9)));
        // It does not come.
        let mut it = begin();
        it.read(view(9, &[("a", 1)]));
        assert_eq!(it.verdict(true), Verdict::Lost(index(9)));
        // The watch has come past it without it.
        it.note(&state(10, &[("a", 1), ("b", 2), ("c", 10)]));
        assert_eq!(it.verdict(false), Verdict::Lost(index(9)));
    }

    #[test]
    fn a_write_that_changes_nothing_is_waited_for_too() {
        let mut it = Audit::new(&state(5, &[("a", 1)]));
        let node = Node::file(key("a"), "v", index(1), index(8));
        it.read(View::new(index(9), vec![node]));
        assert_eq!(it.verdict(false), Verdict::Open);
        assert_eq!(it.verdict(true), Verdict::Same(index(9)));
    }
}
