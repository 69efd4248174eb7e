//! The store as its users see it: through the trait, on paused time where time matters.

mod watching;

use std::num::NonZeroUsize;
use std::time::Duration;

use super::Embedded;
use crate::error::ErrorKind;
use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::runtime::Runtime;
use crate::store::{
    Append, Commit, Condition, Delete, Expiry, Freshness, Get, Grant, Layout, Naming, Page, Put,
    Renew, Store, StoreExt, Withdraw,
};

fn store() -> Embedded {
    Embedded::builder()
        .runtime(Runtime::on_tokio_time(1))
        .build()
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn index(number: u64) -> Index {
    Index::new(number).unwrap()
}

fn lease(number: u64) -> LeaseId {
    LeaseId::new(number).unwrap()
}

fn ttl(millis: u64) -> Ttl {
    Ttl::new(Duration::from_millis(millis)).unwrap()
}

fn after(millis: u64) -> Expiry {
    Expiry::After(ttl(millis))
}

async fn set(store: &Embedded, path: &str, expiry: Expiry) {
    store.set(&key(path), "v".into(), expiry).await.unwrap();
}

#[tokio::test]
async fn it_says_what_it_can_do() {
    let about = store().about();
    assert_eq!((&*about.name, about.layout), ("embedded", Layout::Numbered));
    assert!(about.commits && about.cancels);
}

#[tokio::test]
async fn a_refusal_says_what_where_and_when() {
    let store = store();
    set(&store, "/a", Expiry::Never).await;
    let put = Put::new(key("/a"), "x", Expiry::Never).when(Condition::Value("w".into()));
    let error = store.put(put).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "put /a on embedded: Compare failed: [w != v] (code 101, at index 4)"
    );
    let error = store
        .renew(Renew::new(lease(7), store.shared.clock.now(), vec![]))
        .await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "renew on embedded: Lease not found: lease 7 is gone (code 100, at index 4)"
    );
    let long = Put::new(key("/a"), vec![b'x'; 1_000_000], Expiry::Never);
    let condition = Condition::Value(vec![b'y'; 1_000_000].into());
    let error = store.put(long.when(condition)).await.unwrap_err();
    assert!(error.to_string().len() < 500);
}

#[tokio::test]
async fn every_refusal_has_the_kind_that_the_trait_promises() {
    let store = store();
    set(&store, "/f", Expiry::Never).await;
    set(&store, "/d/x", Expiry::Never).await;
    let put = |path, condition| store.put(Put::new(key(path), "", Expiry::Never).when(condition));
    let at = || Condition::Index(index(99));
    for (outcome, kind) in [
        (put("/f", Condition::Absent).await, ErrorKind::AlreadyExists),
        (put("/none", Condition::Present).await, ErrorKind::NotFound),
        (put("/none", at()).await, ErrorKind::NotFound),
        (put("/f", at()).await, ErrorKind::ConditionFailed),
        (put("/d", Condition::Any).await, ErrorKind::NotAFile),
        (put("/f/x", Condition::Any).await, ErrorKind::NotADirectory),
        (put("/", Condition::Any).await, ErrorKind::RootReadOnly),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), kind);
    }
    let leased = Put::new(key("/f"), "", Expiry::With(lease(9)));
    assert_eq!(
        store.put(leased).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );

    let delete = |path, condition| store.delete(Delete::new(key(path)).when(condition));
    for (outcome, kind) in [
        (delete("/none", Condition::Any).await, ErrorKind::NotFound),
        (delete("/f/x", Condition::Any).await, ErrorKind::NotFound),
        (delete("/f", at()).await, ErrorKind::ConditionFailed),
        (
            delete("/f", Condition::Absent).await,
            ErrorKind::ConditionFailed,
        ),
        (delete("/d", Condition::Any).await, ErrorKind::NotAFile),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), kind);
    }

    let commit = |commit| store.commit(commit);
    let absent = Commit::new().check(key("/f"), Condition::Absent);
    let missing = Commit::new().check(key("/none"), Condition::Present);
    let twice = Commit::new()
        .delete(Delete::new(key("/f")))
        .delete(Delete::new(key("/f")));
    for (outcome, kind) in [
        (commit(absent).await, ErrorKind::ConditionFailed),
        (commit(missing).await, ErrorKind::ConditionFailed),
        (commit(twice).await, ErrorKind::InvalidOptions),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), kind);
    }

    let deep = key(&format!("/{}", "x".repeat(2040)));
    let append = Append::ticket(deep, Tag::new(lease(1), 1), Expiry::Never);
    assert_eq!(
        store.append(append).await.unwrap_err().kind(),
        ErrorKind::InvalidKey
    );
    assert_eq!(store.shared.lock().index(), index(5));
}

