//! Another value for a key that a session keeps: how a leader proclaims.
//!
//! ```text
//!            ours, at index i                       not answered
//! looking ────────────────────▶ put {value, i} ──────────────────▶ in doubt ──┐
//!  ▲ │ │                         │        │                                   │
//!  │ │ └ not ours: lost          │ done   └ refused: nothing changed          │
//!  │ └── the new value is there: done                                          │
//!  └───────────────────────── after a pause, while the term lasts ─────────────┘
//! ```
//! Where the index is known, it begins with the put.
//!
//! 1. A put names the value and the index at which that was written: the one that a look has shown,
//!    or the answer to the write before, if no renewal can have written it again since. Of all puts
//!    that name one index at most one ever takes effect, so an attempt that was given up and lands
//!    late lands as what was asked for, or not at all: **an older value never takes the place of a
//!    newer one.** The value alone would not do: it can come back.
//! 2. It is the session's own task that writes, so no renewal comes between the look and the put.
//!    One that was given up before and lands in between moves the index: it is looked at again.
//! 3. In doubt, nobody knows what a renewal would have to compare with. So the key is left out of
//!    the renewals until a look has told; the session's other keys are renewed meanwhile. A put that
//!    has landed counts as a renewal from its send.
//! 4. The outcome is definite, or the term ends, which is a loss.
//! 5. A session that ends in doubt deletes the key itself ([`Doubt::end`]): a store without leases
//!    would compare with a value that the key may not have.
//!
//! [`Machine`] decides, [`Rewriting`] talks to the store.

use std::time::Duration;

use bytes::Bytes;

use super::retime::{as_read, bounded};
use super::term::Content;
use super::{Core, Done, Loss, Term};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::{Instant, Retry};
use crate::store::{Condition, Delete, Expiry, Get, Node, Put};

/// An order to write another value, as far as it is carried out.
pub(super) struct Rewriting {
    key: Key,
    done: Done,
    due: Instant,
    retry: Retry,
    /// When the first put was sent: none that has landed was sent before.
    sent: Option<Instant>,
    machine: Machine,
}

/// A key that has one of two values: the one that was known, or the one that was sent.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) key: Key,
    values: [Bytes; 2],
}

impl Doubt {
    /// Deletes the key, whichever it has. Only from the first to the second can it change, so they
    /// are tried in this order; and what was sent and lands after that meets nothing.
    pub(super) async fn end(&self, core: &Core) -> Result<()> {
        for value in &self.values {
            let delete = Delete::new(self.key.clone()).when(Condition::Value(value.clone()));
            match core.store.delete(delete).await {
                Err(error) if error.kind() == ErrorKind::ConditionFailed => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                outcome => return outcome.map(|_| ()),
            }
        }
        Ok(())
    }
}

/// What an attempt came to.
enum Outcome {
    Settled(Result<()>),
    Again(Error),
}

impl Rewriting {
    pub(super) fn new(key: Key, value: Bytes, done: Done, now: Instant) -> Self {
        Self {
            key,
            done,
            due: now,
            retry: Retry::new(),
            sent: None,
            machine: Machine::new(value),
        }
    }

    /// When the next attempt is to be made.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// One attempt; gives itself back if another is needed.
    pub(super) async fn attempt(mut self, core: &Core) -> Option<Self> {
        let outcome = match self.look_and_put(core).await {
            // Nobody wants to know, and there is nothing to find out.
            Outcome::Again(_) if self.is_unwanted() => return None,
            Outcome::Again(error) => {
                tracing::debug!(target: "tenure::session", key = %self.key, %error, "not rewritten yet");
                let now = core.runtime.clock.now();
                self.due = now + self.retry.pause(&core.runtime.entropy);
                return Some(self);
            }
            Outcome::Settled(outcome) => outcome,
        };
        {
            let mut shared = core.lock();
            shared.doubtful = None;
            shared.mind_the_earliest(core.runtime.clock.now());
        }
        // Whoever asked may have gone away.
        let _ = self.done.send(outcome);
        None
    }

