//! One place in a line, from before its append leaves until nothing of it is left.
//!
//! ```text
//! Armed ──append──▶ InLine ──released──▶ Disarmed
//!   └── dropped ───────┴──▶ the janitor takes it back
//! ```
//!
//! The tag exists, and dropping the ticket is already safe, before the first await. How a place is
//! given up is in [`leave`](super::leave).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::rule::Verdict;
use super::{Joining, Line, Pending, Rule};
use crate::client::{Core, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, Position, Sequence, Tag, Ttl};
use crate::runtime::Instant;
use crate::session::{Loss, Session, Term};
use crate::store::{Append, Appended, Expiry, Freshness, Layout, Node, View};

/// How often an append whose outcome is unknown is followed by one with a fresh tag.
pub(super) const APPENDS: usize = 3;

/// A place in a line. Dropping it gives the place up.
pub(crate) struct Ticket {
    pub(super) core: Arc<Core>,
    pub(super) line: Arc<Line>,
    pub(super) session: Session,
    pub(super) tag: Tag,
    pub(super) state: State,
    /// Until it has joined.
    pending: Option<Pending>,
    /// Whether its tag was used before.
    reused: bool,
    /// Whether its append was answered, and so cannot come later.
    pub(super) answered: bool,
    /// Whether its tag is of use again once it is gone.
    thrifty: bool,
}

pub(super) enum State {
    /// The append may or may not have been sent.
    Armed,
    /// The append is known to have made a node.
    InLine(Seat),
    /// Nothing is left to take back.
    Disarmed,
}

/// Thousands may be held: what the term knows is not kept here too.
pub(super) struct Seat {
    pub(super) position: Position,
    created: Index,
    pub(super) term: Arc<Term>,
    /// The line at or after the append, as far as it is known; not once it has joined.
    known: Option<Box<View>>,
    /// The limit that it was admitted under.
    limit: Option<u32>,
    /// Whether the line's task knows of this ticket.
    pub(super) joined: bool,
}

