//! Locks on etcd v3 when renewals are late, lost, answered by mistake or not at all. Real etcd,
//! behind a proxy that knows its calls.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/grpc.rs"]
mod grpc;

use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::words::{key, value};
use futures_util::StreamExt;
use gate::{Gate, Pass};
use grpc::{Client as Caller, Fault, Grpc, Which};
use prost::Message;
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Instant};
use tenure::store::{Change, Expiry, Update, Watch};
use tenure::{Client, ErrorKind, HoldState, Key, LockGuard, Loss, Store, Ttl};
use tokio::task::JoinHandle;

/// Far more than anything takes; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);
/// How long after the deletion of its key a guard may still believe.
const PROMPT: Duration = Duration::from_millis(100);

fn quiet() -> Etcd {
    Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    })
}

fn client(url: &str, ttl: u64) -> Client {
    let ttl = Ttl::new(Duration::from_secs(ttl)).unwrap();
    Client::builder(Etcd3::new(url).unwrap()).ttl(ttl).build()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::boot();
    let deadline = clock.now() + LONG;
    while !holds() {
        assert!(!clock.has_passed(deadline), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// When somebody else, on a connection of its own, is told that this key was deleted.
async fn deletion(etcd: &Etcd, key: &Key) -> JoinHandle<Instant> {
    let store = Etcd3::new(etcd.url()).unwrap();
    let mut updates = store.watch(Watch::node(key.clone()).deletes_only());
    let opened = updates.next().await.unwrap().unwrap();
    assert!(matches!(opened, Update::Open(_)), "{opened:?}");
    tokio::spawn(async move {
        while let Some(update) = updates.next().await {
            if let Update::Event(event) = update.unwrap()
                && matches!(event.change, Change::Delete { .. })
            {
                return Clock::boot().now();
            }
        }
        panic!("the watch ended");
    })
}

/// When and why a guard was lost.
async fn loss(guard: &LockGuard) -> (Instant, Loss) {
    let lost = tokio::time::timeout(LONG, guard.lost()).await;
    (Clock::boot().now(), lost.expect("a loss in time"))
}

/// The lease that a ticket hangs on, as its name says.
fn lease(guard: &LockGuard) -> i64 {
    let name = guard.key().name();
    i64::from_str_radix(name.split('-').next().unwrap(), 16).unwrap()
}

fn revoke(etcd: &Etcd, lease: i64) {
    let body = format!("{{\"ID\":\"{lease}\"}}");
    let (status, answer) = etcd.json("POST", "/v3/lease/revoke", &body).unwrap();
    assert_eq!(status, 200, "{answer}");
}

/// An answer to a renewal.
#[derive(Clone, PartialEq, Message)]
struct Renewed {
    #[prost(bytes = "vec", tag = "1")]
    header: Vec<u8>,
    #[prost(int64, tag = "2")]
    id: i64,
    #[prost(int64, tag = "3")]
    ttl: i64,
}

#[tokio::test]
async fn a_key_that_is_gone_is_a_loss_whatever_renewals_are_answered() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    proxy.rewrite(|name, answer| {
        let mut answer = (name == "LeaseKeepAlive").then(|| Renewed::decode(answer).unwrap())?;
        answer.ttl = 3;
        Some(answer.encode_to_vec())
    });
    let client = client(&proxy.url(), 3);
    let a = client.lock("a").acquire().await.unwrap();
    let b = client.lock("b").acquire().await.unwrap();
    let watched = || proxy.calls().get("WatchCreate").copied() >= Some(2);
    until("both have their own keys watched", watched).await;
    a.put(&key("/x"), "before", Expiry::Never).await.unwrap();
    let (gone_a, gone_b) = (
        deletion(&etcd, a.key()).await,
        deletion(&etcd, b.key()).await,
    );
    revoke(&etcd, lease(&a));
    let ((lost_a, why_a), (lost_b, why_b)) = tokio::join!(loss(&a), loss(&b));
    assert_eq!((why_a, why_b), (Loss::Deleted, Loss::Deleted));
    for (lost, gone) in [(lost_a, gone_a), (lost_b, gone_b)] {
        let late = lost.since(gone.await.unwrap());
        println!("lost {late:?} after another was told of the deletion");
        assert!(late < PROMPT, "{late:?}");
    }
    let refused = a.put(&key("/x"), "after", Expiry::Never).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost, "{refused}");
    let direct = Etcd3::new(etcd.url()).unwrap();
    assert_eq!(value(&direct, "/x").await.as_deref(), Some("before"));
    // The session believes its renewals, and must not stand in the way of the next.
    let again = client
        .lock("a")
        .acquire()
        .timeout(Duration::from_secs(2))
        .await;
    let again = again.unwrap();
    assert!(again.token() > a.token() && lease(&again) != lease(&a));
}

#[tokio::test]
async fn a_write_is_refused_when_its_lease_has_gone_and_nobody_has_noticed() {
    let etcd = quiet();
    let client = client(&etcd.url(), 10);
    // Before its own key is watched.
    let guard = client.lock("a").acquire().await.unwrap();
    revoke(&etcd, lease(&guard));
    let refused = guard.put(&key("/x"), "late", Expiry::Never).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(guard.state(), HoldState::Lost);
    let direct = Etcd3::new(etcd.url()).unwrap();
    assert_eq!(value(&direct, "/x").await, None);
    // And without any write it is found out as soon as the key is watched.
    let guard = client.lock("a").acquire().await.unwrap();
    let since = Clock::boot().now();
    revoke(&etcd, lease(&guard));
    let (lost, why) = loss(&guard).await;
    assert_eq!(why, Loss::Deleted);
    let took = lost.since(since);
    assert!(took < Duration::from_millis(250) + PROMPT, "{took:?}");
}

#[tokio::test]
async fn a_term_counts_from_the_send_and_ends_before_the_server_ends_it() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    let ttl = Duration::from_secs(3);
    proxy.inject(
        Which::of("LeaseKeepAlive", 1),
        Fault::Slow(Duration::from_millis(500)),
    );
    for n in 2..100 {
        let lost = Fault::LoseReply(Caller::Hangs);
        proxy.inject(Which::of("LeaseKeepAlive", n), lost);
    }
    let guard = client(&proxy.url(), 3).lock("a").acquire().await.unwrap();
    let granted = guard.deadline().unwrap();
    let gone = deletion(&etcd, guard.key()).await;
    let extended = guard.extended(granted).await.unwrap();
    let sent = proxy.times("LeaseKeepAlive")[0];
    assert!(extended < sent + ttl, "not from when it was answered");
    let (lost, why) = loss(&guard).await;
    assert_eq!(why, Loss::Expired);
    assert!(lost < sent + ttl, "{:?} late", lost.since(sent + ttl));
    assert!(extended < lost && lost.since(extended) < PROMPT);
    let sends = proxy.times("LeaseKeepAlive").len();
    assert!(sends > 2, "renewals were tried again");
    let gone = tokio::time::timeout(LONG, gone).await.unwrap().unwrap();
    println!("lost {:?} before the server ended it", gone.since(lost));
    assert!(gone > lost);
}

