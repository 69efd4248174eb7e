//! What went wrong with python-etcd's lock, shown not to go wrong with ours: on a real etcd, beside
//! tickets as python leaves them, for the lock with a guard and for the lock by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[allow(dead_code)]
#[path = "common/peers.rs"]
mod peers;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say};
use common::words::until_watched;
use peers::Peers;
use proxy::{Match, Proxy};
use tenure::etcd2;
use tenure::runtime::{Clock, Instant};
use tenure::{Client, ErrorKind, Ttl};

const TTL: Duration = Duration::from_secs(3);
/// Only a hang takes so long.
const LONG: Duration = Duration::from_secs(30);
const PYTHON: &str = "0123456789abcdef0123456789abcdef";

fn now() -> Instant {
    Clock::boot().now()
}

fn locks(url: &str) -> Client {
    let store = etcd2::Etcd2::new(url).unwrap();
    Client::builder(store).ttl(Ttl::new(TTL).unwrap()).build()
}

fn keys(etcd: &Etcd) -> etcd2::Client {
    etcd2::Client::new(etcd.url()).unwrap()
}

/// A ticket as python leaves it when its `with` crashed: for ever.
async fn python(keys: &etcd2::Client, line: &str) -> String {
    keys.append(line, PYTHON).await.unwrap().node.key
}

