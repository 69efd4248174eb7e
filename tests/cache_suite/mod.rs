//! What the config cache promises, over any store: each check takes a [`World`] of clients that
//! share one store. `tests/cache_embedded.rs`, `tests/cache_etcd2.rs` and `tests/cache_etcd3.rs` run all
//! of them.

pub(crate) mod checks;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::{Delete, Expiry, Put};
use tenure::testkit::Faulty;
use tenure::{
    Cache, CacheState, Change, Changes, Client, ErrorKind, Index, Key, Snapshot, Store, StoreExt,
};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
    /// Makes the store forget what happened up to an index, where writing much does not.
    pub(crate) forget: Box<dyn Fn(Index) + Send + Sync>,
}

/// Far more than any step takes on a slow machine; only a hang reaches it.
pub(crate) const LONG: Duration = Duration::from_secs(40);

impl World {
    /// One store in this process, on tokio's clock.
    pub(crate) fn embedded() -> Self {
        let runtime = Runtime::on_tokio_time(1);
        let store = Embedded::builder().runtime(runtime.clone()).build();
        let open = Box::new(move || -> Arc<dyn Store> { Arc::new(store.clone()) });
        Self {
            open,
            runtime,
            forget: Box::new(|_| {}),
        }
    }

    pub(crate) fn client(&self, store: impl Store) -> Client {
        let client = Client::builder(store);
        client.runtime(self.runtime.clone()).build()
    }

    /// A client whose link to the store can be cut.
    pub(crate) fn client_on_a_link(&self) -> (Client, Faulty<dyn Store>) {
        let link = Faulty::shared((self.open)(), 1);
        (self.client(link.clone()), link)
    }

    /// A store behind the caches' backs.
    fn writer(&self) -> Writer {
        Writer((self.open)())
    }
}

/// Writes below `/config`.
#[derive(Clone)]
pub(crate) struct Writer(pub(crate) Arc<dyn Store>);

impl Writer {
    pub(crate) async fn set(&self, name: &str, value: impl Into<Bytes>) -> Index {
        let put = Put::new(at(name), value, Expiry::Never);
        soon("a write", self.0.put(put)).await.unwrap().index()
    }

    pub(crate) async fn delete(&self, name: &str) -> Index {
        let delete = Delete::new(at(name));
        soon("a deletion", self.0.delete(delete))
            .await
            .unwrap()
            .index
    }

    /// Many writes at a time, in no order; the value tells the write.
    pub(crate) async fn set_many(&self, count: usize, name: impl Fn(usize) -> String) {
        let writes = futures_util::stream::iter(0..count).map(|number| {
            let (writer, name) = (self.clone(), name(number));
            async move { writer.set(&name, format!("{number}")).await }
        });
        writes.buffer_unordered(32).for_each(async |_| {}).await;
    }

    /// What is there, linearizably.
    pub(crate) async fn all(&self) -> BTreeMap<Key, Bytes> {
        let config = config();
        let leaves = soon("a list", self.0.leaves(&config))
            .await
            .unwrap()
            .into_iter();
        leaves.map(|node| (node.key, node.value)).collect()
    }
}

pub(crate) fn config() -> Key {
    Key::new("/config").unwrap()
}

pub(crate) fn at(name: &str) -> Key {
    Key::new(format!("/config/{name}")).unwrap()
}

pub(crate) async fn soon<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(LONG, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}

pub(crate) async fn is(cache: &Cache<impl Send + Sync + 'static>, state: CacheState) {
    eventually(&format!("{state:?}"), async || cache.state() == state).await;
}

pub(crate) async fn started(client: &Client) -> Cache<Bytes> {
    let cache = client.cache("/config").start().unwrap();
    soon("the first list", cache.synced()).await.unwrap();
    cache
}

pub(crate) fn values<T: Clone>(snapshot: &Snapshot<T>) -> BTreeMap<Key, T> {
    let entries = snapshot.iter();
    entries
        .map(|(key, value)| (key.clone(), T::clone(value)))
        .collect()
}

