//! The lock suite over a real etcd, through its v2 keys API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::{Client, Loss, Ttl};

mod common;
#[path = "lock_suite/mod.rs"]
#[macro_use]
mod suite;
#[allow(dead_code)] // each test crate uses a part
#[path = "common/proxy.rs"]
mod proxy;

use common::etcd::Etcd;
use futures_util::future::try_join_all;
use proxy::{Fault, Match, Proxy};

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
    for tries in 1.. {
        let mut server = Etcd::start();
        let client = Client::new(Etcd2::new(server.url()).unwrap());
        server.back_up();
        let before = client.lock("a").acquire().await.unwrap();
        // From here on it counts the same indexes again.
        server.go_back();
        let after = client.lock("a").acquire().await.unwrap();
        if after.key() != before.key() {
            // On a busy machine the session may have said first whose it is.
            assert!(tries < 10, "{} is not {}", after.key(), before.key());
            continue;
        }
        let lost = tokio::time::timeout(Duration::from_secs(1), before.lost()).await;
        assert_eq!(lost, Ok(Loss::Deleted));
        assert!(after.is_held());
        return after.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_keys_that_one_attempt_cannot_renew_them_all_are_all_kept() {
    const KEYS: usize = 64;
    let server = Etcd::start();
    let upstream = ([127, 0, 0, 1], server.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let ttl = Ttl::new(Duration::from_secs(2)).unwrap();
    let client = Client::builder(Etcd2::new(proxy.url()).unwrap());
    let client = client.ttl(ttl).build();
    // 16 at a time: all take more than one attempt may, and less than a third of a term.
    for _ in 0..KEYS * 100 {
        let slow = Fault::Delay(Duration::from_millis(100));
        proxy.inject(Match::method("PUT"), slow);
    }
    let acquire = |n| {
        let client = client.clone();
        async move { client.lock(n_th(n)).acquire().await }
    };
    let guards = try_join_all((0..KEYS).map(acquire)).await.unwrap();
    tokio::time::sleep(ttl.get() * 3).await;
    let lost = guards.iter().filter(|it| !it.is_held()).count();
    assert_eq!(lost, 0, "lost of {KEYS}, and the server answers all");
}

fn n_th(n: usize) -> String {
    format!("lock-{n}")
}
