//! What is held for a term: the lease's name, the marks of its appends, and how long a term is.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::error::{Error, ErrorKind};

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

    /// The tag of what carries none: a [raw](crate::store::Naming::Raw) append. No session has it.
    pub const NONE: Self = Self {
        session: u64::MAX,
        nonce: u64::MAX,
    };

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

    /// When it was made, since 1970, by the wall clock of whoever made it: for people to read.
    /// `None` when it does not look like a time, as with tags that other programs make.
    ///
    /// The upper 48 bits of the nonce count milliseconds, the rest is random.
    pub const fn made(self) -> Option<Duration> {
        let millis = self.nonce >> Self::TIME_SHIFT;
        // 2001 to 2527. The second half of a random UUID begins with 8 to b: later than that.
        if millis < 1_000_000_000_000 || millis >= 1 << 44 {
            return None;
        }
        Some(Duration::from_millis(millis))
    }

    /// A nonce that says when it was made and is larger than `last`.
    pub(crate) fn next_nonce(last: u64, wall: Duration, random: u64) -> u64 {
        let millis = u64::try_from(wall.as_millis()).unwrap_or(0);
        let low = random >> (64 - Self::TIME_SHIFT);
        ((millis << Self::TIME_SHIFT) | low).max(last.saturating_add(1))
    }

    const TIME_SHIFT: u32 = 16;

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

impl From<Ttl> for Duration {
    fn from(ttl: Ttl) -> Self {
        ttl.get()
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

    #[test]
    fn a_nonce_says_when_it_was_made_and_rises_even_when_the_wall_clock_falls() {
        let noon = Duration::from_millis(1_795_000_000_123);
        let lease = LeaseId::new(7).unwrap();
        let first = Tag::next_nonce(0, noon, u64::MAX);
        assert_eq!(Tag::new(lease, first).made(), Some(noon));
        let second = Tag::next_nonce(first, noon - Duration::from_secs(9), 3);
        assert_eq!(second, first + 1);
        // A random UUID's second half.
        assert_eq!(Tag::new(lease, 0x8f3c_0000_1234_5678).made(), None);
        assert_eq!(Tag::new(lease, 12).made(), None);
        assert_eq!(Tag::NONE.made(), None);
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
