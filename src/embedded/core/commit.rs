//! Conditional writes, one or many at once.
//!
//! A commit judges everything by the store as it was before: first all conditions, then whether
//! each operation fits. Only then it does all of them, and nothing can come between. So that no
//! operation can spoil another, no two may be at the same key or one below the other.

use std::sync::Arc;

use super::verbs::{Expected, compare};
use super::{Action, Code, Core, Event, Life, Missing, Node, Outcome, Payload, Refusal};
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
            let (key, condition) = place(operation);
            self.check(key, condition)
                .map_err(NotCommitted::Condition)?;
        }
        self.commit_fits(commit).map_err(NotCommitted::Refused)?;
        self.commit = Some(self.index.next());
        let nodes = commit.operations.iter().map(|operation| match operation {
            Operation::Put(put) => Some(self.put_now(put).node.clone()),
            Operation::Delete(delete) => {
                self.remove(delete_action(delete), &delete.key);
                None
            }
        });
        let nodes = nodes.collect();
        self.commit = None;
        Ok(nodes)
    }

    fn commit_fits(&self, commit: &Commit) -> Outcome<()> {
        let mut keys: Vec<&Key> = commit.operations.iter().map(|op| place(op).0).collect();
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
        commit
            .operations
            .iter()
            .try_for_each(|operation| match operation {
                Operation::Put(put) => self.put_fits(put),
                Operation::Delete(delete) => self.delete_fits(delete),
            })
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

fn place(operation: &Operation) -> (&Key, &Condition) {
    match operation {
        Operation::Put(put) => (&put.key, &put.when),
        Operation::Delete(delete) => (&delete.key, &delete.when),
    }
}

fn delete_action(delete: &Delete) -> Action {
    match delete.when {
        Condition::Any => Action::Delete,
        _ => Action::CompareAndDelete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::core::rig::{core, file, index, key, lease, refused, secs, ttl};
    use crate::store::Expiry;

    fn put(path: &str, value: &str) -> Put {
        Put::new(key(path), value.to_owned(), Expiry::Never)
    }

    #[track_caller]
    fn condition_failed(outcome: Result<Vec<Option<Node>>, NotCommitted>) -> Refusal {
        match outcome.unwrap_err() {
            NotCommitted::Condition(refusal) => refusal,
            NotCommitted::Refused(refusal) => panic!("{refusal}"),
        }
    }

    #[track_caller]
    fn not_possible(outcome: Result<Vec<Option<Node>>, NotCommitted>) -> Code {
        match outcome.unwrap_err() {
            NotCommitted::Condition(refusal) => panic!("{refusal}"),
            NotCommitted::Refused(refusal) => refusal.code,
        }
    }

    #[test]
    fn each_condition_compares_what_it_says() {
        let mut core = core();
        core.have("/a", "1");
        core.update(&key("/a"), file("2"), Life::Forever).unwrap();
        let (created, modified) = (index(4), index(5));
        let both = |value: &'static str, index| Condition::Both {
            value: value.into(),
            index,
        };
        for (path, condition, refusal) in [
            ("/a", Condition::Any, None),
            ("/none", Condition::Any, None),
            ("/a", Condition::Absent, Some("105 /a")),
            ("/none", Condition::Absent, None),
            ("/a", Condition::Present, None),
            ("/none", Condition::Present, Some("100 /none")),
            ("/a", Condition::Value("2".into()), None),
            ("/a", Condition::Value("1".into()), Some("101 [1 != 2]")),
            ("/none", Condition::Value("".into()), Some("100 /none")),
            ("/a", Condition::Index(modified), None),
            ("/a", Condition::Index(created), Some("101 [4 != 5]")),
            ("/a", both("2", modified), None),
            ("/a", both("1", created), Some("101 [1 != 2] [4 != 5]")),
            ("/a", Condition::Created(created), None),
            (
                "/a",
                Condition::Created(modified),
                Some("101 [created 5 != 4]"),
            ),
            ("/none", Condition::Created(created), Some("100 /none")),
        ] {
            let outcome = core.check(&key(path), &condition);
            let shown = outcome.is_err().then(|| refused(outcome));
            assert_eq!(shown.as_deref(), refusal, "{path} {condition:?}");
        }
    }

    #[test]
    fn an_empty_value_is_a_condition_like_any_other() {
        let mut core = core();
        core.have("/a", "1");
        let empty = put("/a", "2").when(Condition::Value("".into()));
        assert_eq!(refused(core.put(&empty)), "101 [ != 1]");
    }

    #[test]
    fn a_put_needs_room_for_a_file_and_a_live_lease() {
        let mut core = core();
        core.have("/d/f", "");
        assert_eq!(refused(core.put(&put("/", ""))), "107 /");
        assert_eq!(refused(core.put(&put("/d", ""))), "102 /d");
        assert_eq!(
            refused(core.put(&put("/d", "").when(Condition::Present))),
            "102 /d"
        );
        assert_eq!(
            refused(core.put(&put("/d", "").when(Condition::Absent))),
            "105 /d"
        );
        assert_eq!(refused(core.put(&put("/d/f/x", ""))), "104 /d/f");
        let leased = Put::new(key("/x"), "", Expiry::With(lease(7)));
        assert_eq!(core.put(&leased).unwrap_err().code, Code::LeaseNotFound);
        assert_eq!(core.index(), index(4));
    }

    #[test]
    fn a_put_is_named_by_its_condition() {
        let mut core = core();
        let actions = [
            (Condition::Absent, Action::Create),
            (Condition::Present, Action::Update),
            (Condition::Created(index(4)), Action::CompareAndSwap),
            (Condition::Any, Action::Set),
        ];
        for (condition, action) in actions {
            let event = core.put(&put("/a", "").when(condition)).unwrap();
            assert_eq!(event.action, action);
        }
        let delete = Delete::new(key("/a")).when(Condition::Present);
        assert_eq!(
            core.delete_if(&delete).unwrap().action,
            Action::CompareAndDelete
        );
    }

    #[test]
    fn a_deletion_wants_something_to_be_there_and_no_directory_by_accident() {
        let mut core = core();
        core.have("/d/f", "");
        let delete = |path| Delete::new(key(path));
        assert_eq!(refused(core.delete_if(&delete("/none"))), "100 /none");
        assert_eq!(refused(core.delete_if(&delete("/"))), "107 /");
        assert_eq!(refused(core.delete_if(&delete("/d"))), "102 /d");
        assert!(
            core.delete_if(&Delete::tree(key("/d")))
                .unwrap()
                .removes_dir()
        );
    }

    #[test]
    fn a_recursive_deletion_on_a_condition_is_refused_whatever_is_there() {
        let mut core = core();
        core.have("/d/f", "");
        for path in ["/d", "/d/f", "/none", "/"] {
            let odd = Delete::tree(key(path)).when(Condition::Present);
            assert_eq!(core.delete_if(&odd).unwrap_err().code, Code::InvalidField);
        }
        assert_eq!(core.index(), index(4));
    }

    #[test]
    fn a_commit_does_all_in_order_each_under_its_own_index() {
        let mut core = core();
        core.have("/b", "old");
        let watcher = core.follow("/", None).unwrap();
        let commit = Commit::new()
            .check(key("/b"), Condition::Value("old".into()))
            .put(put("/a", "new").when(Condition::Absent))
            .delete(Delete::new(key("/b")))
            .delete(Delete::new(key("/never-was")))
            .put(put("/c/d", "x"));
        let nodes = core.commit(&commit).unwrap();
        let there: Vec<bool> = nodes.iter().map(Option::is_some).collect();
        assert_eq!(there, [true, false, false, true]);
        assert_eq!(
            core.unread(watcher),
            ["5 create /a", "6 delete /b", "7 set /c/d"]
        );
    }

    #[test]
    fn a_commit_that_fails_anywhere_changes_nothing() {
        let mut core = core();
        core.have("/a", "1");
        core.have("/d/f", "");
        let absent = || put("/new", "");
        let failing = [
            Commit::new()
                .put(absent())
                .check(key("/a"), Condition::Absent),
            Commit::new()
                .put(absent())
                .put(put("/a", "").when(Condition::Absent)),
            Commit::new()
                .put(absent())
                .delete(Delete::new(key("/a")).when(Condition::Index(index(9)))),
            Commit::new()
                .put(absent())
                .check(key("/a/x"), Condition::Present),
        ];
        for commit in failing {
            condition_failed(core.commit(&commit));
        }
        let leased = Put::new(key("/b"), "", Expiry::With(lease(7)));
        for (commit, code) in [
            (
                Commit::new().put(absent()).put(put("/d", "")),
                Code::NotAFile,
            ),
            (
                Commit::new().put(absent()).put(put("/a/x", "")),
                Code::NotADirectory,
            ),
            (
                Commit::new().put(absent()).delete(Delete::new(key("/d"))),
                Code::NotAFile,
            ),
            (
                Commit::new().put(absent()).put(put("/", "")),
                Code::InvalidField,
            ),
            (Commit::new().put(absent()).put(leased), Code::LeaseNotFound),
        ] {
            assert_eq!(not_possible(core.commit(&commit)), code);
        }
        assert_eq!((core.index(), core.peek(&key("/new"))), (index(5), None));
    }

    #[test]
    fn the_first_condition_that_fails_is_named() {
        let mut core = core();
        core.have("/a", "1");
        let commit = Commit::new()
            .put(put("/c", "").when(Condition::Present))
            .check(key("/a"), Condition::Present)
            .check(key("/b"), Condition::Present);
        assert_eq!(condition_failed(core.commit(&commit)).key, Some(key("/b")));
    }

    #[test]
    fn operations_of_a_commit_keep_out_of_each_others_way() {
        let mut core = core();
        for (one, other) in [("/a", "/a"), ("/a", "/a/b"), ("/a/b/c", "/a"), ("/", "/a")] {
            let between = put("/a-b", "");
            let commit = Commit::new()
                .put(put(one, ""))
                .put(between)
                .put(put(other, ""));
            assert_eq!(
                not_possible(core.commit(&commit)),
                Code::InvalidField,
                "{one} {other}"
            );
        }
        let siblings = Commit::new()
            .put(put("/a/b", ""))
            .put(put("/a/c", ""))
            .put(put("/a-b", ""));
        assert_eq!(core.commit(&siblings).unwrap().len(), 3);
        assert!(core.commit(&Commit::new()).unwrap().is_empty());
    }

    #[test]
    fn a_commit_never_sees_what_has_expired() {
        let mut core = core();
        core.set(&key("/a"), file("1"), secs(2)).unwrap();
        core.grant(lease(7), ttl(2));
        core.go_to(2.0);
        let present = Commit::new().check(key("/a"), Condition::Present);
        assert_eq!(
            condition_failed(core.commit(&present)).code,
            Code::KeyNotFound
        );
        let absent = Commit::new().check(key("/a"), Condition::Absent);
        assert!(core.commit(&absent).is_ok());
        let leased = Put::new(key("/b"), "", Expiry::With(lease(7)));
        assert_eq!(
            not_possible(core.commit(&Commit::new().put(leased))),
            Code::LeaseNotFound
        );
    }
}
