//! The queue's suite over the embedded store, on paused time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use tenure::embedded::Embedded;
use tenure::runtime::Runtime;

#[path = "queue_suite/mod.rs"]
#[macro_use]
mod suite;

async fn world() -> (suite::World, ()) {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    (
        suite::World {
            open: Box::new(move || Arc::new(store.clone())),
            runtime,
            left: Box::new(|node| node.ttl),
        },
        (),
    )
}

queue_suite!(tokio::test(start_paused = true), world());
