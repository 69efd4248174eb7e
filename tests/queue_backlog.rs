//! A long backlog: what it takes to load, to keep, and to claim from. Debug builds are slow; the
//! number of jobs is `TENURE_BACKLOG` (default 20,000, on etcd 5,000; 100,000 to measure).
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::Clock;
use tenure::store::{Expiry, Put};
use tenure::{Client, Consumer, Key};

#[path = "common/api.rs"]
mod api;
mod common;

use api::Api;

async fn push(client: &Client, number: usize) {
    let key = Key::new(format!("/_queues/q/jobs/{number:032}")).unwrap();
    let put = Put::new(key, vec![b'x'; 100], Expiry::Never);
    client.store().put(put).await.unwrap();
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|it| it.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// From the end of one job to the next delivery, in most cases.
async fn p99(clock: &Clock, consumer: &mut Consumer, client: &Client, refill: bool) -> Duration {
    let mut times = Vec::new();
    for turn in 0..500 {
        if refill {
            push(client, 1_000_000 + turn).await;
        }
        let start = clock.now();
        let delivery = consumer.next().await.unwrap().unwrap();
        delivery.ack().await.unwrap();
        times.push(clock.now().since(start));
    }
    times.sort();
    times[times.len() * 99 / 100]
}

/// Puts so many there, and looks how long claims take; `hands` of them write at once.
async fn backlog(client: &Client, jobs: usize, hands: usize) {
    let clock = Clock::boot();
    let mut consumer = client.queue("q").consumer(1);
    push(client, 0).await;
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    let empty = p99(&clock, &mut consumer, client, true).await;
    consumer.close().await;
    let pushed = futures_util::stream::iter(1..=jobs).map(|number| push(client, number));
    pushed.buffer_unordered(hands).collect::<Vec<()>>().await;
    let (memory, start) = (resident(), clock.now());
    let mut consumer = client.queue("q").consumer(1);
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    let (load, grown) = (clock.now().since(start), resident().saturating_sub(memory));
    // A machine with other work to do is noisy at what this takes: it is to be seen once in three.
    for round in 1.. {
        let full = p99(&clock, &mut consumer, client, false).await;
        println!(
            "{jobs} jobs: loaded in {load:?}, {grown} KiB more; p99 of claim and ack {full:?}, empty {empty:?}"
        );
        if full <= empty * 2 + Duration::from_millis(2) {
            return;
        }
        assert!(round < 3, "{full:?}, empty: {empty:?}");
    }
}

/// One at a time: each would be the other's noise.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn jobs(default: usize) -> usize {
    let jobs = std::env::var("TENURE_BACKLOG").ok();
    jobs.map_or(default, |jobs| jobs.parse().unwrap())
}

#[tokio::test]
async fn a_claim_from_a_long_backlog_takes_no_longer_than_one_from_an_empty_queue() {
    let _alone = ALONE.lock().await;
    backlog(&Client::new(Embedded::new()), jobs(20_000), 1).await;
}

async fn backlog_on(api: Api) {
    let _alone = ALONE.lock().await;
    let etcd = api.start();
    backlog(&Client::new(api.open(&etcd)), jobs(5_000), 32).await;
}

#[tokio::test]
async fn nor_on_etcd() {
    backlog_on(Api::V2).await;
}

#[tokio::test]
async fn nor_on_etcd_v3() {
    backlog_on(Api::V3).await;
}
