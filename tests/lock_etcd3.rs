//! The lock, several locks and what is around them, and the lock by hand, over a real etcd through
//! its v3 API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;

use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Instant, Runtime};
use tenure::store::{Expiry, Node, Put};
use tenure::testkit::{Fault, Faulty};
use tenure::{Client, ErrorKind, HoldState, Key, LockGuard, Loss, Store, StoreExt, Ttl};
use tokio::task::JoinSet;

#[path = "by_hand_suite/mod.rs"]
#[macro_use]
mod by_hand_suite;
mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "lock_more_suite/mod.rs"]
#[macro_use]
mod more_suite;
#[path = "lock_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::{Etcd, Options};
use common::v3;
use common::wait::{LONG, until};
use common::words::{key, value};
use gate::{Gate, Pass};
use grpc::Grpc;

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let world = suite::World {
        open: Box::new(v3::stores(&server)),
        runtime: Runtime::default(),
    };
    (world, server)
}

lock_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

mod more {
    use super::*;
    use crate::more_suite as suite;

    async fn world() -> (suite::World, Etcd) {
        let server = Etcd::start();
        let world = suite::World {
            open: Box::new(v3::stores(&server)),
            runtime: Runtime::default(),
        };
        (world, server)
    }

    lock_more_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}

mod by_hand {
    use super::*;
    use crate::by_hand_suite as suite;

    async fn world() -> (suite::World, Etcd) {
        let server = Etcd::start();
        let behind = v3::stores(&server);
        let world = suite::World {
            open: Box::new(v3::stores(&server)),
            linked: Box::new(move || {
                let link = Faulty::shared(behind(), 1);
                (Arc::new(link.clone()), link)
            }),
            runtime: Runtime::default(),
        };
        (world, server)
    }

    by_hand_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}

/// One client takes the lock, keeps it over a renewal and gives it back; another waits for it, and
/// a third comes after; one call of the first or the second goes wrong. Returns how many calls each
/// of the two made.
async fn story(
    store: Arc<dyn Store>,
    name: String,
    holds: Arc<Mutex<Vec<(u64, Instant, Instant)>>>,
    plan: impl FnOnce(&Faulty<dyn Store>, &Faulty<dyn Store>),
) -> (u64, u64) {
    let clock = Clock::boot();
    let client = |seed| {
        let link = Faulty::shared(store.clone(), seed);
        let ttl = Ttl::new(TTL).unwrap();
        (Client::builder(link.clone()).ttl(ttl).build(), link)
    };
    let ((a, a_link), (b, b_link), (c, _)) = (client(1), client(2), client(3));
    plan(&a_link, &b_link);
    let hold = async |guard: LockGuard, length| {
        let (token, from) = (guard.token(), clock.now());
        let _ = guard.run(clock.sleep(length)).await;
        holds.lock().unwrap().push((token, from, clock.now()));
        let _ = guard.release().await;
    };
    let turn = async |client: &Client, wait| {
        clock.sleep(wait).await;
        // A refused or unanswered acquire is an outcome too; what it leaves is looked at below.
        if let Ok(guard) = client.lock(&name).acquire().timeout(TTL * 5).await {
            hold(guard, TTL / 2).await;
        }
        client.idle().await;
    };
    tokio::join!(
        turn(&a, Duration::ZERO),
        turn(&b, Duration::from_millis(100))
    );
    let next = c.lock(&name).acquire().timeout(TTL + LATE + SLACK).await;
    let guard = next.unwrap_or_else(|error| panic!("{name}: the lock is stuck: {error}"));
    let dir = guard.key().parent().unwrap();
    hold(guard, Duration::from_millis(1)).await;
    a_link.quiesce().await;
    b_link.quiesce().await;
    let end = clock.now() + TTL + LATE + SLACK;
    while !store.children(&dir).await.unwrap().is_empty() {
        assert!(!clock.has_passed(end), "{name}: something is left");
        clock.sleep(Duration::from_millis(50)).await;
    }
    (a_link.all_calls(), b_link.all_calls())
}

