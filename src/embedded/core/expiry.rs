//! What ends when: keys, leases and cancel marks on one timeline.
//!
//! Things that end at the same moment end in the order of [`Due`], so a run can be repeated.

use std::collections::BTreeSet;

use super::event::Age;
use crate::key::{Key, LeaseId, Tag};

/// What ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Lease(LeaseId),
    Key(Key),
    Mark(Tag),
}

/// Everything that will end, soonest first.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Timeline(BTreeSet<(Age, Due)>);

impl Timeline {
    pub(crate) fn add(&mut self, at: Age, due: Due) {
        self.0.insert((at, due));
    }

    pub(crate) fn remove(&mut self, at: Age, due: Due) {
        self.0.remove(&(at, due));
    }

    /// When the next thing ends.
    pub(crate) fn next(&self) -> Option<Age> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes the first thing that has ended by `age`.
    pub(crate) fn pop(&mut self, age: Age) -> Option<Due> {
        if self.next()? > age {
            return None;
        }
        self.0.pop_first().map(|(_, due)| due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_out_in_order_and_the_rest_stays() {
        let mut timeline = Timeline::default();
        let key = |text| Due::Key(Key::new(text).unwrap());
        let at = Duration::from_secs;
        timeline.add(at(3), key("/c"));
        timeline.add(at(1), key("/b"));
        timeline.add(at(1), key("/a"));
        timeline.add(at(2), key("/gone"));
        timeline.remove(at(2), key("/gone"));

        assert_eq!(timeline.pop(Duration::from_millis(999)), None);
        assert_eq!(timeline.pop(at(2)), Some(key("/a")));
        assert_eq!(timeline.pop(at(2)), Some(key("/b")));
        assert_eq!(timeline.pop(at(2)), None);
        assert_eq!(timeline.next(), Some(at(3)));
    }
}
