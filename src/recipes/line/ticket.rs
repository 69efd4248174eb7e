//! One place in a line, from before its append leaves until nothing of it is left.
//!
//! ```text
//! Armed ──append──▶ InLine ──released──▶ Disarmed
//!   └── dropped ───────┴──▶ the janitor takes it back
//! ```
//!
//! The tag exists, and dropping the ticket is already safe, before the first await.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Joining, Line};
use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Position, Sequence, Tag, Ttl};
use crate::runtime::Instant;
use crate::session::{Chore, Loss, Session, Term};
use crate::store::{
    Append, Appended, Expiry, Freshness, Get, Naming, Node, View, Withdraw, Withdrawn,
};

/// How often an append whose outcome is unknown is followed by one with a fresh tag.
const APPENDS: usize = 3;

/// A place in a line. Dropping it gives the place up.
pub(crate) struct Ticket {
    core: Arc<Core>,
    line: Arc<Line>,
    session: Session,
    tag: Tag,
    state: State,
}

enum State {
    /// The append may or may not have been sent.
    Armed,
    /// The append is known to have made a node.
    InLine(Seat),
    /// Nothing is left to take back.
    Disarmed,
}

struct Seat {
    node: Node,
    position: Position,
    term: Arc<Term>,
    /// The line at or after the append, as far as it is known.
    known: Option<View>,
    /// Whether the line's task knows of this ticket.
    joined: bool,
}

