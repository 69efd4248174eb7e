//! What becomes of what a watcher tells: pure, no clock, no I/O.
//!
//! ```text
//! Loading ──list──▶ Live ⇄ Stale     interrupted: stale. A list: live. Resumed at index i: live
//!                                    when i is reached, or nothing has come for a second.
//! ```
//!
//! Invariant: the state posted last is what the store held at its index, and no state falls
//! between two writes of one commit: those are held until the last of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::board::{Map, State};
use super::health::Health;
use crate::error::Error;
use crate::key::{Index, Key};
use crate::runtime::Instant;
use crate::store::{Change, Event, Node};
use crate::watcher::Follow;

/// After how long what a resumed watch had to tell has certainly begun to come.
const SETTLE: Duration = Duration::from_secs(1);

/// A value as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// `None` for one from a file, which may be of another cluster.
    pub(super) created: Option<Index>,
    pub(super) value: Bytes,
}

impl Stored {
    /// Whether nobody can tell them apart. A deletion and a new creation show in the index of
    /// creation; that of modification also moves when a time-to-live is refreshed, which is no
    /// change.
    pub(super) fn same(&self, other: &Self) -> bool {
        let created = self.created.zip(other.created);
        created.is_none_or(|(one, other)| one == other) && self.value == other.value
    }
}

/// What is new at each key that changed; `None` where it is gone.
pub(super) type Changed = BTreeMap<Key, Option<Arc<Stored>>>;

/// What a step did.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// One write, or one commit.
    Update(Arc<Changed>),
    /// A list took the place of all that was known.
    Resync,
    /// The store cannot be followed, and that will not pass by itself.
    Trouble(Error),
}

#[derive(Debug)]
pub(super) struct Fold {
    state: State<Stored>,
    /// The writes of a commit that is not complete yet.
    held: Option<Held>,
    resumed: Option<Resumed>,
}

#[derive(Debug)]
struct Held {
    index: Index,
    entries: Map<Stored>,
    changed: Changed,
}

/// The watch goes on, and the changes up to this index may still be coming.
#[derive(Debug)]
struct Resumed {
    at: Index,
    settled: Instant,
}

/// What there is to post; the inner `None` where only the state is news.
pub(super) type Post = Option<(State<Stored>, Option<What>)>;

impl Fold {
    pub(super) fn new() -> Self {
        Self {
            state: State::new(Health::loading()),
            held: None,
            resumed: None,
        }
    }

    pub(super) fn state(&self) -> &State<Stored> {
        &self.state
    }

    /// When to call [`Fold::settled`].
    pub(super) fn settles_at(&self) -> Option<Instant> {
        self.resumed.as_ref().map(|resumed| resumed.settled)
    }

    /// What the watcher tells.
    pub(super) fn take(&mut self, item: Follow, now: Instant) -> Post {
        match item {
            Follow::Snapshot(view) => {
                (self.held, self.resumed) = (None, None);
                self.state.entries = replaced(&self.state.entries, view.nodes);
                self.state.index = Some(view.index);
                self.state.health.heard(now);
                self.state.health.live();
                self.post(Some(What::Resync))
            }
            Follow::Event(event) => self.event(event, now),
            Follow::Progress(index) => {
                let what = self.complete();
                self.state.index = self.state.index.max(Some(index));
                self.state.health.heard(now);
                self.caught_up(now);
                self.post(what)
            }
            Follow::Resumed(at) => {
                self.state.health.heard(now);
                let settled = now + SETTLE;
                self.resumed = Some(Resumed { at, settled });
                self.caught_up(now);
                self.post(None)
            }
            Follow::Interrupted(error) => {
                self.resumed = None;
                self.state.health.failed(error);
                self.post(None)
            }
        }
    }

    /// The watcher has ended.
    pub(super) fn failed(&mut self, error: Error) -> Post {
        (self.held, self.resumed) = (None, None);
        self.state.health.failed(error.clone());
        self.post(Some(What::Trouble(error)))
    }

