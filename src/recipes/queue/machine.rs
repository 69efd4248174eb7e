//! What a consumer decides: which jobs it claims, what it puts back, what it clears away. Pure: no
//! clock, no I/O.
//!
//! # Who claims what
//! The free slots of all consumers stand in a line, in the order in which the changes of the queue
//! freed them. The first open job is for the first slot, the second for the second, and so on. A
//! claim takes a job and its slot away together, a new job or a freed slot comes behind the others:
//! so what a job is paired with stays while it waits, consumers whose views are of different age
//! agree on it, and nobody races for the head. Who comes later knows less about the order of the
//! slots before its own, but how many there are, which is all that its own place depends on.
//!
//! What moves the pairs is what comes to the head (a higher lane, a job that was given back), and
//! time: whoever lets a job pass (stopped, draining, slow) is passed over until the view shows a
//! claim of it. Then two may claim one job; one of them fails, and its view soon shows why. Nobody
//! passes itself over: the others do that.
//!
//! # What is mine
//! ```text
//! claim ─▶ Claiming ─▶ Held ─▶ Settling (ack, nack, put back) ─▶ Tidying ─▶ Until the view shows it
//!              └─ failed ─▶ Doubt, until the view shows why or some time has passed
//! ```
//! A register that the view shows as claimed by me, and that is in none of these, was claimed by a
//! request that came late: nobody was given the job, so it is put back, uncounted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::class::Time;
use super::job::JobId;
use super::paths::Paths;
use super::register::Register;
use super::step::{Outcome, Step, Want};
use super::view::View;
use crate::key::{Index, Key, Tag};
use crate::runtime::{Entropy, Instant};
use crate::store::{self, Event};

/// How long a pair is waited for at least, and at most.
const LAPSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// What a claim is thought to take before one was seen.
const ECHO: Duration = Duration::from_millis(100);
/// A job that is done is deleted by whoever did it; by others after this long, and up to twice as
/// long.
const FINISHED: Duration = Duration::from_secs(2);
/// For how long a register may be without a job: its producer is about to write it.
const ORPHAN: Duration = Duration::from_secs(600);
/// For how long a job is left alone after a failure that the view does not explain.
const DOUBT: Duration = Duration::from_secs(1);
/// For how long after one that will not pass.
const ASIDE: Duration = Duration::from_secs(60);

/// A consumer's mind.
#[derive(Debug)]
pub(super) struct Machine {
    view: View,
    slots: usize,
    max_attempts: u32,
    /// Its node, and when that was made; `None` while there is none.
    me: Option<(Tag, Index)>,
    /// Whether it claims no more.
    is_draining: bool,
    /// No claim before this: the store does not answer.
    rest: Option<Instant>,
    /// The jobs that are paired, with whom, and since when.
    awaited: BTreeMap<JobId, Awaited>,
    mine: BTreeMap<JobId, Mine>,
    /// Those that were found taken over.
    lost: Vec<u64>,
    /// When the store told of something last.
    heard: Instant,
    /// How long it took of late until the view showed the claim of what was paired.
    echo: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Awaited {
    by: Tag,
    since: Instant,
}

/// What this consumer has to do with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mine {
    /// A claim of this nonce is under way.
    Claiming(u64),
    /// Claimed, at this index.
    Held { nonce: u64, index: Index },
    /// It is being acked, nacked or put back.
    Settling,
    /// Something is being cleared away.
    Tidying,
    /// Done; the view does not show it before this index.
    Until(Index),
    /// Failed. To be let alone until then, or until it changes.
    Doubt(Instant),
    /// The store refuses to do anything about it, for a reason that will not pass. To be let alone
    /// until then, or until it changes; nobody waits for it.
    Aside(Instant),
}

impl Machine {
    pub(super) fn new(paths: Paths, slots: usize, max_attempts: u32) -> Self {
        Self {
            view: View::new(paths),
            slots,
            max_attempts,
            me: None,
            is_draining: false,
            rest: None,
            awaited: BTreeMap::new(),
            mine: BTreeMap::new(),
            lost: Vec::new(),
            heard: Instant::new(Duration::ZERO),
            echo: ECHO,
        }
    }

