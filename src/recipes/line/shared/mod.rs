//! Lines in which several are admitted at once: a limit, and tickets with weights.
//!
//! [`picture`] is what the store showed, and who is admitted by it; [`machine`] keeps one picture
//! for all tickets of this process and decides what to read; [`driver`] does it.

pub(super) mod driver;
mod machine;
pub(crate) mod picture;
