//! The fault-injecting store does what tests rely on: each fault, its outcome and its timing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use tenure::embedded::Embedded;
use tenure::runtime::{Clock, Runtime};
use tenure::store::{
    Append, Commit, Delete, Expiry, Get, Grant, Naming, Put, Renew, Update, Updates, Watch,
    Withdraw,
};
use tenure::testkit::{Call, Fault, Faulty, Odds, Outage, cancel_after};
use tenure::{Error, ErrorKind, Key, LeaseId, Result, Store, StoreExt, Tag, Ttl};

const PATIENCE: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(5);

fn faulty(seed: u64) -> Faulty<Embedded> {
    let runtime = Runtime::on_tokio_time(1);
    Faulty::new(Embedded::builder().runtime(runtime).build(), seed)
}

fn key() -> Key {
    Key::new("/k").unwrap()
}

async fn put(store: &Faulty<Embedded>, value: &str) -> Result<()> {
    let put = Put::new(key(), value.to_owned(), Expiry::Never);
    store.put(put).await.map(drop)
}

/// What is really there.
async fn truth(store: &Faulty<Embedded>) -> Option<String> {
    let node = store.inner().node(&key()).await.unwrap();
    node.map(|node| node.text().unwrap().to_owned())
}

/// One call of each kind; all of them succeed on a store where lease 1 lives and `/gone` exists.
async fn call(store: &Faulty<Embedded>, call: Call) -> Result<()> {
    let lease = LeaseId::new(1).unwrap();
    let tag = Tag::new(lease, 1);
    match call {
        Call::Get => store.get(Get::node(key())).await.map(drop),
        Call::Put => put(store, "x").await,
        Call::Append => {
            let append = Append::ticket(key().join("line").unwrap(), tag, Expiry::Never);
            store.append(append).await.map(drop)
        }
        Call::Withdraw => {
            let withdraw = Withdraw::new(Key::new("/other").unwrap(), tag, Naming::Ticket);
            store.withdraw(withdraw).await.map(drop)
        }
        Call::Delete => {
            let delete = Delete::new(Key::new("/gone").unwrap());
            store.delete(delete).await.map(drop)
        }
        Call::Watch => store
            .watch(Watch::node(key()))
            .next()
            .await
            .unwrap()
            .map(drop),
        Call::Commit => store.commit(Commit::new()).await.map(drop),
        Call::Grant => store.grant(Grant::new(lease, Ttl::MIN)).await.map(drop),
        Call::Renew => {
            let renew = Renew::new(lease, Clock::tokio().now(), Vec::new());
            store.renew(renew).await.map(drop)
        }
        Call::Revoke => store.revoke(lease).await,
        other => panic!("a new kind of call: {other:?}"),
    }
}

async fn ready_for_each_call() -> Faulty<Embedded> {
    let store = faulty(1);
    let gone = Key::new("/gone").unwrap();
    store
        .inner()
        .set(&gone, "x".into(), Expiry::Never)
        .await
        .unwrap();
    let lease = LeaseId::new(1).unwrap();
    store
        .inner()
        .grant(Grant::new(lease, Ttl::MIN))
        .await
        .unwrap();
    store
}

