//! Several places at once, each in a line of its own, where the store can do it in one step.
//!
//! **Given up** by one commit that deletes each ticket if it is still the one that was created then.
//! So it is repeated or comes late without harm, and what it does not do each ticket does by itself.

use super::ticket::{State, Ticket};
use crate::error::Result;
use crate::store::{Commit, Committed, Condition, Delete, Withdrawn};

/// How many places are given up in one step.
const MOST: usize = 64;

impl Ticket {
    /// Gives several places up, in this order, and reports of each. 1 write, 1 round trip for 64
    /// where the store has commits, else for each.
    ///
    /// # Errors
    /// As [`release`](Self::release), for each.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the janitor.
    pub(crate) async fn release_all(mut tickets: Vec<Self>) -> Vec<Result<()>> {
        let mut outcomes = Vec::with_capacity(tickets.len());
        while !tickets.is_empty() {
            let later = tickets.split_off(tickets.len().min(MOST));
            let mut volley = std::mem::replace(&mut tickets, later);
            let held: Vec<_> = volley.iter().map(Self::check).collect();
            let still_held = volley.iter_mut().zip(&held).filter(|(_, it)| it.is_ok());
            let together = leave_together(still_held.map(|(ticket, _)| ticket).collect()).await;
            for (ticket, held) in volley.into_iter().zip(held) {
                outcomes.push(match (held, &together) {
                    (Err(lost), _) => Err(lost),
                    (Ok(()), _) if matches!(ticket.state, State::Disarmed) => Ok(()),
                    // It was held when that was sent.
                    (Ok(()), Err(error)) if ticket.check().is_err() => Err(error.clone()),
                    (Ok(()), _) => ticket.release().await,
                });
            }
        }
        outcomes
    }

    /// Whether it is not lost, by the clock now.
    fn check(&self) -> Result<()> {
        self.term()?.check()
    }
}

/// Takes all of them back in one step, or none. Afterwards those are disarmed of which nothing is
/// left.
async fn leave_together(tickets: Vec<&mut Ticket>) -> Result<()> {
    let Some(core) = tickets.first().map(|it| it.core.clone()) else {
        return Ok(());
    };
    if tickets.len() < 2 || !core.store.about().commits {
        return Ok(());
    }
    let mut commit = Commit::new();
    for ticket in &tickets {
        let node = ticket.node()?;
        let same = Condition::Created(node.created);
        commit = commit.delete(Delete::new(node.key.clone()).when(same));
        ticket.step_back();
    }
    match core.store.commit(commit).await {
        Ok(Committed { index, .. }) => {
            let gone = Withdrawn::new(index, true, true);
            tickets.into_iter().for_each(|ticket| ticket.released(gone));
            Ok(())
        }
        Err(error) => {
            tracing::debug!(target: "tenure::line", %error, "not released together");
            // It may come late: what has the name then must not be a later ticket of ours.
            tickets.into_iter().for_each(|it| it.thrifty = false);
            Err(error)
        }
    }
}