/// A subscriber: what it was told, folded.
pub(crate) struct Follower<T> {
    changes: Changes<T>,
    pub(crate) values: BTreeMap<Key, T>,
    pub(crate) index: Option<Index>,
    pub(crate) updates: usize,
    pub(crate) resyncs: usize,
    pub(crate) bad: Vec<Key>,
    pub(crate) troubles: Vec<ErrorKind>,
}

impl<T: Clone + PartialEq + Debug + Send + Sync + 'static> Follower<T> {
    pub(crate) fn new(cache: &Cache<T>) -> Self {
        let changes = cache.changes();
        Self {
            values: values(changes.base()),
            index: changes.base().index(),
            changes,
            updates: 0,
            resyncs: 0,
            bad: Vec::new(),
            troubles: Vec::new(),
        }
    }

    /// Takes one item, and checks that it leads on from what was known.
    pub(crate) async fn next(&mut self) -> Arc<Change<T>> {
        let change = soon("a change", self.changes.next()).await;
        let change = change.expect("the stream goes on");
        let diff = match &*change {
            Change::Update(diff) => {
                assert!(diff.from >= self.index, "{diff:?} after {:?}", self.index);
                assert!(Some(diff.to) > self.index, "a write of one index in two");
                assert!(!diff.changed.is_empty(), "nothing changed: {diff:?}");
                self.updates += 1;
                diff
            }
            Change::Resync(diff) => {
                self.resyncs += 1;
                diff
            }
            Change::Bad { key, error } => {
                assert_eq!(error.key(), Some(key));
                self.bad.push(key.clone());
                return change;
            }
            Change::Trouble(error) => {
                self.troubles.push(error.kind());
                return change;
            }
            other => panic!("{other:?}"),
        };
        self.index = Some(diff.to);
        let mut last = None;
        for changed in &diff.changed {
            assert!(last < Some(&changed.key), "a key comes once, and in order");
            last = Some(&changed.key);
            let old = changed.old.as_deref();
            assert_eq!(old, self.values.get(&changed.key), "{changed:?}");
            match &changed.new {
                Some(new) => drop(self.values.insert(changed.key.clone(), T::clone(new))),
                None => assert!(self.values.remove(&changed.key).is_some(), "{changed:?}"),
            }
        }
        change
    }

    pub(crate) async fn follow_to(&mut self, index: Index) {
        while self.index < Some(index) {
            self.next().await;
        }
    }
}

pub(crate) fn number(
    _: &Key,
    value: &[u8],
) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
    assert_ne!(value, b"panic", "as asked");
    Ok(std::str::from_utf8(value)?.parse()?)
}

/// A directory of its own, gone with this value.
pub(crate) struct Scratch(pub(crate) std::path::PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("tenure-cache-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs every check as a test of its own.
#[macro_export]
macro_rules! cache_suite {
    ($attribute:meta, $world:expr) => {
        $crate::cache_suite!(@each $attribute, $world;
            a_cache_has_what_is_there_and_takes_every_change_in_order
            who_writes_can_wait_to_see_it
            a_directory_that_goes_is_one_item_for_all_in_it
            lost_history_is_one_diff_that_leads_to_what_is_there
            a_deletion_with_a_new_creation_is_seen_also_without_history
            a_thousand_subscribers_cost_one_watch_and_all_get_everything
            a_bad_value_keeps_the_last_good_one_and_is_told
            a_slow_subscriber_gets_one_diff_from_what_it_read_last
            a_value_of_a_mebibyte_is_cached
            an_outage_leaves_the_last_values_stale_with_their_age
            it_is_ready_when_the_list_is_complete_and_not_before
            a_start_without_a_store_takes_what_is_on_disk
        );
    };
    (@each $attribute:meta, $world:expr; $($check:ident)*) => {
        $(
            #[$attribute]
            async fn $check() {
                let (world, _server) = $world.await;
                suite::checks::$check(world).await;
            }
        )*
    };
}
