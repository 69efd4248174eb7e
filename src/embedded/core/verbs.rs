//! etcd v2's verbs: what they check, and with which error they refuse.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::tree::is_hidden;
use super::{Action, Code, Content, Core, Event, Life, Node, Outcome, Payload, Refusal, Stored};
use crate::key::{Index, Key};

/// What a compare-and-… wants to find: all that is given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected<'a> {
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) index: Option<Index>,
}

#[cfg_attr(not(test), allow(dead_code))] // some are for the HTTP front end
impl Core {
    /// Reads a node; of a directory also the children, in order, or all below it. What is hidden
    /// below `key` is left out.
    pub(crate) fn read(&self, key: &Key, recursive: bool) -> Outcome<Node> {
        let stored = self.find(key)?;
        Ok(self.listing(stored, true, recursive))
    }

    /// The node at `key`, if there is one.
    pub(crate) fn peek(&self, key: &Key) -> Option<Node> {
        Some(self.node(self.tree.find(key).ok()?))
    }

    /// At most `limit` children of `key` after a name, in order, and whether there are more.
    pub(crate) fn children(
        &self,
        key: &Key,
        after: Bound<&str>,
        limit: usize,
    ) -> (Vec<Node>, bool) {
        let children = self.tree.find(key).ok().and_then(Stored::children);
        let mut nodes = children
            .into_iter()
            .flat_map(|children| children.range::<str, _>((after, Bound::Unbounded)))
            .filter(|(name, _)| !is_hidden(name))
            .map(|(_, child)| self.node(child));
        let page = nodes.by_ref().take(limit).collect();
        (page, nodes.next().is_some())
    }

    fn listing(&self, stored: &Stored, children: bool, recursive: bool) -> Node {
        let mut node = self.node(stored);
        if children && let Some(children) = stored.children() {
            node.nodes = children
                .iter()
                .filter(|(name, _)| !is_hidden(name))
                .map(|(_, child)| self.listing(child, recursive, recursive))
                .collect();
        }
        node
    }

    /// Writes a new node over whatever file was there.
    ///
    /// [`Payload::Keep`] refreshes: it wants a file and a time-to-live.
    pub(crate) fn set(&mut self, key: &Key, payload: Payload, life: Life) -> Outcome<Arc<Event>> {
        self.check_refresh(&payload, life)?;
        match self.find(key) {
            Err(refusal) if refusal.code == Code::NotADirectory => return Err(refusal),
            Err(refusal) if payload == Payload::Keep => return Err(refusal),
            _ if key.is_root() => return Err(self.refusal_at(Code::RootReadOnly, key)),
            Ok(stored) if stored.is_dir() => return Err(self.refusal_at(Code::NotAFile, key)),
            _ => {}
        }
        self.check_life(key, life)?;
        Ok(self.write(Action::Set, key, payload, life))
    }

    /// Writes a node where there is none. A refresh creates an empty file, as on etcd.
    pub(crate) fn create(
        &mut self,
        key: &Key,
        payload: Payload,
        life: Life,
    ) -> Outcome<Arc<Event>> {
        self.check_refresh(&payload, life)?;
        if key.is_root() {
            return Err(self.refusal_at(Code::RootReadOnly, key));
        }
        match self.find(key) {
            Ok(_) => return Err(self.refusal_at(Code::AlreadyExists, key)),
            Err(refusal) if refusal.code == Code::NotADirectory => return Err(refusal),
            Err(_) => {}
        }
        self.check_life(key, life)?;
        Ok(self.write(Action::Create, key, payload, life))
    }

    /// Creates a node in `dir` named by the index that it gets, in 20 digits.
    pub(crate) fn create_in_order(
        &mut self,
        dir: &Key,
        payload: Payload,
        life: Life,
    ) -> Outcome<Arc<Event>> {
        let name = format!("{:020}", self.index.next().get());
        let key = dir.join(&name).map_err(|error| {
            let cause = error.detail().to_owned();
            Refusal {
                key: Some(dir.clone()),
                ..self.refusal(Code::InvalidField, cause)
            }
        })?;
        self.create(&key, payload, life)
    }

