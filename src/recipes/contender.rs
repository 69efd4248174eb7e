//! Who is in a line, as one reading showed it: for people, and for tools.

use std::time::Duration;

use bytes::Bytes;

use crate::key::Key;

/// A ticket in a line, as it was at one index of the store.
///
/// A moment later it may be gone: nothing is held by looking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    key: Key,
    token: u64,
    session: Option<u64>,
    since: Option<Duration>,
    body: Bytes,
    weight: u32,
    holds: bool,
}

impl Contender {
    /// What a ticket of the line says.
    pub(super) fn new(ticket: crate::store::Ticket, weight: u32, holds: bool) -> Self {
        Self {
            key: ticket.position.key,
            token: ticket.position.sequence.get(),
            session: ticket.tag.map(crate::key::Tag::session),
            since: ticket.tag.and_then(crate::key::Tag::made),
            body: ticket.body,
            weight,
            holds,
        }
    }

    /// The key of its ticket.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its fencing token, which is also its place in line.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The session that it belongs to; `None` for a ticket of another program.
    pub fn session(&self) -> Option<u64> {
        self.session
    }

    /// When it queued, since 1970, by the wall clock of its own machine; `None` for a ticket of
    /// another program.
    pub fn since(&self) -> Option<Duration> {
        self.since
    }

    /// What its ticket says besides.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// How much of a semaphore it takes; 1 for locks.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Whether it is admitted, and does not wait.
    pub fn holds(&self) -> bool {
        self.holds
    }
}
