//! The task of one consumer: follows the queue, registers, and does what the machine wants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

use super::claim::{Claimed, Hand, Taking, claim_lost, may_pass};
use super::class::Time;
use super::delivery::{Claim, Delivery, Ending, Order};
use super::errand::{
    self, Done, Errands, Post, Registering, Settling, What, in_flight, lost, next_item,
};
use super::job::JobId;
use super::machine::Machine;
use super::plan::Plan;
use super::register::Register;
use super::registration::{Registered, Registration};
use super::step::Outcome;
use crate::client::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::{Instant, Retry};
use crate::session::Loss;
use crate::store::{Node, Scope};
use crate::watcher::{Follow, Watcher};

/// The most that is taken in before something is done about it.
const AT_ONCE: usize = 1_000;

/// The driver's ends of a consumer's channels.
pub(super) struct Ends {
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    /// For deliveries to answer by.
    pub(super) to_me: mpsc::UnboundedSender<Order>,
    pub(super) out: mpsc::UnboundedSender<Result<Delivery>>,
    /// Dropped at the end.
    pub(super) ended: oneshot::Sender<()>,
}

/// Runs until it is told to stop and nothing is left, or the client is shut down.
pub(super) async fn drive(core: Arc<Core>, plan: Plan, ends: Ends) {
    let Ends {
        mut orders,
        to_me,
        out,
        ended,
    } = ends;
    let mut driver = Driver::new(core, plan, to_me, out);
    loop {
        let wake = driver.act();
        if driver.is_over() {
            break;
        }
        let clock = &driver.core.runtime.clock;
        tokio::select! {
            biased;
            Some(order) = orders.recv() => driver.obey(order),
            Some(done) = driver.busy.next() => driver.done(done),
            outcome = in_flight(&mut driver.registering) => driver.registered(outcome),
            loss = lost(driver.post.as_ref()) => driver.lost(loss),
            (key, item) = next_item(&mut driver.watchers) => driver.followed(&key, item),
            () = clock.sleep_until(wake) => {}
        }
        driver.catch_up(&mut orders);
    }
    driver.end().await;
    drop(ended);
}

struct Driver {
    core: Arc<Core>,
    plan: Plan,
    machine: Machine,
    watchers: Vec<Watcher>,
    registering: Option<Registering>,
    post: Option<Post>,
    /// Pauses between registrations, until a claim succeeds.
    again: Retry,
    /// Pauses between claims that the store does not answer.
    retry: Option<Retry>,
    live: BTreeMap<u64, Live>,
    busy: Errands,
    /// What is to be written at the end of this turn.
    endings: Vec<Settling>,
    is_draining: bool,
    to_me: mpsc::UnboundedSender<Order>,
    out: mpsc::UnboundedSender<Result<Delivery>>,
}

/// A claim that a delivery stands for.
struct Live {
    claim: Arc<Claim>,
    is_settling: bool,
}

impl Driver {
    fn new(
        core: Arc<Core>,
        plan: Plan,
        to_me: mpsc::UnboundedSender<Order>,
        out: mpsc::UnboundedSender<Result<Delivery>>,
    ) -> Self {
        let mut roots = vec![plan.paths.root.clone()];
        if plan.paths.is_raw {
            roots.push(plan.paths.jobs.clone());
        }
        let follow = |root| Watcher::new(core.store.clone(), root, Scope::Tree, &core.runtime);
        let mut driver = Self {
            machine: Machine::new(plan.paths.clone(), plan.slots, plan.max_attempts),
            watchers: roots.into_iter().map(follow).collect(),
            registering: None,
            post: None,
            again: Retry::new(),
            retry: None,
            live: BTreeMap::new(),
            busy: Errands::new(),
            endings: Vec::new(),
            is_draining: false,
            core,
            plan,
            to_me,
            out,
        };
        driver.register(Duration::ZERO);
        driver
    }

