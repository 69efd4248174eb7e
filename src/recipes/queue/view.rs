//! What a consumer knows of its queue: jobs without payloads, their registers, the consumers.
//! Pure: snapshots and changes go in, and every job has a [`Class`] that follows from them.
//!
//! | job | register | class |
//! |---|---|---|
//! | there | none; `ready` and due; `claimed` by a consumer that is not there | open |
//! | there | `ready`, to wait | delayed |
//! | either | `claimed` by a consumer that is there | claimed |
//! | there | `done` | finished: the job is to be deleted |
//! | there | `dead`, or what is no register | set aside |
//! | gone | `ready`, `dead`, `claimed` by nobody who is there | orphan |
//!
//! Registers and consumers come from one tree, so they are seen at one index: a consumer's node was
//! there before any claim of it, so a claim whose consumer is not in the view is a dead one's.
//! `done` registers are kept only as long as their job is there. What is open lies in the order of
//! its places, so the next job is found in the time of a look-up, however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::job::{JobId, Place};
use super::paths::Paths;
use super::register::Register;
use crate::key::{Index, Key, Tag};
use crate::runtime::Instant;
use crate::store::{self, Change, Event, Node};

/// The most claims that one consumer can have at once.
pub(super) const MAX_SLOTS: usize = 1_000;

/// What a consumer's node says, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Card {
    /// How many jobs it takes at once.
    pub(super) slots: usize,
    /// Where it runs: for people to read.
    #[serde(default)]
    pub(super) host: String,
    /// As which process.
    #[serde(default)]
    pub(super) pid: u32,
}

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    /// For lengths of time.
    pub(super) now: Instant,
    /// For the times that registers name.
    pub(super) wall: Duration,
}

/// The copy of a queue.
#[derive(Debug)]
pub(super) struct View {
    paths: Paths,
    /// Registers and consumers are as of this index, once they are known.
    index: Option<Index>,
    /// Whether the jobs are known.
    has_jobs: bool,
    entries: BTreeMap<JobId, Entry>,
    open: BTreeSet<Place>,
    delayed: BTreeSet<(Duration, JobId)>,
    finished: BTreeMap<JobId, Instant>,
    orphans: BTreeMap<JobId, Instant>,
    /// The slots of each.
    consumers: BTreeMap<Tag, usize>,
    /// What is claimed by whom, whether they are there or not.
    claims: BTreeMap<Tag, BTreeSet<JobId>>,
}

#[derive(Debug)]
struct Entry {
    job: Option<Spot>,
    register: Option<Seen>,
    class: Class,
}

/// Where and as what a job lies.
#[derive(Clone, Copy, Debug)]
struct Spot {
    created: Index,
    modified: Index,
}

/// A register and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// `None` for what is no register.
    pub(super) register: Option<Register>,
    pub(super) index: Index,
}

/// What is to be done about a job: see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Open,
    Delayed(Duration),
    Claimed,
    Finished,
    Aside,
    Orphan,
    /// Nothing is there that is worth being kept.
    Gone,
}

impl View {
    pub(super) fn new(paths: Paths) -> Self {
        Self {
            paths,
            index: None,
            has_jobs: false,
            entries: BTreeMap::new(),
            open: BTreeSet::new(),
            delayed: BTreeSet::new(),
            finished: BTreeMap::new(),
            orphans: BTreeMap::new(),
            consumers: BTreeMap::new(),
            claims: BTreeMap::new(),
        }
    }

    /// As of which index registers and consumers are known, if all is known.
    pub(super) fn index(&self) -> Option<Index> {
        self.index.filter(|_| self.has_jobs)
    }

    /// Takes what the followed key `root` showed in place of what was known from there.
    pub(super) fn snapshot(&mut self, root: &Key, view: store::View, time: Time) {
        let (jobs, tree) = self.shows(root);
        if jobs {
            self.forget_jobs(time);
            self.has_jobs = true;
        }
        if tree {
            self.forget_registers(time);
            self.forget_consumers(time);
            self.index = Some(view.index);
        }
        // In key order consumers and jobs come before the registers: so a `done` one is kept
        // where its job is there.
        for node in view.nodes {
            self.put(node, time);
        }
    }

    /// Takes a change below the followed key `root`; says whose standing it may have changed.
    pub(super) fn event(&mut self, root: &Key, event: Event, time: Time) -> Option<JobId> {
        let (_, tree) = self.shows(root);
        if tree {
            self.index = self.index.max(Some(event.index));
        }
        match event.change {
            Change::Put(node) => self.put(node, time),
            Change::Delete { .. } => self.removed(&event.key, time),
        }
    }

    /// Nothing else has changed below `root` up to this index.
    pub(super) fn progress(&mut self, root: &Key, index: Index) {
        if self.shows(root).1 {
            self.index = self.index.max(Some(index));
        }
    }

