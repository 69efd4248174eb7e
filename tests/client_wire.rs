//! What the HTTP API of a real etcd v2 says besides the usual, and what the client makes of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::time::Duration;

use common::etcd::Etcd;
use common::words::secs;
use proxy::{Match, Proxy};
use serde_json::{Value, json};
use tenure::etcd2::client::Method;
use tenure::etcd2::{Client, Code};
use tenure::{Error, ErrorKind};

const LONG: Duration = Duration::from_secs(30);

fn client(etcd: &Etcd) -> Client {
    Client::new(etcd.url()).unwrap()
}

/// Parameters of a raw call.
type Given<'a> = &'a [(&'a str, &'a str)];

async fn raw(client: &Client, method: Method, path: &str, params: Given<'_>) -> Error {
    let call = client.api_execute(method, path, params.iter().copied());
    match call.await {
        Err(error) => error,
        Ok(answer) => panic!("{path} {params:?}: {answer:?}"),
    }
}

#[tokio::test]
async fn each_refusal_of_a_real_server_becomes_the_error_that_its_code_says() {
    use Method::{Delete, Get, Put};
    let etcd = Etcd::start();
    let client = client(&etcd);
    client.set("/d/f", "1").await.unwrap();
    let many = "x".repeat(11 << 20);
    let cases: &[(Method, &str, Given<'_>, Code, ErrorKind)] = &[
        (Get, "/none", &[], Code::KeyNotFound, ErrorKind::NotFound),
        (
            Put,
            "/d/f",
            &[("prevValue", "2")],
            Code::CompareFailed,
            ErrorKind::ConditionFailed,
        ),
        (
            Put,
            "/d",
            &[("value", "x")],
            Code::NotAFile,
            ErrorKind::NotAFile,
        ),
        (
            Put,
            "/d",
            &[("dir", "true")],
            Code::NotAFile,
            ErrorKind::NotAFile,
        ),
        (
            Get,
            "/d/f/x",
            &[],
            Code::NotADirectory,
            ErrorKind::NotADirectory,
        ),
        (
            Method::Post,
            "/d/f",
            &[],
            Code::NotADirectory,
            ErrorKind::NotADirectory,
        ),
        (
            Put,
            "/d/f",
            &[("prevExist", "false")],
            Code::KeyExists,
            ErrorKind::AlreadyExists,
        ),
        (
            Put,
            "/",
            &[("value", "x")],
            Code::RootReadOnly,
            ErrorKind::RootReadOnly,
        ),
        (
            Delete,
            "/",
            &[("recursive", "true")],
            Code::RootReadOnly,
            ErrorKind::RootReadOnly,
        ),
        (
            Delete,
            "/",
            &[("prevIndex", "9")],
            Code::NotAFile,
            ErrorKind::NotAFile,
        ),
        (
            Delete,
            "/d",
            &[("dir", "true")],
            Code::DirectoryNotEmpty,
            ErrorKind::DirectoryNotEmpty,
        ),
        (
            Put,
            "/d/f",
            &[("prevValue", "")],
            Code::PreviousValueRequired,
            ErrorKind::InvalidValue,
        ),
        (
            Put,
            "/d/f",
            &[("ttl", "1.5")],
            Code::TtlNotANumber,
            ErrorKind::InvalidTtl,
        ),
        (
            Put,
            "/d/f",
            &[("ttl", "-1")],
            Code::TtlNotANumber,
            ErrorKind::InvalidTtl,
        ),
        (
            Put,
            "/d/f",
            &[("prevIndex", "-1")],
            Code::IndexNotANumber,
            ErrorKind::InvalidOptions,
        ),
        (
            Get,
            "/d",
            &[("waitIndex", "x")],
            Code::IndexNotANumber,
            ErrorKind::InvalidOptions,
        ),
        (
            Put,
            "/d/f",
            &[("prevExist", "None")],
            Code::InvalidField,
            ErrorKind::InvalidOptions,
        ),
        (
            Get,
            "/d",
            &[("recursive", "")],
            Code::InvalidField,
            ErrorKind::InvalidOptions,
        ),
        (
            Put,
            "/d/f",
            &[("wait", "true")],
            Code::InvalidField,
            ErrorKind::InvalidOptions,
        ),
        (
            Put,
            "/d/f",
            &[("value", &many)],
            Code::InvalidForm,
            ErrorKind::InvalidValue,
        ),
        (
            Put,
            "/d/f",
            &[("refresh", "true"), ("ttl", "9"), ("value", "x")],
            Code::RefreshWithValue,
            ErrorKind::InvalidOptions,
        ),
        (
            Put,
            "/d/f",
            &[("refresh", "true")],
            Code::RefreshWithoutTtl,
            ErrorKind::InvalidOptions,
        ),
        (
            Get,
            "/d",
            &[("wait", "true"), ("waitIndex", "1")],
            Code::EventIndexCleared,
            ErrorKind::HistoryLost,
        ),
    ];
    // So that the first index is no longer kept.
    for _ in 0..1_100 {
        etcd.request("PUT", "/v2/keys/noise", "value=x").unwrap();
    }
    for (method, key, params, code, kind) in cases {
        let error = raw(&client, *method, &format!("/v2/keys{key}"), params).await;
        let shown = format!("{key} {code:?}: {error}");
        assert_eq!(
            (Code::of(&error), error.kind()),
            (Some(*code), *kind),
            "{shown}"
        );
        assert!(
            error.server_message().is_some_and(|it| !it.is_empty()),
            "{shown}"
        );
        // What is refused before it is looked at has the index 0, which is none.
        let looked_at = !(201..=212).contains(&code.number());
        assert_eq!(error.index().is_some(), looked_at, "{shown}");
        assert_eq!(error.server(), Some(&*etcd.url()), "{shown}");
    }
    let node = client.read("/d/f").await.unwrap().node;
    assert_eq!(node.value.as_deref(), Some("1"), "refused is refused");
}

#[tokio::test]
async fn a_redirect_of_a_real_server_leaves_an_append_an_append() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(proxy.url()).unwrap();
    // etcd cleans such paths by a 301, after which others send a GET.
    for (path, key) in [
        ("/v2/keys//q", "/q/"),
        ("/v2/keys/./q", "/q/"),
        ("/v2/keys/x/../q", "/q/"),
        ("/v2/keys/x/%2e%2e/q", "/q/"),
    ] {
        let before = proxy.count(&Match::method("POST"));
        let posted = client.api_execute(Method::Post, path, [("value", "job")]);
        let posted: Value = posted.await.unwrap().json().unwrap();
        assert_eq!(posted["action"], "create", "{path}");
        assert_eq!(posted["node"]["value"], "job", "{path}");
        assert!(posted["node"]["key"].as_str().unwrap().starts_with(key));
        let sent = proxy.count(&Match::method("POST")) - before;
        assert_eq!(sent, 2, "{path}: no redirect");
    }
    let got = client.api_execute(Method::Get, "/v2/keys//q", [("sorted", "true")]);
    let got: Value = got.await.unwrap().json().unwrap();
    assert_eq!(got["node"]["nodes"].as_array().unwrap().len(), 4);
    let fixed = Client::builder(proxy.url()).allow_redirect(false);
    let fixed = fixed.build_client().unwrap();
    let error = raw(&fixed, Method::Post, "/v2/keys//q", &[("value", "job")]).await;
    assert!(error.to_string().contains("/v2/keys/q"), "{error}");
    assert_eq!(client.read("/q").await.unwrap().node.nodes.len(), 4);
}

