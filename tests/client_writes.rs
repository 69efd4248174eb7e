//! The keys client against a real etcd: what a write does, what it costs, and what it never does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer, node};
use common::words::secs;
use proxy::{Client as Sees, Fault, Match, Proxy};
use tenure::etcd2::Client;
use tenure::etcd2::client::{Action, Lifetime, Write};
use tenure::{ErrorKind, Index};

async fn behind_proxy(etcd: &Etcd) -> (Proxy, Client) {
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(proxy.url()).unwrap();
    (proxy, client)
}

fn client(etcd: &Etcd) -> Client {
    Client::new(etcd.url()).unwrap()
}

async fn value(client: &Client, key: &str) -> Option<String> {
    client.read(key).await.unwrap().node.value
}

async fn ttl(client: &Client, key: &str) -> Option<i64> {
    client.read(key).await.unwrap().node.ttl
}

async fn kind(write: Write) -> ErrorKind {
    write.await.unwrap_err().kind()
}

#[tokio::test]
async fn a_write_keeps_the_time_to_live_unless_its_loss_is_asked_for() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let (kept, gone) = (Some(90..=101), None);
    for (name, write, expected) in [
        ("set", client.set("/set", "2"), kept.clone()),
        ("replace", client.replace("/replace", "2"), kept.clone()),
        (
            "compared",
            client.test_and_set("/compared", "2", "1"),
            kept.clone(),
        ),
        ("blank", client.replace("/blank", ""), kept.clone()),
        (
            "shorter",
            client.set("/shorter", "2").ttl(secs(50)),
            Some(45..=50),
        ),
        (
            "permanent",
            client.set("/permanent", "2").permanent(),
            gone.clone(),
        ),
        (
            "swapped",
            client.test_and_set("/swapped", "2", "1").permanent(),
            gone,
        ),
    ] {
        client.create(name, "1").ttl(secs(100)).await.unwrap();
        write.await.unwrap();
        match (ttl(&client, name).await, expected) {
            (Some(left), Some(range)) => assert!(range.contains(&left), "{name}: {left}"),
            (found, expected) => assert_eq!(found.is_some(), expected.is_some(), "{name}"),
        }
    }
    // What etcd itself does.
    etcd.request("PUT", "/v2/keys/set", "value=3").unwrap();
    assert_eq!(ttl(&client, "/set").await, None);
}

#[tokio::test]
async fn a_write_costs_one_request_unless_it_has_to_look_first() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    let read = client.set("/k", "1").permanent().await.unwrap().node;
    let leased = client
        .set("/leased", "1")
        .ttl(secs(100))
        .await
        .unwrap()
        .node;
    for (write, expected) in [
        (client.set("/new", "1"), 2),
        (client.set("/k", "1"), 2),
        (client.replace("/k", ""), 2),
        (client.test_and_set("/k", "2", ""), 2),
        (client.set("/k", "1").permanent(), 1),
        (client.set("/k", "1").ttl(secs(9)), 1),
        (client.create("/created", "1"), 1),
        (client.append("/line", "1"), 1),
        (client.make_dir("/dir"), 1),
        (client.refresh("/k", secs(9)), 1),
        (client.update(&leased), 2),
    ] {
        let before = proxy.count(&Match::any());
        let shown = format!("{write:?}");
        write.await.unwrap();
        assert_eq!(proxy.count(&Match::any()) - before, expected, "{shown}");
    }
    let read = client.update(&read).await.unwrap_err();
    assert_eq!(read.kind(), ErrorKind::ConditionFailed);
}

#[tokio::test]
async fn a_write_that_somebody_overtakes_looks_again_and_keeps_the_newer_time_to_live() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    let other = Client::new(etcd.url()).unwrap();
    for (key, before) in [("/absent", None), ("/there", Some("1"))] {
        if let Some(value) = before {
            other.create(key, value).await.unwrap();
        }
        let puts = proxy.count(&Match::method("PUT"));
        proxy.inject(
            Match::method("PUT"),
            Fault::Delay(Duration::from_millis(300)),
        );
        let write = tokio::spawn(client.set(key, "mine").into_future());
        while proxy.count(&Match::method("PUT")) == puts {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let meanwhile = other.set(key, "theirs").ttl(secs(100)).await.unwrap();
        let written = write.await.unwrap().unwrap();
        assert_eq!(written.prev_node, Some(meanwhile.node), "{key}");
        assert_eq!(proxy.count(&Match::method("PUT")) - puts, 2);
        assert!(matches!(written.node.ttl, Some(95..=101)), "{written:?}");
        assert_eq!(value(&other, key).await.as_deref(), Some("mine"));
    }
}

