//! Watching: registered under the same lock as everything else, so nothing falls in between.

use std::sync::Arc;
use std::task::Waker;

use super::{Code, Core, Event, Interest, Outcome, WatcherId, hub};
use crate::key::Index;
use crate::runtime::Instant;

/// What a watcher finds when it looks.
#[derive(Debug)]
pub(crate) enum Look {
    /// Something happened.
    Event(Arc<Event>),
    /// Nothing yet. The waker is called when something does; something will by itself at this
    /// time, but only if somebody brings the store to it.
    Nothing(Option<Instant>),
}

impl Core {
    /// Registers a watcher for what happens from `from` on, by default from the next index on.
    ///
    /// # Errors
    /// [`Code::HistoryCleared`] when the history no longer reaches back to `from`.
    pub(crate) fn watch(&mut self, interest: Interest, from: Option<Index>) -> Outcome<WatcherId> {
        let from = from.unwrap_or(self.index.next());
        let events = self.history.since(from).map_err(|oldest| {
            let cause = format!("the requested history has been cleared [{oldest}/{from}]");
            self.refusal(Code::HistoryCleared, cause)
        })?;
        let queue = events
            .filter(|event| interest.wants(event))
            .cloned()
            .collect();
        Ok(self.hub.add(interest, from, queue))
    }

    /// The watcher's next event.
    ///
    /// # Errors
    /// [`Code::HistoryCleared`] when it was too slow.
    pub(crate) fn look(&mut self, id: WatcherId, waker: &Waker) -> Outcome<Look> {
        match self.hub.look(id, waker) {
            hub::Look::Event(event) => Ok(Look::Event(event)),
            hub::Look::Nothing => {
                let next = self.timeline.next().map(|age| self.instant_of(age));
                Ok(Look::Nothing(next))
            }
            hub::Look::Lost => {
                let limit = self.history.limit();
                let cause = format!("this watch has more than {limit} events unread");
                Err(self.refusal(Code::HistoryCleared, cause))
            }
        }
    }

    /// Forgets a watcher.
    pub(crate) fn leave(&mut self, id: WatcherId) {
        self.hub.remove(id);
    }

    #[cfg(test)]
    pub(crate) fn watchers(&self) -> usize {
        self.hub.len()
    }
}
