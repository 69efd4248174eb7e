//! The etcd v2 driver against a real etcd: reads, writes and tickets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::etcd::{Etcd, Options};
use common::words::{key, lease, open, secs, tag, value, write};
use tenure::etcd2::Etcd2;
use tenure::store::{
    Append, Commit, Condition, Delete, Expiry, Freshness, Get, Layout, Naming, Put, Withdraw,
};
use tenure::{ErrorKind, Index, Key, Store, StoreExt, Ttl};

#[tokio::test]
async fn odd_keys_and_values_come_back_as_they_were() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let keys = [
        "/odd/a b",
        "/odd/a?x=1",
        "/odd/h#y",
        "/odd/p%41",
        "/odd/p%2F",
        "/odd/a+b",
        "/odd/...",
        "/odd/a&b=c;d:e@f",
        "/odd/ü 日本",
        "/odd/\"<>\\^`{|}",
    ];
    let values = [
        "a+b c&d=e;f%41",
        "",
        "\u{fffd}",
        "\n\t\u{1}",
        "<&>\u{2028}",
        "ü日本🦀",
        " ",
    ];
    for text in keys {
        for expected in values {
            write(&store, text, expected).await;
            let node = store.node(&key(text)).await.unwrap().unwrap();
            assert_eq!(node.text(), Some(expected), "{text}");
            assert_eq!(node.key, key(text));
        }
    }
    let mut listed: Vec<Key> = keys.into_iter().map(key).collect();
    listed.sort();
    let children = store.children(&key("/odd")).await.unwrap();
    assert_eq!(
        children.into_iter().map(|it| it.key).collect::<Vec<_>>(),
        listed
    );
}

#[tokio::test]
async fn what_v2_cannot_store_is_refused_before_anything_is_sent() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let before = etcd.metrics();
    let binary = Bytes::from_static(b"\xff\x00");
    let put = Put::new(key("/a"), binary.clone(), Expiry::Never);
    let conditional = Put::new(key("/a"), "x", Expiry::Never);
    let long = key(&format!("/{}", " ".repeat(1_500)));
    for (put, kind) in [
        (put, ErrorKind::InvalidValue),
        (
            conditional.clone().when(Condition::Value(binary)),
            ErrorKind::InvalidValue,
        ),
        (Put::new(long, "x", Expiry::Never), ErrorKind::InvalidKey),
        (
            conditional
                .clone()
                .when(Condition::Created(Index::new(1).unwrap())),
            ErrorKind::Unsupported,
        ),
        (
            Put::new(key("/a"), "x", Expiry::With(lease())),
            ErrorKind::NotFound,
        ),
    ] {
        assert_eq!(store.put(put).await.unwrap_err().kind(), kind);
    }
    let commit = store.commit(Commit::new()).await.unwrap_err();
    assert_eq!(commit.kind(), ErrorKind::Unsupported);
    assert_eq!(etcd.metrics(), before);
}

#[tokio::test]
async fn every_condition_of_a_put_holds_or_fails_as_it_says() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let wrong = Index::new(1).unwrap();
    let both = |value: &'static str, index| Condition::Both {
        value: value.into(),
        index,
    };
    for missing in [
        Condition::Present,
        Condition::Value("x".into()),
        Condition::Value(Bytes::new()),
        Condition::Index(wrong),
        both("x", wrong),
        both("", wrong),
    ] {
        let put = Put::new(key("/missing"), "v", Expiry::Never).when(missing.clone());
        let error = store.put(put).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{missing:?}");
    }
    for content in ["old", ""] {
        let other = if content.is_empty() { "old" } else { "" };
        let index = write(&store, "/k", content).await;
        for (condition, kind) in [
            (Condition::Absent, ErrorKind::AlreadyExists),
            (Condition::Value(other.into()), ErrorKind::ConditionFailed),
            (Condition::Index(wrong), ErrorKind::ConditionFailed),
            (both(other, index), ErrorKind::ConditionFailed),
            (both(content, wrong), ErrorKind::ConditionFailed),
        ] {
            let put = Put::new(key("/k"), "new", Expiry::Never).when(condition.clone());
            let error = store.put(put).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{content:?} {condition:?}");
        }
        for condition in [
            Condition::Any,
            Condition::Present,
            Condition::Value(content.into()),
            Condition::Index(index),
            both(content, index),
        ] {
            let index = write(&store, "/k", content).await;
            let condition = match condition {
                Condition::Index(_) => Condition::Index(index),
                Condition::Both { .. } => both(content, index),
                other => other,
            };
            let put = Put::new(key("/k"), "new", Expiry::Never).when(condition.clone());
            let written = store.put(put).await.unwrap();
            assert_eq!(
                written.previous.unwrap().text(),
                Some(content),
                "{condition:?}"
            );
            assert_eq!(value(&store, "/k").await.as_deref(), Some("new"));
        }
    }
}