#[tokio::test(start_paused = true)]
async fn each_fault_on_each_call_is_told_as_what_it_is() {
    for &kind in Call::ALL {
        let silent = if kind.is_mutation() {
            ErrorKind::Ambiguous
        } else {
            ErrorKind::Timeout
        };
        for (fault, wanted, after) in [
            (Fault::LostRequest, Some(silent), PATIENCE),
            (Fault::LostReply, Some(silent), PATIENCE),
            (Fault::LateCommit(LATE), Some(silent), PATIENCE),
            (Fault::Delay(PATIENCE / 2), None, PATIENCE / 2),
            (Fault::SlowReply(PATIENCE / 2), None, PATIENCE / 2),
            (
                Fault::Unavailable,
                Some(ErrorKind::Unavailable),
                Duration::ZERO,
            ),
            (
                Fault::Unreachable,
                Some(ErrorKind::Unreachable),
                Duration::ZERO,
            ),
        ] {
            let store = ready_for_each_call().await;
            store.next(kind, fault);
            let clock = Clock::tokio();
            let began = clock.now();
            let outcome = call(&store, kind).await;
            let error = outcome.err();
            assert_eq!(
                error.as_ref().map(Error::kind),
                wanted,
                "{kind:?} {fault:?}"
            );
            assert_eq!(clock.now().since(began), after, "{kind:?} {fault:?}");
            if let Some(error) = error {
                assert_eq!(error.operation(), Some(kind.name()));
            }
            assert_eq!((store.calls(kind), store.all_calls()), (1, 1));
            store.quiesce().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_changes_nothing_and_a_lost_reply_leaves_its_change() {
    let store = faulty(1);
    for (fault, left) in [
        (Fault::LostRequest, None),
        (Fault::Unavailable, None),
        (Fault::Unreachable, None),
        (Fault::LostReply, Some("x")),
    ] {
        store.next(Call::Put, fault);
        put(&store, "x").await.unwrap_err();
        store.quiesce().await;
        assert_eq!(truth(&store).await.as_deref(), left, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_echo_is_done_again_later_where_a_driver_may_repeat() {
    let store = faulty(1);
    let (dir, tag) = (
        Key::new("/jobs").unwrap(),
        Tag::new(LeaseId::new(7).unwrap(), 1),
    );
    let withdraw = || store.withdraw(Withdraw::new(dir.clone(), tag, Naming::Tag));
    store.next(Call::Withdraw, Fault::Echo(LATE));
    assert!(!withdraw().await.unwrap().removed);
    let again = Key::new(format!("/jobs/{tag}")).unwrap();
    store
        .inner()
        .set(&again, "x".into(), Expiry::Never)
        .await
        .unwrap();
    let (clock, asked) = (Clock::tokio(), Clock::tokio().now());
    store.quiesce().await;
    assert_eq!(clock.now().since(asked), LATE);
    assert_eq!(store.inner().node(&again).await.unwrap(), None);

    store.next(Call::Put, Fault::Echo(LATE));
    put(&store, "once").await.unwrap();
    put(&store, "twice").await.unwrap();
    store.quiesce().await;
    assert_eq!(truth(&store).await.unwrap(), "twice");
    assert_eq!(clock.now().since(asked), LATE);
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_lands_after_a_later_write() {
    let store = faulty(1);
    store.next(Call::Put, Fault::LateCommit(LATE));
    assert!(put(&store, "late").await.unwrap_err().is_ambiguous());
    assert_eq!(truth(&store).await, None);
    put(&store, "in between").await.unwrap();
    assert_eq!(truth(&store).await.unwrap(), "in between");
    let clock = Clock::tokio();
    let told = clock.now();
    store.quiesce().await;
    assert_eq!(clock.now().since(told), LATE);
    assert_eq!(truth(&store).await.unwrap(), "late");
    store.quiesce().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_ends_with_the_last_clone() {
    let store = faulty(1);
    let (inner, clone) = (store.inner().clone(), store.clone());
    store.next(Call::Put, Fault::LateCommit(LATE));
    put(&store, "late").await.unwrap_err();
    drop(store);
    drop(clone);
    Clock::tokio().sleep(2 * LATE).await;
    assert_eq!(inner.node(&key()).await.unwrap(), None);
    assert_eq!(
        std::sync::Arc::strong_count(&inner),
        1,
        "nobody else holds the store"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_before_it_is_sent_changes_nothing_and_after_it_stays_done() {
    for (fault, left) in [
        (Fault::Delay(LATE), None),
        (Fault::SlowReply(LATE), Some("x")),
    ] {
        let store = faulty(1);
        store.next(Call::Put, fault);
        assert!(cancel_after(put(&store, "x"), 1).await.is_none());
        assert_eq!(truth(&store).await.as_deref(), left, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_waits_for_its_caller_to_give_up() {
    let store = faulty(1);
    store.next(Call::Put, Fault::Hang);
    let given_up = tokio::time::timeout(Duration::from_secs(3_600), put(&store, "x")).await;
    assert!(given_up.is_err());
    assert_eq!(truth(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_scripted_fault_hits_the_call_it_is_meant_for() {
    let store = faulty(1);
    store.nth(Call::Put, 2, Fault::Unavailable);
    store.nth_of_all(4, Fault::Unreachable);
    store.next(Call::Delete, Fault::Unavailable);
    let mut outcomes = Vec::new();
    for kind in [
        Call::Put,
        Call::Get,
        Call::Put,
        Call::Put,
        Call::Put,
        Call::Delete,
    ] {
        outcomes.push(call(&store, kind).await.err().map(|error| error.kind()));
    }
    let (unavailable, unreachable) = (ErrorKind::Unavailable, ErrorKind::Unreachable);
    let wanted = [
        None,
        None,
        Some(unavailable),
        Some(unreachable),
        None,
        Some(unavailable),
    ];
    assert_eq!(outcomes, wanted);
    assert_eq!((store.calls(Call::Put), store.all_calls()), (4, 6));
}

async fn run(seed: u64) -> Vec<Option<ErrorKind>> {
    let store = faulty(seed);
    store.set_all_odds(Odds::network(0.1, LATE));
    let mut outcomes = Vec::new();
    for round in 0..100 {
        outcomes.push(
            put(&store, &round.to_string())
                .await
                .err()
                .map(|error| error.kind()),
        );
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_and_the_dice_know_every_fault() {
    let first = run(7).await;
    assert_eq!(first, run(7).await);
    assert_ne!(first, run(8).await);
    let kinds: BTreeSet<_> = first.iter().map(|kind| format!("{kind:?}")).collect();
    assert_eq!(
        kinds.len(),
        4,
        "fine, ambiguous, unavailable, unreachable: {kinds:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn healing_ends_all_of_it() {
    let store = faulty(1);
    store.set_all_odds(Odds::network(0.14, LATE));
    store.next(Call::Put, Fault::LostReply);
    store.set_down(true);
    store.heal();
    for round in 0..50 {
        put(&store, &round.to_string()).await.unwrap();
    }
}

async fn open(store: &Faulty<Embedded>) -> Updates {
    let mut updates = store.watch(Watch::node(key()));
    assert!(matches!(updates.next().await, Some(Ok(Update::Open(_)))));
    updates
}

async fn next_value(updates: &mut Updates) -> Result<String> {
    match updates.next().await.unwrap()? {
        Update::Event(event) => match event.change {
            tenure::store::Change::Put(node) => Ok(node.text().unwrap().to_owned()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_refuses_calls_and_ends_watches() {
    let store = faulty(1);
    let mut updates = open(&store).await;
    store.set_down(true);
    let error = updates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(updates.next().await.is_none());
    for &kind in Call::ALL {
        let error = call(&store, kind).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{kind:?}");
    }
    store.set_down(false);
    put(&store, "x").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_silence_calls_get_no_answer_and_watches_go_on_afterwards() {
    let store = faulty(1);
    let mut updates = open(&store).await;
    store.set_outage(Outage::Silent);
    assert!(put(&store, "lost").await.unwrap_err().is_ambiguous());
    assert_eq!(truth(&store).await, None);
    for value in ["1", "2"] {
        let put = Put::new(key(), value, Expiry::Never);
        store.inner().put(put).await.unwrap();
    }
    let silence = tokio::time::timeout(LATE, updates.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    store.set_outage(Outage::None);
    assert_eq!(next_value(&mut updates).await.unwrap(), "1");
    assert_eq!(next_value(&mut updates).await.unwrap(), "2");
}

#[tokio::test(start_paused = true)]
async fn broken_watches_end_and_new_ones_work() {
    let store = faulty(1);
    let mut updates = open(&store).await;
    store.break_watches();
    let error = next_value(&mut updates).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(updates.next().await.is_none());
    let mut updates = open(&store).await;
    put(&store, "x").await.unwrap();
    assert_eq!(next_value(&mut updates).await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_late_or_twice_but_in_order() {
    let store = faulty(1);
    let mut odds = Odds::none();
    (odds.watch_delay, odds.watch_repeats, odds.longest) = (0.5, 0.5, LATE);
    store.set_odds(Call::Watch, odds);
    let mut updates = open(&store).await;
    for round in 0..20 {
        put(&store, &round.to_string()).await.unwrap();
    }
    let (mut told, clock) = (Vec::new(), Clock::tokio());
    let began = clock.now();
    while told.last().is_none_or(|last| *last < 19) {
        told.push(
            next_value(&mut updates)
                .await
                .unwrap()
                .parse::<u32>()
                .unwrap(),
        );
    }
    assert!(told.is_sorted() && told.len() > 20, "{told:?}");
    assert!(clock.now() > began, "some came late");
    told.dedup();
    assert_eq!(told, Vec::from_iter(0..20));
}
