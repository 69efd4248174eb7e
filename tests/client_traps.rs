//! What a real etcd v2 does to the unwary, and what the keys client does instead. Each test first
//! shows the trap with a bare request.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::time::{Duration, SystemTime};

use common::etcd::Etcd;
use common::words::{key, secs, until_watched};
use futures_util::StreamExt;
use proxy::{Match, Proxy};
use tenure::etcd2::client::{Action, Change, Lifetime};
use tenure::etcd2::{Client, Code};
use tenure::store::{Update, Watch};
use tenure::{ErrorKind, Index, Store, Ttl};

fn client(etcd: &Etcd) -> Client {
    Client::new(etcd.url()).unwrap()
}

/// A bare PUT: the body of the answer.
fn put(etcd: &Etcd, key: &str, form: &str) -> String {
    etcd.request("PUT", &format!("/v2/keys{key}"), form)
        .unwrap()
        .1
}

fn bare(etcd: &Etcd, key: &str) -> String {
    etcd.http(&format!("/v2/keys{key}")).unwrap().1
}

#[tokio::test]
async fn a_time_to_live_that_etcd_wraps_cannot_be_said() {
    let etcd = Etcd::start();
    let wrapped = put(&etcd, "/k", "value=x&ttl=9999999999");
    assert!(wrapped.contains(r#""action":"set""#) && !wrapped.contains("ttl"));
    let client = client(&etcd);
    for seconds in [0, 9_999_999_999, u64::MAX] {
        let write = client.set("/k", "x").ttl(Duration::from_secs(seconds));
        assert_eq!(write.await.unwrap_err().kind(), ErrorKind::InvalidTtl);
    }
    let longest = client.set("/k", "x").ttl(Lifetime::LONGEST).await.unwrap();
    assert_eq!(longest.node.ttl, Some(100 * 365 * 24 * 60 * 60));
    assert!(longest.node.expiration > Some(SystemTime::now()));
    let ceiled = client.set("/k", "x").ttl(Duration::from_millis(1_001));
    assert_eq!(ceiled.await.unwrap().node.ttl, Some(2));
}

#[tokio::test]
async fn a_condition_that_etcd_ignores_cannot_be_said() {
    let etcd = Etcd::start();
    put(&etcd, "/k", "value=1");
    assert!(put(&etcd, "/k", "value=2&prevIndex=0").contains(r#""action":"set""#));
    assert_eq!(Index::new(0), None);
    let created = put(&etcd, "/new", "value=1&prevExist=false&prevValue=never");
    assert!(created.contains(r#""action":"create""#));
    let (_, popped) = etcd
        .request("DELETE", "/v2/keys/k", "prevValue=wrong")
        .unwrap();
    assert!(popped.contains(r#""action":"delete""#), "{popped}");
    let client = client(&etcd);
    let write = client.create("/other", "1").prev_value("never");
    assert_eq!(write.await.unwrap_err().kind(), ErrorKind::InvalidOptions);
    client.set("/k", "1").await.unwrap();
    let error = client.delete("/k").prev_value("wrong").await.unwrap_err();
    assert_eq!(Code::of(&error), Some(Code::CompareFailed));
    assert_eq!(error.server_cause(), Some("[wrong != 1]"));
}

#[tokio::test]
async fn an_empty_value_can_be_compared_though_etcd_refuses_to() {
    let etcd = Etcd::start();
    put(&etcd, "/k", "value=");
    let refused = put(&etcd, "/k", "value=x&prevValue=");
    assert!(refused.contains(r#""errorCode":201"#), "{refused}");
    let client = client(&etcd);
    let swapped = client.test_and_set("/k", "x", "").await.unwrap();
    assert_eq!(swapped.action, Action::CompareAndSwap);
    let error = client.delete("/k").prev_value("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConditionFailed);
    client.set("/k", "").await.unwrap();
    client.delete("/k").prev_value("").await.unwrap();
}

#[tokio::test]
async fn a_directory_does_not_swallow_a_file() {
    let etcd = Etcd::start();
    put(&etcd, "/swallowed", "value=precious");
    assert!(put(&etcd, "/swallowed", "dir=true").contains(r#""dir":true"#));
    put(&etcd, "/emptied", "value=precious");
    put(&etcd, "/emptied", "dir=true&prevExist=true");
    assert!(bare(&etcd, "/emptied").contains(r#""value":"""#));
    let client = client(&etcd);
    client.set("/k", "precious").await.unwrap();
    client.make_dir("/k").await.unwrap_err();
    let lived = client.write("/k").dir().prev_exist(true).permanent();
    lived.await.unwrap_err();
    let there = client.read("/k").await.unwrap().node;
    assert_eq!(there.value.as_deref(), Some("precious"));
}

#[tokio::test]
async fn a_refresh_creates_nothing() {
    let etcd = Etcd::start();
    let created = put(&etcd, "/k", "refresh=true&ttl=9&prevExist=false");
    assert!(created.contains(r#""action":"create""#), "{created}");
    let (_, posted) = etcd
        .request("POST", "/v2/keys/line", "refresh=true&ttl=9")
        .unwrap();
    assert!(posted.contains(r#""action":"create""#), "{posted}");
    let client = client(&etcd);
    let refresh = client.refresh("/missing", secs(9));
    assert_eq!(
        refresh.clone().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    for refused in [refresh.clone().prev_exist(false), refresh.append()] {
        assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::InvalidOptions);
    }
    assert!(!client.contains("/missing").await.unwrap());
}

#[tokio::test]
async fn a_refresh_of_a_directory_works_though_a_bare_one_is_refused() {
    let etcd = Etcd::start();
    put(&etcd, "/d", "dir=true&ttl=50");
    let refused = put(&etcd, "/d", "refresh=true&ttl=500");
    assert!(refused.contains(r#""errorCode":102"#), "{refused}");
    let client = client(&etcd);
    let refreshed = client.refresh("/d", secs(500)).await.unwrap().node;
    assert!(refreshed.dir && refreshed.ttl.unwrap() > 400);
}

#[tokio::test]
async fn a_quorum_wait_would_answer_at_once_and_is_refused() {
    let etcd = Etcd::start();
    put(&etcd, "/k", "value=1");
    let answered = bare(&etcd, "/k?quorum=true&wait=true");
    assert!(answered.contains(r#""action":"get""#), "{answered}");
    let wait = client(&etcd).read("/k").quorum().wait();
    let wait = tokio::time::timeout(Duration::from_secs(20), wait.into_future());
    let wait = wait.await.expect("it is not sent");
    assert_eq!(wait.unwrap_err().kind(), ErrorKind::InvalidOptions);
}

#[tokio::test]
async fn the_index_of_creation_stays_with_every_write_but_a_set() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let created = client.create("/k", "1").await.unwrap().node.created_index;
    for (write, action, stays) in [
        (client.set("/k", "2"), Action::CompareAndSwap, true),
        (client.replace("/k", "3").permanent(), Action::Update, true),
        (
            client.test_and_set("/k", "4", "3"),
            Action::CompareAndSwap,
            true,
        ),
        (client.refresh("/k", secs(90)), Action::Update, true),
        (client.set("/k", "5").permanent(), Action::Set, false),
    ] {
        let written = write.await.unwrap();
        assert_eq!(written.action, action);
        assert_eq!(written.node.created_index == created, stays, "{action}");
        assert!(!written.created);
    }
}

#[tokio::test]
async fn a_value_comes_back_as_it_was_from_every_call() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    for value in [
        "",
        " ",
        "+",
        "a+b c&d=e;f%41",
        "<&>\u{2028}\u{2029}",
        "\0\n\t\u{7f}",
        "ü日本🦀e\u{301}",
        "\u{fffd}",
        "null",
        "\"\\/",
        "true",
        "\r\n\r\n",
    ] {
        let written = client.set("/k", value).await.unwrap().node;
        assert_eq!(written.value.as_deref(), Some(value));
        let seen = client
            .watch("/k")
            .index(written.modified_index)
            .await
            .unwrap();
        assert_eq!(seen.node, written);
        let swapped = client
            .test_and_set("/k", "other", value)
            .permanent()
            .await
            .unwrap();
        assert_eq!(swapped.prev_node.unwrap().value.as_deref(), Some(value));
        client.set("/k", value).await.unwrap();
        client.delete("/k").prev_value(value).await.unwrap();
    }
    // One that is not given is empty.
    let blank = client.write("/blank").await.unwrap().node;
    assert_eq!(blank.value.as_deref(), Some(""));
}

#[tokio::test]
async fn a_value_that_the_server_would_not_read_is_never_sent() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(proxy.url()).unwrap();
    let large = "x".repeat(3 << 20);
    client.set("/large", &large).permanent().await.unwrap();
    // The answer holds it twice.
    let again = client.set("/large", &large).permanent().await.unwrap();
    assert_eq!(again.prev_node.unwrap().value, Some(large));
    let before = proxy.count(&Match::any());
    let huge = client.set("/huge", "x".repeat(10 << 20)).permanent();
    assert_eq!(huge.await.unwrap_err().kind(), ErrorKind::InvalidValue);
    assert_eq!(proxy.count(&Match::any()), before);
}

#[tokio::test]
async fn a_watch_of_a_directory_alone_does_not_see_what_is_in_it() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let made = client.make_dir("/d").await.unwrap().node.modified_index;
    client.set("/d/x", "1").await.unwrap();
    let deleted = client.delete("/d").recursive().await.unwrap();
    let seen = client.watch("/d").index(made.next()).await.unwrap();
    assert_eq!((seen.action, seen.node), (Action::Delete, deleted.node));
}

#[tokio::test]
async fn a_directory_that_expires_is_one_event_that_wakes_who_waits_below_it() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.make_dir("/d").ttl(Ttl::MIN).await.unwrap();
    client.set("/d/x", "1").await.unwrap();
    let seen = client.watch("/d/x").await.unwrap();
    assert_eq!((seen.action, &*seen.node.key), (Action::Expire, "/d"));
    let before = seen.prev_node.unwrap();
    assert!(before.dir && before.expiration.is_some());
}

#[tokio::test]
async fn a_poll_that_a_dying_server_cuts_short_is_no_answer() {
    let mut etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/k", "1").await.unwrap();
    let wait = tokio::spawn(client.watch("/k").into_future());
    until_watched(&etcd, 1).await;
    let etcd = tokio::task::spawn_blocking(move || {
        etcd.restart();
        etcd
    })
    .await
    .unwrap();
    until_watched(&etcd, 1).await;
    client.set("/k", "2").await.unwrap();
    let seen = wait.await.unwrap().unwrap();
    assert_eq!(seen.node.value.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_key_that_breaks_the_rules_is_told_as_it_is_and_not_to_recipes() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = client
        .set("/w/start", "x")
        .await
        .unwrap()
        .node
        .modified_index;
    put(&etcd, "/w/a%0Ab", "value=x");
    let last = client.set("/w/last", "x").await.unwrap().node;
    let mut changes = client
        .eternal_watch("/w")
        .recursive()
        .index(start.next())
        .changes();
    match changes.next().await.unwrap().unwrap() {
        Change::Event(event) => assert_eq!(event.node.key, "/w/a\nb"),
        other => panic!("{other:?}"),
    }
    let listing = client.read("/w").sorted().await.unwrap().node;
    let odd = &listing.nodes[0];
    assert_eq!(odd.key, "/w/a\nb");
    let error = client.delete(odd).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidKey);
    let watch = Watch::tree(key("/w")).from(start.next());
    let mut updates = client.store().watch(watch);
    let event = loop {
        if let Update::Event(event) = updates.next().await.unwrap().unwrap() {
            break event;
        }
    };
    assert_eq!(
        (event.key.as_str(), event.index),
        ("/w/last", last.modified_index)
    );
}

#[tokio::test]
async fn every_code_that_a_real_server_gives_is_known_by_name() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/d/file", "1").await.unwrap();
    for (form, code) in [
        ("value=x&prevValue=", Code::PreviousValueRequired),
        ("value=x&ttl=soon", Code::TtlNotANumber),
        ("value=x&prevIndex=last", Code::IndexNotANumber),
        ("value=x&prevExist=perhaps", Code::InvalidField),
        ("value=%zz", Code::InvalidForm),
        ("value=x&refresh=true&ttl=9", Code::RefreshWithValue),
        ("refresh=true", Code::RefreshWithoutTtl),
    ] {
        let told = put(&etcd, "/d/file", form);
        let number = format!(r#""errorCode":{},"#, code.number());
        assert!(told.contains(&number), "{form}: {told}");
    }
    for (outcome, code) in [
        (client.read("/none").await, Code::KeyNotFound),
        (
            client.test_and_set("/d/file", "x", "y").permanent().await,
            Code::CompareFailed,
        ),
        (client.set("/d", "x").permanent().await, Code::NotAFile),
        (client.read("/d/file/x").await, Code::NotADirectory),
        (client.create("/d/file", "x").await, Code::KeyExists),
        (client.delete("/d").dir().await, Code::DirectoryNotEmpty),
    ] {
        let error = outcome.unwrap_err();
        assert_eq!(Code::of(&error), Some(code), "{error}");
        assert!(error.index().is_some() && error.server_message().is_some());
    }
    let root = put(&etcd, "/", "value=x");
    assert!(root.contains(r#""errorCode":107,"#), "{root}");
}
