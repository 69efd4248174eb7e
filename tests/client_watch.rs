//! The keys client's watches against a real etcd: one change, and all of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::collections::BTreeMap;
use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer, node, refusal};
use common::words::{secs, until_watched};
use futures_util::StreamExt;
use proxy::Proxy;
use tenure::etcd2::client::{Action, Change, Changes, Response, Snapshot};
use tenure::etcd2::{Builder, Client, Code};
use tenure::{ErrorKind, Index};

fn options(url: &str) -> Builder {
    Client::builder(url)
}

fn client(etcd: &Etcd) -> Client {
    Client::new(etcd.url()).unwrap()
}

async fn set(client: &Client, key: &str, value: &str) -> Index {
    let written = client.set(key, value).permanent().await.unwrap();
    written.node.modified_index
}

/// The next change, which must come.
async fn next(changes: &mut Changes) -> tenure::Result<Change> {
    let change = tokio::time::timeout(Duration::from_secs(20), changes.next()).await;
    change
        .expect("a change within 20 s")
        .expect("the stream goes on")
}

async fn event(changes: &mut Changes) -> Response {
    match next(changes).await.unwrap() {
        Change::Event(event) => event,
        other => panic!("{other:?} instead of an event"),
    }
}

async fn resync(changes: &mut Changes) -> Snapshot {
    match next(changes).await.unwrap() {
        Change::Resync(snapshot) => snapshot,
        other => panic!("{other:?} instead of a resync"),
    }
}

/// More events than etcd keeps.
async fn clear_history(client: &Client) {
    let writes = futures_util::stream::iter(0..1_100)
        .map(|_| set(client, "/busy", "x"))
        .buffer_unordered(16);
    writes.count().await;
}

#[tokio::test]
async fn a_watch_tells_the_next_change_and_what_was_before() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let wait = tokio::spawn(client.watch("/w/k").into_future());
    until_watched(&etcd, 1).await;
    set(&client, "/w/other", "x").await;
    let created = client.create("/w/k", "1").await.unwrap();
    let seen = wait.await.unwrap().unwrap();
    assert_eq!((seen.action, seen.created), (Action::Create, true));
    assert_eq!((&seen.node, &seen.prev_node), (&created.node, &None));
    assert_eq!(seen.etcd_index, created.node.modified_index);
    let swapped = client.test_and_set("/w/k", "2", "1").await.unwrap();
    client.set("/w/k", "3").ttl(secs(1)).await.unwrap();
    let mut at = created.node.modified_index.next();
    let mut actions = Vec::new();
    for _ in 0..3 {
        let seen = client.watch("/w/k").index(at).await.unwrap();
        assert!(!seen.created);
        if actions.is_empty() {
            assert_eq!(seen.node, swapped.node);
            assert_eq!(seen.prev_node, Some(created.node.clone()));
        }
        at = seen.node.modified_index.next();
        actions.push(seen.action);
    }
    let expected = [Action::CompareAndSwap, Action::Set, Action::Expire];
    assert_eq!(actions, expected);
    // Then the time-to-live is over, so nothing comes.
    let wait = client.watch("/w/k").timeout(Duration::from_millis(50));
    let wait = tokio::time::timeout(Duration::from_secs(20), wait.into_future());
    let error = wait.await.expect("its own timeout ends it").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn what_does_not_belong_is_not_told_though_etcds_history_holds_it() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = set(&client, "/w/start", "x").await;
    // History answers with what is hidden, and by the prefix of the text.
    set(&client, "/w/_hidden", "x").await;
    set(&client, "/w/de/x", "x").await;
    client.delete("/w/de").recursive().await.unwrap();
    let delta = set(&client, "/w/delta", "x").await;
    let seen = client.watch("/w/delta").index(start).await.unwrap();
    assert_eq!(seen.node.modified_index, delta);
    let mut told = Vec::new();
    let mut changes = client
        .eternal_watch("/w")
        .recursive()
        .index(start)
        .changes();
    for _ in 0..4 {
        let event = event(&mut changes).await;
        told.push(format!("{} {}", event.action, event.node.key));
    }
    let expected = [
        "set /w/start",
        "set /w/de/x",
        "delete /w/de",
        "set /w/delta",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_directory_that_goes_wakes_whoever_waits_for_what_is_in_it() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    set(&client, "/d/e/k", "x").await;
    let wait = tokio::spawn(client.watch("/d/e/k").into_future());
    until_watched(&etcd, 1).await;
    client.delete("/d").recursive().await.unwrap();
    let seen = wait.await.unwrap().unwrap();
    assert_eq!((seen.action, &*seen.node.key), (Action::Delete, "/d"));
}

