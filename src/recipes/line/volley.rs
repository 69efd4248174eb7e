//! Several places at once, each in a line of its own, where the store can do it in one step.
//!
//! **Taken** only where nobody stands: one commit appends a ticket to each line if all of them are
//! empty and no tag is withdrawn. So all tickets are first in their lines or there are none, and nobody
//! waits in two lines. Dropped before the answer, each ticket is taken back as any other: the first
//! cancel mark that lands stops a commit that comes late, as a whole.
//!
//! **Given up** by one commit that deletes each ticket if it is still the one that was created then.
//! So it is repeated or comes late without harm, and what it does not do each ticket does by itself.
//! Dropped, they are handed to the janitor with the same commit.

use std::sync::Arc;

use super::Rule;
use super::ticket::{APPENDS, State, Ticket};
use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::store::{
    Append, Commit, Committed, Condition, Delete, Expiry, Layout, Node, Store, View, Withdrawn,
};

/// How many places are taken or given up in one step: what etcd takes in one transaction.
pub(crate) const MOST: usize = 64;

/// What came of taking several places at once.
pub(crate) enum Volley {
    /// All are held.
    Held(Vec<Ticket>),
    /// None was taken: there is something in this line, the first of those where it is so.
    Busy(usize),
    /// Each has to be taken by itself: this store cannot take them together, or nobody knows what
    /// came of it, and what it made is being taken back.
    Untold,
}

impl Ticket {
    /// Takes the first place in each of these lines, if nobody stands in any of them. 1 write, 1 round
    /// trip.
    ///
    /// # Errors
    /// What the lease is refused with. Any other refusal is [`Volley::Untold`]: the one whose fault it
    /// is finds out by itself.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing: the janitor takes back what was sent.
    pub(crate) async fn take_all(core: &Arc<Core>, dirs: &[Key], keep: &Keep) -> Result<Volley> {
        let about = core.store.about();
        if !(about.commits && about.cancels) {
            return Ok(Volley::Untold);
        }
        let line = |dir| core.lines.line(dir, keep.ttl(), Rule::Exclusive);
        let lines: Vec<_> = dirs.iter().map(line).collect();
        for _ in 0..APPENDS {
            let session = core.session(keep)?;
            match session.ready().await {
                Ok(()) => {}
                // It ended just now, and nothing was sent with it.
                Err(error) if error.kind() == ErrorKind::Lost => continue,
                Err(error) => {
                    let error = error.during("append");
                    return Err(dirs.iter().take(1).fold(error, Error::at));
                }
            }
            let arm = |line| Self::armed(core, line, session.clone());
            let mut tickets: Vec<_> = lines.iter().map(arm).collect();
            let sent = core.runtime.clock.now();
            let error = match core.store.commit(into_empty_lines(&tickets)).await {
                Ok(Committed { nodes, .. }) => {
                    let mut nodes = nodes.into_iter().flatten();
                    for ticket in &mut tickets {
                        let node = nodes.next().ok_or_else(not_whole)?;
                        ticket.answered = true;
                        let alone = View::new(node.created, vec![node.clone()]);
                        ticket.enter(&node, sent, Some(alone))?;
                    }
                    tickets.iter_mut().try_for_each(|ticket| ticket.hold(1))?;
                    return Ok(Volley::Held(tickets));
                }
                Err(error) => error,
            };
            tracing::debug!(target: "tenure::line", %error, "not taken together");
            if !error.changed_nothing() {
                return Ok(Volley::Untold);
            }
            tickets.iter_mut().for_each(|it| it.state = State::Disarmed);
            if let Some(index) = error.index() {
                core.saw(index);
            }
            let busy = dirs.iter().position(|dir| error.key() == Some(dir));
            match (error.kind(), busy) {
                (ErrorKind::ConditionFailed, Some(place)) => {
                    tickets.iter().for_each(Self::was_not_used);
                    return Ok(Volley::Busy(place));
                }
                // The lease is gone; the next session has one of its own.
                (ErrorKind::NotFound, _) => session.lose(),
                _ => return Ok(Volley::Untold),
            }
        }
        Ok(Volley::Untold)
    }

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
                    (Ok(()), Err(error)) => match ticket.check() {
                        // It was held when that was sent.
                        Err(lost) => Err(why_not_given_up(error, lost)),
                        Ok(()) => ticket.release().await,
                    },
                    (Ok(()), Ok(())) => ticket.release().await,
                });
            }
        }
        outcomes
    }

    /// Drops several places, in this order: the janitor gives them up in the background. 1 write for
    /// 64 where the store has commits, else for each.
    pub(crate) fn drop_all(mut tickets: Vec<Self>) {
        let Some(core) = tickets.first().map(|it| it.core.clone()) else {
            return;
        };
        if core.store.about().commits {
            // One that is over would keep the others from being given up together.
            tickets.retain(|it| it.check().is_ok());
        }
        while tickets.len() > 1 && core.store.about().commits {
            let later = tickets.split_off(tickets.len().min(MOST));
            let mut volley = std::mem::replace(&mut tickets, later);
            match deletion(&volley) {
                Ok(commit) => {
                    let chores = volley.iter_mut().filter_map(Self::chore).collect();
                    core.janitor.hand_over_all(commit, chores);
                }
                // Not one of them holds a place.
                Err(_) => drop(volley),
            }
        }
        tickets.into_iter().for_each(drop);
    }

    /// The store said that it did nothing: this tag is as good as it was. (Should something have its
    /// name after all, whoever takes it next by itself finds that out.)
    fn was_not_used(&self) {
        if self.core.layout == Layout::Leased {
            self.session.spare(self.line.dir(), self.tag);
        }
    }

    /// Whether it is not lost, by the clock now.
    fn check(&self) -> Result<()> {
        self.term()?.check()
    }
}