#[tokio::test]
async fn nothing_is_lost_in_an_outage_shorter_than_the_term() {
    let etcd = quiet();
    let gate = Gate::start(etcd.client_port()).await;
    let guard = client(&gate.url(), 4).lock("a").acquire().await.unwrap();
    for pass in [Pass::Nothing, Pass::Requests, Pass::Answers] {
        gate.set(pass);
        let outage = tokio::time::sleep(Duration::from_millis(2_600));
        tokio::select! {
            why = guard.lost() => panic!("{pass:?}: {why:?}"),
            () = outage => {}
        }
        assert_eq!(guard.state(), HoldState::Suspect, "{pass:?}");
        gate.cut();
        gate.set(Pass::All);
        until("it is held again", || guard.state() != HoldState::Suspect).await;
        assert_eq!(guard.state(), HoldState::Held, "{pass:?}");
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_slow_first_renewal_costs_nothing() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    let slow = Fault::Slow(Duration::from_secs(4));
    proxy.inject(Which::of("LeaseKeepAlive", 1), slow);
    let guard = client(&proxy.url(), 10).lock("a").acquire().await.unwrap();
    let first = guard.deadline().unwrap();
    let clock = Clock::boot();
    let beyond = clock.sleep_until(first + Duration::from_millis(500));
    guard.run(beyond).await.unwrap();
    assert_eq!(proxy.hits(), ["LeaseKeepAlive"]);
    guard.release().await.unwrap();
}