    /// It has a node now.
    pub(super) fn registered(&mut self, tag: Tag, at: Index) {
        self.me = Some((tag, at));
    }

    /// Its node is gone: nothing is its own any more.
    pub(super) fn unregistered(&mut self) {
        self.me = None;
        self.mine.clear();
        self.awaited.clear();
    }

    /// Whether its node was seen to be gone.
    pub(super) fn is_buried(&self) -> bool {
        match (self.me, self.view.index()) {
            (Some((tag, at)), Some(index)) => index >= at && !self.view.has(tag),
            _ => false,
        }
    }

    /// It claims no more.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    /// It claims nothing until then.
    pub(super) fn rest(&mut self, until: Instant) {
        self.rest = Some(until);
    }

    pub(super) fn snapshot(&mut self, root: &Key, view: store::View, time: Time) {
        self.view.snapshot(root, view, time);
        if time.now >= self.heard + self.lapse() {
            // What others have done meanwhile was not seen.
            self.awaited.clear();
        }
        self.heard = time.now;
        let ids: Vec<JobId> = self.mine.keys().cloned().collect();
        for id in ids {
            self.touched(&id, time);
        }
    }

    pub(super) fn event(&mut self, root: &Key, event: Event, time: Time) {
        self.heard = time.now;
        if let Some(id) = self.view.event(root, event, time) {
            self.touched(&id, time);
        }
    }

    pub(super) fn progress(&mut self, root: &Key, index: Index) {
        self.view.progress(root, index);
    }

    /// A claim has succeeded, and its job was read. False if somebody has ended it since.
    pub(super) fn claimed(&mut self, id: &JobId, nonce: u64, index: Index) -> bool {
        if self.has_ended(id, nonce, index) {
            self.mine.remove(id);
            return false;
        }
        self.mine.insert(id.clone(), Mine::Held { nonce, index });
        true
    }

    /// A claim is about to be settled. False if it is not held any more.
    pub(super) fn settling(&mut self, id: &JobId, nonce: u64) -> bool {
        let is_held =
            matches!(self.mine.get(id), Some(Mine::Held { nonce: held, .. }) if *held == nonce);
        if is_held {
            self.mine.insert(id.clone(), Mine::Settling);
        }
        is_held
    }

    /// It is acked; its job is still to be deleted.
    pub(super) fn acked(&mut self, id: &JobId) {
        self.mine.insert(id.clone(), Mine::Tidying);
    }

    /// What was begun is over.
    pub(super) fn finished(&mut self, id: &JobId, outcome: Outcome, time: Time) {
        let doubt = Mine::Doubt(time.now + DOUBT);
        let next = match outcome {
            Outcome::Written(index) => Some(Mine::Until(index)),
            Outcome::Cleared => self.view.job_modified(id).map(|_| doubt),
            Outcome::IsDone(seen) => {
                self.view.is_done(id, seen, time);
                None
            }
            Outcome::Failed => Some(doubt),
            Outcome::Stuck => {
                self.view.set_aside(id);
                Some(Mine::Aside(time.now + ASIDE))
            }
        };
        match next {
            Some(mine) => drop(self.mine.insert(id.clone(), mine)),
            None => drop(self.mine.remove(id)),
        }
    }

