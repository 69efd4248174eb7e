//! A renewal on demand, and the move to a lease of another length.
//!
//! ```text
//!  on A ──grant B──▶ B is there ──first put is sent──▶ between ──every key answered──▶ on B; A is revoked
//!   ▲                    │                                │
//!   └── refused: B is ───┘                                └── the term ends: lost; both are revoked
//!       revoked
//! ```
//!
//! A key moves by a put of its own value with lease B, on the condition of the value and of the
//! index just read.
//!
//! 1. It is the session's own task that moves, so no renewal runs meanwhile. One that was given up
//!    before and lands late harms nobody: on a store with leases it renews A, which nothing hangs
//!    on; on etcd v2 it names the index of before.
//! 2. The deadline is at no time later than what the store can have: before the first put leaves it
//!    is lowered to B's, and raised to B's only when the key is known to hang on B.
//! 3. Between, nobody knows which of the two a key hangs on. So it is tried again, and nothing is
//!    given up before the term is over; after that both leases are ended.

use std::time::Duration;

use bytes::Bytes;

use super::driver::renew;
use super::{Core, HoldState, Loss, Term, new_lease};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId, Ttl};
use crate::runtime::{Instant, Retry};
use crate::session::machine::Machine;
use crate::store::{Condition, Expiry, Get, Grant, Node, Put};

/// How often a key is looked at anew that changes between the look and the put.
const TRIES: u32 = 5;

/// Renews all keys of the session now, with this time-to-live from now on.
pub(super) async fn retime(core: &Core, ttl: Ttl) -> Result<()> {
    let Some(deadline) = core.lock().machine.deadline() else {
        return Err(Loss::Expired.into_error());
    };
    let outcome = if core.lock().asked == ttl {
        again(core).await
    } else {
        change(core, ttl, deadline).await
    };
    if core.lock().machine.expire(core.runtime.clock.now()) {
        return Err(Loss::Expired.into_error());
    }
    outcome
}

/// Another term of the same length.
async fn again(core: &Core) -> Result<()> {
    renew(core).await;
    let terms: Vec<_> = {
        let shared = core.lock();
        let terms = shared.terms.iter();
        terms
            .map(|(key, term)| (key.clone(), term.clone()))
            .collect()
    };
    // What is said about the session is no part of what it holds.
    for (key, term) in terms.into_iter().filter(|(key, _)| !core.card.is_at(key)) {
        term.check()?;
        if term.state() == HoldState::Suspect {
            let text = "the renewal was not answered; it is tried again, and held meanwhile";
            return Err(Error::new(ErrorKind::Timeout, text).at(&key));
        }
    }
    Ok(())
}

/// A term of another length, which takes another lease.
async fn change(core: &Core, ttl: Ttl, deadline: Instant) -> Result<()> {
    let clock = &core.runtime.clock;
    let (sent, lease) = (clock.now(), new_lease(&core.runtime.entropy));
    // Noted first: this future may be dropped at any time.
    core.lock().others.insert(lease);
    let granted = match bounded(core, deadline, core.store.grant(Grant::new(lease, ttl))).await {
        Ok(granted) => granted,
        Err(error) => return Err(stays(core, lease, error).await),
    };
    let until = match Machine::prospect(sent, granted) {
        Ok(until) => until,
        Err(error) => return Err(stays(core, lease, error).await),
    };
    let mut moving = Moving {
        core,
        lease,
        sent,
        until,
        begun: false,
    };
    let keys: Vec<_> = {
        let shared = core.lock();
        let terms = shared.terms.iter();
        terms
            .map(|(key, term)| (key.clone(), term.value(), term.clone()))
            .collect()
    };
    let mut lost = None;
    for (key, value, term) in keys {
        match moving.key(&key, &value, &term).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Lost => {
                core.lock().detach(&term);
                if !core.card.is_at(&key) {
                    lost.get_or_insert(error);
                }
            }
            Err(error) => return Err(stays(core, lease, error).await),
        }
    }
    let old = {
        let mut shared = core.lock();
        let old = std::mem::replace(&mut shared.lease, lease);
        shared.others.remove(&lease);
        shared.others.insert(old);
        shared.asked = ttl;
        let now = clock.now();
        shared.machine.moved(sent, granted, now);
        shared.mind_the_earliest(now);
        old
    };
    core.publish(core.lock().machine.state());
    end(core, old).await;
    lost.map_or(Ok(()), Err)
}

/// Nothing has moved, and nothing will: what was granted for it is not needed.
async fn stays(core: &Core, lease: LeaseId, error: Error) -> Error {
    end(core, lease).await;
    let kind = match error.kind() {
        ErrorKind::Ambiguous => ErrorKind::Timeout,
        kind => kind,
    };
    error.into_kind(kind, "it is held on with the time-to-live of before")
}

