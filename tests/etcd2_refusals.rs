//! Where etcd v2 by itself would do or say something else than the trait promises.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::etcd::Etcd;
use tenure::etcd2::Etcd2;
use tenure::store::{Append, Condition, Delete, Expiry, Naming, Put, Withdraw};
use tenure::{ErrorKind, Index, Key, LeaseId, Store, StoreExt, Tag, Ttl};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn with_a_file(etcd: &Etcd) -> (Etcd2, Index) {
    let store = Etcd2::new(etcd.url()).unwrap();
    let put = Put::new(key("/dir/file"), "x", Expiry::Never);
    let index = store.put(put).await.unwrap().index();
    (store, index)
}

/// Conditions that are compared by the server, and some that the driver must compare itself.
fn conditions(index: Index) -> [Condition; 5] {
    [
        Condition::Present,
        Condition::Value("x".into()),
        Condition::Value(Bytes::new()),
        Condition::Index(index),
        Condition::Both {
            value: Bytes::new(),
            index,
        },
    ]
}

async fn put(store: &Etcd2, at: &str, value: &str, when: Condition) -> ErrorKind {
    let put = Put::new(key(at), value.to_owned(), Expiry::Never).when(when);
    store.put(put).await.unwrap_err().kind()
}

async fn delete(store: &Etcd2, at: &str, when: Condition) -> ErrorKind {
    let delete = Delete::new(key(at)).when(when);
    store.delete(delete).await.unwrap_err().kind()
}

#[tokio::test]
async fn an_update_with_an_empty_value_gives_no_directory_a_time_to_live() {
    let etcd = Etcd::start();
    let (store, _) = with_a_file(&etcd).await;
    let before = store.node(&key("/dir")).await.unwrap();
    let ttl = Ttl::new(Duration::from_secs(60)).unwrap();
    let put = |at: &str| {
        let put = Put::new(key(at), "", Expiry::After(ttl)).when(Condition::Present);
        store.put(put)
    };
    let error = put("/dir").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAFile);
    assert_eq!(store.node(&key("/dir")).await.unwrap(), before);
    let error = put("/none").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let written = put("/dir/file").await.unwrap();
    let previous = written.previous.unwrap();
    assert!(written.node.value.is_empty() && written.node.ttl.is_some());
    assert_eq!(written.node.created, previous.created);
}

#[tokio::test]
async fn below_a_file_a_put_finds_no_directory_and_a_deletion_nothing() {
    let etcd = Etcd::start();
    let (store, index) = with_a_file(&etcd).await;
    for condition in conditions(index) {
        for value in ["", "v"] {
            let kind = put(&store, "/dir/file/x", value, condition.clone()).await;
            assert_eq!(kind, ErrorKind::NotADirectory, "{condition:?}");
        }
        let kind = delete(&store, "/dir/file/x", condition.clone()).await;
        assert_eq!(kind, ErrorKind::NotFound, "{condition:?}");
    }
    let removed = store.remove(&key("/dir/file/x")).await;
    assert_eq!(removed.unwrap(), None);
}

#[tokio::test]
async fn the_root_is_read_only_on_every_condition() {
    let etcd = Etcd::start();
    let (store, index) = with_a_file(&etcd).await;
    for condition in conditions(index) {
        for kind in [
            put(&store, "/", "", condition.clone()).await,
            put(&store, "/", "v", condition.clone()).await,
            delete(&store, "/", condition.clone()).await,
        ] {
            assert_eq!(kind, ErrorKind::RootReadOnly, "{condition:?}");
        }
    }
    let tree = store.delete(Delete::tree(Key::root())).await.unwrap_err();
    assert_eq!(tree.kind(), ErrorKind::RootReadOnly);
}

#[tokio::test]
async fn a_deletion_if_absent_fails_by_what_is_there() {
    let etcd = Etcd::start();
    let (store, _) = with_a_file(&etcd).await;
    for (at, kind) in [
        ("/dir/file", ErrorKind::ConditionFailed),
        ("/dir", ErrorKind::NotAFile),
        ("/none", ErrorKind::NotFound),
        ("/dir/file/x", ErrorKind::NotFound),
    ] {
        assert_eq!(delete(&store, at, Condition::Absent).await, kind, "{at}");
    }
}

#[tokio::test]
async fn a_withdrawal_spares_a_directory_in_the_nodes_place() {
    let etcd = Etcd::start();
    let (store, _) = with_a_file(&etcd).await;
    for (nonce, naming) in [(1, Naming::Tag), (2, Naming::Ticket)] {
        let (dir, tag) = (key("/line"), Tag::new(LeaseId::new(7).unwrap(), nonce));
        let append = match naming {
            Naming::Tag => Append::tagged(dir.clone(), tag, "x", Expiry::Never),
            _ => Append::ticket(dir.clone(), tag, Expiry::Never),
        };
        let node = store.append(append).await.unwrap().node;
        store.remove(&node.key).await.unwrap().unwrap();
        let below = Put::new(node.key.join("below").unwrap(), "", Expiry::Never);
        let below = store.put(below).await.unwrap().node.key;
        let withdraw = Withdraw::new(dir, tag, naming);
        for withdraw in [withdraw.clone(), withdraw.node(node)] {
            let withdrawn = store.withdraw(withdraw).await.unwrap();
            assert!(!withdrawn.removed, "{naming:?}");
        }
        assert!(store.node(&below).await.unwrap().is_some());
    }
}
