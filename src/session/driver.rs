//! The task that keeps one session: asks for the lease, renews it in time, revokes it at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::Instant;
use crate::session::machine::Machine;
use crate::session::retime::retime;
use crate::session::rewrite::Rewriting;
use crate::session::who::announce;
use crate::session::{Core, Loss, Order, SessionState, Shared};
use crate::store::{Grant, Granted, KeyRenewal, Renew, Renewed};

/// Runs until the session is lost or closed.
pub(super) async fn drive(core: Arc<Core>, mut orders: mpsc::UnboundedReceiver<Order>) {
    if start(&core).await {
        keep(&core, &mut orders).await;
    }
    // Whoever still waits for a renewal is told by the end of its answer.
    drop(orders);
    let state = {
        let mut shared = core.lock();
        let state = shared.machine.state();
        shared.lose_all(if state == SessionState::Closed {
            Loss::Closed
        } else {
            Loss::Expired
        });
        state
    };
    core.publish(state);
    if state == SessionState::Failed {
        return;
    }
    if state == SessionState::Lost {
        // Not at once: the margin is there for an act that was allowed just before the deadline.
        let ttl = core.lock().machine.ttl().get();
        tokio::select! {
            biased;
            () = core.closing.cancelled() => {}
            () = core.runtime.clock.sleep(ttl) => {}
        }
    }
    revoke(&core).await;
}

/// How often a lease is asked for again that took most of its term to come.
const SLOW_GRANTS: u32 = 2;

/// Asks for the lease; whether it was granted.
async fn start(core: &Core) -> bool {
    let mut slow = 0;
    loop {
        let sent = core.runtime.clock.now();
        let grant = Grant::new(core.id, core.lock().machine.ttl());
        let outcome = tokio::select! {
            biased;
            () = core.closing.cancelled() => {
                // The request may have been sent: only a revocation makes that harmless.
                core.lock().machine.close();
                return false;
            }
            outcome = core.store.grant(grant) => outcome,
        };
        // Once it was, it is there, whatever becomes of the next request.
        let granted = slow > 0 || outcome.is_ok();
        let now = core.runtime.clock.now();
        if slow < SLOW_GRANTS && outcome.as_ref().is_ok_and(|it| is_late(sent, *it, now)) {
            // It is there: this is a renewal, and over a connection that is there too.
            slow += 1;
            continue;
        }
        let pause = {
            let mut shared = core.lock();
            match outcome.and_then(|granted| shared.machine.granted(sent, granted)) {
                Ok(()) => {
                    drop(shared);
                    core.publish(SessionState::Live);
                    return true;
                }
                Err(error) => {
                    let pause = shared.machine.refused(&error, &core.runtime.entropy);
                    shared.failure = Some(error);
                    pause
                }
            }
        };
        let Some(pause) = pause else {
            if granted {
                // By the store, but not long enough for us. Who waits for it is told first.
                core.publish(SessionState::Failed);
                revoke(core).await;
            }
            return false;
        };
        core.runtime.clock.sleep(pause).await;
    }
}

/// Whether more than half of a term is over before it begins. What is acquired in the rest could be
/// lost before the first renewal is answered.
fn is_late(sent: Instant, granted: Granted, now: Instant) -> bool {
    Machine::prospect(sent, granted).is_ok_and(|until| until.since(now) * 2 < until.since(sent))
}

/// Renews until the session is over.
async fn keep(core: &Core, orders: &mut mpsc::UnboundedReceiver<Order>) {
    // One at a time, tried again between renewals: an order that comes meanwhile waits for it.
    let mut rewriting: Option<Rewriting> = None;
    loop {
        let now = core.runtime.clock.now();
        let (due, deadline) = {
            let mut shared = core.lock();
            if shared.machine.expire(now) {
                return;
            }
            let (Some(due), Some(deadline)) = (shared.machine.due(), shared.machine.deadline())
            else {
                return;
            };
            (due, deadline)
        };
        tokio::select! {
            biased;
            () = core.closing.cancelled() => {
                core.lock().machine.close();
                return;
            }
            // Before any order: a row of those that fail must not use up the term.
            () = core.runtime.clock.sleep_until(due.min(deadline)) => {}
            () = core.sooner.notified() => continue,
            rewrite = due_rewrite(core, &mut rewriting) => {
                tokio::select! {
                    biased;
                    () = core.closing.cancelled() => {}
                    again = rewrite.attempt(core) => rewriting = again,
                }
                continue;
            }
            Some(order) = orders.recv(), if rewriting.is_none() => {
                match order {
                    Order::Renew { ttl, done } => {
                        let outcome = tokio::select! {
                            biased;
                            () = core.closing.cancelled() => Err(Loss::Closed.into_error()),
                            outcome = retime(core, ttl) => outcome,
                        };
                        // Whoever asked may have gone away.
                        let _ = done.send(outcome);
                    }
                    Order::Rewrite { key, value, done } => {
                        rewriting = Some(Rewriting::new(key, value, done, now));
                    }
                    Order::Announce => {
                        core.lock().announced = true;
                        announce(core).await;
                    }
                }
                continue;
            }
        }
        if core.runtime.clock.has_passed(due) {
            renew(core).await;
            // Again, if it failed before or was deleted.
            announce(core).await;
        }
    }
}

