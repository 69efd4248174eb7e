//! The queue suite over a real etcd, through its v2 keys API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;

mod common;
#[path = "queue_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let url = server.url();
    let open = move || -> Arc<dyn tenure::Store> { Arc::new(Etcd2::new(&url).unwrap()) };
    (
        suite::World {
            open: Box::new(open),
            runtime: Runtime::default(),
            left: Box::new(|node| node.ttl),
        },
        server,
    )
}

queue_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);
