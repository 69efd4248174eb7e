//! The long-poll machine against a real etcd: nothing lost, nothing doubled, nothing foreign.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, chunks, node, poll_head};
use common::words::{key, write};
use futures_util::StreamExt;
use tenure::etcd2::{Builder, Etcd2};
use tenure::store::{Change, Delete, Event, Expiry, Update, Updates, Watch};
use tenure::{ErrorKind, Index, Store, StoreExt, Ttl};

fn options(etcd: &Etcd) -> Builder {
    Etcd2::builder(etcd.url())
}

/// The next update, which must come.
async fn next(updates: &mut Updates) -> tenure::Result<Update> {
    let update = tokio::time::timeout(Duration::from_secs(20), updates.next()).await;
    update
        .expect("an update within 20 s")
        .expect("the stream goes on")
}

async fn opened(updates: &mut Updates) -> Index {
    match next(updates).await.unwrap() {
        Update::Open(index) => index,
        other => panic!("{other:?} before the watch was open"),
    }
}

/// The next event; progress is skipped.
async fn event(updates: &mut Updates) -> Event {
    loop {
        match next(updates).await.unwrap() {
            Update::Event(event) => return event,
            Update::Progress(_) => {}
            other => panic!("{other:?} instead of an event"),
        }
    }
}

/// The key and what happened: `+value`, `-` or `expired`.
async fn told(updates: &mut Updates) -> String {
    let Event { key, change, .. } = event(updates).await;
    match change {
        Change::Put(node) => format!("{key} +{}", node.text().unwrap()),
        Change::Delete { expired: true } => format!("{key} expired"),
        _ => format!("{key} -"),
    }
}

async fn failure(updates: &mut Updates) -> tenure::Error {
    loop {
        if let Err(error) = next(updates).await {
            assert!(updates.next().await.is_none(), "an error ends the stream");
            return error;
        }
    }
}

#[tokio::test]
async fn changes_arrive_in_order_each_with_its_kind() {
    let etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let before = write(&store, "/w/a", "0").await;
    let mut updates = store.watch(Watch::tree(key("/w")));
    assert!(opened(&mut updates).await >= before);
    write(&store, "/w/a", "1").await;
    write(&store, "/elsewhere", "x").await;
    write(&store, "/w/_hidden", "x").await;
    let second = Expiry::After(Ttl::MIN);
    store.set(&key("/w/b/c"), "2".into(), second).await.unwrap();
    store.remove(&key("/w/a")).await.unwrap();
    assert_eq!(told(&mut updates).await, "/w/a +1");
    assert_eq!(told(&mut updates).await, "/w/b/c +2");
    assert_eq!(told(&mut updates).await, "/w/a -");
    assert_eq!(told(&mut updates).await, "/w/b/c expired");
    store.delete(Delete::tree(key("/w/b"))).await.unwrap();
    assert_eq!(told(&mut updates).await, "/w/b -");
}

#[tokio::test]
async fn history_is_replayed_from_the_index_without_what_does_not_belong() {
    let etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let start = write(&store, "/w/a", "1").await;
    write(&store, "/w/_hidden/x", "2").await;
    write(&store, "/w/de", "3").await;
    write(&store, "/wx", "4").await;
    write(&store, "/w/delta", "5").await;
    store.remove(&key("/w/de")).await.unwrap();
    write(&store, "/w/end", "6").await;

    let mut tree = store.watch(Watch::tree(key("/w")).from(start));
    opened(&mut tree).await;
    for expected in ["/w/a +1", "/w/de +3", "/w/delta +5", "/w/de -", "/w/end +6"] {
        assert_eq!(told(&mut tree).await, expected);
    }
    // etcd's history takes the deletion of /w/de for one of /w/delta.
    let mut node = store.watch(Watch::node(key("/w/delta")).from(start));
    opened(&mut node).await;
    assert_eq!(told(&mut node).await, "/w/delta +5");
    write(&store, "/w/delta", "7").await;
    assert_eq!(told(&mut node).await, "/w/delta +7");

    let mut deletes = store.watch(Watch::tree(key("/w")).from(start).deletes_only());
    opened(&mut deletes).await;
    assert_eq!(told(&mut deletes).await, "/w/de -");
}

#[tokio::test]
async fn a_directory_that_goes_takes_the_watched_key_with_it() {
    let etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    write(&store, "/top/dir/leaf", "x").await;
    let mut updates = store.watch(Watch::node(key("/top/dir/leaf")).deletes_only());
    opened(&mut updates).await;
    store.delete(Delete::tree(key("/top"))).await.unwrap();
    let event = event(&mut updates).await;
    assert_eq!(event.key, key("/top"));
    assert!(event.removes(&key("/top/dir/leaf")));
}

