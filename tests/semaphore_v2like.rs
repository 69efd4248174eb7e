//! The semaphore suite on paused time over a store that has what etcd v2 has and no more: no leases,
//! no cancel marks, no commits, and appends that do not tell who is before.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use tenure::embedded::Embedded;
use tenure::runtime::Runtime;

#[path = "semaphore_suite/mod.rs"]
#[macro_use]
mod suite;
#[path = "common/v2like.rs"]
mod v2like;

async fn world() -> (suite::World, ()) {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    (
        suite::World {
            open: Box::new(move || Arc::new(v2like::V2Like::new(store.clone()))),
            runtime,
        },
        (),
    )
}

semaphore_suite!(tokio::test(start_paused = true), world());
