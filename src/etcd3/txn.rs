//! Conditions as comparisons of a transaction, and transactions.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::driver::{Driver, bytes, prefix, prefix_end};
use super::error::is_full;
use super::proto::{
    Compare, KeyValue, Operand, RangeRequest, RangeResponse, Relation, Request, RequestOp,
    Response, Subject, TxnRequest, TxnResponse,
};
use super::read::any_below;
use super::rpc::{Ask, Reply, index};
use super::write::maybe;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Instant;
use crate::store::Condition;
use crate::transport::Repeat;

impl Driver {
    /// Does `success` if all comparisons hold, else `failure`.
    ///
    /// # Errors
    /// `Ambiguous` also when the server is out of space and may have done it all the same.
    pub(super) async fn txn(
        &self,
        compare: Vec<Compare>,
        success: Vec<Request>,
        failure: Vec<Request>,
        ask: Ask,
        deadline: Instant,
    ) -> Result<Reply<TxnResponse>> {
        let wrote = success.iter().find_map(|request| match request {
            Request::Put(put) => Some(put.key.clone()),
            Request::Range(_) | Request::Delete(_) => None,
        });
        let seen = self.wire.seen.load(Ordering::Acquire);
        let ops = |requests: Vec<Request>| requests.into_iter().map(RequestOp::from).collect();
        let request = TxnRequest {
            compare,
            success: ops(success),
            failure: ops(failure),
        };
        match (self.wire.call(&request, ask, deadline).await, wrote) {
            (Err(error), Some(key)) if ask.repeat == Repeat::NeverSent && is_full(&error) => {
                if self.unwritten_since(seen, key, deadline).await {
                    Err(error)
                } else {
                    Err(maybe(&error))
                }
            }
            (outcome, _) => outcome,
        }
    }

    /// Whether it is certain that nothing was written to this key after the index `seen`.
    async fn unwritten_since(&self, seen: u64, key: Bytes, deadline: Instant) -> bool {
        let look = RangeRequest {
            key,
            keys_only: true,
            ..RangeRequest::default()
        };
        let Ok(reply) = self.wire.call(&look, Ask::HARMLESS, deadline).await else {
            return false;
        };
        let last = match first(reply.body) {
            Some(kv) => index(kv.mod_revision),
            // It may have been written and deleted.
            None => Some(reply.index),
        };
        last.is_some_and(|last| last.get() <= seen)
    }
}

impl Reply<TxnResponse> {
    /// What came of the operations, one after the other.
    pub(super) fn take(&mut self) -> std::vec::IntoIter<Response> {
        let responses = std::mem::take(&mut self.body.responses);
        let responses = responses.into_iter().filter_map(|it| it.response);
        responses.collect::<Vec<_>>().into_iter()
    }
}

/// What is at a key.
pub(super) fn look(key: &Key) -> Request {
    Request::Range(RangeRequest {
        key: bytes(key),
        ..RangeRequest::default()
    })
}

/// What tells whether a condition holds.
pub(super) fn look_for(key: &Key, condition: &Condition) -> Request {
    match condition {
        Condition::Empty => Request::Range(any_below(key)),
        _ => look(key),
    }
}

/// The first pair of an answer.
pub(super) fn first(range: RangeResponse) -> Option<KeyValue> {
    range.kvs.into_iter().next()
}

/// The comparisons that say this condition.
pub(super) fn compares(key: &Key, condition: &Condition) -> Vec<Compare> {
    match condition {
        Condition::Any => Vec::new(),
        Condition::Absent => vec![absent(bytes(key))],
        Condition::Present => vec![present(key)],
        Condition::Value(value) => vec![value_is(key, value)],
        Condition::Index(index) => vec![modified(key, *index)],
        Condition::Both { value, index } => vec![value_is(key, value), modified(key, *index)],
        Condition::Created(index) => vec![created(key, *index)],
        Condition::Empty => vec![none_between(prefix(key).into(), prefix_end(key))],
    }
}

/// There is nothing at these bytes.
pub(super) fn absent(key: Bytes) -> Compare {
    compare(key, Relation::Equal, Subject::Create, Operand::Create(0))
}

/// There is nothing from these bytes on up to those.
pub(super) fn none_between(key: Bytes, end: Bytes) -> Compare {
    Compare {
        range_end: end,
        ..absent(key)
    }
}

