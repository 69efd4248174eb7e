//! The etcd v2 driver on three real members, of which one hangs, dies or is cut off.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::etcd::Etcd;
use futures_util::StreamExt;
use tenure::etcd2::{Builder, Etcd2};
use tenure::runtime::Instant;
use tenure::store::{Attached, Expiry, Grant, KeyRenewal, Put, Renew, Update, Updates, Watch};
use tenure::{Client, ErrorKind, Index, Key, LeaseId, Store, StoreExt, Ttl};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn options(members: &[Etcd]) -> Builder {
    let urls: Vec<String> = members.iter().map(Etcd::url).collect();
    Etcd2::builder(urls.join(","))
}

/// Writes until it is acknowledged: what comes between is ambiguous or unavailable.
async fn write(store: &Etcd2, at: &str, value: &str) -> Index {
    let write = async {
        loop {
            match store
                .put(Put::new(key(at), value.to_owned(), Expiry::Never))
                .await
            {
                Ok(written) => return written.index(),
                Err(error) => assert!(error.is_ambiguous() || error.is_transient(), "{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), write)
        .await
        .expect("a write within 30 s")
}

async fn opened(updates: &mut Updates) -> Index {
    match updates.next().await.unwrap().unwrap() {
        Update::Open(index) => index,
        other => panic!("{other:?} before the watch was open"),
    }
}

/// Reads on until the watch tells of the write at `index`.
async fn sees(updates: &mut Updates, index: Index) {
    let seen = async {
        loop {
            if let Update::Event(event) = updates.next().await.unwrap().unwrap() {
                assert!(event.index <= index, "{index} was left out");
                if event.index == index {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("an event within 30 s");
}

#[tokio::test]
async fn a_watch_on_a_member_that_hangs_moves_to_another() {
    let members = Etcd::start_three();
    let store = options(&members)
        .poll_period(Duration::from_millis(1_100))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    let index = write(&store, "/w/a", "before").await;
    write(&store, "/elsewhere", "so that there is progress to tell of").await;
    sees(&mut updates, index).await;
    // A quiet period, after which a poll is certainly open there.
    let update = tokio::time::timeout(Duration::from_secs(30), updates.next()).await;
    let update = update.unwrap().unwrap().unwrap();
    assert!(matches!(update, Update::Progress(_)), "{update:?}");
    members[0].pause();
    let index = write(&store, "/w/a", "meanwhile").await;
    sees(&mut updates, index).await;
    members[0].resume();
}

#[tokio::test]
async fn every_member_may_die_once_and_nothing_is_left_out() {
    let mut members = Etcd::start_three();
    let store = options(&members).build().unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    for member in &mut members {
        member.stop();
        let index = write(&store, "/k", "without one").await;
        sees(&mut updates, index).await;
        member.restart();
        let index = write(&store, "/k", "with all").await;
        sees(&mut updates, index).await;
    }
}

#[tokio::test]
async fn a_lease_outlives_the_member_it_was_renewed_through() {
    let members = Etcd::start_three();
    let store = options(&members).build().unwrap();
    let lease = LeaseId::new(7).unwrap();
    store.grant(Grant::new(lease, Ttl::DEFAULT)).await.unwrap();
    store
        .set(&key("/k"), "own".into(), Expiry::With(lease))
        .await
        .unwrap();
    members[0].pause();
    let keys = vec![Attached::new(key("/k"), "own".into())];
    let since = Instant::new(Duration::from_secs(1));
    let renewed = store.renew(Renew::new(lease, since, keys)).await.unwrap();
    assert_eq!(renewed.keys[0].1, KeyRenewal::Live { since });
    members[0].resume();
}

#[tokio::test]
async fn without_a_quorum_nothing_is_claimed() {
    let mut members = Etcd::start_three();
    let store = options(&members)
        .timeout(Duration::from_millis(1_500))
        .build()
        .unwrap();
    write(&store, "/k", "v").await;
    for member in &mut members[1..] {
        member.stop();
    }
    let error = store
        .put(Put::new(key("/k"), "w", Expiry::Never))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_costs_no_hold_however_short_its_term_is() {
    let members = Etcd::start_three();
    let leads = |it: &Etcd| it.metric("etcd_server_is_leader") > 0.0;
    let leader = loop {
        if let Some(leader) = members.iter().position(leads) {
            break leader;
        }
    };
    let hangs = (leader + 1) % 3;
    let urls = [hangs, leader, (leader + 2) % 3].map(|n| members[n].url());
    let ttl = Ttl::new(Duration::from_secs(3)).unwrap();
    // A third of what is left of such a term is less than an attempt may take; and with the wider
    // skew even less than what counts as unusually long.
    for max_skew in [500, 2_100].map(Duration::from_millis) {
        let store = Etcd2::builder(urls.join(",")).max_skew(max_skew);
        let client = Client::builder(store.build().unwrap()).ttl(ttl).build();
        let guard = client.lock("a").acquire().await.unwrap();
        let known = guard.deadline().unwrap();
        guard.extended(known).await.unwrap();
        members[hangs].pause();
        let lost = tokio::time::timeout(Duration::from_secs(4), guard.lost()).await;
        members[hangs].resume();
        assert!(lost.is_err(), "{max_skew:?}: {lost:?}");
        assert!(guard.is_held());
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_renewal_that_is_given_up_early_leaves_the_member_that_did_not_answer() {
    let members = Etcd::start_three();
    let leads = |it: &Etcd| it.metric("etcd_server_is_leader") > 0.0;
    let hangs = (0..3).find(|n| !leads(&members[*n])).unwrap();
    let urls = [hangs, (hangs + 1) % 3].map(|n| members[n].url());
    let store = Etcd2::new(urls.join(",")).unwrap();
    let lease = LeaseId::new(7).unwrap();
    store.grant(Grant::new(lease, Ttl::DEFAULT)).await.unwrap();
    let expiry = Expiry::With(lease);
    store.set(&key("/k"), "own".into(), expiry).await.unwrap();
    members[hangs].pause();
    let keys = vec![Attached::new(key("/k"), "own".into())];
    let since = Instant::new(Duration::from_secs(1));
    let renew = || {
        let renewal = store.renew(Renew::new(lease, since, keys.clone()));
        tokio::time::timeout(Duration::from_millis(500), renewal)
    };
    // Half of what an attempt may take, again and again.
    assert!(renew().await.is_err(), "it hangs");
    let renewed = renew().await.expect("the next is asked").unwrap();
    assert_eq!(renewed.keys[0].1, KeyRenewal::Live { since });
    members[hangs].resume();
}

#[tokio::test]
async fn a_write_that_is_given_up_early_again_and_again_gets_to_another_member() {
    let members = Etcd::start_three();
    let leads = |it: &Etcd| it.metric("etcd_server_is_leader") > 0.0;
    let hangs = (0..3).find(|n| !leads(&members[*n])).unwrap();
    let urls = [hangs, (hangs + 1) % 3].map(|n| members[n].url());
    let store = Etcd2::new(urls.join(",")).unwrap();
    store
        .set(&key("/k"), "0".into(), Expiry::Never)
        .await
        .unwrap();
    members[hangs].pause();
    let set = || {
        let (key, expiry) = (key("/k"), Expiry::Never);
        let store = store.clone();
        tokio::time::timeout(Duration::from_millis(500), async move {
            store.set(&key, "1".into(), expiry).await
        })
    };
    assert!(set().await.is_err(), "it hangs");
    let written = set().await;
    members[hangs].resume();
    written.expect("the next is asked").unwrap();
}
