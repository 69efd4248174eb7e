//! A shared line as the store showed it at one index, and who is admitted by it: pure.
//!
//! A ticket is admitted when its weight and those of all live tickets before it fit into the
//! limit. All of them count, admitted or not: so a heavy ticket at the head holds up lighter ones
//! behind it, and is never starved by them.
//!
//! Tickets join at the end only, and one that is gone never comes back. So from the first picture
//! that shows a ticket on, the sum before it can only fall.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::rule::{Refusal, Shared, Verdict};
use crate::key::{Index, Key, Position};
use crate::store::{Change, Event, Layout, Node, View};

/// A limit and the tickets under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    /// Everything up to here is in it.
    pub(crate) index: Index,
    limit: Limit,
    /// When the limit was written, or was seen to be missing.
    limit_at: Index,
    tickets: BTreeMap<Position, Seen>,
}

/// What is stored as the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Missing,
    Number(u32),
    NoNumber(String),
}

/// A ticket as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    weight: u32,
    created: Index,
}

/// A ticket and what is before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) ticket: &'a Position,
    pub(crate) weight: u32,
    pub(crate) fit: Fit,
}

/// Whether a ticket fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    In,
    Waits,
    /// Not with its weight, however long it waits.
    Never,
}

/// What a ticket says besides its tag.
#[derive(Serialize, Deserialize)]
struct Body {
    weight: u32,
}

/// The body of a ticket of this weight.
pub(crate) fn body(weight: u32) -> Bytes {
    format!("{{\"weight\":{weight}}}").into()
}

/// The weight that a ticket's body says; `None` if it says none.
pub(crate) fn weight(body: &[u8]) -> Option<u32> {
    let Body { weight } = serde_json::from_slice(body).ok()?;
    (weight > 0).then_some(weight)
}

impl Limit {
    /// Reads the node that holds the limit.
    pub(crate) fn of(node: Option<&Node>) -> Self {
        let Some(node) = node else {
            return Self::Missing;
        };
        let digits = node
            .text()
            .filter(|it| it.bytes().all(|b| b.is_ascii_digit()));
        match digits.and_then(|it| it.parse().ok()) {
            Some(number) if !node.is_dir => Self::Number(number),
            _ => Self::NoNumber(String::from_utf8_lossy(&node.value).into_owned()),
        }
    }

    /// The number.
    pub(crate) fn number(&self) -> Result<u32, Refusal> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Missing => Err(Refusal::NoLimit),
            Self::NoNumber(text) => Err(Refusal::NoNumber(text.clone())),
        }
    }
}

impl Picture {
    /// What a reading of the whole tree showed.
    pub(crate) fn of(layout: Layout, place: &Shared, view: &View) -> Self {
        let limit = view.nodes.iter().find(|node| node.key == place.limit);
        let tickets = view.nodes.iter().filter_map(|node| {
            let ticket = layout.ticket(&place.line, node)?;
            let weight = weigh(&ticket.position, ticket.tag.is_some(), &ticket.body);
            let created = node.created;
            Some((ticket.position, Seen { weight, created }))
        });
        Self {
            index: view.index,
            limit: Limit::of(limit),
            limit_at: limit.map_or(view.index, |node| node.modified),
            tickets: tickets.collect(),
        }
    }

    /// Changes it as the store was changed. Events come in order.
    pub(super) fn apply(&mut self, layout: Layout, place: &Shared, event: &Event) {
        self.index = self.index.max(event.index);
        match &event.change {
            Change::Put(node) if node.key == place.limit => {
                self.limit = Limit::of(Some(node));
                self.limit_at = event.index;
            }
            Change::Put(node) => {
                if let Some(ticket) = layout.ticket(&place.line, node)
                    && !self.tickets.contains_key(&ticket.position)
                {
                    let weight = weigh(&ticket.position, ticket.tag.is_some(), &ticket.body);
                    let created = node.created;
                    self.tickets
                        .insert(ticket.position, Seen { weight, created });
                }
            }
            Change::Delete { .. } => {
                if event.removes(&place.limit) {
                    self.limit = Limit::Missing;
                    self.limit_at = event.index;
                }
                self.tickets.retain(|ticket, _| !event.removes(&ticket.key));
            }
        }
    }

