//! The semaphore on a real etcd, through its v3 API: the whole suite, what it costs by the server's own
//! counters, sessions that an operator ends, and history that is forgotten.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tenure::runtime::{Clock, Runtime};
use tenure::store::Expiry;
use tenure::{Client, Contender, ErrorKind, Key, LeaseId, Permit, StoreExt};
use tokio::task::{JoinHandle, JoinSet};

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "semaphore_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;
use common::v3::{self, TTL, announced};
use common::wait::LONG;
use gate::{Gate, Pass};

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let world = suite::World {
        open: Box::new(v3::stores(&server)),
        runtime: Runtime::default(),
    };
    (world, server)
}

semaphore_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

fn client(etcd: &Etcd) -> Client {
    v3::client(&etcd.url(), TTL)
}

/// Returns once so many are in line.
async fn line_has(client: &Client, number: usize) -> Vec<Contender> {
    let semaphore = client.semaphore("a");
    v3::line_of(number, async || semaphore.contenders().await.unwrap()).await
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
    v3::assert_cost("append, look, delete", spent, (40, 60));
    let tries = async {
        for _ in 0..20 {
            let permit = semaphore.try_acquire().await.unwrap().expect("room");
            permit.release().await.unwrap();
        }
    };
    let (spent, ()) = v3::cost(&etcd, tries).await;
    v3::assert_cost("look, append, look, delete", spent, (40, 80));
    let all = semaphore.acquire().weight(3).await.unwrap();
    // By now it is followed, and its session has said whose it is.
    announced(&a, line_has(&a, 1).await[0].session().unwrap()).await;
    let b = client(&etcd);
    let other = b.semaphore("a");
    let reads = async {
        for _ in 0..10 {
            assert!(semaphore.try_acquire().await.unwrap().is_none());
            assert_eq!(other.limit().await.unwrap(), 3);
            assert_eq!(other.holders().await.unwrap().len(), 1);
        }
    };
    let (spent, ()) = v3::cost(&etcd, reads).await;
    v3::assert_cost("a try without room, limit, holders", spent, (0, 30));
    let resizes = async {
        for limit in [4, 5, 6, 7, 8] {
            assert_eq!(other.resize(limit).await.unwrap(), limit - 1);
        }
    };
    let (spent, ()) = v3::cost(&etcd, resizes).await;
    v3::assert_cost("a read and a write", spent, (5, 10));
    all.release().await.unwrap();
    // While the line is followed, and for a moment after, the own event tells.
    let (spent, ()) = v3::cost(&etcd, cycles()).await;
    v3::assert_cost("append, delete", spent, (40, 40));
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

/// Each waiter has just come, to a line that it did not follow before, in a store that others write
/// to all the time: etcd feeds a watch from an index that has passed only ten times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_is_handed_on_at_once_to_one_who_has_just_come() {
    let etcd = v3::quiet();
    let (a, clock) = (client(&etcd), Clock::boot());
    let writer = client(&etcd);
    let writing = tokio::spawn(async move {
        let key = Key::new("/elsewhere").unwrap();
        loop {
            let set = writer.store().set(&key, "".into(), Expiry::Never);
            set.await.unwrap();
        }
    });
    let mut took = Vec::new();
    for _ in 0..11 {
        let b = client(&etcd);
        let held = a.semaphore("a").permits(1).acquire().await.unwrap();
        let waiting = waits(&b, 1);
        line_has(&a, 2).await;
        held.release().await.unwrap();
        let released = clock.now();
        let permit = outcome(waiting).await.unwrap();
        took.push(clock.now().since(released));
        permit.release().await.unwrap();
    }
    writing.abort();
    took.sort_unstable();
    println!("handed on after {:?}, at most {:?}", took[5], took[10]);
    assert!(took[5] < Duration::from_millis(35), "{took:?}");
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