const TTL: Duration = Duration::from_secs(3);
/// A late commit comes this long after the caller was told.
const LATE: Duration = Duration::from_secs(1);
/// The server's sweep, and a machine that is busy with all stories at once.
const SLACK: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_is_lost_or_late_nobody_shares_the_lock_and_nothing_is_left() {
    let server = Etcd::start();
    let store: Arc<dyn Store> = Arc::new(Etcd3::new(server.url()).unwrap());
    let calm = story(store.clone(), "calm".into(), Arc::default(), |_, _| {}).await;
    assert!(calm.0 >= 4 && calm.1 >= 4, "{calm:?}");
    let mut stories = JoinSet::new();
    for fault in [
        Fault::LostReply,
        Fault::LateCommit(LATE),
        Fault::LostRequest,
    ] {
        for n in 1..=calm.0.max(calm.1) + 1 {
            for first in [true, false] {
                let store = store.clone();
                stories.spawn(async move {
                    let holds: Arc<Mutex<Vec<_>>> = Arc::default();
                    let who = if first { "first" } else { "second" };
                    let name = format!("{fault:?} on call {n} of the {who}");
                    story(store, name.clone(), holds.clone(), |a, b| {
                        if first { a } else { b }.nth_of_all(n, fault);
                    })
                    .await;
                    let mut holds = holds.lock().unwrap().clone();
                    holds.sort();
                    let apart = |one: &(_, _, Instant), two: &(_, Instant, _)| one.2 <= two.1;
                    let alone = holds.windows(2).all(|it| apart(&it[0], &it[1]));
                    assert!(alone, "{name}: two holders: {holds:?}");
                });
            }
        }
    }
    let number = stories.len();
    while let Some(told) = stories.join_next().await {
        told.unwrap();
    }
    println!("{number} stories");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_lease_is_revoked_is_told_at_once_and_never_holds() {
    let server = Etcd::start();
    let store: Arc<dyn Store> = Arc::new(Etcd3::new(server.url()).unwrap());
    let (a, b) = (Client::new(store.clone()), Client::new(store.clone()));
    for holder_goes in [false, true] {
        let guard = a.lock("a").acquire().await.unwrap();
        let waiter = tokio::spawn({
            let lock = b.lock("a");
            async move { lock.acquire().await }
        });
        let dir = Key::new("/_locks/a").unwrap();
        let lease = loop {
            let line = store.children(&dir).await.unwrap();
            if let Some(node) = line.iter().find(|node| node.key != *guard.key()) {
                break node.lease.unwrap();
            }
            tokio::task::yield_now().await;
        };
        store.revoke(lease).await.unwrap();
        let mut held = Some(guard);
        if holder_goes {
            held.take().unwrap().release().await.unwrap();
        }
        let told = tokio::time::timeout(Duration::from_secs(1), waiter).await;
        let error = told.expect("within a second").unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost);
        if let Some(guard) = held {
            assert!(guard.is_held());
            guard.release().await.unwrap();
        }
        // The session is over; the next acquire has one of its own.
        b.lock("a")
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

async fn until_watched(server: &Etcd) {
    let watched = || server.metric("etcd_debugging_mvcc_watcher_total") > 0.0;
    until("its key is watched", watched).await;
}

/// The ticket of a guard.
async fn ticket(store: &Etcd3, guard: &LockGuard) -> Node {
    store.node(guard.key()).await.unwrap().expect("a ticket")
}

/// Puts this at the key of a ticket, by hand.
async fn put_by_hand(store: &Etcd3, guard: &LockGuard, expiry: Expiry) -> Node {
    let put = Put::new(guard.key().clone(), "by hand", expiry);
    store.put(put).await.unwrap().node
}

/// Deletes the ticket by hand, and makes another of the same name under the same lease.
async fn remake(store: &Etcd3, guard: &LockGuard) -> Node {
    let lease = ticket(store, guard).await.lease.unwrap();
    store.remove(guard.key()).await.unwrap();
    put_by_hand(store, guard, Expiry::With(lease)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_made_anew_under_the_same_lease_is_a_loss_and_is_left_alone() {
    let server = Etcd::start();
    let (direct, data) = (Etcd3::new(server.url()).unwrap(), key("/data"));
    for how in ["at once", "while it is watched", "before a compaction"] {
        let gate = Gate::start(server.client_port()).await;
        let client = v3::client(&gate.url(), Duration::from_secs(10));
        let guard = client.lock("a").acquire().await.unwrap();
        guard.put(&data, how, Expiry::Never).await.unwrap();
        let remade = if how == "at once" {
            let remade = remake(&direct, &guard).await;
            assert!(
                guard.is_held(),
                "nobody has told it: only the comparison can"
            );
            remade
        } else {
            until_watched(&server).await;
            let cut_off = how == "before a compaction";
            if cut_off {
                gate.set(Pass::Nothing);
            }
            let remade = remake(&direct, &guard).await;
            if cut_off {
                // The deletion is told to nobody any more, and the key is there.
                v3::compact(&server);
                gate.cut();
                gate.set(Pass::All);
            }
            let lost = tokio::time::timeout(LONG, guard.lost()).await;
            assert_eq!(lost.expect(how), Loss::Deleted);
            remade
        };
        let refused = guard.put(&data, "late", Expiry::Never).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Lost, "{how}: {refused}");
        assert_eq!(guard.state(), HoldState::Lost, "{how}");
        assert_eq!(value(&direct, "/data").await.as_deref(), Some(how));
        if how == "at once" {
            let error = guard.release().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        } else {
            drop(guard);
        }
        client.idle().await;
        let found = direct.node(&remade.key).await.unwrap();
        assert_eq!(found.as_ref(), Some(&remade), "{how}: it is not ours");
        // It hangs on a lease of this client, and on nothing else.
        client.shutdown(LONG).await;
        assert_eq!(direct.node(&remade.key).await.unwrap(), None, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_put_on_top_of_a_ticket_is_no_loss() {
    let server = Etcd::start();
    let direct = Etcd3::new(server.url()).unwrap();
    let client = v3::client(&server.url(), Duration::from_secs(2));
    for keeps_its_lease in [true, false] {
        let guard = client.lock("a").acquire().await.unwrap();
        let ours = ticket(&direct, &guard).await;
        until_watched(&server).await;
        let expiry = if keeps_its_lease {
            Expiry::With(ours.lease.unwrap())
        } else {
            Expiry::Never
        };
        let put = put_by_hand(&direct, &guard, expiry).await;
        assert!(put.created == ours.created && put.modified > ours.modified);
        // Over some renewals, and over whatever else looks after it.
        let held = guard.run(tokio::time::sleep(Duration::from_millis(2_500)));
        held.await.unwrap();
        let written = guard.put(&key("/data"), "x", Expiry::Never).await;
        written.unwrap();
        let key = guard.key().clone();
        guard.release().await.unwrap();
        assert_eq!(direct.node(&key).await.unwrap(), None);
    }
}

/// An answer on a stream of watches.
#[derive(Clone, PartialEq, Message)]
struct Watched {
    #[prost(bytes = "vec", tag = "1")]
    header: Vec<u8>,
    #[prost(int64, tag = "2")]
    watch: i64,
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bytes = "vec", repeated, tag = "11")]
    events: Vec<Vec<u8>>,
}

/// How an event goes missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// The server never says anything.
    Silently,
    /// It says that nothing has happened up to there.
    Denied,
}

/// A proxy that tells of no event from the first on that it is asked to leave out; and how many
/// answers it has emptied so far.
async fn forgetful(server: &Etcd, how: Missing) -> (Grpc, Arc<AtomicUsize>) {
    let (proxy, emptied) = (Grpc::start(server.client_port()).await, Arc::default());
    let count: Arc<AtomicUsize> = Arc::clone(&emptied);
    proxy.rewrite(move |name, answer| {
        let mut answer = (name == "Watch").then(|| Watched::decode(answer).unwrap())?;
        if answer.events.is_empty() {
            return None;
        }
        count.fetch_add(1, Ordering::SeqCst);
        answer.events.clear();
        if how == Missing::Silently {
            // An answer about no watch at all.
            answer.watch = i64::MAX;
        }
        Some(answer.encode_to_vec())
    });
    (proxy, emptied)
}

/// Of this length, what is held or waited for is looked at each half of it.
const SHORT: Duration = Duration::from_secs(3);
/// A busy machine.
const LEEWAY: Duration = Duration::from_millis(700);

async fn until_in_line(store: &Etcd3, dir: &str, length: usize) {
    let (clock, dir) = (Clock::boot(), key(dir));
    let limit = clock.now() + LONG;
    while store.children(&dir).await.unwrap().len() != length {
        assert!(!clock.has_passed(limit), "{dir}: never {length} in line");
        clock.sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_behind_a_deletion_that_nobody_told_gets_its_turn_within_half_a_term() {
    let (server, clock) = (Etcd::start(), Clock::boot());
    let direct = Etcd3::new(server.url()).unwrap();
    for how in [Missing::Silently, Missing::Denied] {
        let (proxy, emptied) = forgetful(&server, how).await;
        let here = v3::client(&server.url(), SHORT);
        let there = v3::client(&proxy.url(), SHORT);
        let held = here.lock("a").acquire().await.unwrap();
        let permit = here.semaphore("s").permits(1).acquire().await.unwrap();
        let lock = there.lock("a").acquire().into_future();
        let turn = tokio::spawn(async move { lock.await.unwrap().release().await });
        let semaphore = there.semaphore("s").permits(1).acquire().into_future();
        let let_in = tokio::spawn(async move { semaphore.await.unwrap().release().await });
        for dir in ["/_locks/a", "/_semaphores/s/line"] {
            until_in_line(&direct, dir, 2).await;
        }
        let both = || proxy.calls().get("WatchCreate").copied() >= Some(2);
        until("both lines are followed", both).await;
        // What is opened has been read too.
        clock.sleep(Duration::from_millis(300)).await;
        let since = clock.now();
        held.release().await.unwrap();
        permit.release().await.unwrap();
        for waits in [turn, let_in] {
            let left = (since + SHORT / 2 + LEEWAY).since(clock.now());
            let waited = tokio::time::timeout(left, waits).await;
            waited.expect("a turn within half a term").unwrap().unwrap();
            let took = clock.now().since(since);
            println!("{how:?}: a turn {took:?} after the release");
        }
        assert!(
            emptied.load(Ordering::SeqCst) >= 2,
            "both were kept from it"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_lost_within_half_a_term_of_a_deletion_that_nobody_told() {
    const HELD: usize = 300;
    for takes in [128, 100] {
        let args = vec!["--max-txn-ops".into(), takes.to_string()];
        lose_some_of(HELD, args).await;
    }
}

async fn lose_some_of(number: usize, args: Vec<String>) {
    let server = Etcd::start_with(&Options {
        v2: false,
        args,
        ..Options::default()
    });
    let clock = Clock::boot();
    let direct = Etcd3::new(server.url()).unwrap();
    let (proxy, emptied) = forgetful(&server, Missing::Denied).await;
    let client = v3::client(&proxy.url(), SHORT);
    let taken = (0..number).map(|n| client.lock(format!("{n}")).acquire().into_future());
    let held = futures_util::future::try_join_all(taken).await.unwrap();
    // Of one of them the line is followed, because somebody waits in it.
    let waiting = client.lock("7").acquire().into_future();
    let waiter = tokio::spawn(waiting);
    until_in_line(&direct, "/_locks/7", 2).await;
    let watched = || server.metric("etcd_debugging_mvcc_watcher_total") >= number as f64 - 1.0;
    until("their own keys are watched", watched).await;
    // The followed one too, and what was opened has been looked at.
    clock.sleep(Duration::from_millis(500)).await;
    let gone = [0, 7, 127, 128, number - 1];
    let took = lost_in_time(&direct, &held, gone).await;
    println!("{} of {number} were lost within {took:?}", gone.len());
    assert!(emptied.load(Ordering::SeqCst) > 0, "nobody was told of any");
    let next = tokio::time::timeout(SHORT, waiter).await.expect("its turn");
    assert!(next.unwrap().unwrap().token() > held[7].token());
    for (n, guard) in held.iter().enumerate() {
        assert_eq!(guard.is_held(), !gone.contains(&n), "{n}");
    }
}

/// Deletes these by force, and sees them lost within half a term; how long that took.
async fn lost_in_time(direct: &Etcd3, held: &[LockGuard], gone: [usize; 5]) -> Duration {
    let clock = Clock::boot();
    let since = clock.now();
    for n in gone {
        direct.remove(held[n].key()).await.unwrap();
    }
    for n in gone {
        let left = (since + SHORT / 2 + LEEWAY).since(clock.now());
        let lost = tokio::time::timeout(left, held[n].lost()).await;
        assert_eq!(lost.expect("a loss within half a term"), Loss::Deleted);
    }
    clock.now().since(since)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_looked_at_too_on_a_server_that_takes_smaller_transactions() {
    const HELD: usize = 40;
    let (server, clock) = (of_small_transactions(), Clock::boot());
    let direct = Etcd3::new(server.url()).unwrap();
    let (proxy, emptied) = forgetful(&server, Missing::Denied).await;
    let client = v3::client(&proxy.url(), SHORT);
    let taken = (0..HELD).map(|n| client.lock(format!("{n}")).acquire().into_future());
    let held = futures_util::future::try_join_all(taken).await.unwrap();
    let watched = || server.metric("etcd_debugging_mvcc_watcher_total") >= HELD as f64;
    until("their own keys are watched", watched).await;
    clock.sleep(Duration::from_millis(500)).await;
    let gone = [0, 15, 16, 17, HELD - 1];
    lost_in_time(&direct, &held, gone).await;
    assert!(emptied.load(Ordering::SeqCst) > 0, "nobody was told of any");
    for (n, guard) in held.iter().enumerate() {
        assert_eq!(guard.is_held(), !gone.contains(&n), "{n}");
    }
}

fn of_small_transactions() -> Etcd {
    Etcd::start_with(&Options {
        v2: false,
        args: vec!["--max-txn-ops".into(), "16".into()],
        ..Options::default()
    })
}

#[tokio::test]
async fn a_server_that_takes_smaller_transactions_is_served_lock_by_lock() {
    let server = of_small_transactions();
    let client = Client::new(Etcd3::new(server.url()).unwrap());
    let names: Vec<_> = (0..20).map(|it| format!("{it:02}")).collect();
    let locks = client.lock_all(&names);
    for _ in 0..2 {
        let guard = locks.acquire().await.unwrap();
        assert_eq!(guard.guards().len(), names.len());
        guard.release().await.unwrap();
        let tried = locks.try_acquire().await.unwrap();
        tried.expect("all are free").release().await.unwrap();
    }
    for name in &names {
        assert!(client.lock(name).contenders().await.unwrap().is_empty());
    }
}

/// The other program takes one lock inside the other, in the order of keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_locks_at_once_and_etcdctl_inside_etcdctl_get_their_turns() {
    const ROUNDS: usize = 12;
    let server = Etcd::start();
    let held = std::env::temp_dir().join(format!("tenure-several-{}", std::process::id()));
    let (place, url) = (held.to_str().unwrap().to_owned(), server.url());
    let theirs = tokio::task::spawn_blocking(move || {
        let inner = format!("mkdir {place} || echo two hold; sleep 0.005; rmdir {place}");
        for _ in 0..ROUNDS {
            let outcome = std::process::Command::new("timeout")
                .args([
                    "60",
                    "etcdctl",
                    "lock",
                    "/_locks/a",
                    "--",
                    "etcdctl",
                    "lock",
                ])
                .args(["/_locks/b", "--", "sh", "-c", &inner])
                .env("ETCDCTL_API", "3")
                .env("ETCDCTL_ENDPOINTS", &url)
                .output()
                .unwrap();
            assert!(outcome.status.success(), "{outcome:?}");
            assert!(outcome.stdout.is_empty(), "{outcome:?}");
        }
    });
    let mut ours = JoinSet::new();
    let over = Arc::new(AtomicUsize::new(0));
    for names in [["a", "b"], ["b", "a"]] {
        let client = v3::client(&server.url(), LONG);
        let (held, over) = (held.clone(), over.clone());
        ours.spawn(async move {
            let (locks, mut turns) = (client.lock_all(names), 0);
            while over.load(Ordering::SeqCst) == 0 {
                let guard = tokio::time::timeout(LONG, locks.acquire().into_future()).await;
                let guard = guard.expect("its turn").unwrap();
                std::fs::create_dir(&held).expect("two hold");
                tokio::time::sleep(Duration::from_millis(2)).await;
                std::fs::remove_dir(&held).unwrap();
                guard.release().await.unwrap();
                turns += 1;
            }
            turns
        });
    }
    let outcome = tokio::time::timeout(LONG * 2, theirs).await;
    over.store(1, Ordering::SeqCst);
    outcome.expect("their turns").unwrap();
    let turns = ours.join_all().await;
    println!("etcdctl in etcdctl: {ROUNDS} turns; ours: {turns:?}");
    assert!(turns.iter().all(|it| *it >= ROUNDS / 2), "{turns:?}");
}
