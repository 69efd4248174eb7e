//! One error type: what happened, in which operation, to which key, on which server, and what to
//! do about it.
//!
//! An error prints its own story and never its cause's: the cause is what
//! [`source`](std::error::Error::source) returns.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::key::{Index, Key};

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that went wrong. Match on [`Error::kind`].
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    operation: Option<&'static str>,
    key: Option<Key>,
    server: Option<String>,
    index: Option<Index>,
    code: Option<u16>,
    said: Option<Box<Said>>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// A server's own words.
#[derive(Clone)]
struct Said {
    message: String,
    cause: String,
}

/// What kind of thing went wrong; decides what a caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key breaks a rule. Nothing was changed.
    InvalidKey,
    /// A name breaks a rule. Nothing was changed.
    InvalidName,
    /// A value cannot be stored there (too large, or not UTF-8 on etcd v2). Nothing was changed.
    InvalidValue,
    /// A time-to-live is out of range. Nothing was changed.
    InvalidTtl,
    /// A URL, an option or a combination of options makes no sense. Nothing was changed.
    InvalidOptions,
    /// The store cannot do this at all. Nothing was changed.
    Unsupported,

    /// There is nothing at the key (or the lease is gone). Nothing was changed.
    NotFound,
    /// There already is something at the key. Nothing was changed.
    AlreadyExists,
    /// The value or index was not the expected one. Nothing was changed.
    ConditionFailed,
    /// The key is a directory. Nothing was changed.
    NotAFile,
    /// A key above this one is a file. Nothing was changed.
    NotADirectory,
    /// The directory still has children. Nothing was changed.
    DirectoryNotEmpty,
    /// The root cannot be written. Nothing was changed.
    RootReadOnly,
    /// The server refuses these credentials, or none were given. Nothing was changed.
    Unauthorized,
    /// The server knows this user, whose roles do not allow this. Nothing was changed.
    Forbidden,

    /// TLS found no trust: a certificate that has expired, is signed by a stranger or is for
    /// another name, or one that the server wants and was not given. Nothing was changed.
    Untrusted,
    /// The request was never sent: no server could be reached. Nothing was changed.
    Unreachable,
    /// The server answered that it cannot serve now (no leader, stopping). Nothing was changed.
    Unavailable,
    /// The time for this ran out; what was begun has been, or is being, undone.
    Timeout,
    /// The request may have been sent and no answer came: it may have taken effect, or may still.
    Ambiguous,
    /// The answer is not what this protocol allows: not the expected server, or a broken one.
    Protocol,
    /// The events asked for are no longer kept; list again and watch from there.
    HistoryLost,
    /// This is another cluster, or one restored from a backup.
    ClusterChanged,

    /// What was held is not held any more.
    Lost,
    /// This lock value already has a guard.
    AlreadyHeld,
    /// More is asked for than there can ever be: a weight above a semaphore's limit. Nothing was
    /// changed.
    TooHeavy,
    /// A semaphore has another limit than the one given. Nothing was changed.
    LimitMismatch,
    /// A bounded queue has no room. Nothing was changed.
    Full,
    /// The claim on a job was lost before it was acknowledged: it is, or will be, delivered again.
    ClaimLost,
    /// The client was shut down.
    Closed,
}

