//! Random numbers: from the operating system, or from a seed so that a run can be repeated.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A source of random numbers. Clones of a seeded source draw from the same sequence.
#[derive(Clone, Default)]
pub struct Entropy(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    Os,
    Seeded(Arc<Mutex<fastrand::Rng>>),
}

impl Entropy {
    /// The operating system's random numbers.
    pub fn os() -> Self {
        Self(Source::Os)
    }

    /// The sequence that this seed gives.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(
            fastrand::Rng::with_seed(seed),
        ))))
    }

    /// Any number.
    pub fn u64(&self) -> u64 {
        match &self.0 {
            // A system without a random source still must not stop a release: `RandomState` is
            // seeded by the system once per process and counts up from there.
            Source::Os => getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(0)),
            Source::Seeded(rng) => rng.lock().unwrap_or_else(PoisonError::into_inner).u64(..),
        }
    }

    /// A number between 0 and 1, without 1.
    pub fn fraction(&self) -> f64 {
        // 53 bits are what a double holds exactly.
        (self.u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A duration between half of `duration` and all of it.
    pub fn jitter(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.5 + self.fraction() / 2.0)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::Os => "Entropy::Os",
            Source::Seeded(_) => "Entropy::Seeded",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_clones_share_the_sequence() {
        let (a, b) = (Entropy::seeded(7), Entropy::seeded(7));
        let (first, second) = (a.u64(), a.clone().u64());
        assert_eq!((b.u64(), b.u64()), (first, second));
        assert_ne!(first, second);
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let entropy = Entropy::seeded(1);
        let whole = Duration::from_secs(8);
        for _ in 0..1_000 {
            let drawn = entropy.jitter(whole);
            assert!(drawn >= whole / 2 && drawn <= whole, "{drawn:?}");
        }
    }
}
