//! What a consumer is to be, and what that makes of the end of a claim.

use std::time::Duration;

use super::claim::Claimed;
use super::delivery::Ending;
use super::paths::Paths;
use super::register::{self, Register};
use crate::client::Keep;
use crate::key::Ttl;

/// What a consumer is to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) paths: Paths,
    pub(super) keep: Keep,
    pub(super) slots: usize,
    pub(super) max_run: Duration,
    pub(super) max_attempts: u32,
    pub(super) dedupe: Ttl,
}

impl Plan {
    /// What the register says after a claim has ended so.
    pub(super) fn state_after(
        &self,
        claimed: &Claimed,
        ending: Ending,
        wall: Duration,
    ) -> Register {
        let attempts = claimed.attempts;
        match ending {
            Ending::Ack => Register::Done {
                attempts,
                claim: claimed.nonce,
            },
            Ending::Again(_, reason) if attempts >= self.max_attempts => {
                let reason = match reason.is_empty() {
                    true => format!("given up after {attempts} deliveries"),
                    false => format!("given up after {attempts} deliveries: {reason}"),
                };
                Register::dead(attempts, reason)
            }
            Ending::Again(delay, _) => Register::Ready {
                attempts,
                // None at all is not a matter of clocks.
                not_before: match delay.is_zero() {
                    true => Duration::ZERO,
                    false => register::not_before(wall, delay),
                },
            },
            Ending::Uncounted => Register::Ready {
                attempts: attempts - 1,
                not_before: Duration::ZERO,
            },
            Ending::Reject(reason) => Register::dead(attempts, reason),
        }
    }
}
