//! A stream of deliveries.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::Queue;
use super::delivery::{Delivery, Order};
use super::driver::{self, Ends};
use super::plan::Plan;
use super::registration::MAX_SLOTS;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Ttl;

/// The shortest time for which it is remembered that a job is done, and what is used unless
/// another is asked for.
pub(super) const DEDUPE: Duration = Duration::from_secs(600);

/// Takes jobs from a queue: a stream of [`Delivery`]. Made by [`Queue::consumer`].
///
/// Begins at the first poll. It claims as many jobs as it has slots before they are asked for, and
/// each time a delivery ends the next. Losing its node in the store loses the deliveries, not the
/// consumer: it registers anew and goes on, as it does after any error that may pass. An error that
/// will not pass is the stream's last item.
///
/// Dropping it gives back, uncounted, what it has claimed and nobody has got; deliveries that are
/// out stay held until they end.
///
/// # Cancel safety
/// Dropping a future of the next item loses nothing.
#[must_use = "a consumer does nothing until polled"]
pub struct Consumer {
    options: Options,
    state: State,
}

/// What can be chosen about a consumer; a worker has the same.
#[derive(Clone, Debug)]
pub(super) struct Options {
    queue: Queue,
    slots: usize,
    max_run: Duration,
    max_attempts: u32,
    dedupe: Duration,
}

enum State {
    Idle,
    Running(Link),
    Ended,
}

/// The consumer's ends of the channels. Dropping it stops the task.
struct Link {
    inbox: mpsc::UnboundedReceiver<Result<Delivery>>,
    orders: mpsc::UnboundedSender<Order>,
    ended: oneshot::Receiver<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A task that has ended needs no telling.
        let _ = self.orders.send(Order::Stop);
    }
}

impl Options {
    pub(super) fn new(queue: Queue, slots: usize) -> Self {
        Self {
            queue,
            slots,
            max_run: Duration::from_secs(300),
            max_attempts: 10,
            dedupe: DEDUPE,
        }
    }

    pub(super) fn set_slots(&mut self, slots: usize) {
        self.slots = slots;
    }

    pub(super) fn set_max_run(&mut self, max_run: Duration) {
        self.max_run = max_run;
    }

    pub(super) fn set_max_attempts(&mut self, max_attempts: u32) {
        self.max_attempts = max_attempts;
    }

    pub(super) fn set_dedupe(&mut self, window: Duration) {
        self.dedupe = window;
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    fn plan(&self) -> Result<Plan> {
        let invalid = |text: String| Err(Error::new(ErrorKind::InvalidOptions, text));
        let (paths, keep) = (self.queue.paths.clone()?, self.queue.keep.clone()?);
        if self.slots == 0 || self.slots > MAX_SLOTS {
            let slots = self.slots;
            return invalid(format!(
                "{slots}: a consumer takes 1 to {MAX_SLOTS} jobs at once"
            ));
        }
        if self.max_run.is_zero() || self.max_attempts == 0 {
            return invalid("no delivery at all: max_run and max_attempts are above 0".into());
        }
        let dedupe = match Ttl::new(self.dedupe) {
            Ok(dedupe) if self.dedupe >= DEDUPE => dedupe,
            _ => {
                let window = self.dedupe;
                return invalid(format!(
                    "{window:?}: a dedupe window is between 10 min and 24 h"
                ));
            }
        };
        self.queue.core.open()?;
        Ok(Plan {
            paths,
            keep,
            slots: self.slots,
            max_run: self.max_run,
            max_attempts: self.max_attempts,
            dedupe,
        })
    }
}

impl Consumer {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            state: State::Idle,
        }
    }

    /// How long a delivery is held at most, from when it is given out, unless it is
    /// [extended](Delivery::extend); default 5 min. When that has passed it is lost, and delivered
    /// again. Takes effect before the first poll.
    pub fn max_run(mut self, max_run: Duration) -> Self {
        self.options.set_max_run(max_run);
        self
    }

    /// How often a job is delivered before it is given up; at least 1, default 10. Takes effect
    /// before the first poll.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.options.set_max_attempts(max_attempts);
        self
    }

    /// For how long it is remembered that a job is done, so that pushing one with the same id does
    /// nothing; 10 min (default) to 24 h, on etcd v3 up to a quarter longer. Takes effect before the
    /// first poll.
    ///
    /// Of jobs without an id of their own it is 10 min. What is remembered lies in the queue, and is
    /// in every list that a consumer reads: about 200 bytes for each job of the window on etcd v2,
    /// of at most 64 MiB in all.
    pub fn dedupe(mut self, window: Duration) -> Self {
        self.options.set_dedupe(window);
        self
    }

    /// The next delivery; `None` after an error that will not pass.
    ///
    /// # Errors
    /// `InvalidOptions`, `InvalidName`, `InvalidTtl`, `Closed`: nothing was sent. What the store
    /// gives and will not pass: `Unauthorized`, `ClusterChanged`, `Protocol` and the like.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        StreamExt::next(self).await
    }

    /// Claims no more, gives back, uncounted, what was claimed and not given out, waits for the
    /// deliveries that are out, and takes the consumer's node away.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn close(mut self) {
        if let State::Running(link) = &mut self.state {
            link.stop();
            // Whatever it says, the task has ended.
            let _ = (&mut link.ended).await;
        }
    }

    /// Claims no more, and gives back what was not given out.
    pub(super) fn stop(&mut self) {
        if let State::Running(link) = &mut self.state {
            link.stop();
        }
    }

    fn start(&mut self) -> Result<&mut Link> {
        if matches!(self.state, State::Idle) {
            self.state = State::Ended;
            let plan = self.options.plan()?;
            let (orders, to_driver) = mpsc::unbounded_channel();
            let (out, inbox) = mpsc::unbounded_channel();
            let (ended, end) = oneshot::channel();
            let ends = Ends {
                orders: to_driver,
                to_me: orders.clone(),
                out,
                ended,
            };
            let core = self.options.queue.core.clone();
            core.clone().spawn(driver::drive(core, plan, ends));
            self.state = State::Running(Link {
                inbox,
                orders,
                ended: end,
            });
        }
        match &mut self.state {
            State::Running(link) => Ok(link),
            State::Idle | State::Ended => Err(Error::new(ErrorKind::Closed, "it has ended")),
        }
    }
}

impl Link {
    fn stop(&mut self) {
        if self.inbox.is_closed() {
            return;
        }
        let _ = self.orders.send(Order::Stop);
        self.inbox.close();
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if matches!(self.state, State::Ended) {
            return Poll::Ready(None);
        }
        loop {
            let item = match self.start() {
                Ok(link) => ready!(link.inbox.poll_recv(cx)),
                Err(error) => Some(Err(error.during("consume"))),
            };
            match item {
                // It waited here for so long that it was lost.
                Some(Ok(delivery)) if !delivery.is_held() => {}
                Some(Ok(delivery)) => {
                    delivery.hand_out();
                    return Poll::Ready(Some(Ok(delivery)));
                }
                Some(Err(_)) | None => {
                    self.state = State::Ended;
                    return Poll::Ready(item);
                }
            }
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("queue", &self.options.queue)
            .field("slots", &self.options.slots)
            .finish_non_exhaustive()
    }
}
