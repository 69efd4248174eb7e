//! The numbers that order what is stored: a store's index, a node's sequence, a place in line.

use std::fmt;
use std::num::NonZeroU64;

use crate::key::Key;

/// A point in a store's history. Every mutation has its own; later is larger; never zero.
///
/// etcd v2: `modifiedIndex` and `X-Etcd-Index`. Embedded: the same. Indexes of different stores
/// cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(NonZeroU64);

impl Index {
    /// The first index that a store can have.
    pub const MIN: Self = Self(NonZeroU64::MIN);

    /// The index with this number; `None` for zero, which no store uses.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number that an append gave to its node. Nodes of one directory are ordered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

impl Sequence {
    /// The sequence with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<Index> for Sequence {
    fn from(index: Index) -> Self {
        Self(index.get())
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a line: first by sequence, then by key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Position {
    /// The number that the append gave.
    pub sequence: Sequence,
    /// The node's key.
    pub key: Key,
}

impl Position {
    /// A place in a line.
    pub fn new(sequence: Sequence, key: Key) -> Self {
        Self { sequence, key }
    }
}
