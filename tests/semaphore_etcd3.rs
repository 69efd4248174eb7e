//! The semaphore suite over a real etcd, through its v3 API.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use tenure::etcd3::Etcd3;
use tenure::runtime::Runtime;

mod common;
#[path = "semaphore_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let url = server.url();
    let open = move || -> Arc<dyn tenure::Store> { Arc::new(Etcd3::new(&url).unwrap()) };
    (
        suite::World {
            open: Box::new(open),
            runtime: Runtime::default(),
        },
        server,
    )
}

semaphore_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);
