//! The lock on a real etcd v2 behind a proxy on which single requests go wrong: a reply is lost,
//! a request is lost, a request is held back and delivered after its retry.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::{Clock, Instant};
use tenure::{Client, HoldState, Key, LockGuard, StoreExt, Ttl};
use tokio::task::JoinSet;

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use common::etcd::Etcd;
use proxy::{Client as Sees, Fault, Held, Match, Proxy};

const TTL: Duration = Duration::from_secs(3);
/// How long a server may take to remove what has expired.
const SWEEP: Duration = Duration::from_millis(700);
/// Only a hang takes so long.
const LONG: Duration = Duration::from_secs(30);

fn client(url: &str) -> Client {
    let store = Etcd2::new(url).unwrap();
    Client::builder(store).ttl(Ttl::new(TTL).unwrap()).build()
}

async fn proxy(server: &Etcd) -> Proxy {
    Proxy::start(([127, 0, 0, 1], server.client_port()).into())
        .await
        .unwrap()
}

async fn eventually<F: Future<Output = bool>>(what: &str, limit: Duration, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(limit, wait).await.is_ok(),
        "{what}: not within {limit:?}"
    );
}

async fn line_empties(what: &str, client: &Client, name: &str, limit: Duration) {
    let dir = Key::new(format!("/_locks/{name}")).unwrap();
    let empty = || async { client.store().children(&dir).await.unwrap().is_empty() };
    eventually(&format!("{what}: the line is empty"), limit, empty).await;
}

/// One request of a story goes wrong like this.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    LoseReply(Sees),
    LoseRequest(Sees),
    HoldBack,
}

/// Who held, from when to when at the latest.
type Holds = Arc<Mutex<Vec<(Instant, Instant, u64)>>>;

async fn hold(guard: LockGuard, length: Duration, holds: &Holds) {
    let (from, clock) = (Clock::boot().now(), Clock::boot());
    let token = guard.token();
    let _ = guard.run(clock.sleep(length)).await;
    holds.lock().unwrap().push((from, clock.now(), token));
    let _ = guard.release().await;
}

