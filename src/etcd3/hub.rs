//! All watches of a store, on one stream to one server.
//!
//! A watch that is not read while more than [`MOST_QUEUED`] updates wait is cancelled at the server
//! and goes on from there when these have been read: memory is bounded, and nothing is lost that the
//! server still has.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::coop;
use tokio_util::task::AbortOnDropHandle;

use super::asks::Asked;
use super::driver::Driver;
use super::stream::Run;
use super::watch::Following;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Change, Event, Update, Updates, Watch};

/// How much of one watch may wait to be read: each update counts 1, and 1 more for each 4 KiB of its
/// value. So it is 10,000 small updates or 40 MB.
const MOST_QUEUED: usize = 10_000;

/// The task of the watches, while there is one.
#[derive(Debug)]
pub(super) struct Hub {
    patience: Duration,
    watchdog_period: Duration,
    task: Mutex<Option<Task>>,
}

#[derive(Debug)]
struct Task {
    orders: mpsc::UnboundedSender<Order>,
    /// The number of the next watch.
    next: i64,
    _handle: AbortOnDropHandle<()>,
}

pub(super) enum Order {
    Open(i64, Box<Seat>),
    /// What had queued up was read.
    Resume(i64),
    Close(i64),
}

/// A watch, and who reads it.
pub(super) struct Seat {
    pub(super) following: Following,
    pub(super) asked: Asked,
    letterbox: Letterbox,
}

impl Seat {
    /// Whether too much waits to be read now.
    pub(super) fn tell(&self, updates: Vec<Update>) -> bool {
        let news = !updates.is_empty();
        let updates = updates.into_iter().map(|it| Told::Update(Ok(it)));
        self.letterbox.put(updates) > MOST_QUEUED && news
    }

    /// The last word for now, until the reader says that it has read all.
    pub(super) fn lag(&self) {
        self.letterbox.put([Told::Lagging]);
    }

    /// The last word.
    pub(super) fn end(&self, error: Error) {
        self.letterbox.put([Told::Update(Err(error))]);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.letterbox.close();
    }
}

enum Told {
    Update(Result<Update>),
    /// Too much had queued up: this is the last until it is said that all was read.
    Lagging,
}

impl Told {
    /// What it counts for while it waits.
    fn weight(&self) -> usize {
        match self {
            Self::Update(Ok(Update::Event(Event {
                change: Change::Put(node),
                ..
            }))) => 1 + node.value.len() / 4096,
            Self::Update(Ok(_)) => 1,
            Self::Update(Err(_)) | Self::Lagging => 0,
        }
    }
}

/// What a watch was told and has not read. Of thousands of watches hardly one has any: so no channel,
/// which keeps room for dozens.
#[derive(Clone, Default)]
struct Letterbox(Arc<Mutex<Letters>>);

#[derive(Default)]
struct Letters {
    told: VecDeque<Told>,
    /// Of all that wait.
    weight: usize,
    reader: Option<Waker>,
    /// Nothing more will come.
    closed: bool,
}

impl Letterbox {
    /// What all that waits to be read now counts for.
    fn put(&self, told: impl IntoIterator<Item = Told>) -> usize {
        let mut letters = self.lock();
        for told in told {
            letters.weight += told.weight();
            letters.told.push_back(told);
        }
        let weight = letters.weight;
        let any = !letters.told.is_empty();
        let reader = letters.reader.take_if(|_| any);
        drop(letters);
        if let Some(reader) = reader {
            reader.wake();
        }
        weight
    }

