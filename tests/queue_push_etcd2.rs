//! The suite of the queue's producing side over a real etcd, through its v2 keys API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;

mod common;
#[path = "queue_push_suite/mod.rs"]
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

queue_push_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

#[tokio::test]
async fn a_plain_producer_and_a_raw_push_feed_the_same_queue_in_order() {
    let server = Etcd::start();
    let posted = server.request("POST", "/v2/keys/nodes/queue", "value=one");
    assert_eq!(posted.unwrap().0, 201);
    let client = tenure::Client::new(Etcd2::new(server.url()).unwrap());
    let queue = client.raw_queue("/nodes/queue");
    queue.push("two").await.unwrap();
    let posted = server.request("POST", "/v2/keys/nodes/queue", "value=three");
    assert_eq!(posted.unwrap().0, 201);
    let mut payloads = Vec::new();
    for job in queue.jobs().await.unwrap() {
        assert_eq!(job.id.as_str().len(), 20, "the store's own name");
        payloads.push(queue.payload(&job.id).await.unwrap());
    }
    assert_eq!(payloads, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_push_is_one_proposal_with_an_id_one_local_read_more_and_delayed_two_proposals() {
    let server = Etcd::start();
    let client = tenure::Client::new(Etcd2::new(server.url()).unwrap());
    let queue = client.queue("q");
    queue.push("warm").await.unwrap();
    const JOBS: u64 = 500;
    // What etcd proposes by itself: expiries, twice a second.
    let clock = tenure::runtime::Clock::boot();
    let cost = async |with_id: bool, delay: Option<Duration>| {
        let (start, before) = (clock.now(), server.metrics());
        for number in 0..JOBS {
            let push = queue.push("x");
            let push = if with_id {
                push.id(number.to_string())
            } else {
                push
            };
            let push = match delay {
                Some(delay) => push.delay(delay),
                None => push,
            };
            push.await.unwrap();
        }
        let (after, own) = (
            server.metrics(),
            clock.now().since(start).as_secs_f64() * 2.0,
        );
        let proposals = (after.proposals - before.proposals) as f64 - own;
        let requests = (after.http_requests - before.http_requests) as f64;
        (proposals / JOBS as f64, requests / JOBS as f64)
    };
    let plain = cost(false, None).await;
    let with_id = cost(true, None).await;
    let delayed = cost(false, Some(Duration::from_secs(3_600))).await;
    println!(
        "proposals and requests a push: {plain:.3?}, with an id {with_id:.3?}, delayed {delayed:.3?}"
    );
    for (is, proposals, requests) in [(plain, 1.0, 1.0), (with_id, 1.0, 2.0), (delayed, 2.0, 3.0)] {
        assert!((is.0 - proposals).abs() < 0.02, "{is:?}");
        assert!((is.1 - requests).abs() < 0.02, "{is:?}");
    }
}