    /// What is to be done now.
    pub(super) fn step(&mut self, time: Time, entropy: &Entropy) -> Step {
        let mut step = Step {
            lost: std::mem::take(&mut self.lost),
            ..Step::default()
        };
        let Some((me, at)) = self.me else {
            return step;
        };
        let Some(index) = self.view.index().filter(|index| *index >= at) else {
            return step;
        };
        let view = &mut self.view;
        self.mine.retain(|id, mine| match mine {
            Mine::Until(until) => *until > index,
            Mine::Doubt(until) => *until > time.now,
            Mine::Aside(until) if *until <= time.now => {
                view.look_again(id, time);
                false
            }
            _ => true,
        });
        let ripe = self.view.ripen(time);
        step.wake = ripe.map(|wall| time.now + wall.saturating_sub(time.wall));
        self.put_back_strays(me, &mut step);
        self.tidy(me, time, &mut step);
        if !self.is_draining {
            let pairs = self.pairs(me, time.now, &mut step);
            self.claim(me, pairs, (time.now, entropy), &mut step);
        }
        let doubts = self.mine.values().filter_map(|mine| match mine {
            Mine::Doubt(until) | Mine::Aside(until) => Some(*until),
            _ => None,
        });
        if let Some(until) = doubts.min() {
            step.wake_at(until);
        }
        step
    }

    /// Looks what a change of a job's register or of the job means for what is mine, and for whom
    /// it shows to be awake.
    fn touched(&mut self, id: &JobId, time: Time) {
        let register = self
            .view
            .register(id)
            .and_then(|seen| seen.register.as_ref());
        if let Some(Register::Claimed { consumer, .. }) = register
            && let Some(awaited) = self.awaited.remove(id)
            && awaited.by == *consumer
        {
            let took = time.now.since(awaited.since);
            self.echo = took.max(self.echo - self.echo / 8);
        }
        if self.view.has_woken() {
            // It was awake all the time: that was too soon.
            self.echo = self.echo.max(self.lapse());
        }
        match self.mine.get(id) {
            Some(Mine::Held { nonce, index }) if self.has_ended(id, *nonce, *index) => {
                self.lost.push(*nonce);
                self.mine.remove(id);
            }
            Some(Mine::Doubt(_) | Mine::Aside(_)) => drop(self.mine.remove(id)),
            _ => {}
        }
    }

    /// Whether the view shows that a claim, made at `index`, is over.
    fn has_ended(&self, id: &JobId, nonce: u64, index: Index) -> bool {
        if self.view.index().is_none_or(|at| at < index) {
            return false;
        }
        let register = self
            .view
            .register(id)
            .and_then(|seen| seen.register.as_ref());
        !matches!(register, Some(Register::Claimed { claim, .. }) if *claim == nonce)
    }

    /// Claims of mine that nobody here knows of.
    fn put_back_strays(&mut self, me: Tag, step: &mut Step) {
        let strays = self
            .view
            .claims(me)
            .filter(|id| !self.mine.contains_key(id));
        let strays: Vec<JobId> = strays.cloned().collect();
        for id in strays {
            let Some(from) = self.view.register(&id).cloned() else {
                continue;
            };
            let attempts = from.register.as_ref().map_or(0, Register::attempts);
            let to = Register::Ready {
                attempts: attempts.saturating_sub(1),
                not_before: Duration::ZERO,
            };
            let from = Some(from);
            self.mine.insert(id.clone(), Mine::Tidying);
            step.wants.push(Want::Write { id, from, to });
        }
    }

    /// What others have left lying.
    fn tidy(&mut self, me: Tag, time: Time, step: &mut Step) {
        let mut wants = Vec::new();
        for (since, id) in self.view.finished() {
            if time.now < *since + FINISHED {
                step.wake_at(*since + FINISHED);
                break;
            }
            // Not all at the same time.
            let share = (hash(me, id) >> 32) as u32;
            let due = *since + FINISHED.mul_f64(1.0 + f64::from(share) / f64::from(u32::MAX));
            match self.view.job_modified(id) {
                _ if self.mine.contains_key(id) => {}
                Some(index) if time.now >= due => {
                    let id = id.clone();
                    wants.push(Want::DeleteJob { id, index });
                }
                _ => step.wake_at(due),
            }
        }
        for (since, id) in self.view.orphans() {
            if time.now < *since + ORPHAN {
                step.wake_at(*since + ORPHAN);
                break;
            }
            // One does it; if that one does not, all do.
            let is_mine = self.chosen(id, self.view.consumers()) == Some(me);
            let due = *since + if is_mine { ORPHAN } else { ORPHAN * 2 };
            match self.view.register(id) {
                _ if self.mine.contains_key(id) => {}
                Some(seen) if time.now >= due => {
                    let (id, index) = (id.clone(), seen.index);
                    wants.push(Want::DeleteRegister { id, index });
                }
                _ => step.wake_at(due),
            }
        }
        for want in &wants {
            self.mine.insert(want.id().clone(), Mine::Tidying);
        }
        step.wants.append(&mut wants);
    }

