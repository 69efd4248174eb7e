//! What a watcher decides: pure, no clock, no I/O.
//!
//! Invariant: everything before [`Place::index`] has been told, and of the changes at it those of
//! the keys in [`Place::told`]. A watch is opened at the index itself, because changes may share it
//! (the writes of one commit do), and what comes again is dropped.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Follow;
use crate::error::{Error, ErrorKind};
use crate::key::{Index, Key};
use crate::runtime::{Entropy, Retry};
use crate::store::{Event, Freshness, Update, View};

#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    /// Set after a failure, until a change or progress shows that it has passed.
    retry: Option<Retry>,
    /// Whether an interruption was told, and not yet that it is over.
    interrupted: bool,
    /// How long the last list took.
    listing: Duration,
}

#[derive(Debug)]
enum State {
    /// A watch is wanted that begins now; everything up to here is known.
    Opening(Index),
    /// A list is wanted, at least as new as this.
    Listing(Option<Index>),
    /// A watch is wanted, or open, that goes on from here.
    Watching(Place),
    /// Nothing is wanted for so long.
    Resting(Duration, Box<Self>),
    Ended,
}

/// How far the changes have been told.
#[derive(Debug)]
struct Place {
    index: Index,
    told: BTreeSet<Key>,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    List(Freshness),
    /// A new watch, without an index, and its first update.
    WatchFromNow,
    /// The next update of the watch that begins at this index.
    Watch(Index),
    Rest(Duration),
    Nothing,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            state: State::Listing(None),
            retry: None,
            interrupted: false,
            listing: Duration::ZERO,
        }
    }

    /// One that has listed at `index`.
    pub(super) fn after(index: Index) -> Self {
        Self {
            state: State::Watching(Place::after(index)),
            retry: None,
            interrupted: false,
            listing: Duration::ZERO,
        }
    }

    /// One that has listed at `index`, and goes on by a watch that begins now.
    pub(super) fn from_now(index: Index) -> Self {
        Self {
            state: State::Opening(index),
            ..Self::after(index)
        }
    }

    pub(super) fn wants(&self) -> Want {
        match &self.state {
            State::Opening(_) => Want::WatchFromNow,
            State::Listing(None) => Want::List(Freshness::Linearizable),
            State::Listing(Some(index)) => Want::List(Freshness::AtLeast(*index)),
            State::Watching(place) => Want::Watch(place.index),
            State::Resting(pause, _) => Want::Rest(*pause),
            State::Ended => Want::Nothing,
        }
    }

    /// The list that was wanted and took so long, or why there is none.
    pub(super) fn listed(
        &mut self,
        outcome: Result<View, Error>,
        took: Duration,
        entropy: &Entropy,
    ) -> Result<Follow, Error> {
        let State::Listing(at_least) = self.state else {
            return Err(self.end(out_of_turn()));
        };
        match outcome {
            Ok(view) if at_least.is_some_and(|least| view.index < least) => {
                let text = format!("a list at {} after {at_least:?} was seen", view.index);
                Err(self.end(Error::new(ErrorKind::ClusterChanged, text)))
            }
            Ok(view) => {
                self.state = State::Watching(Place::after(view.index));
                self.interrupted = false;
                self.listing = took;
                Ok(Follow::Snapshot(view))
            }
            Err(error) => self.failed(error, State::Listing(at_least), entropy),
        }
    }

    /// What the watch said; `None` if it ended without a word. Returns what there is to tell.
    pub(super) fn updated(
        &mut self,
        update: Option<Result<Update, Error>>,
        entropy: &Entropy,
    ) -> Result<Option<Follow>, Error> {
        if let State::Opening(known) = self.state {
            return self.opened(update, known, entropy);
        }
        let State::Watching(place) = &mut self.state else {
            return Err(self.end(out_of_turn()));
        };
        let error = match update {
            Some(Ok(Update::Open(index))) => {
                let over = std::mem::take(&mut self.interrupted);
                return Ok(over.then_some(Follow::Resumed(index)));
            }
            Some(Ok(Update::Event(event))) => {
                let news = place.takes(&event);
                if news {
                    self.retry = None;
                }
                return Ok(news.then_some(Follow::Event(event)));
            }
            Some(Ok(Update::Progress(index))) => {
                let news = index >= place.index;
                if news {
                    *place = Place::after(index);
                    self.retry = None;
                }
                return Ok(news.then_some(Follow::Progress(index)));
            }
            Some(Err(error)) => error,
            None => Error::new(ErrorKind::Unavailable, "a watch ended without an error"),
        };
        let index = place.index;
        let next = if error.kind() == ErrorKind::HistoryLost {
            let told = match place.told.is_empty() {
                true => Index::new(index.get() - 1),
                false => Some(index),
            };
            // A list of a server that lags behind the one that forgot would only lead back here.
            State::Listing(told.max(error.index()))
        } else {
            State::Watching(std::mem::replace(place, Place::after(index)))
        };
        self.failed(error, next, entropy).map(Some)
    }

    /// What a watch that begins now said first.
    fn opened(
        &mut self,
        update: Option<Result<Update, Error>>,
        known: Index,
        entropy: &Entropy,
    ) -> Result<Option<Follow>, Error> {
        let error = match update {
            Some(Ok(Update::Open(index))) => {
                self.state = if index <= known {
                    State::Watching(Place::after(known))
                } else {
                    State::Listing(Some(index))
                };
                let over = std::mem::take(&mut self.interrupted);
                return Ok(over.then_some(Follow::Resumed(index)));
            }
            Some(Ok(_)) => return Err(self.end(out_of_turn())),
            Some(Err(error)) => error,
            None => Error::new(ErrorKind::Unavailable, "a watch ended without an error"),
        };
        let next = State::Opening(known);
        self.failed(error, next, entropy).map(Some)
    }

    /// The rest is over.
    pub(super) fn rested(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Resting(_, next) => *next,
            other => other,
        };
    }

    fn failed(&mut self, error: Error, next: State, entropy: &Entropy) -> Result<Follow, Error> {
        if !may_pass(&error) {
            return Err(self.end(error));
        }
        let mut pause = self.retry.get_or_insert_with(Retry::new).pause(entropy);
        if error.kind() == ErrorKind::HistoryLost {
            // While a store changes faster than can be followed, half of the time is left to it.
            pause = pause.max(self.listing);
        }
        self.state = State::Resting(pause, Box::new(next));
        self.interrupted = true;
        Ok(Follow::Interrupted(error))
    }

    fn end(&mut self, error: Error) -> Error {
        self.state = State::Ended;
        error
    }
}

impl Place {
    /// Everything up to this index has been told.
    fn after(index: Index) -> Self {
        Self {
            index: index.next(),
            told: BTreeSet::new(),
        }
    }

    /// Moves on by a change; whether it is news.
    fn takes(&mut self, event: &Event) -> bool {
        if event.index < self.index {
            return false;
        }
        if event.index > self.index {
            self.index = event.index;
            self.told.clear();
        }
        self.told.insert(event.key.clone())
    }
}

/// Whether trying again may help.
fn may_pass(error: &Error) -> bool {
    error.is_transient() || matches!(error.kind(), ErrorKind::Ambiguous | ErrorKind::HistoryLost)
}

fn out_of_turn() -> Error {
    Error::new(ErrorKind::Protocol, "an answer that nobody asked for")
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
