//! The semaphore on a real etcd, through its v3 API: the whole suite, what it costs by the server's own
//! counters, sessions that an operator ends, and history that is forgotten.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Runtime};
use tenure::{Client, Contender, ErrorKind, LeaseId, Permit};
use tokio::task::{JoinHandle, JoinSet};

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "semaphore_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;
use common::v3;
use gate::{Gate, Pass};

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let url = server.url();
    let open = move || -> Arc<dyn tenure::Store> { Arc::new(Etcd3::new(&url).unwrap()) };
    (
        suite::World {
            open: Box::new(open),
            runtime: Runtime::default(),
        },
        server,
    )
}

semaphore_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

/// A term that no test reaches by accident.
const TTL: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(30);

fn client(etcd: &Etcd) -> Client {
    v3::client(&etcd.url(), TTL)
}

/// Returns once so many are in line.
async fn line_has(client: &Client, number: usize) -> Vec<Contender> {
    let reached = async {
        loop {
            let line = client.semaphore("a").contenders().await.unwrap();
            if line.len() == number {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(LONG, reached).await;
    reached.unwrap_or_else(|_| panic!("never {number} in line"))
}

/// Returns once a client has said whose its session is, so that it writes nothing more by itself.
async fn announced(client: &Client, session: u64) {
    while client.who(session).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn waits(client: &Client, weight: u32) -> JoinHandle<tenure::Result<Permit>> {
    let semaphore = client.semaphore("a");
    tokio::spawn(async move { semaphore.acquire().weight(weight).await })
}

/// Waits for somebody who waits.
async fn outcome(waiting: JoinHandle<tenure::Result<Permit>>) -> tenure::Result<Permit> {
    let outcome = tokio::time::timeout(LONG, waiting).await;
    outcome.expect("an outcome").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_semaphore_costs() {
    let etcd = v3::quiet();
    let a = client(&etcd);
    let semaphore = a.semaphore("a").permits(3);
    semaphore.acquire().await.unwrap().release().await.unwrap();
    let cycles = async || {
        for _ in 0..20 {
            let permit = semaphore.acquire().weight(2).await.unwrap();
            permit.release().await.unwrap();
        }
    };
    let (spent, ()) = v3::cost(&etcd, cycles()).await;
    assert_eq!(spent, (40, 60), "append, look, delete");
    let tries = async {
        for _ in 0..20 {
            let permit = semaphore.try_acquire().await.unwrap().expect("room");
            permit.release().await.unwrap();
        }
    };
    let (spent, ()) = v3::cost(&etcd, tries).await;
    assert_eq!(spent, (40, 80), "look, append, look, delete");
    let all = semaphore.acquire().weight(3).await.unwrap();
    // By now it is followed, and its session has said whose it is.
    announced(&a, line_has(&a, 1).await[0].session().unwrap()).await;
    let (spent, none) = v3::cost(&etcd, semaphore.try_acquire()).await;
    assert!(none.unwrap().is_none());
    assert_eq!(spent, (0, 1), "a try without room");
    let b = client(&etcd);
    let other = b.semaphore("a");
    let (spent, limit) = v3::cost(&etcd, other.limit()).await;
    assert_eq!((limit.unwrap(), spent), (3, (0, 1)), "limit");
    let (spent, holders) = v3::cost(&etcd, other.holders()).await;
    assert_eq!((holders.unwrap().len(), spent), (1, (0, 1)), "holders");
    let (spent, before) = v3::cost(&etcd, other.resize(4)).await;
    assert_eq!((before.unwrap(), spent), (3, (1, 2)), "resize");
    all.release().await.unwrap();
    // While the line is followed, and for a moment after, the own event tells.
    let (spent, ()) = v3::cost(&etcd, cycles()).await;
    assert_eq!(spent, (40, 40), "append, delete");
}

/// Eight contenders at two permits in a closed loop; what a cycle costs.
async fn contend(etcd: &Etcd, clients: &[Client]) -> (f64, f64) {
    const CONTENDERS: usize = 8;
    const ROUNDS: usize = 60;
    for client in clients {
        let permit = client.semaphore("a").permits(2).acquire().await.unwrap();
        announced(client, line_has(client, 1).await[0].session().unwrap()).await;
        permit.release().await.unwrap();
    }
    let inside = Arc::new(AtomicU32::new(0));
    let (clock, mut tasks) = (Clock::boot(), JoinSet::new());
    let begun = clock.now();
    let before = v3::counts(etcd);
    for number in 0..CONTENDERS {
        let semaphore = clients[number % clients.len()].semaphore("a");
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
    let after = v3::counts(etcd);
    let cycles = (CONTENDERS * ROUNDS) as f64;
    let a_second = cycles / clock.now().since(begun).as_secs_f64();
    let spent = (
        (after.0 - before.0) as f64 / cycles,
        (after.1 - before.1) as f64 / cycles,
    );
    let clients = clients.len();
    println!(
        "8 contenders, {clients} clients: {a_second:.0} cycles a second, proposals and calls each: {spent:.2?}"
    );
    spent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_is_handed_on_without_a_read() {
    let etcd = v3::quiet();
    let clients: Vec<Client> = (0..8).map(|_| client(&etcd)).collect();
    let (proposals, calls) = contend(&etcd, &clients).await;
    assert!((proposals - 2.0).abs() <= 0.05, "{proposals}");
    assert!(calls <= 3.2, "append, look, delete: {calls}");
    line_has(&clients[0], 0).await;
    let (proposals, calls) = contend(&etcd, &clients[..1]).await;
    assert!((proposals - 2.0).abs() <= 0.05, "{proposals}");
    assert!(calls <= 2.2, "an append and a delete: {calls}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_lease_is_revoked_is_told_at_once_and_is_never_let_in() {
    let etcd = v3::quiet();
    let (a, b, c) = (client(&etcd), client(&etcd), client(&etcd));
    let clock = Clock::boot();
    let held = a
        .semaphore("a")
        .permits(2)
        .acquire()
        .weight(2)
        .await
        .unwrap();
    let waiting = [waits(&b, 2), waits(&b, 1)];
    let line = line_has(&a, 3).await;
    let behind = waits(&c, 1);
    line_has(&a, 4).await;
    let revoked = clock.now();
    v3::revoke(&etcd, LeaseId::new(line[1].session().unwrap()).unwrap());
    for waiter in waiting {
        let error = outcome(waiter).await.unwrap_err();
        let told = clock.now().since(revoked);
        println!("told after {told:?}");
        assert!(told < Duration::from_secs(1), "{told:?}");
        assert_eq!(error.kind(), ErrorKind::Lost);
    }
    assert!(held.is_held() && !behind.is_finished());
    held.release().await.unwrap();
    let next = outcome(behind).await.unwrap();
    let holders = a.semaphore("a").contenders().await.unwrap();
    assert_eq!((holders.len(), holders[0].key()), (1, next.key()));
    // One who holds is told as soon.
    let revoked = clock.now();
    tokio::time::timeout(LONG, async {
        v3::revoke(&etcd, LeaseId::new(holders[0].session().unwrap()).unwrap());
        next.lost().await
    })
    .await
    .unwrap();
    let told = clock.now().since(revoked);
    assert!(told < Duration::from_secs(1), "{told:?}");
    assert_eq!(next.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

/// The connection is cut, history is forgotten meanwhile, and the connection comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_goes_on_after_a_compaction_and_does_not_poll() {
    let etcd = v3::quiet();
    let gate = Gate::start(etcd.client_port()).await;
    let (a, b, clock) = (client(&etcd), v3::client(&gate.url(), TTL), Clock::boot());
    let held = a
        .semaphore("a")
        .permits(2)
        .acquire()
        .weight(2)
        .await
        .unwrap();
    let heavy = waits(&b, 2);
    line_has(&a, 2).await;
    let light = waits(&b, 1);
    let line = line_has(&a, 3).await;
    announced(&a, line[1].session().unwrap()).await;
    gate.set(Pass::Nothing);
    for limit in [3, 4, 2] {
        a.semaphore("a").resize(limit).await.unwrap();
    }
    v3::compact(&etcd);
    gate.cut();
    gate.set(Pass::All);
    // It has found its way again when its session is renewed once more.
    clock.sleep(TTL / 3).await;
    let begun = clock.now();
    let before = v3::counts(&etcd).1;
    clock.sleep(TTL / 2).await;
    let calls = v3::counts(&etcd).1 - before;
    let a_second = calls as f64 / clock.now().since(begun).as_secs_f64();
    println!("{a_second:.2} calls a second while two wait after a compaction");
    assert!(a_second <= 1.0, "{a_second}");
    assert!(held.is_held() && !heavy.is_finished() && !light.is_finished());
    // Both kinds of changes are followed again.
    let changed = clock.now();
    a.semaphore("a").resize(4).await.unwrap();
    let heavy = outcome(heavy).await.unwrap();
    held.release().await.unwrap();
    let light = outcome(light).await.unwrap();
    let took = clock.now().since(changed);
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(heavy.token() < light.token() && heavy.is_held());
}