/// The rewrite, when it is time for its next attempt; never returns if there is none.
async fn due_rewrite(core: &Core, rewriting: &mut Option<Rewriting>) -> Rewriting {
    if let Some(rewrite) = rewriting {
        core.runtime.clock.sleep_until(rewrite.due()).await;
    }
    match rewriting.take() {
        Some(rewrite) => rewrite,
        None => std::future::pending().await,
    }
}

/// One attempt to renew, with a share of what is left to what ends first.
pub(super) async fn renew(core: &Core) {
    let sent = core.runtime.clock.now();
    let (lease, asked, end) = {
        let mut shared = core.lock();
        let ends = [shared.earliest(), shared.machine.deadline()];
        let end = ends.into_iter().flatten().min();
        (shared.lease, shared.attached(), end.unwrap_or(sent))
    };
    let keys: Vec<Key> = asked.iter().map(|attached| attached.key.clone()).collect();
    let patience = (end.since(sent) / 3).max(Duration::from_millis(50));
    // What the store knows by then is to be heard too.
    let request = Renew::new(lease, sent, asked).within(patience - patience / 8);
    let answer = tokio::select! {
        biased;
        () = core.closing.cancelled() => return,
        answer = core.store.renew(request) => answer,
        () = core.runtime.clock.sleep(patience) => {
            Err(Error::new(ErrorKind::Timeout, format!("no answer within {} ms", patience.as_millis())))
        }
    };
    let state = {
        let mut shared = core.lock();
        let now = core.runtime.clock.now();
        settle(core, &mut shared, &keys, answer, now);
        shared.machine.state()
    };
    core.publish(state);
}

/// Carries an answer into the session's machine and into the term of each key that was `asked`
/// for: one that was attached meanwhile counts from its own send.
fn settle(core: &Core, shared: &mut Shared, asked: &[Key], answer: Result<Renewed>, now: Instant) {
    if !matches!(&answer, Ok(renewed) if renewed.keys.is_empty()) {
        // Without leases a renewal is a write, also one without an answer.
        let asked = asked.iter().filter_map(|key| shared.terms.get(key));
        asked.for_each(|term| term.touched());
    }
    match answer {
        Ok(renewed) if renewed.keys.is_empty() => {
            shared.machine.renewed(renewed.since, renewed.ttl, now);
            let nearer = shared.machine.widen(renewed.skew);
            let asked = asked.iter().filter_map(|key| shared.terms.get(key));
            asked.for_each(|term| term.renewed(renewed.since));
            shared.reckon_all(nearer);
            shared.mind_the_earliest(now);
        }
        Ok(renewed) => {
            let Renewed {
                ttl,
                since,
                keys,
                skew,
            } = renewed;
            shared.count_keys(keys.len());
            let mut answers: BTreeMap<Key, KeyRenewal> = keys.into_iter().collect();
            let answers: Vec<_> = asked
                .iter()
                .map(|key| (key, answers.remove(key).unwrap_or(KeyRenewal::Unknown)))
                .filter(|(key, _)| shared.terms.contains_key::<Key>(key))
                .collect();
            if answers.iter().any(|(_, it)| *it == KeyRenewal::Unknown) {
                let entropy = &core.runtime.entropy;
                shared.machine.renewed_in_part(since, ttl, now, entropy);
            } else {
                shared.machine.renewed(since, ttl, now);
            }
            let nearer = shared.machine.widen(skew);
            for (key, answer) in answers {
                let Some(term) = shared.terms.get(key) else {
                    continue;
                };
                match answer {
                    KeyRenewal::Live { since } => term.renewed(since),
                    KeyRenewal::Unknown => term.doubt(),
                    // The next renewal begins with it, in its time.
                    KeyRenewal::Untried => {}
                    KeyRenewal::Gone => {
                        term.lose(Loss::Deleted);
                        shared.terms.remove(key);
                    }
                }
            }
            shared.reckon_all(nearer);
            shared.mind_the_earliest(now);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::debug!(target: "tenure::session", lease = %core.id, %error, "lease gone");
            shared.machine.gone();
        }
        Err(error) => {
            tracing::debug!(target: "tenure::session", lease = %core.id, %error, "renewal failed");
            shared.machine.missed(now, &core.runtime.entropy);
            shared.mind_the_earliest(now);
            shared.terms.values().for_each(|term| term.doubt());
        }
    }
}

/// Ends the lease, for as long as it could still be alive.
async fn revoke(core: &Core) {
    let clock = &core.runtime.clock;
    let last = clock.now() + core.lock().machine.ttl().get();
    let mut pause = Duration::from_millis(25);
    let (leases, doubtful) = {
        let mut shared = core.lock();
        let others = shared.others.iter().copied();
        let leases = others.chain([shared.lease]).collect::<Vec<_>>();
        (leases, shared.doubtful.take())
    };
    let end_all = async || {
        for lease in &leases {
            core.store.revoke(*lease).await?;
        }
        match &doubtful {
            Some(doubt) => doubt.end(core).await,
            None => Ok(()),
        }
    };
    while let Err(error) = end_all().await {
        if clock.has_passed(last) {
            tracing::warn!(target: "tenure::session", lease = %core.id, %error, "lease left to its TTL");
            return;
        }
        clock.sleep(core.runtime.entropy.jitter(pause)).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    core.revoked.store(true, Ordering::Release);
}
