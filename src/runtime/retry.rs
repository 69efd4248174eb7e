//! The pauses between tries of one thing.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::Entropy;

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses between tries: 25 ms doubling to a second, each drawn between half of it and all.
#[derive(Debug)]
pub(crate) struct Retry(ExponentialBackoff);

impl Retry {
    pub(crate) fn new() -> Self {
        // The jitter is drawn by us: backon adds its own on top of the maximum.
        let builder = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(25))
            .with_max_delay(LONGEST)
            .without_max_times();
        Self(builder.build())
    }

    pub(crate) fn pause(&mut self, entropy: &Entropy) -> Duration {
        entropy.jitter(self.0.next().unwrap_or(LONGEST))
    }
}
