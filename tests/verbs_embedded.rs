//! The verbs over the embedded store, on paused time; and the watcher under faults.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::{Expiry, Scope};
use tenure::testkit::{Call, Fault, Faulty, Odds, Outage};
use tenure::{ErrorKind, Follow, Key, Store, StoreExt, Watcher};

#[path = "verbs_suite/mod.rs"]
#[macro_use]
mod suite;

use suite::{Copy, LONG, event, key, news, snapshot};

async fn world() -> (suite::World, ()) {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    let store: Arc<dyn Store> = Arc::new(store);
    (suite::World { store, runtime }, ())
}

verbs_suite!(tokio::test(start_paused = true), world());

/// A store with a short history, a link to it on which things go wrong, and a watcher of `/t`
/// over that.
struct Rig {
    store: Embedded,
    link: Faulty<Embedded>,
    watcher: Watcher,
}

const HISTORY: usize = 20;

fn rig(seed: u64) -> Rig {
    let runtime = Runtime::on_tokio_time(seed);
    let builder = Embedded::builder().runtime(runtime.clone());
    let store = builder.history_limit(HISTORY).build();
    let link = Faulty::new(store.clone(), seed);
    let watcher = Watcher::new(Arc::new(link.clone()), key("/t"), Scope::Tree, &runtime);
    Rig {
        store,
        link,
        watcher,
    }
}

impl Rig {
    async fn write(&self, at: &str, value: &str) {
        let value = value.to_owned().into();
        self.store
            .set(&key(at), value, Expiry::Never)
            .await
            .unwrap();
    }

    /// The next item, whatever it is.
    async fn item(&mut self) -> Option<tenure::Result<Follow>> {
        let item = tokio::time::timeout(LONG, self.watcher.next()).await;
        item.expect("an item")
    }