    fn time(&self) -> Time {
        let clock = &self.core.runtime.clock;
        Time {
            now: clock.now(),
            wall: clock.wall(),
        }
    }

    /// Takes in what has come meanwhile, so that what it calls for goes together.
    fn catch_up(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        for _ in 0..AT_ONCE {
            if let Ok(order) = orders.try_recv() {
                self.obey(order);
            } else if let Some(Some(done)) = self.busy.next().now_or_never() {
                self.done(done);
            } else if let Some((key, item)) = next_item(&mut self.watchers).now_or_never() {
                self.followed(&key, item);
            } else {
                return;
            }
        }
    }

    /// Does what is to be done now; when to look again.
    fn act(&mut self) -> Instant {
        let endings = std::mem::take(&mut self.endings);
        if let Some(post) = &self.post {
            errand::settle(&post.hand, endings, &self.busy);
        }
        let time = self.time();
        if self.machine.is_buried()
            && let Some(post) = &self.post
        {
            post.hand.term.lose(Loss::Deleted);
        }
        let mut wake = time.now + Duration::from_secs(3_600);
        let Some(post) = self
            .post
            .as_ref()
            .filter(|post| post.hand.term.check().is_ok())
        else {
            return wake;
        };
        let hand = post.hand.clone();
        let step = self.machine.step(time, &self.core.runtime.entropy);
        for nonce in step.lost {
            if let Some(live) = self.live.remove(&nonce) {
                tracing::debug!(target: "tenure::queue", claim = ?live.claim, "taken over");
                live.claim.lose(Loss::Deleted);
            }
        }
        errand::begin(&hand, step.wants, &self.busy);
        for (nonce, live) in &self.live {
            if live.is_settling {
                continue;
            }
            match live.claim.limit() {
                Some(limit) => wake = wake.min(limit),
                // It has run for too long, and knows it.
                None => {
                    let _ = self.to_me.send(Order::Dropped(*nonce));
                }
            }
        }
        step.wake.map_or(wake, |at| wake.min(at))
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Settle(nonce, ending, answer) => self.settle(nonce, ending, Some(answer)),
            Order::Dropped(nonce) => {
                let ending = match self.live.get(&nonce) {
                    Some(live) if live.is_settling => return,
                    Some(live) if live.claim.is_handed() => {
                        let reason = "it was dropped, or ran for too long".to_owned();
                        Ending::Again(Duration::ZERO, reason)
                    }
                    Some(_) => Ending::Uncounted,
                    None => return,
                };
                self.settle(nonce, ending, None);
            }
            Order::Stop => {
                self.drain();
                // Nobody will get these. What is on its way through the channel may lie there for
                // as long as this task runs, so it is not waited for.
                let waiting = self.live.iter().filter(|(_, live)| !live.claim.is_handed());
                let waiting: Vec<u64> = waiting.map(|(nonce, _)| *nonce).collect();
                for nonce in waiting {
                    self.obey(Order::Dropped(nonce));
                }
            }
        }
    }

    fn settle(
        &mut self,
        nonce: u64,
        ending: Ending,
        answer: Option<oneshot::Sender<Result<bool>>>,
    ) {
        let refuse = |answer: Option<oneshot::Sender<_>>| {
            if let Some(answer) = answer {
                // Who does not wait any more does not want to know.
                let _ = answer.send(Err(claim_lost(&self.plan.paths.jobs)));
            }
        };
        let (Some(live), true) = (self.live.get_mut(&nonce), self.post.is_some()) else {
            return refuse(answer);
        };
        // An order that was given in time may come late; what is over is over.
        let claimed = live.claim.claimed.clone();
        let is_over = answer.is_some() && live.claim.check().is_err();
        if is_over {
            return refuse(answer);
        }
        if !self.machine.settling(&claimed.id, nonce) {
            self.live.remove(&nonce);
            return refuse(answer);
        }
        live.is_settling = true;
        if answer.is_none() {
            live.claim.lose(Loss::Expired);
        }
        let wall = self.core.runtime.clock.wall();
        let to = self.plan.state_after(&claimed, ending, wall);
        self.endings.push(Settling {
            claimed,
            to,
            answer,
        });
    }

    fn done(&mut self, done: Done) {
        let Done { tag, id, what } = done;
        let hand = self.post.as_ref().map(|post| post.hand.clone());
        let hand = hand.filter(|hand| hand.tag == tag);
        match what {
            What::Took(taking, to) => {
                // Of an earlier registration: it goes with that.
                if let Some(hand) = hand {
                    self.took(&hand, &id, taking, &to);
                }
            }
            What::Tidied(outcome) => {
                if hand.is_some() {
                    let time = self.time();
                    self.machine.finished(&id, outcome, time);
                }
            }
            What::Settled(
                Settling {
                    claimed,
                    to,
                    answer,
                },
                outcome,
            ) => {
                let live = self.live.remove(&claimed.nonce);
                if let Some(hand) = hand {
                    self.settled(hand, &claimed, &to, &outcome);
                }
                if let Some(live) = live {
                    live.claim.lose(Loss::Closed);
                }
                let is_dead = matches!(to, Register::Dead { .. });
                if let Some(answer) = answer {
                    let _ = answer.send(outcome.map(|_| is_dead));
                } else if let Err(error) = outcome {
                    tracing::debug!(target: "tenure::queue", %id, %error, "not given back");
                }
            }
        }
    }

    fn took(&mut self, hand: &Arc<Hand>, id: &JobId, taking: Taking, to: &Register) {
        match taking {
            Taking::Taken(claimed, node) => {
                self.retry = None;
                self.again = Retry::new();
                self.deliver(hand, claimed, node);
            }
            Taking::Not(mut outcome, error) => {
                let time = self.time();
                if error.as_ref().is_some_and(|error| !may_pass(error)) {
                    outcome = Outcome::Stuck;
                }
                self.machine.finished(id, outcome, time);
                if let Some(error) = error {
                    tracing::debug!(target: "tenure::queue", %id, ?to, %error, "not claimed");
                    self.refused(error);
                }
            }
        }
    }

    fn deliver(&mut self, hand: &Arc<Hand>, claimed: Claimed, node: Node) {
        let (id, nonce, index) = (claimed.id.clone(), claimed.nonce, claimed.index);
        self.core.saw(index);
        if !self.machine.claimed(&id, nonce, index) {
            return;
        }
        let limits = (self.core.runtime.clock.clone(), self.plan.max_run);
        let term = hand.term.clone();
        let claim = Claim::new(claimed, node, term, limits, self.to_me.clone());
        tracing::debug!(target: "tenure::queue", ?claim, "claimed");
        let live = Live {
            claim: claim.clone(),
            is_settling: false,
        };
        self.live.insert(nonce, live);
        if self.is_draining {
            return self.obey(Order::Dropped(nonce));
        }
        // Nobody there: the delivery is dropped with the answer, and so given back.
        drop(self.out.send(Ok(Delivery::new(claim))));
    }

    fn settled(
        &mut self,
        hand: Arc<Hand>,
        claimed: &Claimed,
        to: &Register,
        outcome: &Result<(crate::Index, bool)>,
    ) {
        let (id, time) = (claimed.id.clone(), self.time());
        match outcome {
            Ok((index, false)) if matches!(to, Register::Done { .. }) => {
                self.machine.acked(&id);
                let (index, job) = (*index, claimed.job);
                self.busy.push(Box::pin(async move {
                    // If it cannot be done now, the job is found when it has lain for a while.
                    let deleted = hand.delete_job(&id, job).await;
                    let shown = match deleted {
                        Ok(Some(deleted)) if !hand.paths.is_raw => deleted,
                        _ => index,
                    };
                    Done {
                        tag: hand.tag,
                        id,
                        what: What::Tidied(Outcome::Written(shown)),
                    }
                }));
            }
            Ok((index, _)) => self.machine.finished(&id, Outcome::Written(*index), time),
            Err(_) => self.machine.finished(&id, Outcome::Failed, time),
        }
    }

    /// A claim failed: some failures concern one job, some the store, and some will not pass.
    fn refused(&mut self, error: Error) {
        if may_pass(&error) {
            let retry = self.retry.get_or_insert_with(Retry::new);
            let pause = retry.pause(&self.core.runtime.entropy);
            self.machine.rest(self.core.runtime.clock.now() + pause);
            return;
        }
        match error.kind() {
            ErrorKind::Unauthorized | ErrorKind::Forbidden | ErrorKind::ClusterChanged => {
                self.fail(error);
            }
            _ => tracing::warn!(target: "tenure::queue", %error, "a job cannot be claimed"),
        }
    }

    fn followed(&mut self, key: &Key, item: Option<Result<Follow>>) {
        let time = self.time();
        match item {
            Some(Ok(Follow::Snapshot(view))) => self.machine.snapshot(key, view, time),
            Some(Ok(Follow::Event(event))) => self.machine.event(key, event, time),
            Some(Ok(Follow::Progress(index))) => self.machine.progress(key, index),
            Some(Ok(Follow::Interrupted(_) | Follow::Resumed(_))) => {}
            Some(Err(error)) => self.fail(error),
            None => self.watchers.retain(|watcher| watcher.key() != key),
        }
    }

    fn register(&mut self, pause: Duration) {
        let (core, plan) = (self.core.clone(), self.plan.clone());
        self.registering = Some(Box::pin(async move {
            core.runtime.clock.sleep(pause).await;
            Registration::take(&core, &plan.paths.consumers, &plan.keep, plan.slots).await
        }));
    }

    fn registered(&mut self, outcome: Result<Registered>) {
        self.registering = None;
        let error = match outcome {
            Ok(registered) => {
                let Registered {
                    registration,
                    term,
                    tag,
                    at,
                } = registered;
                self.machine.registered(tag, at);
                let hand = Arc::new(Hand {
                    core: self.core.clone(),
                    paths: self.plan.paths.clone(),
                    dedupe: self.plan.dedupe,
                    tag,
                    term,
                });
                self.post = Some(Post { registration, hand });
                return;
            }
            Err(error) => error,
        };
        let passes = [ErrorKind::Lost, ErrorKind::NotFound];
        if may_pass(&error) || passes.contains(&error.kind()) {
            tracing::debug!(target: "tenure::queue", %error, "no consumer's node yet");
            let pause = self.again.pause(&self.core.runtime.entropy);
            self.register(pause);
        } else {
            self.fail(error);
        }
    }

    /// The node is lost, and every claim with it: begins anew.
    fn lost(&mut self, loss: Loss) {
        if let Some(post) = self.post.take()
            && self.core.open().is_err()
        {
            post.registration.abandon();
        }
        self.machine.unregistered();
        for (_, live) in std::mem::take(&mut self.live) {
            live.claim.lose(loss);
        }
        if !self.is_draining {
            tracing::debug!(target: "tenure::queue", root = %self.plan.paths.root, ?loss, "registering anew");
            let pause = self.again.pause(&self.core.runtime.entropy);
            self.register(pause);
        }
    }

    /// Something that will not pass: the user is told, and no more is claimed.
    fn fail(&mut self, error: Error) {
        let _ = self.out.send(Err(error));
        self.drain();
    }

    fn drain(&mut self) {
        self.is_draining = true;
        self.machine.drain();
        self.registering = None;
    }

    fn is_over(&self) -> bool {
        self.is_draining && self.live.is_empty() && self.busy.is_empty()
    }

    async fn end(self) {
        if let Some(post) = self.post {
            post.registration.release().await;
        }
    }
}
