//! A node as the client sees it, with what is below it.

use std::slice;
use std::time::{Duration, SystemTime};

use super::super::time::unix_time;
use super::super::wire::RawNode;
use crate::key::Index;

/// A file or a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Its key as the server writes it, `/` for the root. One that somebody else wrote may break
    /// the rules of [`Key`](crate::Key).
    pub key: String,
    /// What it holds: `Some("")` for an empty file, `None` for a directory and for a node that
    /// says only that something was deleted.
    pub value: Option<String>,
    /// Whether it is a directory.
    pub dir: bool,
    /// The whole seconds that it still lives, rounded up by the server; zero or less when its time
    /// has run out and it is not swept yet. `None`: it is permanent.
    pub ttl: Option<i64>,
    /// When its time runs out, by the wall clock of the member that received the write. To be
    /// shown, not to be compared with another machine's clock.
    pub expiration: Option<SystemTime>,
    /// The index at which it was created, or last set without a condition. The root has none: the
    /// server's index instead.
    pub created_index: Index,
    /// The index of its last modification; a directory's stays that of its creation. The root has
    /// none: the server's index instead.
    pub modified_index: Index,
    /// What is below it, as far as it was asked for: nothing below the children unless the read
    /// was recursive. In the server's order, which is random unless the read was sorted.
    pub nodes: Vec<Self>,
}

impl Node {
    /// As the server says; `now` stands in for indexes that it leaves out.
    pub(super) fn of(raw: RawNode, now: Index) -> Self {
        let expiration = raw.expiration.as_deref().and_then(unix_time);
        Self {
            ttl: raw.expires().then_some(raw.ttl),
            key: raw.path().to_owned(),
            value: raw.value,
            dir: raw.dir,
            expiration: expiration.and_then(since_1970),
            created_index: Index::new(raw.created_index).unwrap_or(now),
            modified_index: Index::new(raw.modified_index).unwrap_or(now),
            nodes: raw.nodes.into_iter().map(|it| Self::of(it, now)).collect(),
        }
    }

    /// The direct children.
    pub fn children(&self) -> slice::Iter<'_, Self> {
        self.nodes.iter()
    }

    /// Everything below it, files and directories, each directory before what is in it. Not the
    /// node itself.
    pub fn subtree(&self) -> Subtree<'_> {
        Subtree {
            levels: vec![self.nodes.iter()],
        }
    }

    /// The files below it, at any depth. An empty directory has none, and neither has a file.
    pub fn leaves(&self) -> Leaves<'_> {
        Leaves(self.subtree())
    }

    /// The node with this key (with its leading `/`), if it is this one or below it.
    pub fn find(&self, key: &str) -> Option<&Self> {
        if self.key == key {
            return Some(self);
        }
        self.subtree().find(|it| it.key == key)
    }

    /// Whether its time has run out, though the server has not swept it yet.
    pub fn is_expired(&self) -> bool {
        self.ttl.is_some_and(|ttl| ttl <= 0)
    }

    /// Takes away what is below it and has expired.
    pub(super) fn prune(&mut self) {
        self.nodes.retain(|it| !it.is_expired());
        self.nodes.iter_mut().for_each(Self::prune);
    }
}

fn since_1970(time: Duration) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(time)
}

impl<'a> IntoIterator for &'a Node {
    type Item = &'a Node;
    type IntoIter = slice::Iter<'a, Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.children()
    }
}

/// What is below a node: see [`Node::subtree`].
#[derive(Clone, Debug)]
pub struct Subtree<'a> {
    levels: Vec<slice::Iter<'a, Node>>,
}

impl<'a> Iterator for Subtree<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.levels.last_mut()?.next() {
                Some(node) => {
                    self.levels.push(node.nodes.iter());
                    return Some(node);
                }
                None => drop(self.levels.pop()),
            }
        }
    }
}

/// The files below a node: see [`Node::leaves`].
#[derive(Clone, Debug)]
pub struct Leaves<'a>(Subtree<'a>);

impl<'a> Iterator for Leaves<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.find(|it| !it.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Node {
        let raw = serde_json::from_str(
            r#"{"dir":true,"nodes":[
                {"key":"/a","dir":true,"createdIndex":4,"modifiedIndex":4,"nodes":[
                    {"key":"/a/x","value":"","createdIndex":4,"modifiedIndex":5},
                    {"key":"/a/gone","value":"1","expiration":"1970-01-01T00:00:01Z","createdIndex":4,"modifiedIndex":5}]},
                {"key":"/empty","dir":true,"createdIndex":6,"modifiedIndex":6},
                {"key":"/f","value":"1","ttl":7,"expiration":"1970-01-01T00:00:01.5Z","createdIndex":7,"modifiedIndex":8}]}"#,
        );
        Node::of(raw.unwrap(), Index::new(99).unwrap())
    }

    fn keys<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<&'a str> {
        nodes.map(|it| &*it.key).collect()
    }

    #[test]
    fn a_tree_is_walked_depth_first_and_an_empty_directory_is_not_its_own_leaf() {
        let root = tree();
        assert_eq!(keys(root.children()), ["/a", "/empty", "/f"]);
        let all = ["/a", "/a/x", "/a/gone", "/empty", "/f"];
        assert_eq!(keys(root.subtree()), all);
        assert_eq!(keys(root.leaves()), ["/a/x", "/a/gone", "/f"]);
        let empty = root.find("/empty").unwrap();
        assert_eq!((empty.leaves().count(), empty.subtree().count()), (0, 0));
        assert_eq!(root.find("/").map(|it| it.dir), Some(true));
        assert_eq!(root.find("/a/y"), None);
    }

    #[test]
    fn fields_are_told_from_those_left_out() {
        let root = tree();
        assert_eq!((&*root.key, &root.value), ("/", &None));
        assert_eq!(root.modified_index.get(), 99);
        let file = root.find("/f").unwrap();
        assert_eq!((file.ttl, file.is_expired()), (Some(7), false));
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        assert_eq!(file.expiration, Some(at));
        assert_eq!(root.find("/a/x").unwrap().value.as_deref(), Some(""));
        assert_eq!(root.find("/a/x").unwrap().ttl, None);
    }

    #[test]
    fn what_has_expired_is_pruned_at_every_depth() {
        let mut root = tree();
        assert_eq!(root.find("/a/gone").unwrap().ttl, Some(0));
        root.prune();
        assert_eq!(keys(root.subtree()), ["/a", "/a/x", "/empty", "/f"]);
    }
}
