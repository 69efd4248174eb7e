//! Rates and latencies of the lock on a real etcd v2 and on the embedded store, a JSON line each.
//!
//! `cargo bench --bench lock`; `TENURE_BENCH_SECS` changes the 3 seconds of each measurement, and
//! `TENURE_BENCH_MEMORY=1` puts etcd's data into memory instead of on the disk.
//! Machines differ and are noisy: compare the lines of one run, first with `put`, one client's
//! plain writes to the same server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tenure::embedded::Embedded;
use tenure::etcd2::Etcd2;
use tenure::runtime::{Clock, Instant};
use tenure::store::{Append, Change, Expiry, Naming, Update, Watch, Withdraw};
use tenure::{Client, Key, LeaseId, Store, StoreExt, Tag, Ttl};
use tokio::task::JoinSet;

#[path = "../tests/common/mod.rs"]
mod common;

use common::etcd::{Etcd, Options};

/// What one task of a measurement did.
#[derive(Default)]
struct Tally {
    micros: Vec<u128>,
    violations: usize,
}

struct Bench {
    clock: Clock,
    length: Duration,
}

impl Bench {
    fn end(&self) -> Instant {
        self.clock.now() + self.length
    }

    /// The same contention by the way that was rejected for etcd v2: each contender keeps a watch
    /// of the whole line and ranks the tickets by itself. Reads nothing, but is told everything.
    async fn contend_by_kept_watches(&self, name: &str, store: impl Fn() -> Etcd2) -> f64 {
        let dir = Key::new("/_locks/watched").unwrap();
        let mut tasks = JoinSet::new();
        for number in 1..=8 {
            let (clock, end, dir, store) = (self.clock.clone(), self.end(), dir.clone(), store());
            tasks.spawn(async move {
                let mut tally = Tally::default();
                let mut updates = store.watch(Watch::tree(dir.clone()));
                let mut line = BTreeSet::new();
                assert!(matches!(updates.next().await, Some(Ok(Update::Open(_)))));
                let lease = LeaseId::new(number).unwrap();
                for nonce in 0.. {
                    if clock.has_passed(end) {
                        break;
                    }
                    let start = clock.now();
                    let tag = Tag::new(lease, nonce);
                    let expiry = Expiry::After(Ttl::DEFAULT);
                    let append = Append::ticket(dir.clone(), tag, expiry);
                    let ticket = store.append(append).await.unwrap().node;
                    while line.first() != Some(&ticket.key) {
                        let Some(Ok(Update::Event(event))) = updates.next().await else {
                            continue;
                        };
                        match event.change {
                            Change::Put(_) => line.insert(event.key),
                            _ => line.remove(&event.key),
                        };
                    }
                    tally.micros.push(clock.now().since(start).as_micros());
                    let withdraw = Withdraw::new(dir.clone(), tag, Naming::Ticket);
                    store.withdraw(withdraw.node(ticket)).await.unwrap();
                }
                tally
            });
        }
        self.report("contend by kept watches", name, tasks).await
    }

    /// Runs the tasks, prints what they did, and returns their rate.
    async fn report(&self, what: &str, store: &str, mut tasks: JoinSet<Tally>) -> f64 {
        let (start, clients) = (self.clock.now(), tasks.len());
        let mut tallies = Vec::new();
        while let Some(tally) = tasks.join_next().await {
            tallies.push(tally.unwrap());
        }
        let secs = self.clock.now().since(start).as_secs_f64();
        let mut micros: Vec<u128> = tallies
            .iter()
            .flat_map(|tally| &tally.micros)
            .copied()
            .collect();
        micros.sort_unstable();
        let quantile = |q: usize| micros[(micros.len() - 1) * q / 100];
        let counts = || tallies.iter().map(|tally| tally.micros.len());
        let violations: usize = tallies.iter().map(|tally| tally.violations).sum();
        let rate = micros.len() as f64 / secs;
        println!(
            "{{\"what\":\"{what}\",\"store\":\"{store}\",\"clients\":{clients},\"ops\":{},\
             \"ops_s\":{rate:.0},\"p50_us\":{},\"p99_us\":{},\"secs\":{secs:.2},\
             \"min\":{},\"max\":{},\"violations\":{violations}}}",
            micros.len(),
            quantile(50),
            quantile(99),
            counts().min().unwrap(),
            counts().max().unwrap(),
        );
        rate
    }

