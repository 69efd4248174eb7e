//! Locks on etcd v3 when renewals are late, lost, answered by mistake or not at all. Real etcd,
//! behind a proxy that knows its calls.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/grpc.rs"]
mod grpc;

use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::v3::quiet;
use common::wait::{LONG, until};
use common::words::{key, value};
use futures_util::StreamExt;
use gate::{Gate, Pass};
use grpc::{Client as Caller, Fault, Grpc, Which};
use prost::Message;
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Instant};
use tenure::store::{Change, Delete, Expiry, Update, Watch};
use tenure::{Client, ErrorKind, HoldState, Key, LockGuard, Loss, Store, StoreExt, Ttl};
use tokio::task::JoinHandle;

/// How long after the deletion of its key a guard may still believe.
const PROMPT: Duration = Duration::from_millis(100);

fn client(url: &str, ttl: u64) -> Client {
    let ttl = Ttl::new(Duration::from_secs(ttl)).unwrap();
    Client::builder(Etcd3::new(url).unwrap()).ttl(ttl).build()
}

/// When somebody else, on a connection of its own, is told that this key was deleted.
async fn deletion(etcd: &Etcd, key: &Key) -> JoinHandle<Instant> {
    let store = Etcd3::new(etcd.url()).unwrap();
    let mut updates = store.watch(Watch::node(key.clone()).deletes_only());
    let opened = updates.next().await.unwrap().unwrap();
    assert!(matches!(opened, Update::Open(_)), "{opened:?}");
    tokio::spawn(async move {
        while let Some(update) = updates.next().await {
            if let Update::Event(event) = update.unwrap()
                && matches!(event.change, Change::Delete { .. })
            {
                return Clock::boot().now();
            }
        }
        panic!("the watch ended");
    })
}

/// When and why a guard was lost.
async fn loss(guard: &LockGuard) -> (Instant, Loss) {
    let lost = tokio::time::timeout(LONG, guard.lost()).await;
    (Clock::boot().now(), lost.expect("a loss in time"))
}

/// The lease that a ticket hangs on, as its name says.
fn lease(guard: &LockGuard) -> i64 {
    let name = guard.key().name();
    i64::from_str_radix(name.split('-').next().unwrap(), 16).unwrap()
}

fn revoke(etcd: &Etcd, lease: i64) {
    let body = format!("{{\"ID\":\"{lease}\"}}");
    let (status, answer) = etcd.json("POST", "/v3/lease/revoke", &body).unwrap();
    assert_eq!(status, 200, "{answer}");
}

/// An answer to a renewal.
#[derive(Clone, PartialEq, Message)]
struct Renewed {
    #[prost(bytes = "vec", tag = "1")]
    header: Vec<u8>,
    #[prost(int64, tag = "2")]
    id: i64,
    #[prost(int64, tag = "3")]
    ttl: i64,
}

#[tokio::test]
async fn a_key_that_is_gone_is_a_loss_whatever_renewals_are_answered() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    proxy.rewrite(|name, answer| {
        let mut answer = (name == "LeaseKeepAlive").then(|| Renewed::decode(answer).unwrap())?;
        answer.ttl = 3;
        Some(answer.encode_to_vec())
    });
    let client = client(&proxy.url(), 3);
    let a = client.lock("a").acquire().await.unwrap();
    let b = client.lock("b").acquire().await.unwrap();
    let watched = || proxy.calls().get("WatchCreate").copied() >= Some(2);
    until("both have their own keys watched", watched).await;
    a.put(&key("/x"), "before", Expiry::Never).await.unwrap();
    let (gone_a, gone_b) = (
        deletion(&etcd, a.key()).await,
        deletion(&etcd, b.key()).await,
    );
    revoke(&etcd, lease(&a));
    let ((lost_a, why_a), (lost_b, why_b)) = tokio::join!(loss(&a), loss(&b));
    assert_eq!((why_a, why_b), (Loss::Deleted, Loss::Deleted));
    for (lost, gone) in [(lost_a, gone_a), (lost_b, gone_b)] {
        let late = lost.since(gone.await.unwrap());
        println!("lost {late:?} after another was told of the deletion");
        assert!(late < PROMPT, "{late:?}");
    }
    let refused = a.put(&key("/x"), "after", Expiry::Never).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost, "{refused}");
    let direct = Etcd3::new(etcd.url()).unwrap();
    assert_eq!(value(&direct, "/x").await.as_deref(), Some("before"));
    // The session believes its renewals, and must not stand in the way of the next.
    let again = client
        .lock("a")
        .acquire()
        .timeout(Duration::from_secs(2))
        .await;
    let again = again.unwrap();
    assert!(again.token() > a.token() && lease(&again) != lease(&a));
}