    /// Nothing has come for a while.
    pub(super) fn settled(&mut self) -> Post {
        self.resumed.take()?;
        self.state.health.live();
        self.post(None)
    }

    /// The store held the same at this index.
    pub(super) fn confirmed(&mut self, index: Index, now: Instant) -> Post {
        if self.held.is_some() || Some(index) <= self.state.index {
            return None;
        }
        self.take(Follow::Progress(index), now)
    }

    fn event(&mut self, event: Event, now: Instant) -> Post {
        self.state.health.heard(now);
        if Some(event.index) <= self.state.index {
            return None;
        }
        let entries = &self.state.entries;
        let held = self.held.get_or_insert_with(|| Held {
            index: event.index,
            entries: entries.clone(),
            changed: Changed::new(),
        });
        let more = event.more;
        held.take(event);
        if more {
            return None;
        }
        let what = self.complete();
        self.caught_up(now);
        self.post(what)
    }

    /// Makes what was held the state.
    fn complete(&mut self) -> Option<What> {
        let held = self.held.take()?;
        self.state.index = Some(held.index);
        self.state.entries = held.entries;
        (!held.changed.is_empty()).then(|| What::Update(Arc::new(held.changed)))
    }

    /// Live, if all has come that a resumed watch had to tell.
    fn caught_up(&mut self, now: Instant) {
        if let Some(resumed) = &mut self.resumed {
            if self.state.index >= Some(resumed.at) {
                self.resumed = None;
                self.state.health.live();
            } else {
                resumed.settled = now + SETTLE;
            }
        }
    }

    fn post(&self, what: Option<What>) -> Post {
        Some((self.state.clone(), what))
    }
}

impl Held {
    fn take(&mut self, event: Event) {
        self.index = event.index;
        match event.change {
            Change::Put(node) if !node.is_dir => {
                let stored = Arc::new(stored(node));
                self.entries
                    .insert_mut(event.key.clone(), Arc::clone(&stored));
                self.changed.insert(event.key, Some(stored));
            }
            // A directory that takes the place of a file.
            Change::Put(_) => self.remove(event.key),
            Change::Delete { .. } => {
                for key in within(&self.entries, &event.key) {
                    self.remove(key);
                }
            }
        }
    }

    fn remove(&mut self, key: Key) {
        if self.entries.remove_mut(&key) {
            self.changed.insert(key, None);
        }
    }
}

fn stored(node: Node) -> Stored {
    Stored {
        created: Some(node.created),
        value: node.value,
    }
}

/// The keys of a map that are this one or lie below it.
fn within(map: &Map<Stored>, top: &Key) -> Vec<Key> {
    let own = map.get_key_value(top).map(|(key, _)| key.clone());
    let below = below(map, top).map(|(key, _)| key.clone());
    own.into_iter().chain(below).collect()
}

/// The entries below a key, in order.
pub(super) fn below<'a, V>(
    map: &'a Map<V>,
    top: &Key,
) -> impl Iterator<Item = (&'a Key, &'a Arc<V>)> {
    let start = if top.is_root() {
        "/".to_owned()
    } else {
        format!("{top}/")
    };
    let range = map.range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
    let entries: Vec<_> = range
        .take_while(|(key, _)| key.as_str().starts_with(&start))
        .collect();
    entries.into_iter()
}

/// The map of these nodes; what is the same is shared with the old one.
pub(super) fn replaced(old: &Map<Stored>, nodes: Vec<Node>) -> Map<Stored> {
    let mut new = old.clone();
    let mut left = old.iter().peekable();
    for node in nodes.into_iter().filter(|node| !node.is_dir) {
        while let Some((gone, _)) = left.next_if(|(key, _)| **key < node.key) {
            new.remove_mut(gone);
        }
        let before = left.next_if(|(key, _)| **key == node.key);
        let key = node.key.clone();
        let after = stored(node);
        if before.is_none_or(|(_, before)| !before.same(&after)) {
            new.insert_mut(key, Arc::new(after));
        }
    }
    for (gone, _) in left {
        new.remove_mut(gone);
    }
    new
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