/// There is something.
pub(super) fn present(key: &Key) -> Compare {
    compare(
        bytes(key),
        Relation::Greater,
        Subject::Create,
        Operand::Create(0),
    )
}

/// It was created at this index.
pub(super) fn created(key: &Key, index: Index) -> Compare {
    let operand = Operand::Create(number(index));
    compare(bytes(key), Relation::Equal, Subject::Create, operand)
}

fn modified(key: &Key, index: Index) -> Compare {
    let operand = Operand::Mod(number(index));
    compare(bytes(key), Relation::Equal, Subject::Mod, operand)
}

/// Holds for nothing that is not there: an empty value too must be one.
fn value_is(key: &Key, value: &Bytes) -> Compare {
    let operand = Operand::Value(value.clone());
    compare(bytes(key), Relation::Equal, Subject::Value, operand)
}

fn compare(key: Bytes, relation: Relation, subject: Subject, operand: Operand) -> Compare {
    Compare {
        result: relation.into(),
        target: subject.into(),
        key,
        operand: Some(operand),
        range_end: Bytes::new(),
    }
}

/// An index as a revision; there are no larger ones than the store can have.
pub(super) fn number(index: Index) -> i64 {
    i64::try_from(index.get()).unwrap_or(i64::MAX)
}

/// Whether a condition holds for what was [looked for](look_for).
pub(super) fn holds(condition: &Condition, kv: Option<&KeyValue>) -> bool {
    let is = |test: &dyn Fn(&KeyValue) -> bool| kv.is_some_and(test);
    match condition {
        Condition::Any => true,
        Condition::Absent | Condition::Empty => kv.is_none(),
        Condition::Present => kv.is_some(),
        Condition::Value(value) => is(&|kv| kv.value == *value),
        Condition::Index(index) => is(&|kv| kv.mod_revision == number(*index)),
        Condition::Both { value, index } => {
            is(&|kv| kv.value == *value && kv.mod_revision == number(*index))
        }
        Condition::Created(index) => is(&|kv| kv.create_revision == number(*index)),
    }
}

/// Why a condition does not hold for what is at its key.
pub(super) fn refusal(condition: &Condition, kv: Option<&KeyValue>) -> Error {
    let (kind, text) = match (condition, kv) {
        (Condition::Absent, _) => (ErrorKind::AlreadyExists, "there is something at the key"),
        (Condition::Empty, _) => (
            ErrorKind::ConditionFailed,
            "there is something below the key",
        ),
        (_, None) => (ErrorKind::NotFound, "there is nothing at the key"),
        (Condition::Value(_), _) => (ErrorKind::ConditionFailed, "it holds another value"),
        (Condition::Created(_), _) => (
            ErrorKind::ConditionFailed,
            "it was created at another index",
        ),
        (Condition::Both { value, .. }, Some(kv)) if kv.value != *value => {
            (ErrorKind::ConditionFailed, "it holds another value")
        }
        _ => (
            ErrorKind::ConditionFailed,
            "it was modified at another index",
        ),
    };
    Error::new(kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_judged_here_as_the_server_judges_it() {
        let kv = KeyValue {
            key: "/k".into(),
            create_revision: 3,
            mod_revision: 5,
            value: Bytes::new(),
            lease: 0,
        };
        let at = |index| Index::new(index).unwrap();
        let empty = || Bytes::new();
        let both = |value: &'static str, index| Condition::Both {
            value: value.into(),
            index: at(index),
        };
        for (condition, on_it, on_nothing) in [
            (Condition::Any, true, true),
            (Condition::Absent, false, true),
            (Condition::Empty, false, true),
            (Condition::Present, true, false),
            (Condition::Value(empty()), true, false),
            (Condition::Value("x".into()), false, false),
            (Condition::Index(at(5)), true, false),
            (Condition::Index(at(3)), false, false),
            (Condition::Created(at(3)), true, false),
            (Condition::Created(at(5)), false, false),
            (both("", 5), true, false),
            (both("", 4), false, false),
            (both("x", 5), false, false),
        ] {
            assert_eq!(holds(&condition, Some(&kv)), on_it, "{condition:?}");
            assert_eq!(holds(&condition, None), on_nothing, "{condition:?}");
        }
    }
}
