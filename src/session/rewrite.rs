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
//!
//! 1. A put names the value and the index that were just read. Of all puts that name one index at
//!    most one ever takes effect, so an attempt that was given up and lands late lands as what was
//!    asked for, or not at all: **an older value never takes the place of a newer one.** The value
//!    alone would not do: it can come back.
//! 2. It is the session's own task that writes, so no renewal comes between the look and the put.
//!    One that was given up before and lands in between moves the index: it is looked at again.
//! 3. In doubt, nobody knows what a renewal would have to compare with. So the key is left out of
//!    the renewals until a look has told; the session's other keys are renewed meanwhile.
//! 4. The outcome is definite, or the term ends, which is a loss.

use bytes::Bytes;

use super::retime::{as_read, bounded};
use super::{Core, Done, Loss, Term};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::{Instant, Retry};
use crate::store::{Condition, Expiry, Get, Put};

/// An order to write another value, as far as it is carried out.
pub(super) struct Rewriting {
    key: Key,
    value: Bytes,
    done: Done,
    due: Instant,
    retry: Retry,
    /// A put was sent that may have taken effect, or may still.
    in_doubt: bool,
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
            value,
            done,
            due: now,
            retry: Retry::new(),
            in_doubt: false,
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
            Outcome::Again(_) if !self.in_doubt && self.done.is_closed() => return None,
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
        if !self.in_doubt && self.done.is_closed() {
            return Outcome::Settled(Ok(()));
        }
        let look = core.store.get(Get::node(self.key.clone()));
        let view = match bounded(core, deadline, look).await {
            Ok(view) => view,
            Err(error) => return self.failed(as_read(error)),
        };
        let known = term.value();
        match view.nodes.into_iter().next().filter(|node| !node.is_dir) {
            Some(node) if node.value == self.value && (self.in_doubt || known == self.value) => {
                self.landed(&term)
            }
            Some(node) if node.value == known => self.put(core, &term, known, node.modified).await,
            _ => {
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
            shared.doubtful = Some(self.key.clone());
            shared.lease
        };
        let before = std::mem::replace(&mut self.in_doubt, true);
        let pinned = Condition::Both {
            value: known,
            index,
        };
        let put = Put::new(self.key.clone(), self.value.clone(), Expiry::With(lease)).when(pinned);
        let error = match bounded(core, deadline, core.store.put(put)).await {
            Ok(_) => return self.landed(term),
            Err(error) => error,
        };
        if error.changed_nothing() && !before {
            self.in_doubt = false;
            core.lock().doubtful = None;
        }
        match error.kind() {
            // An earlier attempt or a late renewal has landed, or it is gone: the look tells.
            ErrorKind::ConditionFailed | ErrorKind::NotFound => Outcome::Again(error),
            _ => self.failed(error),
        }
    }

    fn landed(&self, term: &Term) -> Outcome {
        term.has(self.value.clone());
        Outcome::Settled(term.check())
    }

    /// What cannot pass ends it, unless a put is in doubt: then only a look does, or the term's end.
    fn failed(&self, error: Error) -> Outcome {
        if self.in_doubt || error.is_transient() {
            Outcome::Again(error)
        } else {
            Outcome::Settled(Err(error.at(&self.key)))
        }
    }
}