#[tokio::test]
async fn a_key_in_its_last_instant_is_never_made_permanent() {
    // As etcd answers between the end of a time-to-live and the sweep.
    let dying = r#"{"action":"get","node":{"key":"/k","value":"x","expiration":"2026-11-22T08:16:58Z","ttl":-1,"modifiedIndex":13,"createdIndex":12}}"#;
    let fake = Fake::new(move |_, request| {
        if request.starts_with("GET") {
            Say::Raw(answer(200, 20, dying))
        } else {
            Say::Raw(answer(200, 21, &node("set", "/k", "y", 21)))
        }
    })
    .await;
    let client = Client::new(fake.url()).unwrap();
    let index = Index::new(13).unwrap();
    let patience = Duration::from_millis(200);
    for (write, expected) in [
        (client.replace("/k", "y"), ErrorKind::NotFound),
        (client.test_and_set("/k", "y", "x"), ErrorKind::NotFound),
        (
            client.write("/k").value("y").prev_index(index),
            ErrorKind::NotFound,
        ),
        (
            client.set("/k", "y").timeout(patience),
            ErrorKind::Unavailable,
        ),
    ] {
        assert_eq!(kind(write).await, expected);
    }
    let puts = fake
        .lines()
        .iter()
        .filter(|it| it.starts_with("PUT"))
        .count();
    assert_eq!(puts, 0);
}

#[tokio::test]
async fn a_write_to_a_key_that_is_being_swept_waits_for_that_and_creates_it_anew() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    etcd.request("PUT", "/v2/keys/k", "value=old&ttl=0")
        .unwrap();
    let written = client.set("/k", "new").await.unwrap();
    assert_eq!((written.action, written.created), (Action::Create, true));
    // Its own expiry is over, and cannot take the new one along.
    assert_eq!(client.read("/k").await.unwrap().node, written.node);
    assert_eq!(written.node.ttl, None);
}

#[tokio::test]
async fn an_update_writes_back_only_what_nobody_changed() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    for lifetime in [Lifetime::Ttl(Duration::from_secs(100)), Lifetime::Permanent] {
        client.set("/k", "1").lifetime(lifetime).await.unwrap();
        let mut mine = client.read("/k").await.unwrap().node;
        let stale = mine.clone();
        mine.value = Some("2".into());
        let updated = client.update(&mine).await.unwrap();
        assert_eq!(updated.action, Action::CompareAndSwap);
        assert_eq!(updated.node.created_index, stale.created_index);
        assert_eq!(value(&client, "/k").await.as_deref(), Some("2"));
        assert_eq!(updated.node.ttl.is_some(), lifetime != Lifetime::Permanent);
        assert_eq!(
            kind(client.update(&stale)).await,
            ErrorKind::ConditionFailed
        );
        // A refresh moves the index too.
        let fresh = client.read("/k").await.unwrap().node;
        client.refresh("/k", secs(100)).await.unwrap();
        assert_eq!(
            kind(client.update(&fresh)).await,
            ErrorKind::ConditionFailed
        );
    }
    let gone = client.pop("/k").await.unwrap();
    assert_eq!(gone.value.as_deref(), Some("2"));
    assert_eq!(kind(client.update(&gone)).await, ErrorKind::NotFound);
    client.make_dir("/d").await.unwrap();
    let dir = client.read("/d").await.unwrap().node;
    assert_eq!(kind(client.update(&dir)).await, ErrorKind::InvalidOptions);
}

