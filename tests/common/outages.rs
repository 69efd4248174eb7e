//! What a cache does when a real server is gone, silent or another, whichever API it is read through.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tenure::{Cache, CacheSource, CacheState, Client, ErrorKind, Store, StoreExt};

use crate::common::etcd::Etcd;
use crate::suite::{self, Follower, LONG, Writer, eventually, is, soon};

/// A server, and how it is reached.
pub(crate) struct Place {
    pub(crate) etcd: Etcd,
    /// A store URL.
    pub(crate) url: String,
    pub(crate) open: fn(&Etcd) -> Arc<dyn Store>,
}

impl Place {
    /// Who writes behind the cache's back.
    pub(crate) fn writer(&self) -> Writer {
        Writer((self.open)(&self.etcd))
    }

    fn client(&self) -> Client {
        Client::open(&self.url).unwrap()
    }
}

pub(crate) async fn it_starts_from_disk_while_etcd_is_down(mut at: Place) {
    let scratch = suite::Scratch::new();
    let file = scratch.0.join("config.json");
    at.writer().set("a", "1").await;
    let client = at.client();
    let cache = client.cache("/config").disk(&file).start().unwrap();
    soon("the list", cache.synced()).await.unwrap();
    soon("the end", client.shutdown(LONG)).await;
    at.etcd.stop();

    let client = at.client();
    let cache = client.cache("/config").disk(&file).start().unwrap();
    assert_eq!(cache.state(), CacheState::Stale);
    assert_eq!(cache.source(), CacheSource::Disk);
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    eventually("a reason", async || cache.last_error().is_some()).await;
    at.etcd.restart();
    soon("the list", cache.synced()).await.unwrap();
    assert_eq!(cache.state(), CacheState::Live);
    let index = at.writer().set("a", "2").await;
    soon("a change", cache.caught_up_to(index)).await.unwrap();
    assert_eq!(cache.get("a").as_deref().unwrap(), "2");
}

/// Of a cache that has read its one key, and told of that.
pub(crate) async fn it_is_live_again_after_a_restart(
    mut at: Place,
    cache: Cache<Bytes>,
    mut follower: Follower<Bytes>,
) {
    assert_eq!(cache.len(), 1);
    follower.next().await;

    at.etcd.stop();
    is(&cache, CacheState::Stale).await;
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    assert!(cache.age().unwrap() > Duration::ZERO);
    at.etcd.restart();
    is(&cache, CacheState::Live).await;
    let index = at.writer().set("a", "2").await;
    follower.follow_to(index).await;
    assert_eq!(
        (follower.updates, follower.resyncs),
        (1, 1),
        "nothing but the first list"
    );
}

/// The client loses patience after a second.
pub(crate) async fn it_is_stale_while_a_server_is_silent(
    at: Place,
    client: &Client,
    silence: impl Future<Output = ()>,
    heal: impl Future<Output = ()>,
) {
    at.writer().set("a", "1").await;
    let cache = suite::started(client).await;
    let mut follower = Follower::new(&cache);
    silence.await;
    let index = at.writer().set("a", "2").await;
    is(&cache, CacheState::Stale).await;
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    assert!(cache.age().unwrap() >= Duration::from_secs(1));
    heal.await;
    follower.follow_to(index).await;
    is(&cache, CacheState::Live).await;
    assert_eq!((follower.updates, follower.resyncs), (1, 0));
}

/// Whether it is live as soon as it has read the new cluster, or only with the watch there.
pub(crate) async fn it_tells_of_another_cluster_and_follows_it(mut at: Place, live_at_once: bool) {
    for round in 0..50 {
        at.writer().set("old", format!("{round}")).await;
    }
    let client = at.client();
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    let before = cache.snapshot().index();
    at.etcd.rebuild();
    let index = at.writer().set("new", "1").await;
    assert!(Some(index) < before);
    eventually("the new cluster's", async || cache.get("new").is_some()).await;
    assert_eq!(cache.get("old"), None);
    assert!(cache.snapshot().index() < before, "the one exception");
    if live_at_once {
        assert_eq!(cache.state(), CacheState::Live);
    }
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
