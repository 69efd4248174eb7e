//! What the machines need from the world besides a store: a clock, random numbers, and somewhere
//! to run.
//!
//! All are values that are handed in, so that a simulation can own them.

mod clock;
mod entropy;
mod retry;
mod tasks;
mod thread;

use std::io;

use tokio::runtime::Handle;

pub use clock::{Clock, Instant, TimeSource};
pub use entropy::Entropy;
pub(crate) use retry::Retry;
pub(crate) use tasks::Tasks;
use thread::Thread;

/// A clock, a source of random numbers, and perhaps a thread for renewals.
///
/// The default is the operating system's clock and random numbers, and the tokio runtime of
/// whoever makes a client. Tests on paused tokio time use [`Runtime::on_tokio_time`].
///
/// A store and its client should be given the same value.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Runtime {
    /// Tells the time that deadlines are compared with.
    pub clock: Clock,
    /// Makes session names, nonces and jitter.
    pub entropy: Entropy,
    thread: Option<Thread>,
}

impl Runtime {
    /// A runtime of these parts.
    pub fn new(clock: Clock, entropy: Entropy) -> Self {
        Self {
            clock,
            entropy,
            thread: None,
        }
    }

    /// Reads tokio's clock, which tests can pause, and draws from a seed.
    pub fn on_tokio_time(seed: u64) -> Self {
        Self::new(Clock::tokio(), Entropy::seeded(seed))
    }

    /// Lets sessions be renewed, and connections be served, on a thread of their own.
    ///
    /// Without it they share the caller's tokio runtime: code that blocks that runtime for
    /// longer than is left of a term loses every lock. (Each such lock knows it before it does
    /// anything else; with the thread it is still held.) Costs one thread.
    ///
    /// # Errors
    /// What the operating system refuses a thread with.
    pub fn with_own_thread(mut self) -> io::Result<Self> {
        self.thread = Some(Thread::start()?);
        Ok(self)
    }

    /// Where renewals run, if not where the caller does.
    pub(crate) fn own_thread(&self) -> Option<&Handle> {
        self.thread.as_ref().map(Thread::handle)
    }
}