#[tokio::test]
async fn a_write_is_refused_when_its_lease_has_gone_and_nobody_has_noticed() {
    let etcd = quiet();
    let client = client(&etcd.url(), 10);
    // Before its own key is watched.
    let guard = client.lock("a").acquire().await.unwrap();
    revoke(&etcd, lease(&guard));
    let refused = guard.put(&key("/x"), "late", Expiry::Never).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(guard.state(), HoldState::Lost);
    let direct = Etcd3::new(etcd.url()).unwrap();
    assert_eq!(value(&direct, "/x").await, None);
    // And without any write it is found out as soon as the key is watched.
    let guard = client.lock("a").acquire().await.unwrap();
    let since = Clock::boot().now();
    revoke(&etcd, lease(&guard));
    let (lost, why) = loss(&guard).await;
    assert_eq!(why, Loss::Deleted);
    let took = lost.since(since);
    assert!(took < Duration::from_millis(250) + PROMPT * 5, "{took:?}");
}

#[tokio::test]
async fn a_term_counts_from_the_send_and_ends_before_the_server_ends_it() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    let ttl = Duration::from_secs(3);
    proxy.inject(
        Which::of("LeaseKeepAlive", 1),
        Fault::Slow(Duration::from_millis(500)),
    );
    for n in 2..100 {
        let lost = Fault::LoseReply(Caller::Hangs);
        proxy.inject(Which::of("LeaseKeepAlive", n), lost);
    }
    let guard = client(&proxy.url(), 3).lock("a").acquire().await.unwrap();
    let granted = guard.deadline().unwrap();
    let gone = deletion(&etcd, guard.key()).await;
    let extended = guard.extended(granted).await.unwrap();
    let sent = proxy.times("LeaseKeepAlive")[0];
    assert!(extended < sent + ttl, "not from when it was answered");
    let (lost, why) = loss(&guard).await;
    assert_eq!(why, Loss::Expired);
    assert!(lost < sent + ttl, "{:?} late", lost.since(sent + ttl));
    assert!(extended < lost && lost.since(extended) < PROMPT);
    let sends = proxy.times("LeaseKeepAlive").len();
    assert!(sends > 2, "renewals were tried again");
    let gone = tokio::time::timeout(LONG, gone).await.unwrap().unwrap();
    println!("lost {:?} before the server ended it", gone.since(lost));
    assert!(gone > lost);
}

