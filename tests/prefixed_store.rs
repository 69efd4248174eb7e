//! What is special about a store behind a prefix: its edges. That it is a store shows the suite.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use futures_util::StreamExt;
use tenure::embedded::Embedded;
use tenure::store::{
    Append, Change, Commit, Condition, Delete, Expiry, Get, Prefixed, Put, Update, Watch,
};
use tenure::{ErrorKind, Key, LeaseId, Store, StoreExt, Tag};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn stores() -> (Embedded, Prefixed<Embedded>) {
    let inner = Embedded::new();
    (inner.clone(), Prefixed::new(inner, key("/org/team")))
}

async fn set(store: &impl Store, path: &str) {
    store
        .set(&key(path), path.to_owned().into(), Expiry::Never)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_written_lies_below_the_prefix() {
    let (inner, store) = stores();
    set(&store, "/a/b").await;
    let node = inner.node(&key("/org/team/a/b")).await.unwrap().unwrap();
    assert_eq!(node.text(), Some("/a/b"));
    set(&inner, "/org/team/c").await;
    let names = store.get(Get::children(Key::root())).await.unwrap().nodes;
    let names: Vec<_> = names.iter().map(|node| node.key.as_str()).collect();
    assert_eq!(names, ["/a", "/c"]);
}

#[tokio::test]
async fn neighbours_see_nothing_of_each_other() {
    let (inner, store) = stores();
    let neighbour = Prefixed::new(inner, key("/org/team2"));
    let mut told = store.watch(Watch::tree(Key::root()));
    assert!(matches!(told.next().await, Some(Ok(Update::Open(_)))));
    set(&neighbour, "/a").await;
    assert_eq!(store.node(&key("/a")).await.unwrap(), None);
    set(&store, "/b").await;
    let Some(Ok(Update::Event(event))) = told.next().await else {
        panic!("an event");
    };
    assert_eq!(event.key, key("/b"));
}

#[tokio::test]
async fn the_end_of_the_prefix_or_of_what_is_above_is_told_as_the_end_of_the_root() {
    for above in ["/org/team", "/org"] {
        let (inner, store) = stores();
        set(&store, "/a/b").await;
        let mut told = store.watch(Watch::tree(key("/a")));
        assert!(matches!(told.next().await, Some(Ok(Update::Open(_)))));
        inner.delete(Delete::tree(key(above))).await.unwrap();
        let Some(Ok(Update::Event(event))) = told.next().await else {
            panic!("an event");
        };
        assert_eq!(
            (event.key.is_root(), &event.change),
            (true, &Change::Delete { expired: false })
        );
        assert!(event.removes(&key("/a/b")), "so a watcher inside learns it");
    }
}

#[tokio::test]
async fn the_root_is_there_to_be_read_and_not_to_be_written() {
    let (inner, store) = stores();
    set(&store, "/a").await;
    assert!(store.node(&Key::root()).await.unwrap().unwrap().is_dir);
    let put = Put::new(Key::root(), "x", Expiry::Never);
    let commit = Commit::new().put(put.clone());
    for refusal in [
        store.put(put).await.map(drop),
        store.delete(Delete::tree(Key::root())).await.map(drop),
        store.commit(commit).await.map(drop),
    ] {
        assert_eq!(refusal.unwrap_err().kind(), ErrorKind::RootReadOnly);
    }
    assert!(inner.node(&key("/org/team/a")).await.unwrap().is_some());
}

#[tokio::test]
async fn an_error_speaks_of_the_key_that_was_asked_for() {
    let (_, store) = stores();
    set(&store, "/a").await;
    let error = store
        .create(&key("/a"), "x".into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(error.key(), Some(&key("/a")));
    let commit = Commit::new().check(key("/a"), Condition::Absent);
    let error = store.commit(commit).await.unwrap_err();
    assert_eq!(error.key(), Some(&key("/a")));
    let long = key(&format!("/{}", "x".repeat(Key::MAX_LEN - 1)));
    let error = store.node(&long).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.key()),
        (ErrorKind::InvalidKey, Some(&long))
    );
    let error = store
        .watch(Watch::node(long))
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidKey);
}

#[tokio::test]
async fn a_commit_appends_below_the_prefix_and_names_the_lines_as_seen_from_there() {
    let (inner, store) = stores();
    let tag = |nonce| Tag::new(LeaseId::new(7).unwrap(), nonce);
    let into = |line: &str, nonce| {
        let ticket = Append::ticket(key(line), tag(nonce), Expiry::Never);
        Commit::new()
            .check(key(line), Condition::Empty)
            .append(ticket)
    };
    let committed = store.commit(into("/l", 1)).await.unwrap();
    let [Some(node)] = &committed.nodes[..] else {
        panic!("{committed:?}");
    };
    assert!(node.key.below(&key("/l")).is_some(), "{node:?}");
    assert_eq!(inner.children(&key("/org/team/l")).await.unwrap().len(), 1);
    let error = store.commit(into("/l", 2)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.key()),
        (ErrorKind::ConditionFailed, Some(&key("/l")))
    );
}

#[tokio::test]
async fn a_store_names_its_prefix_and_works_behind_a_pointer() {
    let (inner, store) = stores();
    let name = store.about().name;
    assert_eq!(*name, *format!("{} under /org/team", inner.about().name));
    let shared: Arc<dyn Store> = Arc::new(store);
    let twice = Prefixed::new(shared, key("/deeper"));
    set(&twice, "/a").await;
    assert!(
        inner
            .node(&key("/org/team/deeper/a"))
            .await
            .unwrap()
            .is_some()
    );
    let all = Prefixed::new(inner.clone(), Key::root());
    assert_eq!(all.about(), inner.about());
    assert!(
        all.node(&key("/org/team/deeper/a"))
            .await
            .unwrap()
            .is_some()
    );
}
