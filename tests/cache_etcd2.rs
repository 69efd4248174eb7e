//! The cache suite over a real etcd, through its v2 keys API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::{CacheSource, CacheState, Client, ErrorKind, StoreExt};

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "cache_suite/mod.rs"]
#[macro_use]
#[allow(dead_code)]
mod suite;

use common::etcd::Etcd;
use proxy::{Client::IsClosed, Fault, Match, Proxy};
use suite::{Follower, LONG, eventually, is, soon};

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let url = server.url();
    let open = move || -> Arc<dyn tenure::Store> { Arc::new(Etcd2::new(&url).unwrap()) };
    (
        suite::World {
            open: Box::new(open),
            runtime: Runtime::default(),
            forget: Box::new(|_| {}),
        },
        server,
    )
}

cache_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

fn writer(etcd: &Etcd) -> suite::Writer {
    suite::Writer(Arc::new(Etcd2::new(etcd.url()).unwrap()))
}

fn store_url(etcd: &Etcd) -> String {
    format!("etcd2://127.0.0.1:{}", etcd.client_port())
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
    let proxy = Proxy::start(([127, 0, 0, 1], etcd.client_port()).into());
    let proxy = proxy.await.unwrap();
    // The list reaches etcd, and its answer nobody.
    proxy.inject(Match::path("quorum"), Fault::LoseReply(IsClosed));
    let client = Client::open(format!("etcd2://{}", proxy.addr())).unwrap();
    let cache = client.cache("/config").start().unwrap();
    let mut follower = Follower::new(&cache);
    assert_eq!(cache.state(), CacheState::Loading);
    soon("the list", cache.synced()).await.unwrap();
    assert_eq!((cache.len(), proxy.pending_faults()), (1, 0));
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
    let proxy = Proxy::start(([127, 0, 0, 1], etcd.client_port()).into());
    let proxy = proxy.await.unwrap();
    let store = Etcd2::builder(proxy.url())
        .watchdog_period(Duration::from_millis(300))
        .watch_patience(Duration::from_secs(1));
    let client = Client::new(store.build().unwrap());
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    proxy.silence().await;
    let index = writer(&etcd).set("a", "2").await;
    is(&cache, CacheState::Stale).await;
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    assert!(cache.age().unwrap() >= Duration::from_secs(1));
    proxy.heal().await;
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
    assert_eq!(cache.state(), CacheState::Live);
    while !follower.values.contains_key(&suite::at("new")) {
        follower.next().await;
    }
    assert_eq!(follower.troubles, [ErrorKind::ClusterChanged]);
    assert!(follower.resyncs <= 2 && follower.values.len() == 1);
    // A lock's client does not follow: its tokens mean nothing there.
    let error = client.store().node(&suite::config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
}
