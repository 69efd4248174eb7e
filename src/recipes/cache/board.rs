//! Where one task posts what it knows, and many read it: the newest state behind an atomic pointer,
//! and the steps that led to it in a ring of bounded length.
//!
//! Invariant: a state is posted before its step, and each has the next number. So whoever finds
//! that the ring has left it behind jumps to the ring's end *first*, takes the newest state *then*,
//! and drops the steps whose number that state has already: none is missed, none comes twice.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rpds::RedBlackTreeMapSync;
use tokio::sync::broadcast::{self, error::RecvError};

use super::health::Health;
use crate::error::Error;
use crate::key::{Index, Key};

/// How many steps a reader may be behind before it gets one difference instead.
pub(super) const RING: usize = 1024;

/// Values by key; a changed copy shares what is the same.
pub(super) type Map<V> = RedBlackTreeMapSync<Key, Arc<V>>;

/// All that is known, at one index.
#[derive(Debug)]
pub(super) struct State<V> {
    /// The number of the step that led here.
    number: u64,
    /// `None` before the first list.
    pub(super) index: Option<Index>,
    pub(super) entries: Map<V>,
    /// What the decoder refused, and why.
    pub(super) bad: RedBlackTreeMapSync<Key, Error>,
    pub(super) health: Health,
}

impl<V> State<V> {
    pub(super) fn new(health: Health) -> Self {
        Self {
            number: 0,
            index: None,
            entries: Map::new_sync(),
            bad: RedBlackTreeMapSync::new_sync(),
            health,
        }
    }
}

// Not derived: that would ask for `V: Clone`.
impl<V> Clone for State<V> {
    fn clone(&self) -> Self {
        Self {
            number: self.number,
            index: self.index,
            entries: self.entries.clone(),
            bad: self.bad.clone(),
            health: self.health.clone(),
        }
    }
}

/// A step and the state that it led to.
#[derive(Debug)]
pub(super) struct Step<V, I> {
    pub(super) after: Arc<State<V>>,
    /// What to tell about it; `None` where only the state is news.
    pub(super) item: Option<I>,
}

impl<V, I: Clone> Clone for Step<V, I> {
    fn clone(&self) -> Self {
        Self {
            after: self.after.clone(),
            item: self.item.clone(),
        }
    }
}

/// The end that posts. With it gone the readers come to their end.
#[derive(Debug)]
pub(super) struct Writer<V, I> {
    now: Arc<ArcSwap<State<V>>>,
    ring: broadcast::Sender<Step<V, I>>,
}

impl<V, I: Clone> Writer<V, I> {
    pub(super) fn new(state: State<V>) -> Self {
        Self {
            now: Arc::new(ArcSwap::from_pointee(state)),
            ring: broadcast::Sender::new(RING),
        }
    }

    pub(super) fn board(&self) -> Board<V, I> {
        Board {
            now: self.now.clone(),
            ring: self.ring.downgrade(),
        }
    }

    pub(super) fn post(&self, mut state: State<V>, item: Option<I>) {
        state.number = self.now.load().number + 1;
        let after = Arc::new(state);
        self.now.store(after.clone());
        // Fails when nobody reads.
        let _ = self.ring.send(Step { after, item });
    }
}

/// The end that is read.
#[derive(Debug)]
pub(super) struct Board<V, I> {
    now: Arc<ArcSwap<State<V>>>,
    ring: broadcast::WeakSender<Step<V, I>>,
}

impl<V, I: Clone> Board<V, I> {
    /// The newest state.
    pub(super) fn now(&self) -> Arc<State<V>> {
        self.now.load_full()
    }

    /// Looks at the newest state without keeping it.
    pub(super) fn look<R>(&self, look: impl FnOnce(&State<V>) -> R) -> R {
        look(&self.now.load())
    }

    /// Reads every step after the newest state.
    pub(super) fn read(&self) -> Reader<V, I> {
        let ring = match self.ring.upgrade() {
            Some(ring) => ring.subscribe(),
            // A channel without a sender: at its end.
            None => broadcast::channel(1).1,
        };
        Reader {
            ring,
            seen: self.now(),
            now: self.now.clone(),
        }
    }

    /// Waits for a state that fits; `None` if none will come any more.
    pub(super) async fn wait<R>(&self, fits: impl Fn(&State<V>) -> Option<R>) -> Option<R> {
        let mut reader = self.read();
        loop {
            if let Some(found) = self.look(&fits) {
                return Some(found);
            }
            reader.next().await?;
        }
    }
}

