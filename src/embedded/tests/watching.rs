//! Watches as their users see them.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};

use super::{after, index, key, lease, set, store, ttl};
use crate::embedded::Embedded;
use crate::embedded::journal::{Entry, Journal};
use crate::error::ErrorKind;
use crate::key::Index;
use crate::store::{Change, Delete, Event, Expiry, Grant, Store, StoreExt, Update, Updates, Watch};

/// The index at which a watch opened.
async fn opened(updates: &mut Updates) -> Index {
    match updates.next().await.unwrap().unwrap() {
        Update::Open(index) => index,
        other => panic!("{other:?}"),
    }
}

async fn event(updates: &mut Updates) -> Event {
    match updates.next().await.unwrap().unwrap() {
        Update::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

fn expired() -> Change {
    Change::Delete { expired: true }
}

#[tokio::test]
async fn a_watch_begins_when_it_is_asked_for_not_when_it_is_polled() {
    let store = store();
    let mut updates = store.watch(Watch::tree(key("/")));
    set(&store, "/a", Expiry::Never).await;
    assert_eq!(opened(&mut updates).await, index(3));
    let event = event(&mut updates).await;
    assert_eq!((event.index, event.key), (index(4), key("/a")));
    assert!(matches!(event.change, Change::Put(node) if node.text() == Some("v")));
    assert!(updates.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_open_watch_makes_the_expiry_happen_by_itself_and_on_time() {
    let store = store();
    let start = tokio::time::Instant::now();
    store
        .grant(Grant::new(lease(7), ttl(90_000)))
        .await
        .unwrap();
    set(&store, "/b", Expiry::With(lease(7))).await;
    set(&store, "/a", after(1_500)).await;
    let mut updates = store.watch(Watch::tree(key("/")).deletes_only());
    opened(&mut updates).await;
    let first = event(&mut updates).await;
    assert_eq!((first.key, first.change), (key("/a"), expired()));
    assert_eq!(start.elapsed(), Duration::from_millis(1_500));
    let second = event(&mut updates).await;
    assert_eq!((second.key, second.change), (key("/b"), expired()));
    let late = start.elapsed() - Duration::from_secs(90);
    assert!(late <= Duration::from_millis(2), "{late:?}"); // tokio's timers tick in milliseconds
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_watch_learns_of_a_sooner_expiry() {
    let store = store();
    let start = tokio::time::Instant::now();
    set(&store, "/slow", after(60_000)).await;
    set(&store, "/d/x", after(60_000)).await;
    let mut updates = store.watch(Watch::node(key("/d/x")).deletes_only());
    opened(&mut updates).await;
    assert!(updates.next().now_or_never().is_none());
    let waiting = tokio::spawn(async move { event(&mut updates).await });
    tokio::task::yield_now().await;
    // The watch hears nothing of this write, for it asked for deletions only.
    set(&store, "/d/x", after(1_000)).await;
    let event = waiting.await.unwrap();
    assert_eq!((event.key, event.change), (key("/d/x"), expired()));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test]
async fn a_deleted_directory_is_one_event_to_whoever_watches_in_it() {
    let store = store();
    set(&store, "/d/x/y", Expiry::Never).await;
    let mut updates = store.watch(Watch::node(key("/d/x/y")));
    opened(&mut updates).await;
    store.delete(Delete::tree(key("/d"))).await.unwrap();
    let event = event(&mut updates).await;
    assert_eq!(event.key, key("/d"));
    assert!(event.removes(&key("/d/x/y")));
    assert!(updates.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_watch_from_a_forgotten_index_ends_with_history_lost() {
    let store = Embedded::builder().history_limit(2).build();
    for _ in 0..3 {
        set(&store, "/a", Expiry::Never).await;
    }
    let mut updates = store.watch(Watch::tree(key("/")).from(index(4)));
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::HistoryLost, Some(401))
    );
    assert!(updates.next().await.is_none());

    let mut updates = store.watch(Watch::tree(key("/")).from(index(5)));
    assert_eq!(opened(&mut updates).await, index(6));
    assert_eq!(event(&mut updates).await.index, index(5));
    assert_eq!(event(&mut updates).await.index, index(6));
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_and_never_silently_loses() {
    let store = Embedded::builder().history_limit(2).build();
    let mut updates = store.watch(Watch::tree(key("/")));
    opened(&mut updates).await;
    for _ in 0..3 {
        set(&store, "/a", Expiry::Never).await;
    }
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HistoryLost);
    assert!(updates.next().await.is_none());
    assert_eq!(store.shared.lock().watchers(), 0);
}

#[tokio::test]
async fn a_dropped_watch_leaves_nothing_behind() {
    let store = store();
    set(&store, "/a", after(60_000)).await;
    let never_polled = store.watch(Watch::tree(key("/")));
    let mut waiting = store.watch(Watch::tree(key("/")));
    opened(&mut waiting).await;
    assert!(waiting.next().now_or_never().is_none());
    assert_eq!(store.shared.lock().watchers(), 2);
    drop((never_polled, waiting));
    assert_eq!(store.shared.lock().watchers(), 0);
    assert_eq!(std::sync::Arc::strong_count(&store.shared), 1);
}

#[derive(Debug)]
struct FullDisk;

impl Journal for FullDisk {
    fn record(&mut self, _: &[Entry]) -> std::io::Result<()> {
        Err(std::io::Error::other("disk full"))
    }
}

#[tokio::test]
async fn a_write_that_the_journal_lost_is_ambiguous_and_the_last_thing_the_store_did() {
    let store = store();
    store.shared.lock().keep(Box::new(FullDisk));
    let mut updates = store.watch(Watch::tree(key("/")));
    opened(&mut updates).await;
    assert!(updates.next().now_or_never().is_none());
    let error = store
        .set(&key("/a"), "".into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Ambiguous, Some(300))
    );
    assert!(error.to_string().contains("disk full"), "{error}");
    let error = store.node(&key("/a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(updates.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watch_sees_every_write_of_every_thread_once_and_in_order() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 200;
    let store = Embedded::new();
    let watch = |store: &Embedded| {
        let mut updates = store.watch(Watch::tree(key("/")));
        tokio::spawn(async move {
            let mut last = opened(&mut updates).await;
            for _ in 0..WRITERS * WRITES {
                let event = event(&mut updates).await;
                assert_eq!(event.index, last.next());
                last = event.index;
            }
        })
    };
    let watches = [watch(&store), watch(&store)];
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..WRITES {
                set(&store, &format!("/w{writer}"), Expiry::Never).await;
                tokio::task::yield_now().await;
            }
        })
    });
    for task in writers.collect::<Vec<_>>().into_iter().chain(watches) {
        tokio::time::timeout(Duration::from_secs(30), task)
            .await
            .unwrap()
            .unwrap();
    }
}
