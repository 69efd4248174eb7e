//! The cache suite and the verbs over a real etcd, through its v3 API; and what only etcd v3 can do to
//! a cache: commits of many keys, compaction, members that lag.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd3::Etcd3;
use tenure::runtime::Runtime;
use tenure::store::{Commit, Delete, Expiry, Put};
use tenure::{CacheSource, CacheState, Change, Client, ErrorKind, Index, Store, StoreExt};

mod common;
#[path = "common/gate.rs"]
mod gate;
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
use suite::{Follower, LONG, eventually, is, soon};

fn open(etcd: &Etcd) -> Etcd3 {
    Etcd3::new(etcd.url()).unwrap()
}

fn writer(etcd: &Etcd) -> suite::Writer {
    suite::Writer(Arc::new(open(etcd)))
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

fn store_url(etcd: &Etcd) -> String {
    format!("etcd://127.0.0.1:{}", etcd.client_port())
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
    let scratch = suite::Scratch::new();
    let file = scratch.0.join("config.json");
    let mut etcd = Etcd::start();
    writer(&etcd).set("a", "1").await;
    let client = Client::open(store_url(&etcd)).unwrap();
    let cache = client.cache("/config").disk(&file).start().unwrap();
    soon("the list", cache.synced()).await.unwrap();
    soon("the end", client.shutdown(LONG)).await;
    etcd.stop();

    let client = Client::open(store_url(&etcd)).unwrap();
    let cache = client.cache("/config").disk(&file).start().unwrap();
    assert_eq!(cache.state(), CacheState::Stale);
    assert_eq!(cache.source(), CacheSource::Disk);
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    eventually("a reason", async || cache.last_error().is_some()).await;
    etcd.restart();
    soon("the list", cache.synced()).await.unwrap();
    assert_eq!(cache.state(), CacheState::Live);
    let index = writer(&etcd).set("a", "2").await;
    soon("a change", cache.caught_up_to(index)).await.unwrap();
    assert_eq!(cache.get("a").as_deref().unwrap(), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_of_a_list_delays_it_and_one_restarted_is_live_again() {
    let mut etcd = Etcd::start();
    writer(&etcd).set("a", "1").await;
    let (client, gate) = behind_a_gate(&etcd).await;
    // The list reaches etcd, and its answer nobody. (A connection begins with what a server says.)
    client.store().node(&suite::at("a")).await.unwrap();
    gate.set(Pass::Requests);
    let before = counted(&etcd, "started", "Range");
    let cache = client.cache("/config").start().unwrap();
    let mut follower = Follower::new(&cache);
    eventually("the list is asked for", async || {
        counted(&etcd, "started", "Range") > before
    })
    .await;
    assert_eq!(cache.state(), CacheState::Loading);
    etcd.stop();
    gate.cut();
    gate.set(Pass::All);
    etcd.restart();
    soon("the list", cache.synced()).await.unwrap();
    assert_eq!(cache.len(), 1);
    follower.next().await;

    etcd.stop();
    is(&cache, CacheState::Stale).await;
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    assert!(cache.age().unwrap() > Duration::ZERO);
    etcd.restart();
    is(&cache, CacheState::Live).await;
    let index = writer(&etcd).set("a", "2").await;
    follower.follow_to(index).await;
    assert_eq!(
        (follower.updates, follower.resyncs),
        (1, 1),
        "nothing but the first list"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_makes_it_stale_and_loses_nothing() {
    let etcd = Etcd::start();
    writer(&etcd).set("a", "1").await;
    let (client, gate) = behind_a_gate(&etcd).await;
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    gate.set(Pass::Nothing);
    let index = writer(&etcd).set("a", "2").await;
    is(&cache, CacheState::Stale).await;
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    assert!(cache.age().unwrap() >= Duration::from_secs(1));
    gate.set(Pass::All);
    follower.follow_to(index).await;
    is(&cache, CacheState::Live).await;
    assert_eq!((follower.updates, follower.resyncs), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_told_and_followed() {
    let mut etcd = Etcd::start();
    for round in 0..50 {
        writer(&etcd).set("old", format!("{round}")).await;
    }
    let client = Client::open(store_url(&etcd)).unwrap();
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    let before = cache.snapshot().index();
    etcd.rebuild();
    let index = writer(&etcd).set("new", "1").await;
    assert!(Some(index) < before);
    eventually("the new cluster's", async || cache.get("new").is_some()).await;
    assert_eq!(cache.get("old"), None);
    assert!(cache.snapshot().index() < before, "the one exception");
    is(&cache, CacheState::Live).await;
    while !follower.values.contains_key(&suite::at("new")) {
        follower.next().await;
    }
    assert_eq!(follower.troubles, [ErrorKind::ClusterChanged]);
    assert!(follower.resyncs <= 2 && follower.values.len() == 1);
    // A lock's client does not follow: its tokens mean nothing there.
    let error = client.store().node(&suite::config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
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

/// What the server counts of this kind of call.
fn counted(etcd: &Etcd, what: &str, method: &str) -> f64 {
    let (_, body) = etcd.http("/metrics").unwrap();
    let (name, method) = (
        format!("grpc_server_{what}_total{{"),
        format!("\"{method}\""),
    );
    let lines = body
        .lines()
        .filter(|it| it.starts_with(&name) && it.contains(&method));
    let numbers = lines.map(|it| it.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    numbers.sum()
}

/// How many messages it has sent on its streams of watches.
fn messages(etcd: &Etcd) -> f64 {
    counted(etcd, "msg_sent", "Watch")
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
