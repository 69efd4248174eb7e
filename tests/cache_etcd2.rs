//! The cache suite over a real etcd, through its v2 keys API.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::{CacheState, Client};

mod common;
#[path = "common/outages.rs"]
mod outages;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "cache_suite/mod.rs"]
#[macro_use]
#[allow(dead_code)]
mod suite;

use common::etcd::Etcd;
use outages::Place;
use proxy::{Client::IsClosed, Fault, Match, Proxy};
use suite::{Follower, soon};

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

/// A new server.
fn place() -> Place {
    let etcd = Etcd::start();
    Place {
        url: format!("etcd2://127.0.0.1:{}", etcd.client_port()),
        open: |etcd| Arc::new(Etcd2::new(etcd.url()).unwrap()),
        etcd,
    }
}

async fn behind_a_proxy(at: &Place) -> Proxy {
    let proxy = Proxy::start(([127, 0, 0, 1], at.etcd.client_port()).into());
    proxy.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_starts_from_disk_while_etcd_is_down_and_goes_live_when_it_comes() {
    outages::it_starts_from_disk_while_etcd_is_down(place()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_of_a_list_delays_it_and_one_restarted_is_live_again() {
    let at = place();
    at.writer().set("a", "1").await;
    let proxy = behind_a_proxy(&at).await;
    // The list reaches etcd, and its answer nobody.
    proxy.inject(Match::path("quorum"), Fault::LoseReply(IsClosed));
    let client = Client::open(format!("etcd2://{}", proxy.addr())).unwrap();
    let cache = client.cache("/config").start().unwrap();
    let follower = Follower::new(&cache);
    assert_eq!(cache.state(), CacheState::Loading);
    soon("the list", cache.synced()).await.unwrap();
    assert_eq!(proxy.pending_faults(), 0);
    outages::it_is_live_again_after_a_restart(at, cache, follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_makes_it_stale_and_loses_nothing() {
    let at = place();
    let proxy = behind_a_proxy(&at).await;
    let store = Etcd2::builder(proxy.url())
        .watchdog_period(Duration::from_millis(300))
        .watch_patience(Duration::from_secs(1));
    let client = Client::new(store.build().unwrap());
    let (silence, heal) = (proxy.silence(), proxy.heal());
    outages::it_is_stale_while_a_server_is_silent(at, &client, silence, heal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_told_and_followed() {
    outages::it_tells_of_another_cluster_and_follows_it(place(), true).await;
}