impl Error {
    /// An error of this kind; `detail` says what happened.
    pub fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            detail: detail.into(),
            operation: None,
            key: None,
            server: None,
            index: None,
            code: None,
            said: None,
            source: None,
        }))
    }

    /// Names the operation, unless one is named already (the innermost knows best).
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Names the key, unless one is named already.
    #[must_use]
    pub fn at(mut self, key: &Key) -> Self {
        self.0.key.get_or_insert_with(|| key.clone());
        self
    }

    /// Names the key, replacing the one that was named.
    #[must_use]
    pub fn relocate(mut self, key: Option<Key>) -> Self {
        self.0.key = key;
        self
    }

    /// Names the server, unless one is named already.
    #[must_use]
    pub fn on(mut self, server: impl Into<String>) -> Self {
        self.0.server.get_or_insert_with(|| server.into());
        self
    }

    /// Gives the store's index at the time.
    #[must_use]
    pub fn seen_at(mut self, index: Index) -> Self {
        self.0.index = Some(index);
        self
    }

    /// Gives the server's own number for this error.
    #[must_use]
    pub fn with_code(mut self, code: u16) -> Self {
        self.0.code = Some(code);
        self
    }

    /// Keeps the server's own words apart from ours; empty ones are none.
    #[cfg(feature = "etcd2")]
    #[must_use]
    pub(crate) fn with_words(mut self, message: String, cause: String) -> Self {
        self.0.said = Some(Box::new(Said { message, cause }));
        self
    }

    /// The same story as an error of another kind.
    #[cfg(feature = "etcd2")]
    #[must_use]
    pub(crate) fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Says what the same story means one floor up.
    #[must_use]
    pub(crate) fn into_kind(mut self, kind: ErrorKind, note: &str) -> Self {
        self.0.kind = kind;
        self.0.detail = format!("{}; {note}", self.0.detail).into();
        self
    }

    /// Gives the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, in words.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The operation that failed.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The key it concerned.
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// The server that answered, or that did not.
    pub fn server(&self) -> Option<&str> {
        self.0.server.as_deref()
    }

    /// The store's index when it refused.
    pub fn index(&self) -> Option<Index> {
        self.0.index
    }

    /// The server's own number for this error (etcd's `errorCode`).
    pub fn code(&self) -> Option<u16> {
        self.0.code
    }

    /// The server's own message (etcd's `message`), as it came: `Compare failed`. Our
    /// [`detail`](Self::detail) holds it too.
    pub fn server_message(&self) -> Option<&str> {
        let said = self.0.said.as_ref()?;
        Some(&*said.message).filter(|it| !it.is_empty())
    }

    /// What the server says about it (etcd's `cause`), as it came: `[a != b]`, or the part of the
    /// path that is not there. Our [`detail`](Self::detail) holds it too.
    pub fn server_cause(&self) -> Option<&str> {
        let said = self.0.said.as_ref()?;
        Some(&*said.cause).filter(|it| !it.is_empty())
    }

    /// Whether the operation may have taken effect, or may still.
    pub fn is_ambiguous(&self) -> bool {
        self.kind() == ErrorKind::Ambiguous
    }

    /// Whether it is certain that the operation has changed nothing and will change nothing.
    pub fn changed_nothing(&self) -> bool {
        use ErrorKind as Kind;
        match self.kind() {
            Kind::InvalidKey
            | Kind::InvalidName
            | Kind::InvalidValue
            | Kind::InvalidTtl
            | Kind::InvalidOptions
            | Kind::Unsupported
            | Kind::NotFound
            | Kind::AlreadyExists
            | Kind::ConditionFailed
            | Kind::NotAFile
            | Kind::NotADirectory
            | Kind::DirectoryNotEmpty
            | Kind::RootReadOnly
            | Kind::Unauthorized
            | Kind::Forbidden
            | Kind::Untrusted
            | Kind::Unreachable
            | Kind::Unavailable
            | Kind::AlreadyHeld
            | Kind::TooHeavy
            | Kind::LimitMismatch
            | Kind::Full
            | Kind::Closed => true,
            Kind::Timeout
            | Kind::Ambiguous
            | Kind::Protocol
            | Kind::HistoryLost
            | Kind::ClusterChanged
            | Kind::Lost
            | Kind::ClaimLost => false,
        }
    }

    /// Whether the same call may succeed later without anything being changed by the caller.
    ///
    /// An [`Ambiguous`](ErrorKind::Ambiguous) outcome is not among them: find out first.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Unreachable | ErrorKind::Unavailable | ErrorKind::Timeout
        )
    }
}

impl ErrorKind {
    /// What to do about it, where that can be said in general.
    fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::Ambiguous => "the outcome is unknown: read back before trying again",
            Self::Unreachable => "nothing was sent: check the address and that the server runs",
            Self::Unauthorized => "check the user, the password and the role's permissions",
            Self::Forbidden => "grant one of the user's roles access to the key",
            Self::Untrusted => {
                "check the scheme and the host name, the CA and the client certificate"
            }
            Self::HistoryLost => "list again and watch from the list's index",
            Self::ClusterChanged => {
                "connect anew once you trust that cluster; fencing tokens start anew there"
            }
            Self::Lost => "stop acting under it; acquire again for a new token",
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            operation,
            key,
            server,
            detail,
            code,
            index,
            kind,
            ..
        } = &*self.0;
        if let Some(operation) = operation {
            write!(f, "{operation}")?;
        }
        if let Some(key) = key {
            write!(f, "{}{key}", if operation.is_some() { " " } else { "" })?;
        }
        if let Some(server) = server {
            let lead = if operation.is_some() || key.is_some() {
                " on "
            } else {
                ""
            };
            write!(f, "{lead}{server}")?;
        }
        if operation.is_some() || key.is_some() || server.is_some() {
            f.write_str(": ")?;
        }
        f.write_str(detail)?;
        match (code, index) {
            (Some(code), Some(index)) => write!(f, " (code {code}, at index {index})")?,
            (Some(code), None) => write!(f, " (code {code})")?,
            (None, Some(index)) => write!(f, " (at index {index})")?,
            (None, None) => {}
        }
        if let Some(advice) = kind.advice() {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Error");
        shown
            .field("kind", &self.0.kind)
            .field("text", &self.to_string());
        if let Some(source) = &self.0.source {
            shown.field("source", source);
        }
        shown.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_happened_where_and_what_to_do() {
        let key = Key::new("/a").unwrap();
        let error = Error::new(ErrorKind::Ambiguous, "no answer within 1 s")
            .during("put")
            .at(&key)
            .on("http://10.0.0.1:2379");
        assert_eq!(
            error.to_string(),
            "put /a on http://10.0.0.1:2379: no answer within 1 s; \
             the outcome is unknown: read back before trying again"
        );
        assert!(error.is_ambiguous() && !error.is_transient());
    }

    #[test]
    fn the_innermost_context_wins() {
        let (inner, outer) = (Key::new("/in").unwrap(), Key::new("/out").unwrap());
        let error = Error::new(ErrorKind::NotFound, "key not found")
            .at(&inner)
            .at(&outer);
        assert_eq!(error.key(), Some(&inner));
    }

    #[test]
    fn a_cause_is_printed_by_whoever_prints_the_chain_and_only_there() {
        let error = Error::new(ErrorKind::Protocol, "not JSON").caused_by("boom");
        assert!(!error.to_string().contains("boom"));
        assert_eq!(StdError::source(&error).unwrap().to_string(), "boom");
    }
}