    async fn look_and_put(&mut self, core: &Core) -> Outcome {
        let term = core.lock().terms.get(&self.key).cloned();
        let Some(term) = term else {
            return Outcome::Settled(Err(Loss::Closed.into_error()));
        };
        let Some(deadline) = term.deadline() else {
            return Outcome::Settled(term.check());
        };
        if self.is_unwanted() {
            return Outcome::Settled(Ok(()));
        }
        let Content {
            value: known,
            index,
        } = term.content();
        if let Some(index) = index.filter(|_| self.machine.needs_no_look(&known)) {
            return self.put(core, &term, known, index).await;
        }
        let look = core.store.get(Get::node(self.key.clone()));
        let view = match bounded(core, deadline, look).await {
            Ok(view) => view,
            Err(error) => return self.failed(as_read(error)),
        };
        match self.machine.looked(view.nodes.first(), &known) {
            Seen::New => self.landed(core, &term, self.sent, None),
            Seen::Old(index) => self.put(core, &term, known, index).await,
            Seen::Foreign => {
                term.lose(Loss::Deleted);
                Outcome::Settled(term.check())
            }
        }
    }

    async fn put(&mut self, core: &Core, term: &Term, known: Bytes, index: Index) -> Outcome {
        let Some(deadline) = term.deadline() else {
            return Outcome::Settled(term.check());
        };
        let lease = {
            let mut shared = core.lock();
            if !shared.terms.contains_key(&self.key) {
                return Outcome::Settled(Err(Loss::Closed.into_error()));
            }
            // Noted first: this future may be dropped at any time.
            shared.doubtful = Some(Doubt {
                key: self.key.clone(),
                values: [known.clone(), self.machine.value.clone()],
            });
            shared.lease
        };
        let first = self.machine.sending();
        term.touched();
        let pinned = Condition::Both {
            value: known,
            index,
        };
        let sent = core.runtime.clock.now();
        self.sent.get_or_insert(sent);
        let value = self.machine.value.clone();
        let put = Put::new(self.key.clone(), value, Expiry::With(lease)).when(pinned);
        let error = match bounded(core, deadline, core.store.put(put)).await {
            Ok(written) => {
                let at = Some(written.node.modified);
                return self.landed(core, term, Some(sent), at);
            }
            Err(error) => error,
        };
        self.machine.failed(first, &error);
        if !self.machine.in_doubt {
            core.lock().doubtful = None;
        }
        self.failed(error)
    }

    /// The new value is there, by a put that was sent no earlier than this, and took effect at this
    /// index if that is known.
    fn landed(
        &self,
        core: &Core,
        term: &Term,
        sent: Option<Instant>,
        index: Option<Index>,
    ) -> Outcome {
        let value = self.machine.value.clone();
        term.has(Content { value, index });
        if let Some(sent) = sent {
            // It has given the key a whole term, as a renewal would have.
            term.renewed(sent);
            let shared = core.lock();
            term.reckon(
                |since| shared.machine.deadline_of_key(since),
                Duration::ZERO,
            );
        }
        Outcome::Settled(term.check())
    }

    fn failed(&self, error: Error) -> Outcome {
        if self.machine.goes_on(&error) {
            Outcome::Again(error)
        } else {
            Outcome::Settled(Err(error.at(&self.key)))
        }
    }

    /// Whether nobody waits for the outcome, and there is nothing to find out.
    fn is_unwanted(&self) -> bool {
        !self.machine.in_doubt && self.done.is_closed()
    }
}

/// What is decided: pure, no clock, no I/O.
struct Machine {
    value: Bytes,
    /// A put was sent that may have taken effect, or may still.
    in_doubt: bool,
}

/// What a look has shown.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The new value is there, and it is our doing.
    New,
    /// The value of before is there, written at this index.
    Old(Index),
    /// Nothing, or somebody else's.
    Foreign,
}

impl Machine {
    fn new(value: Bytes) -> Self {
        Self {
            value,
            in_doubt: false,
        }
    }

    /// Whether it can be written over on the condition of the index at which it was last written,
    /// which is known. The same value again is not written: that it is there must be seen.
    fn needs_no_look(&self, known: &Bytes) -> bool {
        !self.in_doubt && *known != self.value
    }

    /// The key was read; `known` is what it held when that was last certain.
    fn looked(&self, node: Option<&Node>, known: &Bytes) -> Seen {
        let ours = self.in_doubt || *known == self.value;
        match node.filter(|node| !node.is_dir) {
            Some(node) if ours && node.value == self.value => Seen::New,
            Some(node) if node.value == *known => Seen::Old(node.modified),
            _ => Seen::Foreign,
        }
    }

