//! Who of a line is admitted: what must be read to tell, and what a reading tells.

use std::sync::Arc;

use super::shared::picture::Picture;
use crate::error::{Error, ErrorKind};
use crate::key::{Key, Position};
use crate::store::{Get, Layout, View};

/// How a line decides who is admitted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The first alone.
    Exclusive,
    /// Each whose weight fits into a limit together with all before it.
    Shared(Arc<Shared>),
}

/// Where the parts of a shared line are: tickets and limit under one root, so that one reading
/// shows both at one index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shared {
    /// What is read and followed.
    pub(crate) root: Key,
    /// The directory of the tickets.
    pub(crate) line: Key,
    /// The node that holds the limit.
    pub(crate) limit: Key,
}

/// What a reading tells about one ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is in, under this limit: 1 where only one can be.
    Admitted(u32),
    /// Somebody before it has to leave first.
    Waits,
    /// It is not there.
    Gone,
    /// It cannot be admitted however long it waits.
    Refused(Refusal),
}

/// Why a ticket need not wait any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It weighs more than all that there is.
    TooHeavy {
        /// What it weighs.
        weight: u32,
        /// The limit.
        limit: u32,
    },
    /// There is no limit.
    NoLimit,
    /// What is stored as the limit is none.
    NoNumber(String),
}

impl Rule {
    /// The read that shows who is admitted in the line `dir`, to be made as fresh as it must be.
    pub(super) fn look(&self, dir: &Key) -> Get {
        match self {
            Self::Exclusive => Get::children(dir.clone()).keys_only(),
            Self::Shared(shared) => Get::tree(shared.root.clone()),
        }
    }

    /// The same with the tags of the tickets.
    pub(super) fn look_for_tags(&self, dir: &Key) -> Get {
        match self {
            Self::Exclusive => Get::children(dir.clone()),
            Self::Shared(_) => self.look(dir),
        }
    }

    /// Whether the tickets alone tell who is admitted.
    pub(super) fn needs_tickets_only(&self) -> bool {
        matches!(self, Self::Exclusive)
    }

    /// What a reading tells about a ticket that was appended before it.
    pub(super) fn judge(
        &self,
        layout: Layout,
        dir: &Key,
        view: &View,
        ticket: &Position,
    ) -> Verdict {
        match self {
            Self::Exclusive => {
                let tickets = view.nodes.iter().filter_map(|it| layout.ticket(dir, it));
                match tickets.map(|it| it.position).min() {
                    Some(first) if first == *ticket => Verdict::Admitted(1),
                    Some(first) if first < *ticket => Verdict::Waits,
                    _ => Verdict::Gone,
                }
            }
            Self::Shared(shared) => Picture::of(layout, shared, view).verdict(ticket),
        }
    }
}

impl Refusal {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::TooHeavy { weight, limit } => Error::new(
                ErrorKind::TooHeavy,
                format!(
                    "a weight of {weight} is never admitted while the limit is {limit}: \
                     ask for less, or resize the semaphore"
                ),
            ),
            Self::NoLimit => Error::new(
                ErrorKind::NotFound,
                "no limit is stored: say how many permits there are with `.permits(n)` at the first \
                 use; if it was there before, somebody deleted it",
            ),
            Self::NoNumber(text) => Error::new(
                ErrorKind::Protocol,
                format!(
                    "the limit is stored as {text:?}, which is no decimal number: \
                     another program uses this key, or it was edited by hand"
                ),
            ),
        }
    }
}