impl Seat {
    /// The node in the store, with the value that it has as far as answers tell.
    pub(super) fn node(&self) -> Node {
        let (key, created) = (self.position.key.clone(), self.created);
        Node::file(key, self.term.value(), created, created)
    }
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
        Self::take_under(core, dir, Rule::Exclusive, keep, body).await
    }

    /// The same in a line of this rule.
    pub(crate) async fn take_under(
        core: &Arc<Core>,
        dir: &Key,
        rule: Rule,
        keep: &Keep,
        body: &Bytes,
    ) -> Result<Self> {
        let line = core.lines.line(dir, keep.ttl(), rule);
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
            } else if ticket.was_met(&error) {
                // Somebody else has used the name since then: the janitor takes away what is there,
                // and a fresh one goes on.
                tracing::warn!(target: "tenure::line", %dir, %error, "a name that was free is not");
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

    pub(super) fn armed(core: &Arc<Core>, line: &Arc<Line>, session: Session) -> Self {
        let (tag, reused) = session.tag_for(line.dir());
        Self {
            core: core.clone(),
            line: line.clone(),
            session,
            tag,
            state: State::Armed,
            pending: Some(line.expect()),
            reused,
            answered: false,
            thrifty: false,
        }
    }

    /// Waits until the line's rule admits this ticket.
    ///
    /// # Errors
    /// `Lost` when the session ended or the ticket was deleted while it waited; a refusal, if the
    /// rule knows any.
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
        if let Some(limit) = self.admission()? {
            return self.hold(limit);
        }
        let joining = self.joining()?;
        let term = joining.term.clone();
        let admission = self.line.join_waiting(joining);
        self.pending = None;
        let limit = tokio::select! {
            biased;
            loss = term.lost() => {
                return Err(loss.into_error().during("wait").at(self.line.dir()));
            }
            // No answer: the line's task has ended, which only a shutdown makes it do.
            answer = admission => answer.unwrap_or_else(|_| Err(Loss::Closed.into_error()))?,
        };
        self.seat_mut()?.limit = Some(limit);
        term.check()
    }

    /// The limit that it was admitted under: 1 in an exclusive line. `None` before that.
    pub(crate) fn limit(&self) -> Option<u32> {
        self.seat().ok()?.limit
    }

    /// Which place in the line.
    pub(crate) fn position(&self) -> Result<&Position> {
        Ok(&self.seat()?.position)
    }

    /// The number by which later holders are told from earlier ones.
    pub(crate) fn sequence(&self) -> Result<Sequence> {
        Ok(self.seat()?.position.sequence)
    }

    /// The node in the store.
    pub(crate) fn node(&self) -> Result<Node> {
        Ok(self.seat()?.node())
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
        let seat = self.seat()?;
        let term = &seat.term;
        term.check()?;
        let pace = |ttl| {
            if seat.joined {
                self.line.pace(&seat.position, ttl);
            }
        };
        // First: when nobody waits for it any more it goes on.
        pace(ttl.min(self.session.ttl()));
        let outcome = self.session.renew(ttl).await;
        pace(self.session.ttl());
        // Of what the session says and what this key's own term says, a loss counts.
        term.check().and(outcome)
    }

    /// Gives it something else to say. It keeps its place.
    ///
    /// # Errors
    /// `Lost` when its term ended before the outcome was known; anything else: nothing has changed,
    /// and nothing will.
    ///
    /// # Cancel safety
    /// Dropping the future stops what was not begun; what was begun goes on.
    pub(crate) async fn rewrite(&self, body: &[u8]) -> Result<()> {
        let Seat { position, term, .. } = self.seat()?;
        term.check()?;
        let value = self.core.layout.ticket_value(self.tag, body);
        let outcome = self.session.rewrite(position.key.clone(), value).await;
        term.check().and(outcome)
    }

    /// What it says, as far as answers tell.
    pub(crate) fn body(&self) -> Bytes {
        let Ok(node) = self.node() else {
            return Bytes::new();
        };
        let ticket = self.core.layout.ticket(self.line.dir(), &node);
        ticket.map_or_else(Bytes::new, |ticket| ticket.body)
    }

    /// Its tag is used again once it was given back, where the tag is in the name of the ticket:
    /// see [`Session::tag_for`].
    pub(crate) fn reuse_tag(&mut self) {
        self.thrifty = self.core.layout == Layout::Leased;
    }

    /// Whether this error of its append says that a name which was used before is not free. Nobody
    /// but a proxy that repeats requests, or a hand, can have put something there; but then that
    /// would keep everybody waiting for as long as it stays.
    fn was_met(&self, error: &Error) -> bool {
        let met = [ErrorKind::AlreadyExists, ErrorKind::ConditionFailed];
        self.reused && met.contains(&error.kind())
    }

    /// Its tag is not used again.
    pub(super) fn waste_tag(&mut self) {
        self.thrifty = false;
    }

    /// Whether nothing of its tag can come any more when it is gone from the store.
    pub(super) fn is_spare(&self) -> bool {
        self.thrifty && self.answered
    }

    /// Has it said in the store whose session this ticket hangs on.
    pub(crate) fn announce(&self) {
        self.session.announce();
    }

    /// The line that it stands in.
    pub(crate) fn dir(&self) -> &Key {
        self.line.dir()
    }

    /// Sends the append, once.
    async fn append(&mut self, body: &Bytes, sent: Instant) -> Result<()> {
        let expiry = Expiry::With(self.session.lease());
        let append = Append::ticket(self.line.dir().clone(), self.tag, expiry).body(body.clone());
        let Appended { node, before, .. } = self.core.store.append(append).await?;
        self.answered = true;
        let before = before.filter(|_| self.line.rule.needs_tickets_only());
        let known = before.map(|mut nodes| {
            nodes.push(node.clone());
            View::new(node.created, nodes)
        });
        self.enter(&node, sent, known)
    }

    /// Looks whether the unanswered append has made its node by now.
    async fn adopt(&mut self, sent: Instant) -> Result<bool> {
        let dir = self.line.dir();
        let look = self.line.rule.look_for_tags(dir);
        let view = self.core.store.get(look).await?;
        let is_ours = |node: &&Node| {
            self.core
                .layout
                .ticket(dir, node)
                .is_some_and(|ticket| ticket.tag == Some(self.tag))
        };
        let Some(node) = view.nodes.iter().find(is_ours).cloned() else {
            return Ok(false);
        };
        self.enter(&node, sent, Some(view))?;
        Ok(true)
    }

    pub(super) fn enter(&mut self, node: &Node, sent: Instant, known: Option<View>) -> Result<()> {
        let (layout, dir) = (self.core.layout, self.line.dir());
        let Some(position) = layout.position(dir, &node.key, node.created) else {
            let text = "the store gave the ticket a name that is none";
            return Err(Error::new(ErrorKind::Protocol, text)
                .during("append")
                .at(&node.key));
        };
        self.core.saw(node.created);
        let term = self.session.attach(node.key.clone(), node, sent);
        self.state = State::InLine(Seat {
            position,
            created: node.created,
            term,
            known: known.map(Box::new),
            limit: None,
            joined: false,
        });
        Ok(())
    }

    /// Reads the line, unless it is known.
    pub(super) async fn look(&mut self) -> Result<()> {
        let seat = self.seat()?;
        if seat.known.is_none() {
            let fresh = Freshness::AtLeast(seat.created);
            let get = self.line.rule.look(self.line.dir()).fresh(fresh);
            let view = self.core.store.get(get).await?;
            self.seat_mut()?.known = Some(Box::new(view));
        }
        Ok(())
    }

    /// The limit that it is admitted under, if the line is known and admits it.
    pub(super) fn admission(&self) -> Result<Option<u32>> {
        let seat = self.seat()?;
        let Some(view) = &seat.known else {
            return Ok(None);
        };
        let (rule, dir) = (&self.line.rule, self.line.dir());
        match rule.judge(self.core.layout, dir, view, &seat.position) {
            Verdict::Admitted(limit) => Ok(Some(limit)),
            Verdict::Waits => Ok(None),
            Verdict::Gone => {
                seat.term.lose(Loss::Deleted);
                Err(Loss::Deleted
                    .into_error()
                    .during("append")
                    .at(&seat.position.key))
            }
            Verdict::Refused(refusal) => Err(refusal.into_error().at(dir)),
        }
    }

    /// Tells the line's task that this ticket is admitted.
    pub(super) fn hold(&mut self, limit: u32) -> Result<()> {
        let joining = self.joining()?;
        let term = joining.term.clone();
        self.seat_mut()?.limit = Some(limit);
        self.line.join_holding(joining);
        self.pending = None;
        term.check()
    }

    fn joining(&mut self) -> Result<Joining> {
        let (ttl, announcer) = (self.session.ttl(), self.session.announcer());
        let seat = self.seat_mut()?;
        seat.joined = true;
        let (position, at, term) = (seat.position.clone(), seat.created, seat.term.clone());
        Ok(Joining {
            position,
            at,
            term,
            known: seat.known.take(),
            ttl,
            announcer,
        })
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
