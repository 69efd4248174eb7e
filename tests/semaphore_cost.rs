//! What the semaphore costs a real etcd v2, by the server's own counters: proposals (writes that the
//! whole cluster must agree on) and requests. Rates are not asserted here: `cargo bench` prints
//! them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tenure::etcd2::Etcd2;
use tenure::runtime::{Clock, Instant};
use tenure::{Client, Key, StoreExt};
use tokio::task::JoinSet;

mod common;

use common::etcd::{Etcd, Metrics};

fn client(server: &Etcd) -> Client {
    Client::new(Etcd2::new(server.url()).unwrap())
}

/// The server's counters when a measurement began.
struct Meter {
    clock: Clock,
    at: Instant,
    metrics: Metrics,
    renewals: u64,
    watches: f64,
}

/// What one cycle of acquire and release has cost, without what etcd does by itself (it proposes to
/// expire keys twice a second) and without renewals.
#[derive(Debug)]
struct Cost {
    proposals: f64,
    /// Without long polls.
    requests: f64,
    polls: f64,
}

impl Meter {
    fn start(server: &Etcd) -> Self {
        let clock = Clock::boot();
        Self {
            at: clock.now(),
            clock,
            metrics: server.metrics(),
            renewals: renewals(server),
            watches: watches(server),
        }
    }

    fn stop(&self, server: &Etcd, cycles: usize) -> Cost {
        let Metrics {
            proposals,
            http_requests,
            ..
        } = server.metrics();
        let renewals = (renewals(server) - self.renewals) as f64;
        let own = self.clock.now().since(self.at).as_secs_f64() * 2.0;
        let watches = watches(server) - self.watches;
        let requests = (http_requests - self.metrics.http_requests) as f64;
        let per_cycle = |count: f64| count / cycles as f64;
        Cost {
            proposals: per_cycle((proposals - self.metrics.proposals) as f64 - own - renewals),
            requests: per_cycle(requests - renewals),
            polls: per_cycle(watches),
        }
    }
}

/// How many long polls were opened: the counter of requests leaves them out.
fn watches(server: &Etcd) -> f64 {
    server.metric("etcd_debugging_store_watch_requests_total")
}

/// How often keys were refreshed: the only compare-and-swap that is done here.
fn renewals(server: &Etcd) -> u64 {
    let (status, stats) = server.http("/v2/stats/store").unwrap();
    assert_eq!(status, 200);
    let count = |name: &str| -> u64 {
        let (_, rest) = stats.split_once(&format!("\"{name}\":")).unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    };
    count("compareAndSwapSuccess") + count("compareAndSwapFail")
}

#[tokio::test]
async fn an_uncontended_cycle_is_two_proposals_and_three_requests() {
    const CYCLES: usize = 1_000;
    let server = Etcd::start();
    let semaphore = client(&server).semaphore("a").permits(3);
    semaphore.acquire().await.unwrap().release().await.unwrap();
    let meter = Meter::start(&server);
    for _ in 0..CYCLES {
        let permit = semaphore.acquire().weight(2).await.unwrap();
        permit.release().await.unwrap();
    }
    let cost = meter.stop(&server, CYCLES);
    println!("uncontended, {CYCLES} cycles: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.02, "{cost:?}");
    assert!((cost.requests - 3.0).abs() <= 0.02, "{cost:?}");
    assert!(cost.polls <= 0.01, "{cost:?}");
}

#[tokio::test]
async fn a_try_costs_one_read_more_and_without_room_nothing_else() {
    const CYCLES: usize = 500;
    let server = Etcd::start();
    let semaphore = client(&server).semaphore("a").permits(1);
    semaphore.acquire().await.unwrap().release().await.unwrap();
    let meter = Meter::start(&server);
    for _ in 0..CYCLES {
        let permit = semaphore.try_acquire().await.unwrap().unwrap();
        permit.release().await.unwrap();
    }
    let cost = meter.stop(&server, CYCLES);
    println!("try, room: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.02, "{cost:?}");
    assert!((cost.requests - 4.0).abs() <= 0.02, "{cost:?}");
    let _taken = semaphore.acquire().await.unwrap();
    let meter = Meter::start(&server);
    for _ in 0..CYCLES {
        assert!(semaphore.try_acquire().await.unwrap().is_none());
    }
    let cost = meter.stop(&server, CYCLES);
    println!("try, no room: {cost:.4?}");
    assert!(cost.proposals <= 0.02 && cost.requests <= 1.02, "{cost:?}");
}

/// Eight contenders at two permits in a closed loop; returns the cost of a cycle.
async fn contend(server: &Etcd, clients: &[Client]) -> Cost {
    const CONTENDERS: usize = 8;
    const ROUNDS: usize = 60;
    let inside = Arc::new(AtomicU32::new(0));
    let meter = Meter::start(server);
    let mut tasks = JoinSet::new();
    for number in 0..CONTENDERS {
        let semaphore = clients[number % clients.len()].semaphore("a").permits(2);
        let inside = inside.clone();
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let permit = semaphore.acquire().await.unwrap();
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 2, "more than two");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                permit.release().await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let cost = meter.stop(server, CONTENDERS * ROUNDS);
    let dir = Key::new("/_semaphores/a/line").unwrap();
    assert!(clients[0].store().children(&dir).await.unwrap().is_empty());
    cost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contended_cycle_is_two_proposals_and_one_look_and_no_read_for_a_handoff() {
    let server = Etcd::start();
    let clients: Vec<Client> = (0..8).map(|_| client(&server)).collect();
    let cost = contend(&server, &clients).await;
    println!("8 contenders, 8 clients: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.05, "{cost:?}");
    assert!(cost.requests <= 3.2, "append, look, delete: {cost:?}");
    assert!(
        cost.polls <= 20.0,
        "each of 8 hears of two changes a cycle: {cost:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contended_cycle_inside_one_client_reads_hardly_at_all() {
    let server = Etcd::start();
    let cost = contend(&server, &[client(&server)]).await;
    println!("8 contenders, 1 client: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.05, "{cost:?}");
    assert!(cost.requests <= 2.2, "an append and a delete: {cost:?}");
    assert!(cost.polls <= 2.5, "two changes a cycle: {cost:?}");
}