    /// Opens what has waited long enough; when the next one will have.
    pub(super) fn ripen(&mut self, time: Time) -> Option<Duration> {
        while let Some((not_before, id)) = self.delayed.first().cloned() {
            if not_before > time.wall {
                return Some(not_before);
            }
            self.classify(&id, time);
        }
        None
    }

    /// The open jobs in their order.
    pub(super) fn open(&self) -> impl Iterator<Item = &JobId> {
        self.open.iter().map(|place| &place.id)
    }

    pub(super) fn class(&self, id: &JobId) -> Option<Class> {
        Some(self.entries.get(id)?.class)
    }

    /// A job's register, if it has one that is kept.
    pub(super) fn register(&self, id: &JobId) -> Option<&Seen> {
        self.entries.get(id)?.register.as_ref()
    }

    /// When a job was last written.
    pub(super) fn job_modified(&self, id: &JobId) -> Option<Index> {
        Some(self.entries.get(id)?.job?.modified)
    }

    /// The consumers that are there, and the slots of each.
    pub(super) fn consumers(&self) -> &BTreeMap<Tag, usize> {
        &self.consumers
    }

    /// What a consumer has claimed.
    pub(super) fn claims(&self, consumer: Tag) -> impl ExactSizeIterator<Item = &JobId> {
        const NONE: &BTreeSet<JobId> = &BTreeSet::new();
        self.claims.get(&consumer).unwrap_or(NONE).iter()
    }

    /// The jobs that are done but there, and since when.
    pub(super) fn finished(&self) -> impl Iterator<Item = (&JobId, Instant)> {
        self.finished.iter().map(|(id, since)| (id, *since))
    }

    /// The registers without a job, and since when.
    pub(super) fn orphans(&self) -> impl Iterator<Item = (&JobId, Instant)> {
        self.orphans.iter().map(|(id, since)| (id, *since))
    }

