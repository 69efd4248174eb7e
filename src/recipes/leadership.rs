//! What leading gives: a [`Hold`], and a proposal that can be changed.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::error::Result;
use crate::recipes::guard::Hold;
use crate::recipes::line::Ticket;

/// An election that was won, until it is resigned, dropped or lost; see [`Hold`] for what it gives.
/// Its [`token`](Hold::token) is the term: it rises from leader to leader.
///
/// Dropping it resigns in the background; [`resign`](Self::resign) does so and reports.
#[must_use = "an unused leadership resigns at once"]
#[clippy::has_significant_drop]
pub struct Leadership {
    hold: Hold,
}

impl Leadership {
    pub(super) fn new(ticket: Ticket) -> Result<Self> {
        let hold = Hold::new(ticket)?;
        Ok(Self { hold })
    }

    /// What it says to those who ask who leads: what was last proclaimed, or campaigned with. A
    /// [`proclaim`](Self::proclaim) that has not answered does not count.
    pub fn proposal(&self) -> Bytes {
        self.ticket().body()
    }

    /// Says something else from now on, in the same term: observers are told. Cost: 1 write, 1 round
    /// trip; on etcd v2 also a linearizable read when it was renewed since the last one.
    ///
    /// Several at once are carried out one after the other, in the order of their first polls. What
    /// gets no answer is looked for and tried again, for as long as the term lasts, so the outcome
    /// is definite. A request that was given up and arrives late changes nothing: an older proposal
    /// never takes the place of a newer one.
    ///
    /// While that goes on the ticket is not renewed (its other writes renew it); so if the store
    /// stays away, the term ends with it, as it would have anyway.
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost): the term has ended; whether the proposal was seen before
    /// that is not known. Anything else: the proposal is the one of before.
    /// [`InvalidValue`](crate::ErrorKind::InvalidValue): on etcd v2 a proposal is UTF-8.
    ///
    /// # Cancel safety
    /// Dropping the future stops what was not begun; what was begun goes on, and ends as said above.
    pub async fn proclaim(&self, proposal: impl Into<Bytes>) -> Result<()> {
        let proclaimed = self.ticket().rewrite(&proposal.into()).await;
        let (key, token) = (self.key(), self.token());
        tracing::debug!(target: "tenure::election", %key, token, ok = proclaimed.is_ok(), "proclaimed");
        proclaimed.map_err(|error| error.during("proclaim").at(key))
    }

    /// Gives the leadership up and reports. The next candidate can lead when this returns. 1 write,
    /// 1 round trip.
    ///
    /// While the store does not answer it tries again until the term ends, one TTL at most; with a
    /// timeout around it the rest is left to the background.
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost) when it had been lost before: somebody else may have led
    /// meanwhile. Otherwise what the last attempt failed with; the ticket is then taken back in the
    /// background, and ends with its TTL at the latest.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn resign(self) -> Result<()> {
        let (key, token) = (self.key().clone(), self.token());
        let resigned = self.hold.give_back().await;
        tracing::debug!(target: "tenure::election", %key, token, ok = resigned.is_ok(), "resigned");
        resigned
    }
}

impl Deref for Leadership {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leadership").field(&self.hold).finish()
    }
}
