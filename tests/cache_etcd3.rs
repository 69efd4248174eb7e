//! The cache suite and the verbs over a real etcd, through its v3 API; and what only etcd v3 can do to
//! a cache: commits of many keys, compaction, members that lag.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd3::Etcd3;
use tenure::runtime::Runtime;
use tenure::store::{Commit, Delete, Expiry, Put};
use tenure::{CacheState, Change, Client, Index, Store, StoreExt};

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/outages.rs"]
mod outages;
#[path = "cache_suite/mod.rs"]
#[macro_use]
#[allow(dead_code)]
mod suite;
#[path = "verbs_suite/mod.rs"]
#[macro_use]
#[allow(dead_code)]
mod verbs_suite;

use common::etcd::Etcd;
use gate::{Gate, Pass};
use outages::Place;
use suite::{Follower, eventually, soon};

fn open(etcd: &Etcd) -> Etcd3 {
    Etcd3::new(etcd.url()).unwrap()
}

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let (url, port) = (server.url(), server.client_port());
    let open = move || -> Arc<dyn Store> { Arc::new(Etcd3::new(&url).unwrap()) };
    let world = suite::World {
        open: Box::new(open),
        runtime: Runtime::default(),
        forget: Box::new(move |index| common::etcd::compact(port, index.get())),
    };
    (world, server)
}

cache_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

mod verbs {
    use super::verbs_suite as suite;
    use super::*;

    async fn world() -> (suite::World, Etcd) {
        let server = Etcd::start();
        let store: Arc<dyn Store> = Arc::new(open(&server));
        let runtime = Runtime::default();
        (suite::World { store, runtime }, server)
    }

    verbs_suite!(
        tokio::test(flavor = "multi_thread", worker_threads = 2),
        world()
    );
}

/// A new server.
fn place() -> Place {
    let etcd = Etcd::start();
    Place {
        url: format!("etcd://127.0.0.1:{}", etcd.client_port()),
        open: |etcd| Arc::new(open(etcd)),
        etcd,
    }
}

