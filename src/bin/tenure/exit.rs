//! What the exit codes mean.
//!
//! | code | meaning |
//! |---|---|
//! | the command's own | it ran and ended; 128 + n if signal n ended it |
//! | 1 | a key is absent, or a condition was false |
//! | 64 | usage: an option, a URL, a name, a time-to-live |
//! | 69 | the store was never reached, or is not one |
//! | 70 | the guardian was lost |
//! | 75 | not acquired: taken, or not in time |
//! | 76 | the lock was lost, and the command was stopped |
//! | 77 | not authorised |
//! | 126, 127 | the command is not executable; there is no such command |
//! | 130, 143 | interrupted, terminated before it was acquired |

use tenure::{Error, ErrorKind};

pub(crate) const DONE: u8 = 0;
pub(crate) const FALSE: u8 = 1;
pub(crate) const USAGE: u8 = 64;
pub(crate) const UNAVAILABLE: u8 = 69;
pub(crate) const SOFTWARE: u8 = 70;
pub(crate) const NOT_ACQUIRED: u8 = 75;
pub(crate) const LOST: u8 = 76;
pub(crate) const NOT_AUTHORISED: u8 = 77;

/// The code of what went well, or of an error, which is printed.
pub(crate) fn reported(outcome: tenure::Result<u8>) -> u8 {
    outcome.unwrap_or_else(|error| {
        eprintln!("tenure: {error}");
        code(&error)
    })
}

/// The code for an error of the store.
pub(crate) fn code(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::InvalidKey
        | ErrorKind::InvalidName
        | ErrorKind::InvalidValue
        | ErrorKind::InvalidTtl
        | ErrorKind::InvalidOptions
        | ErrorKind::LimitMismatch
        | ErrorKind::TooHeavy
        | ErrorKind::Unsupported => USAGE,
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::ConditionFailed
        | ErrorKind::NotAFile
        | ErrorKind::NotADirectory
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::RootReadOnly => FALSE,
        ErrorKind::Unauthorized | ErrorKind::Forbidden => NOT_AUTHORISED,
        ErrorKind::Lost => LOST,
        _ => UNAVAILABLE,
    }
}
