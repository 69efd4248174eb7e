//! What the lock costs a real etcd, by the server's own counters: proposals (writes that the
//! whole cluster must agree on) and requests. Rates are not asserted here: `cargo bench` and
//! `tenure bench` print them.
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

const CONTENDERS: usize = 8;
const ROUNDS: usize = 100;

/// Eight contenders in a closed loop; returns the cost of a handoff.
async fn contend(server: &Etcd, clients: &[Client]) -> Cost {
    let meter = Meter::start(server);
    take_turns(clients).await;
    meter.stop(server, CONTENDERS * ROUNDS)
}

/// Eight contenders in a closed loop, each for a number of rounds: never two at once, first come
/// first served, and nothing is left.
async fn take_turns(clients: &[Client]) {
    let inside = Arc::new(AtomicBool::new(false));
    let tokens = Arc::new(Mutex::new(Vec::new()));
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
    let tokens = tokens.lock().unwrap().clone();
    assert_eq!(tokens.len(), CONTENDERS * ROUNDS);
    // The token is the place in line: in order of the line means first come, first served.
    assert!(
        tokens.is_sorted_by(|one, two| one < two),
        "out of order: {tokens:?}"
    );
    let dir = Key::new("/_locks/a").unwrap();
    assert!(clients[0].store().children(&dir).await.unwrap().is_empty());
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

mod v3 {
    use std::collections::BTreeSet;
    use std::fmt;
    use std::time::Duration;

    use tenure::etcd3::Etcd3;
    use tenure::{LockGuard, Ttl};

    use super::*;

    fn client(server: &Etcd) -> Client {
        Client::new(Etcd3::new(server.url()).unwrap())
    }

    /// What a server has done so far on its v3 API.
    #[derive(Clone, Copy)]
    struct Counted {
        proposals: f64,
        txns: f64,
        ranges: f64,
        /// All calls but those that open a stream.
        calls: f64,
        /// Messages on the streams of watches, and of keep-alives.
        watch_asks: f64,
        keep_alives: f64,
    }

    impl Counted {
        fn now(server: &Etcd) -> Self {
            let (_, page) = server.http("/metrics").unwrap();
            let sum = |name: &str, label: &str| -> f64 {
                page.lines()
                    .filter(|line| line.starts_with(name) && line.contains(label))
                    .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                    .sum()
            };
            let unary = "grpc_type=\"unary\"";
            let method = |name: &str| format!("grpc_method=\"{name}\"");
            let started = "grpc_server_started_total";
            let messages = "grpc_server_msg_received_total";
            Self {
                proposals: sum("etcd_server_proposals_applied_total", ""),
                txns: sum(started, &method("Txn")),
                ranges: sum(started, &method("Range")),
                calls: sum(started, unary),
                watch_asks: sum(messages, &method("Watch")),
                keep_alives: sum(messages, &method("LeaseKeepAlive")),
            }
        }

        fn since(self, before: Self) -> Self {
            Self {
                proposals: self.proposals - before.proposals,
                txns: self.txns - before.txns,
                ranges: self.ranges - before.ranges,
                calls: self.calls - before.calls,
                watch_asks: self.watch_asks - before.watch_asks,
                keep_alives: self.keep_alives - before.keep_alives,
            }
        }
    }

    impl fmt::Debug for Counted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(
                f,
                "{} proposals, {} calls ({} Txn, {} Range), {} asks for watches, {} keep-alives",
                self.proposals,
                self.calls,
                self.txns,
                self.ranges,
                self.watch_asks,
                self.keep_alives
            )
        }
    }

    #[tokio::test]
    async fn lock_and_unlock_is_two_proposals_and_two_calls() {
        const CYCLES: usize = 500;
        let server = Etcd::start();
        let client = client(&server);
        let lock = client.lock("a");
        lock.acquire().await.unwrap().release().await.unwrap();
        let before = Counted::now(&server);
        let (clock, mut names) = (Clock::boot(), BTreeSet::new());
        let began = clock.now();
        for _ in 0..CYCLES {
            let guard = lock.acquire().await.unwrap();
            names.insert(guard.key().clone());
            guard.release().await.unwrap();
        }
        let took = clock.now().since(began).as_secs_f64();
        let cost = Counted::now(&server).since(before);
        println!(
            "v3, uncontended, {CYCLES} cycles in {took:.1} s, {} names: {cost:?}",
            names.len()
        );
        // The server walks over all names that a line has ever had, at each append.
        assert!(names.len() as f64 <= 2.0 + took, "{} names", names.len());
        let cycles = CYCLES as f64;
        assert_eq!((cost.proposals, cost.calls), (cycles * 2.0, cycles * 2.0));
        assert_eq!((cost.watch_asks, cost.ranges), (0.0, 0.0));
    }

    #[tokio::test]
    async fn eight_free_locks_at_once_are_two_proposals_and_two_calls() {
        const CYCLES: usize = 200;
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let server = Etcd::start();
        let client = client(&server);
        let locks = client.lock_all(NAMES);
        let guard = locks.acquire().await.unwrap();
        guard.release().await.unwrap();
        let before = Counted::now(&server);
        let (clock, mut names) = (Clock::boot(), BTreeSet::new());
        let began = clock.now();
        for _ in 0..CYCLES {
            let guard = locks.acquire().await.unwrap();
            assert_eq!(guard.guards().len(), NAMES.len());
            names.extend(guard.guards().map(|(_, it)| it.key().clone()));
            guard.release().await.unwrap();
        }
        let took = clock.now().since(began).as_secs_f64();
        let cost = Counted::now(&server).since(before);
        println!("v3, 8 free locks at once, {CYCLES} cycles in {took:.1} s: {cost:?}");
        // As with one lock: the server walks over all names that a line has ever had.
        assert!(names.len() as f64 <= 8.0 * (2.0 + took), "{names:?}");
        let cycles = CYCLES as f64;
        assert_eq!((cost.proposals, cost.calls), (cycles * 2.0, cycles * 2.0));
        assert_eq!((cost.txns, cost.ranges), (cycles * 2.0, 0.0));
        assert_eq!(cost.watch_asks, 0.0);
        // One that is not free costs a try one proposal, and then none.
        let taken = client.lock("e").acquire().await.unwrap();
        let other = super::v3::client(&server);
        let locks = other.lock_all(NAMES);
        assert!(locks.try_acquire().await.unwrap().is_none());
        // The one that is held for a while says whose it is.
        while other.sessions().await.unwrap().is_empty() {
            clock.sleep(Duration::from_millis(20)).await;
        }
        let before = Counted::now(&server);
        for _ in 0..CYCLES {
            assert!(locks.try_acquire().await.unwrap().is_none());
        }
        let cost = Counted::now(&server).since(before);
        println!("v3, tried {CYCLES} times while one is not free: {cost:?}");
        assert_eq!((cost.proposals, cost.ranges), (0.0, cycles));
        taken.release().await.unwrap();
    }

    /// Of a handoff once all is warm: two proposals, two calls, nothing read, nothing watched anew.
    async fn a_handoff_is_two_proposals_and_no_read(clients: usize) {
        let server = Etcd::start();
        let clients: Vec<Client> = (0..clients).map(|_| client(&server)).collect();
        // Leases, and the view of the line, which is opened once.
        take_turns(&clients).await;
        let before = Counted::now(&server);
        take_turns(&clients).await;
        let cost = Counted::now(&server).since(before);
        println!(
            "v3, {CONTENDERS} contenders, {} clients: {cost:?}",
            clients.len()
        );
        let handoffs = (CONTENDERS * ROUNDS) as f64;
        // One read is the test's own.
        assert_eq!(cost.txns, handoffs * 2.0);
        assert_eq!((cost.proposals, cost.ranges), (handoffs * 2.0, 1.0));
        // A stream is asked for a sign of life now and then.
        assert!(cost.watch_asks < 16.0, "{cost:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_handoff_between_eight_clients_is_two_proposals_and_no_read() {
        a_handoff_is_two_proposals_and_no_read(8).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_handoff_between_two_clients_of_four_contenders_is_two_proposals_and_no_read() {
        a_handoff_is_two_proposals_and_no_read(2).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_handoff_inside_one_client_is_two_proposals_and_no_read() {
        a_handoff_is_two_proposals_and_no_read(1).await;
    }

    /// So many bytes of memory this process uses.
    fn resident() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// `TENURE_HELD_LOCKS=10000` for the figures in the documents, in a release build.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn held_locks_cost_one_keep_alive_for_all_and_no_proposal() {
        let held = std::env::var("TENURE_HELD_LOCKS")
            .ok()
            .and_then(|it| it.parse().ok())
            .unwrap_or(1_000_usize);
        let server = Etcd::start();
        // Some seconds after its start it makes a proposal of its own: the cluster's version.
        let clock = Clock::boot();
        let limit = clock.now() + Duration::from_secs(30);
        let undecided = |text: &str| text.contains("not_decided") || text.contains("er\":\"3.0");
        while undecided(&server.http("/version").unwrap().1) {
            assert!(!clock.has_passed(limit), "no version of the cluster");
            clock.sleep(Duration::from_millis(100)).await;
        }
        let ttl = Ttl::new(Duration::from_secs(10)).unwrap();
        let client = Client::builder(Etcd3::new(server.url()).unwrap())
            .ttl(ttl)
            .build();
        drop(client.lock("warm").acquire().await.unwrap());
        client.idle().await;
        let before = resident();
        let mut guards: Vec<LockGuard> = Vec::with_capacity(held);
        let numbers: Vec<usize> = (0..held).collect();
        for some in numbers.chunks(50) {
            let some = some.iter().map(|n| client.lock(format!("{n}")));
            let some: Vec<_> = some
                .map(|lock| async move { lock.acquire().await })
                .collect();
            guards.extend(futures_util::future::try_join_all(some).await.unwrap());
        }
        // Until all of them are watched, and the session is announced.
        let (mut last, mut quiet) = (Counted::now(&server), 0);
        let looks = held.div_ceil(128) as f64;
        while quiet < 3 {
            clock.sleep(Duration::from_millis(500)).await;
            let now = Counted::now(&server);
            let news = now.since(last);
            quiet = if news.calls + news.watch_asks > 1.0 + looks {
                0
            } else {
                quiet + 1
            };
            last = now;
        }
        let memory = (resident() - before) / held as u64;
        let (begun, at) = (Counted::now(&server), clock.now());
        clock.sleep(ttl.get()).await;
        let idle = Counted::now(&server).since(begun);
        let seconds = clock.now().since(at).as_secs_f64();
        println!("v3, {held} locks held, idle for {seconds:.1} s: {idle:?}; {memory} bytes a lock");
        assert!(guards.iter().all(|guard| guard.is_held()));
        // Besides the watches each half term a look, which tells of 128 locks.
        assert_eq!((idle.proposals, idle.ranges), (0.0, 0.0));
        assert_eq!(idle.calls, idle.txns);
        assert!((looks..=looks * 3.0).contains(&idle.txns), "{idle:?}");
        assert!((1.0..=seconds).contains(&idle.keep_alives), "{idle:?}");
        // The last of them is watched as well as the first.
        for guard in [&guards[0], &guards[held - 1]] {
            client.store().remove(guard.key()).await.unwrap();
            let lost = tokio::time::timeout(Duration::from_secs(1), guard.lost()).await;
            assert_eq!(lost.unwrap(), tenure::Loss::Deleted);
        }
        drop(guards);
        client.shutdown(Duration::from_secs(30)).await;
    }
}