fn into_empty_lines(tickets: &[Ticket]) -> Commit {
    tickets.iter().fold(Commit::new(), |commit, ticket| {
        let dir = ticket.line.dir();
        let expiry = Expiry::With(ticket.session.lease());
        let append = Append::ticket(dir.clone(), ticket.tag, expiry);
        commit.check(dir.clone(), Condition::Empty).append(append)
    })
}

fn not_whole() -> Error {
    let text = "the answer to a commit has fewer nodes than were appended";
    Error::new(ErrorKind::Protocol, text).during("append")
}

/// The store's no to giving up what is over by now says that it, or one of those with it, had ended
/// there: that is a loss, and the condition is nobody's business.
fn why_not_given_up(error: &Error, lost: Error) -> Error {
    match error.kind() {
        ErrorKind::ConditionFailed | ErrorKind::NotFound => lost.caused_by(error.clone()),
        _ => error.clone(),
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
    let commit = deletion(tickets.iter().map(|it| &**it))?;
    tickets.iter().for_each(|ticket| ticket.step_back());
    match core.store.commit(commit).await {
        Ok(Committed { index, .. }) => {
            let gone = Withdrawn::new(index, true, true);
            tickets.into_iter().for_each(|ticket| ticket.released(gone));
            Ok(())
        }
        Err(error) => {
            tracing::debug!(target: "tenure::line", %error, "not released together");
            // It may come late: what has the name then must not be a later ticket of ours.
            tickets.into_iter().for_each(Ticket::waste_tag);
            Err(error)
        }
    }
}

/// Deletes each of them if it is still the one that was created then, or none.
fn deletion<'a>(tickets: impl IntoIterator<Item = &'a Ticket>) -> Result<Commit> {
    tickets.into_iter().try_fold(Commit::new(), |commit, it| {
        let Node { key, created, .. } = it.node()?;
        Ok(commit.delete(Delete::new(key).when(Condition::Created(created))))
    })
}