    /// Corrects it by an older one that was read afresh: what is missing there is gone, for nobody
    /// comes back.
    pub(super) fn correct(&mut self, older: &Self) {
        self.tickets.retain(|ticket, seen| {
            seen.created > older.index || older.tickets.contains_key(ticket)
        });
        if older.limit_at > self.limit_at {
            self.limit = older.limit.clone();
            self.limit_at = older.limit_at;
        }
    }

    /// This ticket is gone.
    pub(super) fn remove(&mut self, ticket: &Key) {
        self.tickets.retain(|it, _| it.key != *ticket);
    }

    /// Whether this ticket is there.
    pub(super) fn has(&self, ticket: &Position) -> bool {
        self.tickets.contains_key(ticket)
    }

    /// All tickets in line, from the first on; an error if there is no limit.
    pub(crate) fn standings(&self) -> Result<(u32, Vec<Standing<'_>>), Refusal> {
        let limit = self.limit.number()?;
        let mut sum = 0_u64;
        let standings = self.tickets.iter().map(|(ticket, seen)| {
            sum += u64::from(seen.weight);
            let weight = seen.weight;
            let fit = match weight {
                _ if weight > limit => Fit::Never,
                _ if sum <= u64::from(limit) => Fit::In,
                _ => Fit::Waits,
            };
            Standing {
                ticket,
                weight,
                fit,
            }
        });
        Ok((limit, standings.collect()))
    }

    /// Whether a ticket of this weight would be admitted if it were appended now.
    pub(crate) fn has_room(&self, weight: u32) -> Result<bool, Refusal> {
        let limit = self.limit.number()?;
        if weight > limit {
            return Err(Refusal::TooHeavy { weight, limit });
        }
        let taken: u64 = self.tickets.values().map(|it| u64::from(it.weight)).sum();
        Ok(taken + u64::from(weight) <= u64::from(limit))
    }

    /// What it tells about one ticket.
    pub(in super::super) fn verdict(&self, ticket: &Position) -> Verdict {
        if !self.has(ticket) {
            return Verdict::Gone;
        }
        let (limit, standings) = match self.standings() {
            Ok(known) => known,
            Err(refusal) => return Verdict::Refused(refusal),
        };
        match standings.iter().find(|it| it.ticket == ticket) {
            Some(it) => match it.fit {
                Fit::In => Verdict::Admitted(limit),
                Fit::Waits => Verdict::Waits,
                Fit::Never => {
                    let weight = it.weight;
                    Verdict::Refused(Refusal::TooHeavy { weight, limit })
                }
            },
            None => Verdict::Gone,
        }
    }
}

/// A ticket that says no weight counts 1: its owner waits in this line, whatever it takes it for.
fn weigh(ticket: &Position, is_ours: bool, body: &[u8]) -> u32 {
    match weight(body) {
        Some(weight) if is_ours => weight,
        _ => {
            tracing::warn!(
                target: "tenure::semaphore", ticket = %ticket.key,
                "a ticket without a weight, of another program: it counts 1"
            );
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_round_trips_and_what_is_none_is_not_taken_for_one() {
        for number in [1, 2, u32::MAX] {
            assert_eq!(weight(&body(number)), Some(number));
        }
        assert_eq!(body(2), "{\"weight\":2}");
        assert_eq!(weight(b"{\"weight\":2,\"later\":true}"), Some(2));
        for other in [
            "",
            "2",
            "{}",
            "{\"weight\":0}",
            "{\"weight\":-1}",
            "{\"weight\":9e9}",
        ] {
            assert_eq!(weight(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_limit_is_a_decimal_number_and_nothing_else() {
        let at = Index::new(1).unwrap();
        let key = Key::new("/_semaphores/a/permits").unwrap();
        let limit =
            |value: &str| Limit::of(Some(&Node::file(key.clone(), value.to_owned(), at, at)));
        assert_eq!(limit("12"), Limit::Number(12));
        for other in ["", "+1", "-1", "1.5", " 1", "4294967296", "x"] {
            assert_eq!(limit(other), Limit::NoNumber(other.into()), "{other:?}");
        }
        assert_eq!(Limit::of(None), Limit::Missing);
        assert_eq!(
            Limit::of(Some(&Node::dir(key.clone(), at, at))),
            Limit::NoNumber("".into())
        );
    }
}
