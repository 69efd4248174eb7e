//! Who is watching, and what they have not read yet.
//!
//! An event finds its watchers by the path: those of its key and of each key above it, and when
//! a directory goes those below it. Each watcher has its own queue, at most as long as the
//! history: a slow one is told that it lost events, a quiet one never is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::task::Waker;

use super::event::Event;
use super::history::Interest;
use crate::key::Index;

/// Names a watcher.
pub(crate) type WatcherId = u64;

/// All watchers.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watchers: BTreeMap<WatcherId, Watcher>,
    by_key: BTreeMap<Box<str>, BTreeSet<WatcherId>>,
    last_id: WatcherId,
    /// To be woken when the lock is free again.
    woken: Vec<Waker>,
}

#[derive(Debug)]
struct Watcher {
    interest: Interest,
    from: Index,
    queue: VecDeque<Arc<Event>>,
    lost: bool,
    waker: Option<Waker>,
}

/// What a watcher finds when it looks.
#[derive(Debug)]
pub(crate) enum Look {
    /// An event, and whether the next one is ready and of the same commit.
    Event(Arc<Event>, bool),
    /// Nothing; its waker is kept.
    Nothing,
    /// It was too slow, or is not registered.
    Lost,
}

impl Hub {
    /// Registers a watcher that has these events to read, and wants those that come at or after
    /// `from`.
    pub(crate) fn add(
        &mut self,
        interest: Interest,
        from: Index,
        queue: VecDeque<Arc<Event>>,
    ) -> WatcherId {
        self.last_id += 1;
        self.by_key
            .entry(interest.key.as_str().into())
            .or_default()
            .insert(self.last_id);
        let watcher = Watcher {
            interest,
            from,
            queue,
            lost: false,
            waker: None,
        };
        self.watchers.insert(self.last_id, watcher);
        self.last_id
    }

    /// Forgets a watcher. Its waker is given back to be dropped when the lock is free: nobody
    /// knows what that runs.
    pub(crate) fn remove(&mut self, id: WatcherId) -> Option<Waker> {
        let watcher = self.watchers.remove(&id)?;
        let key = watcher.interest.key.as_str();
        if let Some(ids) = self.by_key.get_mut(key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_key.remove(key);
            }
        }
        watcher.waker
    }

    /// The watcher's next event; if there is none, `waker` is called when that changes.
    pub(crate) fn look(&mut self, id: WatcherId, waker: &Waker) -> Look {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return Look::Lost;
        };
        if watcher.lost {
            return Look::Lost;
        }
        if let Some(event) = watcher.queue.pop_front() {
            // A commit is published in one go, so what is left of it is in the queue.
            let next = watcher.queue.front().and_then(|next| next.commit);
            let more = next.is_some() && next == event.commit;
            return Look::Event(event, more);
        }
        if !watcher
            .waker
            .as_ref()
            .is_some_and(|kept| kept.will_wake(waker))
        {
            self.woken.extend(watcher.waker.replace(waker.clone()));
        }
        Look::Nothing
    }

    /// Hands an event to everybody who wants it; nobody keeps more than `limit`.
    pub(crate) fn publish(&mut self, event: &Arc<Event>, limit: usize) {
        if event.refresh || self.watchers.is_empty() {
            return;
        }
        for id in self.concerned(event) {
            let Some(watcher) = self.watchers.get_mut(&id) else {
                continue;
            };
            if watcher.lost || event.index() < watcher.from || !watcher.interest.wants(event) {
                continue;
            }
            if watcher.queue.len() < limit {
                watcher.queue.push_back(Arc::clone(event));
            } else {
                watcher.lost = true;
                watcher.queue = VecDeque::new();
            }
            self.woken.extend(watcher.waker.take());
        }
    }

    /// Makes everybody look again, because the next expiry is sooner than they know.
    pub(crate) fn wake_all(&mut self) {
        let wakers = self.watchers.values_mut().filter_map(|w| w.waker.take());
        self.woken.extend(wakers);
    }

    /// Whom to wake once the lock is free.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.woken)
    }

    /// The watchers whose key is the event's, or above it, or below a directory that went.
    fn concerned(&self, event: &Event) -> Vec<WatcherId> {
        let path = event.node.key.as_str();
        let mut ids = Vec::new();
        for (end, _) in path.match_indices('/') {
            let above = path.get(..end.max(1)).unwrap_or_default();
            if above.len() < path.len() {
                ids.extend(self.by_key.get(above).into_iter().flatten());
            }
        }
        ids.extend(self.by_key.get(path).into_iter().flatten());
        if event.removes_dir() {
            let start = format!("{path}/");
            let below = self
                .by_key
                .range::<str, _>((Bound::Excluded(start.as_str()), Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(&start));
            ids.extend(below.flat_map(|(_, ids)| ids));
        }
        ids
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.watchers.is_empty(), self.by_key.is_empty());
        self.watchers.len()
    }
}
