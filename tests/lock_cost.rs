//! What the lock costs a real etcd v2, by the server's own counters: proposals (writes that the
//! whole cluster must agree on) and requests. Rates are not asserted here: `cargo bench` prints
//! them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

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

/// What one cycle of lock and unlock has cost, without what etcd does by itself (it proposes to
/// expire keys twice a second) and without renewals.
#[derive(Debug)]
struct Cost {
    proposals: f64,
    requests: f64,
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
            requests: per_cycle(requests + watches - renewals),
        }
    }
}

/// How many long polls were opened: the counter of requests leaves them out.
fn watches(server: &Etcd) -> f64 {
    server.metric("etcd_debugging_store_watch_requests_total")
}

/// How often keys were refreshed: the only compare-and-swap that the lock does.
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
    const CYCLES: usize = 2_000;
    let server = Etcd::start();
    let client = client(&server);
    let lock = client.lock("a");
    lock.acquire().await.unwrap().release().await.unwrap();
    let meter = Meter::start(&server);
    for _ in 0..CYCLES {
        lock.acquire().await.unwrap().release().await.unwrap();
    }
    let cost = meter.stop(&server, CYCLES);
    println!("uncontended, {CYCLES} cycles: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.01, "{cost:?}");
    assert!((cost.requests - 3.0).abs() <= 0.01, "{cost:?}");
}

/// Eight contenders in a closed loop; returns the cost of a handoff.
async fn contend(server: &Etcd, clients: &[Client]) -> Cost {
    const CONTENDERS: usize = 8;
    const ROUNDS: usize = 100;
    let inside = Arc::new(AtomicBool::new(false));
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let meter = Meter::start(server);
    let mut tasks = JoinSet::new();
    for number in 0..CONTENDERS {
        let lock = clients[number % clients.len()].lock("a");
        let (inside, tokens) = (inside.clone(), tokens.clone());
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let guard = lock.acquire().await.unwrap();
                assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
                tokens.lock().unwrap().push(guard.token());
                tokio::task::yield_now().await;
                assert!(inside.swap(false, Ordering::SeqCst), "two holders");
                guard.release().await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let cost = meter.stop(server, CONTENDERS * ROUNDS);
    let tokens = tokens.lock().unwrap().clone();
    assert_eq!(tokens.len(), CONTENDERS * ROUNDS);
    // The token is the place in line: in order of the line means first come, first served.
    assert!(
        tokens.is_sorted_by(|one, two| one < two),
        "out of order: {tokens:?}"
    );
    let dir = Key::new("/_locks/a").unwrap();
    assert!(clients[0].store().children(&dir).await.unwrap().is_empty());
    cost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handoff_between_eight_clients_is_two_proposals() {
    let server = Etcd::start();
    let clients: Vec<Client> = (0..8).map(|_| client(&server)).collect();
    let cost = contend(&server, &clients).await;
    println!("8 contenders, 8 clients: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.01, "{cost:?}");
    assert!(
        cost.requests <= 6.0,
        "more than append, two looks, a watch and a delete: {cost:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handoff_inside_one_client_is_two_proposals_and_hardly_a_read() {
    let server = Etcd::start();
    let cost = contend(&server, &[client(&server)]).await;
    println!("8 contenders, 1 client: {cost:.4?}");
    assert!((cost.proposals - 2.0).abs() <= 0.01, "{cost:?}");
    assert!(
        cost.requests <= 2.5,
        "an append and a delete, and a list for several: {cost:?}"
    );
}
