//! A loop that takes jobs and does them: several at once, until it is told to stop.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Queue;
use super::consumer::{Consumer, Options};
use super::delivery::{Delivery, Ending, Job};
use crate::error::Result;
use crate::runtime::Entropy;

/// The pause after a first failure, unless another is asked for.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// What it grows to.
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// Does the jobs of a queue. Made by [`Queue::worker`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// use tenure::{Client, Job, Key, StoreExt, store::Expiry};
///
/// let client = Client::connect("embedded:").await?;
/// let orders = Key::new("/orders")?;
/// client.store().append_value(&orders, "17".into(), Expiry::Never).await?;
///
/// let (done, mut all) = tokio::sync::mpsc::channel(1);
/// let worker = client.raw_queue("/orders").worker().concurrency(4);
/// let report = worker
///     .until(async move { all.recv().await; })
///     .run(move |job: Job| {
///         let done = done.clone();
///         async move {
///             println!("order {:?}, attempt {}", job.payload(), job.attempt());
///             done.send(()).await
///         }
///     })
///     .await?;
/// assert_eq!(report.acked, 1);
/// # Ok(()) }
/// ```
#[must_use = "a worker does nothing until it is run"]
pub struct Worker {
    options: Options,
    concurrency: usize,
    retry_delay: Option<Arc<dyn Fn(u32) -> Duration + Send + Sync>>,
    until: BoxFuture<'static, ()>,
    progress: watch::Sender<Report>,
}

/// What a worker has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Jobs that were done.
    pub acked: u64,
    /// Deliveries that failed, and come again.
    pub nacked: u64,
    /// Jobs that were given up after their last attempt.
    pub dead: u64,
    /// Deliveries that were lost while they were being done, or whose end is not known.
    pub lost: u64,
    /// Deliveries that are being done.
    pub running: u64,
}

/// What a worker has done so far, as it changes. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Progress(watch::Receiver<Report>);

impl Progress {
    /// The counts now.
    pub fn report(&self) -> Report {
        *self.0.borrow()
    }

    /// Waits for the next change; `None` once the worker is gone.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Option<Report> {
        self.0.changed().await.ok()?;
        Some(*self.0.borrow_and_update())
    }
}

impl Worker {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            options: Options::new(queue, 1),
            concurrency: 1,
            retry_delay: None,
            until: Box::pin(std::future::pending()),
            progress: watch::Sender::default(),
        }
    }

    /// How many jobs are done at once, 1 to 1,000; default 1, which keeps the order of the appends.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self.options.set_slots(jobs);
        self
    }

    /// How long a handler may take, unless it [extends](Job::extend); default 5 min. Then it is
    /// cancelled, and the job is delivered again.
    pub fn max_run(mut self, max_run: Duration) -> Self {
        self.options.set_max_run(max_run);
        self
    }

    /// How often a job is delivered before it is given up; at least 1, default 10.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.options.set_max_attempts(max_attempts);
        self
    }

    /// For how long it is remembered that a job is done; 10 min (default) to 24 h: see
    /// [`Consumer::dedupe`].
    pub fn dedupe(mut self, window: Duration) -> Self {
        self.options.set_dedupe(window);
        self
    }

    /// How long after the `n`th attempt (from 1) has failed the next one may begin. Default: 1 s,
    /// doubling to 5 min, each shortened by up to a half at random.
    pub fn retry_delay(mut self, delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        self.retry_delay = Some(Arc::new(delay));
        self
    }

    /// When this is over the worker stops: it claims no more, gives back what it has not begun, and
    /// waits for the handlers that run. A [shutdown](crate::Client::shutdown) of the client stops
    /// it too, and gives it half of its time.
    pub fn until(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.until = Box::pin(stop);
        self
    }

    /// What it has done so far, for a progress line.
    pub fn progress(&self) -> Progress {
        Progress(self.progress.subscribe())
    }

    /// Does jobs until it is told to stop: each on a task of its own, at most so many at once as its
    /// concurrency says.
    ///
    /// A handler that returns `Ok` has done its job. One that returns an error, or panics, has not:
    /// the job is delivered again later, until it has had its attempts; then it lies among the
    /// dead, with the error as the reason. One whose delivery is lost is cancelled, at an await.
    ///
    /// # Errors
    /// Those of a consumer that will not pass, after the handlers that run have ended.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the handlers, whose jobs are given back, and stops the worker.
    pub async fn run<H, F, E>(self, handler: H) -> Result<Report>
    where
        H: Fn(Job) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + 'static,
    {
        let Self {
            options,
            concurrency,
            retry_delay,
            until,
            progress,
        } = self;
        let core = options.queue().core.clone();
        let entropy = core.runtime.entropy.clone();
        let _working = core.working();
        let (mut until, mut closing) = (until.fuse(), pin!(core.draining.cancelled()));
        let mut consumer = Consumer::new(options);
        let mut tasks = JoinSet::new();
        let work = Arc::new(Work {
            handler,
            retry_delay,
            entropy,
        });
        let (mut is_stopping, mut failure) = (false, None);
        loop {
            progress.send_modify(|report| report.running = tasks.len() as u64);
            if is_stopping && tasks.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = &mut closing, if !is_stopping => is_stopping = true,
                () = &mut until, if !is_stopping => is_stopping = true,
                Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                    // The handler's panics are caught, so only our own would be here.
                    count(&progress, done.unwrap_or(End::Lost));
                }
                item = consumer.next(), if !is_stopping && tasks.len() < concurrency => match item {
                    Some(Ok(delivery)) => drop(tasks.spawn(work.clone().done(delivery))),
                    Some(Err(error)) => (is_stopping, failure) = (true, Some(error)),
                    None => is_stopping = true,
                },
            }
            if is_stopping {
                consumer.stop();
            }
        }
        consumer.close().await;
        match failure {
            Some(error) => Err(error),
            None => Ok(*progress.borrow()),
        }
    }
}