    async fn put(&self, name: &str, store: impl Store) -> f64 {
        let (clock, end) = (self.clock.clone(), self.end());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let key = Key::new("/bench").unwrap();
            let mut tally = Tally::default();
            while !clock.has_passed(end) {
                let start = clock.now();
                store
                    .set(&key, Bytes::from_static(b"value"), Expiry::Never)
                    .await
                    .unwrap();
                tally.micros.push(clock.now().since(start).as_micros());
            }
            tally
        });
        self.report("put", name, tasks).await
    }

    /// A cycle of lock and unlock, by each client on a lock of its own.
    async fn lock(&self, name: &str, clients: Vec<Client>) {
        let mut tasks = JoinSet::new();
        for (number, client) in clients.into_iter().enumerate() {
            let (clock, end) = (self.clock.clone(), self.end());
            tasks.spawn(async move {
                let lock = client.lock(format!("own-{number}"));
                let mut tally = Tally::default();
                while !clock.has_passed(end) {
                    let start = clock.now();
                    lock.acquire().await.unwrap().release().await.unwrap();
                    tally.micros.push(clock.now().since(start).as_micros());
                }
                tally
            });
        }
        self.report("lock", name, tasks).await;
    }

    /// Eight contenders for one lock; the latency is that of the acquire.
    async fn contend(&self, what: &str, name: &str, clients: Vec<Client>) -> f64 {
        let (inside, last) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let mut tasks = JoinSet::new();
        for number in 0..8 {
            let (clock, end) = (self.clock.clone(), self.end());
            let (inside, last) = (inside.clone(), last.clone());
            let lock = clients[number % clients.len()].lock("contended");
            tasks.spawn(async move {
                let mut tally = Tally::default();
                while !clock.has_passed(end) {
                    let start = clock.now();
                    let guard = lock.acquire().await.unwrap();
                    tally.micros.push(clock.now().since(start).as_micros());
                    let token = usize::try_from(guard.token()).unwrap();
                    let shared = inside.swap(true, Ordering::SeqCst);
                    let fell = last.swap(token, Ordering::SeqCst) >= token;
                    tally.violations += usize::from(shared || fell);
                    inside.store(false, Ordering::SeqCst);
                    guard.release().await.unwrap();
                }
                tally
            });
        }
        self.report(what, name, tasks).await
    }
}

#[tokio::main]
async fn main() {
    let secs = std::env::var("TENURE_BENCH_SECS")
        .ok()
        .and_then(|secs| secs.parse().ok());
    let length = Duration::from_secs(secs.unwrap_or(3));
    let bench = Bench {
        clock: Clock::boot(),
        length,
    };

    let on_disk = std::env::var_os("TENURE_BENCH_MEMORY").is_none();
    let server = Etcd::start_with(&Options {
        on_disk,
        quick: false,
        ..Options::default()
    });
    let etcd = || Client::new(Etcd2::new(server.url()).unwrap());
    let raw = bench.put("etcd2", Etcd2::new(server.url()).unwrap()).await;
    bench.lock("etcd2", vec![etcd()]).await;
    bench.lock("etcd2", (0..32).map(|_| etcd()).collect()).await;
    let apart = bench
        .contend("contend", "etcd2", (0..8).map(|_| etcd()).collect())
        .await;
    let kept = bench
        .contend_by_kept_watches("etcd2", || Etcd2::new(server.url()).unwrap())
        .await;
    let together = bench
        .contend("contend in one client", "etcd2", vec![etcd()])
        .await;
    println!(
        "{{\"what\":\"ratio to put\",\"store\":\"etcd2\",\"contend\":{:.2},\"by_kept_watches\":{:.2},\
         \"contend_in_one_client\":{:.2}}}",
        apart / raw,
        kept / raw,
        together / raw
    );

    let store = Embedded::new();
    bench.put("embedded", store.clone()).await;
    bench
        .lock("embedded", vec![Client::new(store.clone())])
        .await;
    bench
        .contend(
            "contend",
            "embedded",
            (0..8).map(|_| Client::new(store.clone())).collect(),
        )
        .await;
}
