//! Writes: each one transaction, so that the condition, the write and, if it is refused, the reason
//! are of one moment.
//!
//! A time-to-live is a lease. One that is not [shared](super::shared) is granted before the write and
//! revoked when the write certainly did not happen; when nobody knows, it ends what came of it.

use bytes::Bytes;

use super::driver::{Driver, bytes, check_root, lease_number, node, prefix, prefix_end};
use super::error::is_full;
use super::proto::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, KeyValue, PutRequest, Request, Response,
};
use super::read::any_below;
use super::rpc::Ask;
use super::shared::Prepared;
use super::txn::{compares, first, holds, look, present, refusal};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId};
use crate::runtime::Instant;
use crate::store::{Commit, Committed, Condition, Delete, Deleted, Node, Operation, Put, Written};
use crate::transport::Repeat;

/// The most comparisons or operations that etcd takes in one transaction (its `--max-txn-ops`).
const MOST: usize = 128;

impl Driver {
    pub(super) async fn put(&self, put: &Put) -> Result<Written> {
        let deadline = self.deadline();
        check_root(&put.key)?;
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

    pub(super) async fn commit(&self, commit: &Commit) -> Result<Committed> {
        let deadline = self.deadline();
        let compare = checked(commit)?;
        let mut prepared = Prepared::default();
        let mut leases = Vec::with_capacity(commit.operations.len());
        for operation in &commit.operations {
            let lease = match operation {
                Operation::Put(put) => self.lease_of(put.expiry, &mut prepared, deadline).await,
                Operation::Delete(_) => Ok(None),
            };
            match lease {
                Ok(lease) => leases.push(lease),
                Err(error) => return self.tidy(prepared, Err(error)).await,
            }
        }
        let outcome = self.commit_with(commit, compare, &leases, deadline).await;
        self.tidy(prepared, outcome).await
    }

    async fn commit_with(
        &self,
        commit: &Commit,
        compare: Vec<Compare>,
        leases: &[Option<LeaseId>],
        deadline: Instant,
    ) -> Result<Committed> {
        let operations = commit.operations.iter().zip(leases);
        let success: Vec<_> = operations
            .clone()
            .flat_map(|it| requests(it.0, *it.1))
            .collect();
        let mut keys: Vec<&Key> = conditions(commit).map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        let failure = keys.iter().map(|key| look(key)).collect();
        let ask = Ask {
            repeat: if success.is_empty() {
                Repeat::Harmless
            } else {
                Repeat::NeverSent
            },
            ..Ask::ONCE
        };
        let mut reply = self.txn(compare, success, failure, ask, deadline).await?;
        let (index, answers) = (reply.index, reply.take());
        if !reply.body.succeeded {
            let found: Vec<_> = answers
                .map(|it| match it {
                    Response::Range(range) => first(range),
                    Response::Put(_) | Response::Delete(_) => None,
                })
                .collect();
            let at = |key: &Key| {
                let place = keys.binary_search(&key).ok();
                place.and_then(|it| found.get(it)?.as_ref())
            };
            return Err(first_refusal(commit, at).seen_at(index));
        }
        let mut answers = answers;
        let mut nodes = Vec::with_capacity(commit.operations.len());
        for (operation, lease) in operations {
            nodes.push(match (operation, answers.next()) {
                (Operation::Put(put), Some(Response::Put(answer))) => {
                    Some(written(put, *lease, index, answer.prev_kv.as_ref()).node)
                }
                (Operation::Delete(delete), Some(Response::Delete(_))) => {
                    if delete.recursive {
                        answers.next();
                    }
                    None
                }
                _ => return Err(maybe(&reply.broken("the answer to a commit is not whole"))),
            });
        }
        Ok(Committed::new(index, nodes))
    }
}

/// An answer that cannot be understood leaves the outcome open.
pub(super) fn maybe(error: &Error) -> Error {
    error
        .clone()
        .into_kind(ErrorKind::Ambiguous, "it may have been done")
}

fn write(put: &Put, lease: Option<LeaseId>) -> Request {
    Request::Put(PutRequest {
        key: bytes(&put.key),
        value: put.value.clone(),
        lease: lease.map_or(0, lease_number),
        // Of what was not there before the index of creation is known.
        prev_kv: put.when != Condition::Absent,
    })
}

fn removal(key: &Key) -> Request {
    Request::Delete(DeleteRangeRequest {
        key: bytes(key),
        range_end: Bytes::new(),
        prev_kv: true,
    })
}

fn removal_below(key: &Key) -> Request {
    Request::Delete(DeleteRangeRequest {
        key: prefix(key).into(),
        range_end: prefix_end(key),
        prev_kv: false,
    })
}

fn requests(operation: &Operation, lease: Option<LeaseId>) -> Vec<Request> {
    match operation {
        Operation::Put(put) => vec![write(put, lease)],
        Operation::Delete(delete) if delete.recursive => {
            vec![removal(&delete.key), removal_below(&delete.key)]
        }
        Operation::Delete(delete) => vec![removal(&delete.key)],
    }
}

/// The node that a put at this index made, and what was there before.
fn written(put: &Put, lease: Option<LeaseId>, index: Index, before: Option<&KeyValue>) -> Written {
    let previous = before.and_then(|kv| node(&put.key, kv));
    let created = previous.as_ref().map_or(index, |it| it.created);
    let node = Node::file(put.key.clone(), put.value.clone(), created, index);
    Written::new(node.with_lease(lease), previous)
}

fn previous(key: &Key, answer: &DeleteRangeResponse) -> Option<Node> {
    answer.prev_kvs.first().and_then(|kv| node(key, kv))
}

/// All conditions of a commit, in their order.
fn conditions(commit: &Commit) -> impl Iterator<Item = (&Key, &Condition)> {
    let checks = commit.checks.iter().map(|it| (&it.key, &it.condition));
    let operations = commit.operations.iter().map(|it| match it {
        Operation::Put(put) => (&put.key, &put.when),
        Operation::Delete(delete) => (&delete.key, &delete.when),
    });
    let all = checks.chain(operations);
    all.filter(|(_, condition)| **condition != Condition::Any)
}

/// The comparisons of a commit that can be asked for.
fn checked(commit: &Commit) -> Result<Vec<Compare>> {
    let mut requests = 0;
    let mut keys = Vec::with_capacity(commit.operations.len());
    for operation in &commit.operations {
        let (key, conditional_tree) = match operation {
            Operation::Put(put) => (&put.key, false),
            Operation::Delete(it) => (&it.key, it.recursive && it.when != Condition::Any),
        };
        check_root(key)?;
        if conditional_tree {
            let text = "a recursive deletion takes no condition";
            return Err(Error::new(ErrorKind::InvalidOptions, text).at(key));
        }
        requests += requests_of(operation);
        keys.push(key);
    }
    keys.sort_unstable();
    if let Some([key, _]) = keys.windows(2).find(|two| two.first() == two.last()) {
        let text = "two operations of one commit are at the same key";
        return Err(Error::new(ErrorKind::InvalidOptions, text).at(key));
    }
    let compares: Vec<_> = conditions(commit)
        .flat_map(|(key, condition)| compares(key, condition))
        .collect();
    if requests > MOST || compares.len() > MOST {
        let text = format!(
            "a commit of {requests} operations and {} comparisons: etcd takes {MOST} of each",
            compares.len()
        );
        return Err(Error::new(ErrorKind::InvalidOptions, text));
    }
    Ok(compares)
}

fn requests_of(operation: &Operation) -> usize {
    match operation {
        Operation::Delete(delete) if delete.recursive => 2,
        Operation::Put(_) | Operation::Delete(_) => 1,
    }
}

/// The first condition that does not hold for what was found.
fn first_refusal<'a>(commit: &Commit, at: impl Fn(&Key) -> Option<&'a KeyValue>) -> Error {
    let failed = conditions(commit).find(|(key, condition)| !holds(condition, at(key)));
    match failed {
        Some((key, condition)) => refusal(condition, at(key))
            .into_kind(ErrorKind::ConditionFailed, "nothing was done")
            .at(key),
        None => {
            let text = "the server says that a condition does not hold, and all seem to";
            Error::new(ErrorKind::ConditionFailed, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expiry;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn a_commit_that_etcd_would_not_take_is_refused_in_words() {
        let put = |name: usize| Put::new(key(&format!("/k/{name}")), "", Expiry::Never);
        let many = |count| (0..count).fold(Commit::new(), |it, name| it.put(put(name)));
        assert!(checked(&many(MOST)).is_ok());
        let error = checked(&many(MOST + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        assert!(error.to_string().contains("129 operations"), "{error}");
        let tree = checked(&many(MOST - 1).delete(Delete::tree(key("/t")))).unwrap_err();
        assert!(tree.to_string().contains("129 operations"), "{tree}");
        let twice = checked(&many(3).delete(Delete::new(key("/k/1")))).unwrap_err();
        assert_eq!(twice.key(), Some(&key("/k/1")));
        let root = checked(&Commit::new().delete(Delete::tree(Key::root()))).unwrap_err();
        assert_eq!(root.kind(), ErrorKind::RootReadOnly);
        let checks = (0..=MOST).fold(Commit::new(), |it, name| {
            it.check(key(&format!("/c/{name}")), Condition::Absent)
        });
        assert!(checked(&checks).is_err());
    }

    #[test]
    fn the_first_condition_that_fails_is_the_one_that_is_named() {
        let commit = Commit::new()
            .check(key("/a"), Condition::Absent)
            .check(key("/b"), Condition::Present)
            .put(Put::new(key("/c"), "", Expiry::Never).when(Condition::Present));
        let error = first_refusal(&commit, |_| None);
        assert_eq!(
            (error.kind(), error.key()),
            (ErrorKind::ConditionFailed, Some(&key("/b")))
        );
    }
}
