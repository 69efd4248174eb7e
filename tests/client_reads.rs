//! The keys client against a real etcd: what a read finds, and what it refuses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer};
use common::words::{secs, until_watched};
use proxy::{Match, Proxy};
use tenure::ErrorKind;
use tenure::etcd2::client::{Action, Node};
use tenure::etcd2::{Client, Code};

fn client(etcd: &Etcd) -> Client {
    Client::new(etcd.url()).unwrap()
}

async fn behind_proxy(etcd: &Etcd) -> (Proxy, Client) {
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(proxy.url()).unwrap();
    (proxy, client)
}

fn keys<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<&'a str> {
    nodes.map(|it| &*it.key).collect()
}

#[tokio::test]
async fn a_file_is_read_with_all_that_the_server_tells() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let first = client.set("a/b", "one").await.unwrap();
    assert!(first.created && first.prev_node.is_none());
    let second = client.set("/a/b", "two").ttl(secs(60)).await.unwrap();
    assert!(!second.created);
    assert_eq!(second.action, Action::Set);
    assert_eq!(second.prev_node.as_ref(), Some(&first.node));
    let read = client.get("/a/b").await.unwrap();
    assert_eq!((read.action, read.created), (Action::Get, false));
    assert_eq!(read.node.key, "/a/b");
    assert_eq!(read.node.value.as_deref(), Some("two"));
    assert!(!read.node.dir && read.node.nodes.is_empty());
    assert!(matches!(read.node.ttl, Some(59..=60)), "{read:?}");
    // By the server's clock, so only another of its times compares with it.
    let later = client.create("/later", "").ttl(secs(600)).await.unwrap();
    let between = later.node.expiration.unwrap();
    let between = between.duration_since(read.node.expiration.unwrap());
    let between = between.unwrap().as_secs_f64();
    assert!((540.0..560.0).contains(&between), "{between}");
    // A set begins a key anew.
    assert_eq!(read.node.created_index, second.node.modified_index);
    assert_eq!(read.etcd_index, read.node.modified_index);
    assert!(read.raft_index.unwrap() > 0 && read.raft_term.unwrap() > 0);
    assert_eq!(&*read.server, etcd.url());
}

#[tokio::test]
async fn a_directory_is_listed_as_deep_and_as_ordered_as_asked_for() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    for key in [
        "/d/b",
        "/d/a/y",
        "/d/a/x",
        "/d/c",
        "/d/_hidden/z",
        "/d/a/_h",
    ] {
        client.set(key, "").permanent().await.unwrap();
    }
    client.make_dir("/d/empty").await.unwrap();
    let flat = client.read("d").sorted().await.unwrap().node;
    assert!(flat.dir && flat.value.is_none());
    assert_eq!(keys(flat.children()), ["/d/a", "/d/b", "/d/c", "/d/empty"]);
    assert_eq!(flat.subtree().count(), 4);
    let deep = client.read("d").sorted().recursive().await.unwrap().node;
    let all = ["/d/a", "/d/a/x", "/d/a/y", "/d/b", "/d/c", "/d/empty"];
    assert_eq!(keys(deep.subtree()), all);
    assert_eq!(keys(deep.leaves()), ["/d/a/x", "/d/a/y", "/d/b", "/d/c"]);
    assert_eq!(deep.find("/d/a/x").unwrap().value.as_deref(), Some(""));
    // What is hidden is there for whoever names it.
    let hidden = client.read("/d/_hidden").await.unwrap().node;
    assert_eq!(keys(hidden.children()), ["/d/_hidden/z"]);
}

#[tokio::test]
async fn an_empty_directory_is_not_its_own_leaf() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.make_dir("/empty").await.unwrap();
    let node = client.read("/empty").recursive().await.unwrap().node;
    assert!(node.dir);
    assert_eq!((node.leaves().count(), node.children().count()), (0, 0));
}

#[tokio::test]
async fn the_root_is_called_by_its_name() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/a", "1").await.unwrap();
    for root in ["/", ""] {
        let read = client.read(root).await.unwrap();
        assert_eq!((&*read.node.key, read.node.dir), ("/", true));
        assert_eq!(keys(read.node.children()), ["/a"]);
        assert_eq!(read.node.modified_index, read.etcd_index);
    }
}

#[tokio::test]
async fn only_what_is_not_there_is_not_contained() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/d/file", "1").await.unwrap();
    for (key, there) in [
        ("/d/file", true),
        ("/d", true),
        ("/", true),
        ("/missing", false),
        ("/d/file/below", false),
    ] {
        assert_eq!(client.contains(key).await.unwrap(), there, "{key}");
    }
    let error = client.contains("/bad//key").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidKey);
    let fake = Fake::new(|_, _| {
        let body = r#"{"errorCode":110,"message":"The request requires user authentication","cause":"Insufficient credentials","index":0}"#;
        Say::Raw(answer(401, 0, body))
    })
    .await;
    let refused = Client::new(fake.url()).unwrap();
    let error = refused.contains("/a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(Code::of(&error), Some(Code::Unauthorized));
}

