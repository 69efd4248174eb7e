//! The recipes: what services come for. Each is one file that states its protocol, what it
//! guarantees under which assumptions, and what it costs.

pub mod by_hand;
pub mod cache;
pub mod contender;
pub mod election;
pub mod guard;
pub mod leadership;
pub(crate) mod line;
pub mod lock;
pub mod multi_lock;
pub mod observe;
pub mod queue;
pub mod revocation;
pub mod semaphore;