/// Ends a lease that nothing hangs on. One try: the session's end makes others.
async fn end(core: &Core, lease: LeaseId) {
    let Some(deadline) = core.lock().machine.deadline() else {
        return;
    };
    if bounded(core, deadline, core.store.revoke(lease))
        .await
        .is_ok()
    {
        core.lock().others.remove(&lease);
    }
}

/// One request, with a share of what is left.
pub(super) async fn bounded<T>(
    core: &Core,
    deadline: Instant,
    request: impl Future<Output = Result<T>>,
) -> Result<T> {
    let clock = &core.runtime.clock;
    let patience = (deadline.since(clock.now()) / 3).max(Duration::from_millis(50));
    tokio::select! {
        biased;
        outcome = request => outcome,
        () = clock.sleep(patience) => {
            let text = format!("no answer within {} ms", patience.as_millis());
            Err(Error::new(ErrorKind::Ambiguous, text))
        }
    }
}

struct Moving<'a> {
    core: &'a Core,
    lease: LeaseId,
    /// When it was asked for.
    sent: Instant,
    /// When the first term of the lease ends.
    until: Instant,
    /// Whether something may hang on the lease by now.
    begun: bool,
}

impl Moving<'_> {
    /// Moves one key, and its term with it.
    ///
    /// # Errors
    /// `Lost`; or anything else as long as nothing can have moved.
    async fn key(&mut self, key: &Key, value: &Bytes, term: &Term) -> Result<()> {
        let mut retry = Retry::new();
        let mut tries = TRIES;
        loop {
            tries = tries.saturating_sub(1);
            let Some(deadline) = term.deadline() else {
                return term.check();
            };
            let error = match self.step(key, value, term, deadline).await {
                Ok(()) => {
                    term.replace(self.sent, self.until);
                    return term.check();
                }
                Err(error) if error.kind() == ErrorKind::Lost => return Err(error),
                // It was refreshed, or written, since it was read.
                Err(error) if error.kind() == ErrorKind::ConditionFailed && tries > 0 => error,
                // Nothing has moved, so the lease of before is the one to renew.
                Err(error) if !self.begun => return Err(error.at(key)),
                Err(error) => error,
            };
            tracing::debug!(target: "tenure::session", %key, %error, "not moved yet");
            let pause = retry.pause(&self.core.runtime.entropy);
            self.core.runtime.clock.sleep(pause).await;
        }
    }

    /// Whether more than half of the new term is over. A shorter one would else be the end of what
    /// is held for long.
    fn is_late(&self) -> bool {
        let left = self.until.since(self.core.runtime.clock.now());
        left * 2 < self.until.since(self.sent)
    }

    async fn step(
        &mut self,
        key: &Key,
        value: &Bytes,
        term: &Term,
        deadline: Instant,
    ) -> Result<()> {
        let (core, lease) = (self.core, self.lease);
        let look = core.store.get(Get::node(key.clone()));
        // As long as nothing has moved, the new term is not to end meanwhile either.
        let limit = if self.begun {
            deadline
        } else {
            deadline.min(self.until)
        };
        let view = bounded(core, limit, look).await.map_err(as_read)?;
        let node = view.nodes.into_iter().next();
        let Some(Node {
            modified,
            lease: on,
            ..
        }) = node.filter(|it| it.value == *value && !it.is_dir)
        else {
            term.lose(Loss::Deleted);
            return Err(Loss::Deleted.into_error().at(key));
        };
        if on == Some(lease) {
            return Ok(());
        }
        if !self.begun && self.is_late() {
            let text = "the store took most of the new term to answer, so nothing was moved to it";
            return Err(Error::new(ErrorKind::Timeout, text));
        }
        let earliest = self.until.min(deadline);
        term.end_at(earliest);
        let first = !std::mem::replace(&mut self.begun, true);
        term.touched();
        let pinned = Condition::Both {
            value: value.clone(),
            index: modified,
        };
        let put = Put::new(key.clone(), value.clone(), Expiry::With(lease)).when(pinned);
        let outcome = bounded(core, earliest, core.store.put(put)).await;
        if first && outcome.as_ref().is_err_and(Error::changed_nothing) {
            self.begun = false;
            term.end_at(deadline);
        }
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The key, or the lease: the next look tells, and the term bounds the looking.
                Err(error.into_kind(ErrorKind::ConditionFailed, "it is looked at again"))
            }
            Err(error) => Err(error),
        }
    }
}

/// A read that got no answer has changed nothing.
pub(super) fn as_read(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Ambiguous => error.into_kind(ErrorKind::Timeout, "so it was not read"),
        _ => error,
    }
}
