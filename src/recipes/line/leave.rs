//! How a place in a line is given up: by a release that reports, or by dropping the ticket, which
//! leaves it to the janitor. Both compare with the ticket's own tag, so what is repeated or comes late
//! harms nobody.

use std::sync::Arc;
use std::time::Duration;

use super::ticket::{State, Ticket};
use crate::error::Result;
use crate::session::Chore;
use crate::store::{Naming, Withdraw, Withdrawn};

impl Ticket {
    /// Gives the place up and reports.
    ///
    /// # Errors
    /// `Lost` when it had been lost before; otherwise what the last attempt failed with. Attempts
    /// go on until the term is over; what is left then is the janitor's.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the janitor.
    pub(crate) async fn release(mut self) -> Result<()> {
        let term = self.term()?.clone();
        term.check()?;
        self.step_back();
        let mut pause = Duration::from_millis(10);
        loop {
            // It compares with our own tag, so a repeated or a late one harms nobody.
            let error = match self.core.store.withdraw(self.withdrawal()).await {
                Ok(withdrawn) => {
                    self.released(withdrawn);
                    return Ok(());
                }
                Err(error) => error,
            };
            // That attempt may still be under way.
            self.waste_tag();
            let may_pass = error.is_transient() || error.is_ambiguous();
            if !may_pass || term.check().is_err() {
                return Err(error);
            }
            tracing::debug!(target: "tenure::line", dir = %self.line.dir(), %error, "release failed");
            self.core
                .runtime
                .clock
                .sleep(self.core.runtime.entropy.jitter(pause))
                .await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn withdrawal(&self) -> Withdraw {
        let dir = self.line.dir().clone();
        let withdraw = Withdraw::new(dir, self.tag, Naming::Ticket).lease(self.session.lease());
        match &self.state {
            // A value that it had before, or will have, costs another look: it is found by its tag.
            State::InLine(seat) => withdraw.node(seat.node()),
            State::Armed | State::Disarmed => withdraw,
        }
    }

    /// From now on its deletion is our own doing: nobody keeps it alive, nobody calls it a loss.
    pub(super) fn step_back(&self) {
        if let State::InLine(seat) = &self.state {
            self.session.detach(&seat.term);
            if seat.joined {
                self.line.leaving(seat.position.clone());
            }
        }
    }

    /// Nothing is left of it in the store.
    pub(super) fn released(&mut self, withdrawn: Withdrawn) {
        self.core.saw(withdrawn.index);
        let spare = self.is_spare() && withdrawn.removed;
        if let State::InLine(seat) = std::mem::replace(&mut self.state, State::Disarmed)
            && seat.joined
        {
            self.line.left(seat.position, withdrawn);
        }
        // After the line knows that the last one of this name is gone.
        if spare {
            self.session.spare(self.line.dir(), self.tag);
        }
    }
}

impl Ticket {
    /// What takes it back, if anything can be left of it; disarms it.
    pub(super) fn chore(&mut self) -> Option<Chore> {
        let withdraw = self.withdrawal();
        self.step_back();
        let joined = match std::mem::replace(&mut self.state, State::Disarmed) {
            State::Disarmed => return None,
            State::Armed => None,
            State::InLine(seat) => seat.joined.then_some(seat.position),
        };
        let (line, core) = (self.line.clone(), Arc::downgrade(&self.core));
        let done = Box::new(move |withdrawn: Withdrawn| {
            if let Some(core) = core.upgrade() {
                core.saw(withdrawn.index);
            }
            if let Some(position) = joined {
                line.left(position, withdrawn);
            }
        });
        Some(Chore {
            withdraw,
            ttl: self.session.ttl().get(),
            fate: self.session.fate(),
            done,
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(chore) = self.chore() {
            self.core.janitor.hand_over(chore);
        }
    }
}
