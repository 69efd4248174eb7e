//! Files and directories.
//!
//! Invariants: only directories have children; the root is a directory; a directory that was made
//! on the way to a node never ends by itself, and none goes because its last child did.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::event::Age;
use crate::key::{Index, Key, LeaseId};

/// Children by name. Among siblings the order of names is the order of keys.
pub(crate) type Children = BTreeMap<Box<str>, Stored>;

/// The whole tree.
#[derive(Debug, PartialEq)]
pub(crate) struct Tree {
    root: Stored,
}

/// A node in the tree.
#[derive(Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) created: Index,
    /// For a directory the same as `created`, for ever.
    pub(crate) modified: Index,
    pub(crate) term: Term,
    pub(crate) content: Content,
}

/// When a node goes away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    Never,
    At(Age),
    Lease(LeaseId),
}

/// What is in a node.
#[derive(Debug, PartialEq)]
pub(crate) enum Content {
    File(Bytes),
    Dir(Children),
}

/// Why there is nothing at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing<'a> {
    /// The directory `parent` has no child of this name.
    Nothing { parent: &'a Key, name: &'a str },
    /// A file is in the way.
    NotADirectory(&'a Key),
}

impl Tree {
    /// An empty tree, made at `index`.
    pub(crate) fn new(index: Index) -> Self {
        Self {
            root: Stored::dir(Key::root(), index),
        }
    }

    /// The node at `key`.
    pub(crate) fn find<'t: 'm, 'k: 'm, 'm>(
        &'t self,
        key: &'k Key,
    ) -> Result<&'t Stored, Missing<'m>> {
        key.segments().try_fold(&self.root, |at, name| {
            let Content::Dir(children) = &at.content else {
                return Err(Missing::NotADirectory(&at.key));
            };
            let parent = &at.key;
            children.get(name).ok_or(Missing::Nothing { parent, name })
        })
    }

    /// The node at `key`, to be changed.
    pub(crate) fn find_mut(&mut self, key: &Key) -> Option<&mut Stored> {
        key.segments().try_fold(&mut self.root, |at, name| {
            at.children_mut()
                .and_then(|children| children.get_mut(name))
        })
    }

    /// Puts a node in its place, making the directories above it. What was there is replaced.
    ///
    /// Does nothing where a file is in the way: the caller looked before.
    pub(crate) fn insert(&mut self, node: Stored) {
        let Some(parent) = node.key.parent() else {
            return;
        };
        if self.find(&parent).is_err() {
            self.insert(Stored::dir(parent.clone(), node.created));
        }
        let name = node.key.name().into();
        if let Some(children) = self.find_mut(&parent).and_then(Stored::children_mut) {
            children.insert(name, node);
        }
    }

    /// Takes a node out, with all that is in it.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Stored> {
        self.find_mut(&key.parent()?)?
            .children_mut()?
            .remove(key.name())
    }
}

impl Stored {
    /// An empty directory that stays.
    pub(crate) fn dir(key: Key, index: Index) -> Self {
        Self {
            key,
            created: index,
            modified: index,
            term: Term::Never,
            content: Content::Dir(Children::new()),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.content, Content::Dir(_))
    }

    /// What the file holds; `None` for a directory.
    pub(crate) fn value(&self) -> Option<&Bytes> {
        match &self.content {
            Content::File(value) => Some(value),
            Content::Dir(_) => None,
        }
    }

    /// The directory's children; `None` for a file.
    pub(crate) fn children(&self) -> Option<&Children> {
        match &self.content {
            Content::File(_) => None,
            Content::Dir(children) => Some(children),
        }
    }

    fn children_mut(&mut self) -> Option<&mut Children> {
        match &mut self.content {
            Content::File(_) => None,
            Content::Dir(children) => Some(children),
        }
    }

    /// Calls `visit` for this node and all below it.
    pub(crate) fn walk(&self, visit: &mut impl FnMut(&Self)) {
        visit(self);
        for child in self.children().into_iter().flat_map(Children::values) {
            child.walk(visit);
        }
    }
}

/// Whether listings skip a child of this name.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn file(text: &str, index: u64) -> Stored {
        Stored {
            content: Content::File(Bytes::new()),
            ..Stored::dir(key(text), Index::new(index).unwrap())
        }
    }

    #[test]
    fn directories_on_the_way_are_made_and_share_the_index() {
        let mut tree = Tree::new(Index::new(3).unwrap());
        tree.insert(file("/a/b/c", 4));
        for above in ["/a", "/a/b"] {
            let above = key(above);
            let dir = tree.find(&above).unwrap();
            assert!(dir.is_dir() && dir.term == Term::Never);
            assert_eq!((dir.created.get(), dir.modified.get()), (4, 4));
        }
    }

    #[test]
    fn a_miss_names_the_first_component_that_is_missing_or_a_file() {
        let mut tree = Tree::new(Index::new(3).unwrap());
        tree.insert(file("/a/file", 4));
        let (missing, below) = (key("/a/x/y"), key("/a/file/y/z"));
        let (dir, in_the_way) = (key("/a"), key("/a/file"));
        assert_eq!(
            tree.find(&missing),
            Err(Missing::Nothing {
                parent: &dir,
                name: "x"
            })
        );
        assert_eq!(tree.find(&below), Err(Missing::NotADirectory(&in_the_way)));
    }

    #[test]
    fn a_directory_outlives_its_last_child() {
        let mut tree = Tree::new(Index::new(3).unwrap());
        tree.insert(file("/a/b", 4));
        assert!(tree.remove(&key("/a/b")).is_some());
        assert!(tree.remove(&key("/a/b")).is_none());
        assert!(tree.find(&key("/a")).is_ok());
    }

    #[test]
    fn the_deepest_key_works() {
        let mut tree = Tree::new(Index::new(3).unwrap());
        let deep = "/d".repeat(Key::MAX_LEN / 2);
        tree.insert(file(&deep, 4));
        let mut seen = 0;
        tree.find(&key("/d")).unwrap().walk(&mut |_| seen += 1);
        assert_eq!(seen, Key::MAX_LEN / 2);
        assert!(tree.remove(&key("/d")).is_some());
    }
}