#[tokio::test]
async fn every_condition_of_a_deletion_holds_or_fails_as_it_says() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let long = "ü".repeat(3_000);
    for content in ["short", "", long.as_str()] {
        let index = write(&store, "/k", content).await;
        let wrong = Index::new(index.get() - 1).unwrap();
        let delete = Delete::new(key("/k"));
        for condition in [
            Condition::Value("other".into()),
            Condition::Index(wrong),
            Condition::Both {
                value: content.to_owned().into(),
                index: wrong,
            },
        ] {
            let error = store
                .delete(delete.clone().when(condition))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConditionFailed);
        }
        let own = Condition::Value(content.to_owned().into());
        let deleted = store
            .delete(delete.clone().when(own.clone()))
            .await
            .unwrap();
        assert_eq!(deleted.previous.unwrap().text(), Some(content));
        assert!(deleted.index > index);
        for condition in [Condition::Any, own, Condition::Index(index)] {
            let error = store
                .delete(delete.clone().when(condition))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
    }
}

#[tokio::test]
async fn directories_and_files_do_not_pass_for_each_other() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    write(&store, "/dir/file", "x").await;
    let put = async |at: &str| {
        let put = Put::new(key(at), "x", Expiry::Never);
        store.put(put).await.unwrap_err().kind()
    };
    assert_eq!(put("/dir").await, ErrorKind::NotAFile);
    assert_eq!(put("/dir/file/below").await, ErrorKind::NotADirectory);
    assert_eq!(put("/").await, ErrorKind::RootReadOnly);
    let children = store.children(&key("/dir/file")).await.unwrap_err();
    assert_eq!(children.kind(), ErrorKind::NotADirectory);
    assert_eq!(store.node(&key("/dir/file/below")).await.unwrap(), None);
    let dir = store.node(&key("/dir")).await.unwrap().unwrap();
    assert!(dir.is_dir && dir.value.is_empty());

    store.remove(&key("/dir/file")).await.unwrap().unwrap();
    let empty = store.delete(Delete::new(key("/dir"))).await.unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::NotAFile);
    write(&store, "/dir/a/b", "x").await;
    let below = store
        .delete(Delete::new(key("/dir/a/b/c")))
        .await
        .unwrap_err();
    assert_eq!(below.kind(), ErrorKind::NotFound);
    let guarded = Delete::tree(key("/dir")).when(Condition::Present);
    let guarded = store.delete(guarded).await.unwrap_err();
    assert_eq!(guarded.kind(), ErrorKind::InvalidOptions);
    store.delete(Delete::tree(key("/dir"))).await.unwrap();
    assert_eq!(store.node(&key("/dir/a/b")).await.unwrap(), None);
}