    async fn interruption(&mut self) -> ErrorKind {
        match self.item().await {
            Some(Ok(Follow::Interrupted(error))) => error.kind(),
            other => panic!("wanted an interruption, got {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_popped_is_what_was_deleted() {
    let rig = rig(1);
    rig.write("/t/k", "old").await;
    rig.link
        .next(Call::Delete, Fault::Delay(Duration::from_millis(100)));
    let at = key("/t/k");
    let (popped, ()) = tokio::join!(rig.link.pop(&at), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.write("/t/k", "new").await;
    });
    assert_eq!(popped.unwrap().unwrap().text(), Some("new"));
    assert!(!rig.store.contains(&at).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let mut rig = rig(1);
    snapshot(&mut rig.watcher).await;
    for round in 0..10 {
        rig.write("/t/a", &format!("{round}")).await;
        let told = event(&mut rig.watcher).await;
        rig.link.break_watches();
        // While it is broken.
        rig.write("/t/b", &format!("{round}")).await;
        assert_eq!(rig.interruption().await, ErrorKind::Unavailable);
        let next = event(&mut rig.watcher).await;
        assert_eq!((told.key.name(), next.key.name()), ("a", "b"), "{round}");
    }
    assert_eq!(rig.link.calls(Call::Get), 1, "it needed no other list");
}

#[tokio::test(start_paused = true)]
async fn history_that_is_lost_is_a_new_snapshot() {
    let mut rig = rig(1);
    rig.write("/t/old", "").await;
    snapshot(&mut rig.watcher).await;
    rig.write("/t/a", "").await;
    event(&mut rig.watcher).await;
    rig.link.set_outage(Outage::Refused);
    assert_eq!(rig.interruption().await, ErrorKind::Unreachable);
    rig.store.remove(&key("/t/old")).await.unwrap();
    for round in 0..=HISTORY {
        rig.write("/t/b", &format!("{round}")).await;
    }
    rig.link.heal();
    loop {
        match rig.interruption().await {
            ErrorKind::Unreachable => {}
            kind => break assert_eq!(kind, ErrorKind::HistoryLost),
        }
    }
    let mut copy = Copy::default();
    copy.take(news(&mut rig.watcher).await);
    assert_eq!(copy.snapshots, 1);
    assert!(
        copy.is(&rig.store.tree(&key("/t")).await.unwrap()),
        "{copy:?}"
    );
    rig.write("/t/c", "").await;
    assert_eq!(event(&mut rig.watcher).await.key, key("/t/c"));
}

#[tokio::test(start_paused = true)]
async fn lists_that_fail_are_tried_again_with_growing_pauses() {
    let mut rig = rig(1);
    let clock = Runtime::on_tokio_time(1).clock;
    for fault in [Fault::Unavailable, Fault::Unreachable, Fault::LostReply] {
        rig.link.next(Call::Get, fault);
    }
    for _ in 0..7 {
        rig.link.next(Call::Get, Fault::Unavailable);
    }
    let start = clock.now();
    for _ in 0..10 {
        rig.interruption().await;
    }
    let took = clock.now().since(start);
    assert!(took > Duration::from_secs(3), "{took:?}: without pauses");
    assert!(took < Duration::from_secs(10), "{took:?}");
    snapshot(&mut rig.watcher).await;
    assert_eq!(rig.link.calls(Call::Get), 11);
}

#[tokio::test(start_paused = true)]
async fn what_will_not_pass_is_the_last_item() {
    // The embedded store says so of an index that it has never had: another store took its place.
    let runtime = Runtime::on_tokio_time(1);
    let builder = || Embedded::builder().runtime(runtime.clone());
    let old = builder().history_limit(5).build();
    let young = builder().build();
    let swap = Swap {
        stores: [old.clone(), young.clone()],
        second: Arc::default(),
    };
    for round in 0..50 {
        let value = format!("{round}").into();
        old.set(&key("/t/a"), value, Expiry::Never).await.unwrap();
    }
    let mut watcher = Watcher::new(Arc::new(swap.clone()), key("/t"), Scope::Tree, &runtime);
    snapshot(&mut watcher).await;
    swap.second.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = loop {
        let item = tokio::time::timeout(LONG, watcher.next())
            .await
            .expect("an item");
        match item {
            Some(Ok(Follow::Interrupted(_) | Follow::Resumed(_))) => {}
            Some(Err(error)) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
    assert_eq!(error.key(), Some(&key("/t")));
    assert!(watcher.next().await.is_none());
}

/// Two stores of which the second takes the place of the first. Its watches find their history
/// lost, as a driver says that meets an index above the server's.
#[derive(Clone, Debug)]
struct Swap {
    stores: [Embedded; 2],
    second: Arc<std::sync::atomic::AtomicBool>,
}

impl Swap {
    fn now(&self) -> &Embedded {
        &self.stores[usize::from(self.second.load(std::sync::atomic::Ordering::SeqCst))]
    }
}

#[async_trait::async_trait]
impl Store for Swap {
    fn about(&self) -> tenure::store::About {
        self.now().about()
    }
    async fn get(&self, get: tenure::store::Get) -> tenure::Result<tenure::store::View> {
        self.now().get(get).await
    }
    async fn put(&self, put: tenure::store::Put) -> tenure::Result<tenure::store::Written> {
        self.now().put(put).await
    }
    async fn append(
        &self,
        append: tenure::store::Append,
    ) -> tenure::Result<tenure::store::Appended> {
        Store::append(self.now(), append).await
    }
    async fn withdraw(
        &self,
        withdraw: tenure::store::Withdraw,
    ) -> tenure::Result<tenure::store::Withdrawn> {
        self.now().withdraw(withdraw).await
    }
    async fn delete(
        &self,
        delete: tenure::store::Delete,
    ) -> tenure::Result<tenure::store::Deleted> {
        self.now().delete(delete).await
    }
    fn watch(&self, watch: tenure::store::Watch) -> tenure::store::Updates {
        let now = self.now().clone();
        if !self.second.load(std::sync::atomic::Ordering::SeqCst) {
            return now.watch(watch);
        }
        let lost = async move {
            let view = now.get(tenure::store::Get::node(Key::root())).await?;
            let error = tenure::Error::new(ErrorKind::HistoryLost, "an index above the store's");
            Err(error.seen_at(view.index))
        };
        futures_util::stream::once(lost).boxed()
    }
    async fn commit(
        &self,
        commit: tenure::store::Commit,
    ) -> tenure::Result<tenure::store::Committed> {
        self.now().commit(commit).await
    }
    async fn grant(&self, grant: tenure::store::Grant) -> tenure::Result<tenure::store::Granted> {
        self.now().grant(grant).await
    }
    async fn renew(&self, renew: tenure::store::Renew) -> tenure::Result<tenure::store::Renewed> {
        self.now().renew(renew).await
    }
    async fn revoke(&self, lease: tenure::LeaseId) -> tenure::Result<()> {
        self.now().revoke(lease).await
    }
}

/// Faults of every kind, a history that is lost now and then, and a copy that must be right at
/// every index at which it says that it is.
#[tokio::test(start_paused = true)]
async fn in_a_storm_a_copy_is_right_at_each_index_and_in_the_end() {
    let (mut resyncs, mut events) = (0, 0);
    for seed in 1..=40 {
        let mut rig = rig(seed);
        rig.link.set_patience(Duration::from_millis(50));
        rig.link
            .set_all_odds(Odds::network(0.05, Duration::from_millis(40)));
        let mut random = fastrand::Rng::with_seed(seed);
        // What the store held, by index: told apart by the value that each write has for itself.
        let mut states = std::collections::BTreeMap::new();
        let mut copy = Copy::default();
        for write in 0..150 {
            let at = format!("/t/{}/{}", random.u8(..2), random.u8(..3));
            match random.u8(..10) {
                0 => drop(rig.store.remove_tree(&key("/t/1")).await.unwrap()),
                1 => drop(rig.store.remove(&key(&at)).await.unwrap()),
                _ => rig.write(&at, &format!("{write}")).await,
            }
            let view = rig
                .store
                .get(tenure::store::Get::tree(key("/t")))
                .await
                .unwrap();
            states.insert(view.index, view.nodes);
            // Sometimes it is left alone for a while.
            if random.u8(..3) == 0 {
                for _ in 0..random.u8(..6) {
                    let nap = Duration::from_millis(random.u64(..30));
                    if let Ok(item) = tokio::time::timeout(nap, rig.watcher.next()).await {
                        let item = item.unwrap().unwrap();
                        events += usize::from(matches!(item, Follow::Event(_)));
                        copy.take(item);
                        if let Some(state) = copy.index.and_then(|index| states.get(&index)) {
                            assert!(copy.is(state), "seed {seed}: {copy:?}, not {state:?}");
                        }
                    }
                }
            }
        }
        rig.link.heal();
        rig.write("/t/end", "").await;
        while !copy.files.contains_key(&key("/t/end")) {
            copy.take(rig.item().await.unwrap().unwrap());
        }
        let end = rig.store.tree(&key("/t")).await.unwrap();
        assert!(copy.is(&end), "seed {seed}: {copy:?}, not {end:?}");
        resyncs += copy.snapshots - 1;
    }
    assert!(resyncs > 20, "only {resyncs} times was history lost");
    assert!(events > 1_000, "only {events} events");
}
