//! Keys, and the small numbers that order what is stored under them.
//!
//! Everything here is parsed once, at the edge: a [`Key`] that exists is a key that every store
//! accepts, a [`Ttl`] that exists is one that can be granted.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// An absolute path in a store: `/`, `/config`, `/_locks/reports/00000000000000000042`.
///
/// Segments are separated by `/`; none is empty, `.` or `..`, none holds a control character, and
/// the whole is at most [`Key::MAX_LEN`] bytes. A segment that starts with `_` is *hidden*:
/// listings and tree watches above it skip it; reading it by its own key works.
///
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The longest key, in bytes of UTF-8.
    ///
    /// etcd's v2 front end resets a fresh connection whose request line exceeds about 4,096
    /// bytes, and escaping can triple a key.
    pub const MAX_LEN: usize = 2048;

    /// Parses a key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`] says which rule the text breaks.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        if text == "/" {
            return Ok(Self::root());
        }
        let Some(path) = text.strip_prefix('/') else {
            return Err(invalid_key(text, "a key begins with `/`"));
        };
        if text.len() > Self::MAX_LEN {
            let reason = format!(
                "a key has at most {} bytes, this one {}",
                Self::MAX_LEN,
                text.len()
            );
            return Err(invalid_key(text, reason));
        }
        path.split('/')
            .try_for_each(check_segment)
            .map_err(|reason| invalid_key(text, reason))?;
        Ok(Self(text.into()))
    }

    /// The key above all others, `/`.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// The key one level below this one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`] when `segment` is empty, holds a `/` or breaks another rule.
    pub fn join(&self, segment: &str) -> Result<Self, Error> {
        if segment.contains('/') {
            return Err(invalid_key(segment, "a segment holds no `/`"));
        }
        if self.is_root() {
            Self::new(format!("/{segment}"))
        } else {
            Self::new(format!("{self}/{segment}"))
        }
    }

    /// This key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// The last segment; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The key one level up; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        match self.0.rfind('/') {
            Some(0) | None => Some(Self::root()),
            Some(at) => self.0.get(..at).map(|text| Self(text.into())),
        }
    }

    /// The segments from the top; none for the root.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }

    /// The part of this key below `ancestor`, without a leading `/`: `b/c` for `/a/b/c` below
    /// `/a`. `None` when this key is not strictly below it; `/ab` is not below `/a`.
    pub fn below<'a>(&'a self, ancestor: &Self) -> Option<&'a str> {
        if ancestor.is_root() {
            return (!self.is_root()).then(|| self.0.trim_start_matches('/'));
        }
        self.0.strip_prefix(&*ancestor.0)?.strip_prefix('/')
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self == other || self.below(other).is_some()
    }

    /// Whether a segment below `ancestor` starts with `_`, so that listings and watches of
    /// `ancestor` skip this key.
    pub fn is_hidden_below(&self, ancestor: &Self) -> bool {
        self.below(ancestor)
            .is_some_and(|rest| rest.split('/').any(|segment| segment.starts_with('_')))
    }
}

fn check_segment(segment: &str) -> Result<(), &'static str> {
    match segment {
        "" => Err("no segment of a key is empty (`//`, or a `/` at the end)"),
        "." | ".." => Err("no segment of a key is `.` or `..`"),
        _ if segment.chars().any(char::is_control) => Err("a key holds no control characters"),
        _ => Ok(()),
    }
}

fn invalid_key(text: &str, reason: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidKey,
        format!("{:?}: {reason}", shorten(text)),
    )
}

/// At most the first 64 characters, so that an error about a long text stays readable.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What a user calls a lock, an election or a queue: any text of 1 to [`Name::MAX_LEN`] bytes
/// without control characters.
///
/// A name becomes exactly one segment of a key (`/` and `%` are escaped), so the lock `a` and the
/// lock `a/b` never touch each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    text: Arc<str>,
    segment: Arc<str>,
}

