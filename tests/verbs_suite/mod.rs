//! The verbs and the watcher, over any store: the same source for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::runtime::Runtime;
use tenure::store::{Change, Condition, Event, Expiry, Node, Scope, View, Watch};
use tenure::{Client, ErrorKind, Follow, Index, Key, Store, StoreExt, Ttl, Watcher};

pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runtime: Runtime,
}

/// Far more than any step takes on a slow machine; only a hang reaches it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn secs(number: u64) -> Expiry {
    Expiry::After(Ttl::new(Duration::from_secs(number)).unwrap())
}

fn expires(node: &Node) -> bool {
    node.ttl.is_some() || node.lease.is_some()
}

impl World {
    async fn write(&self, at: &str, value: &str) -> Node {
        let value = value.to_owned().into();
        let written = self.store.set(&key(at), value, Expiry::Never).await;
        written.unwrap().node
    }

    fn follow(&self, at: &str, scope: Scope) -> Watcher {
        Watcher::new(self.store.clone(), key(at), scope, &self.runtime)
    }
}

/// The next item that is neither progress nor an interruption.
pub(crate) async fn news(watcher: &mut Watcher) -> Follow {
    let news = async {
        loop {
            match watcher.next().await {
                Some(Ok(Follow::Progress(_) | Follow::Interrupted(_) | Follow::Resumed(_))) => {}
                Some(Ok(item)) => return item,
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(LONG, news).await.expect("news")
}

pub(crate) async fn snapshot(watcher: &mut Watcher) -> View {
    match news(watcher).await {
        Follow::Snapshot(view) => view,
        other => panic!("wanted a snapshot, got {other:?}"),
    }
}

pub(crate) async fn event(watcher: &mut Watcher) -> Event {
    match news(watcher).await {
        Follow::Event(event) => event,
        other => panic!("wanted an event, got {other:?}"),
    }
}

/// A copy of a tree's files, kept as a watcher's docs say.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    pub(crate) files: BTreeMap<Key, Node>,
    pub(crate) index: Option<Index>,
    pub(crate) snapshots: usize,
    /// Whether more of the same commit is to come.
    more: bool,
}

impl Copy {
    pub(crate) fn take(&mut self, item: Follow) {
        match item {
            Follow::Snapshot(view) => {
                assert!(self.index <= Some(view.index), "a snapshot from before");
                self.index = Some(view.index);
                let files = view.nodes.into_iter().filter(|node| !node.is_dir);
                self.files = files.map(|node| (node.key.clone(), node)).collect();
                self.snapshots += 1;
            }
            Follow::Event(event) => {
                let (before, now) = (self.index, Some(event.index));
                assert!(
                    before < now || self.more && before == now,
                    "{event:?} after {before:?}"
                );
                (self.index, self.more) = (now, event.more);
                match event.change.clone() {
                    Change::Put(node) if !node.is_dir => {
                        self.files.insert(event.key, node);
                    }
                    _ => self.files.retain(|key, _| !event.removes(key)),
                }
            }
            Follow::Progress(index) => {
                assert!(self.index <= Some(index), "progress back to {index}");
                self.index = Some(index);
            }
            Follow::Interrupted(_) | Follow::Resumed(_) => {}
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn is(&self, nodes: &[Node]) -> bool {
        let said = |node: &Node| (node.key.clone(), node.value.clone(), node.created);
        let files = nodes.iter().filter(|node| !node.is_dir).map(said);
        self.files.values().map(said).eq(files)
    }
}

pub(crate) async fn reading_knows_nodes_children_trees_and_leaves(world: World) {
    for path in ["/r/a", "/r/d/x", "/r/d/e/y", "/r/_h"] {
        world.write(path, path).await;
    }
    let store = &world.store;
    let paths = |nodes: Vec<Node>| -> Vec<_> {
        let nodes = nodes.into_iter();
        nodes.map(|node| node.key.as_str().to_owned()).collect()
    };
    let top = key("/r");
    assert_eq!(
        store.node(&key("/r/a")).await.unwrap().unwrap().text(),
        Some("/r/a")
    );
    assert!(store.node(&key("/r/none")).await.unwrap().is_none());
    assert_eq!(paths(store.children(&top).await.unwrap()), ["/r/a", "/r/d"]);
    let tree = paths(store.tree(&top).await.unwrap());
    assert_eq!(tree, ["/r", "/r/a", "/r/d", "/r/d/e", "/r/d/e/y", "/r/d/x"]);
    let leaves = paths(store.leaves(&top).await.unwrap());
    assert_eq!(leaves, ["/r/a", "/r/d/e/y", "/r/d/x"]);
    // An empty directory has none, and is none itself.
    store.remove(&key("/r/d/e/y")).await.unwrap().unwrap();
    assert!(store.leaves(&key("/r/d/e")).await.unwrap().is_empty());
    for (path, there) in [
        ("/r", true),
        ("/r/a", true),
        ("/r/_h", true),
        ("/r/z", false),
    ] {
        assert_eq!(store.contains(&key(path)).await.unwrap(), there, "{path}");
    }
}

pub(crate) async fn an_update_writes_back_only_what_nobody_else_wrote(world: World) {
    let (store, at) = (&world.store, key("/u/k"));
    let nothing = store.replace(&at, "0".into(), Expiry::Never).await;
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::NotFound);
    store.create(&at, "0".into(), Expiry::Never).await.unwrap();
    store.replace(&at, "1".into(), Expiry::Never).await.unwrap();
    let error = store
        .create(&at, "2".into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let mut node = store.node(&at).await.unwrap().unwrap();
    node.value = "2".into();
    let updated = store.update(&node, Expiry::Never).await.unwrap().node;
    assert_eq!((updated.text(), updated.created), (Some("2"), node.created));
    let error = store.update(&node, Expiry::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConditionFailed);
    store.remove(&at).await.unwrap().unwrap();
    let error = store.update(&updated, Expiry::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub(crate) async fn an_update_keeps_the_time_to_live_or_says_another(world: World) {
    let (store, at) = (&world.store, key("/u/brief"));
    store.set(&at, "1".into(), secs(1)).await.unwrap();
    let mut node = store.node(&at).await.unwrap().unwrap();
    node.value = "2".into();
    let keep = node.expiry().unwrap();
    // A store with leases tells which one it is and not how long it has left.
    assert_eq!(keep, node.lease.map_or(secs(1), Expiry::With));
    store.update(&node, keep).await.unwrap();
    assert!(expires(&store.node(&at).await.unwrap().unwrap()));
    let gone = async {
        while store.contains(&at).await.unwrap() {
            world.runtime.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, gone)
        .await
        .expect("it goes away");
    let node = store.set(&at, "3".into(), secs(60)).await.unwrap().node;
    store.update(&node, Expiry::Never).await.unwrap();
    assert!(!expires(&store.node(&at).await.unwrap().unwrap()));
}

pub(crate) async fn a_compare_and_swap_swaps_only_what_it_expects(world: World) {
    let (store, at) = (&world.store, key("/c/k"));
    world.write("/c/k", "old").await;
    let swap = |from: &'static str| {
        let (store, at) = (store.clone(), at.clone());
        async move {
            store
                .compare_and_swap(&at, from.into(), "new".into(), Expiry::Never)
                .await
        }
    };
    assert_eq!(
        swap("other").await.unwrap_err().kind(),
        ErrorKind::ConditionFailed
    );
    assert_eq!(swap("old").await.unwrap().node.text(), Some("new"));
    assert_eq!(
        swap("old").await.unwrap_err().kind(),
        ErrorKind::ConditionFailed
    );
}

pub(crate) async fn values_are_appended_in_order_and_as_they_are(world: World) {
    let (store, dir) = (&world.store, key("/nodes/queue"));
    let mut appended = Vec::new();
    for value in ["test", "test", "other"] {
        let value = value.into();
        appended.push(
            store
                .append_value(&dir, value, Expiry::Never)
                .await
                .unwrap()
                .node,
        );
    }
    assert_eq!(store.children(&dir).await.unwrap(), appended);
    let values: Vec<_> = appended.iter().map(|node| node.text().unwrap()).collect();
    assert_eq!(values, ["test", "test", "other"]);
    let brief = store
        .append_value(&dir, "x".into(), secs(60))
        .await
        .unwrap();
    assert!(expires(&brief.node));
}

pub(crate) async fn of_several_that_pop_a_node_one_gets_it(world: World) {
    let (store, at) = (&world.store, key("/p/k"));
    for round in 0..5 {
        let written = world.write("/p/k", &format!("job {round}")).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (store, at) = (store.clone(), at.clone());
            tasks.spawn(async move { store.pop(&at).await.unwrap() });
        }
        let popped = tasks.join_all().await;
        let popped: Vec<_> = popped.into_iter().flatten().collect();
        assert_eq!(popped, [written]);
    }
    assert_eq!(store.pop(&at).await.unwrap(), None);
    world.write("/p/d/x", "").await;
    let error = store.pop(&key("/p/d")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAFile);
}

pub(crate) async fn removing_says_what_was_there(world: World) {
    let store = &world.store;
    let written = world.write("/d/k", "x").await;
    let wrong = Condition::Value("y".into());
    let error = store.remove_if(&key("/d/k"), wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConditionFailed);
    let right = Condition::Index(written.modified);
    assert!(
        store
            .remove_if(&key("/d/k"), right)
            .await
            .unwrap()
            .is_some()
    );
    assert!(store.remove(&key("/d/k")).await.unwrap().is_none());
    world.write("/d/deep/er", "x").await;
    let error = store.remove(&key("/d")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAFile);
    assert!(store.remove_tree(&key("/d")).await.unwrap().is_some());
    assert!(store.remove_tree(&key("/d")).await.unwrap().is_none());
    assert!(!store.contains(&key("/d/deep/er")).await.unwrap());
}

pub(crate) async fn waiting_returns_the_next_change(world: World) {
    let store = &world.store;
    let first = world.write("/w/k", "1").await;
    let second = world.write("/w/k", "2").await;
    // From an index: what has happened already counts.
    let watch = Watch::node(key("/w/k")).from(first.modified.next());
    let event = store.wait(watch).await.unwrap();
    assert_eq!(event.change, Change::Put(second.clone()));
    // Of a tree, from now on.
    let tree = Watch::tree(key("/w"));
    let (event, ()) = tokio::join!(store.wait(tree), async {
        // Whether the watch is open yet cannot be seen: write until it has returned.
        for _ in 0..20 {
            world.write("/w/deep/k", "3").await;
            world.runtime.clock.sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(event.unwrap().key, key("/w/deep/k"));
    // And nothing for a key that does not change.
    let quiet = store.wait(Watch::node(key("/w/k")).from(second.modified.next()));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), quiet)
            .await
            .is_err()
    );
}

pub(crate) async fn a_key_is_followed_from_its_snapshot_on(world: World) {
    let first = world.write("/f/k", "1").await;
    let mut watcher = world.follow("/f/k", Scope::Node);
    let view = snapshot(&mut watcher).await;
    assert_eq!(view.nodes, std::slice::from_ref(&first));
    // Written while nobody polls.
    world.write("/f/other", "x").await;
    let second = world.write("/f/k", "2").await;
    let third = world.write("/f/k", "3").await;
    world.store.remove_tree(&key("/f")).await.unwrap();
    assert_eq!(event(&mut watcher).await.change, Change::Put(second));
    assert_eq!(event(&mut watcher).await.change, Change::Put(third));
    let last = event(&mut watcher).await;
    assert!(last.removes(&key("/f/k")), "{last:?}");
}

pub(crate) async fn a_key_that_is_not_there_is_followed_too(world: World) {
    let mut watcher = world.follow("/later/on", Scope::Tree);
    assert!(snapshot(&mut watcher).await.nodes.is_empty());
    let written = world.write("/later/on/deep", "x").await;
    assert_eq!(event(&mut watcher).await.change, Change::Put(written));
}

pub(crate) async fn what_is_hidden_below_is_neither_listed_nor_told(world: World) {
    world.write("/h/_x", "").await;
    let shown = world.write("/h/a", "").await;
    let mut watcher = world.follow("/h", Scope::Tree);
    let view = snapshot(&mut watcher).await;
    let files: Vec<_> = view.nodes.into_iter().filter(|node| !node.is_dir).collect();
    assert_eq!(files, [shown]);
    world.write("/h/_x", "2").await;
    let next = world.write("/h/b", "").await;
    assert_eq!(event(&mut watcher).await.change, Change::Put(next));
}

pub(crate) async fn a_copy_of_a_tree_is_what_the_store_holds(world: World) {
    let mut tasks = tokio::task::JoinSet::new();
    let mut watcher = world.follow("/t", Scope::Tree);
    let mut copy = Copy::default();
    for writer in 0..3 {
        let store = world.store.clone();
        tasks.spawn(async move {
            for round in 0..40 {
                let at = key(&format!("/t/{}/{}", writer % 2, round % 7));
                match round % 5 {
                    4 => drop(store.remove(&at).await.unwrap()),
                    3 if writer == 0 => drop(store.remove_tree(&key("/t/1")).await.unwrap()),
                    _ => {
                        let value = format!("{writer} {round}").into();
                        store.set(&at, value, Expiry::Never).await.unwrap();
                    }
                }
                tokio::task::yield_now().await;
            }
        });
    }
    let writing = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    let following = async {
        loop {
            copy.take(news(&mut watcher).await);
            if copy.files.contains_key(&key("/t/end")) {
                return;
            }
        }
    };
    let written = async {
        writing.await;
        world.write("/t/end", "").await;
    };
    tokio::time::timeout(LONG, async { tokio::join!(following, written) })
        .await
        .expect("the end is told");
    assert!(
        copy.is(&world.store.tree(&key("/t")).await.unwrap()),
        "{copy:?}"
    );
    assert_eq!(copy.snapshots, 1, "nothing was lost");
}

pub(crate) async fn a_client_follows_too(world: World) {
    let client = Client::builder(world.store.clone())
        .runtime(world.runtime.clone())
        .build();
    let mut watcher = client.follow(&key("/c"), Scope::Tree);
    snapshot(&mut watcher).await;
    let written = world.write("/c/k", "x").await;
    assert_eq!(event(&mut watcher).await.change, Change::Put(written));
    assert_eq!(watcher.key(), &key("/c"));
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! verbs_suite {
    ($attributes:meta, $world:expr) => {
        $crate::verbs_suite!(@each $attributes, $world,
            reading_knows_nodes_children_trees_and_leaves,
            an_update_writes_back_only_what_nobody_else_wrote,
            an_update_keeps_the_time_to_live_or_says_another,
            a_compare_and_swap_swaps_only_what_it_expects,
            values_are_appended_in_order_and_as_they_are,
            of_several_that_pop_a_node_one_gets_it,
            removing_says_what_was_there,
            waiting_returns_the_next_change,
            a_key_is_followed_from_its_snapshot_on,
            a_key_that_is_not_there_is_followed_too,
            what_is_hidden_below_is_neither_listed_nor_told,
            a_copy_of_a_tree_is_what_the_store_holds,
            a_client_follows_too,
        );
    };
    (@each $attributes:meta, $world:expr, $($check:ident,)*) => {
        $(
            #[$attributes]
            async fn $check() {
                let (world, _server) = $world.await;
                suite::$check(world).await;
            }
        )*
    };
}
