//! Conditional writes, one or many at once.
//!
//! A commit judges everything by the store as it was before: first all conditions, then whether
//! each operation fits. Only then it does all of them, and nothing can come between. So that no
//! operation can spoil another, no two may be at the same key or one below the other.

use std::sync::Arc;

use super::tree::is_hidden;
use super::verbs::{Expected, compare};
use super::{Action, Code, Core, Event, Life, Missing, Node, Outcome, Payload, Refusal, Stored};
use crate::key::Key;
use crate::store::{Commit, Condition, Delete, Operation, Put};

/// Why a commit did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotCommitted {
    /// A condition does not hold.
    Condition(Refusal),
    /// The commit could not be done whatever the conditions.
    Refused(Refusal),
}

impl Core {
    /// Writes a file on a condition.
    pub(crate) fn put(&mut self, put: &Put) -> Outcome<Arc<Event>> {
        self.put_fits(put)?;
        self.check(&put.key, &put.when)?;
        Ok(self.put_now(put))
    }

    /// Deletes a node on a condition; there must be one.
    pub(crate) fn delete_if(&mut self, delete: &Delete) -> Outcome<Arc<Event>> {
        self.delete_fits(delete)?;
        self.find(&delete.key)?;
        self.check(&delete.key, &delete.when)?;
        self.removal(delete_action(delete), &delete.key)
    }

    /// Does all operations if all conditions hold, else none. Answers for each operation what is
    /// at its key now.
    pub(crate) fn commit(&mut self, commit: &Commit) -> Result<Vec<Option<Node>>, NotCommitted> {
        for check in &commit.checks {
            self.check(&check.key, &check.condition)
                .map_err(NotCommitted::Condition)?;
        }
        for operation in &commit.operations {
            self.check_operation(operation)
                .map_err(NotCommitted::Condition)?;
        }
        let keys = self.commit_fits(commit).map_err(NotCommitted::Refused)?;
        self.commit = Some(self.index.next());
        let steps = commit.operations.iter().zip(&keys);
        let nodes = steps.map(|(operation, key)| match operation {
            Operation::Put(put) => Some(self.put_now(put).node.clone()),
            Operation::Delete(delete) => {
                self.remove(delete_action(delete), key);
                None
            }
            Operation::Append(append) => Some(self.append_at(append, key).node.clone()),
        });
        let nodes = nodes.collect();
        self.commit = None;
        Ok(nodes)
    }

    fn check_operation(&self, operation: &Operation) -> Outcome<()> {
        match operation {
            Operation::Put(put) => self.check(&put.key, &put.when),
            Operation::Delete(delete) => self.check(&delete.key, &delete.when),
            Operation::Append(append) => self.check_append(append),
        }
    }

    /// Whether it can be done, and at which keys.
    fn commit_fits(&self, commit: &Commit) -> Outcome<Vec<Key>> {
        let places = self.places(commit)?;
        let mut keys: Vec<&Key> = places.iter().collect();
        // In the order of segments a key is followed by what lies below it.
        keys.sort_by(|a, b| a.segments().cmp(b.segments()));
        for (above, key) in keys.iter().zip(keys.iter().skip(1)) {
            if key.is_within(above) {
                let cause = format!("two operations of one commit meet: at {above} and at {key}");
                return Err(Refusal {
                    key: Some((*key).clone()),
                    ..self.refusal(Code::InvalidField, cause)
                });
            }
        }
        for (operation, key) in commit.operations.iter().zip(&places) {
            match operation {
                Operation::Put(put) => self.put_fits(put)?,
                Operation::Delete(delete) => self.delete_fits(delete)?,
                Operation::Append(append) => self.append_fits(append, key)?,
            }
        }
        Ok(places)
    }

