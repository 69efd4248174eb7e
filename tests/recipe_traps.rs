//! What a store, or a user, can do to a recipe without breaking a rule: an old answer where one is
//! allowed, two clusters behind one name, very many permits, a shutdown at a bad moment. On paused
//! time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::{Entropy, Runtime};
use tenure::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Freshness, Get, Grant, Granted,
    Put, Renew, Renewed, Updates, View, Watch, Withdraw, Withdrawn, Written,
};
use tenure::testkit::{Call, Fault, Faulty};
use tenure::{Client, Error, ErrorKind, Index, Key, LeaseId, Store, StoreExt, Ttl};

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

/// Counts, and does what it may.
#[derive(Clone, Debug)]
struct Rigged {
    inner: Embedded,
    runtime: Runtime,
    gets: Arc<AtomicUsize>,
    /// Watches that are open.
    open: Arc<AtomicUsize>,
    /// Reads that may be old are as old as can be.
    lags: Arc<AtomicBool>,
    /// Each watch meets another cluster than the list before it.
    two_clusters: Arc<AtomicBool>,
}

impl Rigged {
    fn new(runtime: &Runtime) -> Self {
        Self {
            inner: Embedded::builder().runtime(runtime.clone()).build(),
            runtime: runtime.clone(),
            gets: Arc::default(),
            open: Arc::default(),
            lags: Arc::default(),
            two_clusters: Arc::default(),
        }
    }
}

/// One of the watches that are open.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Store for Rigged {
    /// Each watch costs a connection, as on etcd v2.
    fn about(&self) -> About {
        let mut about = self.inner.about();
        about.ranks = false;
        about
    }
    async fn get(&self, get: Get) -> Result<View, Error> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        // A round trip.
        self.runtime.clock.sleep(Duration::from_millis(5)).await;
        if self.lags.load(Ordering::SeqCst) && get.freshness == Freshness::Any {
            return Ok(View::new(Index::MIN, Vec::new()));
        }
        self.inner.get(get).await
    }
    fn watch(&self, watch: Watch) -> Updates {
        if self.two_clusters.load(Ordering::SeqCst) {
            let error = Error::new(ErrorKind::ClusterChanged, "on purpose");
            return futures_util::stream::iter([Err(error)]).boxed();
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(self.open.clone());
        let updates = self.inner.watch(watch);
        updates
            .map(move |update| {
                let _open = &open;
                update
            })
            .boxed()
    }
    async fn put(&self, put: Put) -> Result<Written, Error> {
        self.inner.put(put).await
    }
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.inner.append(append).await
    }
    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn, Error> {
        self.inner.withdraw(withdraw).await
    }
    async fn delete(&self, delete: Delete) -> Result<Deleted, Error> {
        self.inner.delete(delete).await
    }
    async fn commit(&self, commit: Commit) -> Result<Committed, Error> {
        self.inner.commit(commit).await
    }
    async fn grant(&self, grant: Grant) -> Result<Granted, Error> {
        self.inner.grant(grant).await
    }
    async fn renew(&self, renew: Renew) -> Result<Renewed, Error> {
        self.inner.renew(renew).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.inner.revoke(lease).await
    }
}

fn client(store: impl Store, runtime: &Runtime, seed: u64) -> Client {
    let runtime = Runtime::new(runtime.clock.clone(), Entropy::seeded(seed));
    let ttl = Ttl::new(Duration::from_secs(9)).unwrap();
    let client = Client::builder(Arc::new(store) as Arc<dyn Store>);
    client.runtime(runtime).ttl(ttl).build()
}

/// Asks again and again; panics after 30 s.
async fn eventually(what: &str, check: impl AsyncFn() -> bool) {
    for _ in 0..3_000 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 30 s");
}

#[tokio::test(start_paused = true)]
async fn permits_that_were_waited_for_are_not_watched_without_bound() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Rigged::new(&runtime);
    let (first, second) = (
        client(store.inner.clone(), &runtime, 1),
        client(store.clone(), &runtime, 2),
    );
    let (mut held, mut waiters) = (Vec::new(), Vec::new());
    for number in 0..80 {
        let name = format!("s{number}");
        let taken = first.semaphore(&name).permits(1).acquire().await;
        held.push(taken.unwrap());
        waiters.push(tokio::spawn(
            second.semaphore(&name).acquire().into_future(),
        ));
    }
    eventually("80 wait", async || store.open.load(Ordering::SeqCst) == 80).await;
    drop(held);
    let mut permits = Vec::new();
    for waiter in waiters {
        permits.push(waiter.await.unwrap().unwrap());
    }
    eventually("64 watches at most", async || {
        store.open.load(Ordering::SeqCst) <= 64
    })
    .await;

    // One that is not watched is not held in ignorance: its loss is noticed by the next reading.
    for permit in &permits {
        store
            .inner
            .delete(Delete::new(permit.key().clone()))
            .await
            .unwrap();
    }
    let noticed = async || permits.iter().all(|permit| !permit.is_held());
    eventually("all losses are noticed", noticed).await;
}