#[tokio::test]
async fn absence_is_an_empty_view() {
    let store = store();
    set(&store, "/f", Expiry::Never).await;
    for get in [
        Get::node(key("/none")),
        Get::node(key("/f/x")),
        Get::children(key("/none")),
        Get::children(key("/f")),
    ] {
        let view = store.get(get).await.unwrap();
        assert_eq!(
            (view.nodes, view.more, view.index),
            (vec![], false, index(4))
        );
    }
}

#[tokio::test]
async fn children_come_in_key_order_by_pages_and_with_their_values_or_not() {
    let store = store();
    for name in ["c", "a", "_hidden", "b", "sub/x"] {
        set(&store, &format!("/d/{name}"), Expiry::Never).await;
    }
    let names = |view: &crate::store::View| -> Vec<String> {
        view.nodes
            .iter()
            .map(|node| node.key.name().to_owned())
            .collect()
    };
    let whole = store
        .get(Get::children(key("/d")).keys_only())
        .await
        .unwrap();
    assert_eq!(names(&whole), ["a", "b", "c", "sub"]);
    assert!(whole.nodes[3].is_dir && whole.nodes.iter().all(|node| node.value.is_empty()));

    let two = NonZeroUsize::new(2).unwrap();
    let first = store
        .get(Get::children(key("/d")).page(Page::first(two)))
        .await
        .unwrap();
    assert_eq!(
        (names(&first), first.more),
        (vec!["a".into(), "b".into()], true)
    );
    assert_eq!(first.nodes[0].text(), Some("v"));
    let page = Page::after(two, key("/d/b"), first.index);
    let last = store
        .get(Get::children(key("/d")).page(page))
        .await
        .unwrap();
    assert_eq!(
        (names(&last), last.more),
        (vec!["c".into(), "sub".into()], false)
    );

    let astray = Page::after(two, key("/e"), first.index);
    let error = store
        .get(Get::children(key("/d")).page(astray))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions);
}

