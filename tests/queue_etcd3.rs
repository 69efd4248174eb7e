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

mod costs {
    use super::*;

    use tenure::store::{Expiry, Put};
    use tenure::{Client, ErrorKind, Key, Store, StoreExt, Ttl};
    use tokio::task::JoinSet;

    use crate::common::v3::quiet;

    fn open(server: &Etcd) -> Etcd3 {
        Etcd3::new(server.url()).unwrap()
    }

    fn put(name: usize, seconds: u64) -> Put {
        let ttl = Ttl::new(Duration::from_secs(seconds)).unwrap();
        let key = Key::new(format!("/k/{name}")).unwrap();
        Put::new(key, "v", Expiry::After(ttl))
    }

    #[tokio::test]
    async fn long_times_to_live_share_a_lease_and_none_is_shorter() {
        let server = quiet();
        let store = open(&server);
        let clock = server.lease_clock();
        store
            .get(tenure::store::Get::node(Key::root()))
            .await
            .unwrap();
        let before = server.metrics().proposals;
        let puts = (0..200).map(|name| store.put(put(name, 600 + name as u64 % 30)));
        for put in futures_util::future::join_all(puts).await {
            put.unwrap();
        }
        let proposals = server.metrics().proposals - before;
        assert_eq!(
            proposals, 201,
            "one grant for all, however many come at once"
        );
        let nodes = store.children(&Key::new("/k").unwrap()).await.unwrap();
        assert!(nodes.iter().all(|it| it.lease == nodes[0].lease));
        let left = clock.left(nodes[0].lease.unwrap().get()).unwrap();
        let (least, most) = (Duration::from_secs(629), Duration::from_secs(750));
        assert!(left >= least && left <= most, "{left:?}");
        // No more than 1,000 on one: their end is one event.
        let puts = (200..1_001).map(|name| store.put(put(name, 600)));
        let last = futures_util::future::join_all(puts).await.pop().unwrap();
        assert_ne!(last.unwrap().node.lease, nodes[0].lease);
        // A short one is exact, and has its own.
        for seconds in [2, 60, 299] {
            let short = store.put(put(2_000, seconds)).await.unwrap().node;
            let left = clock.left(short.lease.unwrap().get()).unwrap();
            assert!(left <= Duration::from_secs(seconds), "{seconds}: {left:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn jobs_that_are_remembered_for_a_day_share_a_lease_too() {
        let server = quiet();
        let store = open(&server);
        let client = Client::new(store.clone());
        let queue = client.queue("q");
        let day = Duration::from_secs(24 * 60 * 60);
        let mut consumer = queue.consumer(1).dedupe(day);
        let mut leases = std::collections::BTreeSet::new();
        for number in 0..5 {
            let id = queue.push("x").id(number.to_string()).await.unwrap().id;
            let delivery = futures_util::StreamExt::next(&mut consumer).await;
            delivery.unwrap().unwrap().ack().await.unwrap();
            let register = Key::new(format!("/_queues/q/state/{id}")).unwrap();
            leases.insert(store.node(&register).await.unwrap().unwrap().lease.unwrap());
        }
        let lease = leases.pop_first().unwrap();
        assert!(leases.is_empty(), "{} more leases", leases.len());
        let left = server.lease_clock().left(lease.get()).unwrap();
        assert!(left >= day && left <= day + day / 4, "{left:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_ack_does_without_a_shared_lease_that_somebody_has_revoked() {
        let server = quiet();
        let store = open(&server);
        let client = Client::new(store.clone());
        let queue = client.queue("q");
        let mut consumer = queue.consumer(1);
        let mut leases = Vec::new();
        for round in 0..3 {
            let id = queue.push("x").await.unwrap().id;
            let delivery = futures_util::StreamExt::next(&mut consumer).await;
            delivery.unwrap().unwrap().ack().await.unwrap();
            let register = Key::new(format!("/_queues/q/state/{id}")).unwrap();
            let lease = store.node(&register).await.unwrap().unwrap().lease.unwrap();
            if round == 1 {
                store.revoke(lease).await.unwrap();
            }
            leases.push(lease);
        }
        assert_eq!(leases[0], leases[1]);
        assert_ne!(leases[1], leases[2]);
        // Whoever writes by hand is told what it was.
        store.revoke(leases[2]).await.unwrap();
        let error = store.put(put(1, 600)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(
            error.changed_nothing() && error.to_string().contains("revoked"),
            "{error}"
        );
        store.put(put(1, 600)).await.unwrap();
        consumer.close().await;
    }

    #[tokio::test]
    async fn a_push_is_one_proposal_a_delayed_one_two_and_a_batch_shares_one() {
        let server = quiet();
        let client = Client::new(open(&server));
        let queue = client.queue("q");
        queue.push("warm").await.unwrap();
        const JOBS: u64 = 100;
        let before = || server.metrics().proposals;
        let mut costs = Vec::new();
        for (with_id, delay) in [(false, 0), (true, 0), (false, 3_600)] {
            let start = before();
            for number in 0..JOBS {
                let push = queue.push("x").delay(Duration::from_secs(delay));
                let push = match with_id {
                    true => push.id(number.to_string()),
                    false => push,
                };
                push.await.unwrap();
            }
            costs.push(before() - start);
        }
        assert_eq!(costs[..2], [JOBS, JOBS]);
        let grants = costs[2] - JOBS * 2;
        assert!(
            grants <= 2,
            "the notes of the delays share a lease: {costs:?}"
        );
        let start = before();
        let pushed = queue.push_all((0..1_280).map(|it| it.to_string())).await;
        assert!(pushed.iter().all(Result::is_ok));
        assert_eq!(before() - start, 10, "128 in a transaction");
    }

    /// Names rise with the appends, so producers race for the next one. A raw queue's jobs come in
    /// the order of their creation, which is that of the names.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_raw_pushes_cost_when_many_push_and_in_which_order_they_are() {
        for producers in [1, 4, 16] {
            let server = quiet();
            const EACH: usize = 20;
            let stores: Vec<Etcd3> = (0..producers).map(|_| open(&server)).collect();
            let before = server.metrics().proposals;
            let mut tasks = JoinSet::new();
            for (number, store) in stores.into_iter().enumerate() {
                tasks.spawn(async move {
                    let queue = Client::new(store).raw_queue("/jobs");
                    for job in 0..EACH {
                        queue.push(format!("{number} {job}")).await.unwrap();
                    }
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
            let pushes = producers * EACH;
            let each = (server.metrics().proposals - before) as f64 / pushes as f64;
            println!("{producers} producers: {each:.2} proposals a raw push");
            let mut jobs = open(&server)
                .children(&Key::new("/jobs").unwrap())
                .await
                .unwrap();
            assert_eq!(jobs.len(), pushes);
            jobs.sort_by_key(|node| node.created);
            assert!(jobs.is_sorted_by_key(|node| node.key.clone()), "names rise");
            assert!(producers > 1 || each <= 1.1, "nobody to race with: {each}");
            assert!(each <= 8.0, "{each}");
        }
    }
}
