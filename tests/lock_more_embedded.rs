//! Contenders, requests and several locks over the embedded store, on paused time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::Layout;

#[path = "lock_more_suite/mod.rs"]
#[macro_use]
mod suite;

async fn world(layout: Layout) -> (suite::World, ()) {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone());
    let store = store.layout(layout).build();
    (
        suite::World {
            open: Box::new(move || Arc::new(store.clone())),
            runtime,
        },
        (),
    )
}

mod numbered {
    use super::*;

    lock_more_suite!(tokio::test(start_paused = true), world(Layout::Numbered));
}

/// Tickets named as on etcd v3, so that names are used again.
mod leased {
    use super::*;

    lock_more_suite!(tokio::test(start_paused = true), world(Layout::Leased));
}