/// What each job is done with.
struct Work<H> {
    handler: H,
    retry_delay: Option<Arc<dyn Fn(u32) -> Duration + Send + Sync>>,
    entropy: Entropy,
}

/// How a delivery ended.
#[derive(Clone, Copy)]
enum End {
    Acked,
    Nacked,
    Dead,
    Lost,
}

impl<H, F, E> Work<H>
where
    H: Fn(Job) -> F + Send + Sync,
    F: Future<Output = Result<(), E>> + Send,
    E: fmt::Display,
{
    /// Does one job and ends its delivery.
    async fn done(self: Arc<Self>, delivery: Delivery) -> End {
        let job = delivery.job();
        let doing =
            AssertUnwindSafe(async { (self.handler)(job).await.map_err(|it| it.to_string()) });
        let reason = match delivery.run(doing.catch_unwind()).await {
            Ok(Ok(Ok(()))) => {
                return match delivery.settle(Ending::Ack).await {
                    Ok(_) => End::Acked,
                    Err(error) => lost(&error),
                };
            }
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(panic)) => format!("panicked: {}", message(&*panic)),
            Err(error) => return lost(&error),
        };
        let (id, attempt) = (delivery.id().clone(), delivery.attempt());
        tracing::debug!(target: "tenure::queue", %id, attempt, reason, "a job failed");
        let delay = match &self.retry_delay {
            Some(delay) => delay(attempt),
            None => self.entropy.jitter(default_delay(attempt)),
        };
        match delivery.settle(Ending::Again(delay, reason)).await {
            Ok(true) => End::Dead,
            Ok(false) => End::Nacked,
            Err(error) => lost(&error),
        }
    }
}

fn lost(error: &crate::Error) -> End {
    tracing::debug!(target: "tenure::queue", %error, "a delivery was lost");
    End::Lost
}

fn count(progress: &watch::Sender<Report>, end: End) {
    progress.send_modify(|report| match end {
        End::Acked => report.acked += 1,
        End::Nacked => report.nacked += 1,
        End::Dead => report.dead += 1,
        End::Lost => report.lost += 1,
    });
}

fn default_delay(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    (FIRST_DELAY * (1 << doublings)).min(LONGEST_DELAY)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message")
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("queue", self.options.queue())
            .field("concurrency", &self.concurrency)
            .field("report", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_five_minutes() {
        let seconds: Vec<u64> = (1..=11).map(|n| default_delay(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(default_delay(u32::MAX), LONGEST_DELAY);
    }
}
