//! Leases on a server that has none: a list of keys, each with a time-to-live of its own.
//!
//! A renewal is `refresh=true&ttl&prevValue=<own>&prevIndex=<last known>`. The index pins exactly
//! one version of the node, so of all attempts that name it at most one can ever take effect: an
//! attempt that was given up and commits later cannot move an expiry back that a younger one has
//! moved forward.
//!
//! ```text
//!  answer to an attempt          what it proves                                  since
//!  200                           this one landed; older ones never can           its own label
//!  101, own value, other index   an older one landed; which, nobody can tell     the oldest unanswered label,
//!                                                                                 or better: renew again
//!  101, other value; 404         it is not ours any more                         (gone)
//!  none                          nothing: the label is kept as unanswered        (unknown)
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::Method;

use super::driver::Driver;
use super::request::{Params, text};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, LeaseId, Ttl};
use crate::runtime::Instant;
use crate::store::{Attached, Condition, Delete, Grant, Granted, KeyRenewal, Renew, Renewed};
use crate::transport::Repeat;

/// How many keys are renewed at once.
const AT_ONCE: usize = 16;
/// How often one call renews a key again after finding that an older attempt had landed.
const TRIES: usize = 3;

/// All leases of a driver.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<BTreeMap<LeaseId, Lease>>);

#[derive(Debug)]
struct Lease {
    ttl: Ttl,
    /// Nothing is attached any more, and what is still here is to be deleted.
    revoked: bool,
    keys: BTreeMap<Key, Held>,
}

/// What is known of an attached key.
#[derive(Clone, Debug)]
struct Held {
    value: Bytes,
    /// When it was last modified, as far as answers tell.
    index: Option<Index>,
    /// The label of the oldest attempt at this index that got no answer.
    unanswered: Option<Instant>,
}

/// A put with a lease that is under way. Dropped without a word, its outcome is unknown.
#[derive(Debug)]
pub(super) struct Attaching<'a> {
    leases: &'a Leases,
    lease: LeaseId,
    key: Key,
    before: Option<Held>,
}

impl Leases {
    /// The term of a lease.
    pub(super) fn ttl(&self, lease: LeaseId) -> Result<Ttl> {
        match self.lock().get(&lease) {
            Some(it) if !it.revoked => Ok(it.ttl),
            _ => Err(no_lease(lease)),
        }
    }

    /// Notes that `value` is about to be written to `key`. What was known of the key's index is
    /// void from here on, whatever becomes of the write.
    pub(super) fn attaching(&self, lease: LeaseId, key: &Key, value: &Bytes) -> Attaching<'_> {
        let held = Held {
            value: value.clone(),
            index: None,
            unanswered: None,
        };
        let mut leases = self.lock();
        let before = leases
            .get_mut(&lease)
            .and_then(|it| it.keys.insert(key.clone(), held));
        Attaching {
            leases: self,
            lease,
            key: key.clone(),
            before,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a key, if it still hangs on the lease with this value.
    fn update(&self, lease: LeaseId, attached: &Attached, change: impl FnOnce(&mut Held)) {
        let mut leases = self.lock();
        let held = leases
            .get_mut(&lease)
            .and_then(|it| it.keys.get_mut(&attached.key));
        if let Some(held) = held.filter(|it| it.value == attached.value) {
            change(held);
        }
    }

    /// What was at `key` is gone: no lease needs to delete it any more.
    pub(super) fn removed(&self, key: &Key) {
        for lease in self.lock().values_mut() {
            lease.keys.remove(key);
        }
    }

    fn forget(&self, lease: LeaseId, key: &Key) {
        if let Some(it) = self.lock().get_mut(&lease) {
            it.keys.remove(key);
        }
    }
}

impl Attaching<'_> {
    /// It was written at this index, and hangs on no other lease any more.
    pub(super) fn landed(self, index: Index) {
        for (id, lease) in self.leases.lock().iter_mut() {
            if *id != self.lease {
                lease.keys.remove(&self.key);
            } else if let Some(held) = lease.keys.get_mut(&self.key) {
                held.index = Some(index);
            }
        }
    }