    /// Writes a node that is there. Of a directory only the life changes.
    pub(crate) fn update(
        &mut self,
        key: &Key,
        payload: Payload,
        life: Life,
    ) -> Outcome<Arc<Event>> {
        self.check_refresh(&payload, life)?;
        if key.is_root() {
            return Err(self.refusal_at(Code::RootReadOnly, key));
        }
        let says_something = matches!(&payload, Payload::File(value) if !value.is_empty());
        if self.find(key)?.is_dir() && says_something {
            return Err(self.refusal_at(Code::NotAFile, key));
        }
        self.check_life(key, life)?;
        Ok(self.write(Action::Update, key, as_file(payload), life))
    }

    /// Writes a file that is as expected.
    pub(crate) fn compare_and_swap(
        &mut self,
        key: &Key,
        expected: Expected<'_>,
        payload: Payload,
        life: Life,
    ) -> Outcome<Arc<Event>> {
        self.check_refresh(&payload, life)?;
        if key.is_root() {
            return Err(self.refusal_at(Code::RootReadOnly, key));
        }
        self.check_expected(key, expected)?;
        self.check_life(key, life)?;
        Ok(self.write(Action::CompareAndSwap, key, as_file(payload), life))
    }

    /// Deletes a file; with `dir` also an empty directory, with `recursive` any.
    pub(crate) fn delete(&mut self, key: &Key, dir: bool, recursive: bool) -> Outcome<Arc<Event>> {
        if key.is_root() {
            return Err(self.refusal_at(Code::RootReadOnly, key));
        }
        match &self.find(key)?.content {
            Content::Dir(_) if !dir && !recursive => {
                return Err(self.refusal_at(Code::NotAFile, key));
            }
            Content::Dir(children) if !children.is_empty() && !recursive => {
                return Err(self.refusal_at(Code::DirectoryNotEmpty, key));
            }
            _ => {}
        }
        self.removal(Action::Delete, key)
    }

    /// Deletes a file that is as expected.
    pub(crate) fn compare_and_delete(
        &mut self,
        key: &Key,
        expected: Expected<'_>,
    ) -> Outcome<Arc<Event>> {
        self.check_expected(key, expected)?;
        self.removal(Action::CompareAndDelete, key)
    }

    /// Removes what was just found.
    pub(super) fn removal(&mut self, action: Action, key: &Key) -> Outcome<Arc<Event>> {
        match self.remove(action, key) {
            Some(event) => Ok(event),
            None => Err(self.refusal_at(Code::KeyNotFound, key)),
        }
    }

    fn check_expected(&self, key: &Key, expected: Expected<'_>) -> Outcome<()> {
        let stored = self.find(key)?;
        if stored.is_dir() {
            return Err(self.refusal_at(Code::NotAFile, key));
        }
        compare(stored, expected).map_err(|cause| Refusal {
            key: Some(key.clone()),
            ..self.refusal(Code::CompareFailed, cause)
        })
    }

    fn check_refresh(&self, payload: &Payload, life: Life) -> Outcome<()> {
        if *payload == Payload::Keep && life == Life::Forever {
            return Err(self.refusal(Code::RefreshNeedsTtl, String::new()));
        }
        Ok(())
    }
}

/// Compares as etcd does; `Err` is its cause.
pub(super) fn compare(stored: &Stored, expected: Expected<'_>) -> Result<(), String> {
    let found = stored.value().map(Bytes::as_ref);
    let value = expected
        .value
        .filter(|expected| found != Some(*expected))
        .map(|expected| {
            let found = found.map_or("(a directory)".into(), String::from_utf8_lossy);
            format!("[{} != {found}]", String::from_utf8_lossy(expected))
        });
    let index = expected
        .index
        .filter(|expected| stored.modified != *expected)
        .map(|expected| format!("[{expected} != {}]", stored.modified));
    match (value, index) {
        (None, None) => Ok(()),
        (Some(value), Some(index)) => Err(format!("{value} {index}")),
        (Some(cause), None) | (None, Some(cause)) => Err(cause),
    }
}

/// Update and swap never make a directory.
#[cfg_attr(not(test), allow(dead_code))] // for the HTTP front end
fn as_file(payload: Payload) -> Payload {
    match payload {
        Payload::Dir => Payload::File(Bytes::new()),
        file => file,
    }
}

#[cfg(test)]
mod tests;
