//! What the tests share. Each test binary takes what it needs.
#![allow(dead_code, unreachable_pub)]

pub mod etcd;
pub mod fake;
pub mod words;
