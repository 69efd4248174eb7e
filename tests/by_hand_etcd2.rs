//! The lock by hand over a real etcd, through its v2 keys API; and renewals that come late.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::testkit::Faulty;
use tenure::{Client, Store, StoreExt};

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "by_hand_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;
use common::words::open;
use proxy::{Match, Proxy};
use suite::World;

async fn world() -> (World, Etcd) {
    let server = Etcd::start();
    let (url, behind) = (server.url(), server.url());
    let world = World {
        open: Box::new(move || Arc::new(Etcd2::new(&url).unwrap())),
        linked: Box::new(move || {
            let store: Arc<dyn Store> = Arc::new(Etcd2::new(&behind).unwrap());
            let link = Faulty::shared(store, 1);
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

/// A renewal of the old TTL is held back, the TTL made longer meanwhile, and then it arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_renewal_of_the_old_ttl_does_not_cut_the_new_one_short() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(Etcd2::new(proxy.url()).unwrap());
    let (short, long) = (Duration::from_secs(3), Duration::from_secs(60));
    let mut lock = client.get_lock("/customer1", short);
    let mut held = proxy.hold(Match::method("PUT").and_path("/_locks/customer1"));
    lock.acquire().await.unwrap();
    let refresh = held.arrived().await;
    assert!(refresh.body.contains("refresh=true"), "{refresh:?}");
    assert!(refresh.body.contains("ttl=3"), "{refresh:?}");
    lock.renew(long).await.unwrap();
    let status = held.deliver().await;
    assert_eq!(status, 412, "it names the index of before");
    let key = lock.guard().unwrap().key().clone();
    let left = open(&etcd).node(&key).await.unwrap().unwrap().ttl.unwrap();
    assert!(left > long - Duration::from_secs(10), "{left:?}");
    lock.release().await.unwrap();
}

/// The put of a new TTL is held back; renewals of the old one stop, and what comes late harms
/// nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_change_of_the_ttl_does_not_cut_a_later_one_short() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(Etcd2::new(proxy.url()).unwrap());
    let (short, long) = (Duration::from_secs(4), Duration::from_secs(60));
    let mut lock = client.get_lock("/customer1", long);
    lock.acquire().await.unwrap();
    let mut held = proxy.hold(Match::method("PUT").and_path("/_locks/customer1"));
    // It goes on until it knows: the first attempt gets no answer, and the second does.
    lock.renew(short).await.unwrap();
    assert_eq!(proxy.pending_faults(), 0);
    lock.renew(long).await.unwrap();
    assert_eq!(held.deliver().await, 412);
    let key = lock.guard().unwrap().key().clone();
    let left = open(&etcd).node(&key).await.unwrap().unwrap().ttl.unwrap();
    assert!(left > long - Duration::from_secs(10), "{left:?}");
    assert!(lock.is_locked().await.unwrap());
    lock.release().await.unwrap();
}

/// A same-length renewal is one request, a change of the length two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_costs_what_its_docs_say() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(Etcd2::new(proxy.url()).unwrap());
    let minute = Duration::from_secs(60);
    let mut lock = client.get_lock("/customer1", minute);
    lock.acquire().await.unwrap();
    let requests = || {
        let (puts, gets) = (
            Match::method("PUT").and_path("customer1"),
            Match::method("GET").and_path("quorum"),
        );
        (proxy.count(&puts), proxy.count(&gets))
    };
    let before = requests();
    lock.renew(minute).await.unwrap();
    let same = requests();
    assert_eq!((same.0 - before.0, same.1 - before.1), (1, 0));
    lock.renew(minute * 2).await.unwrap();
    let other = requests();
    assert_eq!((other.0 - same.0, other.1 - same.1), (1, 1));
    lock.release().await.unwrap();
}
