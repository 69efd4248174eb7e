//! The state register of one job: the only thing that ever changes about it.
//!
//! ```text
//!            claim                  ack
//!  (absent) ───────▶ claimed n ───────────▶ done (ends by itself: the dedupe window)
//!     ▲   ready n ◀──────┤ nack, put back      ▲
//!     │      ▲           │ n is the last       │ purge
//!     │      │ requeue   ▼                     │
//!     │      └───────── dead n ────────────────┘
//!     └── the register of a job that is gone is removed
//! ```
//!
//! Every arrow is one compare-and-swap on the register's value and index, so of two who draw one,
//! one fails, and a request that arrives late finds another index.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::key::Tag;

/// What is written in a register. A job without one is ready and has never been claimed.
///
/// As text, for people with etcdctl: `ready 0 1795000000000`, `claimed 1 <consumer> <claim>`,
/// `done 1 <claim>`, `dead 5 the reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// To be delivered, after so many deliveries.
    Ready {
        /// Deliveries so far.
        attempts: u32,
        /// Not before this wall-clock time, since 1970.
        not_before: Duration,
    },
    /// Being delivered, for as long as the consumer's node is there.
    Claimed {
        /// Which delivery this is, from 1.
        attempts: u32,
        /// The tag of the consumer's node.
        consumer: Tag,
        /// Tells this claim from every other.
        claim: u64,
    },
    /// Acknowledged.
    Done {
        /// Deliveries it took.
        attempts: u32,
        /// The claim that was acknowledged; 0 for a job that was purged.
        claim: u64,
    },
    /// Given up.
    Dead {
        /// Deliveries so far.
        attempts: u32,
        /// Why, in words.
        reason: String,
    },
}

/// The longest reason that is kept of a job that was given up, in bytes: everybody who lists the
/// queue reads it, and one that the store refuses would keep the job from being given up.
const REASON: usize = 4_096;

impl Register {
    /// One that says so much of the reason as is kept.
    pub(crate) fn dead(attempts: u32, mut reason: String) -> Self {
        if reason.len() > REASON {
            let end = (0..=REASON).rev().find(|at| reason.is_char_boundary(*at));
            reason.truncate(end.unwrap_or(0));
            reason.push('…');
        }
        Self::Dead { attempts, reason }
    }

    /// Deliveries so far, the one under way included.
    pub(crate) fn attempts(&self) -> u32 {
        match self {
            Self::Ready { attempts, .. }
            | Self::Claimed { attempts, .. }
            | Self::Done { attempts, .. }
            | Self::Dead { attempts, .. } => *attempts,
        }
    }

    /// The value that it is stored with.
    pub(crate) fn value(&self) -> Bytes {
        self.to_string().into()
    }

    /// Reads a stored value; `None` for what is no register.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (word, rest) = text.split_once(' ')?;
        let (attempts, rest) = match rest.split_once(' ') {
            Some((attempts, rest)) => (attempts, rest),
            None => (rest, ""),
        };
        let attempts = attempts.parse().ok()?;
        Some(match word {
            "ready" => Self::Ready {
                attempts,
                not_before: Duration::from_millis(rest.parse().ok()?),
            },
            "claimed" => {
                let (consumer, claim) = rest.split_once(' ')?;
                Self::Claimed {
                    attempts,
                    consumer: Tag::parse(consumer)?,
                    claim: u64::from_str_radix(claim, 16).ok()?,
                }
            }
            "done" => Self::Done {
                attempts,
                claim: u64::from_str_radix(rest, 16).ok()?,
            },
            "dead" => Self::Dead {
                attempts,
                reason: rest.to_owned(),
            },
            _ => return None,
        })
    }
}

/// The time in a register that is `delay` after `now`: whole milliseconds, rounded up so that nothing
/// is early; a delay without end is the largest number.
pub(crate) fn not_before(now: Duration, delay: Duration) -> Duration {
    let time = now.saturating_add(delay);
    let part = u32::from(!time.subsec_nanos().is_multiple_of(1_000_000));
    let whole = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(whole.saturating_add(part.into()))
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready {
                attempts,
                not_before,
            } => write!(f, "ready {attempts} {}", not_before.as_millis()),
            Self::Claimed {
                attempts,
                consumer,
                claim,
            } => write!(f, "claimed {attempts} {consumer} {claim:016x}"),
            Self::Done { attempts, claim } => write!(f, "done {attempts} {claim:016x}"),
            Self::Dead { attempts, reason } => write!(f, "dead {attempts} {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::LeaseId;

    #[test]
    fn a_register_round_trips() {
        let consumer = Tag::new(LeaseId::new(9).unwrap(), 4);
        for register in [
            Register::Ready {
                attempts: 0,
                not_before: Duration::from_millis(1_795_000_000_123),
            },
            Register::Claimed {
                attempts: 3,
                consumer,
                claim: u64::MAX,
            },
            Register::Done {
                attempts: 1,
                claim: 0,
            },
            Register::Dead {
                attempts: 5,
                reason: "it does not parse: \"x y\"".to_owned(),
            },
            Register::Dead {
                attempts: 5,
                reason: String::new(),
            },
        ] {
            assert_eq!(Register::parse(&register.value()), Some(register));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        for text in ["é", "xé", "xxé", "€", "x€"] {
            let Register::Dead { reason, .. } = Register::dead(1, text.repeat(REASON)) else {
                panic!("dead");
            };
            assert!(reason.len() <= REASON + '…'.len_utf8(), "{}", reason.len());
            assert!(reason.starts_with(text) && reason.ends_with('…'));
        }
        let short = Register::dead(1, "why".to_owned());
        assert_eq!(short.to_string(), "dead 1 why");
    }

    #[test]
    fn a_time_is_whole_milliseconds_and_never_early() {
        let (ms, ns) = (Duration::from_millis, Duration::from_nanos);
        assert_eq!(not_before(ms(5), ms(2)), ms(7));
        assert_eq!(not_before(ms(5), ns(1)), ms(6));
        for endless in [Duration::MAX, Duration::from_secs(u64::MAX)] {
            let register = Register::Ready {
                attempts: 1,
                not_before: not_before(ms(5), endless),
            };
            assert_eq!(Register::parse(&register.value()), Some(register));
        }
    }

    #[test]
    fn what_is_no_register_is_none() {
        for text in [
            "",
            "ready",
            "ready x 0",
            "ready 0",
            "claimed 1 x y",
            "done",
            "lost 1 2",
            "ready 1 2 3",
            "claimed -1 a b",
        ] {
            assert_eq!(Register::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Register::parse(b"\xff"), None);
    }
}
