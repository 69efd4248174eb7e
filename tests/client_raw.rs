//! The HTTP API as it is, on a real etcd.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::etcd::Etcd;
use serde_json::{Value, json};
use tenure::ErrorKind;
use tenure::etcd2::Client;
use tenure::etcd2::client::Method;

#[tokio::test]
async fn a_raw_call_puts_its_parameters_where_etcd_reads_them() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    let value = "a&b=c d+e%;ü";
    let put = client.api_execute(
        Method::Put,
        "/v2/keys/k%20k",
        [("value", value), ("ttl", "60")],
    );
    let put = put.await.unwrap();
    assert_eq!(put.status, 201);
    let got = client
        .api_execute(Method::Get, "/v2/keys/k%20k", [])
        .await
        .unwrap();
    let body: Value = got.json().unwrap();
    assert_eq!(
        (&body["node"]["key"], &body["node"]["value"]),
        (&json!("/k k"), &json!(value))
    );
    assert_eq!(body["node"]["ttl"], 60);
    assert_eq!(
        got.etcd_index.unwrap().get(),
        body["node"]["modifiedIndex"].as_u64().unwrap()
    );
    assert!(
        got.raft_index > Some(0) && got.raft_term > Some(0),
        "{got:?}"
    );
    assert_eq!(got.server, etcd.url());

    // The condition of a deletion counts only in the query.
    let wrong = [("prevValue", "another")];
    let error = client
        .api_execute(Method::Delete, "/v2/keys/k%20k", wrong)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::ConditionFailed, Some(101))
    );
    let right = [("prevValue", value)];
    client
        .api_execute(Method::Delete, "/v2/keys/k%20k", right)
        .await
        .unwrap();

    let posted = client.api_execute(Method::Post, "/v2/keys/queue", [("value", "job")]);
    let posted: Value = posted.await.unwrap().json().unwrap();
    assert_eq!(posted["action"], "create");
}

#[tokio::test]
async fn a_raw_call_with_json_reaches_the_apis_that_take_it() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    let body = json!({"role": "r", "permissions": {"kv": {"read": ["/a"], "write": []}}});
    let path = "/v2/auth/roles/r";
    let made = client
        .api_execute_json(Method::Put, path, Some(body.clone()))
        .await
        .unwrap();
    assert_eq!(made.status, 201);
    let read = client
        .api_execute_json(Method::Get, path, None)
        .await
        .unwrap();
    assert_eq!(read.json::<Value>().unwrap(), body);
    let again = client
        .api_execute_json(Method::Put, path, Some(body))
        .await
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");
    assert!(again.detail().contains("PUT /v2/auth/roles/r"), "{again}");
}

#[tokio::test]
async fn a_path_that_would_mean_something_else_is_refused_before_the_wire() {
    // Nobody listens there: what is sent would be unreachable.
    let client = Client::new("http://127.0.0.1:1").unwrap();
    for path in ["v2/keys", "", "/a?wait=true", "/a#b", "/a b", "/ü", "/a\n"] {
        let error = client.api_execute(Method::Get, path, []).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{path:?}: {error}");
    }
    let long = format!("/v2/keys/{}", "x".repeat(4_000));
    let error = client.api_execute(Method::Get, long, []).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
    assert!(error.detail().contains("4,096"), "{error}");
    let body = Some(json!({}));
    let error = client
        .api_execute_json(Method::Get, "/a", body)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
}

#[tokio::test]
async fn a_page_that_is_no_json_is_told_as_such() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    let metrics = client
        .api_execute(Method::Get, "/metrics", [])
        .await
        .unwrap();
    assert!(metrics.text().contains("etcd_server_has_leader 1"));
    assert_eq!(metrics.etcd_index, None);
    let error = metrics.json::<Value>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}
