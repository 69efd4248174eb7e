//! Leases of the etcd v2 driver against a real etcd.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer, node};
use common::words::{key, lease, open, secs, tag, value, write};
use tenure::etcd2::Etcd2;
use tenure::runtime::Instant;
use tenure::store::{Append, Attached, Expiry, Grant, KeyRenewal, Naming, Put, Renew, Withdraw};
use tenure::{ErrorKind, LeaseId, Store, StoreExt};

fn at(millis: u64) -> Instant {
    Instant::new(Duration::from_millis(millis))
}

#[tokio::test]
async fn a_renewal_extends_what_is_ours_and_reports_what_is_not() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let granted = store.grant(Grant::new(lease(), secs(5))).await.unwrap();
    assert_eq!(
        (granted.ttl, granted.skew),
        (secs(5), Duration::from_millis(500))
    );
    let mut keys = Vec::new();
    for name in ["kept", "emptied", "deleted", "stolen", "touched"] {
        let at = key(&format!("/r/{name}"));
        let own = if name == "emptied" { "" } else { name };
        store
            .set(&at, own.into(), Expiry::With(lease()))
            .await
            .unwrap();
        keys.push(Attached::new(at, own.into()));
    }
    store.remove(&keys[2].key).await.unwrap();
    write(&store, "/r/stolen", "by another").await;
    // A refresh that we know nothing of: as one of ours that timed out and landed later.
    let form = "refresh=true&ttl=5&prevValue=touched";
    assert_eq!(
        etcd.request("PUT", "/v2/keys/r/touched", form).unwrap().0,
        200
    );
    // A key of ours from an earlier life of this process.
    write(&store, "/r/adopted", "adopted").await;
    keys.push(Attached::new(key("/r/adopted"), "adopted".into()));

    for round in 1..=2 {
        let since = at(round);
        let renewed = store
            .renew(Renew::new(lease(), since, keys.clone()))
            .await
            .unwrap();
        assert_eq!((renewed.ttl, renewed.since), (secs(5), since));
        let (live, gone) = (KeyRenewal::Live { since }, KeyRenewal::Gone);
        let expected = [live, live, gone, gone, live, live];
        let found: Vec<KeyRenewal> = renewed.keys.iter().map(|it| it.1).collect();
        assert_eq!(found, expected, "round {round}");
    }
    let adopted = store.node(&key("/r/adopted")).await.unwrap().unwrap();
    assert!(adopted.ttl.is_some());
    assert_eq!(
        value(&store, "/r/stolen").await.as_deref(),
        Some("by another")
    );

    let other = LeaseId::new(9).unwrap();
    let unknown = store
        .renew(Renew::new(other, at(1), vec![]))
        .await
        .unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let bare = store
        .renew(Renew::new(lease(), at(9), vec![]))
        .await
        .unwrap();
    assert_eq!((bare.since, bare.keys.len()), (at(9), 0));
}

#[tokio::test]
async fn a_known_key_is_renewed_by_one_request() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    store.grant(Grant::new(lease(), secs(5))).await.unwrap();
    let node = store
        .append(Append::ticket(key("/l"), tag(1), Expiry::With(lease())))
        .await
        .unwrap()
        .node;
    let keys = vec![Attached::new(node.key, node.value)];
    for round in 0..3 {
        let before = etcd.metrics();
        store
            .renew(Renew::new(lease(), at(round), keys.clone()))
            .await
            .unwrap();
        let after = etcd.metrics();
        assert_eq!(after.http_requests - before.http_requests, 1);
    }
}

