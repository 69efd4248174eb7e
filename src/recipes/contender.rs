//! Who stands in a line, as its tickets tell.

use std::time::Duration;

use bytes::Bytes;

use crate::client::Core;
use crate::error::Result;
use crate::key::{Key, Tag};
use crate::store::{Get, Ticket};

/// One ticket of a line: who waits, and who holds.
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
    /// The key of its ticket. On etcd v3 a later ticket of the same process can have the same one:
    /// whoever deletes a ticket by hand compares its [`token`](Self::token) too, with
    /// [`Condition::Created`](crate::store::Condition::Created).
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The fencing token that it has, or will have.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The session that keeps its ticket alive; [`Client::who`](crate::Client::who) tells whose that
    /// is. `None` for tickets that other programs made. (One of python-etcd's looks like one of
    /// ours: its session is nobody's.)
    pub fn session(&self) -> Option<u64> {
        self.session
    }

    /// When it came, since 1970, by the wall clock of whoever made the ticket; for people to read.
    /// `None` for tickets that other programs made. On etcd v3 up to a second too early for a lock
    /// that changes hands faster.
    pub fn since(&self) -> Option<Duration> {
        self.since
    }

    /// What the ticket says: nothing for a lock, the proposal for an election.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// How much of what is shared it takes: 1 for locks and elections.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Whether it has what the others wait for. By the line's order: it may not know it yet, or
    /// have given it up a moment ago.
    pub fn holds(&self) -> bool {
        self.holds
    }

    pub(super) fn new(ticket: Ticket, weight: u32, holds: bool) -> Self {
        let Ticket {
            position,
            tag,
            body,
        } = ticket;
        Self {
            token: position.sequence.get(),
            key: position.key,
            session: tag.map(Tag::session),
            since: tag.and_then(Tag::made),
            body,
            weight,
            holds,
        }
    }
}

/// The tickets of the line at `dir` in their order, of which the first holds; one linearizable read.
pub(super) async fn in_line(core: &Core, dir: &Key) -> Result<Vec<Contender>> {
    let view = core.store.get(Get::children(dir.clone())).await?;
    core.saw(view.index);
    let nodes = view.nodes.iter();
    let mut tickets: Vec<Ticket> = nodes
        .filter_map(|node| core.layout.ticket(dir, node))
        .collect();
    tickets.sort_by(|one, other| one.position.cmp(&other.position));
    let contenders = tickets.into_iter().enumerate();
    Ok(contenders
        .map(|(place, ticket)| Contender::new(ticket, 1, place == 0))
        .collect())
}
