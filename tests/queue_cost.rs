//! What a job costs a real etcd, by v2 and by v3, by the server's own counters: proposals, which the
//! whole cluster must agree on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tenure::runtime::Clock;
use tenure::store::{Condition, Expiry, Put};
use tenure::{Client, Key, Ttl};
use tokio::task::JoinSet;

#[path = "common/api.rs"]
mod api;
mod common;

use api::Api;
use common::etcd::Etcd;

const JOBS: usize = 400;

fn client(api: Api, server: &Etcd) -> Client {
    let ttl = Ttl::new(Duration::from_secs(60)).unwrap();
    Client::builder(api.open(server)).ttl(ttl).build()
}

async fn push(client: &Client, number: usize) {
    let key = Key::new(format!("/_queues/q/jobs/{number:05}")).unwrap();
    let put = Put::new(key, "payload", Expiry::Never).when(Condition::Absent);
    client.store().put(put).await.unwrap();
}

/// Several consumers do all jobs, which lie there already, or come one by one; returns the
/// proposals for each job, those of its push included, and how many are done in a second.
async fn cost(
    api: Api,
    consumers: usize,
    slots: usize,
    are_there: bool,
    jobs: usize,
) -> (f64, f64) {
    let server = api.start();
    let producer = client(api, &server);
    let clock = Clock::boot();
    let (before, start) = (server.metrics().proposals, clock.now());
    let done = Arc::new(AtomicUsize::new(0));
    if are_there {
        for number in 0..jobs {
            push(&producer, number).await;
        }
    }
    let begin = clock.now();
    let mut tasks = JoinSet::new();
    for _ in 0..consumers {
        let (client, done) = (client(api, &server), done.clone());
        tasks.spawn(async move {
            let mut consumer = client.queue("q").consumer(slots);
            while done.load(Ordering::SeqCst) < jobs {
                let wait = Duration::from_millis(200);
                let Ok(item) = tokio::time::timeout(wait, consumer.next()).await else {
                    continue;
                };
                let mut acks = vec![item.unwrap().unwrap().ack()];
                // What is there already ends at once, too.
                while let Some(item) = consumer.next().now_or_never() {
                    acks.push(item.unwrap().unwrap().ack());
                }
                let acked = futures_util::future::join_all(acks).await;
                assert!(acked.iter().all(Result::is_ok), "{acked:?}");
                done.fetch_add(acked.len(), Ordering::SeqCst);
            }
            let ended = Clock::boot().now();
            consumer.close().await;
            client.shutdown(Duration::from_secs(5)).await;
            ended
        });
    }
    if !are_there {
        for number in 0..jobs {
            push(&producer, number).await;
        }
    }
    let mut end = begin;
    while let Some(ended) = tasks.join_next().await {
        end = end.max(ended.unwrap());
    }
    assert_eq!(done.load(Ordering::SeqCst), jobs, "each once");
    // v2 proposes to expire keys twice a second; each consumer's node is made and removed, and
    // each view begins with a linearizable read. On v3 also a lease each, and those of what is done.
    let took = clock.now().since(start).as_secs_f64();
    let own = match api {
        Api::V2 => took * 2.0 + (consumers * 3) as f64,
        Api::V3 => (consumers * 5) as f64,
    };
    let proposals = (server.metrics().proposals - before) as f64 - own;
    let each = proposals / jobs as f64;
    let speed = jobs as f64 / end.since(begin).as_secs_f64();
    println!(
        "{api:?}, {consumers} consumers of {slots}, there: {are_there}: {each:.3} proposals a job, {speed:.0} jobs/s"
    );
    (each, speed)
}

/// A job costs so much while nobody is disturbed. Other work on the machine can stop a consumer for
/// longer than the rest wait for it, so that it races: once in three times it must be undisturbed.
async fn is(
    api: Api,
    expected: std::ops::RangeInclusive<f64>,
    consumers: usize,
    slots: usize,
    are_there: bool,
) {
    let _alone = ALONE.lock().await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (each, _) = cost(api, consumers, slots, are_there, JOBS).await;
        assert!(each >= *expected.start(), "not counted: {each}");
        if expected.contains(&each) {
            return;
        }
        seen.push(each);
    }
    panic!("{seen:?}");
}

/// One at a time: each would disturb the others.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_four_proposals_with_one_consumer() {
    is(Api::V2, 3.9..=4.2, 1, 1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_consumers_do_not_race_for_a_backlog() {
    is(Api::V2, 3.9..=4.2, 4, 1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_consumers_with_several_slots_do_not_race_for_what_comes() {
    is(Api::V2, 3.9..=4.2, 4, 4, false).await;
}

/// Push, claim, ack: with the end of the job in the same transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_a_job_is_three_proposals() {
    is(Api::V3, 2.9..=3.1, 1, 1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_four_consumers_do_not_race_for_a_backlog() {
    is(Api::V3, 2.9..=3.15, 4, 1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_nor_for_what_comes() {
    is(Api::V3, 1.9..=3.15, 4, 4, false).await;
}

/// Claims, and acks, that are ready at one moment share a transaction: what remains is the push.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_a_consumer_of_many_slots_shares_its_writes() {
    is(Api::V3, 0.99..=1.3, 1, 64, true).await;
}

/// `TENURE_QUEUE_SPEED=3000` jobs of no duration, by consumers that share a backlog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_jobs_a_second_there_are_with_more_consumers() {
    let _alone = ALONE.lock().await;
    let jobs = std::env::var("TENURE_QUEUE_SPEED").map_or(200, |it| it.parse().unwrap());
    for (consumers, slots) in [(1, 1), (2, 1), (4, 1), (1, 16), (4, 16)] {
        let (_, speed) = cost(Api::V3, consumers, slots, true, jobs).await;
        assert!(speed > 10.0, "{speed}");
    }
}