/// Reads one step after the other.
#[derive(Debug)]
pub(super) struct Reader<V, I> {
    now: Arc<ArcSwap<State<V>>>,
    ring: broadcast::Receiver<Step<V, I>>,
    /// The state that was read last.
    pub(super) seen: Arc<State<V>>,
}

/// What a reader finds.
#[derive(Debug)]
pub(super) enum Read<V, I> {
    /// The next step.
    Step(Step<V, I>),
    /// It was left behind: this is the state now, and here is the one that it had seen.
    Lagged {
        before: Arc<State<V>>,
        after: Arc<State<V>>,
    },
}

impl<V, I: Clone> Reader<V, I> {
    /// The next step; `None` at the end. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Read<V, I>> {
        loop {
            match self.ring.recv().await {
                Ok(step) if step.after.number <= self.seen.number => {}
                Ok(step) => {
                    self.seen = step.after.clone();
                    return Some(Read::Step(step));
                }
                Err(RecvError::Lagged(_)) => {
                    // In this order: see the module's invariant.
                    self.ring = self.ring.resubscribe();
                    let after = self.now.load_full();
                    let before = std::mem::replace(&mut self.seen, after.clone());
                    return Some(Read::Lagged { before, after });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// The keys that are not the same in both, each with its new value.
pub(super) fn differing<V>(
    old: &Map<V>,
    new: &Map<V>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<(Key, Option<Arc<V>>)> {
    let mut found = Vec::new();
    if old.ptr_eq(new) {
        return found;
    }
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let gone = match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((before, _)), Some((after, _))) if before == after => {
                if let (Some((_, before)), Some((key, after))) = (old.next(), new.next())
                    && !Arc::ptr_eq(before, after)
                    && !same(before, after)
                {
                    found.push((key.clone(), Some(after.clone())));
                }
                continue;
            }
            (Some((before, _)), Some((after, _))) => before < after,
        };
        let next = if gone { old.next() } else { new.next() };
        found.extend(next.map(|(key, value)| (key.clone(), (!gone).then(|| value.clone()))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, u32)]) -> Map<u32> {
        let entries = entries
            .iter()
            .map(|(name, value)| (Key::new(format!("/{name}")).unwrap(), Arc::new(*value)));
        entries.collect()
    }

    #[test]
    fn a_difference_has_what_came_what_went_and_what_changed_in_order() {
        let old = map(&[("a", 1), ("b", 1), ("c", 1), ("e", 1)]);
        let new = map(&[("b", 1), ("c", 2), ("d", 1), ("f", 1)]);
        let found = differing(&old, &new, |a, b| a == b);
        let found: Vec<_> = found
            .iter()
            .map(|(key, value)| (key.name(), value.as_deref().copied()))
            .collect();
        let wanted = [
            ("a", None),
            ("c", Some(2)),
            ("d", Some(1)),
            ("e", None),
            ("f", Some(1)),
        ];
        assert_eq!(found, wanted);
        assert!(differing(&old, &old.clone(), |_, _| false).is_empty());
    }

    fn writer() -> Writer<u32, u64> {
        Writer::new(State::new(Health::loading()))
    }

    fn post(writer: &Writer<u32, u64>, items: std::ops::Range<u64>) {
        for item in items {
            let mut state = State::clone(&writer.board().now());
            state.index = Index::new(item);
            writer.post(state, Some(item));
        }
    }

    #[tokio::test]
    async fn a_reader_gets_every_step_and_one_left_behind_goes_on_from_the_newest() {
        let writer = writer();
        let mut reader = writer.board().read();
        post(&writer, 1..4);
        for wanted in 1..4 {
            let read = reader.next().await;
            assert!(matches!(read, Some(Read::Step(step)) if step.item == Some(wanted)));
        }
        let end = 10 + 2 * RING as u64;
        post(&writer, 4..end);
        let Some(Read::Lagged { before, after }) = reader.next().await else {
            panic!("not left behind")
        };
        assert_eq!(before.index, Index::new(3));
        assert_eq!(after.index, Index::new(end - 1));
        post(&writer, end..end + 1);
        let read = reader.next().await;
        assert!(matches!(read, Some(Read::Step(step)) if step.item == Some(end)));
        drop(writer);
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn a_step_that_the_state_has_already_is_not_read_again() {
        let writer = writer();
        let board = writer.board();
        // Subscribed before the post, seen after it: what a jump can meet.
        let ring = board.ring.upgrade().unwrap().subscribe();
        post(&writer, 1..2);
        let mut reader = Reader {
            ring,
            seen: board.now(),
            now: board.now.clone(),
        };
        post(&writer, 2..3);
        let read = reader.next().await;
        assert!(matches!(read, Some(Read::Step(step)) if step.item == Some(2)));
    }
}
