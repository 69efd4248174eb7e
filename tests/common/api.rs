//! The two APIs of one etcd, for tests that hold on both.
#![allow(dead_code)] // each test crate uses a part

use std::sync::Arc;

use tenure::Store;
use tenure::etcd2::Etcd2;
use tenure::etcd3::Etcd3;

use crate::common::etcd::{Etcd, Options};

/// By which API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    V2,
    V3,
}

impl Api {
    /// A server; on v3 without v2, whose clock proposes twice a second.
    pub(crate) fn start(self) -> Etcd {
        Etcd::start_with(&Options {
            v2: self == Self::V2,
            ..Options::default()
        })
    }

    /// What another process opens this by.
    pub(crate) fn address(self, server: &Etcd) -> String {
        format!("{self:?} {}", server.url())
    }

    pub(crate) fn open(self, server: &Etcd) -> Arc<dyn Store> {
        open(&self.address(server))
    }
}

/// The store at an [`address`](Api::address).
pub(crate) fn open(address: &str) -> Arc<dyn Store> {
    match address.split_once(' ').unwrap() {
        ("V2", url) => Arc::new(Etcd2::new(url).unwrap()),
        ("V3", url) => Arc::new(Etcd3::new(url).unwrap()),
        _ => panic!("{address}"),
    }
}
