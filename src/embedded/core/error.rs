//! Why the core refused, in etcd v2's numbers and words.

use std::fmt;

use crate::key::{Index, Key};

/// Something was refused; nothing was changed, except by [`Code::JournalFailed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What kind of refusal.
    pub(crate) code: Code,
    /// The key it concerns, if it concerns one.
    pub(crate) key: Option<Key>,
    /// etcd's `cause`: mostly the offending path, or `[expected != found]`.
    pub(crate) cause: String,
    /// The store's index at the time.
    pub(crate) index: Index,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    KeyNotFound,
    CompareFailed,
    NotAFile,
    NotADirectory,
    AlreadyExists,
    RootReadOnly,
    #[cfg_attr(not(test), allow(dead_code))] // for the HTTP front end
    DirectoryNotEmpty,
    InvalidField,
    RefreshNeedsTtl,
    HistoryCleared,
    /// The lease of a write is gone; v2 has no leases, so no number of its own.
    LeaseNotFound,
    /// The journal failed just now: what was done may not survive a restart.
    JournalFailed,
    /// The journal failed before: nothing was done.
    Stopped,
}

impl Code {
    /// etcd's `errorCode`.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::KeyNotFound | Self::LeaseNotFound => 100,
            Self::CompareFailed => 101,
            Self::NotAFile => 102,
            Self::NotADirectory => 104,
            Self::AlreadyExists => 105,
            Self::RootReadOnly => 107,
            Self::DirectoryNotEmpty => 108,
            Self::InvalidField => 209,
            Self::RefreshNeedsTtl => 212,
            Self::JournalFailed | Self::Stopped => 300,
            Self::HistoryCleared => 401,
        }
    }

    /// etcd's `message`.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::KeyNotFound => "Key not found",
            Self::CompareFailed => "Compare failed",
            Self::NotAFile => "Not a file",
            Self::NotADirectory => "Not a directory",
            Self::AlreadyExists => "Key already exists",
            Self::RootReadOnly => "Root is read only",
            Self::DirectoryNotEmpty => "Directory not empty",
            Self::InvalidField => "Invalid field",
            Self::RefreshNeedsTtl => "A TTL must be provided on refresh",
            Self::HistoryCleared => "The event in requested index is outdated and cleared",
            Self::LeaseNotFound => "Lease not found",
            Self::JournalFailed => "Journal failed",
            Self::Stopped => "Stopped after the journal failed",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.message())?;
        if !self.cause.is_empty() {
            write!(f, ": {}", self.cause)?;
        }
        Ok(())
    }
}
