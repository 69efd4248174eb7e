//! The recipes: what services come for. Each is one file that states its protocol, what it
//! guarantees under which assumptions, and what it costs.

pub mod by_hand;
pub mod contender;
pub mod guard;
pub(crate) mod line;
pub mod lock;
pub mod semaphore;
