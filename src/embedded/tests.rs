//! The store as its users see it: through the trait, on paused time where time matters.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};

use super::Embedded;
use super::journal::{Entry, Journal};
use crate::error::ErrorKind;
use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::runtime::Runtime;
use crate::store::{
    Append, Change, Commit, Condition, Delete, Event, Expiry, Freshness, Get, Grant, Layout,
    Naming, Page, Put, Renew, Store, StoreExt, Update, Updates, Watch, Withdraw,
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

/// The index at which a watch opened.
async fn opened(updates: &mut Updates) -> Index {
    match updates.next().await.unwrap().unwrap() {
        Update::Open(index) => index,
        other => panic!("{other:?}"),
    }
}

async fn event(updates: &mut Updates) -> Event {
    match updates.next().await.unwrap().unwrap() {
        Update::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

fn expired() -> Change {
    Change::Delete { expired: true }
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
    let error = store.append(ticket(1)).await.unwrap_err();
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
async fn a_watch_begins_when_it_is_asked_for_not_when_it_is_polled() {
    let store = store();
    let mut updates = store.watch(Watch::tree(key("/")));
    set(&store, "/a", Expiry::Never).await;
    assert_eq!(opened(&mut updates).await, index(3));
    let event = event(&mut updates).await;
    assert_eq!((event.index, event.key), (index(4), key("/a")));
    assert!(matches!(event.change, Change::Put(node) if node.text() == Some("v")));
    assert!(updates.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_open_watch_makes_the_expiry_happen_by_itself_and_on_time() {
    let store = store();
    let start = tokio::time::Instant::now();
    store
        .grant(Grant::new(lease(7), ttl(90_000)))
        .await
        .unwrap();
    set(&store, "/b", Expiry::With(lease(7))).await;
    set(&store, "/a", after(1_500)).await;
    let mut updates = store.watch(Watch::tree(key("/")).deletes_only());
    opened(&mut updates).await;
    let first = event(&mut updates).await;
    assert_eq!((first.key, first.change), (key("/a"), expired()));
    assert_eq!(start.elapsed(), Duration::from_millis(1_500));
    let second = event(&mut updates).await;
    assert_eq!((second.key, second.change), (key("/b"), expired()));
    let late = start.elapsed() - Duration::from_secs(90);
    assert!(late <= Duration::from_millis(2), "{late:?}"); // tokio's timers tick in milliseconds
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_watch_learns_of_a_sooner_expiry() {
    let store = store();
    let start = tokio::time::Instant::now();
    set(&store, "/slow", after(60_000)).await;
    set(&store, "/d/x", after(60_000)).await;
    let mut updates = store.watch(Watch::node(key("/d/x")).deletes_only());
    opened(&mut updates).await;
    assert!(updates.next().now_or_never().is_none());
    let waiting = tokio::spawn(async move { event(&mut updates).await });
    tokio::task::yield_now().await;
    // The watch hears nothing of this write, for it asked for deletions only.
    set(&store, "/d/x", after(1_000)).await;
    let event = waiting.await.unwrap();
    assert_eq!((event.key, event.change), (key("/d/x"), expired()));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test]
async fn a_deleted_directory_is_one_event_to_whoever_watches_in_it() {
    let store = store();
    set(&store, "/d/x/y", Expiry::Never).await;
    let mut updates = store.watch(Watch::node(key("/d/x/y")));
    opened(&mut updates).await;
    store.delete(Delete::tree(key("/d"))).await.unwrap();
    let event = event(&mut updates).await;
    assert_eq!(event.key, key("/d"));
    assert!(event.removes(&key("/d/x/y")));
    assert!(updates.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_watch_from_a_forgotten_index_ends_with_history_lost() {
    let store = Embedded::builder().history_limit(2).build();
    for _ in 0..3 {
        set(&store, "/a", Expiry::Never).await;
    }
    let mut updates = store.watch(Watch::tree(key("/")).from(index(4)));
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::HistoryLost, Some(401))
    );
    assert!(updates.next().await.is_none());

    let mut updates = store.watch(Watch::tree(key("/")).from(index(5)));
    assert_eq!(opened(&mut updates).await, index(6));
    assert_eq!(event(&mut updates).await.index, index(5));
    assert_eq!(event(&mut updates).await.index, index(6));
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_and_never_silently_loses() {
    let store = Embedded::builder().history_limit(2).build();
    let mut updates = store.watch(Watch::tree(key("/")));
    opened(&mut updates).await;
    for _ in 0..3 {
        set(&store, "/a", Expiry::Never).await;
    }
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HistoryLost);
    assert!(updates.next().await.is_none());
    assert_eq!(store.shared.lock().watchers(), 0);
}

#[tokio::test]
async fn a_dropped_watch_leaves_nothing_behind() {
    let store = store();
    set(&store, "/a", after(60_000)).await;
    let never_polled = store.watch(Watch::tree(key("/")));
    let mut waiting = store.watch(Watch::tree(key("/")));
    opened(&mut waiting).await;
    assert!(waiting.next().now_or_never().is_none());
    assert_eq!(store.shared.lock().watchers(), 2);
    drop((never_polled, waiting));
    assert_eq!(store.shared.lock().watchers(), 0);
    assert_eq!(std::sync::Arc::strong_count(&store.shared), 1);
}

#[derive(Debug)]
struct FullDisk;

impl Journal for FullDisk {
    fn record(&mut self, _: &[Entry]) -> std::io::Result<()> {
        Err(std::io::Error::other("disk full"))
    }
}

#[tokio::test]
async fn a_write_that_the_journal_lost_is_ambiguous_and_the_last_thing_the_store_did() {
    let store = store();
    store.shared.lock().keep(Box::new(FullDisk));
    let mut updates = store.watch(Watch::tree(key("/")));
    opened(&mut updates).await;
    assert!(updates.next().now_or_never().is_none());
    let error = store
        .set(&key("/a"), "".into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Ambiguous, Some(300))
    );
    assert!(error.to_string().contains("disk full"), "{error}");
    let error = store.node(&key("/a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(updates.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watch_sees_every_write_of_every_thread_once_and_in_order() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 200;
    let store = Embedded::new();
    let watch = |store: &Embedded| {
        let mut updates = store.watch(Watch::tree(key("/")));
        tokio::spawn(async move {
            let mut last = opened(&mut updates).await;
            for _ in 0..WRITERS * WRITES {
                let event = event(&mut updates).await;
                assert_eq!(event.index, last.next());
                last = event.index;
            }
        })
    };
    let watches = [watch(&store), watch(&store)];
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..WRITES {
                set(&store, &format!("/w{writer}"), Expiry::Never).await;
                tokio::task::yield_now().await;
            }
        })
    });
    for task in writers.collect::<Vec<_>>().into_iter().chain(watches) {
        tokio::time::timeout(Duration::from_secs(30), task)
            .await
            .unwrap()
            .unwrap();
    }
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
