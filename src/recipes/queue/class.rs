//! What a job and its register come to.
//!
//! | job | register | class |
//! |---|---|---|
//! | there | none; `ready` and due; `claimed` by a consumer that is not there | open |
//! | there | `ready`, to wait | delayed |
//! | either | `claimed` by a consumer that is there | claimed |
//! | there | `done` | finished: the job is to be deleted |
//! | there | `dead`, or what is no register | set aside |
//! | gone | `ready`, `dead`, `claimed` by nobody who is there | orphan |

use std::collections::BTreeMap;
use std::time::Duration;

use super::register::Register;
use crate::key::{Index, Tag};
use crate::runtime::Instant;

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    /// For lengths of time.
    pub(super) now: Instant,
    /// For the times that registers name.
    pub(super) wall: Duration,
}

/// A consumer that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Station {
    pub(super) slots: usize,
    pub(super) created: Index,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Option<Spot>,
    pub(super) register: Option<Seen>,
    pub(super) class: Class,
    /// Since when it is of that class.
    pub(super) since: Instant,
}

/// Where and as what a job lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub(super) created: Index,
    pub(super) modified: Index,
}

/// A register and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// `None` for what is no register.
    pub(super) register: Option<Register>,
    pub(super) index: Index,
}

/// What is to be done about a job: see the table at the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Open,
    Delayed(Duration),
    Claimed,
    Finished,
    Aside,
    Orphan,
    /// Nothing is there that is worth being kept.
    Gone,
}

/// The class of an entry: the table at the top.
pub(super) fn class(entry: &Entry, consumers: &BTreeMap<Tag, Station>, wall: Duration) -> Class {
    let register = entry.register.as_ref().map(|seen| seen.register.as_ref());
    let is_there = |tag: &Tag| consumers.contains_key(tag);
    match (entry.job.is_some(), register) {
        (_, Some(Some(Register::Claimed { consumer, .. }))) if is_there(consumer) => Class::Claimed,
        (true, Some(Some(Register::Ready { not_before, .. }))) if *not_before > wall => {
            Class::Delayed(*not_before)
        }
        (true, None | Some(Some(Register::Ready { .. } | Register::Claimed { .. }))) => Class::Open,
        (true, Some(Some(Register::Done { .. }))) => Class::Finished,
        (true, Some(Some(Register::Dead { .. }) | None)) => Class::Aside,
        (false, None | Some(None | Some(Register::Done { .. }))) => Class::Gone,
        (false, Some(Some(_))) => Class::Orphan,
    }
}

pub(super) fn claimant(seen: Option<&Seen>) -> Option<Tag> {
    match seen?.register.as_ref()? {
        Register::Claimed { consumer, .. } => Some(*consumer),
        Register::Ready { .. } | Register::Done { .. } | Register::Dead { .. } => None,
    }
}

/// Reasons are for people, and can be long; nobody compares with them here.
pub(super) fn without_reason(register: Register) -> Register {
    match register {
        Register::Dead { attempts, .. } => Register::Dead {
            attempts,
            reason: String::new(),
        },
        other => other,
    }
}
