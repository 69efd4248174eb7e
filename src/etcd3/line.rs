//! Appends that can be taken back for good, and what is before them.
//!
//! | | one transaction |
//! |---|---|
//! | append | if there is no cancel mark of the tag, and nothing under its name: read the line, write the node |
//! | withdraw | write the mark (unless the node is known), delete the node |
//!
//! So a withdrawn append leaves nothing, whether it came before or comes after: without the mark a
//! ticket that comes late, on a lease that lives on, would stay in the line for as long as its
//! session.
//!
//! A mark lies at `<marks>/<tag>`, `/_cancelled` by default. A ticket's hangs on the ticket's lease:
//! with that gone no late ticket can come either. Any other mark stays for ten minutes and more, on
//! a [shared](super::shared) lease.

use std::time::Duration;

use bytes::Bytes;

use super::driver::{Driver, after, bytes, lease_number, node, prefix, prefix_end};
use super::error::is_full;
use super::proto::{
    Compare, DESCENDING, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RangeResponse,
    Request, Response,
};
use super::rpc::Ask;
use super::shared::Prepared;
use super::txn::{absent, created, first, look, none_between};
use super::write::maybe;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId, Tag, Ttl};
use crate::runtime::Instant;
use crate::store::{Append, Appended, Layout, Naming, Node, Withdraw, Withdrawn};

/// How long a mark stays that hangs on no ticket's lease, at least.
const MARK_LIFE: Duration = Duration::from_secs(10 * 60);
/// How many keys of a line an append reads. In a longer one nobody is at the front anyway.
const BEFORE: i64 = 256;
/// How often an append with a rising name is thrown back by others before it goes ahead of them.
const PATIENT: usize = 2;
/// How often it is tried in all.
const RISES: usize = 64;

impl Driver {
    pub(super) async fn append(&self, append: &Append) -> Result<Appended> {
        let deadline = self.deadline();
        let mut prepared = Prepared::default();
        let expiry = append.expiry;
        let lease = self.lease_of(expiry, &mut prepared, deadline).await?;
        let outcome = match append.naming {
            Naming::Raw => self.rise(append, lease, deadline).await,
            Naming::Ticket | Naming::Tag => self.append_tagged(append, lease, deadline).await,
        };
        self.tidy(prepared, outcome).await
    }

    async fn append_tagged(
        &self,
        append: &Append,
        lease: Option<LeaseId>,
        deadline: Instant,
    ) -> Result<Appended> {
        let key = place(&append.dir, append.tag, append.naming)?;
        let mark = self.mark(append.tag)?;
        let line = append.naming == Naming::Ticket;
        let compare = vec![absent(bytes(&mark)), absent(bytes(&key))];
        let mut success = vec![put(&key, &append.body, lease)];
        if line {
            success.insert(0, Request::Range(line_of(&append.dir)));
        }
        let failure = vec![look(&mark)];
        let mut reply = self
            .txn(compare, success, failure, Ask::ONCE, deadline)
            .await?;
        let (index, mut answers) = (reply.index, reply.take());
        if !reply.body.succeeded {
            let withdrawn =
                matches!(answers.next(), Some(Response::Range(it)) if !it.kvs.is_empty());
            let (kind, text) = if withdrawn {
                (
                    ErrorKind::ConditionFailed,
                    format!("{} was withdrawn", append.tag),
                )
            } else {
                (
                    ErrorKind::AlreadyExists,
                    format!("{} was appended before", append.tag),
                )
            };
            return Err(Error::new(kind, text).seen_at(index));
        }
        let before = match answers.next() {
            Some(Response::Range(range)) if line => before(&append.dir, &range),
            Some(Response::Put(_)) if !line => None,
            _ => return Err(maybe(&reply.broken("the answer to an append holds none"))),
        };
        let node = Node::file(key, append.body.clone(), index, index);
        Ok(Appended::new(node.with_lease(lease), before))
    }

