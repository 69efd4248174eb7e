//! The lock suite over a real etcd, through its v2 keys API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::{Client, Loss};

mod common;
#[path = "lock_suite/mod.rs"]
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
        },
        server,
    )
}

lock_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_after_a_backup_is_lost_when_its_name_comes_again() {
    let mut server = Etcd::start();
    let client = Client::new(Etcd2::new(server.url()).unwrap());
    server.back_up();
    let before = client.lock("a").acquire().await.unwrap();
    // From here on it counts the same indexes again.
    server.go_back();
    let after = client.lock("a").acquire().await.unwrap();
    assert_eq!(after.key(), before.key());
    let lost = tokio::time::timeout(Duration::from_secs(1), before.lost()).await;
    assert_eq!(lost, Ok(Loss::Deleted));
    assert!(after.is_held());
    after.release().await.unwrap();
}
