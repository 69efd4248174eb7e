//! What a store is asked for: one value per method, made by a constructor that takes what is
//! required and refined by methods that take what is not.

mod lease;
mod read;
mod write;

pub use lease::{Attached, Grant, Renew};
pub use read::{Filter, Freshness, Get, Page, Scope, Select, Watch};
pub use write::{
    Append, Check, Commit, Condition, Delete, Expiry, Naming, Operation, Put, Withdraw,
};