#[tokio::test]
async fn answers_without_a_node_or_a_body_are_answers() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let form = [("value", "x"), ("noValueOnSuccess", "true")];
    let put = client.api_execute(Method::Put, "/v2/keys/k", form);
    let put = put.await.unwrap();
    assert_eq!(put.json::<Value>().unwrap(), json!({"action": "set"}));
    assert!(put.etcd_index.is_some());
    // The members API answers 204 without a body.
    let [member] = &client.members().await.unwrap()[..] else {
        panic!("one member");
    };
    let path = format!("/v2/members/{}", member.id);
    let body = json!({"peerURLs": member.peer_urls});
    let updated = client.api_execute_json(Method::Put, path, Some(body));
    let updated = updated.await.unwrap();
    assert_eq!((updated.status, &*updated.text()), (204, ""));
    // Its 404 is not that of a key.
    let unknown = client.api_execute_json(Method::Delete, "/v2/members/abc", None);
    let error = unknown.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::NotFound, None),
        "{error}"
    );
    assert!(error.to_string().contains("abc"), "{error}");
    let none = client.api_execute_json(Method::Post, "/v2/members", Some(json!({})));
    assert_eq!(none.await.unwrap_err().kind(), ErrorKind::InvalidOptions);
}

#[tokio::test]
async fn what_is_no_path_of_etcds_is_told_as_such() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let error = raw(&client, Method::Get, "/v2/keys/%zz", &[]).await;
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    // No variant of a path with a slash at its end, and a verb that a path does not take.
    let error = raw(&client, Method::Get, "/v2/machines/", &[]).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let error = raw(&client, Method::Post, "/v2/stats/self", &[]).await;
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("405"), "{error}");
    assert_eq!(error.code(), None);
}