#[tokio::test]
async fn revoking_deletes_what_is_still_ours_and_can_be_repeated() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    store.grant(Grant::new(lease(), secs(60))).await.unwrap();
    for name in ["/a", "/b", "/c"] {
        store
            .set(&key(name), "own".into(), Expiry::With(lease()))
            .await
            .unwrap();
    }
    write(&store, "/b", "by another").await;
    store.remove(&key("/c")).await.unwrap();
    store.revoke(lease()).await.unwrap();
    store.revoke(lease()).await.unwrap();
    assert_eq!(value(&store, "/a").await, None);
    assert_eq!(value(&store, "/b").await.as_deref(), Some("by another"));
    let renewed = store
        .renew(Renew::new(lease(), at(1), vec![]))
        .await
        .unwrap_err();
    assert_eq!(renewed.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn revoking_asks_nothing_about_what_was_taken_back_before() {
    let etcd = Etcd::start();
    let store = open(&etcd);
    let dir = key("/line");
    store.grant(Grant::new(lease(), secs(60))).await.unwrap();
    for nonce in 0..20 {
        let expiry = Expiry::With(lease());
        let append = Append::ticket(dir.clone(), tag(nonce), expiry);
        let node = store.append(append).await.unwrap().node;
        let withdraw = Withdraw::new(dir.clone(), tag(nonce), Naming::Ticket);
        store.withdraw(withdraw.node(node)).await.unwrap();
        store.set(&key("/own"), "own".into(), expiry).await.unwrap();
        store.remove(&key("/own")).await.unwrap();
    }
    let before = etcd.metrics();
    store.revoke(lease()).await.unwrap();
    assert_eq!(etcd.metrics().http_requests, before.http_requests);
}

#[tokio::test]
async fn a_key_whose_renewal_hangs_keeps_no_other_from_being_renewed_and_told_of() {
    let keys: Vec<_> = (0..40).map(|it| key(&format!("/r/{it:02}"))).collect();
    let fake = Fake::new(
        |_, request| match request.lines().next().unwrap_or_default() {
            line if line.contains("/r/00") => Say::Nothing,
            line if line.starts_with("GET /v2/keys/r/") => {
                let at = &line["GET /v2/keys".len()..][.."/r/00".len()];
                Say::Raw(answer(200, 7, &node("get", at, "own", 5)))
            }
            line if line.starts_with("PUT /v2/keys/r/") => {
                let at = &line["PUT /v2/keys".len()..][.."/r/00".len()];
                Say::Raw(answer(200, 8, &node("update", at, "own", 8)))
            }
            _ => Say::Raw(answer(200, 7, "{}")),
        },
    )
    .await;
    let builder = Etcd2::builder(fake.url()).use_proxies(true);
    let store = builder.timeout(Duration::from_secs(60)).build().unwrap();
    store.grant(Grant::new(lease(), secs(60))).await.unwrap();
    let all = keys.iter().cloned();
    let all: Vec<_> = all.map(|it| Attached::new(it, "own".into())).collect();
    let renew = Renew::new(lease(), at(1), all).within(Duration::from_secs(2));
    let renewed = tokio::time::timeout(Duration::from_secs(10), store.renew(renew));
    let renewed = renewed.await.expect("nobody listens any more").unwrap();
    let mut expected = vec![KeyRenewal::Live { since: at(1) }; keys.len()];
    expected[0] = KeyRenewal::Unknown;
    let expected: Vec<_> = keys.into_iter().zip(expected).collect();
    assert_eq!(renewed.keys, expected);
}

#[tokio::test]
async fn a_hanging_server_is_given_up_in_time_and_its_keys_are_deleted_later() {
    let etcd = Etcd::start();
    let store = Etcd2::builder(etcd.url())
        .timeout(Duration::from_millis(900))
        .build()
        .unwrap();
    store.grant(Grant::new(lease(), secs(60))).await.unwrap();
    let own = Attached::new(key("/a"), "own".into());
    store
        .set(&own.key, "own".into(), Expiry::With(lease()))
        .await
        .unwrap();
    etcd.pause();
    let tried = async {
        let put = store
            .put(Put::new(key("/x"), "v", Expiry::Never))
            .await
            .unwrap_err();
        assert_eq!(put.kind(), ErrorKind::Ambiguous, "{put}");
        let get = store.node(&key("/a")).await.unwrap_err();
        assert_eq!(get.kind(), ErrorKind::Timeout, "{get}");
        let renewal = Renew::new(lease(), at(1), vec![own.clone()]);
        let renewal = store.renew(renewal).await.unwrap_err();
        assert_eq!(renewal.kind(), ErrorKind::Timeout, "{renewal}");
        assert!(store.revoke(lease()).await.is_err());
    };
    tokio::time::timeout(Duration::from_secs(10), tried)
        .await
        .unwrap();
    etcd.resume();
    store.revoke(lease()).await.unwrap();
    assert_eq!(value(&store, "/a").await, None);
}
