//! Short words for the tests of the core.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::{Core, Event, Interest, Life, Look, Outcome, Payload, WatcherId};
use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::runtime::Instant;
use crate::store::{Filter, Scope};

/// A store of age zero whose next index is 4.
pub(super) fn core() -> Core {
    Core::new(1000, at(0.0))
}

pub(super) fn at(seconds: f64) -> Instant {
    Instant::new(Duration::from_secs_f64(seconds))
}

pub(super) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(super) fn index(number: u64) -> Index {
    Index::new(number).unwrap()
}

pub(super) fn file(value: &str) -> Payload {
    Payload::File(value.to_owned().into())
}

pub(super) fn secs(seconds: u64) -> Life {
    Life::For(Duration::from_secs(seconds))
}

pub(super) fn ttl(seconds: u64) -> Ttl {
    Ttl::new(Duration::from_secs(seconds)).unwrap()
}

pub(super) fn lease(number: u64) -> LeaseId {
    LeaseId::new(number).unwrap()
}

pub(super) fn tag(nonce: u64) -> Tag {
    Tag::new(lease(0xab), nonce)
}

impl Core {
    /// Brings the store to this second.
    pub(super) fn go_to(&mut self, seconds: f64) {
        self.advance(at(seconds)).unwrap();
    }

    /// Writes a file that stays.
    pub(super) fn have(&mut self, path: &str, value: &str) -> Arc<Event> {
        self.set(&key(path), file(value), Life::Forever).unwrap()
    }

    /// The value at a path, if a file is there.
    pub(super) fn value(&self, path: &str) -> Option<String> {
        let value = self.peek(&key(path))?.value?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    /// Watches a tree for everything.
    pub(super) fn follow(&mut self, path: &str, from: Option<u64>) -> Outcome<WatcherId> {
        let interest = Interest {
            key: key(path),
            scope: Scope::Tree,
            filter: Filter::All,
        };
        self.watch(interest, from.map(index))
    }

    /// What a watcher has not read yet, as `index action key`.
    pub(super) fn unread(&mut self, id: WatcherId) -> Vec<String> {
        std::iter::from_fn(|| match self.look(id, Waker::noop()).unwrap() {
            Look::Event(event, _) => Some(told(&event)),
            Look::Nothing(_) => None,
        })
        .collect()
    }
}

/// An event as `index action key`.
pub(super) fn told(event: &Event) -> String {
    format!(
        "{} {} {}",
        event.index(),
        event.action.as_str(),
        event.node.key
    )
}

/// A refusal as `code cause`.
#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(outcome: Outcome<T>) -> String {
    let refusal = outcome.unwrap_err();
    format!("{} {}", refusal.code.number(), refusal.cause)
}
