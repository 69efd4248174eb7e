//! Single writes: each one transaction, so that the condition, the write and, if it is refused, the reason
//! are of one moment.
//!
//! A time-to-live is a lease. One that is not [shared](super::shared) is granted before the write and
//! revoked when the write certainly did not happen; when nobody knows, it ends what came of it.

use bytes::Bytes;

use super::driver::{Driver, bytes, check_root, lease_number, node, prefix, prefix_end};
use super::error::is_full;
use super::proto::{
    DeleteRangeRequest, DeleteRangeResponse, KeyValue, PutRequest, Request, Response,
};
use super::read::any_below;
use super::rpc::Ask;
use super::shared::Prepared;
use super::txn::{compares, first, look, present, refusal};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId};
use crate::runtime::Instant;
use crate::store::{Condition, Delete, Deleted, Node, Put, Written};

impl Driver {
    pub(super) async fn put(&self, put: &Put) -> Result<Written> {
        let deadline = self.deadline();
        check_root(&put.key)?;
        put.when.check_of_write()?;
        let mut prepared = Prepared::default();
        let lease = self.lease_of(put.expiry, &mut prepared, deadline).await?;
        let outcome = self.put_with(put, lease, deadline).await;
        self.tidy(prepared, outcome).await
    }

    async fn put_with(&self, put: &Put, lease: Option<LeaseId>, by: Instant) -> Result<Written> {
        let compare = compares(&put.key, &put.when);
        let (success, failure) = (vec![write(put, lease)], vec![look(&put.key)]);
        let mut reply = self.txn(compare, success, failure, Ask::ONCE, by).await?;
        match reply.take().next() {
            Some(Response::Put(answer)) => {
                Ok(written(put, lease, reply.index, answer.prev_kv.as_ref()))
            }
            Some(Response::Range(range)) => {
                Err(refusal(&put.when, first(range).as_ref()).seen_at(reply.index))
            }
            _ => Err(maybe(&reply.broken("the answer to a write holds none"))),
        }
    }

    pub(super) async fn delete(&self, delete: &Delete) -> Result<Deleted> {
        let deadline = self.deadline();
        check_root(&delete.key)?;
        delete.when.check_of_write()?;
        if delete.recursive {
            return self.delete_tree(delete, deadline).await;
        }
        let key = &delete.key;
        let mut compare = compares(key, &delete.when);
        compare.push(present(key));
        let success = vec![removal(key)];
        let failure = vec![look(key), Request::Range(any_below(key))];
        let outcome = self
            .txn(compare, success, failure, Ask::ONCE, deadline)
            .await;
        let mut reply = match outcome {
            Err(error) if is_full(&error) && delete.when == Condition::Any => {
                return self.delete_without_space(key, deadline).await;
            }
            outcome => outcome?,
        };
        let index = reply.index;
        let mut answers = reply.take();
        match (answers.next(), answers.next()) {
            (Some(Response::Delete(answer)), _) => Ok(Deleted::new(index, previous(key, &answer))),
            (Some(Response::Range(here)), Some(Response::Range(below))) => {
                let error = match (first(here), first(below)) {
                    (None, Some(_)) => {
                        let text = "this is a directory: delete its tree";
                        Error::new(ErrorKind::NotAFile, text)
                    }
                    (None, None) => refusal(&Condition::Present, None),
                    (Some(_), _) if delete.when == Condition::Absent => {
                        let text = "there is something at the key";
                        Error::new(ErrorKind::ConditionFailed, text)
                    }
                    (kv, _) => refusal(&delete.when, kv.as_ref()),
                };
                Err(error.seen_at(index))
            }
            _ => Err(maybe(&reply.broken("the answer to a deletion holds none"))),
        }
    }

    /// Out of space, etcd before 3.5.2 refuses every transaction, also one that only deletes.
    async fn delete_without_space(&self, key: &Key, deadline: Instant) -> Result<Deleted> {
        let request = DeleteRangeRequest {
            key: bytes(key),
            prev_kv: true,
            ..DeleteRangeRequest::default()
        };
        let reply = self.wire.call(&request, Ask::ONCE, deadline).await?;
        match reply.body.deleted {
            0 => Err(refusal(&Condition::Present, None).seen_at(reply.index)),
            _ => Ok(Deleted::new(reply.index, previous(key, &reply.body))),
        }
    }

    async fn delete_tree(&self, delete: &Delete, deadline: Instant) -> Result<Deleted> {
        if delete.when != Condition::Any {
            let text = "a recursive deletion takes no condition";
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        let success = vec![removal(&delete.key), removal_below(&delete.key)];
        let (compare, failure) = (Vec::new(), Vec::new());
        let mut reply = self
            .txn(compare, success, failure, Ask::ONCE, deadline)
            .await?;
        let mut answers = reply.take();
        let (Some(Response::Delete(here)), Some(Response::Delete(below))) =
            (answers.next(), answers.next())
        else {
            return Err(maybe(&reply.broken("the answer to a deletion holds none")));
        };
        if here.deleted + below.deleted == 0 {
            return Err(refusal(&Condition::Present, None).seen_at(reply.index));
        }
        Ok(Deleted::new(reply.index, previous(&delete.key, &here)))
    }
}

/// An answer that cannot be understood leaves the outcome open.
pub(super) fn maybe(error: &Error) -> Error {
    error
        .clone()
        .into_kind(ErrorKind::Ambiguous, "it may have been done")
}

pub(super) fn write(put: &Put, lease: Option<LeaseId>) -> Request {
    Request::Put(PutRequest {
        key: bytes(&put.key),
        value: put.value.clone(),
        lease: lease.map_or(0, lease_number),
        // Of what was not there before the index of creation is known.
        prev_kv: put.when != Condition::Absent,
    })
}

pub(super) fn removal(key: &Key) -> Request {
    Request::Delete(DeleteRangeRequest {
        key: bytes(key),
        range_end: Bytes::new(),
        prev_kv: true,
    })
}

pub(super) fn removal_below(key: &Key) -> Request {
    Request::Delete(DeleteRangeRequest {
        key: prefix(key).into(),
        range_end: prefix_end(key),
        prev_kv: false,
    })
}

/// The node that a put at this index made, and what was there before.
pub(super) fn written(
    put: &Put,
    lease: Option<LeaseId>,
    index: Index,
    before: Option<&KeyValue>,
) -> Written {
    let previous = before.and_then(|kv| node(&put.key, kv));
    let created = previous.as_ref().map_or(index, |it| it.created);
    let node = Node::file(put.key.clone(), put.value.clone(), created, index);
    Written::new(node.with_lease(lease), previous)
}

fn previous(key: &Key, answer: &DeleteRangeResponse) -> Option<Node> {
    answer.prev_kvs.first().and_then(|kv| node(key, kv))
}