#[tokio::test]
async fn a_refresh_wakes_nobody() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = client.set("/k", "1").ttl(secs(60)).await.unwrap();
    let from = start.node.modified_index.next();
    client.refresh("/k", secs(90)).await.unwrap();
    let last = set(&client, "/k", "2").await;
    let seen = client.watch("/k").index(from).await.unwrap();
    assert_eq!(seen.node.modified_index, last);
}

#[tokio::test]
async fn an_index_that_is_no_longer_kept_is_history_lost() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = set(&client, "/w", "first").await;
    clear_history(&client).await;
    for watch in [
        client.watch("/w").index(start).await,
        client.read("/w").wait().wait_index(start).await,
    ] {
        let error = watch.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HistoryLost, "{error}");
        assert_eq!(Code::of(&error), Some(Code::EventIndexCleared));
        assert!(
            error
                .server_cause()
                .unwrap()
                .contains(&format!("/{start}]"))
        );
    }
}

#[tokio::test]
async fn an_eternal_watch_reads_anew_when_history_is_lost_and_goes_on_right_behind() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = set(&client, "/w/a", "1").await;
    let mut changes = client
        .eternal_watch("/w")
        .recursive()
        .index(start)
        .changes();
    assert_eq!(event(&mut changes).await.node.modified_index, start);
    // Nobody reads meanwhile.
    set(&client, "/w/missed", "2").await;
    client.delete("/w/a").await.unwrap();
    clear_history(&client).await;
    let snapshot = resync(&mut changes).await;
    let node = snapshot.node.unwrap();
    let there: Vec<_> = node.leaves().map(|it| &*it.key).collect();
    assert_eq!(there, ["/w/missed"]);
    let first = set(&client, "/w/b", "3").await;
    assert!(first > snapshot.index);
    let second = set(&client, "/w/b", "4").await;
    assert_eq!(event(&mut changes).await.node.modified_index, first);
    assert_eq!(event(&mut changes).await.node.modified_index, second);
    // A key that is not there is a snapshot too.
    let mut changes = client.eternal_watch("/nobody").index(start).changes();
    assert_eq!(resync(&mut changes).await.node, None);
    let created = set(&client, "/nobody", "5").await;
    assert_eq!(event(&mut changes).await.node.modified_index, created);
}

#[tokio::test]
async fn what_is_written_while_the_tree_is_read_anew_is_told_once() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = set(&client, "/w/k", "0").await;
    clear_history(&client).await;
    let mut changes = client
        .eternal_watch("/w")
        .recursive()
        .index(start)
        .changes();
    let writing = {
        let client = client.clone();
        tokio::spawn(async move {
            for number in 1..=300 {
                set(&client, "/w/k", &number.to_string()).await;
            }
        })
    };
    let number = |value: Option<String>| value.unwrap().parse::<u32>().unwrap();
    let snapshot = resync(&mut changes).await;
    let mut known = number(snapshot.node.unwrap().nodes.remove(0).value);
    while known < 300 {
        let event = event(&mut changes).await;
        assert!(event.node.modified_index > snapshot.index);
        let told = number(event.node.value);
        assert_eq!(told, known + 1);
        known = told;
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_replica_fed_by_an_eternal_watch_is_true_through_a_restart_and_short_polls() {
    let mut etcd = Etcd::start();
    let client = options(&etcd.url())
        .poll_period(Duration::from_millis(20))
        .watch_patience(Duration::from_millis(1))
        .build_client()
        .unwrap();
    let mut replica = BTreeMap::new();
    let mut last = set(&client, "/w/0", "start").await;
    let mut changes = client.eternal_watch("/w").recursive().index(last).changes();
    for round in 0..3 {
        for number in 0..40 {
            // Each fifth deletes what the one before wrote.
            let deletes = number % 5 == 4;
            let key = format!("/w/{}", (number - i32::from(deletes)) % 7);
            if deletes {
                last = client.delete(&*key).await.unwrap().node.modified_index;
            } else {
                last = set(&client, &key, &format!("{round} {number}")).await;
            }
        }
        if round == 1 {
            etcd = tokio::task::spawn_blocking(move || {
                etcd.restart();
                etcd
            })
            .await
            .unwrap();
        }
        let mut seen = None;
        while seen < Some(last) {
            let event = event(&mut changes).await;
            assert!(Some(event.node.modified_index) > seen, "told twice");
            seen = Some(event.node.modified_index);
            if event.action.removes() {
                assert!(replica.remove(&event.node.key).is_some());
            } else {
                replica.insert(event.node.key, event.node.value.unwrap());
            }
        }
        let listing = client.read("/w").quorum().recursive().await.unwrap().node;
        let there = listing.leaves();
        let there: BTreeMap<_, _> = there
            .map(|it| (it.key.clone(), it.value.clone().unwrap()))
            .collect();
        assert_eq!(replica, there);
    }
}

#[tokio::test]
async fn an_eternal_watch_outlasts_any_outage_unless_its_patience_is_limited() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = options(&proxy.url())
        .watch_patience(Duration::from_millis(1))
        .build_client()
        .unwrap();
    let direct = Client::new(etcd.url()).unwrap();
    let start = set(&client, "/k", "0").await;
    let watch = client.eternal_watch("/k").index(start);
    let mut limited = watch.clone().patience(Duration::from_millis(50)).changes();
    let mut changes = watch.changes();
    for changes in [&mut changes, &mut limited] {
        assert_eq!(event(changes).await.node.modified_index, start);
    }
    proxy.cut().await;
    let error = next(&mut limited).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(limited.next().await.is_none());
    let waiting = tokio::time::timeout(Duration::from_millis(200), changes.next());
    assert!(waiting.await.is_err(), "it goes on trying");
    let missed = set(&direct, "/k", "1").await;
    proxy.heal().await;
    assert_eq!(event(&mut changes).await.node.modified_index, missed);
}