    /// It was certainly not written.
    pub(super) fn refused(self) {
        let mut leases = self.leases.lock();
        let Some(lease) = leases.get_mut(&self.lease) else {
            return;
        };
        match self.before {
            Some(before) => lease.keys.insert(self.key, before),
            None => lease.keys.remove(&self.key),
        };
    }
}

impl Driver {
    /// # Errors
    /// `InvalidTtl`: the members' clocks provably differ by half of it or more.
    pub(super) async fn grant(&self, grant: &Grant) -> Result<Granted> {
        let ttl = grant.ttl.round_up();
        self.ask_the_time().await;
        self.check_ttl(ttl)?;
        let skew = self.skew();
        let mut leases = self.leases.lock();
        let lease = leases.entry(grant.lease).or_insert_with(|| Lease {
            ttl,
            revoked: false,
            keys: BTreeMap::new(),
        });
        lease.ttl = ttl;
        lease.revoked = false;
        Ok(Granted::new(ttl).with_skew(skew))
    }

    pub(super) async fn renew(&self, renew: &Renew) -> Result<Renewed> {
        let ttl = self.leases.ttl(renew.lease)?;
        self.adopt(renew);
        let deadline = self.deadline_within(renew.patience);
        let renewals = renew.keys.iter().enumerate();
        let renewals = renewals.map(|(place, it)| async move {
            // One that is given up on its way is three requests the next time. The first ones are
            // sent whatever it takes.
            let answered = self.runtime.clock.now() + self.transport.usual();
            let outcome = if place >= AT_ONCE && answered > deadline {
                Ok(KeyRenewal::Untried)
            } else {
                self.renew_key(renew, ttl, it, deadline).await
            };
            (place, &it.key, outcome)
        });
        // Collected first: the futures do nothing until they are polled.
        let renewals: Vec<_> = renewals.collect();
        // In whichever order they are answered: one that hangs keeps no other from being sent.
        let outcomes = stream::iter(renewals).buffer_unordered(AT_ONCE);
        let mut outcomes: Vec<_> = outcomes.collect().await;
        outcomes.sort_by_key(|(place, ..)| *place);
        let mut keys = Vec::with_capacity(outcomes.len());
        let mut first_error = None;
        for (_, key, outcome) in outcomes {
            let renewal = outcome.unwrap_or_else(|error| {
                first_error.get_or_insert(error);
                KeyRenewal::Unknown
            });
            keys.push((key.clone(), renewal));
        }
        let untold = [KeyRenewal::Unknown, KeyRenewal::Untried];
        let all_unknown = keys.iter().all(|(_, it)| untold.contains(it));
        match first_error {
            Some(error) if all_unknown => Err(no_answer(error)),
            _ => Ok(Renewed::new(ttl, renew.at)
                .with_keys(keys)
                .with_skew(self.skew())),
        }
    }

    /// Makes the lease's list the one of the request.
    fn adopt(&self, renew: &Renew) {
        let mut leases = self.leases.lock();
        let Some(lease) = leases.get_mut(&renew.lease) else {
            return;
        };
        let mut known = std::mem::take(&mut lease.keys);
        for Attached { key, value } in &renew.keys {
            let held = known.remove(key).filter(|it| it.value == *value);
            let held = held.unwrap_or_else(|| Held {
                value: value.clone(),
                index: None,
                unanswered: None,
            });
            lease.keys.insert(key.clone(), held);
        }
    }