#[tokio::test]
async fn an_index_that_was_never_reached_is_another_stores() {
    let store = store();
    let at = |number| Get::node(key("/a")).fresh(Freshness::AtLeast(index(number)));
    assert!(store.get(at(3)).await.is_ok());
    assert_eq!(
        store.get(at(4)).await.unwrap_err().kind(),
        ErrorKind::ClusterChanged
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_tells_how_long_it_has_and_on_which_lease_it_hangs() {
    let store = store();
    set(&store, "/a", after(2_500)).await;
    let granted = store
        .grant(Grant::new(lease(7), ttl(10_000)))
        .await
        .unwrap();
    assert_eq!((granted.ttl, granted.skew), (ttl(10_000), Duration::ZERO));
    set(&store, "/b", Expiry::With(lease(7))).await;
    tokio::time::advance(Duration::from_millis(1_000)).await;
    let node = store.node(&key("/a")).await.unwrap().unwrap();
    assert_eq!(
        (node.ttl, node.lease),
        (Some(Duration::from_millis(1_500)), None)
    );
    let node = store.node(&key("/b")).await.unwrap().unwrap();
    assert_eq!(
        (node.ttl, node.lease),
        (Some(Duration::from_secs(9)), Some(lease(7)))
    );
    tokio::time::advance(Duration::from_millis(1_500)).await;
    assert_eq!(store.node(&key("/a")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_counts_from_when_it_was_sent_and_a_gone_lease_stays_gone() {
    let store = store();
    let grant = Grant::new(lease(7), ttl(2_000));
    store.grant(grant).await.unwrap();
    set(&store, "/a", Expiry::With(lease(7))).await;
    let renew = || Renew::new(lease(7), store.shared.clock.now(), vec![]);
    tokio::time::advance(Duration::from_millis(1_999)).await;
    let request = renew();
    let renewed = store.renew(request.clone()).await.unwrap();
    assert_eq!((renewed.since, renewed.ttl), (request.at, ttl(2_000)));
    assert!(renewed.keys.is_empty());
    tokio::time::advance(Duration::from_millis(2_000)).await;
    assert_eq!(
        store.renew(renew()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(store.node(&key("/a")).await.unwrap(), None);
    store.revoke(lease(7)).await.unwrap();
}

#[tokio::test]
async fn an_append_tells_who_is_before_and_a_withdrawn_one_fails() {
    let store = store();
    let tag = |nonce| Tag::new(lease(5), nonce);
    let ticket = |nonce| Append::ticket(key("/l"), tag(nonce), Expiry::Never);
    let first = store.append(ticket(1)).await.unwrap();
    assert_eq!(first.before.as_deref(), Some(&[][..]));
    let second = store.append(ticket(2)).await.unwrap();
    assert_eq!(second.before, Some(vec![first.node.clone()]));
    let read = Layout::Numbered.ticket(&key("/l"), &second.node).unwrap();
    assert_eq!((read.tag, read.position.sequence.get()), (Some(tag(2)), 5));
    let job = Append::tagged(key("/jobs"), tag(3), "raw", Expiry::Never);
    assert_eq!(store.append(job.clone()).await.unwrap().before, None);
    assert_eq!(
        store.append(job).await.unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );

    let withdraw = Withdraw::new(key("/l"), tag(1), Naming::Ticket).node(first.node);
    let withdrawn = store.withdraw(withdraw.clone()).await.unwrap();
    assert!(withdrawn.removed && withdrawn.settled);
    assert_eq!(withdrawn.index, index(7));
    let again = store.withdraw(withdraw).await.unwrap();
    assert!(!again.removed && again.settled);
    let unknown = Withdraw::new(key("/l"), tag(4), Naming::Ticket);
    assert!(!store.withdraw(unknown).await.unwrap().removed);
    let error = store.append(ticket(4)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.key()),
        (ErrorKind::ConditionFailed, Some(&key("/l")))
    );
}

#[tokio::test]
async fn a_commit_answers_for_each_operation() {
    let store = store();
    set(&store, "/b", Expiry::Never).await;
    let commit = Commit::new()
        .check(key("/b"), Condition::Present)
        .put(Put::new(key("/a"), "x", Expiry::Never))
        .delete(Delete::new(key("/b")));
    let committed = store.commit(commit).await.unwrap();
    assert_eq!((committed.index, committed.nodes.len()), (index(6), 2));
    let node = committed.nodes[0].as_ref().unwrap();
    assert_eq!((node.text(), node.modified), (Some("x"), index(5)));
    assert_eq!(committed.nodes[1], None);
}

#[tokio::test]
async fn values_are_bytes() {
    let store = store();
    let bytes: &[u8] = &[0, 0xff, b'\n'];
    let written = store
        .set(&key("/a"), bytes.into(), Expiry::Never)
        .await
        .unwrap();
    assert_eq!((&written.node.value[..], written.previous), (bytes, None));
    let deleted = store.remove(&key("/a")).await.unwrap().unwrap();
    assert_eq!(deleted.previous, Some(written.node));
}

#[tokio::test]
async fn a_line_of_twenty_thousand_is_listed_and_joined() {
    let store = store();
    for number in 0..20_000 {
        set(&store, &format!("/l/{number:020}"), Expiry::Never).await;
    }
    assert_eq!(store.children(&key("/l")).await.unwrap().len(), 20_000);
    let append = Append::ticket(key("/l"), Tag::new(lease(1), 1), Expiry::Never);
    let before = store.append(append).await.unwrap().before.unwrap();
    assert_eq!(before.len(), 20_000);
    assert!(before.is_sorted_by_key(|node| node.key.clone()));
}
