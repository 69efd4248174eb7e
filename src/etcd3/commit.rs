//! Several writes in one transaction, all or none.
//!
//! Each condition is a [`Question`]: a comparison or two, and one read of what is found there
//! instead, all of one moment. The first whose answer does not hold is the one that is named.
//!
//! An append is a write under the name that its tag makes, with two questions more: is there a cancel
//! mark of the tag, and is anything under that name. The second is not asked where the commit wants
//! the directory to be empty: so 64 appends, each to an empty line, are 128 comparisons and 128 reads,
//! which is what etcd takes.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::driver::{Driver, bytes, check_root};
use super::line::{place, put};
use super::proto::{Compare, KeyValue, Request, Response};
use super::rpc::Ask;
use super::shared::Prepared;
use super::txn::{absent, compares, first, holds, look, look_for, refusal};
use super::write::{maybe, removal, removal_below, write, written};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId, Tag};
use crate::runtime::Instant;
use crate::store::{Commit, Committed, Condition, Expiry, Node, Operation};
use crate::transport::Repeat;

/// The most comparisons or operations that etcd takes in one transaction (its `--max-txn-ops`).
const MOST: usize = 128;

impl Driver {
    pub(super) async fn commit(&self, commit: &Commit) -> Result<Committed> {
        let deadline = self.deadline();
        let plan = Plan::new(commit, &self.marks)?;
        let mut prepared = Prepared::default();
        let mut leases = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            match self.lease_of(step.expiry(), &mut prepared, deadline).await {
                Ok(lease) => leases.push(lease),
                Err(error) => return self.tidy(prepared, Err(error)).await,
            }
        }
        let outcome = self.commit_as(&plan, &leases, deadline).await;
        self.tidy(prepared, outcome).await
    }

    async fn commit_as(
        &self,
        plan: &Plan<'_>,
        leases: &[Option<LeaseId>],
        deadline: Instant,
    ) -> Result<Committed> {
        let steps = plan.steps.iter().zip(leases);
        let success: Vec<_> = { steps.clone() }
            .flat_map(|(step, lease)| step.requests(*lease))
            .collect();
        let failure = plan.questions.iter().map(Question::look).collect();
        let ask = Ask {
            repeat: if success.is_empty() {
                Repeat::Harmless
            } else {
                Repeat::NeverSent
            },
            ..Ask::ONCE
        };
        let compare = plan.compares();
        let mut reply = self.txn(compare, success, failure, ask, deadline).await?;
        let (index, mut answers) = (reply.index, reply.take());
        if !reply.body.succeeded {
            return Err(plan.refusal(answers).seen_at(index));
        }
        let mut nodes = Vec::with_capacity(plan.steps.len());
        for (step, lease) in steps {
            match step.node(*lease, index, &mut answers) {
                Some(node) => nodes.push(node),
                None => return Err(maybe(&reply.broken("the answer to a commit is not whole"))),
            }
        }
        Ok(Committed::new(index, nodes))
    }
}

/// A commit as etcd can be asked for it.
struct Plan<'a> {
    /// In the order in which a refusal names them.
    questions: Vec<Question<'a>>,
    steps: Vec<Step<'a>>,
}