    /// Appends under a name of 20 digits that is larger than all that are there: nanoseconds since
    /// 1970, so that those who append at once seldom get into each other's way, for who sends later
    /// has the larger name. That is only a guess; the comparison decides. Who loses goes ahead of
    /// the largest name, from then on by as much as its clock is behind.
    async fn rise(
        &self,
        append: &Append,
        lease: Option<LeaseId>,
        deadline: Instant,
    ) -> Result<Appended> {
        let clock = &self.wire.runtime.clock;
        let mut lead = 0;
        // Names that are no such numbers, and come after all that are, leave only the guess.
        let mut alone = true;
        for lost in 0..RISES {
            let number = nanos(clock.wall()).saturating_add(lead);
            let sent = clock.now();
            let key = append.dir.join(&format!("{number:020}"))?;
            let end = after(&format!("{}9", prefix(&append.dir)));
            let above = RangeRequest {
                key: bytes(&key),
                range_end: end.clone(),
                limit: 1,
                sort_order: DESCENDING,
                keys_only: true,
                ..RangeRequest::default()
            };
            let compare = if alone {
                none_between(bytes(&key), end)
            } else {
                absent(bytes(&key))
            };
            let success = vec![put(&key, &append.body, lease)];
            let failure = vec![Request::Range(above)];
            let compare = vec![compare];
            let mut reply = self
                .txn(compare, success, failure, Ask::ONCE, deadline)
                .await?;
            let index = reply.index;
            match reply.take().next() {
                Some(Response::Put(_)) => {
                    let node = Node::file(key, append.body.clone(), index, index);
                    return Ok(Appended::new(node.with_lease(lease), None));
                }
                Some(Response::Range(range)) => {
                    let last = first(range).and_then(|kv| digits(&append.dir, &kv));
                    // Nothing is larger than the largest.
                    let last = last.filter(|last| *last < u64::MAX);
                    alone &= last.is_some();
                    let behind = last.unwrap_or(0).saturating_sub(nanos(clock.wall()));
                    // Larger than what others have on the way by now, whom that throws back.
                    let took = nanos(clock.now().since(sent)) * u64::from(lost >= PATIENT);
                    lead = behind.saturating_add(took).saturating_add(1).max(lead);
                }
                _ => return Err(maybe(&reply.broken("the answer to an append holds none"))),
            }
        }
        let text = "others kept appending meanwhile";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    pub(super) async fn withdraw(&self, withdraw: &Withdraw) -> Result<Withdrawn> {
        let deadline = self.deadline();
        let key = place(&withdraw.dir, withdraw.tag, withdraw.naming)?;
        if let Some(node) = withdraw.node.as_ref().filter(|node| node.key == key) {
            // What made this node was answered, so nothing of its append can come any more, and a
            // lock that is taken and given back all day leaves no marks. The creation is compared:
            // the name may be used again, and a repeat of this may be late.
            let compare = vec![created(&key, node.created)];
            let outcome = self.take_back(compare, vec![delete(&key)], deadline).await;
            return match outcome {
                Err(error) if is_full(&error) => self.delete_alone(&key, deadline).await,
                outcome => outcome,
            };
        }
        let outcome = self.cancel_for_good(withdraw, &key, deadline).await;
        if outcome.as_ref().is_err_and(is_full) {
            // There is no space for a mark, but deletions pass: what is in line already goes now. What
            // may still come is for the next attempt.
            self.delete_alone(&key, deadline).await?;
        }
        outcome
    }

    /// Out of space, etcd before 3.5.2 refuses every transaction, also one that only deletes. This
    /// compares nothing, so it is sent only once: with the answer nothing of it is on the way any
    /// more. Without one the name is not used again (see [`Store::withdraw`](crate::Store::withdraw)),
    /// and nobody else's node has it.
    async fn delete_alone(&self, key: &Key, deadline: Instant) -> Result<Withdrawn> {
        let request = DeleteRangeRequest {
            key: bytes(key),
            ..DeleteRangeRequest::default()
        };
        let reply = self.wire.call(&request, Ask::ONCE, deadline).await?;
        Ok(Withdrawn::new(reply.index, reply.body.deleted > 0, true))
    }

    async fn cancel_for_good(
        &self,
        withdraw: &Withdraw,
        key: &Key,
        deadline: Instant,
    ) -> Result<Withdrawn> {
        let own = match withdraw.naming {
            Naming::Ticket => withdraw.lease,
            Naming::Tag | Naming::Raw => None,
        };
        if let Some(lease) = own {
            let outcome = self.cancel(withdraw.tag, key, lease, deadline).await;
            match outcome {
                // Its lease is gone, and was perhaps not the one it was appended with.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => return outcome,
            }
        }
        for _ in 0..2 {
            let Some(lease) = self.shared_lease(Ttl::new(MARK_LIFE)?, deadline).await? else {
                break;
            };
            match self.cancel(withdraw.tag, key, lease, deadline).await {
                // Somebody has revoked it.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.forget_shared(lease);
                }
                outcome => return outcome,
            }
        }
        let text = "the lease of the cancel marks is revoked time and again";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    async fn cancel(
        &self,
        tag: Tag,
        key: &Key,
        lease: LeaseId,
        deadline: Instant,
    ) -> Result<Withdrawn> {
        let mark = put(&self.mark(tag)?, &Bytes::new(), Some(lease));
        self.take_back(Vec::new(), vec![delete(key), mark], deadline)
            .await
    }

    /// Repeating it is harmless: it compares with the node, or leaves a mark, and then the name is
    /// not used again.
    async fn take_back(
        &self,
        compare: Vec<Compare>,
        success: Vec<Request>,
        deadline: Instant,
    ) -> Result<Withdrawn> {
        let ask = Ask::HARMLESS;
        let mut reply = self
            .txn(compare, success, Vec::new(), ask, deadline)
            .await?;
        let removed = matches!(reply.take().next(), Some(Response::Delete(it)) if it.deleted > 0);
        Ok(Withdrawn::new(reply.index, removed, true))
    }

    fn mark(&self, tag: Tag) -> Result<Key> {
        self.marks.join(&tag.to_string())
    }
}

/// Where the append of a tag goes.
pub(super) fn place(dir: &Key, tag: Tag, naming: Naming) -> Result<Key> {
    match naming {
        Naming::Ticket => dir.join(&Layout::leased_name(tag)),
        Naming::Tag | Naming::Raw => dir.join(&tag.to_string()),
    }
}

pub(super) fn put(key: &Key, value: &Bytes, lease: Option<LeaseId>) -> Request {
    Request::Put(PutRequest {
        key: bytes(key),
        value: value.clone(),
        lease: lease.map_or(0, lease_number),
        prev_kv: false,
    })
}

fn delete(key: &Key) -> Request {
    Request::Delete(DeleteRangeRequest {
        key: bytes(key),
        ..DeleteRangeRequest::default()
    })
}

/// The keys of a line.
fn line_of(dir: &Key) -> RangeRequest {
    RangeRequest {
        key: prefix(dir).into(),
        range_end: prefix_end(dir),
        limit: BEFORE,
        keys_only: true,
        ..RangeRequest::default()
    }
}

/// The live tickets of a line in their order; `None` when it is too long to have been read.
fn before(dir: &Key, range: &RangeResponse) -> Option<Vec<Node>> {
    if range.more {
        return None;
    }
    let place = |node: &Node| Layout::Leased.position(dir, &node.key, node.created);
    let nodes = range.kvs.iter().filter_map(|it| node(dir, it));
    let mut tickets: Vec<Node> = nodes.filter(|node| place(node).is_some()).collect();
    tickets.sort_by_cached_key(place);
    Some(tickets)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The number that a name of 20 digits stands for.
fn digits(dir: &Key, kv: &KeyValue) -> Option<u64> {
    let key = std::str::from_utf8(&kv.key).ok()?;
    let name = key.strip_prefix(&*prefix(dir))?;
    let digits = name.len() == 20 && name.bytes().all(|it| it.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_before_are_in_the_order_of_creation_and_no_strangers() {
        let dir = Key::new("/_locks/a").unwrap();
        let kv = |name: &str, created| KeyValue {
            key: format!("/_locks/a/{name}").into(),
            create_revision: created,
            mod_revision: created,
            value: Bytes::new(),
            lease: 7,
        };
        let kvs = vec![
            kv("7-1", 9),
            kv("7-2", 8),
            kv("_x", 2),
            kv("a", 5),
            kv("b/c", 3),
            kv("zz", 1),
        ];
        let range = |more| RangeResponse {
            header: None,
            kvs: kvs.clone(),
            more,
        };
        let names: Vec<_> = before(&dir, &range(false)).unwrap();
        let names: Vec<_> = names.iter().map(|node| node.key.name()).collect();
        assert_eq!(names, ["a", "7-2", "7-1"]);
        assert_eq!(before(&dir, &range(true)), None);
    }
}