#[tokio::test]
async fn polls_that_are_replaced_all_the_time_neither_lose_nor_double_an_event() {
    let etcd = Etcd::start();
    let period = Duration::from_millis(3);
    let store = options(&etcd).poll_period(period).build().unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for number in 0..600 {
            // Gaps around the period, so that events meet every phase of a replacement.
            tokio::time::sleep(Duration::from_micros(number % 7 * 1_000)).await;
            write(&writer, "/w/k", &number.to_string()).await;
        }
    });
    for number in 0..600 {
        assert_eq!(told(&mut updates).await, format!("/w/k +{number}"));
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_quiet_watch_outlives_the_history_of_the_store() {
    let etcd = Etcd::start();
    // All 1,200 writes fall into one period, so that the poll's successor finds its history gone.
    let period = Duration::from_secs(4);
    let store = options(&etcd).poll_period(period).build().unwrap();
    let mut updates = store.watch(Watch::node(key("/quiet")));
    let open = opened(&mut updates).await;
    let busy = futures_util::stream::iter(0..1_200)
        .map(|number| {
            let store = store.clone();
            async move { write(&store, "/busy", &number.to_string()).await }
        })
        .buffer_unordered(8)
        .collect::<Vec<_>>();
    busy.await;
    let last = write(&store, "/busy", "last").await;
    let mut known = open;
    while known < last {
        match next(&mut updates).await.unwrap() {
            Update::Progress(index) => {
                assert!(index >= known);
                known = index;
            }
            other => panic!("{other:?} on a quiet key"),
        }
    }
    write(&store, "/quiet", "at last").await;
    assert_eq!(told(&mut updates).await, "/quiet +at last");
}

#[tokio::test]
async fn history_that_is_gone_is_an_error_of_its_own() {
    let etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let start = write(&store, "/w", "first").await;
    for number in 0..1_001 {
        write(&store, "/busy", &number.to_string()).await;
    }
    let mut updates = store.watch(Watch::node(key("/w")).from(start));
    let error = failure(&mut updates).await;
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::HistoryLost, Some(401))
    );
    assert_eq!(error.key(), Some(&key("/w")));
}

#[tokio::test]
async fn a_restart_of_the_server_is_survived_without_a_gap() {
    let mut etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    write(&store, "/w/a", "before").await;
    assert_eq!(told(&mut updates).await, "/w/a +before");
    let writer = store.clone();
    let etcd = tokio::task::spawn_blocking(move || {
        etcd.restart();
        // Before the watch can be back.
        etcd.request("PUT", "/v2/keys/w/a", "value=after").unwrap();
        etcd
    });
    let (_etcd, told) = tokio::join!(etcd, told(&mut updates));
    assert_eq!(told, "/w/a +after");
    write(&writer, "/w/a", "later").await;
    assert_eq!(self::told(&mut updates).await, "/w/a +later");
}

#[tokio::test]
async fn a_server_that_stays_away_ends_the_watch_after_the_patience() {
    let mut etcd = Etcd::start();
    let patience = Duration::from_millis(300);
    let store = options(&etcd).watch_patience(patience).build().unwrap();
    let mut updates = store.watch(Watch::node(key("/w")));
    opened(&mut updates).await;
    etcd.stop();
    let error = failure(&mut updates).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn another_cluster_behind_the_same_address_ends_the_watch() {
    let mut etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let mut updates = store.watch(Watch::node(key("/w")));
    opened(&mut updates).await;
    let rebuilding = tokio::task::spawn_blocking(move || {
        etcd.rebuild();
        etcd
    });
    let (error, _etcd) = tokio::join!(failure(&mut updates), rebuilding);
    assert_eq!(error.kind(), ErrorKind::ClusterChanged, "{error}");
}

#[tokio::test]
async fn an_index_that_the_cluster_never_reached_is_history_lost() {
    let etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let from = Index::new(1 << 30).unwrap();
    let mut updates = store.watch(Watch::node(key("/w")).from(from));
    assert_eq!(failure(&mut updates).await.kind(), ErrorKind::HistoryLost);
}

#[tokio::test]
async fn a_dropped_watch_ends_at_the_server_too() {
    let etcd = Etcd::start();
    let store = options(&etcd).build().unwrap();
    let watchers = || {
        let (_, body) = etcd.http("/v2/stats/store").unwrap();
        body.rsplit_once("\"watchers\":")
            .unwrap()
            .1
            .trim_end_matches(['}', '\n'])
            .to_owned()
    };
    let mut updates = store.watch(Watch::node(key("/w")));
    opened(&mut updates).await;
    assert_eq!(watchers(), "1");
    drop(updates);
    let gone = async {
        while watchers() != "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the server lets go");
}

#[tokio::test]
async fn a_server_that_repeats_an_event_for_ever_is_asked_with_pauses() {
    let again = poll_head(12) + &chunks(&node("set", "/k", "v", 12));
    let fake = Fake::new(move |_, _| Say::Raw(again.clone())).await;
    let store = Etcd2::new(fake.url()).unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    assert_eq!(event(&mut updates).await.index.get(), 12);
    let more = tokio::time::timeout(Duration::from_millis(500), updates.next()).await;
    assert!(more.is_err(), "{more:?}");
    // Each pause is 10 ms at least.
    let asked = fake.requests().len();
    assert!((3..60).contains(&asked), "{asked} requests");
}