#[tokio::test]
async fn nothing_is_lost_in_an_outage_shorter_than_the_term() {
    let etcd = quiet();
    let gate = Gate::start(etcd.client_port()).await;
    let guard = client(&gate.url(), 4).lock("a").acquire().await.unwrap();
    for pass in [Pass::Nothing, Pass::Requests, Pass::Answers] {
        gate.set(pass);
        let outage = tokio::time::sleep(Duration::from_millis(2_600));
        tokio::select! {
            why = guard.lost() => panic!("{pass:?}: {why:?}"),
            () = outage => {}
        }
        assert_eq!(guard.state(), HoldState::Suspect, "{pass:?}");
        gate.cut();
        gate.set(Pass::All);
        until("it is held again", || guard.state() != HoldState::Suspect).await;
        assert_eq!(guard.state(), HoldState::Held, "{pass:?}");
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_slow_first_renewal_costs_nothing() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    let slow = Fault::Slow(Duration::from_secs(4));
    proxy.inject(Which::of("LeaseKeepAlive", 1), slow);
    let guard = client(&proxy.url(), 10).lock("a").acquire().await.unwrap();
    let first = guard.deadline().unwrap();
    let clock = Clock::boot();
    let beyond = clock.sleep_until(first + Duration::from_millis(500));
    guard.run(beyond).await.unwrap();
    assert_eq!(proxy.hits(), ["LeaseKeepAlive"]);
    guard.release().await.unwrap();
}

/// Fills it until it takes no more.
async fn fill(store: &Etcd3) {
    for number in 0.. {
        let (at, filler) = (key(&format!("/filler/{number}")), vec![b'x'; 1 << 20]);
        let put = store.set(&at, filler.into(), Expiry::Never);
        if let Err(error) = put.await {
            let text = error.to_string();
            assert!(text.contains("NOSPACE"), "{text}");
            assert!(text.contains("compact, defragment, and disarm"), "{text}");
            return;
        }
    }
}

fn ask(etcd: &Etcd, path: &str, body: &str) -> serde_json::Value {
    let (status, answer) = etcd.json("POST", path, body).unwrap();
    assert_eq!(status, 200, "{path}: {answer}");
    serde_json::from_str(&answer).unwrap()
}

fn compact(etcd: &Etcd) {
    let now = ask(etcd, "/v3/kv/range", "{\"key\":\"AA==\"}");
    let revision = now["header"]["revision"].as_str().unwrap();
    let body = format!("{{\"revision\":{revision},\"physical\":true}}");
    ask(etcd, "/v3/kv/compaction", &body);
}

/// What the error's text says to do.
fn make_space(etcd: &Etcd) {
    // By itself: before 3.5.2 a transaction is refused whatever it would do.
    let filler = "{\"key\":\"L2ZpbGxlcg==\",\"range_end\":\"L2ZpbGxlcnM=\"}";
    ask(etcd, "/v3/kv/deleterange", filler);
    compact(etcd);
    ask(etcd, "/v3/maintenance/defragment", "{}");
    let disarmed = std::process::Command::new("etcdctl")
        .args(["--endpoints", &etcd.url(), "alarm", "disarm"])
        .env("ETCDCTL_API", "3")
        .output()
        .unwrap();
    assert!(disarmed.status.success(), "{disarmed:?}");
}

#[tokio::test]
async fn without_space_what_is_held_stays_held_and_goes_and_nothing_is_stuck() {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        args: vec!["--quota-backend-bytes".into(), "8000000".into()],
        ..Options::default()
    });
    let (clock, direct) = (Clock::boot(), Etcd3::new(etcd.url()).unwrap());
    let proxy = Grpc::start(etcd.client_port()).await;
    let holder = client(&proxy.url(), 3);
    let kept = holder.lock("kept").acquire().await.unwrap();
    let given = holder.lock("given").acquire().await.unwrap();
    let several = holder.lock_all(["one", "two"]).acquire().await.unwrap();
    let waits = client(&etcd.url(), 3);
    let lock = waits.lock("given");
    let waiter = tokio::spawn(async move { lock.acquire().await });
    until_line(&direct, "given", 2).await;
    let queue = waits.queue("q");
    for pushed in queue.push_all(["1", "2"]).await {
        pushed.unwrap();
    }
    let mut consumer = queue.consumer(1);
    let delivery = consumer.next().await.unwrap().unwrap();
    // One whose answer never comes: it is in line, and nobody knows.
    proxy.inject(Which::of("Txn", 1), Fault::LoseReply(Caller::Hangs));
    let mut lost = Box::pin(holder.lock("orphan").acquire().into_future());
    let line = until_line(&direct, "orphan", 1);
    tokio::select! {
        _ = &mut lost => panic!("it was not answered"),
        () = line => {}
    }
    fill(&direct).await;
    drop(lost);
    // Its mark is refused; its ticket goes all the same.
    until_line(&direct, "orphan", 0).await;

    let asked = clock.now();
    for client in [&holder, &waits] {
        let one = client.lock("new").acquire().await.unwrap_err();
        let locks = client.lock_all(["new", "newer"]);
        for error in [one, locks.acquire().await.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("NOSPACE"), "{:?} {text}", error.kind());
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{text}");
        }
    }
    let took = clock.now().since(asked);
    assert!(took < Duration::from_secs(1), "refused after {took:?}");
    let put = kept.put(&key("/x"), "x", Expiry::Never).await.unwrap_err();
    assert!(
        put.to_string().contains("NOSPACE") && kept.is_held(),
        "{put}"
    );
    // Renewals go on, and so does the line.
    kept.run(clock.sleep(Duration::from_secs(4))).await.unwrap();
    given.release().await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(1), waiter).await;
    next.unwrap().unwrap().unwrap().release().await.unwrap();
    kept.release().await.unwrap();
    several.release().await.unwrap();
    for name in ["kept", "given", "one", "two", "new", "newer"] {
        until_line(&direct, name, 0).await;
    }

    // Jobs can be neither claimed nor done, but wait for better times.
    let acked = tokio::spawn(delivery.ack());
    let next = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await;
    assert!(next.is_err(), "{next:?}");

    make_space(&etcd);
    let acked = tokio::time::timeout(LONG, acked).await.unwrap().unwrap();
    println!("an ack meanwhile: {acked:?}");
    while !queue.jobs().await.unwrap().is_empty() {
        let next = tokio::time::timeout(LONG, consumer.next()).await;
        next.unwrap().unwrap().unwrap().ack().await.unwrap();
    }
    let guard = holder.lock("orphan").acquire().await.unwrap();
    guard.release().await.unwrap();
    let end = holder.shutdown(LONG).await;
    assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
}