    /// One key's renewal. An error means that nothing can be told.
    async fn renew_key(
        &self,
        renew: &Renew,
        ttl: Ttl,
        attached: &Attached,
        deadline: Instant,
    ) -> Result<KeyRenewal> {
        let Attached { key, value } = attached;
        let own = text(value)?;
        let known = self
            .leases
            .lock()
            .get(&renew.lease)
            .and_then(|it| it.keys.get(key).cloned());
        let mut index = known.as_ref().and_then(|it| it.index);
        // Attempts before this call of which one may have landed.
        let earlier = known.and_then(|it| it.unanswered);
        let mut landed = None;
        let mut refused = false;
        for _ in 0..TRIES {
            let pin = match index {
                Some(index) => index,
                None => match self.look(key, deadline).await {
                    Ok(Some(node)) if !node.is_dir && node.value == *value => {
                        self.leases.update(renew.lease, attached, |held| {
                            held.index = Some(node.modified);
                            held.unanswered = None;
                        });
                        // Ours, and moved on: one of the attempts before this call has landed.
                        let older = earlier.filter(|_| refused);
                        landed = landed.or(older.map(|since| KeyRenewal::Live { since }));
                        node.modified
                    }
                    Ok(_) => {
                        self.leases.forget(renew.lease, key);
                        return Ok(KeyRenewal::Gone);
                    }
                    Err(error) => return landed.ok_or(error),
                },
            };
            // Before it is sent: this future may be dropped at any time.
            self.leases.update(renew.lease, attached, |held| {
                let oldest = held.unanswered.map_or(renew.at, |it| it.min(renew.at));
                held.unanswered = Some(oldest);
            });
            let params = Params::new()
                .flag("refresh")
                .number("ttl", ttl.whole_secs())
                .previous(Some(own), Some(pin));
            let call = self.form(Method::PUT, key, params)?;
            // Repeating is harmless: whichever lands first moves the index away from the pin.
            let error = match self.write(&call, Repeat::Harmless, deadline).await {
                Ok(reply) => {
                    let node = reply.body.node.node(reply.index);
                    self.leases.update(renew.lease, attached, |held| {
                        held.index = node.map(|it| it.modified);
                        held.unanswered = None;
                    });
                    return Ok(KeyRenewal::Live { since: renew.at });
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::NotAFile => {
                    self.leases.forget(renew.lease, key);
                    return Ok(KeyRenewal::Gone);
                }
                ErrorKind::ConditionFailed => {
                    // Either somebody else's, or an older attempt landed after all. The look
                    // tells which; after it a fresh attempt makes the term certain again.
                    (index, refused) = (None, true);
                }
                ErrorKind::Unreachable => {
                    // Certainly not sent.
                    let before = earlier.filter(|_| !refused);
                    self.leases
                        .update(renew.lease, attached, |held| held.unanswered = before);
                    return landed.ok_or(error);
                }
                _ => return landed.ok_or(error),
            }
        }
        let text = "the node changed with every renewal: does somebody else renew it?";
        landed.ok_or_else(|| Error::new(ErrorKind::Unavailable, text))
    }

    pub(super) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let keys = match self.leases.lock().get_mut(&lease) {
            None => return Ok(()),
            Some(it) => {
                it.revoked = true;
                it.keys.clone()
            }
        };
        let deletions = keys.into_iter();
        let deletions = deletions.map(|(key, held)| self.revoke_key(lease, key, held.value));
        let deletions: Vec<_> = deletions.collect();
        let outcomes: Vec<_> = stream::iter(deletions).buffered(AT_ONCE).collect().await;
        let failures: Vec<Error> = outcomes.into_iter().filter_map(Result::err).collect();
        let left = failures.len();
        match failures.into_iter().next() {
            None => {
                self.leases.lock().remove(&lease);
                Ok(())
            }
            Some(first) => {
                let text = format!(
                    "{left} of the lease's keys could not be deleted: {}",
                    first.detail()
                );
                let error = Error::new(first.kind(), text).caused_by(first);
                Err(error)
            }
        }
    }

    async fn revoke_key(&self, lease: LeaseId, key: Key, value: Bytes) -> Result<()> {
        let own = Condition::Value(value);
        match self.delete(&Delete::new(key.clone()).when(own)).await {
            Ok(_) => {}
            Err(error) if is_settled(error.kind()) => {}
            Err(error) => return Err(error.at(&key)),
        }
        self.leases.forget(lease, &key);
        Ok(())
    }
}

/// Whether a refused compare-and-delete shows that the key is not ours any more.
fn is_settled(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound
            | ErrorKind::ConditionFailed
            | ErrorKind::NotAFile
            | ErrorKind::NotADirectory
    )
}

fn no_lease(lease: LeaseId) -> Error {
    let text = format!("there is no lease {lease}: it was revoked, or never granted here");
    Error::new(ErrorKind::NotFound, text)
}

/// The error of a renewal that could tell about no key.
fn no_answer(error: Error) -> Error {
    if !error.is_ambiguous() {
        return error;
    }
    // A renewal that may have landed is not unclear about anything but its time.
    let text = error.detail().to_owned();
    Error::new(ErrorKind::Timeout, text).caused_by(error)
}
