//! The queue over a real etcd, through its v3 API: both suites, and what pushes cost.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd3::Etcd3;
use tenure::runtime::Runtime;
use tenure::store::Node;

mod common;
#[path = "queue_push_suite/mod.rs"]
#[macro_use]
mod queue_push_suite;
#[path = "queue_suite/mod.rs"]
#[macro_use]
mod queue_suite;

use common::etcd::Etcd;

/// A store on a fresh server, as often as it is asked for; and how long a node's lease has left.
type Opened = (
    Etcd,
    Box<dyn Fn() -> Arc<dyn tenure::Store> + Send + Sync>,
    Box<dyn Fn(&Node) -> Option<Duration> + Send + Sync>,
);

fn opened() -> Opened {
    let server = Etcd::start();
    let (url, lease) = (server.url(), server.lease_clock());
    let open = move || -> Arc<dyn tenure::Store> { Arc::new(Etcd3::new(&url).unwrap()) };
    let left = move |node: &Node| lease.left(node.lease?.get());
    (server, Box::new(open), Box::new(left))
}

mod consuming {
    use super::*;
    use crate::queue_suite as suite;

    async fn world() -> (suite::World, Etcd) {
        let (server, open, left) = opened();
        let runtime = Runtime::default();
        (
            suite::World {
                open,
                runtime,
                left,
            },
            server,
        )
    }

    queue_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}

mod pushing {
    use super::*;
    use crate::queue_push_suite as suite;

    async fn world() -> (suite::World, Etcd) {
        let (server, open, left) = opened();
        let runtime = Runtime::default();
        (
            suite::World {
                open,
                runtime,
                left,
            },
            server,
        )
    }

    queue_push_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}