    /// The key that each operation is at. What is appended can be named by the index that it gets:
    /// each write before it takes one.
    fn places(&self, commit: &Commit) -> Outcome<Vec<Key>> {
        let mut next = self.index.next();
        let mut places = Vec::with_capacity(commit.operations.len());
        for operation in &commit.operations {
            let (key, writes) = match operation {
                Operation::Put(put) => (put.key.clone(), true),
                Operation::Delete(delete) => {
                    let there = self.tree.find(&delete.key).is_ok();
                    (delete.key.clone(), there)
                }
                Operation::Append(append) => (self.place_of(append, next)?, true),
            };
            if writes {
                next = next.next();
            }
            places.push(key);
        }
        Ok(places)
    }

    /// Whether a file can be there at all.
    fn put_fits(&self, put: &Put) -> Outcome<()> {
        let key = &put.key;
        if key.is_root() {
            return Err(self.refusal_at(Code::RootReadOnly, key));
        }
        match self.tree.find(key) {
            Err(missing @ Missing::NotADirectory(_)) => return Err(self.missing(key, missing)),
            Ok(stored) if stored.is_dir() && put.when != Condition::Absent => {
                return Err(self.refusal_at(Code::NotAFile, key));
            }
            _ => {}
        }
        self.check_life(key, put.expiry.into())
    }

    /// Whether what is there can be deleted this way.
    fn delete_fits(&self, delete: &Delete) -> Outcome<()> {
        let Delete {
            key,
            when,
            recursive,
        } = delete;
        if *recursive && *when != Condition::Any {
            return Err(Refusal {
                key: Some(key.clone()),
                ..self.refusal(
                    Code::InvalidField,
                    "a recursive deletion takes no condition",
                )
            });
        }
        if key.is_root() {
            return Err(self.refusal_at(Code::RootReadOnly, key));
        }
        match self.tree.find(key) {
            Ok(stored) if stored.is_dir() && !recursive => {
                Err(self.refusal_at(Code::NotAFile, key))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, key: &Key, condition: &Condition) -> Outcome<()> {
        let expected = match condition {
            Condition::Any => return Ok(()),
            Condition::Absent => {
                return match self.tree.find(key) {
                    Ok(_) => Err(self.refusal_at(Code::AlreadyExists, key)),
                    Err(_) => Ok(()),
                };
            }
            Condition::Present => return self.find(key).map(drop),
            Condition::Empty => {
                let children = self.tree.find(key).ok().and_then(Stored::children);
                let mut names = children.into_iter().flat_map(|it| it.keys());
                return match names.any(|name| !is_hidden(name)) {
                    true => Err(self.refusal_at(Code::DirectoryNotEmpty, key)),
                    false => Ok(()),
                };
            }
            Condition::Created(index) => {
                let created = self.find(key)?.created;
                if created == *index {
                    return Ok(());
                }
                return Err(self.differs(key, format!("[created {index} != {created}]")));
            }
            Condition::Value(value) => Expected {
                value: Some(value),
                index: None,
            },
            Condition::Index(index) => Expected {
                value: None,
                index: Some(*index),
            },
            Condition::Both { value, index } => Expected {
                value: Some(value),
                index: Some(*index),
            },
        };
        compare(self.find(key)?, expected).map_err(|cause| self.differs(key, cause))
    }

    fn differs(&self, key: &Key, cause: String) -> Refusal {
        Refusal {
            key: Some(key.clone()),
            ..self.refusal(Code::CompareFailed, cause)
        }
    }

    fn put_now(&mut self, put: &Put) -> Arc<Event> {
        let action = match put.when {
            Condition::Any => Action::Set,
            Condition::Absent => Action::Create,
            Condition::Present => Action::Update,
            _ => Action::CompareAndSwap,
        };
        let payload = Payload::File(put.value.clone());
        self.write(action, &put.key, payload, Life::from(put.expiry))
    }
}

fn delete_action(delete: &Delete) -> Action {
    match delete.when {
        Condition::Any => Action::Delete,
        _ => Action::CompareAndDelete,
    }
}

#[cfg(test)]
mod tests;