#[tokio::test]
async fn every_condition_holds_or_fails_as_it_says_also_on_an_empty_value() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    for content in ["old", ""] {
        for lifetime in [
            Lifetime::Keep,
            Lifetime::Permanent,
            Lifetime::Ttl(Duration::from_secs(9)),
        ] {
            let write = || client.write("/k").value("new").lifetime(lifetime);
            let start = client.set("/k", content).permanent().await.unwrap();
            let index = start.node.modified_index;
            let other = if content.is_empty() { "old" } else { "" };
            let wrong = Index::new(1).unwrap();
            for failing in [
                write().prev_value(other),
                write().prev_index(wrong),
                write().prev_value(content).prev_index(wrong),
                write().prev_value(other).prev_index(index),
            ] {
                assert_eq!(kind(failing).await, ErrorKind::ConditionFailed);
            }
            assert_eq!(
                kind(write().prev_exist(false)).await,
                ErrorKind::AlreadyExists
            );
            let both = write()
                .prev_value(content)
                .prev_index(index)
                .prev_exist(true);
            assert_eq!(both.await.unwrap().action, Action::CompareAndSwap);
        }
    }
    for missing in [
        client.replace("/missing", "x"),
        client.test_and_set("/missing", "x", "y"),
        client.test_and_set("/missing", "x", ""),
        client.refresh("/missing", secs(9)),
        client.replace("/missing", "x").permanent(),
    ] {
        assert_eq!(kind(missing).await, ErrorKind::NotFound);
    }
    assert!(!client.contains("/missing").await.unwrap());
}

#[tokio::test]
async fn combinations_that_etcd_would_twist_are_refused_before_anything_is_sent() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    let index = Index::new(7).unwrap();
    let write = || client.write("/k");
    for (number, write) in [
        write().append().prev_value("x"),
        write().append().prev_index(index),
        write().append().prev_exist(true),
        write().append().refresh().ttl(secs(9)),
        write().refresh(),
        write().refresh().permanent(),
        write().refresh().ttl(secs(9)).value("x"),
        write().refresh().ttl(secs(9)).value(""),
        write().refresh().ttl(secs(9)).prev_exist(false),
        write().refresh().ttl(secs(9)).dir(),
        write().dir().value("x"),
        write().dir().prev_index(index),
        write().dir().prev_value("x"),
        write().dir().prev_exist(true),
        client.create("/k", "x").prev_value("y"),
        client.create("/k", "x").prev_index(index),
    ]
    .into_iter()
    .enumerate()
    {
        let error = write.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{number}: {error}");
        assert!(error.changed_nothing());
    }
    let delete = || client.delete("/k");
    for delete in [
        delete().recursive().prev_index(index),
        delete().recursive().prev_value("x"),
        delete().dir().prev_index(index),
        delete().dir().prev_value("x"),
    ] {
        let error = delete.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
    }
    for root in [
        kind(client.set("/", "x")).await,
        kind(client.refresh("/", secs(9))).await,
        kind(client.make_dir("/")).await,
        client.delete("/").recursive().await.unwrap_err().kind(),
    ] {
        assert_eq!(root, ErrorKind::RootReadOnly);
    }
    assert_eq!(proxy.count(&Match::any()), 0);
}

#[tokio::test]
async fn what_is_appended_is_listed_in_the_order_of_the_calls() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let mut made = Vec::new();
    for number in 0..12 {
        let appended = client.append("/line", number.to_string()).await.unwrap();
        assert_eq!((appended.action, appended.created), (Action::Create, true));
        assert_eq!(
            appended.node.key,
            format!("/line/{:020}", appended.node.created_index)
        );
        made.push(appended.node);
        // Others consume indexes too, so the numbers have gaps.
        client.set("/other", "x").await.unwrap();
    }
    let line = client.read("/line").sorted().await.unwrap().node;
    assert_eq!(line.nodes, made);
    let short = client.append("/line", "x").ttl(secs(50)).await.unwrap();
    assert!(short.node.ttl.is_some());
    assert!(
        client
            .append("/", "in the root")
            .await
            .unwrap()
            .node
            .key
            .len()
            == 21
    );
    let error = client.append("/other", "x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
    let dir = client.write("/line").append().dir().await.unwrap();
    assert!(dir.node.dir);
}