impl Name {
    /// The longest name, in bytes of UTF-8.
    pub const MAX_LEN: usize = 512;

    /// Parses a name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] says which rule the text breaks.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        let invalid = |reason: String| {
            Err(Error::new(
                ErrorKind::InvalidName,
                format!("{:?}: {reason}", shorten(text)),
            ))
        };
        if text.is_empty() {
            return invalid("a name is not empty".into());
        }
        if text.len() > Self::MAX_LEN {
            return invalid(format!(
                "a name has at most {} bytes, this one {}",
                Self::MAX_LEN,
                text.len()
            ));
        }
        if text.chars().any(char::is_control) {
            return invalid("a name holds no control characters".into());
        }
        let segment = match text {
            "." => "%2E".to_owned(),
            ".." => "%2E%2E".to_owned(),
            _ => text.replace('%', "%25").replace('/', "%2F"),
        };
        Ok(Self {
            text: text.into(),
            segment: segment.into(),
        })
    }

    /// The name as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The one segment that stands for this name in a key.
    pub fn segment(&self) -> &str {
        &self.segment
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A point in a store's history. Every mutation has its own; later is larger; never zero.
///
/// etcd v2: `modifiedIndex` and `X-Etcd-Index`. Embedded: the same. Indexes of different stores
/// cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(NonZeroU64);

impl Index {
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

/// The mark by which one append is recognised for ever: who sent it, and which of theirs it was.
///
/// It is chosen before the request leaves, so that a lost reply, a late commit or a dropped
/// future can be cleaned up by comparison. Written as 32 hexadecimal digits, of which the first
/// 16 name the session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The session (and lease) that sent the append.
    session: u64,
    /// Unique among the appends of that session.
    nonce: u64,
}

impl Tag {
    /// The length of a tag's text.
    pub const TEXT_LEN: usize = 32;

    /// The tag of one append of `lease`'s session.
    pub const fn new(lease: LeaseId, nonce: u64) -> Self {
        Self {
            session: lease.get(),
            nonce,
        }
    }

    /// The session's number.
    pub const fn session(self) -> u64 {
        self.session
    }

    /// The number that tells the appends of one session apart.
    pub const fn nonce(self) -> u64 {
        self.nonce
    }

    /// Parses the 32 hexadecimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::TEXT_LEN || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let (session, nonce) = text.split_at(16);
        Some(Self {
            session: u64::from_str_radix(session, 16).ok()?,
            nonce: u64::from_str_radix(nonce, 16).ok()?,
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.session, self.nonce)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a lease, chosen by the client so that a grant can be repeated: 1 to 2⁶³ − 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(NonZeroU64);

impl LeaseId {
    /// The lease with this number, if it is in range.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(id) if number <= i64::MAX as u64 => Some(Self(id)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A time-to-live: 1 second to 24 hours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(Duration);

impl Ttl {
    /// The shortest, 1 s.
    pub const MIN: Self = Self(Duration::from_secs(1));
    /// The longest, 24 h.
    pub const MAX: Self = Self(Duration::from_secs(24 * 60 * 60));
    /// Below this a session warns: electing a new etcd leader alone can take up to 3 s.
    pub(crate) const MIN_ADVISED: Self = Self(Duration::from_secs(5));
    /// What recipes use unless told otherwise, 10 s.
    pub const DEFAULT: Self = Self(Duration::from_secs(10));

    /// Checks a duration.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTtl`] when it is shorter than [`Ttl::MIN`] or longer than [`Ttl::MAX`].
    pub fn new(duration: Duration) -> Result<Self, Error> {
        if duration < Self::MIN.0 || duration > Self::MAX.0 {
            let text = format!("{duration:?}: a time-to-live is between 1 s and 24 h");
            return Err(Error::new(ErrorKind::InvalidTtl, text));
        }
        Ok(Self(duration))
    }

    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// The whole seconds that hold it, rounded up: what etcd is asked for.
    pub const fn whole_secs(self) -> u64 {
        self.0.as_secs() + if self.0.subsec_nanos() > 0 { 1 } else { 0 }
    }

    /// This TTL rounded up to whole seconds.
    #[must_use]
    pub const fn round_up(self) -> Self {
        Self(Duration::from_secs(self.whole_secs()))
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Debug for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn a_key_is_refused_for_a_stated_reason() {
        for (text, reason) in [
            ("", "begins with"),
            ("a", "begins with"),
            ("/a//b", "empty"),
            ("/a/", "empty"),
            ("/a/../b", "`..`"),
            ("/.", "`.`"),
            ("/a\nb", "control"),
            ("/a\u{0}b", "control"),
            (&format!("/{}", "x".repeat(Key::MAX_LEN)), "at most"),
        ] {
            let error = Key::new(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey);
            assert!(error.to_string().contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn odd_but_good_keys_are_kept_as_they_are() {
        for text in ["/", "/a?b#c%41", "/...", "/ä ö/+&=;:@", "/日本/x"] {
            assert_eq!(key(text).as_str(), text);
        }
    }

    #[test]
    fn a_key_knows_its_place() {
        assert_eq!(key("/a/b").parent(), Some(key("/a")));
        assert_eq!(key("/a").parent(), Some(Key::root()));
        assert_eq!(Key::root().parent(), None);
        assert_eq!(key("/a/b/c").below(&key("/a")), Some("b/c"));
        assert_eq!(key("/ab").below(&key("/a")), None);
        assert_eq!(key("/a").below(&key("/a")), None);
        assert_eq!(key("/a").below(&Key::root()), Some("a"));
        assert!(key("/a/_x/b").is_hidden_below(&key("/a")));
        assert!(!key("/_a/b").is_hidden_below(&key("/_a")));
        assert_eq!(Key::root().join("a").unwrap(), key("/a"));
        assert!(key("/a").join("b/c").is_err());
    }

    #[test]
    fn a_name_is_always_one_segment_and_no_two_names_share_one() {
        let names = [
            "a", "a/b", "a%2Fb", "a%252Fb", ".", "..", "%2E", "%", "/", "_x", "ü/日",
        ];
        let mut segments = std::collections::BTreeSet::new();
        for text in names {
            let name = Name::new(text).unwrap();
            assert!(Key::root().join(name.segment()).is_ok(), "{text}");
            assert!(
                segments.insert(name.segment().to_owned()),
                "{text} shares its segment"
            );
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for text in ["", "a\nb", "\u{7f}", &"x".repeat(5 * 1024)] {
            assert_eq!(
                Name::new(text).unwrap_err().kind(),
                ErrorKind::InvalidName,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_tag_round_trips_and_begins_with_its_session() {
        let tag = Tag::new(LeaseId::new(0xabc).unwrap(), 7);
        assert_eq!(tag.to_string(), "0000000000000abc0000000000000007");
        assert_eq!(Tag::parse(&tag.to_string()), Some(tag));
        for text in [
            "",
            "xyz",
            "0000000000000abc000000000000000g",
            "+000000000000abc0000000000000007",
        ] {
            assert_eq!(Tag::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_ttl_is_between_a_second_and_a_day() {
        for bad in [
            Duration::ZERO,
            Duration::from_millis(1),
            Duration::from_secs(10 * 365 * 86_400),
        ] {
            assert_eq!(Ttl::new(bad).unwrap_err().kind(), ErrorKind::InvalidTtl);
        }
        assert_eq!(
            Ttl::new(Duration::from_millis(1500)).unwrap().whole_secs(),
            2
        );
    }

    #[test]
    fn lease_ids_stay_positive_in_63_bits() {
        assert!(LeaseId::new(0).is_none());
        assert!(LeaseId::new(u64::MAX).is_none());
        assert_eq!(LeaseId::new(255).unwrap().to_string(), "ff");
    }
}
