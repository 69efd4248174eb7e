//! A store seen through a prefix.

/// A store seen through a prefix.
#[derive(Debug)]
pub struct Prefixed;