#[tokio::test]
async fn a_key_that_etcd_still_shows_after_its_end_is_not_there() {
    let members = Etcd::start_three();
    let writer = client(&members[0]);
    writer.make_dir("/d").await.unwrap();
    writer.set("/d/stays", "x").permanent().await.unwrap();
    for key in ["/d/goes", "/goes"] {
        writer.set(key, "x").ttl(secs(3)).await.unwrap();
    }
    let mut members = members.into_iter();
    let etcd = members.next().unwrap();
    let shown = async {
        while !etcd.http("/v2/keys/goes").is_ok_and(|it| it.0 == 200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, shown).await.expect("written");
    // Without a majority nothing is swept, and the time-to-live becomes negative.
    drop(members);
    let over = async {
        while !etcd.http("/v2/keys/goes").unwrap().1.contains(r#""ttl":-"#) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, over).await.expect("its end");
    let client = client(&etcd);
    let error = client.read("/goes").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(!client.contains("/d/goes").await.unwrap());
    let listing = client.read("/d").recursive().await.unwrap().node;
    let keys: Vec<_> = listing.subtree().map(|it| &*it.key).collect();
    assert_eq!(keys, ["/d/stays"]);
    let (_, bare) = etcd.http("/v2/keys/d").unwrap();
    assert!(bare.contains("/d/goes"), "etcd shows it: {bare}");
}

#[tokio::test]
async fn keys_expire_one_by_one_and_a_directory_at_once() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let start = client
        .set("/w/_", "x")
        .permanent()
        .await
        .unwrap()
        .etcd_index;
    client.make_dir("/w/dir").ttl(secs(3)).await.unwrap();
    client.set("/w/dir/x", "x").permanent().await.unwrap();
    client.set("/w/later", "x").ttl(secs(2)).await.unwrap();
    client.set("/w/sooner", "x").ttl(secs(1)).await.unwrap();
    let mut at = start;
    let mut told = Vec::new();
    while told.len() < 3 {
        let watch = client.watch("/w").recursive().index(at).timeout(LONG);
        let seen = watch.await.unwrap();
        at = seen.node.modified_index.next();
        if seen.action.to_string() == "expire" {
            assert!(seen.prev_node.unwrap().expiration.is_some());
            told.push((seen.node.key, seen.node.dir));
        }
    }
    let expected = [("/w/sooner", false), ("/w/later", false), ("/w/dir", true)];
    assert_eq!(told, expected.map(|(key, dir)| (key.to_owned(), dir)));
}

#[tokio::test]
async fn a_directory_keeps_its_index_and_outlives_what_was_in_it() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let made = client.make_dir("/d").await.unwrap().node;
    client.set("/d/x", "1").permanent().await.unwrap();
    let refreshed = client.refresh("/d", secs(500)).await.unwrap().node;
    // The reply says otherwise, so it is of no use as a condition: etcd takes none on a directory.
    assert!(refreshed.modified_index > made.modified_index);
    let read = client.read("/d").await.unwrap().node;
    assert_eq!(read.modified_index, made.modified_index);
    assert_eq!(read.created_index, made.created_index);
    // What is made on the way has no end, no event and no index of its own.
    let leaf = client.set("/p/q/k", "1").ttl(secs(1)).await.unwrap().node;
    let gone = client.watch("/p").recursive();
    let gone = gone.index(leaf.modified_index.next()).timeout(LONG);
    assert_eq!(gone.await.unwrap().node.key, "/p/q/k");
    let first = client.watch("/p").recursive().index(made.modified_index);
    assert_eq!(first.await.unwrap().node, leaf);
    let left = client.read("/p/q").await.unwrap().node;
    assert_eq!((left.ttl, left.created_index), (None, leaf.created_index));
    assert_eq!(left.leaves().count(), 0);
}