impl<'a> Plan<'a> {
    /// Refuses what etcd would not take.
    fn new(commit: &'a Commit, marks: &Key) -> Result<Self> {
        commit.check_operations()?;
        let mut questions = Vec::new();
        let mut empty = BTreeSet::new();
        for check in &commit.checks {
            if check.condition == Condition::Empty {
                empty.insert(&check.key);
            }
            questions.extend(Question::of(&check.key, &check.condition));
        }
        let mut steps = Vec::with_capacity(commit.operations.len());
        for operation in &commit.operations {
            let key = match operation {
                Operation::Put(put) => put.key.clone(),
                Operation::Delete(delete) => delete.key.clone(),
                Operation::Append(append) => place(&append.dir, append.tag, append.naming)?,
            };
            check_root(&key)?;
            match operation {
                Operation::Put(put) => questions.extend(Question::of(&put.key, &put.when)),
                Operation::Delete(it) if it.recursive && it.when != Condition::Any => {
                    let text = "a recursive deletion takes no condition";
                    return Err(Error::new(ErrorKind::InvalidOptions, text).at(&key));
                }
                Operation::Delete(it) => questions.extend(Question::of(&it.key, &it.when)),
                Operation::Append(append) => {
                    let (dir, tag) = (&append.dir, append.tag);
                    let mark = marks.join(&tag.to_string())?;
                    questions.push(Question::Unmarked(dir, tag, mark));
                    if !empty.contains(dir) {
                        questions.push(Question::Unused(dir, tag, key.clone()));
                    }
                }
            }
            steps.push(Step { operation, key });
        }
        let plan = Self { questions, steps };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        let mut keys: Vec<_> = self.steps.iter().map(|step| &step.key).collect();
        keys.sort_unstable();
        if let Some([key, _]) = keys.windows(2).find(|two| two.first() == two.last()) {
            let text = "two operations of one commit are at the same key";
            return Err(Error::new(ErrorKind::InvalidOptions, text).at(key));
        }
        // There is one read for each question, and each has a comparison at least.
        let compares = self.compares().len();
        let requests: usize = self.steps.iter().map(Step::count).sum();
        if requests > MOST || compares > MOST {
            let text = format!(
                "a commit of {requests} operations and {compares} comparisons: etcd takes {MOST} of each"
            );
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        Ok(())
    }

    fn compares(&self) -> Vec<Compare> {
        self.questions.iter().flat_map(Question::compares).collect()
    }

    /// Why it was not done, by what was found instead.
    fn refusal(&self, found: impl Iterator<Item = Response>) -> Error {
        let found = found.map(|it| match it {
            Response::Range(range) => first(range),
            Response::Put(_) | Response::Delete(_) => None,
        });
        let mut answered = self.questions.iter().zip(found);
        let refused = answered.find_map(|(question, found)| question.refusal(found.as_ref()));
        refused.unwrap_or_else(|| {
            let text = "the server says that a condition does not hold, and all seem to";
            Error::new(ErrorKind::ConditionFailed, text)
        })
    }
}

/// One condition of a commit.
enum Question<'a> {
    /// Does this hold at the key?
    Holds(&'a Key, &'a Condition),
    /// Is there no cancel mark of the tag?
    Unmarked(&'a Key, Tag, Key),
    /// Is there nothing of the tag in the directory?
    Unused(&'a Key, Tag, Key),
}

impl<'a> Question<'a> {
    fn of(key: &'a Key, when: &'a Condition) -> Option<Self> {
        (*when != Condition::Any).then_some(Self::Holds(key, when))
    }

    fn compares(&self) -> Vec<Compare> {
        match self {
            Self::Holds(key, condition) => compares(key, condition),
            Self::Unmarked(_, _, key) | Self::Unused(_, _, key) => vec![absent(bytes(key))],
        }
    }

    /// What is there instead.
    fn look(&self) -> Request {
        match self {
            Self::Holds(key, condition) => look_for(key, condition),
            Self::Unmarked(_, _, key) | Self::Unused(_, _, key) => look(key),
        }
    }

    /// Why what was found is not what was wanted, if it is not.
    fn refusal(&self, found: Option<&KeyValue>) -> Option<Error> {
        let (key, text) = match self {
            Self::Holds(_, condition) if holds(condition, found) => return None,
            Self::Holds(key, condition) => {
                let error = refusal(condition, found);
                let error = error.into_kind(ErrorKind::ConditionFailed, "nothing was done");
                return Some(error.at(key));
            }
            Self::Unmarked(dir, tag, _) => (dir, format!("{tag} was withdrawn")),
            Self::Unused(dir, tag, _) => (dir, format!("{tag} was appended before")),
        };
        found?;
        Some(Error::new(ErrorKind::ConditionFailed, text).at(key))
    }
}

/// One operation of a commit, and the key that it is at.
struct Step<'a> {
    operation: &'a Operation,
    key: Key,
}

impl Step<'_> {
    fn expiry(&self) -> Expiry {
        match self.operation {
            Operation::Put(put) => put.expiry,
            Operation::Delete(_) => Expiry::Never,
            Operation::Append(append) => append.expiry,
        }
    }

    fn count(&self) -> usize {
        match self.operation {
            Operation::Delete(delete) if delete.recursive => 2,
            Operation::Put(_) | Operation::Delete(_) | Operation::Append(_) => 1,
        }
    }

    fn requests(&self, lease: Option<LeaseId>) -> Vec<Request> {
        match self.operation {
            Operation::Put(put) => vec![write(put, lease)],
            Operation::Delete(delete) if delete.recursive => {
                vec![removal(&delete.key), removal_below(&delete.key)]
            }
            Operation::Delete(delete) => vec![removal(&delete.key)],
            Operation::Append(append) => vec![put(&self.key, &append.body, lease)],
        }
    }