/// A client behind a gate that notices quickly when nothing passes.
async fn behind_a_gate(etcd: &Etcd) -> (Client, Gate) {
    let gate = Gate::start(etcd.client_port()).await;
    let store = Etcd3::builder(gate.url())
        .timeout(Duration::from_secs(3))
        .watchdog_period(Duration::from_millis(300))
        .watch_patience(Duration::from_secs(1));
    (Client::new(store.build().unwrap()), gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_starts_from_disk_while_etcd_is_down_and_goes_live_when_it_comes() {
    outages::it_starts_from_disk_while_etcd_is_down(place()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_of_a_list_delays_it_and_one_restarted_is_live_again() {
    let mut at = place();
    at.writer().set("a", "1").await;
    let (client, gate) = behind_a_gate(&at.etcd).await;
    // The list reaches etcd, and its answer nobody. (A connection begins with what a server says.)
    client.store().node(&suite::at("a")).await.unwrap();
    gate.set(Pass::Requests);
    let before = at.etcd.calls("started", "Range");
    let cache = client.cache("/config").start().unwrap();
    let follower = Follower::new(&cache);
    eventually("the list is asked for", async || {
        at.etcd.calls("started", "Range") > before
    })
    .await;
    assert_eq!(cache.state(), CacheState::Loading);
    at.etcd.stop();
    gate.cut();
    gate.set(Pass::All);
    at.etcd.restart();
    soon("the list", cache.synced()).await.unwrap();
    outages::it_is_live_again_after_a_restart(at, cache, follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_makes_it_stale_and_loses_nothing() {
    let at = place();
    let (client, gate) = behind_a_gate(&at.etcd).await;
    let silence = async { gate.set(Pass::Nothing) };
    let heal = async { gate.set(Pass::All) };
    outages::it_is_stale_while_a_server_is_silent(at, &client, silence, heal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_told_and_followed() {
    outages::it_tells_of_another_cluster_and_follows_it(place(), false).await;
}

/// Keys of one commit, written again in each round.
const KEYS: usize = 100;

async fn rounds(store: &Etcd3, rounds: std::ops::Range<usize>, size: usize) -> Index {
    let mut last = Index::MIN;
    for round in rounds {
        let put = |at: usize| {
            let value = format!("{round:size$}");
            Put::new(suite::at(&format!("k{at:03}")), value, Expiry::Never)
        };
        let commit = (0..KEYS).fold(Commit::new(), |it, at| it.put(put(at)));
        last = store.commit(commit).await.unwrap().index;
    }
    last
}

/// How many messages it has sent on its streams of watches.
fn messages(etcd: &Etcd) -> f64 {
    etcd.calls("msg_sent", "Watch")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_a_hundred_keys_is_one_item_also_when_it_comes_in_fragments() {
    const MISSED: usize = 12;
    let etcd = Etcd::start();
    let direct = open(&etcd);
    rounds(&direct, 0..1, 1).await;
    let (client, gate) = behind_a_gate(&etcd).await;
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    let watched = cache.clone();
    let observer = tokio::spawn(async move {
        loop {
            let snapshot = watched.snapshot();
            let (_, first) = snapshot.iter().next().unwrap();
            assert!(
                snapshot.iter().all(|(_, value)| value == first),
                "a half of a commit"
            );
            if std::str::from_utf8(first).unwrap().trim() == "49" {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    let told_whole = async |follower: &mut Follower<_>| {
        let change = follower.next().await;
        let Change::Update(diff) = &*change else {
            panic!("{change:?}")
        };
        assert_eq!(diff.changed.len(), KEYS);
    };
    // As they come.
    rounds(&direct, 1..30, 100).await;
    for _ in 1..30 {
        told_whole(&mut follower).await;
    }
    // Many at once: 1.4 MB each, and of a single answer the server makes pieces of 2 MB.
    gate.cut();
    gate.set(Pass::Nothing);
    rounds(&direct, 30..30 + MISSED, 14_000).await;
    let before = messages(&etcd);
    gate.cut();
    gate.set(Pass::All);
    for _ in 0..MISSED {
        told_whole(&mut follower).await;
    }
    let pieces = messages(&etcd) - before;
    println!("{MISSED} commits of 1.4 MB in {pieces} messages");
    assert!(pieces >= 8.0, "{pieces} messages: there were no fragments");
    let last = rounds(&direct, 30 + MISSED..50, 100).await;
    follower.follow_to(last).await;
    assert_eq!((follower.updates, follower.resyncs), (49, 0));
    soon("the observer", observer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_is_deleted_at_one_index_is_one_item_of_many_fragments() {
    const KEYS: usize = 3_000;
    let etcd = Etcd::start_with(&common::etcd::Options {
        v2: false,
        // Pieces of 576 KiB.
        args: vec!["--max-request-bytes".into(), "65536".into()],
        ..Default::default()
    });
    let store = open(&etcd);
    let long = "n".repeat(300);
    for from in (0..KEYS).step_by(100) {
        let put = |at| Put::new(suite::at(&format!("d/{long}{at}")), "x", Expiry::Never);
        let commit = (from..from + 100).fold(Commit::new(), |it, at| it.put(put(at)));
        store.commit(commit).await.unwrap();
    }
    let (client, _gate) = behind_a_gate(&etcd).await;
    let cache = suite::started(&client).await;
    assert_eq!(cache.len(), KEYS);
    let mut follower = Follower::new(&cache);
    let before = messages(&etcd);
    let deleted = store.delete(Delete::tree(suite::at("d"))).await.unwrap();
    let change = follower.next().await;
    let Change::Update(diff) = &*change else {
        panic!("{change:?}")
    };
    assert_eq!((diff.changed.len(), diff.to), (KEYS, deleted.index));
    assert!(cache.is_empty());
    let pieces = messages(&etcd) - before;
    assert!(pieces >= 2.0, "{pieces} messages: there were no fragments");
}