    /// Learns of a `done` register that was not kept, because its job came after it.
    pub(super) fn is_done(&mut self, id: &JobId, seen: Seen, time: Time) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry
            .register
            .as_ref()
            .is_none_or(|it| it.index < seen.index)
        {
            self.set_register(id.clone(), Some(seen), time);
        }
    }

    /// Whether what `root` shows are jobs, and whether it is the tree of registers.
    fn shows(&self, root: &Key) -> (bool, bool) {
        let tree = *root == self.paths.root;
        (!self.paths.is_raw || !tree, tree)
    }

    fn put(&mut self, node: Node, time: Time) -> Option<JobId> {
        let key = &node.key;
        if node.is_dir {
            return None;
        }
        if let Some(id) = Paths::id_in(&self.paths.jobs, key) {
            let spot = Spot {
                created: node.created,
                modified: node.modified,
            };
            self.set_job(id.clone(), Some(spot), time);
            return Some(id);
        }
        if let Some(id) = Paths::id_in(&self.paths.state, key) {
            let register = Register::parse(&node.value);
            // One that is written otherwise than we write could not be compared with.
            let register = register.filter(|it| it.value() == node.value);
            if register.is_none() {
                tracing::warn!(
                    target: "tenure::queue", %key,
                    "this is no state of a job: it is set aside until it is requeued or purged"
                );
            }
            let seen = Seen {
                register: register.map(without_reason),
                index: node.modified,
            };
            self.set_register(id.clone(), Some(seen), time);
            return Some(id);
        }
        if let Some(tag) = self.consumer_at(key) {
            let card: Option<Card> = serde_json::from_slice(&node.value).ok();
            // Who does not say how many it takes gets none; what it claims by itself is its own.
            let slots = card.map_or(0, |card| card.slots.min(MAX_SLOTS));
            self.consumers.insert(tag, slots);
            self.classify_claims(tag, time);
        }
        None
    }

    fn removed(&mut self, key: &Key, time: Time) -> Option<JobId> {
        if let Some(id) = Paths::id_in(&self.paths.jobs, key) {
            self.set_job(id.clone(), None, time);
            return Some(id);
        }
        if let Some(id) = Paths::id_in(&self.paths.state, key) {
            self.set_register(id.clone(), None, time);
            return Some(id);
        }
        if let Some(tag) = self.consumer_at(key) {
            self.consumers.remove(&tag);
            self.classify_claims(tag, time);
            return None;
        }
        // A directory, with all that was in it.
        if self.paths.jobs.is_within(key) {
            self.forget_jobs(time);
        }
        if self.paths.state.is_within(key) {
            self.forget_registers(time);
        }
        if self.paths.consumers.is_within(key) {
            self.forget_consumers(time);
        }
        None
    }

    fn consumer_at(&self, key: &Key) -> Option<Tag> {
        Tag::parse(key.below(&self.paths.consumers)?)
    }

    fn forget_jobs(&mut self, time: Time) {
        for id in self.ids() {
            self.set_job(id, None, time);
        }
    }

    fn forget_registers(&mut self, time: Time) {
        for id in self.ids() {
            self.set_register(id, None, time);
        }
    }

    fn forget_consumers(&mut self, time: Time) {
        for tag in std::mem::take(&mut self.consumers).into_keys() {
            self.classify_claims(tag, time);
        }
    }

    fn ids(&self) -> Vec<JobId> {
        self.entries.keys().cloned().collect()
    }

    fn set_job(&mut self, id: JobId, job: Option<Spot>, time: Time) {
        if let Some(old) = self.entries.get(&id).and_then(|it| it.job)
            && job.is_none_or(|new| new.created != old.created)
        {
            self.open.remove(&Place::new(id.clone(), old.created));
        }
        self.entry(&id).job = job;
        self.classify(&id, time);
    }

    fn set_register(&mut self, id: JobId, register: Option<Seen>, time: Time) {
        let entry = self.entry(&id);
        let old = claimant(entry.register.as_ref());
        let new = claimant(register.as_ref());
        entry.register = register;
        if old != new {
            if let Some(tag) = old
                && let Some(claims) = self.claims.get_mut(&tag)
            {
                claims.remove(&id);
                if claims.is_empty() {
                    self.claims.remove(&tag);
                }
            }
            if let Some(tag) = new {
                self.claims.entry(tag).or_default().insert(id.clone());
            }
        }
        self.classify(&id, time);
    }

    fn entry(&mut self, id: &JobId) -> &mut Entry {
        self.entries.entry(id.clone()).or_insert(Entry {
            job: None,
            register: None,
            class: Class::Aside,
        })
    }

    fn classify_claims(&mut self, consumer: Tag, time: Time) {
        let ids: Vec<JobId> = self.claims(consumer).cloned().collect();
        for id in ids {
            self.classify(&id, time);
        }
    }

    /// Puts an entry where it belongs.
    fn classify(&mut self, id: &JobId, time: Time) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let class = class(entry, &self.consumers, time.wall);
        let old = std::mem::replace(&mut entry.class, class);
        let place = entry.job.map(|spot| Place::new(id.clone(), spot.created));
        if let Class::Delayed(until) = old {
            self.delayed.remove(&(until, id.clone()));
        }
        if let Some(place) = place {
            match class {
                Class::Open => self.open.insert(place),
                _ => self.open.remove(&place),
            };
        }
        if let Class::Delayed(until) = class {
            self.delayed.insert((until, id.clone()));
        }
        keep_since(&mut self.finished, id, class == Class::Finished, time.now);
        keep_since(&mut self.orphans, id, class == Class::Orphan, time.now);
        if class == Class::Gone {
            self.entries.remove(id);
        }
    }
}

/// The class of an entry: the table above.
fn class(entry: &Entry, consumers: &BTreeMap<Tag, usize>, wall: Duration) -> Class {
    let register = entry.register.as_ref().map(|seen| seen.register.as_ref());
    let is_there = |tag: &Tag| consumers.contains_key(tag);
    match (entry.job.is_some(), register) {
        (_, Some(Some(Register::Claimed { consumer, .. }))) if is_there(consumer) => Class::Claimed,
        (true, Some(Some(Register::Ready { not_before, .. }))) if *not_before > wall => {
            Class::Delayed(*not_before)
        }
        (true, None | Some(Some(Register::Ready { .. } | Register::Claimed { .. }))) => Class::Open,
        (true, Some(Some(Register::Done { .. }))) => Class::Finished,
        (true, Some(Some(Register::Dead { .. }) | None)) => Class::Aside,
        (false, None | Some(None | Some(Register::Done { .. }))) => Class::Gone,
        (false, Some(Some(_))) => Class::Orphan,
    }
}

fn claimant(seen: Option<&Seen>) -> Option<Tag> {
    match seen?.register.as_ref()? {
        Register::Claimed { consumer, .. } => Some(*consumer),
        Register::Ready { .. } | Register::Done { .. } | Register::Dead { .. } => None,
    }
}

/// Reasons are for people, and can be long; nobody compares with them here.
fn without_reason(register: Register) -> Register {
    match register {
        Register::Dead { attempts, .. } => Register::Dead {
            attempts,
            reason: String::new(),
        },
        other => other,
    }
}

fn keep_since(times: &mut BTreeMap<JobId, Instant>, id: &JobId, keep: bool, now: Instant) {
    if keep {
        times.entry(id.clone()).or_insert(now);
    } else if !times.is_empty() {
        times.remove(id);
    }
}