#[tokio::test]
async fn an_expired_key_is_never_read() {
    // As etcd 3.4 answers between the end of a time-to-live and the sweep.
    let gone = r#"{"action":"get","node":{"key":"/a","value":"x","expiration":"2026-11-22T08:16:58Z","ttl":-1,"modifiedIndex":13,"createdIndex":12}}"#;
    let listed = r#"{"action":"get","node":{"key":"/a","dir":true,"nodes":[{"key":"/a/old","value":"x","expiration":"2026-11-22T08:16:58Z","modifiedIndex":13,"createdIndex":12},{"key":"/a/new","value":"y","modifiedIndex":14,"createdIndex":14}],"modifiedIndex":12,"createdIndex":12}}"#;
    let fake = Fake::new(move |_, request| {
        let body = if request.contains("recursive") {
            listed
        } else {
            gone
        };
        Say::Raw(answer(200, 20, body))
    })
    .await;
    let client = Client::new(fake.url()).unwrap();
    let error = client.read("/a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.index().unwrap().get(), 20);
    assert!(!client.contains("/a").await.unwrap());
    let listing = client.read("/a").recursive().await.unwrap().node;
    assert_eq!(keys(listing.subtree()), ["/a/new"]);
}

#[tokio::test]
async fn a_quorum_read_is_a_proposal_and_a_plain_one_is_not() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/a", "1").await.unwrap();
    let proposals = || etcd.metric("etcd_server_proposals_applied_total") as u64;
    let before = proposals();
    client.read("/a").await.unwrap();
    assert_eq!(proposals(), before);
    client.read("/a").quorum().await.unwrap();
    assert_eq!(proposals(), before + 1);
}

#[tokio::test]
async fn a_read_whose_options_exclude_each_other_is_refused_before_it_is_sent() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    let index = client.set("/a", "1").permanent().await.unwrap().etcd_index;
    let before = proxy.count(&Match::any());
    for read in [
        client.read("/a").wait().quorum(),
        client.read("/a").wait().sorted(),
        client.read("/a").wait_index(index),
    ] {
        let read = tokio::time::timeout(Duration::from_secs(20), read.into_future());
        let error = read.await.expect("it is not sent").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
        assert_eq!(error.operation(), Some("read"));
    }
    assert_eq!(proxy.count(&Match::any()), before);
}

#[tokio::test]
async fn a_wait_is_the_next_change_or_a_timeout() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let first = client.set("/a", "1").permanent().await.unwrap().node;
    let wait = client.read("/a").wait().wait_index(first.modified_index);
    assert_eq!(wait.await.unwrap().node, first);
    let wait = client.read("/d").wait().recursive();
    let wait = tokio::spawn(wait.into_future());
    until_watched(&etcd, 1).await;
    client.set("/d/x", "2").permanent().await.unwrap();
    let change = wait.await.unwrap().unwrap();
    assert_eq!((&*change.node.key, change.created), ("/d/x", true));
    let wait = client.read("/a").wait().timeout(Duration::from_millis(50));
    let wait = tokio::time::timeout(Duration::from_secs(20), wait.into_future());
    let error = wait.await.expect("its own timeout ends it").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(
        error.to_string().contains("no change within 50ms"),
        "{error}"
    );
}

#[tokio::test]
async fn the_servers_own_words_are_kept_apart_from_ours() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let error = client.read("/zz/y").await.unwrap_err();
    assert_eq!(error.server_message(), Some("Key not found"));
    assert_eq!(error.server_cause(), Some("/zz"));
    assert_eq!(Code::of(&error), Some(Code::KeyNotFound));
    assert!(error.index().is_some() && error.server() == Some(&*etcd.url()));
    let text = error.to_string();
    assert_eq!(
        text.to_lowercase().matches("key not found").count(),
        1,
        "{text}"
    );
    let error = client.read("/no//key").await.unwrap_err();
    assert_eq!((error.server_message(), error.server_cause()), (None, None));
}

#[tokio::test]
async fn a_call_ends_when_its_own_timeout_does() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    client.set("/a", "1").await.unwrap();
    proxy.silence().await;
    let calls = async {
        let read = client.read("/a").timeout(Duration::from_millis(100));
        let write = client.set("/a", "2").permanent();
        let write = write.timeout(Duration::from_millis(100));
        (read.await.unwrap_err(), write.await.unwrap_err())
    };
    // The default is 5 s, of which an attempt gets 1 s at least.
    let calls = tokio::time::timeout(Duration::from_millis(900), calls);
    let (read, write) = calls.await.expect("each ends in time");
    assert_eq!(read.kind(), ErrorKind::Timeout, "{read}");
    assert_eq!(write.kind(), ErrorKind::Ambiguous, "{write}");
}
