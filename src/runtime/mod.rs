//! What the machines need from the world besides a store: a clock and random numbers.
//!
//! Both are values that are handed in, so that a simulation can own them.

mod clock;
mod entropy;

pub use clock::{Clock, Instant, TimeSource};
pub use entropy::Entropy;

/// A clock and a source of random numbers.
///
/// The default is the operating system's. Tests on paused tokio time use
/// [`Runtime::on_tokio_time`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Runtime {
    /// Tells the time that deadlines are compared with.
    pub clock: Clock,
    /// Makes session names, nonces and jitter.
    pub entropy: Entropy,
}

impl Runtime {
    /// A runtime of these parts.
    pub fn new(clock: Clock, entropy: Entropy) -> Self {
        Self { clock, entropy }
    }

    /// Reads tokio's clock, which tests can pause, and draws from a seed.
    pub fn on_tokio_time(seed: u64) -> Self {
        Self {
            clock: Clock::tokio(),
            entropy: Entropy::seeded(seed),
        }
    }
}