    /// The open jobs that are for me; passes over who lets one pass.
    fn pairs(&mut self, me: Tag, now: Instant, step: &mut Step) -> Vec<JobId> {
        let lapse = self.lapse();
        loop {
            let mut known = std::mem::take(&mut self.awaited);
            let (mut mine, mut late) = (Vec::new(), BTreeSet::new());
            for (id, by) in self.view.pairs() {
                let awaited = match known.remove(id) {
                    Some(awaited) if awaited.by == by => awaited,
                    _ => Awaited { by, since: now },
                };
                if by == me {
                    // I know better whether I am awake: who passed itself over would never come
                    // back.
                    mine.push(id.clone());
                } else if now >= awaited.since + lapse {
                    late.insert(by);
                    continue;
                } else {
                    step.wake_at(awaited.since + lapse);
                }
                self.awaited.insert(id.clone(), awaited);
            }
            if late.is_empty() {
                return mine;
            }
            for tag in late {
                self.view.pass_over(tag);
            }
        }
    }

    /// How long a pair is waited for.
    fn lapse(&self) -> Duration {
        (self.echo * 3).clamp(LAPSE.0, LAPSE.1)
    }

    /// Claims what is for me, in order; what has failed too often is given up instead.
    fn claim(
        &mut self,
        me: Tag,
        ids: Vec<JobId>,
        (now, entropy): (Instant, &Entropy),
        step: &mut Step,
    ) {
        if let Some(rest) = self.rest.filter(|rest| now < *rest) {
            return step.wake_at(rest);
        }
        let is_active =
            |mine: &&Mine| matches!(mine, Mine::Claiming(_) | Mine::Held { .. } | Mine::Settling);
        let active = self.mine.values().filter(is_active).count();
        let mut free = self.slots.saturating_sub(active);
        for id in ids {
            if self.mine.contains_key(&id) {
                continue;
            }
            let Some(job) = self.view.job_modified(&id) else {
                continue;
            };
            let from = self.view.register(&id).cloned();
            let register = from.as_ref().and_then(|seen| seen.register.as_ref());
            let attempts = register.map_or(0, Register::attempts);
            if attempts >= self.max_attempts {
                let reason = format!("given up after {attempts} deliveries");
                let to = Register::Dead { attempts, reason };
                self.mine.insert(id.clone(), Mine::Tidying);
                step.wants.push(Want::Write { id, from, to });
            } else if free > 0 {
                free -= 1;
                let claim = entropy.u64();
                let to = Register::Claimed {
                    attempts: attempts + 1,
                    consumer: me,
                    claim,
                };
                self.mine.insert(id.clone(), Mine::Claiming(claim));
                step.wants.push(Want::Claim { id, job, from, to });
            }
        }
    }

    /// The one of these whose hash with a job is the highest.
    fn chosen(&self, id: &JobId, among: impl Iterator<Item = Tag>) -> Option<Tag> {
        among.max_by_key(|tag| (hash(*tag, id), *tag))
    }
}

/// The same everywhere and for ever: FNV-1a, and a last mix, without which names that end alike
/// would have hashes that begin alike.
fn hash(tag: Tag, id: &JobId) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let tag = [tag.session().to_le_bytes(), tag.nonce().to_le_bytes()];
    for byte in tag.as_flattened().iter().chain(id.as_str().as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
