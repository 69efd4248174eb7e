//! The verbs over a real etcd, through its v2 keys API; and the watcher across outages.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::store::{Expiry, Scope};
use tenure::{ErrorKind, Follow, Store, StoreExt, Watcher};

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "verbs_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;
use common::words::{open, write};
use proxy::Proxy;
use suite::{Copy, LONG, event, key, news, snapshot};

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

/// A watcher of `/t` that reaches the server through a proxy, and has listed.
async fn watcher(etcd: &Etcd) -> (Watcher, Proxy) {
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let builder = Etcd2::builder(proxy.url());
    let store = builder.watch_patience(Duration::from_millis(200)).build();
    let runtime = Runtime::default();
    let mut watcher = Watcher::new(Arc::new(store.unwrap()), key("/t"), Scope::Tree, &runtime);
    snapshot(&mut watcher).await;
    (watcher, proxy)
}

/// Writes `count` values to `/t/k` without the proxy.
async fn write_many(etcd: &Etcd, count: usize) {
    let store = open(etcd);
    let writes = futures_util::stream::iter(0..count).map(|number| {
        let (store, value) = (store.clone(), format!("{number}").into());
        async move { store.set(&key("/t/k"), value, Expiry::Never).await.unwrap() }
    });
    writes.buffer_unordered(32).for_each(async |_| {}).await;
}

async fn interrupted(watcher: &mut Watcher) {
    let item = tokio::time::timeout(LONG, watcher.next()).await;
    let item = item.expect("an item");
    assert!(matches!(item, Some(Ok(Follow::Interrupted(_)))), "{item:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_behind_its_back_are_one_snapshot() {
    let etcd = Etcd::start();
    write(&open(&etcd), "/t/old", "x").await;
    let (mut watcher, proxy) = watcher(&etcd).await;
    write(&open(&etcd), "/t/a", "x").await;
    event(&mut watcher).await;
    proxy.cut().await;
    interrupted(&mut watcher).await;
    open(&etcd).remove(&key("/t/old")).await.unwrap();
    write_many(&etcd, 1_200).await;
    proxy.heal().await;
    let mut copy = Copy::default();
    copy.take(news(&mut watcher).await);
    assert_eq!(copy.snapshots, 1, "wanted a snapshot, got {copy:?}");
    assert!(
        copy.is(&open(&etcd).tree(&key("/t")).await.unwrap()),
        "{copy:?}"
    );
    write(&open(&etcd), "/t/b", "x").await;
    assert_eq!(event(&mut watcher).await.key, key("/t/b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_changes_behind_its_back_are_told_one_by_one() {
    let etcd = Etcd::start();
    let (mut watcher, proxy) = watcher(&etcd).await;
    proxy.cut().await;
    interrupted(&mut watcher).await;
    write_many(&etcd, 100).await;
    proxy.heal().await;
    let mut last = None;
    for _ in 0..100 {
        let index = Some(event(&mut watcher).await.index);
        assert!(index > last, "{index:?} after {last:?}");
        last = index;
    }
    write(&open(&etcd), "/t/end", "x").await;
    assert_eq!(event(&mut watcher).await.key, key("/t/end"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_is_followed_on_and_another_cluster_is_not() {
    let mut etcd = Etcd::start();
    write(&open(&etcd), "/t/a", "x").await;
    let (mut watcher, _proxy) = watcher(&etcd).await;
    etcd.restart();
    write(&open(&etcd), "/t/b", "x").await;
    assert_eq!(event(&mut watcher).await.key, key("/t/b"));
    etcd.rebuild();
    let error = loop {
        match tokio::time::timeout(LONG, watcher.next())
            .await
            .expect("an item")
        {
            Some(Ok(Follow::Interrupted(_) | Follow::Resumed(_))) => {}
            Some(Err(error)) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
    assert!(watcher.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_too_deep_for_json_is_refused_and_not_cut() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    write(&store, &format!("/deep{}", "/d".repeat(60)), "x").await;
    assert_eq!(store.leaves(&key("/deep")).await.unwrap().len(), 1);
    write(
        &store,
        &format!("/deep{}", "/d".repeat(59) + "/e/e/e/e/e/e"),
        "x",
    )
    .await;
    let error = store.tree(&key("/deep")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    // In parts it can be read.
    let part = key(&format!("/deep{}", "/d".repeat(30)));
    assert_eq!(store.leaves(&part).await.unwrap().len(), 2);
}
