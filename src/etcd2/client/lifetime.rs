//! How long what is written lives.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// How long what is written lives.
///
/// etcd itself makes a key permanent with every write that names no time-to-live, also one that
/// had one: a service registration that is updated once by a careless writer never expires again.
/// Here that loss has to be asked for.
///
/// | lifetime | requests | what is done |
/// |---|---|---|
/// | `Keep`, the default | 2, of which 1 proposal is a read | the key is read with `quorum`, then written on the condition that nobody changed it since, with what is left of its time-to-live; when somebody did, that is done again until the deadline |
/// | `Ttl`, `Permanent` | 1 | the write alone |
///
/// A write that cannot meet an older key needs no look: with `prev_exist(false)` and with `append`
/// `Keep` costs one request and makes a permanent key.
///
/// # What to know about `Keep`
/// * etcd counts in whole seconds and rounds up what is left: each write may put the end off by up
///   to a second. A key written more than once a second this way does not expire meanwhile.
/// * The write is a compare-and-swap: the response's action is `CompareAndSwap` or `Create`, and
///   the index of creation stays.
/// * The user must be allowed to read the key, too.
/// * A key whose time has run out is gone, though etcd has not swept it yet. A write on a condition
///   says `NotFound`; one without waits for the sweep, which comes within half a second, and
///   creates the key anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lifetime {
    /// As long as what is there now; for ever if there is nothing.
    #[default]
    Keep,
    /// This long from now on, in whole seconds rounded up: 1 s to [`Lifetime::LONGEST`].
    Ttl(Duration),
    /// For ever.
    Permanent,
}

impl Lifetime {
    /// The longest time-to-live: a hundred years. etcd takes more, and beyond 292 years silently
    /// makes a permanent key of it, or one that has expired.
    pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    /// The whole seconds of a time-to-live.
    pub(super) fn seconds(ttl: Duration) -> Result<u64> {
        if ttl < Duration::from_secs(1) || ttl > Self::LONGEST {
            let text = format!("a time-to-live is 1 s to 100 years, this is {ttl:?}");
            return Err(Error::new(ErrorKind::InvalidTtl, text));
        }
        Ok(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0))
    }
}