#[tokio::test]
async fn an_eternal_watch_ends_with_what_waiting_does_not_mend() {
    let etcd = Etcd::start();
    let real = client(&etcd);
    let mut changes = real.eternal_watch("bad//key").changes();
    let error = next(&mut changes).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::InvalidKey, Some("watch"))
    );
    assert!(changes.next().await.is_none());
    let fake = Fake::new(|_, _| Say::Raw(answer(401, 1, &refusal(110, 1)))).await;
    let refused = Client::new(fake.url()).unwrap();
    let mut changes = refused.eternal_watch("/k").changes();
    let error = next(&mut changes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(changes.next().await.is_none());
    assert_eq!(fake.lines().len(), 1);
}

#[tokio::test]
async fn a_resync_asks_a_quorum_so_that_it_never_leads_back() {
    let fake = Fake::new(|number, _| match number {
        0 => Say::Raw(answer(400, 5_000, &refusal(401, 5_000))),
        // No leader for a moment.
        1 => Say::Raw(answer(500, 5_000, &refusal(300, 5_000))),
        2 => Say::Raw(answer(200, 5_001, &node("get", "/k", "now", 4_000))),
        _ => Say::Nothing,
    })
    .await;
    let client = Client::new(fake.url()).unwrap();
    let start = Index::new(7).unwrap();
    let mut changes = client.eternal_watch("/k").index(start).changes();
    let snapshot = resync(&mut changes).await;
    assert_eq!(snapshot.index.get(), 5_001);
    let polled = tokio::time::timeout(Duration::from_millis(200), changes.next());
    assert!(polled.await.is_err());
    let lines = fake.lines();
    assert_eq!(lines[0], "GET /v2/keys/k?wait=true&waitIndex=7");
    assert!(lines[1..3].iter().all(|it| it.contains("quorum=true")));
    assert_eq!(lines[3], "GET /v2/keys/k?wait=true&waitIndex=5002");
}

#[tokio::test]
async fn an_index_that_a_restored_cluster_never_reached_is_resynced_too() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    set(&client, "/k", "old").await;
    let future = Index::new(1 << 30).unwrap();
    let error = client.watch("/k").index(future).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HistoryLost);
    let mut changes = client.eternal_watch("/k").index(future).changes();
    let node = resync(&mut changes).await.node.unwrap();
    assert_eq!(node.value.as_deref(), Some("old"));
    let new = set(&client, "/k", "new").await;
    assert_eq!(event(&mut changes).await.node.modified_index, new);
}

#[tokio::test]
async fn a_dropped_watch_ends_at_the_server_too() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let wait = tokio::spawn(client.watch("/k").into_future());
    let mut changes = client.eternal_watch("/k").changes();
    let polled = tokio::time::timeout(Duration::from_millis(1), changes.next());
    assert!(polled.await.is_err());
    let reading = tokio::spawn(async move { changes.next().await.is_some() });
    until_watched(&etcd, 2).await;
    wait.abort();
    reading.abort();
    until_watched(&etcd, 0).await;
}