async fn line(keys: &etcd2::Client, line: &str) -> Vec<etcd2::client::Node> {
    match keys.read(line).sorted().quorum().await {
        Ok(read) => read.node.nodes,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

async fn until_in_line(keys: &etcd2::Client, at: &str, number: usize) {
    let there = async {
        while line(keys, at).await.len() != number {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let there = tokio::time::timeout(LONG, there).await;
    there.unwrap_or_else(|_| panic!("not {number} in {at}"));
}

/// More events than etcd keeps.
async fn forget_history(etcd: &Etcd) {
    for _ in 0..1_100 {
        etcd.request("PUT", "/v2/keys/noise", "value=x").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_by_its_timeout_however_often_it_is_woken_and_leaves_nothing() {
    let etcd = Etcd::start();
    let keys = keys(&etcd);
    let ticket = python(&keys, "/_locks/a").await;
    let client = locks(&etcd.url());
    let mut by_hand = client.get_lock("a", TTL);
    let limit = Duration::from_millis(1_500);
    let begun = now();
    let waits = async {
        let guarded = client.lock("a");
        let guarded = guarded.acquire().timeout(limit).into_future();
        let by_hand = by_hand.acquire().timeout(limit).into_future();
        let (one, two) = tokio::join!(guarded, by_hand);
        (one.unwrap_err(), two.unwrap_err(), now().since(begun))
    };
    // Each renewal by python is an event at the predecessor, and makes its created index new.
    let wakes = async {
        for _ in 0.. {
            keys.set(&ticket, PYTHON).permanent().await.unwrap();
        }
    };
    let (one, two, took) = tokio::select! {
        biased;
        ended = waits => ended,
        () = wakes => unreachable!(),
        () = tokio::time::sleep(LONG) => panic!("it waits for ever"),
    };
    assert_eq!(
        (one.kind(), two.kind()),
        (ErrorKind::Timeout, ErrorKind::Timeout)
    );
    assert!(took >= limit && took < limit * 3, "{took:?}");
    assert!(!by_hand.try_acquire().await.unwrap());
    assert!(client.lock("a").try_acquire().await.unwrap().is_none());
    until_in_line(&keys, "/_locks/a", 1).await;
    // Nobody is kept waiting by what others gave up.
    keys.delete(&ticket).await.unwrap();
    assert!(by_hand.try_acquire().await.unwrap());
    assert!(by_hand.release().await.unwrap());
    assert!(!by_hand.release().await.unwrap(), "what is not held");
    assert!(!client.get_lock("never", TTL).release().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_lost_history_neither_spins_nor_misses_its_turn() {
    let etcd = Etcd::start();
    let keys = keys(&etcd);
    let ticket = python(&keys, "/_locks/a").await;
    let proxy = Proxy::start(([127, 0, 0, 1], etcd.client_port()).into())
        .await
        .unwrap();
    let client = locks(&proxy.url());
    let waiter = client.clone();
    let waiter = tokio::spawn(async move { waiter.lock("a").acquire().await });
    until_in_line(&keys, "/_locks/a", 2).await;
    until_watched(&etcd, 1).await;
    // While the watch is away, everything since it began is forgotten.
    proxy.cut().await;
    forget_history(&etcd).await;
    let before = proxy.count(&Match::any());
    proxy.heal().await;
    until_watched(&etcd, 1).await;
    let watched = now();
    while now().since(watched) < TTL {
        tokio::time::sleep(TTL / 10).await;
        assert!(!waiter.is_finished(), "over python's head");
    }
    // It went on by index, and was told that there is no such event any more.
    let resumed = proxy.log();
    let resumed = resumed[before..].iter();
    assert!(resumed.clone().any(|it| it.path.contains("waitIndex")));
    // Renewals, a look each TTL/2, and the resync: python-etcd sends a thousand a second.
    let sent = proxy.count(&Match::any()) - before;
    assert!(sent < 40, "{sent} requests in {TTL:?}");
    keys.delete(&ticket).await.unwrap();
    let guard = tokio::time::timeout(LONG, waiter).await.expect("its turn");
    guard.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ticket_ends_by_itself_and_is_renewed_while_it_waits_and_while_it_is_held() {
    let etcd = Etcd::start();
    let keys = keys(&etcd);
    let client = locks(&etcd.url());
    let mut by_hand = locks(&etcd.url()).get_lock("a", TTL);
    let guard = client.lock("a").acquire().await.unwrap();
    let scope = by_hand.scoped(async |held| {
        assert!(held.is_locked().await.unwrap());
        let tickets = line(&keys, "/_locks/a").await;
        assert_eq!(tickets.len(), 1);
        assert!(tickets[0].ttl.is_some_and(|it| it <= 3), "{tickets:?}");
    });
    let looks = async {
        until_in_line(&keys, "/_locks/a", 2).await;
        let first = line(&keys, "/_locks/a").await;
        let begun = now();
        // Longer than the time-to-live of both.
        while now().since(begun) < TTL * 2 {
            let tickets = line(&keys, "/_locks/a").await;
            assert_eq!(tickets.len(), 2);
            for (now, then) in tickets.iter().zip(&first) {
                assert_eq!(
                    (&now.key, now.created_index),
                    (&then.key, then.created_index)
                );
                assert!(now.ttl.is_some_and(|it| it <= 3), "{now:?}");
            }
            tokio::time::sleep(TTL / 20).await;
        }
        guard.release().await.unwrap();
    };
    let both = async { tokio::join!(scope, looks) };
    tokio::time::timeout(LONG, both).await.unwrap().0.unwrap();
    until_in_line(&keys, "/_locks/a", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_is_that_of_the_numbers_and_strangers_are_nobody() {
    let etcd = Etcd::start();
    let keys = keys(&etcd);
    let client = locks(&etcd.url());
    // What python counts as contenders: by name the first sort before all tickets, the others
    // behind. A server that takes part in v2 today names tickets by 20 digits and nothing else.
    for stray in [
        "!x",
        "-b",
        "/7",
        "10",
        "9",
        "x",
        "000000000000000000001",
        "_meta",
    ] {
        let key = format!("/_locks/a/{}", stray.trim_start_matches('/'));
        keys.set(&key, PYTHON).permanent().await.unwrap();
    }
    for dir in ["empty", "00000000000000000001", "full/00000000000000000002"] {
        keys.make_dir(format!("/_locks/a/{dir}")).await.unwrap();
    }
    let mut by_hand = client.get_lock("a", TTL);
    for _ in 0..2 {
        let guard = client.lock("a").try_acquire().await.unwrap();
        guard.expect("nobody is before it").release().await.unwrap();
        assert!(by_hand.try_acquire().await.unwrap());
        assert!(by_hand.is_locked().await.unwrap());
        by_hand.release().await.unwrap();
    }
    // Real tickets beside them count: by number, whatever their created indexes say.
    let ticket = python(&keys, "/_locks/a").await;
    let mut second = Box::pin(by_hand.acquire().into_future());
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut second);
    assert!(waits.await.is_err(), "over python's head");
    keys.set(&ticket, PYTHON).permanent().await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut second);
    assert!(waits.await.is_err(), "python's renewal keeps its place");
    keys.delete(&ticket).await.unwrap();
    let turn = tokio::time::timeout(LONG, second).await;
    turn.expect("its turn").unwrap();
    by_hand.release().await.unwrap();
    // An empty line, as python leaves it, is no contender.
    keys.make_dir("/_locks/empty").await.unwrap();
    let guard = client.lock("empty").try_acquire().await.unwrap();
    guard.expect("an empty line").release().await.unwrap();
}

/// Sends a request on and returns the answer.
fn forward(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    // So that the end of the connection is the end of the answer.
    let request = request.replacen(" HTTP/1.1\r\n", " HTTP/1.1\r\nConnection: close\r\n", 1);
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    String::from_utf8(answer).ok()
}

/// Writes go to two members, and reads to the third, which has not heard from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_member_that_lags_behind_neither_admits_nor_loses_a_ticket() {
    let peers = Peers::default();
    let members = Etcd::start_three_behind(|number, port| peers.gate(number, port));
    let (stale, live) = (members[0].client_port(), members[1].client_port());
    let split = Fake::new(move |_, request| {
        let port = if request.starts_with("GET") {
            stale
        } else {
            live
        };
        match forward(port, request) {
            Some(answer) => Say::Raw(answer),
            None => Say::Close,
        }
    })
    .await;
    let (_, itself) = members[0].http("/v2/stats/self").unwrap();
    let id = itself.split("\"id\":\"").nth(1).unwrap().split('"').next();
    peers.cut(0, id.unwrap());
    let alone = async {
        while !matches!(members[0].http("/v2/members/leader"), Ok((503, _))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, alone).await.expect("cut off");
    let keys = etcd2::Client::builder(members[1].url()).timeout(LONG);
    let keys = keys.build_client().unwrap();
    let ticket = python(&keys, "/_locks/a").await;
    let client = locks(&split.url());
    let waiter = client.clone();
    let acquire = tokio::spawn(async move { waiter.lock("a").acquire().timeout(LONG).await });
    until_in_line(&keys, "/_locks/a", 2).await;
    // It sees neither python's ticket nor its own.
    let looks = || {
        split
            .lines()
            .iter()
            .filter(|it| it.contains("_locks/a"))
            .count()
    };
    let seen = looks();
    let looked = async {
        while looks() < seen + 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, looked)
        .await
        .expect("it looks again");
    assert!(!acquire.is_finished(), "{:?}", acquire.await.unwrap().err());
    keys.delete(&ticket).await.unwrap();
    peers.heal();
    let guard = acquire.await.unwrap().unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
}
