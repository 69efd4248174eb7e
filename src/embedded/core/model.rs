//! The core against a much simpler store: a map of files with deadlines.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::rig::{at, core, index, key};
use super::{Age, Code, Core};
use crate::key::{Key, Ttl};
use crate::store::{Condition, Delete, Expiry, Put};

/// Two in one directory, two in none; the same name on both levels.
const PATHS: [&str; 4] = ["/a", "/b", "/d/a", "/d/b"];

#[derive(Clone, Debug)]
enum Op {
    Put(usize, u8, Cond, Option<u64>),
    Delete(usize, Cond),
    Wait,
}

#[derive(Clone, Debug)]
enum Cond {
    Any,
    Absent,
    Present,
    Value(u8),
    /// The right index, or one that is off.
    Index(u64),
    Both(u8, u64),
    Created(u64),
}

#[derive(Debug, Default)]
struct Model {
    files: BTreeMap<usize, File>,
    index: u64,
}

#[derive(Clone, Debug)]
struct File {
    value: u8,
    created: u64,
    modified: u64,
    deadline: Option<Age>,
}

impl Model {
    fn expire(&mut self, age: Age) {
        let due: Vec<usize> = (self.files.iter())
            .filter(|(_, file)| file.deadline.is_some_and(|deadline| deadline <= age))
            .map(|(path, _)| *path)
            .collect();
        for path in due {
            self.files.remove(&path);
            self.index += 1;
        }
    }

    fn check(&self, path: usize, condition: &Cond) -> Result<(), Code> {
        let holds = match (condition, self.files.get(&path)) {
            (Cond::Any, _) | (Cond::Absent, None) | (Cond::Present, Some(_)) => true,
            (Cond::Absent, Some(_)) => return Err(Code::AlreadyExists),
            (_, None) => return Err(Code::KeyNotFound),
            (Cond::Value(value), Some(file)) => file.value == *value,
            (Cond::Index(off), Some(_)) => *off == 0,
            (Cond::Both(value, off), Some(file)) => file.value == *value && *off == 0,
            (Cond::Created(off), Some(_)) => *off == 0,
        };
        if holds {
            Ok(())
        } else {
            Err(Code::CompareFailed)
        }
    }

    fn put(
        &mut self,
        path: usize,
        value: u8,
        condition: &Cond,
        deadline: Option<Age>,
    ) -> Result<u64, Code> {
        self.check(path, condition)?;
        self.index += 1;
        let created = match (condition, self.files.get(&path)) {
            (Cond::Any | Cond::Absent, _) | (_, None) => self.index,
            (_, Some(file)) => file.created,
        };
        let modified = self.index;
        self.files.insert(
            path,
            File {
                value,
                created,
                modified,
                deadline,
            },
        );
        Ok(self.index)
    }

    fn delete(&mut self, path: usize, condition: &Cond) -> Result<u64, Code> {
        if !self.files.contains_key(&path) {
            return Err(Code::KeyNotFound);
        }
        self.check(path, condition)?;
        self.files.remove(&path);
        self.index += 1;
        Ok(self.index)
    }

    /// The condition for the core that means the same.
    fn condition(&self, path: usize, condition: &Cond) -> Condition {
        let file = self.files.get(&path);
        let modified = |off: &u64| index(file.map_or(1, |file| file.modified) + off);
        let value = |value: &u8| vec![*value].into();
        match condition {
            Cond::Any => Condition::Any,
            Cond::Absent => Condition::Absent,
            Cond::Present => Condition::Present,
            Cond::Value(v) => Condition::Value(value(v)),
            Cond::Index(off) => Condition::Index(modified(off)),
            Cond::Both(v, off) => Condition::Both {
                value: value(v),
                index: modified(off),
            },
            Cond::Created(off) => {
                Condition::Created(index(file.map_or(1, |file| file.created) + off))
            }
        }
    }
}

fn path_key(path: usize) -> Key {
    key(PATHS[path])
}

fn assert_same(core: &Core, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(core.index().get(), model.index);
    for path in 0..PATHS.len() {
        let found = core.peek(&path_key(path)).map(|node| {
            let value = node.value.unwrap()[0];
            (value, node.created.get(), node.modified.get(), node.expires)
        });
        let file = model.files.get(&path);
        let expected = file.map(|file| (file.value, file.created, file.modified, file.deadline));
        prop_assert_eq!(found, expected);
    }
    let listed = core.read(&Key::root(), true).unwrap().nodes;
    let files = listed.iter().flat_map(|node| {
        if node.dir {
            &node.nodes
        } else {
            std::slice::from_ref(node)
        }
    });
    prop_assert_eq!(files.count(), model.files.len());
    Ok(())
}

fn ops() -> impl Strategy<Value = Vec<(Op, u64)>> {
    let path = 0..PATHS.len();
    let cond = prop_oneof![
        Just(Cond::Any),
        Just(Cond::Any),
        Just(Cond::Any),
        Just(Cond::Absent),
        Just(Cond::Present),
        (0u8..3).prop_map(Cond::Value),
        (0u64..2).prop_map(Cond::Index),
        (0u8..3, 0u64..2).prop_map(|(value, off)| Cond::Both(value, off)),
        (0u64..2).prop_map(Cond::Created),
    ];
    let ttl = proptest::option::of(1000u64..4000);
    let op = prop_oneof![
        4 => (path.clone(), 0u8..3, cond.clone(), ttl).prop_map(|(p, v, c, t)| Op::Put(p, v, c, t)),
        2 => (path, cond).prop_map(|(path, condition)| Op::Delete(path, condition)),
        1 => Just(Op::Wait),
    ];
    proptest::collection::vec((op, 0u64..1200), 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_a_map_with_deadlines_does(ops in ops()) {
        let mut core = core();
        let mut model = Model { index: 3, ..Model::default() };
        let mut age = Age::ZERO;
        for (op, pause) in ops {
            age += Age::from_millis(pause);
            core.advance(at(0.0) + age).unwrap();
            model.expire(age);
            match op {
                Op::Put(path, value, cond, ttl) => {
                    let ttl = ttl.map(Age::from_millis);
                    let expiry = match ttl {
                        Some(ttl) => Expiry::After(Ttl::new(ttl).unwrap()),
                        None => Expiry::Never,
                    };
                    let put = Put::new(path_key(path), vec![value], expiry)
                        .when(model.condition(path, &cond));
                    let expected = model.put(path, value, &cond, ttl.map(|ttl| age + ttl));
                    let done = core.put(&put).map(|event| event.index().get());
                    prop_assert_eq!(done.map_err(|refusal| refusal.code), expected);
                }
                Op::Delete(path, cond) => {
                    let delete = Delete::new(path_key(path)).when(model.condition(path, &cond));
                    let expected = model.delete(path, &cond);
                    let done = core.delete_if(&delete).map(|event| event.index().get());
                    prop_assert_eq!(done.map_err(|refusal| refusal.code), expected);
                }
                Op::Wait => {}
            }
            assert_same(&core, &model)?;
        }
    }
}
