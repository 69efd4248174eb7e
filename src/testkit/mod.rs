//! Tools for testing code that uses stores: faults on demand, and cancellation at every point.
//!
//! Nothing here is for production. Everything is deterministic on paused tokio time: faults are
//! drawn from a seed or scripted, and no wall clock is read.

mod cancel;
mod faults;
mod faulty;

pub use cancel::{cancel_after, cancel_at_every_poll};
pub use faults::{Call, Fault, Odds, Outage};
pub use faulty::Faulty;