    fn close(&self) {
        let mut letters = self.lock();
        letters.closed = true;
        let reader = letters.reader.take();
        drop(letters);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The next, as soon as there is one; `None` when all is read and nothing more will come.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Told>> {
        // Who reads as fast as it is told lets others have their turn, as with any channel.
        let turn = ready!(coop::poll_proceed(cx));
        let mut letters = self.lock();
        if let Some(told) = letters.told.pop_front() {
            turn.made_progress();
            letters.weight = letters.weight.saturating_sub(told.weight());
            if letters.told.is_empty() {
                letters.told = VecDeque::new();
            }
            return Poll::Ready(Some(told));
        }
        if letters.closed {
            return Poll::Ready(None);
        }
        letters.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch of this store, opened when it is first polled.
pub(super) fn updates(driver: Arc<Driver>, watch: Watch) -> Updates {
    Reading::Unopened(driver, watch).boxed()
}

/// A watch, as its owner has it. By hand: combinators would take 150 bytes more of each.
enum Reading {
    Unopened(Arc<Driver>, Watch),
    Open(Reader),
    Ended,
}

impl Stream for Reading {
    type Item = Result<Update>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Self::Unopened(driver, watch) = &*self {
            *self = Self::Open(driver.watches.open(driver, watch.clone()));
        }
        let Self::Open(reader) = &*self else {
            return Poll::Ready(None);
        };
        let update = ready!(reader.poll_next(cx));
        if update.is_err() {
            *self = Self::Ended;
        }
        Poll::Ready(Some(update))
    }
}

/// Who reads a watch. Dropped, it ends the watch.
struct Reader {
    id: i64,
    orders: mpsc::UnboundedSender<Order>,
    letterbox: Letterbox,
    /// With the last watch and the last store the task ends.
    _driver: Arc<Driver>,
}

impl Hub {
    pub(super) fn new(patience: Duration, watchdog_period: Duration) -> Self {
        Self {
            patience,
            watchdog_period,
            task: Mutex::default(),
        }
    }

    fn open(&self, driver: &Arc<Driver>, watch: Watch) -> Reader {
        let letterbox = Letterbox::default();
        let seat = Box::new(Seat {
            following: Following::new(watch),
            asked: Asked::default(),
            letterbox: letterbox.clone(),
        });
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // That of a runtime that is gone has ended.
        task.take_if(|it| it.orders.is_closed());
        let running = task.get_or_insert_with(|| self.start(driver));
        let id = running.next;
        running.next += 1;
        // If it ends just now, the reader finds its updates ended.
        let _ = running.orders.send(Order::Open(id, seat));
        Reader {
            id,
            orders: running.orders.clone(),
            letterbox,
            _driver: driver.clone(),
        }
    }

    fn start(&self, driver: &Driver) -> Task {
        let (orders, inbox) = mpsc::unbounded_channel();
        let run = Run::new(
            driver.wire.clone(),
            self.patience,
            self.watchdog_period,
            inbox,
        );
        Task {
            orders,
            next: 1,
            _handle: driver.wire.spawn(run.drive()),
        }
    }
}

impl Reader {
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Update>> {
        loop {
            match ready!(self.letterbox.poll_next(cx)) {
                Some(Told::Update(update)) => return Poll::Ready(update),
                Some(Told::Lagging) => {
                    let _ = self.orders.send(Order::Resume(self.id));
                }
                None => {
                    let text = "the task of the watches has ended, with the runtime in which the \
                                first was opened";
                    let error = Error::new(ErrorKind::Closed, text).during("watch");
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A task that has ended has no watches.
        let _ = self.orders.send(Order::Close(self.id));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::key::Index;

    #[tokio::test]
    async fn who_has_a_lot_to_read_lets_others_have_their_turn() {
        const MANY: usize = 1_000;
        let letterbox = Letterbox::default();
        let open = |_| Told::Update(Ok(Update::Open(Index::new(1).unwrap())));
        letterbox.put((0..MANY).map(open));
        letterbox.close();
        let read = Arc::new(AtomicUsize::new(0));
        let count = read.clone();
        let reading = tokio::spawn(async move {
            while poll_fn(|cx| letterbox.poll_next(cx)).await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let others = tokio::spawn(async move { read.load(Ordering::Relaxed) });
        let so_far = others.await.unwrap();
        assert!(so_far < MANY, "all {so_far} were read before anybody else");
        reading.await.unwrap();
    }
}
