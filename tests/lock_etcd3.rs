//! The lock, several locks and what is around them, and the lock by hand, over a real etcd through
//! its v3 API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use tenure::Store;
use tenure::etcd3::Etcd3;
use tenure::runtime::Runtime;
use tenure::testkit::Faulty;

#[path = "by_hand_suite/mod.rs"]
#[macro_use]
mod by_hand_suite;
mod common;
#[path = "lock_more_suite/mod.rs"]
#[macro_use]
mod more_suite;
#[path = "lock_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;

fn open(server: &Etcd) -> impl Fn() -> Arc<dyn Store> + Send + Sync + use<> {
    let url = server.url();
    move || Arc::new(Etcd3::new(&url).unwrap())
}

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let world = suite::World {
        open: Box::new(open(&server)),
        runtime: Runtime::default(),
    };
    (world, server)
}

lock_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

mod more {
    use super::*;
    use crate::more_suite as suite;

    async fn world() -> (suite::World, Etcd) {
        let server = Etcd::start();
        let world = suite::World {
            open: Box::new(open(&server)),
            runtime: Runtime::default(),
        };
        (world, server)
    }

    lock_more_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}

mod by_hand {
    use super::*;
    use crate::by_hand_suite as suite;

    async fn world() -> (suite::World, Etcd) {
        let server = Etcd::start();
        let behind = open(&server);
        let world = suite::World {
            open: Box::new(open(&server)),
            linked: Box::new(move || {
                let link = Faulty::shared(behind(), 1);
                (Arc::new(link.clone()), link)
            }),
            runtime: Runtime::default(),
        };
        (world, server)
    }

    by_hand_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}
