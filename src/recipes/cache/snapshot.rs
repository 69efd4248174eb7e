//! What a cache knew at one index.

use std::fmt;
use std::sync::Arc;

use super::board::State;
use super::fold::below;
use super::health::CacheSource;
use crate::error::Error;
use crate::key::{Index, Key};

/// All values of a cache as they were at one index of the store. Immutable; cloning is cheap, and
/// what two snapshots have in common is there once.
pub struct Snapshot<T> {
    prefix: Key,
    state: Arc<State<T>>,
}

impl<T> Snapshot<T> {
    pub(super) fn new(prefix: Key, state: Arc<State<T>>) -> Self {
        Self { prefix, state }
    }

    /// The store held exactly this at this index; `None` before the first list, also for what comes
    /// from disk.
    pub fn index(&self) -> Option<Index> {
        self.state.index
    }

    /// Where it comes from.
    pub fn source(&self) -> CacheSource {
        self.state.health.source
    }

    /// The value at a key, or at a name below the prefix (`"limits/jobs"`).
    pub fn get(&self, key: impl AsRef<str>) -> Option<Arc<T>> {
        get(&self.state, &self.prefix, key.as_ref())
    }

    /// Whether there is a value at a key, or at a name below the prefix.
    pub fn contains(&self, key: impl AsRef<str>) -> bool {
        self.get(key).is_some()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.state.entries.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.state.entries.is_empty()
    }

    /// All keys and values, in the order of the keys' bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<T>)> {
        self.state.entries.iter()
    }

    /// Those below a key (not at it), in the same order.
    pub fn below(&self, dir: &Key) -> impl Iterator<Item = (&Key, &Arc<T>)> {
        below(&self.state.entries, dir)
    }

    /// Keys whose present value the decoder refuses, and why. Where there was a good value before,
    /// that is what [`Snapshot::get`] still gives.
    pub fn bad(&self) -> impl Iterator<Item = (&Key, &Error)> {
        self.state.bad.iter()
    }
}

/// The value at a key, or at a name below the prefix.
pub(super) fn get<T>(state: &State<T>, prefix: &Key, key: &str) -> Option<Arc<T>> {
    if key.starts_with('/') {
        return state.entries.get(key).cloned();
    }
    let below = if prefix.is_root() {
        format!("/{key}")
    } else {
        format!("{prefix}/{key}")
    };
    state.entries.get(below.as_str()).cloned()
}

// Not derived: that would ask for `T: Clone`.
impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self {
            prefix: self.prefix.clone(),
            state: self.state.clone(),
        }
    }
}

/// Without the values, which may be secrets, or many.
impl<T> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("prefix", &self.prefix)
            .field("index", &self.index())
            .field("source", &self.source())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
