//! Appends that can be taken back for good.
//!
//! Withdrawing puts a mark and deletes the node in one step; an append compares "no mark" in its
//! own. So a withdrawn append leaves nothing, whether it came before or comes after.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::{Action, Code, Core, Event, Life, Node, Outcome, Payload, Refusal, Stored};
use crate::key::{Key, Tag};
use crate::store::{self, Append, Layout, Naming, Withdraw};

/// How long a mark stays that has no lease to stay with.
pub(crate) const MARK_LIFE: Duration = Duration::from_secs(10 * 60);

const LAYOUT: Layout = Layout::Numbered;

impl Core {
    /// Adds a node to a directory, unless its tag was withdrawn.
    pub(crate) fn append(&mut self, append: &Append) -> Outcome<Arc<Event>> {
        let Append { dir, tag, body, .. } = append;
        if self.marks.contains_key(tag) {
            return Err(Refusal {
                key: Some(dir.clone()),
                ..self.refusal(Code::CompareFailed, format!("{tag} was withdrawn"))
            });
        }
        let life = append.expiry.into();
        match append.naming {
            Naming::Ticket => {
                let value = LAYOUT.ticket_value(*tag, body);
                self.create_in_order(dir, Payload::File(value), life)
            }
            Naming::Tag => {
                let key = self.tagged(dir, *tag)?;
                self.create(&key, Payload::File(body.clone()), life)
            }
        }
    }

    /// The live tickets of `dir` before `ticket`, in order.
    pub(crate) fn tickets_before(&self, dir: &Key, ticket: &Key) -> Vec<Node> {
        let children = self.tree.find(dir).ok().and_then(Stored::children);
        let earlier = (Bound::Unbounded, Bound::Excluded(ticket.name()));
        children
            .into_iter()
            .flat_map(|children| children.range::<str, _>(earlier))
            .filter(|(_, child)| !child.is_dir() && LAYOUT.position(dir, &child.key).is_some())
            .map(|(_, child)| self.node(child))
            .collect()
    }

    /// Makes sure that no node of this tag is in the directory, now or later. Says whether there
    /// was one.
    pub(crate) fn withdraw(&mut self, withdraw: &Withdraw) -> Outcome<bool> {
        let life = match withdraw.lease {
            Some(lease) if self.leases.contains_key(&lease) => Life::With(lease),
            _ => Life::For(MARK_LIFE),
        };
        let keys = match withdraw.naming {
            Naming::Tag => vec![self.tagged(&withdraw.dir, withdraw.tag)?],
            Naming::Ticket => self.tickets_of(withdraw),
        };
        self.mark(withdraw.tag, life);
        let mut removed = false;
        for key in keys {
            removed |= self.remove(Action::Delete, &key).is_some();
        }
        Ok(removed)
    }

    /// Where the tag's tickets are: where they were last seen, else wherever they are.
    fn tickets_of(&self, withdraw: &Withdraw) -> Vec<Key> {
        let Withdraw { dir, tag, node, .. } = withdraw;
        let is_ours = |stored: &Stored| {
            stored.value().is_some_and(|value| {
                // Values are shared, not copied.
                let (at, value) = (stored.modified, value.clone());
                let node = store::Node::file(stored.key.clone(), value, stored.created, at);
                LAYOUT
                    .ticket(dir, &node)
                    .is_some_and(|ticket| ticket.tag == Some(*tag))
            })
        };
        let seen = node
            .as_ref()
            .and_then(|node| self.tree.find(&node.key).ok());
        if let Some(seen) = seen.filter(|seen| is_ours(seen)) {
            return vec![seen.key.clone()];
        }
        let children = self.tree.find(dir).ok().and_then(Stored::children);
        children
            .into_iter()
            .flat_map(|children| children.values())
            .filter(|child| is_ours(child))
            .map(|child| child.key.clone())
            .collect()
    }

    fn tagged(&self, dir: &Key, tag: Tag) -> Outcome<Key> {
        dir.join(&tag.to_string()).map_err(|error| Refusal {
            key: Some(dir.clone()),
            ..self.refusal(Code::InvalidField, error.detail())
        })
    }
}