#[tokio::test]
async fn children_are_direct_sorted_and_not_hidden() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    assert!(store.children(&key("/list")).await.unwrap().is_empty());
    for name in ["c", "a", "_hidden", "b/deep", "aa"] {
        write(&store, &format!("/list/{name}"), "x").await;
    }
    let children = store.children(&key("/list")).await.unwrap();
    let names: Vec<&str> = children.iter().map(|it| it.key.name()).collect();
    assert_eq!(names, ["a", "aa", "b", "c"]);
    assert!(children[2].is_dir && !children[0].is_dir);
    let bare = store
        .get(Get::children(key("/list")).keys_only())
        .await
        .unwrap();
    assert!(bare.nodes.iter().all(|it| it.value.is_empty()) && !bare.more);
    assert_eq!(value(&store, "/list/_hidden").await.as_deref(), Some("x"));
}

#[tokio::test]
async fn only_a_linearizable_read_costs_a_proposal() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let index = write(&store, "/k", "v").await;
    let before = etcd.metrics().proposals;
    for freshness in [Freshness::Any, Freshness::AtLeast(index)] {
        let view = store
            .get(Get::node(key("/k")).fresh(freshness))
            .await
            .unwrap();
        assert!(view.index >= index && view.nodes.len() == 1);
    }
    assert_eq!(etcd.metrics().proposals, before);
    let missing = store.get(Get::node(key("/none"))).await.unwrap();
    assert!(missing.index >= index && missing.nodes.is_empty());
    assert_eq!(etcd.metrics().proposals, before + 1);
    let future = Freshness::AtLeast(Index::new(1 << 40).unwrap());
    let error = store
        .get(Get::node(key("/k")).fresh(future))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
}

#[tokio::test]
async fn a_time_to_live_is_rounded_up_and_never_lost_by_accident() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let ttl = Ttl::new(Duration::from_millis(1_500)).unwrap();
    let written = store
        .set(&key("/k"), "v".into(), Expiry::After(ttl))
        .await
        .unwrap();
    assert_eq!(written.node.ttl, Some(Duration::from_secs(2)));
    while let Some(node) = store.node(&key("/k")).await.unwrap() {
        // One that is past its time and not swept yet would have nothing left.
        assert!(node.ttl.unwrap() > Duration::ZERO);
    }
    let written = store
        .set(&key("/k"), "v".into(), Expiry::Never)
        .await
        .unwrap();
    assert_eq!(written.node.ttl, None);
}

#[tokio::test]
async fn tickets_line_up_in_the_order_of_their_appends() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let (dir, expiry) = (key("/_locks/a"), Expiry::After(secs(60)));
    let mut places = Vec::new();
    for nonce in 0..3 {
        let append = Append::ticket(dir.clone(), tag(nonce), expiry).body(format!("b {nonce}"));
        let node = store.append(append).await.unwrap().node;
        let ticket = Layout::Numbered.ticket(&dir, &node).unwrap();
        assert_eq!(
            (ticket.tag, ticket.position.sequence.get()),
            (Some(tag(nonce)), node.created.get())
        );
        places.push(ticket.position);
    }
    assert!(places.is_sorted());
    let append = Append::tagged(dir.clone(), tag(7), "job", expiry);
    let node = store.append(append.clone()).await.unwrap().node;
    assert_eq!(
        (node.key.name(), node.text()),
        (tag(7).to_string().as_str(), Some("job"))
    );
    let again = store.append(append).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_withdrawal_takes_back_what_is_ours_and_nothing_else() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let (dir, expiry) = (key("/_locks/a"), Expiry::After(secs(60)));
    let withdraw = |nonce| Withdraw::new(dir.clone(), tag(nonce), Naming::Ticket);

    let never = store.withdraw(withdraw(1)).await.unwrap();
    assert_eq!((never.removed, never.settled), (false, false));

    let long = "x".repeat(5_000);
    for (nonce, body) in [(1, ""), (2, "proposal"), (3, long.as_str())] {
        for known in [true, false] {
            let append = Append::ticket(dir.clone(), tag(nonce), expiry).body(body.to_owned());
            let node = store.append(append).await.unwrap().node;
            // Somebody else's ticket stays, and the node may have been proclaimed anew.
            let other = Append::ticket(dir.clone(), tag(99), expiry);
            let other = store.append(other).await.unwrap().node;
            let value = Layout::Numbered.ticket_value(tag(nonce), format!("{body}!").as_bytes());
            store.set(&node.key, value, expiry).await.unwrap();
            let withdraw = withdraw(nonce);
            let withdraw = if known {
                withdraw.node(node.clone())
            } else {
                withdraw
            };
            let done = store.withdraw(withdraw.clone()).await.unwrap();
            assert_eq!(
                (done.removed, done.settled),
                (true, true),
                "{nonce} {known}"
            );
            assert_eq!(store.node(&node.key).await.unwrap(), None);
            let again = store.withdraw(withdraw).await.unwrap();
            assert_eq!((again.removed, again.settled), (false, known));
            assert!(store.remove(&other.key).await.unwrap().is_some());
        }
    }

    let append = Append::ticket(dir.clone(), tag(4), expiry);
    let node = store.append(append).await.unwrap().node;
    store.set(&node.key, "stolen".into(), expiry).await.unwrap();
    let done = store
        .withdraw(withdraw(4).node(node.clone()))
        .await
        .unwrap();
    assert!(!done.removed);
    assert_eq!(
        value(&store, node.key.as_str()).await.as_deref(),
        Some("stolen")
    );

    let jobs = key("/jobs");
    let named = Withdraw::new(jobs.clone(), tag(5), Naming::Tag);
    assert!(!store.withdraw(named.clone()).await.unwrap().settled);
    store
        .append(Append::tagged(jobs, tag(5), "job", expiry))
        .await
        .unwrap();
    assert!(store.withdraw(named).await.unwrap().removed);
}