impl Ticket {
    /// Appends a ticket to the line at `dir`, and finds out what became of it when no answer
    /// comes.
    ///
    /// # Errors
    /// Whatever the lease or the append is refused with; `Timeout` when three appends got no
    /// answer, or one and the look for it: what they may have made is being taken back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing: the janitor takes back what was sent.
    pub(crate) async fn take(
        core: &Arc<Core>,
        dir: &Key,
        keep: &Keep,
        body: &Bytes,
    ) -> Result<Self> {
        let line = core.lines.line(dir, keep.ttl());
        let mut last = None;
        for _ in 0..APPENDS {
            let session = core.session(keep)?;
            match session
                .ready()
                .await
                .map_err(|error| error.during("append").at(dir))
            {
                Ok(()) => {}
                // It ended just now, and nothing was sent with it: the next one will do.
                Err(error) if error.kind() == ErrorKind::Lost => {
                    last = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let mut ticket = Self::armed(core, &line, session);
            let sent = core.runtime.clock.now();
            let error = match ticket.append(body, sent).await {
                Ok(()) => return Ok(ticket),
                Err(error) => error.at(dir),
            };
            if error.kind() == ErrorKind::NotFound {
                // The lease is gone; the next session has one of its own.
                ticket.state = State::Disarmed;
                ticket.session.lose();
            } else if error.changed_nothing() {
                ticket.state = State::Disarmed;
                return Err(error);
            } else {
                tracing::debug!(target: "tenure::line", %dir, %error, "append unanswered");
                match ticket.adopt(sent).await {
                    Ok(true) => return Ok(ticket),
                    // It may still come: the janitor gets its tag, and a fresh one goes on.
                    Ok(false) => {}
                    // Nobody answers at all.
                    Err(_) => return Err(given_up(error)),
                }
            }
            last = Some(error);
        }
        Err(match last {
            Some(error) if error.kind() == ErrorKind::Lost => error,
            Some(error) => given_up(error),
            None => Loss::Closed.into_error(),
        })
    }

    fn armed(core: &Arc<Core>, line: &Arc<Line>, session: Session) -> Self {
        let tag = session.tag();
        Self {
            core: core.clone(),
            line: line.clone(),
            session,
            tag,
            state: State::Armed,
        }
    }

    /// Waits until no ticket is before this one.
    ///
    /// # Errors
    /// `Lost` when the session ended or the ticket was deleted while it waited.
    ///
    /// # Cancel safety
    /// Dropping the future keeps the place; dropping the ticket gives it up.
    pub(crate) async fn admitted(&mut self) -> Result<()> {
        // The view is kept anyway while others of this process are in the line.
        if !self.line.is_occupied() {
            match self.look().await {
                Ok(()) => {}
                Err(error) if error.is_transient() || error.is_ambiguous() => {}
                Err(error) => return Err(error),
            }
        }
        if self.is_first()? {
            return self.hold();
        }
        let joining = self.joining()?;
        let term = joining.term.clone();
        let admission = self.line.join_waiting(joining);
        tokio::select! {
            biased;
            loss = term.lost() => Err(loss.into_error().during("wait").at(self.line.dir())),
            answer = admission => {
                // No answer: the line's task has ended, which only a shutdown makes it do.
                answer.unwrap_or_else(|_| Err(Loss::Closed.into_error()))?;
                term.check()
            }
        }
    }

    /// Takes the place if no ticket is before it now, and gives it up otherwise.
    pub(crate) async fn admitted_now(mut self) -> Result<Option<Self>> {
        self.look().await?;
        if self.is_first()? {
            self.hold()?;
            return Ok(Some(self));
        }
        self.release().await?;
        Ok(None)
    }

    /// The number by which later holders are told from earlier ones.
    pub(crate) fn sequence(&self) -> Result<Sequence> {
        Ok(self.seat()?.position.sequence)
    }

    /// The node in the store.
    pub(crate) fn node(&self) -> Result<&Node> {
        Ok(&self.seat()?.node)
    }

    /// Until when the place is surely held.
    pub(crate) fn term(&self) -> Result<&Arc<Term>> {
        Ok(&self.seat()?.term)
    }

    /// The client this ticket belongs to.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Renews it now, with this time-to-live from now on. Only for a ticket whose session is its
    /// own.
    ///
    /// # Errors
    /// `Lost`; anything else: it is kept, with one of the two.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing: what was begun goes on.
    pub(crate) async fn renew(&self, ttl: Ttl) -> Result<()> {
        let term = self.term()?;
        term.check()?;
        let outcome = self.session.renew(ttl).await;
        // Of what the session says and what this key's own term says, a loss counts.
        term.check().and(outcome)
    }

    /// The mark of its append.
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

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

    /// Sends the append, once.
    async fn append(&mut self, body: &Bytes, sent: Instant) -> Result<()> {
        let expiry = Expiry::With(self.session.lease());
        let append = Append::ticket(self.line.dir().clone(), self.tag, expiry).body(body.clone());
        let Appended { node, before, .. } = self.core.store.append(append).await?;
        let known = before.map(|mut nodes| {
            nodes.push(node.clone());
            View::new(node.created, nodes)
        });
        self.enter(node, sent, known)
    }

    /// Looks whether the unanswered append has made its node by now.
    async fn adopt(&mut self, sent: Instant) -> Result<bool> {
        let dir = self.line.dir();
        let view = self.core.store.get(Get::children(dir.clone())).await?;
        let is_ours = |node: &&Node| {
            self.core
                .layout
                .ticket(dir, node)
                .is_some_and(|ticket| ticket.tag == Some(self.tag))
        };
        let Some(node) = view.nodes.iter().find(is_ours).cloned() else {
            return Ok(false);
        };
        self.enter(node, sent, Some(view))?;
        Ok(true)
    }

    fn enter(&mut self, node: Node, sent: Instant, known: Option<View>) -> Result<()> {
        let (layout, dir) = (self.core.layout, self.line.dir());
        let Some(position) = layout.position(dir, &node.key, node.created) else {
            let text = "the store gave the ticket a name that is none";
            return Err(Error::new(ErrorKind::Protocol, text)
                .during("append")
                .at(&node.key));
        };
        self.core.saw(node.created);
        let term = self
            .session
            .attach(node.key.clone(), node.value.clone(), sent);
        self.state = State::InLine(Seat {
            node,
            position,
            term,
            known,
            joined: false,
        });
        Ok(())
    }

    /// Reads the line, unless it is known.
    async fn look(&mut self) -> Result<()> {
        let seat = self.seat()?;
        if seat.known.is_none() {
            let fresh = Freshness::AtLeast(seat.node.created);
            let get = Get::children(self.line.dir().clone())
                .fresh(fresh)
                .keys_only();
            let view = self.core.store.get(get).await?;
            self.seat_mut()?.known = Some(view);
        }
        Ok(())
    }

    /// Whether the line is known and no ticket in it is before this one.
    fn is_first(&self) -> Result<bool> {
        let seat = self.seat()?;
        let Some(view) = &seat.known else {
            return Ok(false);
        };
        let ticket = |node| self.core.layout.ticket(self.line.dir(), node);
        match view
            .nodes
            .iter()
            .filter_map(ticket)
            .map(|ticket| ticket.position)
            .min()
        {
            Some(first) if first == seat.position => Ok(true),
            Some(first) if first < seat.position => Ok(false),
            _ => {
                seat.term.lose(Loss::Deleted);
                Err(Loss::Deleted
                    .into_error()
                    .during("append")
                    .at(&seat.node.key))
            }
        }
    }

    /// Tells the line's task that this ticket is the first.
    fn hold(&mut self) -> Result<()> {
        let joining = self.joining()?;
        let term = joining.term.clone();
        self.line.join_holding(joining);
        term.check()
    }

    fn joining(&mut self) -> Result<Joining> {
        let ttl = self.session.ttl();
        let seat = self.seat_mut()?;
        seat.joined = true;
        let (position, at, term) = (seat.position.clone(), seat.node.created, seat.term.clone());
        Ok(Joining {
            position,
            at,
            term,
            known: seat.known.take(),
            ttl,
        })
    }

    fn withdrawal(&self) -> Withdraw {
        let dir = self.line.dir().clone();
        let withdraw = Withdraw::new(dir, self.tag, Naming::Ticket).lease(self.session.lease());
        match &self.state {
            State::InLine(seat) => withdraw.node(seat.node.clone()),
            State::Armed | State::Disarmed => withdraw,
        }
    }

    /// From now on its deletion is our own doing: nobody keeps it alive, nobody calls it a loss.
    fn step_back(&self) {
        if let State::InLine(seat) = &self.state {
            self.session.detach(&seat.node.key);
            if seat.joined {
                self.line.leaving(seat.position.clone());
            }
        }
    }

    /// Nothing is left of it in the store.
    fn released(&mut self, withdrawn: Withdrawn) {
        self.core.saw(withdrawn.index);
        if let State::InLine(seat) = std::mem::replace(&mut self.state, State::Disarmed)
            && seat.joined
        {
            self.line.left(seat.position, withdrawn);
        }
    }

    fn seat(&self) -> Result<&Seat> {
        match &self.state {
            State::InLine(seat) => Ok(seat),
            State::Armed | State::Disarmed => Err(Loss::Closed.into_error()),
        }
    }

    fn seat_mut(&mut self) -> Result<&mut Seat> {
        match &mut self.state {
            State::InLine(seat) => Ok(seat),
            State::Armed | State::Disarmed => Err(Loss::Closed.into_error()),
        }
    }
}

/// What a caller is told who gets no ticket because nobody answers.
fn given_up(error: Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::Ambiguous | ErrorKind::Unavailable => ErrorKind::Timeout,
        kind => kind,
    };
    error.into_kind(kind, "what the append may have made is being taken back")
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let withdraw = self.withdrawal();
        self.step_back();
        let joined = match std::mem::replace(&mut self.state, State::Disarmed) {
            State::Disarmed => return,
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
        self.core.janitor.hand_over(Chore {
            withdraw,
            ttl: self.session.ttl().get(),
            fate: self.session.fate(),
            done,
        });
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Armed => "armed",
            State::InLine(_) => "in line",
            State::Disarmed => "disarmed",
        };
        f.debug_struct("Ticket")
            .field("dir", self.line.dir())
            .field("tag", &self.tag)
            .field("state", &state)
            .finish()
    }
}