#[tokio::test]
async fn a_directory_and_a_file_never_take_each_others_place() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/file", "precious").await.unwrap();
    let made = client.make_dir("/dir").ttl(secs(100)).await.unwrap();
    assert!(made.created && made.node.dir && made.node.ttl.is_some());
    client.set("/dir/x", "1").await.unwrap();
    assert_eq!(
        kind(client.make_dir("/dir")).await,
        ErrorKind::AlreadyExists
    );
    // etcd would replace the file by a directory, or empty it.
    assert_eq!(
        kind(client.make_dir("/file")).await,
        ErrorKind::AlreadyExists
    );
    let change = |key: &str| client.write(key).dir().prev_exist(true);
    assert_eq!(
        kind(change("/file").permanent()).await,
        ErrorKind::NotADirectory
    );
    assert_eq!(
        kind(change("/file").ttl(secs(9))).await,
        ErrorKind::NotADirectory
    );
    assert_eq!(
        kind(change("/missing").permanent()).await,
        ErrorKind::NotFound
    );
    assert_eq!(value(&client, "/file").await.as_deref(), Some("precious"));
    // etcd would take an empty value for a directory's new time-to-live.
    for lifetime in [
        Lifetime::Keep,
        Lifetime::Permanent,
        Lifetime::Ttl(Duration::from_secs(9)),
    ] {
        for text in ["", "x"] {
            let replace = client.replace("/dir", text).lifetime(lifetime);
            assert_eq!(kind(replace).await, ErrorKind::NotAFile);
            let set = client.set("/dir", text).lifetime(lifetime);
            assert_eq!(kind(set).await, ErrorKind::NotAFile);
        }
    }
    assert!(matches!(ttl(&client, "/dir").await, Some(90..=100)));
    change("/dir").ttl(secs(500)).await.unwrap();
    assert!(matches!(ttl(&client, "/dir").await, Some(490..=500)));
    change("/dir").permanent().await.unwrap();
    assert_eq!(ttl(&client, "/dir").await, None);
    client.refresh("/dir", secs(300)).await.unwrap();
    assert!(matches!(ttl(&client, "/dir").await, Some(290..=300)));
    assert_eq!(value(&client, "/dir/x").await.as_deref(), Some("1"));
    assert_eq!(
        kind(client.set("/file/below", "x")).await,
        ErrorKind::NotADirectory
    );
}

#[tokio::test]
async fn a_refresh_leaves_the_value_and_moves_the_index() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let first = client.set("/k", "v").ttl(secs(10)).await.unwrap().node;
    let refreshed = client.refresh("/k", secs(100)).await.unwrap().node;
    assert_eq!(refreshed.value.as_deref(), Some("v"));
    assert_eq!(refreshed.created_index, first.created_index);
    assert!(refreshed.modified_index > first.modified_index);
    assert!(matches!(refreshed.ttl, Some(95..=100)));
    let stale = client
        .refresh("/k", secs(9))
        .prev_index(first.modified_index);
    assert_eq!(kind(stale).await, ErrorKind::ConditionFailed);
    let wrong = client.refresh("/k", secs(9)).prev_value("w");
    assert_eq!(kind(wrong).await, ErrorKind::ConditionFailed);
    client.refresh("/k", secs(9)).prev_value("v").await.unwrap();
    client.set("/blank", "").ttl(secs(10)).await.unwrap();
    let blank = client.refresh("/blank", secs(100)).prev_value("");
    assert!(matches!(blank.await.unwrap().node.ttl, Some(95..=100)));
    let wrong = client.refresh("/k", secs(9)).prev_value("");
    assert_eq!(kind(wrong).await, ErrorKind::ConditionFailed);
}

#[tokio::test]
async fn a_write_without_an_answer_is_sent_once_and_its_outcome_unknown() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    let node = client.set("/k", "1").permanent().await.unwrap().node;
    for fault in [Fault::LoseReply as fn(Sees) -> Fault, Fault::LoseRequest] {
        let index = client.set("/k", "1").permanent().await.unwrap();
        let index = index.node.modified_index;
        for write in [
            client.create(format!("/new{index}"), "x"),
            client.append("/line", "x"),
            client.set("/k", "2"),
            client
                .write("/k")
                .value("3")
                .prev_index(node.modified_index)
                .permanent(),
            client.refresh("/k", secs(60)),
        ] {
            let before = proxy.count(&Match::method("PUT")) + proxy.count(&Match::method("POST"));
            let method = if format!("{write:?}").contains("append: true") {
                "POST"
            } else {
                "PUT"
            };
            proxy.inject(Match::method(method), fault(Sees::IsClosed));
            let error = write.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
            assert!(!error.changed_nothing());
            let after = proxy.count(&Match::method("PUT")) + proxy.count(&Match::method("POST"));
            assert_eq!(after - before, 1);
        }
        let before = proxy.count(&Match::method("DELETE"));
        proxy.inject(Match::method("DELETE"), fault(Sees::IsClosed));
        let error = client.delete("/k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
        assert_eq!(proxy.count(&Match::method("DELETE")) - before, 1);
    }
    assert_eq!(proxy.pending_faults(), 0);
    // One of each two appends was done.
    let line = client.read("/line").await.unwrap().node;
    assert_eq!(line.nodes.len(), 1);
}
