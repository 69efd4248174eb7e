//! What a consumer knows of its queue: jobs without payloads, their registers, the consumers.
//! Pure: snapshots and changes go in, and every job has a [`Class`]
//! (see [`class`](super::class)) that follows from them.
//!
//! Registers and consumers come from one tree, so they are seen at one index: a consumer's node was
//! there before any claim of it, so a claim whose consumer is not in the view is a dead one's.
//! `done` registers are kept only as long as their job is there. What is open lies in the order of
//! its places, so the next job is found in the time of a look-up, however many there are.
//!
//! The free slots of all consumers stand in a line too, in the order in which the changes freed
//! them; so everybody who has seen the same changes pairs the same jobs with the same slots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::class::{Class, Entry, Seen, Spot, Station, Time, claimant, class, without_reason};
use super::job::{JobId, Place};
use super::paths::Paths;
use super::register::Register;
use super::registration::{Card, MAX_SLOTS};
use crate::key::{Index, Key, Tag};
use crate::runtime::Instant;
use crate::store::{self, Change, Event, Node};

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
    finished: BTreeSet<(Instant, JobId)>,
    orphans: BTreeSet<(Instant, JobId)>,
    consumers: BTreeMap<Tag, Station>,
    /// The free slots, each by its consumer, in the order in which they became free.
    line: Vec<Tag>,
    /// Those whose slots do not count: they let a job pass.
    passive: BTreeSet<Tag>,
    /// Whether one of those has claimed something after all.
    has_woken: bool,
    /// What is claimed by whom, whether they are there or not.
    claims: BTreeMap<Tag, BTreeSet<JobId>>,
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
            finished: BTreeSet::new(),
            orphans: BTreeSet::new(),
            consumers: BTreeMap::new(),
            line: Vec::new(),
            passive: BTreeSet::new(),
            has_woken: false,
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
        // Who was in line stays there; nobody knows the order of those who came meanwhile.
        let line = std::mem::take(&mut self.line);
        let (passive, since) = (self.asleep(), self.since());
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
            self.put(&node, time);
        }
        self.line = line;
        let mut tags: Vec<(Index, Tag)> = Vec::new();
        tags.extend(
            self.consumers
                .iter()
                .map(|(tag, station)| (station.created, *tag)),
        );
        tags.sort_unstable();
        let is_there = &self.consumers;
        self.line.retain(|tag| is_there.contains_key(tag));
        for (_, tag) in tags {
            self.fill_line(tag, None);
        }
        for (tag, claims) in passive {
            if self.has(tag) && self.claims(tag).all(|id| claims.contains(id)) {
                self.passive.insert(tag);
            }
        }
        for (id, class, since) in since {
            self.stands_since(&id, class, since);
        }
    }

    /// Who is passed over, and what each had claimed: more than that shows it to be awake.
    fn asleep(&self) -> Vec<(Tag, BTreeSet<JobId>)> {
        let tags = self.passive.iter();
        tags.map(|tag| (*tag, self.claims(*tag).cloned().collect()))
            .collect()
    }

    /// Since when what is to be cleared away has lain there.
    fn since(&self) -> Vec<(JobId, Class, Instant)> {
        let finished = self.finished.iter().map(|it| (it, Class::Finished));
        let orphans = self.orphans.iter().map(|it| (it, Class::Orphan));
        finished
            .chain(orphans)
            .map(|((since, id), class)| (id.clone(), class, *since))
            .collect()
    }

    /// Still there: a list in between does not begin the wait anew.
    fn stands_since(&mut self, id: &JobId, class: Class, since: Instant) {
        let Some(entry) = self.entries.get_mut(id).filter(|it| it.class == class) else {
            return;
        };
        let set = match class {
            Class::Finished => &mut self.finished,
            _ => &mut self.orphans,
        };
        set.remove(&(entry.since, id.clone()));
        set.insert((since, id.clone()));
        entry.since = since;
    }

    /// Takes a change below the followed key `root`; says whose standing it may have changed.
    pub(super) fn event(&mut self, root: &Key, event: Event, time: Time) -> Option<JobId> {
        let (_, tree) = self.shows(root);
        if tree {
            self.index = self.index.max(Some(event.index));
        }
        match event.change {
            Change::Put(node) => self.put(&node, time),
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

    /// Which open job is for whom: the first for the first free slot in line, and so on.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&JobId, Tag)> {
        let slots = self.line.iter().filter(|tag| !self.passive.contains(tag));
        self.open.iter().map(|place| &place.id).zip(slots.copied())
    }

    /// This consumer's slots do not count until it claims something.
    pub(super) fn pass_over(&mut self, consumer: Tag) {
        self.passive.insert(consumer);
    }

    #[cfg(test)]
    pub(super) fn pass_over_is_known(&self, consumer: Tag) -> bool {
        self.passive.contains(&consumer)
    }

    #[cfg(test)]
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

    /// Whether a consumer that was passed over has claimed something since the last call.
    pub(super) fn has_woken(&mut self) -> bool {
        std::mem::take(&mut self.has_woken)
    }

    /// The consumers that are there.
    pub(super) fn consumers(&self) -> impl Iterator<Item = Tag> {
        self.consumers.keys().copied()
    }

    /// Whether a consumer is there.
    pub(super) fn has(&self, consumer: Tag) -> bool {
        self.consumers.contains_key(&consumer)
    }

    /// What a consumer has claimed.
    pub(super) fn claims(&self, consumer: Tag) -> impl ExactSizeIterator<Item = &JobId> {
        const NONE: &BTreeSet<JobId> = &BTreeSet::new();
        self.claims.get(&consumer).unwrap_or(NONE).iter()
    }

    /// The jobs that are done but there, and since when: the longest first.
    pub(super) fn finished(&self) -> impl Iterator<Item = &(Instant, JobId)> {
        self.finished.iter()
    }

    /// The registers without a job, and since when: the longest first.
    pub(super) fn orphans(&self) -> impl Iterator<Item = &(Instant, JobId)> {
        self.orphans.iter()
    }

    /// Leaves a job out, for now.
    pub(super) fn set_aside(&mut self, id: &JobId) {
        if let Some(entry) = self.entries.get_mut(id)
            && entry.class == Class::Open
            && let Some(spot) = entry.job
        {
            entry.class = Class::Aside;
            self.open.remove(&Place::new(id.clone(), spot.created));
        }
    }

    /// Counts a job in again that was left out.
    pub(super) fn look_again(&mut self, id: &JobId, time: Time) {
        self.classify(id, time);
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
            self.set_register(id, Some(seen), time);
        }
    }

    /// Whether what `root` shows are jobs, and whether it is the tree of registers.
    fn shows(&self, root: &Key) -> (bool, bool) {
        let tree = *root == self.paths.root;
        (!self.paths.is_raw || !tree, tree)
    }

    fn put(&mut self, node: &Node, time: Time) -> Option<JobId> {
        let key = &node.key;
        if node.is_dir {
            return None;
        }
        if let Some(id) = Paths::id_in(&self.paths.jobs, key) {
            let spot = Spot {
                created: node.created,
                modified: node.modified,
            };
            self.set_job(&id, Some(spot), time);
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
            self.set_register(&id, Some(seen), time);
            return Some(id);
        }
        if let Some(tag) = self.consumer_at(key) {
            let card: Option<Card> = serde_json::from_slice(&node.value).ok();
            // Who does not say how many it takes gets none; what it claims by itself is its own.
            let slots = card.map_or(0, |card| card.slots.min(MAX_SLOTS));
            let created = node.created;
            self.consumers.insert(tag, Station { slots, created });
            self.classify_claims(tag, time);
            self.fill_line(tag, None);
        }
        None
    }

    fn removed(&mut self, key: &Key, time: Time) -> Option<JobId> {
        if let Some(id) = Paths::id_in(&self.paths.jobs, key) {
            self.set_job(&id, None, time);
            return Some(id);
        }
        if let Some(id) = Paths::id_in(&self.paths.state, key) {
            self.set_register(&id, None, time);
            return Some(id);
        }
        if let Some(tag) = self.consumer_at(key) {
            self.consumers.remove(&tag);
            self.classify_claims(tag, time);
            self.fill_line(tag, None);
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
            self.set_job(&id, None, time);
        }
    }

    fn forget_registers(&mut self, time: Time) {
        for id in self.ids() {
            self.set_register(&id, None, time);
        }
    }

    fn forget_consumers(&mut self, time: Time) {
        for tag in std::mem::take(&mut self.consumers).into_keys() {
            self.classify_claims(tag, time);
            self.fill_line(tag, None);
        }
    }

    fn ids(&self) -> Vec<JobId> {
        self.entries.keys().cloned().collect()
    }

    fn set_job(&mut self, id: &JobId, job: Option<Spot>, time: Time) {
        if let Some(old) = self.entries.get(id).and_then(|it| it.job)
            && job.is_none_or(|new| new.created != old.created)
        {
            self.open.remove(&Place::new(id.clone(), old.created));
        }
        self.entry(id, time).job = job;
        self.classify(id, time);
    }

    fn set_register(&mut self, id: &JobId, register: Option<Seen>, time: Time) {
        let entry = self.entry(id, time);
        let old = claimant(entry.register.as_ref());
        let new = claimant(register.as_ref());
        entry.register = register;
        let turn = new.and_then(|_| self.turn(id));
        if let Some(tag) = old
            && let Some(claims) = self.claims.get_mut(&tag)
        {
            claims.remove(id);
            if claims.is_empty() {
                self.claims.remove(&tag);
            }
            self.fill_line(tag, None);
        }
        if let Some(tag) = new {
            self.has_woken |= self.passive.remove(&tag);
            self.claims.entry(tag).or_default().insert(id.clone());
            self.fill_line(tag, turn);
        }
        self.classify(id, time);
    }

    /// The place in line of the slot that an open job is for.
    fn turn(&self, id: &JobId) -> Option<usize> {
        let pairs = self.open.iter().zip(self.line_in_use());
        let mut turns = pairs
            .filter(|(place, _)| place.id == *id)
            .map(|(_, turn)| turn);
        turns.next()
    }

    fn line_in_use(&self) -> impl Iterator<Item = usize> {
        let line = self.line.iter().enumerate();
        line.filter(|(_, tag)| !self.passive.contains(tag))
            .map(|(turn, _)| turn)
    }

    /// Makes a consumer stand in line with the slots that are free. If one is not any more, it is the
    /// one at `turn`, if that is its own: the others keep the jobs that they are for.
    fn fill_line(&mut self, consumer: Tag, turn: Option<usize>) {
        let slots = self.consumers.get(&consumer).map_or(0, |it| it.slots);
        let free = slots.saturating_sub(self.claims(consumer).len());
        let mut standing = self.line.iter().filter(|tag| **tag == consumer).count();
        while standing < free {
            self.line.push(consumer);
            standing += 1;
        }
        let mut turn = turn.filter(|turn| self.line.get(*turn) == Some(&consumer));
        while standing > free {
            let first = || self.line.iter().position(|tag| *tag == consumer);
            let Some(turn) = turn.take().or_else(first) else {
                return;
            };
            self.line.remove(turn);
            standing -= 1;
        }
        if slots == 0 {
            self.passive.remove(&consumer);
        }
    }

    fn entry(&mut self, id: &JobId, time: Time) -> &mut Entry {
        self.entries.entry(id.clone()).or_insert(Entry {
            job: None,
            register: None,
            class: Class::Gone,
            since: time.now,
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
        let (old, since) = (entry.class, entry.since);
        if let Some(spot) = entry.job {
            let place = Place::new(id.clone(), spot.created);
            match class {
                Class::Open => self.open.insert(place),
                _ => self.open.remove(&place),
            };
        }
        if class == Class::Gone {
            self.entries.remove(id);
        } else if class == old {
            return;
        } else {
            (entry.class, entry.since) = (class, time.now);
        }
        match old {
            Class::Delayed(until) => self.delayed.remove(&(until, id.clone())),
            Class::Finished => self.finished.remove(&(since, id.clone())),
            Class::Orphan => self.orphans.remove(&(since, id.clone())),
            Class::Open | Class::Claimed | Class::Aside | Class::Gone => false,
        };
        match class {
            Class::Delayed(until) => self.delayed.insert((until, id.clone())),
            Class::Finished => self.finished.insert((time.now, id.clone())),
            Class::Orphan => self.orphans.insert((time.now, id.clone())),
            Class::Open | Class::Claimed | Class::Aside | Class::Gone => false,
        };
    }
}
