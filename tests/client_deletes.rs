//! The keys client against a real etcd: what a deletion takes, and what it leaves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use common::etcd::Etcd;
use proxy::Proxy;
use tenure::etcd2::client::Action;
use tenure::etcd2::{Client, Code};
use tenure::{ErrorKind, Index};

async fn behind_proxy(etcd: &Etcd) -> (Proxy, Client) {
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(proxy.url()).unwrap();
    (proxy, client)
}

#[tokio::test]
async fn a_deletion_keeps_to_its_conditions() {
    let etcd = Etcd::start();
    let (proxy, client) = behind_proxy(&etcd).await;
    let long = "ü".repeat(3_000);
    for content in ["v", "", &long] {
        let index = client.set("/k", content).await.unwrap().node.modified_index;
        let wrong = Index::new(1).unwrap();
        for delete in [
            client.delete("/k").prev_value("other"),
            client.delete("/k").prev_index(wrong),
            client.delete("/k").prev_value(content).prev_index(wrong),
        ] {
            let error = delete.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConditionFailed);
        }
        let delete = client.delete("/k").prev_value(content).prev_index(index);
        let deleted = delete.await.unwrap();
        assert_eq!(deleted.action, Action::CompareAndDelete);
        assert_eq!(deleted.node.value, None);
        assert_eq!(deleted.prev_node.unwrap().value.as_deref(), Some(content));
        let error = client.delete("/k").prev_value(content).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    // In a body etcd would not see the conditions, and delete all the same.
    let log = proxy.log();
    for deletion in log.iter().filter(|it| it.method == "DELETE") {
        assert!(deletion.body.is_empty() && deletion.path.contains("?prev"));
    }
}

#[tokio::test]
async fn a_directory_is_deleted_only_as_one() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    client.set("/d/x", "1").await.unwrap();
    let refused = [
        (client.delete("/d").await, Code::NotAFile),
        (client.delete("/d").dir().await, Code::DirectoryNotEmpty),
        (client.delete("/d/x/y").await, Code::NotADirectory),
    ];
    for (outcome, code) in refused {
        assert_eq!(Code::of(&outcome.unwrap_err()), Some(code));
    }
    let error = client.pop("/d").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::NotAFile, Some("pop"))
    );
    let popped = client.pop("/d/x").await.unwrap();
    assert_eq!((&*popped.key, popped.value.as_deref()), ("/d/x", Some("1")));
    client.delete("/d").dir().await.unwrap();
    client.set("/d/e/x", "1").await.unwrap();
    let deleted = client.delete("/d").recursive().await.unwrap();
    assert!(deleted.node.dir && deleted.prev_node.is_some());
    assert!(!client.contains("/d").await.unwrap());
}