#[tokio::test]
async fn a_restart_is_survived_by_reads_and_by_writes_that_were_never_sent() {
    let mut etcd = Etcd::start();
    let store = open(&etcd);
    write(&store, "/k", "v").await;
    etcd.stop();
    let (reading, restarted) = tokio::join!(
        store.put(Put::new(key("/late"), "v", Expiry::Never)),
        tokio::task::spawn_blocking(move || {
            etcd.restart();
            etcd
        })
    );
    let _etcd = restarted.unwrap();
    // The pooled connection may have seen the end only when the request was on its way.
    if let Err(error) = reading {
        assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    }
    assert_eq!(value(&store, "/k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn another_cluster_behind_the_same_address_is_noticed() {
    let mut etcd = Etcd::start();
    let store = open(&etcd);
    store.probe().await.unwrap();
    etcd.rebuild();
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged, "{error}");
}

#[tokio::test]
async fn an_etcd_without_v2_says_how_to_turn_it_on() {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    });
    let error = open(&etcd).probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("--enable-v2"), "{error}");
}

#[tokio::test]
async fn a_user_is_asked_for_and_accepted() {
    let etcd = Etcd::start();
    let json = |method: &str, path: &str, body: &str| {
        assert!(etcd.json(method, path, body).unwrap().0 < 300, "{path}");
    };
    json(
        "PUT",
        "/v2/auth/users/root",
        r#"{"user":"root","password":"secret"}"#,
    );
    json("PUT", "/v2/auth/enable", "");
    let as_root = Etcd2::builder(etcd.url())
        .user("root", "secret")
        .build()
        .unwrap();
    let revoke = r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#;
    assert!(
        etcd.json_as("cm9vdDpzZWNyZXQ=", "PUT", "/v2/auth/roles/guest", revoke)
            .unwrap()
            .0
            < 300
    );
    write(&as_root, "/k", "v").await;
    let refused = open(&etcd)
        .put(Put::new(key("/k"), "v", Expiry::Never))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.kind(), refused.code()),
        (ErrorKind::Unauthorized, Some(110))
    );
    let in_url = etcd.url().replace("://", "://root:secret@");
    let in_url = Etcd2::new(in_url).unwrap();
    assert_eq!(value(&in_url, "/k").await.as_deref(), Some("v"));
}
