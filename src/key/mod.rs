//! Keys, and the small numbers that order what is stored under them.
//!
//! Everything here is parsed once, at the edge: a [`Key`] that exists is a key that every store
//! accepts, a [`Ttl`] that exists is one that can be granted.

mod lease;
mod order;

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use lease::{LeaseId, Tag, Ttl};
pub use order::{Index, Position, Sequence};

use crate::error::{Error, ErrorKind};

/// An absolute path in a store: `/`, `/config`, `/_locks/reports/00000000000000000042`.
///
/// Segments are separated by `/`; none is empty, `.` or `..`, none holds a control character, and
/// the whole is at most [`Key::MAX_LEN`] bytes. A segment that starts with `_` is *hidden*:
/// listings and tree watches above it skip it; reading it by its own key works.
///
/// Other programs name keys on etcd v3 as they like, `my/app/lock` for one. The keys of their lines
/// ([`Client::raw_lock`](crate::Client::raw_lock)) are the only ones that break these rules.
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
        check_length(text)?;
        path.split('/')
            .try_for_each(check_segment)
            .map_err(|reason| invalid_key(text, reason))?;
        Ok(Self(text.into()))
    }

    /// The key of another program, exactly as that wrote it: `my/app/lock` without a `/` in front,
    /// `/my-lock/` with one behind. Text that keeps the rules of keys is the same key as
    /// [`Key::new`] makes of it.
    ///
    /// Only for stores that have such keys ([`About::verbatim`](crate::store::About::verbatim)).
    /// There they are reached by their own text alone: what is read or watched under a key that
    /// keeps the rules holds only keys that keep them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`] when the text is empty, longer than [`Key::MAX_LEN`] bytes or holds
    /// a control character.
    pub(crate) fn verbatim(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(invalid_key(text, "a key is not empty"));
        }
        check_length(text)?;
        if text.chars().any(char::is_control) {
            return Err(invalid_key(text, NO_CONTROL));
        }
        Ok(Self(text.into()))
    }

    /// Whether this key keeps the rules. The line of another program, and what lies in it, need
    /// not: see [`About::verbatim`](crate::store::About::verbatim).
    pub fn is_plain(&self) -> bool {
        self.is_root()
            || (self.0.strip_prefix('/'))
                .is_some_and(|path| path.split('/').all(|it| check_segment(it).is_ok()))
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
        check_segment(segment).map_err(|reason| invalid_key(segment, reason))?;
        let text = if self.is_root() {
            format!("/{segment}")
        } else {
            format!("{self}/{segment}")
        };
        check_length(&text)?;
        Ok(Self(text.into()))
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

    /// The key one level up; `None` for the root, and for a verbatim key without `/`.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        match self.0.rfind('/')? {
            0 => Some(Self::root()),
            at => self.0.get(..at).map(|text| Self(text.into())),
        }
    }

    /// The segments from the top; none for the root.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }

    /// The part of this key below `ancestor`, without a leading `/`: `b/c` for `/a/b/c` below
    /// `/a`. `None` when this key is not strictly below it; `/ab` is not below `/a`.
    pub fn below<'a>(&'a self, ancestor: &Self) -> Option<&'a str> {
        below(&self.0, &ancestor.0)
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self == other || self.below(other).is_some()
    }

    /// Whether a segment below `ancestor` starts with `_`, so that listings and watches of
    /// `ancestor` skip this key.
    pub fn is_hidden_below(&self, ancestor: &Self) -> bool {
        self.below(ancestor).is_some_and(is_hidden)
    }
}

/// The part of the path `text` strictly below `ancestor`; both may break the rules of keys.
pub(crate) fn below<'a>(text: &'a str, ancestor: &str) -> Option<&'a str> {
    if ancestor == "/" {
        return text.strip_prefix('/').filter(|rest| !rest.is_empty());
    }
    text.strip_prefix(ancestor)?.strip_prefix('/')
}

/// Whether a segment of what lies below something is hidden there.
pub(crate) fn is_hidden(below: &str) -> bool {
    below.split('/').any(|segment| segment.starts_with('_'))
}

const NO_CONTROL: &str = "a key holds no control characters";

fn check_length(text: &str) -> Result<(), Error> {
    if text.len() <= Key::MAX_LEN {
        return Ok(());
    }
    let (most, len) = (Key::MAX_LEN, text.len());
    let reason = format!("a key has at most {most} bytes, this one {len}");
    Err(invalid_key(text, reason))
}

fn check_segment(segment: &str) -> Result<(), &'static str> {
    match segment {
        "" => Err("no segment of a key is empty (`//`, or a `/` at the end)"),
        "." | ".." => Err("no segment of a key is `.` or `..`"),
        _ if segment.chars().any(char::is_control) => Err(NO_CONTROL),
        _ => Ok(()),
    }
}

fn invalid_key(text: impl AsRef<str>, reason: impl fmt::Display) -> Error {
    let text = shorten(text.as_ref());
    Error::new(ErrorKind::InvalidKey, format!("{text:?}: {reason}"))
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

/// The same order and equality as its text: a map of keys can be asked by text.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
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
    fn a_key_of_another_program_is_kept_as_it_is() {
        let verbatim = |text: &str| Key::verbatim(text).unwrap();
        for (dir, ticket) in [
            ("my/app/lock", "my/app/lock/7f-1"),
            ("/my-lock/", "/my-lock//7f-1"),
            ("/a/../b", "/a/../b/7f-1"),
            ("/a//b", "/a//b/7f-1"),
            ("lock", "lock/7f-1"),
        ] {
            let dir = verbatim(dir);
            assert!(!dir.is_plain(), "{dir}");
            let key = dir.join("7f-1").unwrap();
            assert_eq!(key.as_str(), ticket);
            assert!(!key.is_plain(), "{key}");
            assert_eq!(key.below(&dir), Some("7f-1"));
            assert_eq!((key.parent(), key.name()), (Some(dir), "7f-1"));
        }
        assert_eq!(verbatim("/a/b"), key("/a/b"));
        assert!(key("/").is_plain() && key("/a").is_plain());
        assert_eq!(verbatim("my/lock").below(&Key::root()), None);
        let parents = std::iter::successors(verbatim("my/app/lock").parent(), Key::parent);
        let parents: Vec<_> = parents.map(|it| it.to_string()).collect();
        assert_eq!(parents, ["my/app", "my"]);
        for text in ["", "a\nb", &"x".repeat(Key::MAX_LEN + 1)] {
            let error = Key::verbatim(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{text:?}");
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
}
