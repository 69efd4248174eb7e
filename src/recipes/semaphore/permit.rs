//! A permit in hand.

use std::fmt;
use std::ops::Deref;

use crate::error::Result;
use crate::recipes::guard::Hold;
use crate::recipes::line::Ticket;

/// A part of a semaphore that is held, until it is released, dropped or lost; see [`Hold`] for what
/// it gives.
///
/// Dropping it gives the permit back in the background; [`release`](Self::release) does so and
/// reports.
#[must_use = "an unused permit is given back at once"]
#[clippy::has_significant_drop]
pub struct Permit {
    hold: Hold,
    weight: u32,
    limit: u32,
}

impl Permit {
    pub(super) fn new(ticket: Ticket, weight: u32) -> Result<Self> {
        let limit = ticket.limit().unwrap_or(weight);
        Ok(Self {
            hold: Hold::new(ticket)?,
            weight,
            limit,
        })
    }

    /// How much of the semaphore it is.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The limit that it was admitted under. What is held at a time is never more than the limit of
    /// the permit with the largest token.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Gives the permit back and reports. The next in line can have it when this returns. 1 write,
    /// 1 round trip.
    ///
    /// While the store does not answer it tries again until the term ends, one TTL at most; with a
    /// timeout around it the rest is left to the background.
    ///
    /// # Errors
    /// As [`LockGuard::release`](crate::LockGuard::release): [`Lost`](crate::ErrorKind::Lost) when
    /// it had been lost before, so that others may have been admitted meanwhile. Otherwise what the
    /// last attempt failed with; the ticket is then taken back in the background, and ends with its
    /// TTL at the latest.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn release(self) -> Result<()> {
        let (key, token) = (self.key().clone(), self.token());
        let released = self.hold.give_back().await;
        tracing::debug!(target: "tenure::semaphore", %key, token, ok = released.is_ok(), "permit released");
        released
    }
}

impl Deref for Permit {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("hold", &self.hold)
            .field("weight", &self.weight)
            .field("limit", &self.limit)
            .finish()
    }
}