async fn until_line(store: &Etcd3, name: &str, length: usize) {
    let (clock, dir) = (Clock::boot(), key(&format!("/_locks/{name}")));
    let deadline = clock.now() + LONG;
    while store.children(&dir).await.unwrap().len() != length {
        assert!(
            !clock.has_passed(deadline),
            "{name} never had {length} in line"
        );
        clock.sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_was_done_at_the_last_of_the_space_is_not_called_refused() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    let store = Etcd3::new(proxy.url()).unwrap();
    store
        .set(&key("/k"), "1".into(), Expiry::Never)
        .await
        .unwrap();
    proxy.inject(Which::of("Txn", 1), Fault::DoneWithoutSpace);
    let error = store
        .set(&key("/k"), "2".into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert_eq!(value(&store, "/k").await.as_deref(), Some("2"));
    // A ticket that is in line though it was refused is found, and taken.
    proxy.inject(Which::of("Txn", 1), Fault::DoneWithoutSpace);
    let guard = client(&proxy.url(), 3).lock("a").acquire().await.unwrap();
    assert_eq!(proxy.hits().len(), 2);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_compaction_while_all_wait_costs_one_look_and_nobody_stands_still() {
    let etcd = quiet();
    let direct = Etcd3::new(etcd.url()).unwrap();
    let proxy = Grpc::start(etcd.client_port()).await;
    let gate = Gate::start(proxy.port()).await;
    let (here, there) = (client(&etcd.url(), 10), client(&gate.url(), 10));
    let held = here.lock("a").acquire().await.unwrap();
    let leads = here.election("e").campaign("first").await.unwrap();
    let permit = here.semaphore("s").permits(1).acquire().await.unwrap();
    direct
        .set(&key("/config/n"), "1".into(), Expiry::Never)
        .await
        .unwrap();

    let lock = there.lock("a");
    let locked = tokio::spawn(async move { lock.acquire().await.unwrap() });
    let election = there.election("e");
    let mut leaders = election.observe();
    let elected = tokio::spawn(async move { election.campaign("second").await.unwrap() });
    let semaphore = there.semaphore("s").permits(1);
    let permitted = tokio::spawn(async move { semaphore.acquire().await.unwrap() });
    let mut consumer = there.queue("q").consumer(1);
    let cache = there.cache("/config").start().unwrap();
    cache.synced().await.unwrap();
    let first = tokio::time::timeout(LONG, leaders.next()).await.unwrap();
    assert!(matches!(first, Some(Ok(Some(_)))), "{first:?}");
    let idle = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(idle.is_err());
    for dir in ["/_locks/a", "/_elections/e", "/_semaphores/s/line"] {
        let both = async || direct.children(&key(dir)).await.unwrap().len() == 2;
        while !both().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    let watched = || etcd.metric("etcd_debugging_mvcc_watcher_total");
    let before = watched();
    for cut in [false, true] {
        if cut {
            gate.set(Pass::Nothing);
        }
        for number in 0..20 {
            let other = format!("/config/{number}");
            direct
                .set(&key(&other), "x".into(), Expiry::Never)
                .await
                .unwrap();
        }
        compact(&etcd);
        if cut {
            gate.cut();
            gate.set(Pass::All);
        }
        direct
            .set(&key("/config/n"), format!("{cut}").into(), Expiry::Never)
            .await
            .unwrap();
        until("the cache goes on", || {
            cache.get("n").as_deref() == Some(&format!("{cut}").into())
        })
        .await;
        until("all watches are open again", || watched() >= before).await;
        let calls = proxy.calls();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked: Vec<_> = proxy
            .calls()
            .into_iter()
            .map(|(name, count)| (count - calls.get(&name).copied().unwrap_or(0), name))
            .filter(|(count, name)| *count > 0 && !name.starts_with("LeaseKeep"))
            .collect();
        println!("cut: {cut}: in 3 s of waiting: {asked:?}");
        let total: u64 = asked.iter().map(|(count, _)| count).sum();
        // Six of them wait, and some look again every 5 s.
        assert!(total <= 6, "{asked:?}");
    }

    held.release().await.unwrap();
    leads.resign().await.unwrap();
    permit.release().await.unwrap();
    here.queue("q").push("x").await.unwrap();
    let soon = Duration::from_secs(1);
    tokio::time::timeout(soon, locked)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    let second = tokio::time::timeout(soon, elected).await.unwrap().unwrap();
    tokio::time::timeout(soon, permitted)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    let delivery = tokio::time::timeout(soon, consumer.next()).await.unwrap();
    delivery.unwrap().unwrap().ack().await.unwrap();
    let told = async {
        loop {
            let leader = leaders.next().await.unwrap().unwrap();
            if leader.is_some_and(|it| it.proposal() == "second") {
                return;
            }
        }
    };
    tokio::time::timeout(soon, told).await.unwrap();
    second.resign().await.unwrap();
}

#[tokio::test]
async fn one_who_began_a_connection_and_is_not_polled_keeps_nobody_waiting() {
    let etcd = quiet();
    let store = Etcd3::new(etcd.url()).unwrap();
    let at = key("/k");
    let mut first = Box::pin(store.node(&at));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = tokio::time::timeout(Duration::from_secs(1), store.node(&at));
    assert_eq!(second.await.expect("an answer in time").unwrap(), None);
    assert_eq!(first.await.unwrap(), None);
}

/// Where the tag is the name: names are used again, but never one to which something may still
/// happen.
#[tokio::test]
async fn a_name_is_used_again_unless_a_deletion_of_it_may_be_on_the_way() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    let direct = Etcd3::new(etcd.url()).unwrap();
    let lock = client(&proxy.url(), 10).lock("a");
    let first = lock.acquire().await.unwrap();
    let (name, token) = (first.key().clone(), first.token());
    first.release().await.unwrap();
    let second = lock.acquire().await.unwrap();
    assert_eq!(second.key(), &name, "the name is free again");
    assert!(second.token() > token);

    // An old server without space takes nothing but a deletion that compares nothing. This one is
    // answered by nobody, and then there is space again.
    proxy.inject(Which::of("Txn", 1), Fault::NoSpace);
    let late = Fault::Late(Duration::from_millis(400));
    proxy.inject(Which::of("DeleteRange", 1), late);
    second.release().await.unwrap();
    let third = lock.acquire().await.unwrap();
    assert_eq!(proxy.hits(), ["Txn", "DeleteRange"]);
    assert_ne!(third.key(), &name, "what is late would take it");
    proxy.quiesce().await;
    assert!(third.is_held());
    assert!(direct.node(third.key()).await.unwrap().is_some());

    // Somebody deletes it, too short a time ago to be noticed: whatever that was, it can come again.
    let name = third.key().clone();
    direct.delete(Delete::new(name.clone())).await.unwrap();
    let _ = third.release().await;
    let fourth = lock.acquire().await.unwrap();
    assert_ne!(fourth.key(), &name, "others delete it");
    fourth.release().await.unwrap();
    until_line(&direct, "a", 0).await;
}

/// The name of a ticket's mark.
fn mark(ticket: &Key) -> String {
    let parts = ticket.name().split('-');
    let parts = parts.map(|it| u64::from_str_radix(it, 16).unwrap());
    parts.map(|it| format!("{it:016x}")).collect()
}

/// Put there by a hand, or by a proxy that repeats what it should not.
#[tokio::test]
async fn a_name_that_is_not_free_any_more_is_left_for_a_fresh_one() {
    let etcd = quiet();
    let direct = Etcd3::new(etcd.url()).unwrap();
    let (lock, cancelled) = (client(&etcd.url(), 10).lock("a"), key("/_cancelled"));
    for taken in ["its place", "its mark"] {
        let before = lock.acquire().await.unwrap();
        let name = before.key().clone();
        before.release().await.unwrap();
        let at = match taken {
            "its place" => name.clone(),
            _ => cancelled.join(&mark(&name)).unwrap(),
        };
        direct.set(&at, "".into(), Expiry::Never).await.unwrap();
        let guard = lock.acquire().timeout(LONG).await.unwrap();
        assert_ne!(guard.key(), &name, "{taken}");
        guard.release().await.unwrap();
        until_line(&direct, "a", 0).await;
    }
}
