//! etcd's own numbers for what went wrong.

use std::fmt;

use crate::error::Error;

/// etcd v2's error codes, all of them. [`Code::of`] tells an error's.
///
/// | range | whose matter it is |
/// |---|---|
/// | 100–110 | the key's: what is there, or who asks |
/// | 200–212 | the request's: a caller's mistake, which this crate refuses before sending |
/// | 300, 301 | the cluster's: the outcome of a write is unknown |
/// | 400–404, 500 | a watch's, or the server's own |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum Code {
    /// 100: there is nothing at the key.
    KeyNotFound = 100,
    /// 101: the value or index is another one.
    CompareFailed = 101,
    /// 102: the key is a directory.
    NotAFile = 102,
    /// 103: the cluster takes no more peers. Not in etcd 3.
    NoMorePeers = 103,
    /// 104: a key above this one is a file.
    NotADirectory = 104,
    /// 105: there is something at the key.
    KeyExists = 105,
    /// 106: the key is reserved. Not in etcd 3.
    KeyReserved = 106,
    /// 107: the root cannot be written.
    RootReadOnly = 107,
    /// 108: the directory still has children.
    DirectoryNotEmpty = 108,
    /// 109: the peer's address is taken. Not in etcd 3.
    PeerAddressExists = 109,
    /// 110: the user may not do this, or is not known.
    Unauthorized = 110,
    /// 200: a value is needed. Not in etcd 3.
    ValueRequired = 200,
    /// 201: `prevValue` is empty.
    PreviousValueRequired = 201,
    /// 202: the TTL is no number.
    TtlNotANumber = 202,
    /// 203: the index is no number.
    IndexNotANumber = 203,
    /// 204: a value or a TTL is needed. Not in etcd 3.
    ValueOrTtlRequired = 204,
    /// 205: the timeout is no number. Not in etcd 3.
    TimeoutNotANumber = 205,
    /// 206: a name is needed. Not in etcd 3.
    NameRequired = 206,
    /// 207: an index or a value is needed. Not in etcd 3.
    IndexOrValueRequired = 207,
    /// 208: an index and a value exclude each other. Not in etcd 3.
    IndexValueExclusive = 208,
    /// 209: a parameter makes no sense.
    InvalidField = 209,
    /// 210: the form cannot be read, or is larger than 10 MiB.
    InvalidForm = 210,
    /// 211: a refresh has a value.
    RefreshWithValue = 211,
    /// 212: a refresh has no TTL.
    RefreshWithoutTtl = 212,
    /// 300: no answer from the cluster in time. A write may still take effect.
    RaftInternal = 300,
    /// 301: a leader is being elected. A write may still take effect.
    LeaderElection = 301,
    /// 400: the watch was ended by the server.
    WatcherCleared = 400,
    /// 401: the events from the index on are no longer kept.
    EventIndexCleared = 401,
    /// 402: a standby's own trouble. Not in etcd 3.
    StandbyInternal = 402,
    /// 403: the size of the cluster makes no sense. Not in etcd 3.
    InvalidActiveSize = 403,
    /// 404: the delay before a removal makes no sense. Not in etcd 3.
    InvalidRemoveDelay = 404,
    /// 500: a client's own trouble. Not in etcd 3.
    ClientInternal = 500,
}

impl Code {
    /// All codes, in their order.
    pub const ALL: &[Self] = &[
        Self::KeyNotFound,
        Self::CompareFailed,
        Self::NotAFile,
        Self::NoMorePeers,
        Self::NotADirectory,
        Self::KeyExists,
        Self::KeyReserved,
        Self::RootReadOnly,
        Self::DirectoryNotEmpty,
        Self::PeerAddressExists,
        Self::Unauthorized,
        Self::ValueRequired,
        Self::PreviousValueRequired,
        Self::TtlNotANumber,
        Self::IndexNotANumber,
        Self::ValueOrTtlRequired,
        Self::TimeoutNotANumber,
        Self::NameRequired,
        Self::IndexOrValueRequired,
        Self::IndexValueExclusive,
        Self::InvalidField,
        Self::InvalidForm,
        Self::RefreshWithValue,
        Self::RefreshWithoutTtl,
        Self::RaftInternal,
        Self::LeaderElection,
        Self::WatcherCleared,
        Self::EventIndexCleared,
        Self::StandbyInternal,
        Self::InvalidActiveSize,
        Self::InvalidRemoveDelay,
        Self::ClientInternal,
    ];

    /// The code that etcd gave with this error; `None` if it gave none, or one unknown here
    /// ([`Error::code`] has the number).
    pub fn of(error: &Error) -> Option<Self> {
        Self::from_number(error.code()?)
    }

    /// The code with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.number() == number)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// What it means. The server's own message is [`Error::server_message`].
    pub const fn message(self) -> &'static str {
        match self {
            Self::KeyNotFound => "there is nothing at the key",
            Self::CompareFailed => "the value or index is another one",
            Self::NotAFile => "the key is a directory",
            Self::NoMorePeers => "the cluster takes no more peers",
            Self::NotADirectory => "a key above this one is a file",
            Self::KeyExists => "there is something at the key",
            Self::KeyReserved => "the key is reserved",
            Self::RootReadOnly => "the root cannot be written",
            Self::DirectoryNotEmpty => "the directory still has children",
            Self::PeerAddressExists => "the peer's address is taken",
            Self::Unauthorized => "the user may not do this, or is not known",
            Self::ValueRequired => "a value is needed",
            Self::PreviousValueRequired => "the previous value is empty",
            Self::TtlNotANumber => "the time-to-live is no number",
            Self::IndexNotANumber => "the index is no number",
            Self::ValueOrTtlRequired => "a value or a time-to-live is needed",
            Self::TimeoutNotANumber => "the timeout is no number",
            Self::NameRequired => "a name is needed",
            Self::IndexOrValueRequired => "an index or a value is needed",
            Self::IndexValueExclusive => "an index and a value exclude each other",
            Self::InvalidField => "a parameter makes no sense",
            Self::InvalidForm => "the form cannot be read, or is too large",
            Self::RefreshWithValue => "a refresh has a value",
            Self::RefreshWithoutTtl => "a refresh has no time-to-live",
            Self::RaftInternal => "the cluster did not answer in time",
            Self::LeaderElection => "a leader is being elected",
            Self::WatcherCleared => "the watch was ended by the server",
            Self::EventIndexCleared => "the events from the index on are no longer kept",
            Self::StandbyInternal => "a standby has trouble of its own",
            Self::InvalidActiveSize => "the size of the cluster makes no sense",
            Self::InvalidRemoveDelay => "the delay before a removal makes no sense",
            Self::ClientInternal => "a client has trouble of its own",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message(), self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_number_has_one_code_and_an_unknown_one_none() {
        let known: Vec<u16> = (0..1_000)
            .filter(|it| Code::from_number(*it).is_some())
            .collect();
        let expected: Vec<u16> = (100..=110)
            .chain(200..=212)
            .chain([300, 301])
            .chain(400..=404)
            .chain([500])
            .collect();
        assert_eq!(known, expected);
        let mut texts: Vec<_> = Code::ALL.iter().map(|it| it.message()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }

    #[test]
    fn an_error_tells_its_code() {
        let error = Error::new(ErrorKind::HistoryLost, "gone").with_code(401);
        assert_eq!(Code::of(&error), Some(Code::EventIndexCleared));
        assert_eq!(Code::of(&Error::new(ErrorKind::Timeout, "late")), None);
    }
}