    /// A put is about to be sent; whether it is the first of which that can be said.
    fn sending(&mut self) -> bool {
        !std::mem::replace(&mut self.in_doubt, true)
    }

    /// The put has failed. That it was refused settles it, but none of those before it.
    fn failed(&mut self, first: bool, error: &Error) {
        if first && error.changed_nothing() {
            self.in_doubt = false;
        }
    }

    /// Whether another attempt can tell, or do, more: after a refusal by the condition (an earlier
    /// attempt or a late renewal has landed, or the key is gone), after what may pass, and always
    /// in doubt, which only a look ends, or the end of the term.
    fn goes_on(&self, error: &Error) -> bool {
        let kinds = [ErrorKind::ConditionFailed, ErrorKind::NotFound];
        self.in_doubt || error.is_transient() || kinds.contains(&error.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: &'static str, index: u64) -> Node {
        let at = Index::new(index).unwrap();
        Node::file(Key::new("/t").unwrap(), value, at, at)
    }

    fn looked(machine: &Machine, value: &'static str) -> Seen {
        machine.looked(Some(&node(value, 7)), &"old".into())
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "")
    }

    fn pinned() -> Seen {
        Seen::Old(Index::new(7).unwrap())
    }

    #[test]
    fn what_was_known_is_written_over_and_what_was_not_is_a_strangers() {
        let machine = Machine::new("new".into());
        assert_eq!(looked(&machine, "old"), pinned());
        assert_eq!(looked(&machine, "other"), Seen::Foreign);
        assert_eq!(machine.looked(None, &"old".into()), Seen::Foreign);
        let at = Index::new(7).unwrap();
        let dir = Node::dir(Key::new("/t").unwrap(), at, at);
        assert_eq!(machine.looked(Some(&dir), &Bytes::new()), Seen::Foreign);
        // Nobody but us writes our value, and we have not sent it.
        assert_eq!(looked(&machine, "new"), Seen::Foreign);
    }

    #[test]
    fn the_same_value_again_needs_no_write() {
        let machine = Machine::new("old".into());
        assert_eq!(looked(&machine, "old"), Seen::New);
    }

    #[test]
    fn only_what_is_certain_and_another_value_needs_no_look() {
        let mut machine = Machine::new("new".into());
        assert!(machine.needs_no_look(&"old".into()));
        assert!(!machine.needs_no_look(&"new".into()));
        machine.sending();
        assert!(!machine.needs_no_look(&"old".into()));
    }

    #[test]
    fn in_doubt_either_value_is_ours() {
        let mut machine = Machine::new("new".into());
        assert!(machine.sending());
        machine.failed(true, &error(ErrorKind::Ambiguous));
        assert!(machine.in_doubt);
        assert_eq!(looked(&machine, "new"), Seen::New);
        assert_eq!(looked(&machine, "old"), pinned());
        assert_eq!(looked(&machine, "other"), Seen::Foreign);
    }

    #[test]
    fn a_refusal_settles_its_own_put_and_none_before_it() {
        for kind in [ErrorKind::ConditionFailed, ErrorKind::Unreachable] {
            let mut machine = Machine::new("new".into());
            let first = machine.sending();
            machine.failed(first, &error(kind));
            assert!(!machine.in_doubt, "{kind:?}");
            let first = machine.sending();
            machine.failed(first, &error(ErrorKind::Ambiguous));
            let first = machine.sending();
            assert!(!first);
            machine.failed(first, &error(kind));
            assert!(machine.in_doubt, "{kind:?}");
        }
    }

    #[test]
    fn what_cannot_pass_ends_it_unless_in_doubt() {
        let mut machine = Machine::new("new".into());
        let passing = [
            ErrorKind::ConditionFailed,
            ErrorKind::NotFound,
            ErrorKind::Unavailable,
            ErrorKind::Timeout,
        ];
        let lasting = [ErrorKind::InvalidValue, ErrorKind::Forbidden];
        assert!(passing.iter().all(|kind| machine.goes_on(&error(*kind))));
        assert!(!lasting.iter().any(|kind| machine.goes_on(&error(*kind))));
        machine.sending();
        assert!(lasting.iter().all(|kind| machine.goes_on(&error(*kind))));
    }
}