#[tokio::test(start_paused = true)]
async fn a_try_does_not_look_at_a_store_older_than_the_limit_that_it_has_read() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Rigged::new(&runtime);
    let first = client(store.inner.clone(), &runtime, 1);
    drop(first.semaphore("a").permits(3).acquire().await.unwrap());
    first.idle().await;
    store.lags.store(true, Ordering::SeqCst);
    let second = client(store.clone(), &runtime, 2);
    let permit = second.semaphore("a").permits(3).try_acquire().await;
    assert!(permit.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn two_clusters_behind_one_name_do_not_make_a_cache_spin() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Rigged::new(&runtime);
    store.two_clusters.store(true, Ordering::SeqCst);
    let client = client(store.clone(), &runtime, 1);
    let cache = client.cache("/config").start().unwrap();
    cache.synced().await.unwrap();
    runtime.clock.sleep(Duration::from_secs(60)).await;
    let lists = store.gets.load(Ordering::SeqCst);
    assert!((3..=15).contains(&lists), "{lists} lists in 60 s");
    store.two_clusters.store(false, Ordering::SeqCst);
    let healed = async || cache.state() == tenure::CacheState::Live && cache.last_error().is_none();
    eventually("one cluster again", healed).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_during_a_proclamation_leaves_no_ticket() {
    let faults = [
        Fault::LostRequest,
        Fault::LostReply,
        Fault::Delay(Duration::from_millis(300)),
    ];
    let all = Kind::ALL.map(|kind| faults.map(|fault| (kind, fault)));
    for (kind, fault) in all.into_iter().flatten() {
        let what = format!("{kind:?}, {fault:?}");
        let runtime = Runtime::on_tokio_time(1);
        let store = kind.store(&runtime);
        let link = Faulty::new(store.clone(), 1);
        let client = client(kind.over(link.clone()), &runtime, 1);
        let leadership = client.election("a").campaign("one").await.unwrap();
        eventually("announced", async || {
            !client.sessions().await.unwrap().is_empty()
        })
        .await;
        link.next(Call::Put, fault);
        let shutdown = async {
            runtime.clock.sleep(Duration::from_millis(100)).await;
            client.shutdown(Duration::from_secs(5)).await
        };
        let (proclaimed, ended) = tokio::join!(leadership.proclaim("two"), shutdown);
        assert_eq!(proclaimed.unwrap_err().kind(), ErrorKind::Lost, "{what}");
        assert_eq!(ended.left_to_ttl, 0, "{what}");
        runtime.clock.sleep(Duration::from_millis(400)).await;
        let line = store.children(&Key::new("/_elections/a").unwrap()).await;
        assert_eq!(line.unwrap(), [], "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_lost_and_is_still_there_does_not_hold_up_a_shutdown() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    let link = Faulty::new(store.clone(), 1);
    let client = client(link.clone(), &runtime, 1);
    let lost = client.lock("a").acquire().await.unwrap();
    link.set_down(true);
    lost.lost().await;
    link.set_down(false);
    let held = client.lock("b").acquire().await.unwrap();
    held.release().await.unwrap();
    let began = runtime.clock.now();
    let ended = client.shutdown(Duration::from_secs(60)).await;
    let took = runtime.clock.now().since(began);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!((ended.left_to_ttl, ended.tasks_left), (0, 0));
    assert!(!lost.is_held());
}

#[tokio::test(start_paused = true)]
async fn saying_whose_a_session_is_puts_no_renewal_off() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    let link = Faulty::new(store.clone(), 1);
    let client = client(link.clone(), &runtime, 1);
    let began = runtime.clock.now();
    let guard = client.lock("a").acquire().await.unwrap();
    link.next(Call::Put, Fault::Hang);
    let first = guard.deadline().unwrap();
    guard.extended(first).await.unwrap();
    let renewed = runtime.clock.now().since(began);
    assert!(renewed < Duration::from_millis(3_100), "{renewed:?}");
}
