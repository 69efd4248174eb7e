//! All watches of a store, on one stream to one server.
//!
//! A watch that is not read while more than [`MOST_QUEUED`] updates wait is cancelled at the server
//! and goes on from there when these have been read: memory is bounded, and nothing is lost that the
//! server still has.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

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
    updates: mpsc::UnboundedSender<Told>,
    queued: Arc<AtomicUsize>,
}

impl Seat {
    /// Whether too much waits to be read now.
    pub(super) fn tell(&self, updates: Vec<Update>) -> bool {
        let more: usize = updates.iter().map(weight).sum();
        let queued = self.queued.fetch_add(more, Ordering::AcqRel) + more;
        for update in updates {
            // A reader that is gone has said so.
            let _ = self.updates.send(Told::Update(Ok(update)));
        }
        more > 0 && queued > MOST_QUEUED
    }

    /// The last word for now, until the reader says that it has read all.
    pub(super) fn lag(&self) {
        let _ = self.updates.send(Told::Lagging);
    }

    /// The last word.
    pub(super) fn end(&self, error: Error) {
        let _ = self.updates.send(Told::Update(Err(error)));
    }
}

/// What an update counts for while it waits.
fn weight(update: &Update) -> usize {
    match update {
        Update::Event(Event {
            change: Change::Put(node),
            ..
        }) => 1 + node.value.len() / 4096,
        _ => 1,
    }
}

enum Told {
    Update(Result<Update>),
    /// Too much had queued up: this is the last until it is said that all was read.
    Lagging,
}

/// Who reads a watch. Dropped, it ends the watch.
struct Reader {
    id: i64,
    orders: mpsc::UnboundedSender<Order>,
    updates: mpsc::UnboundedReceiver<Told>,
    queued: Arc<AtomicUsize>,
    /// With the last watch and the last store the task ends.
    _driver: Arc<Driver>,
}

/// A watch of this store, opened when it is first polled.
pub(super) fn updates(driver: Arc<Driver>, watch: Watch) -> Updates {
    let start = async move { driver.watches.open(&driver, watch) };
    let read = |reader| {
        stream::unfold(Some(reader), async |reader| {
            let mut reader: Reader = reader?;
            let update = reader.next().await;
            let next = update.is_ok().then_some(reader);
            Some((update, next))
        })
    };
    stream::once(start).flat_map(read).boxed()
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
        let (sender, updates) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let seat = Box::new(Seat {
            following: Following::new(watch),
            updates: sender,
            queued: queued.clone(),
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
            updates,
            queued,
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
    async fn next(&mut self) -> Result<Update> {
        loop {
            match self.updates.recv().await {
                Some(Told::Update(update)) => {
                    let less = update.as_ref().map_or(0, weight);
                    self.queued.fetch_sub(less, Ordering::AcqRel);
                    return update;
                }
                Some(Told::Lagging) => {
                    let _ = self.orders.send(Order::Resume(self.id));
                }
                None => {
                    let text = "the task of the watches has ended, with the runtime in which the \
                                first was opened";
                    return Err(Error::new(ErrorKind::Closed, text).during("watch"));
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