/// One client, behind a proxy on which its `n`-th request goes wrong, takes the lock, keeps it
/// over a renewal, and gives it back; another waits for it; a third comes last. Returns whether
/// there was an `n`-th request.
async fn story(server: Arc<Etcd>, n: u64, mishap: Mishap) -> bool {
    let what = format!("request {n}, {mishap:?}");
    let name = format!("{n}-{mishap:?}");
    let proxy = proxy(&server).await;
    let held: Option<Held> = match mishap {
        Mishap::LoseReply(sees) => {
            proxy.inject(Match::any().nth(n), Fault::LoseReply(sees));
            None
        }
        Mishap::LoseRequest(sees) => {
            proxy.inject(Match::any().nth(n), Fault::LoseRequest(sees));
            None
        }
        Mishap::HoldBack => Some(proxy.hold(Match::any().nth(n))),
    };
    let holds = Holds::default();
    let (a, b) = (client(&proxy.url()), client(&server.url()));
    let first = async {
        if let Ok(guard) = a.lock(&name).acquire().await {
            hold(guard, TTL / 2, &holds).await;
        }
        // Late: whatever followed the timeout has happened.
        if let Some(mut held) = held
            && proxy.pending_faults() == 0
        {
            held.deliver().await;
        }
        a.idle().await;
    };
    let second = async {
        let dir = Key::new(format!("/_locks/{name}")).unwrap();
        while b.store().children(&dir).await.unwrap().is_empty() && proxy.log().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let guard = b.lock(&name).acquire().timeout(LONG).await;
        hold(
            guard.unwrap_or_else(|error| panic!("{what}: {error}")),
            TTL / 10,
            &holds,
        )
        .await;
    };
    tokio::join!(first, second);
    let guard = b.lock(&name).acquire().timeout(TTL + SWEEP).await;
    hold(
        guard.unwrap_or_else(|error| panic!("{what}: stuck: {error}")),
        TTL / 100,
        &holds,
    )
    .await;
    line_empties(&what, &b, &name, TTL + SWEEP).await;
    let mut holds = holds.lock().unwrap().clone();
    holds.sort_unstable();
    for pair in holds.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{what}: two holders: {holds:?}");
        assert!(pair[0].2 < pair[1].2, "{what}: tokens fall: {holds:?}");
    }
    proxy.pending_faults() == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_request_goes_wrong_nobody_shares_the_lock_and_nothing_is_left() {
    let server = Arc::new(Etcd::start());
    let mishaps = [
        Mishap::LoseReply(Sees::Hangs),
        Mishap::LoseReply(Sees::IsClosed),
        Mishap::LoseRequest(Sees::Hangs),
        Mishap::LoseRequest(Sees::IsClosed),
        Mishap::HoldBack,
    ];
    // An acquire, a look, a watch of the own key, a renewal, a release; and one to spare.
    for requests in [1..=3, 4..=6] {
        let mut stories = JoinSet::new();
        for n in requests {
            for mishap in mishaps {
                let server = server.clone();
                stories.spawn(async move { (n, mishap, story(server, n, mishap).await) });
            }
        }
        while let Some(done) = stories.join_next().await {
            let (n, mishap, hit) = done.unwrap();
            assert!(
                hit || n > 5,
                "request {n} never came, so {mishap:?} showed nothing"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_append_is_taken_back_and_delays_the_next_by_its_ttl_at_most() {
    let server = Etcd::start();
    let proxy = proxy(&server).await;
    let (a, b) = (client(&proxy.url()), client(&server.url()));
    let mut held = proxy.hold(Match::method("POST"));
    let guard = a.lock("a").acquire().timeout(LONG).await.unwrap();
    assert_eq!(
        proxy.count(&Match::method("POST")),
        2,
        "the second append has a tag of its own"
    );
    assert_eq!(held.deliver().await, 201);
    let waiter = tokio::spawn({
        let lock = b.lock("a");
        async move { lock.acquire().await.unwrap() }
    });
    assert!(guard.is_held());
    guard.release().await.unwrap();
    let next = tokio::time::timeout(TTL + SWEEP, waiter)
        .await
        .expect("within a TTL")
        .unwrap();
    next.release().await.unwrap();
    line_empties("late append", &b, "a", TTL + SWEEP).await;
}

/// Whether the ticket itself was: from the session's node alone it gains the time from the grant to
/// the append.
fn was_renewed(guard: &LockGuard, before: Instant) -> bool {
    guard.deadline().is_some_and(|now| now > before + TTL / 6)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_refresh_is_refused_and_never_moves_the_expiry_back() {
    let server = Etcd::start();
    let proxy = proxy(&server).await;
    let (a, b) = (client(&proxy.url()), client(&server.url()));
    let guard = a.lock("a").acquire().await.unwrap();
    let refresh = || Match::method("PUT").and_path("_locks");
    let mut held = proxy.hold(refresh());
    held.arrived().await;
    let deadline = guard.deadline().unwrap();
    // The retry has been answered: the term moves on although the first was never heard of.
    let renewed = || async { was_renewed(&guard, deadline) };
    eventually("renewed", TTL, renewed).await;
    assert_eq!(held.deliver().await, 412, "an old refresh was let in");
    let left = b
        .store()
        .node(guard.key())
        .await
        .unwrap()
        .unwrap()
        .ttl
        .unwrap();
    assert!(
        left >= TTL - Duration::from_secs(1),
        "{left:?} left of {TTL:?}"
    );
    assert!(guard.is_held());
    // It goes on as if nothing had been.
    let deadline = guard.deadline().unwrap();
    let renewed = || async { was_renewed(&guard, deadline) };
    eventually("renewed again", TTL, renewed).await;
    assert_eq!(guard.state(), HoldState::Held);
    guard.release().await.unwrap();
    line_empties("late refresh", &b, "a", Duration::ZERO + SWEEP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_whose_reply_is_lost_is_found_out_and_counted_from_its_send() {
    let server = Etcd::start();
    let proxy = proxy(&server).await;
    let a = client(&proxy.url());
    let guard = a.lock("a").acquire().await.unwrap();
    for sees in [Sees::Hangs, Sees::IsClosed] {
        let refresh = Match::method("PUT").and_path("_locks");
        proxy.inject(refresh, Fault::LoseReply(sees));
        eventually("the fault", TTL, || async { proxy.pending_faults() == 0 }).await;
        let deadline = guard.deadline().unwrap();
        let renewed = || async { was_renewed(&guard, deadline) };
        eventually("renewed", TTL, renewed).await;
        eventually("trusted", TTL, || async {
            guard.state() == HoldState::Held
        })
        .await;
    }
    guard.release().await.unwrap();
}
