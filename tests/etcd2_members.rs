//! The etcd v2 driver and who the members are: the list they advertise, the watchdog over those
//! that are cut off, and the id of their cluster.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer, chunks, node, plain, poll_head, refusal};
use common::wait::until;
use common::words::key;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tenure::etcd2::{Builder, Etcd2};
use tenure::runtime::{Clock, Instant, Runtime, TimeSource};
use tenure::store::{Expiry, Put, Update, Updates, Watch};
use tenure::{ErrorKind, Store, StoreExt};

/// Long enough for anything on loopback that is going to happen.
const SOON: Duration = Duration::from_secs(20);

/// The system's clock, set forward by so many milliseconds.
#[derive(Clone, Debug)]
struct Ahead(Arc<AtomicU64>, Clock);

impl Ahead {
    fn new() -> Self {
        Self(Arc::default(), Clock::boot())
    }

    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds * 1_000, Ordering::SeqCst);
    }

    fn runtime(&self) -> Runtime {
        Runtime::new(Clock::from_source(self.clone()), Runtime::default().entropy)
    }
}

impl TimeSource for Ahead {
    fn now(&self) -> Instant {
        self.1.now() + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        self.1.wall() + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// What a server says of its cluster; everything else it answers well.
#[derive(Clone, Default)]
struct Says {
    machines: Arc<Mutex<Option<Say>>>,
    leader: Arc<Mutex<Option<Say>>>,
}

impl Says {
    fn machines(&self, list: &str) {
        let say = Say::Raw(plain(200, "", list));
        *self.machines.lock().unwrap() = Some(say);
    }

    fn leader(&self, status: u16) {
        let say = Say::Raw(plain(status, "", "{}"));
        *self.leader.lock().unwrap() = Some(say);
    }

    async fn serve(&self) -> Fake {
        let says = self.clone();
        Fake::new(move |_, request| {
            let path = request.split(' ').nth(1).unwrap();
            let unknown = || Say::Raw(plain(404, "", "404 page not found\n"));
            if path.ends_with("/machines") {
                says.machines
                    .lock()
                    .unwrap()
                    .clone()
                    .unwrap_or_else(unknown)
            } else if path.ends_with("/members/leader") {
                says.leader.lock().unwrap().clone().unwrap_or_else(unknown)
            } else if path.contains("wait=true") {
                Say::Later(poll_head(9), usize::MAX, String::new())
            } else {
                Say::Raw(answer(200, 9, &node("get", "/k", "v", 7)))
            }
        })
        .await
    }
}

fn learning(given: &[&Fake]) -> Builder {
    let urls: Vec<String> = given.iter().map(|it| it.url()).collect();
    Etcd2::builder(urls.join(",")).use_proxies(false)
}

fn count(fake: &Fake, part: &str) -> usize {
    fake.lines().iter().filter(|it| it.contains(part)).count()
}

async fn read(store: &Etcd2) {
    let found = store.node(&key("/k")).await.unwrap().unwrap();
    assert_eq!(found.text(), Some("v"));
}

async fn opened(updates: &mut Updates) {
    let first = tokio::time::timeout(SOON, updates.next()).await.unwrap();
    let first = first.unwrap().unwrap();
    assert!(matches!(first, Update::Open(_)), "{first:?}");
}

async fn tells_of(index: u64, updates: &mut Updates) {
    let next = tokio::time::timeout(SOON, updates.next()).await.unwrap();
    let next = next.unwrap().unwrap();
    assert!(
        matches!(&next, Update::Event(it) if it.index.get() == index),
        "{next:?}"
    );
}

#[tokio::test]
async fn advertised_servers_come_after_the_given_ones_and_serve_when_those_are_gone() {
    let learned = Says::default().serve().await;
    let says = Says::default();
    says.machines(&format!("http://127.0.0.1:1, {}", learned.url()));
    let given = says.serve().await;
    let store = learning(&[&given]).build().unwrap();
    read(&store).await;
    let quorum = "GET /v2/keys/k?quorum=true";
    assert_eq!(given.lines(), ["GET /v2/machines", quorum]);
    assert!(learned.requests().is_empty());
    drop(given);
    read(&store).await;
    assert!(count(&learned, quorum) > 0);
    assert_eq!(store.client().base_uri(), learned.url());
}

#[tokio::test]
async fn behind_proxies_and_without_failover_nobody_is_asked_for_members() {
    let says = Says::default();
    let learned = says.serve().await;
    says.machines(&learned.url());
    let given = says.serve().await;
    for builder in [
        Etcd2::builder(given.url()),
        learning(&[&given]).allow_reconnect(false),
    ] {
        read(&builder.build().unwrap()).await;
    }
    assert_eq!(count(&given, "machines"), 0);
    assert_eq!(given.requests().len(), 2);
}

#[tokio::test]
async fn many_operations_at_once_ask_for_the_members_once() {
    let says = Says::default();
    says.machines("http://127.0.0.1:1");
    let given = says.serve().await;
    let store = learning(&[&given]).build().unwrap();
    join_all((0..20).map(|_| read(&store))).await;
    assert_eq!(count(&given, "machines"), 1);
}

#[tokio::test]
async fn a_list_of_members_that_never_comes_holds_up_one_operation_briefly_and_fails_none() {
    let says = Says::default();
    *says.machines.lock().unwrap() = Some(Say::Nothing);
    let given = says.serve().await;
    let store = learning(&[&given]).build().unwrap();
    let first = tokio::spawn({
        let store = store.clone();
        async move { read(&store).await }
    });
    until("the list is asked for", || count(&given, "machines") == 1).await;
    read(&store).await;
    assert!(!first.is_finished(), "the other one does not wait for it");
    let limit = Duration::from_secs(3);
    tokio::time::timeout(limit, first).await.unwrap().unwrap();
    assert_eq!(count(&given, "machines"), 1);
}

#[tokio::test]
async fn the_members_are_asked_for_again_each_minute_and_after_a_failover() {
    let (one, two) = (Says::default(), Says::default());
    one.machines("http://127.0.0.1:1");
    two.machines("http://127.0.0.1:2");
    let (first, second) = (one.serve().await, two.serve().await);
    let clock = Ahead::new();
    let builder = learning(&[&first, &second]).runtime(clock.runtime());
    let store = builder.build().unwrap();
    let mut asked = Vec::new();
    for seconds in [0, 59, 2] {
        clock.advance(seconds);
        read(&store).await;
        asked.push(count(&first, "machines"));
    }
    assert_eq!(asked, [1, 1, 2]);
    drop(first);
    read(&store).await;
    assert_eq!(count(&second, "machines"), 0);
    clock.advance(6);
    read(&store).await;
    assert_eq!(
        count(&second, "machines"),
        1,
        "long before the minute is over"
    );
}

#[tokio::test]
async fn a_list_of_members_that_cannot_be_read_changes_nothing() {
    let learned = Says::default().serve().await;
    let says = Says::default();
    says.machines(&learned.url());
    let given = says.serve().await;
    let clock = Ahead::new();
    let store = learning(&[&given])
        .runtime(clock.runtime())
        .build()
        .unwrap();
    read(&store).await;
    for nonsense in ["<html>", "", "http://a/b", "http://127.0.0.1:1,"] {
        clock.advance(61);
        says.machines(nonsense);
        read(&store).await;
    }
    clock.advance(61);
    *says.machines.lock().unwrap() = Some(Say::Raw(plain(500, "", "http://127.0.0.1:1")));
    read(&store).await;
    assert_eq!(count(&given, "machines"), 6);
    drop(given);
    let before = count(&learned, "quorum");
    read(&store).await;
    assert!(count(&learned, "quorum") > before);
}

#[tokio::test]
async fn advertised_addresses_that_nobody_can_reach_push_out_none_of_the_given() {
    let says = Says::default();
    says.machines("http://127.0.0.1:1, http://no-such-host.invalid:1, http://127.0.0.1:2");
    let (one, two) = (says.serve().await, says.serve().await);
    let store = learning(&[&one, &two]).build().unwrap();
    read(&store).await;
    drop(one);
    read(&store).await;
    assert_eq!(store.client().base_uri(), two.url());
}

#[tokio::test]
async fn a_member_that_is_spelled_in_two_ways_is_found_again_after_it_was_down() {
    let mut etcd = Etcd::start();
    let given = etcd.url().replace("127.0.0.1", "LocalHost") + "/";
    let clock = Ahead::new();
    let store = Etcd2::builder(given)
        .use_proxies(false)
        .timeout(Duration::from_millis(1_500))
        .runtime(clock.runtime())
        .build()
        .unwrap();
    // On a busy machine the list may take more than one try.
    for _ in 0..5 {
        store.node(&key("/k")).await.unwrap();
        clock.advance(6);
    }
    for round in 0..3 {
        let put = Put::new(key("/k"), format!("{round}"), Expiry::Never);
        store.put(put).await.unwrap();
        etcd.stop();
        let error = store.node(&key("/k")).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(error.detail().contains("http://127.0.0.1:"), "{error}");
        assert!(error.detail().contains("http://localhost:"), "{error}");
        etcd.restart();
        let found = store.node(&key("/k")).await.unwrap().unwrap();
        assert_eq!(found.text(), Some(format!("{round}").as_str()));
    }
}

#[tokio::test]
async fn a_watch_leaves_a_member_without_a_leader_and_resumes_where_it_was() {
    let alone = Says::default();
    alone.leader(200);
    let cut_off = alone.serve().await;
    let event = chunks(&node("set", "/k", "v", 12));
    let well = Fake::new(move |_, request| {
        if request.contains("/members/leader") {
            Say::Raw(plain(200, "", "{}"))
        } else if request.contains("waitIndex=10 ") {
            Say::Raw(poll_head(12) + &event)
        } else {
            Say::Later(poll_head(12), usize::MAX, String::new())
        }
    })
    .await;
    let store = Etcd2::builder(format!("{},{}", cut_off.url(), well.url()))
        .watchdog_period(Duration::from_millis(50))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    alone.leader(503);
    tells_of(12, &mut updates).await;
    assert_eq!(count(&cut_off, "/health") + count(&well, "/health"), 0);
    assert_eq!(store.client().base_uri(), well.url(), "so do all others");
}

#[tokio::test]
async fn a_watch_that_is_refused_by_a_failing_server_is_opened_at_the_next() {
    let failing = Fake::new(|_, _| Say::Raw(answer(500, 0, &refusal(300, 0)))).await;
    let well = Says::default().serve().await;
    let store = Etcd2::builder(format!("{},{}", failing.url(), well.url()))
        .watch_patience(SOON * 2)
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    assert_eq!(failing.requests().len(), 1);
}

/// A server with a leader, which has an event at 150 for who asks from 100 on.
async fn with_an_event() -> Fake {
    let event = chunks(&node("set", "/k", "v", 150));
    Fake::new(move |_, request| {
        if request.contains("/members/leader") {
            Say::Raw(plain(200, "", "{}"))
        } else if request.contains("waitIndex=100 ") {
            Say::Raw(poll_head(200) + &event)
        } else {
            Say::Later(poll_head(200), usize::MAX, String::new())
        }
    })
    .await
}

#[tokio::test]
async fn of_a_server_that_fell_silent_nothing_is_taken_to_have_been_heard() {
    // It found the event at 150 too, and the connection broke behind the head.
    let silent = Fake::new(|_, request| {
        if request.contains("wait=true") {
            Say::Later(poll_head(200), usize::MAX, String::new())
        } else {
            Say::Nothing
        }
    })
    .await;
    let well = with_an_event().await;
    let store = Etcd2::builder(format!("{},{}", silent.url(), well.url()))
        .watchdog_period(Duration::from_millis(50))
        .build()
        .unwrap();
    let from = tenure::Index::new(100).unwrap();
    let mut updates = store.watch(Watch::node(key("/k")).from(from));
    opened(&mut updates).await;
    tells_of(150, &mut updates).await;
}

#[tokio::test]
async fn a_watch_that_nobody_reads_keeps_no_other_on_a_member_that_is_cut_off() {
    let asked = AtomicU64::new(0);
    let cut_off = Fake::new(move |_, request| {
        if request.contains("wait=true") {
            Say::Later(poll_head(99), usize::MAX, String::new())
        } else if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            Say::Nothing
        } else {
            Say::Raw(plain(503, "", "{}"))
        }
    })
    .await;
    let well = with_an_event().await;
    let store = Etcd2::builder(format!("{},{}", cut_off.url(), well.url()))
        .watchdog_period(Duration::from_millis(50))
        .build()
        .unwrap();
    let from = tenure::Index::new(100).unwrap();
    let watch = || store.watch(Watch::node(key("/k")).from(from));
    let (mut left, mut read) = (watch(), watch());
    opened(&mut left).await;
    opened(&mut read).await;
    tokio::select! {
        biased;
        () = until("the question", || count(&cut_off, "/members/leader") > 0) => {}
        told = left.next() => panic!("{told:?}"),
    }
    tells_of(150, &mut read).await;
}

#[tokio::test]
async fn all_watches_on_a_server_share_one_question_a_period() {
    let says = Says::default();
    says.leader(404);
    let (one, two) = (says.serve().await, says.serve().await);
    let period = Duration::from_millis(200);
    let store = Etcd2::builder(format!("{},{}", one.url(), two.url()))
        .watchdog_period(period)
        .user("me", "secret")
        .build()
        .unwrap();
    let clock = Clock::boot();
    let start = clock.now();
    let mut watches: Vec<Updates> = (0..8)
        .map(|_| store.watch(Watch::node(key("/k"))))
        .collect();
    for updates in &mut watches {
        opened(updates).await;
    }
    let checks = || count(&one, "/members/leader");
    tokio::select! {
        biased;
        () = until("five checks", || checks() >= 5) => {}
        told = futures_util::future::select_all(watches.iter_mut().map(StreamExt::next)) => {
            panic!("{:?}", told.0)
        }
    }
    let (asked, took) = (checks() as u128, clock.now().since(start));
    assert!(
        asked <= took.as_millis() / period.as_millis() + 1,
        "{asked} in {took:?}"
    );
    assert_eq!(two.requests().len(), 0, "a 404 is no reason to leave");
    for request in one.requests() {
        // The server would spend 60 ms on a password that it does not ask for.
        let is_check = request.contains("/members/leader");
        assert_eq!(request.contains("authorization: "), !is_check, "{request}");
    }
}

#[tokio::test]
async fn the_only_server_is_not_asked_whether_it_has_a_leader() {
    let says = Says::default();
    says.leader(503);
    let only = says.serve().await;
    let store = Etcd2::builder(only.url())
        .watchdog_period(Duration::from_millis(5))
        .poll_period(Duration::from_millis(50))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    tokio::select! {
        biased;
        () = until("five polls", || count(&only, "wait=true") >= 5) => {}
        told = updates.next() => panic!("{told:?}"),
    }
    assert_eq!(count(&only, "/members/leader"), 0);
}

#[tokio::test]
async fn another_cluster_is_refused_each_time_in_answers_refusals_and_watches() {
    for (status, body) in [(200, node("get", "/k", "v", 7)), (404, refusal(100, 9))] {
        let fake = Fake::new(move |_, request| {
            if request.contains("wait=true") {
                Say::Raw(poll_head(9))
            } else {
                Say::Raw(answer(status, 9, &body))
            }
        })
        .await;
        let builder = Etcd2::builder(fake.url()).expected_cluster_id("c0");
        let store = builder.build().unwrap();
        for _ in 0..3 {
            let put = Put::new(key("/k"), "v", Expiry::Never);
            let first = store.watch(Watch::node(key("/k"))).next().await.unwrap();
            for error in [
                store.node(&key("/k")).await.unwrap_err(),
                store.put(put).await.unwrap_err(),
                first.unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::ClusterChanged, "{error}");
                assert!(error.detail().contains("c1") && error.detail().contains("c0"));
            }
        }
        assert_eq!(store.client().cluster_id(), Some("c0"));
    }
}

#[tokio::test]
async fn members_that_another_cluster_advertises_are_not_learned() {
    let learned = Says::default().serve().await;
    let says = Says::default();
    let foreign = plain(200, "X-Etcd-Cluster-Id: c2\r\n", &learned.url());
    *says.machines.lock().unwrap() = Some(Say::Raw(foreign));
    let given = says.serve().await;
    let builder = learning(&[&given]).expected_cluster_id("c1");
    let store = builder.timeout(Duration::from_millis(600)).build().unwrap();
    read(&store).await;
    assert_eq!(count(&given, "machines"), 1);
    drop(given);
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(learned.requests().is_empty());
}
