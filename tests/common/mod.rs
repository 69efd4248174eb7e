//! What the tests share. Each test binary takes what it needs.
#![allow(dead_code, unreachable_pub)]

pub mod etcd;
pub mod fake;
#[cfg(feature = "etcd3")]
pub mod v3;
pub mod wait;
pub mod words;