    /// What is at the key now, by the answers to its requests; `None` if these are others.
    fn node(
        &self,
        lease: Option<LeaseId>,
        index: Index,
        answers: &mut impl Iterator<Item = Response>,
    ) -> Option<Option<Node>> {
        match (self.operation, answers.next()?) {
            (Operation::Put(put), Response::Put(answer)) => {
                let written = written(put, lease, index, answer.prev_kv.as_ref());
                Some(Some(written.node))
            }
            (Operation::Delete(delete), Response::Delete(_)) => {
                if delete.recursive {
                    answers.next();
                }
                Some(None)
            }
            (Operation::Append(append), Response::Put(_)) => {
                let body: Bytes = append.body.clone();
                let node = Node::file(self.key.clone(), body, index, index);
                Some(Some(node.with_lease(lease)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Append, Delete, Naming, Put};

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn plan(commit: &Commit) -> Result<(usize, usize, usize)> {
        let marks = key("/_cancelled");
        let plan = Plan::new(commit, &marks)?;
        let requests = plan.steps.iter().map(Step::count).sum();
        Ok((plan.compares().len(), requests, plan.questions.len()))
    }

    fn ticket(line: usize, tag: u64) -> Append {
        let tag = Tag::new(LeaseId::new(7).unwrap(), tag);
        Append::ticket(key(&format!("/l/{line}")), tag, Expiry::Never)
    }

    fn into_empty_lines(count: usize) -> Commit {
        (0..count).fold(Commit::new(), |it, line| {
            let ticket = ticket(line, line as u64);
            it.check(ticket.dir.clone(), Condition::Empty)
                .append(ticket)
        })
    }

    #[test]
    fn a_commit_that_etcd_would_not_take_is_refused_in_words() {
        let put = |name: usize| Put::new(key(&format!("/k/{name}")), "", Expiry::Never);
        let many = |count| (0..count).fold(Commit::new(), |it, name| it.put(put(name)));
        assert!(plan(&many(MOST)).is_ok());
        let error = plan(&many(MOST + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        assert!(error.to_string().contains("129 operations"), "{error}");
        let tree = plan(&many(MOST - 1).delete(Delete::tree(key("/t")))).unwrap_err();
        assert!(tree.to_string().contains("129 operations"), "{tree}");
        let twice = plan(&many(3).delete(Delete::new(key("/k/1")))).unwrap_err();
        assert_eq!(twice.key(), Some(&key("/k/1")));
        let root = plan(&Commit::new().delete(Delete::tree(Key::root()))).unwrap_err();
        assert_eq!(root.kind(), ErrorKind::RootReadOnly);
        let checks = (0..=MOST).fold(Commit::new(), |it, name| {
            it.check(key(&format!("/c/{name}")), Condition::Absent)
        });
        assert!(plan(&checks).is_err());
    }

    #[test]
    fn sixty_four_appends_to_empty_lines_are_what_etcd_takes() {
        assert_eq!(plan(&into_empty_lines(64)).unwrap(), (128, 64, 128));
        let error = plan(&into_empty_lines(65)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        assert!(error.to_string().contains("130 comparisons"), "{error}");
        // Without the check each has to ask whether its name is free.
        let full = Commit::new().append(ticket(1, 1)).append(ticket(1, 2));
        assert_eq!(plan(&full).unwrap(), (4, 2, 4));
    }

    #[test]
    fn appends_that_cannot_be_in_a_commit_are_refused() {
        let twice = Commit::new().append(ticket(1, 1)).append(ticket(1, 1));
        assert_eq!(plan(&twice).unwrap_err().kind(), ErrorKind::InvalidOptions);
        let raw = Append::raw(key("/l"), "x", Expiry::Never);
        let error = plan(&Commit::new().append(raw)).unwrap_err();
        assert_eq!(
            (error.kind(), error.key()),
            (ErrorKind::Unsupported, Some(&key("/l")))
        );
        let put = Put::new(key("/k"), "", Expiry::Never).when(Condition::Empty);
        let error = plan(&Commit::new().put(put)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let tagged = Append {
            naming: Naming::Tag,
            ..ticket(1, 1)
        };
        assert_eq!(plan(&Commit::new().append(tagged)).unwrap(), (2, 1, 2));
    }

    #[test]
    fn the_first_condition_that_fails_is_the_one_that_is_named() {
        let marks = key("/_cancelled");
        let named = |commit: &Commit, found: &[bool]| {
            let plan = Plan::new(commit, &marks).unwrap();
            let kv = |there: &bool| there.then(KeyValue::default);
            let mut answered = plan.questions.iter().zip(found.iter().map(kv));
            let refused = answered.find_map(|(it, found)| it.refusal(found.as_ref()));
            refused.map(|error| (error.kind(), error.key().unwrap().to_string()))
        };
        let failed = |key: &str| Some((ErrorKind::ConditionFailed, key.to_owned()));
        let commit = Commit::new()
            .check(key("/a"), Condition::Absent)
            .check(key("/b"), Condition::Present)
            .put(Put::new(key("/c"), "", Expiry::Never).when(Condition::Present));
        assert_eq!(named(&commit, &[false, false, false]), failed("/b"));
        assert_eq!(named(&commit, &[false, true, false]), failed("/c"));
        let lines = into_empty_lines(2).append(ticket(2, 9));
        // Both lines, both marks, the third's mark and name.
        for (place, line) in ["/l/0", "/l/1", "/l/0", "/l/1", "/l/2", "/l/2"]
            .iter()
            .enumerate()
        {
            let found: Vec<_> = (0..6).map(|it| it == place).collect();
            assert_eq!(named(&lines, &found), failed(line), "{place}");
        }
    }
}
