//! What the queue's consuming side promises, over any store: each check takes a [`World`] of
//! clients that share one store. `tests/queue_embedded.rs`, `tests/queue_etcd2.rs` and
//! `tests/queue_etcd3.rs` run all of them.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure::runtime::Runtime;
use tenure::store::{Condition, Delete, Expiry, Node, Put};
use tenure::testkit::Faulty;
use tenure::{Client, Consumer, Delivery, ErrorKind, HoldState, Key, Loss, Store, StoreExt, Ttl};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
    /// How long a node has left, for stores whose nodes do not tell.
    pub(crate) left: Left,
}

type Left = Box<dyn Fn(&Node) -> Option<Duration> + Send + Sync>;

pub(crate) const TTL: Duration = Duration::from_secs(3);
/// How long after a TTL a server may take to remove what expired (etcd looks every 0.5 s).
pub(crate) const SWEEP: Duration = Duration::from_millis(700);
/// Far more than any step takes on a slow machine; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);
/// Longer than a job that is there would take to come.
const MOMENT: Duration = Duration::from_millis(400);

impl World {
    pub(crate) fn client(&self) -> Client {
        self.client_of((self.open)())
    }

    /// A client whose link to the store can be cut.
    pub(crate) fn client_on_a_link(&self) -> (Client, Faulty<dyn Store>) {
        let link = Faulty::shared((self.open)(), 1);
        (self.client_of(link.clone()), link)
    }

    fn client_of(&self, store: impl Store) -> Client {
        Client::builder(store)
            .runtime(self.runtime.clone())
            .ttl(Ttl::new(TTL).unwrap())
            .build()
    }
}

fn key(text: impl AsRef<str>) -> Key {
    Key::new(text).unwrap()
}

fn job(name: &str) -> Key {
    key(format!("/_queues/q/jobs/{name}"))
}

fn register(name: &str) -> Key {
    key(format!("/_queues/q/state/{name}"))
}

/// Appends a job as a producer does.
async fn push(client: &Client, name: &str) {
    let put = Put::new(job(name), format!("do {name}"), Expiry::Never);
    client
        .store()
        .put(put.when(Condition::Absent))
        .await
        .unwrap();
}

async fn push_all(client: &Client, names: impl IntoIterator<Item = String>) {
    for name in names {
        push(client, &name).await;
    }
}

fn numbered(count: usize) -> impl Iterator<Item = String> {
    // Names fall while jobs come, so that order by name would be seen.
    (0..count).map(move |n| format!("{:04}", count - n))
}

async fn soon<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(LONG, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

/// Waits until a condition holds; fails when it does not within `limit`.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let item = soon("the next delivery", consumer.next()).await;
    item.expect("the stream goes on").unwrap()
}

/// Nothing is delivered for a while.
async fn idles(what: &str, consumer: &mut Consumer) {
    let item = tokio::time::timeout(MOMENT, consumer.next()).await;
    assert!(item.is_err(), "{what}: {item:?}");
}

async fn state(client: &Client, name: &str) -> Option<String> {
    let node = client.store().node(&register(name)).await.unwrap();
    node.map(|node| node.text().unwrap().to_owned())
}

async fn is_there(client: &Client, name: &str) -> bool {
    client.store().contains(&job(name)).await.unwrap()
}

async fn consumers(client: &Client) -> Vec<Node> {
    let dir = key("/_queues/q/consumers");
    client.store().children(&dir).await.unwrap()
}

/// No job, no consumer and no register but those of jobs that are done.
async fn books_are_empty(client: &Client) {
    eventually("nothing is left but what is done", || async {
        let left = client.store().leaves(&key("/_queues/q")).await.unwrap();
        left.iter()
            .all(|node| node.text().is_some_and(|text| text.starts_with("done ")))
    })
    .await;
}

pub(crate) async fn one_consumer_sees_the_order_of_the_appends(world: World) {
    let client = world.client();
    push_all(&client, numbered(20)).await;
    let mut consumer = client.queue("q").consumer(1);
    let mut last = 0;
    for (turn, name) in numbered(20).enumerate() {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.id().as_str(), name, "turn {turn}");
        assert_eq!(delivery.payload(), format!("do {name}").as_bytes());
        assert_eq!((delivery.attempt(), delivery.key()), (1, &job(&name)));
        assert!(delivery.token() > last, "tokens rise");
        last = delivery.token();
        delivery.ack().await.unwrap();
    }
    idles("all are done", &mut consumer).await;
    consumer.close().await;
    books_are_empty(&client).await;
}

pub(crate) async fn higher_lanes_come_first(world: World) {
    let client = world.client();
    push_all(
        &client,
        ["b", "p2.c", "a", "p9.d", "p9.a"].map(String::from),
    )
    .await;
    let mut consumer = client.queue("q").consumer(1);
    // The first may be taken before the others are seen.
    for name in ["p9.d", "p9.a", "b", "a", "p2.c"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.id().as_str(), name);
        delivery.ack().await.unwrap();
    }
}

pub(crate) async fn a_job_that_is_nacked_keeps_its_id_and_its_place(world: World) {
    let client = world.client();
    push_all(&client, numbered(3)).await;
    let mut consumer = client.queue("q").consumer(1).max_attempts(100);
    let mut last = 0;
    for turn in 1..=30 {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.id().as_str(), delivery.attempt()), ("0003", turn));
        assert!(delivery.token() > last, "tokens rise");
        last = delivery.token();
        delivery.nack().await.unwrap();
    }
    for name in numbered(3) {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.id().as_str(), name);
        delivery.ack().await.unwrap();
    }
    consumer.close().await;
    books_are_empty(&client).await;
}

pub(crate) async fn a_delayed_nack_lets_others_by_and_comes_back(world: World) {
    let client = world.client();
    push_all(&client, ["a", "b"].map(String::from)).await;
    let mut consumer = client.queue("q").consumer(1);
    let delay = MOMENT * 2;
    let first = next(&mut consumer).await;
    let start = world.runtime.clock.now();
    first.nack_after(delay).await.unwrap();
    let second = next(&mut consumer).await;
    assert_eq!(second.id().as_str(), "b");
    second.ack().await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((again.id().as_str(), again.attempt()), ("a", 2));
    let took = world.runtime.clock.now().since(start);
    assert!(took >= delay && took < delay + LONG / 2, "{took:?}");
    again.ack().await.unwrap();
}

pub(crate) async fn the_last_attempt_and_a_rejection_go_to_the_dead(world: World) {
    let client = world.client();
    push_all(&client, ["a", "b", "c"].map(String::from)).await;
    let mut consumer = client.queue("q").consumer(1).max_attempts(3);
    for attempt in 1..=3 {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.id().as_str(), delivery.attempt()), ("a", attempt));
        delivery.nack().await.unwrap();
    }
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.id().as_str(), "b");
    delivery.reject("no such order: 17").await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    idles("the dead stay", &mut consumer).await;
    assert_eq!(
        state(&client, "a").await.unwrap(),
        "dead 3 given up after 3 deliveries"
    );
    assert_eq!(
        state(&client, "b").await.unwrap(),
        "dead 1 no such order: 17"
    );
    assert!(is_there(&client, "a").await && is_there(&client, "b").await);
    // As an administrator does.
    let ready = Put::new(register("a"), "ready 0 0", Expiry::Never);
    client.store().put(ready).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((again.id().as_str(), again.attempt()), ("a", 1));
    again.ack().await.unwrap();
}

pub(crate) async fn a_dropped_delivery_comes_again_and_is_counted(world: World) {
    let client = world.client();
    push(&client, "a").await;
    let mut consumer = client.queue("q").consumer(1);
    drop(next(&mut consumer).await);
    let again = next(&mut consumer).await;
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
}

pub(crate) async fn max_run_ends_a_delivery_and_extend_moves_that(world: World) {
    let client = world.client();
    push(&client, "a").await;
    let max_run = Duration::from_millis(600);
    let mut consumer = client.queue("q").consumer(1).max_run(max_run);
    let first = next(&mut consumer).await;
    let start = world.runtime.clock.now();
    assert_eq!(soon("its end", first.lost()).await, Loss::Expired);
    assert!(world.runtime.clock.now().since(start) >= max_run - Duration::from_millis(100));
    assert_eq!((first.state(), first.deadline()), (HoldState::Lost, None));
    let second = next(&mut consumer).await;
    assert_eq!(second.attempt(), 2);
    second.extend(max_run * 3).unwrap();
    let kept = second.run(world.runtime.clock.sleep(max_run * 2)).await;
    kept.unwrap();
    assert_eq!(first.ack().await.unwrap_err().kind(), ErrorKind::ClaimLost);
    assert!(second.is_held());
    let late = second.run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Lost);
    assert!(second.extend(max_run).is_err());
    let third = next(&mut consumer).await;
    assert_eq!(third.attempt(), 3);
    third.ack().await.unwrap();
}

pub(crate) async fn a_consumer_that_vanishes_is_followed_within_its_ttl_and_cannot_ack(
    world: World,
) {
    let ((a, link), b) = (world.client_on_a_link(), world.client());
    push_all(&b, numbered(2)).await;
    let mut gone = a.queue("q").consumer(1);
    let first = next(&mut gone).await;
    let mut other = b.queue("q").consumer(1);
    let second = next(&mut other).await;
    assert_eq!(second.id().as_str(), "0001");
    second.ack().await.unwrap();
    let start = world.runtime.clock.now();
    link.set_down(true);
    let again = next(&mut other).await;
    let took = world.runtime.clock.now().since(start);
    assert_eq!((again.id(), again.attempt()), (first.id(), 2));
    assert!(again.token() > first.token(), "tokens rise");
    println!("redelivered after {took:?}");
    assert!(took <= TTL + SWEEP, "{took:?}");
    assert_eq!(
        first.state(),
        HoldState::Lost,
        "it knows before the other begins"
    );
    link.set_down(false);
    assert_eq!(first.ack().await.unwrap_err().kind(), ErrorKind::ClaimLost);
    tokio::time::sleep(MOMENT).await;
    assert!(again.is_held(), "the late ack harms nobody");
    again.ack().await.unwrap();
    // And the first goes on.
    push(&b, "x").await;
    other.close().await;
    let next = next(&mut gone).await;
    assert_eq!(next.id().as_str(), "x");
    next.ack().await.unwrap();
    gone.close().await;
    books_are_empty(&b).await;
}

pub(crate) async fn an_outage_shorter_than_the_term_loses_nothing(world: World) {
    let (client, link) = world.client_on_a_link();
    push_all(&client, numbered(2)).await;
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    link.set_down(true);
    delivery
        .run(world.runtime.clock.sleep(TTL / 3))
        .await
        .unwrap();
    let ack = tokio::spawn(delivery.ack());
    tokio::time::sleep(Duration::from_millis(100)).await;
    link.set_down(false);
    soon("the ack", ack).await.unwrap().unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!((delivery.id().as_str(), delivery.attempt()), ("0001", 1));
    delivery.ack().await.unwrap();
}

pub(crate) async fn a_node_deleted_by_force_loses_the_deliveries_and_not_the_consumer(
    world: World,
) {
    let client = world.client();
    push(&client, "a").await;
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    let node = consumers(&client).await.remove(0);
    let delete = Delete::new(node.key.clone());
    client.store().delete(delete).await.unwrap();
    assert_eq!(soon("the loss", delivery.lost()).await, Loss::Deleted);
    let again = next(&mut consumer).await;
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
    assert_ne!(consumers(&client).await[0].key, node.key);
}

pub(crate) async fn a_claim_that_somebody_ends_is_lost_at_once(world: World) {
    let client = world.client();
    push(&client, "a").await;
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    let purged = Put::new(register("a"), "done 1 0000000000000000", Expiry::Never);
    client.store().put(purged).await.unwrap();
    assert_eq!(soon("the loss", delivery.lost()).await, Loss::Deleted);
    let error = delivery.ack().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClaimLost);
    assert_eq!(error.key(), Some(&job("a")));
    // Nobody has deleted the job, so the consumers do.
    eventually("the job is gone", || async {
        !is_there(&client, "a").await
    })
    .await;
}

pub(crate) async fn what_is_done_is_never_delivered_again(world: World) {
    let (a, b) = (world.client(), world.client());
    push(&a, "a").await;
    let mut consumer = a.queue("q").consumer(2);
    next(&mut consumer).await.ack().await.unwrap();
    eventually("the job is gone", || async { !is_there(&a, "a").await }).await;
    // A producer whose request was on its way for long.
    push(&b, "a").await;
    push(&b, "b").await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.id().as_str(), "b");
    delivery.ack().await.unwrap();
    idles("the late one", &mut consumer).await;
    eventually("it is cleared away", || async { !is_there(&a, "a").await }).await;
}

pub(crate) async fn jobs_of_plain_producers_are_delivered_in_order_whatever_they_hold(
    world: World,
) {
    let client = world.client();
    let dir = key("/nodes/queue");
    let values = ["first", "", "{\"a\": 1}", "ready 0 0", "ü 日?#+&=;:@\n%"];
    for value in values {
        let append = client
            .store()
            .append_value(&dir, value.into(), Expiry::Never);
        append.await.unwrap();
    }
    let other = key("/nodes/queue/dir/file");
    client
        .store()
        .set(&other, "no job".into(), Expiry::Never)
        .await
        .unwrap();
    let mut consumer = client.raw_queue("/nodes/queue").consumer(1);
    for value in values {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.payload(), value.as_bytes());
        assert_eq!(delivery.key().parent().unwrap(), dir);
        delivery.ack().await.unwrap();
    }
    idles("a directory is no job", &mut consumer).await;
    let append = client
        .store()
        .append_value(&dir, "later".into(), Expiry::Never);
    append.await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.payload(), &b"later"[..]);
    delivery.nack().await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.attempt(), 2);
    delivery.ack().await.unwrap();
    consumer.close().await;
    eventually("only the stranger's directory is left", || async {
        client.store().children(&dir).await.unwrap().len() == 1
    })
    .await;
}

pub(crate) async fn what_is_no_state_sets_its_job_aside_and_harms_no_other(world: World) {
    let client = world.client();
    push_all(&client, ["a", "b", "c", "d"].map(String::from)).await;
    let store = client.store();
    for (name, value) in [("a", "garbage"), ("b", "ready 00 0"), ("c", "")] {
        store
            .set(&register(name), value.into(), Expiry::Never)
            .await
            .unwrap();
    }
    let stray = key("/_queues/q/state/e/f");
    store.set(&stray, "x".into(), Expiry::Never).await.unwrap();
    let no_card = key("/_queues/q/consumers/what");
    store
        .set(&no_card, "x".into(), Expiry::Never)
        .await
        .unwrap();
    let mute = key("/_queues/q/consumers/00000000000000010000000000000001");
    store
        .set(&mute, "not json".into(), Expiry::Never)
        .await
        .unwrap();
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.id().as_str(), "d");
    delivery.ack().await.unwrap();
    idles("they are set aside", &mut consumer).await;
    store.remove(&register("a")).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.id().as_str(), "a");
    delivery.ack().await.unwrap();
}

pub(crate) async fn many_consumers_share_the_jobs_and_none_comes_twice(world: World) {
    const JOBS: usize = 120;
    let producer = world.client();
    let seen: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (client, seen) = (world.client(), seen.clone());
        tasks.spawn(async move {
            let mut consumer = client.queue("q").consumer(2);
            while seen.lock().unwrap().len() < JOBS {
                let item = tokio::time::timeout(MOMENT, consumer.next()).await;
                let Ok(item) = item else { continue };
                let delivery = item.unwrap().unwrap();
                tokio::task::yield_now().await;
                let id = delivery.id().to_string();
                delivery.ack().await.unwrap();
                *seen.lock().unwrap().entry(id).or_default() += 1;
            }
            consumer.close().await;
        });
    }
    push_all(&producer, numbered(JOBS)).await;
    while let Some(done) = soon("all jobs", tasks.join_next()).await {
        done.unwrap();
    }
    assert!(
        seen.lock().unwrap().values().all(|times| *times == 1),
        "{seen:?}"
    );
    books_are_empty(&producer).await;
}

pub(crate) async fn closing_gives_back_uncounted_what_nobody_got(world: World) {
    let client = world.client();
    push_all(&client, numbered(3)).await;
    let mut consumer = client.queue("q").consumer(3);
    let first = next(&mut consumer).await;
    eventually("all are claimed", || async {
        let mut all = true;
        for name in numbered(3) {
            let state = state(&client, &name).await;
            all &= state.is_some_and(|state| state.starts_with("claimed 1 "));
        }
        all
    })
    .await;
    let closing = tokio::spawn(consumer.close());
    // The three claims were under way at once: any of them can have been the first to be answered.
    let others: Vec<_> = numbered(3).filter(|it| it != first.id().as_str()).collect();
    for name in &others {
        eventually("the others are given back", || async {
            state(&client, name).await.as_deref() == Some("ready 0 0")
        })
        .await;
    }
    assert!(!closing.is_finished(), "one is still out");
    first.ack().await.unwrap();
    soon("the end", closing).await.unwrap();
    assert!(consumers(&client).await.is_empty());
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    assert_eq!(
        (delivery.id().as_str(), delivery.attempt()),
        (others[0].as_str(), 1)
    );
    delivery.ack().await.unwrap();
}

pub(crate) async fn a_shutdown_ends_deliveries_and_the_stream(world: World) {
    let (a, b) = (world.client(), world.client());
    push(&b, "a").await;
    let mut consumer = a.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    let left = a.shutdown(LONG).await;
    assert_eq!((left.left_to_ttl, left.tasks_left), (0, 0));
    assert_eq!(delivery.state(), HoldState::Lost);
    assert_eq!(
        delivery.ack().await.unwrap_err().kind(),
        ErrorKind::ClaimLost
    );
    let error = soon("the end", consumer.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(soon("the end", consumer.next()).await.is_none());
    let mut other = b.queue("q").consumer(1);
    next(&mut other).await.ack().await.unwrap();
}

pub(crate) async fn bad_options_are_refused_before_anything_is_sent(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let short = Duration::from_secs(599);
    for consumer in [
        queue.consumer(0),
        queue.consumer(1_001),
        queue.consumer(1).max_attempts(0),
        queue.consumer(1).max_run(Duration::ZERO),
        queue.consumer(1).dedupe(short),
        queue.consumer(1).dedupe(short * 1_000),
    ] {
        let mut consumer = consumer;
        let error = consumer.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
        assert!(consumer.next().await.is_none());
    }
    let error = client
        .queue("")
        .consumer(1)
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidName);
    let error = queue
        .ttl(Duration::ZERO)
        .consumer(1)
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl);
    assert_eq!(
        client.session_state(),
        None,
        "a session was started for nothing"
    );
}

pub(crate) async fn a_worker_does_jobs_retries_failures_and_buries_poison(world: World) {
    let client = world.client();
    push_all(
        &client,
        ["good", "panics", "fails", "once"].map(String::from),
    )
    .await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = client.queue("q").worker();
    let worker = worker.concurrency(2).max_attempts(3);
    let worker = worker.retry_delay(|attempt| Duration::from_millis(20) * attempt);
    let worker = worker.until(async move { drop(stopped.await) });
    let mut progress = worker.progress();
    let running = tokio::spawn(worker.run(|job: tenure::Job| async move {
        assert!(job.is_held() && job.deadline().is_some());
        assert_eq!(job.payload(), format!("do {}", job.id()).as_bytes());
        match (job.id().as_str(), job.attempt()) {
            ("panics", attempt) => panic!("on purpose, {attempt}"),
            ("fails", attempt) => Err(format!("no luck, {attempt}")),
            ("once", 1) => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    }));
    let all = async {
        while progress.report().dead < 2 || progress.report().acked < 2 {
            progress.changed().await.unwrap();
        }
    };
    soon("all ends", all).await;
    stop.send(()).unwrap();
    let report = soon("the worker", running).await.unwrap().unwrap();
    assert_eq!(
        (report.acked, report.nacked, report.dead),
        (2, 5, 2),
        "{report:?}"
    );
    assert_eq!((report.lost, report.running), (0, 0), "{report:?}");
    let dead = "dead 3 given up after 3 deliveries: ";
    assert_eq!(
        state(&client, "panics").await.unwrap(),
        format!("{dead}panicked: on purpose, 3")
    );
    assert_eq!(
        state(&client, "fails").await.unwrap(),
        format!("{dead}no luck, 3")
    );
    assert!(consumers(&client).await.is_empty());
}

pub(crate) async fn a_delay_without_end_ends_no_consumer(world: World) {
    let client = world.client();
    push_all(&client, ["a", "b", "c"].map(String::from)).await;
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    soon("the nack", delivery.nack_after(Duration::MAX))
        .await
        .unwrap();
    let never = format!("ready 1 {}", u64::MAX);
    assert_eq!(state(&client, "a").await, Some(never));
    consumer.close().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = client.queue("q").worker();
    let worker = worker.retry_delay(|_| Duration::MAX);
    let worker = worker.until(async move { drop(stopped.await) });
    let mut progress = worker.progress();
    let running = tokio::spawn(worker.run(|job: tenure::Job| async move {
        match job.id().as_str() {
            "b" => Err("never again"),
            _ => Ok(()),
        }
    }));
    let both = async {
        while progress.report().acked < 1 || progress.report().nacked < 1 {
            progress.changed().await.unwrap();
        }
    };
    soon("both", both).await;
    stop.send(()).unwrap();
    let report = soon("the worker", running).await.unwrap().unwrap();
    assert_eq!((report.acked, report.nacked, report.lost), (1, 1, 0));
}

pub(crate) async fn only_ids_of_ones_own_are_remembered_for_longer(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let plain = queue.push("x").await.unwrap().id;
    let chosen = queue.push("x").id("mine").await.unwrap().id;
    let day = Duration::from_secs(24 * 3_600);
    let mut consumer = queue.consumer(1).dedupe(day);
    for id in [&plain, &chosen] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.id(), id);
        delivery.ack().await.unwrap();
    }
    let ttl = async |id: &tenure::recipes::queue::JobId| {
        let node = client.store().node(&register(id.as_str())).await;
        (world.left)(&node.unwrap().unwrap()).unwrap()
    };
    assert!(ttl(&plain).await <= Duration::from_secs(600) * 5 / 4);
    assert!(ttl(&chosen).await > day - LONG);
    consumer.close().await;
}

/// More than any store takes as one value.
pub(crate) async fn a_reason_of_any_length_buries_the_job(world: World) {
    let client = world.client();
    push_all(&client, ["a", "b"].map(String::from)).await;
    let mut consumer = client.queue("q").consumer(1).max_attempts(1);
    let reason = "\u{e4}".repeat(6 << 20);
    let delivery = next(&mut consumer).await;
    soon("the rejection", delivery.reject(reason.clone()))
        .await
        .unwrap();
    assert!(
        state(&client, "a")
            .await
            .unwrap()
            .starts_with("dead 1 \u{e4}\u{e4}")
    );
    consumer.close().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = client.queue("q").worker().max_attempts(1);
    let worker = worker.until(async move { drop(stopped.await) });
    let mut progress = worker.progress();
    let running = tokio::spawn(worker.run(move |_| {
        let reason = reason.clone();
        async move { Err(reason) }
    }));
    let buried = async {
        while progress.report().dead < 1 {
            progress.changed().await.unwrap();
        }
    };
    soon("the burial", buried).await;
    stop.send(()).unwrap();
    let report = soon("the worker", running).await.unwrap().unwrap();
    assert_eq!((report.dead, report.lost), (1, 0));
    assert!(state(&client, "b").await.unwrap().len() < 5_000);
}

pub(crate) async fn a_worker_that_is_stopped_ends_what_it_has_begun(world: World) {
    let client = world.client();
    push_all(&client, numbered(6)).await;
    let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let worker = client.queue("q").worker().concurrency(2);
    let running = tokio::spawn({
        let go = go.clone();
        worker.run(move |job| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                begun.send(job.id().to_string()).unwrap();
                go.acquire().await.map(tokio::sync::SemaphorePermit::forget)
            }
        })
    });
    for _ in 0..2 {
        soon("a beginning", beginnings.recv()).await.unwrap();
    }
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.closing().await }
    });
    let shutdown = tokio::spawn({
        let client = client.clone();
        async move { client.shutdown(LONG).await }
    });
    soon("the notice", closing).await.unwrap();
    tokio::time::sleep(MOMENT).await;
    assert!(
        !running.is_finished() && !shutdown.is_finished(),
        "two jobs are under way"
    );
    go.add_permits(6);
    let report = soon("the worker", running).await.unwrap().unwrap();
    assert_eq!((report.acked, report.lost), (2, 0), "{report:?}");
    let left = soon("the shutdown", shutdown).await.unwrap();
    assert_eq!((left.left_to_ttl, left.tasks_left), (0, 0));
    let other = world.client();
    let mut consumer = other.queue("q").consumer(1);
    for name in numbered(6).skip(2) {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.id().to_string(), delivery.attempt()), (name, 1));
        delivery.ack().await.unwrap();
    }
}

pub(crate) async fn a_handler_is_cancelled_when_its_job_is_lost_and_the_worker_goes_on(
    world: World,
) {
    struct Gone(tokio::sync::mpsc::UnboundedSender<()>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let client = world.client();
    push(&client, "a").await;
    let (dropped, mut drops) = tokio::sync::mpsc::unbounded_channel();
    let worker = client.queue("q").worker().max_run(MOMENT);
    let mut progress = worker.progress();
    let running = tokio::spawn(worker.run(move |job| {
        let gone = Gone(dropped.clone());
        async move {
            if job.attempt() == 1 {
                std::future::pending::<()>().await;
            }
            drop(gone);
            Ok::<_, String>(())
        }
    }));
    soon("the first", drops.recv()).await.unwrap();
    let done = async {
        while progress.report().acked < 1 {
            progress.changed().await.unwrap();
        }
    };
    soon("the second", done).await;
    assert_eq!(progress.report().lost, 1);
    running.abort();
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! queue_suite {
    ($attributes:meta, $world:expr) => {
        queue_suite!(@each $attributes, $world,
            one_consumer_sees_the_order_of_the_appends,
            higher_lanes_come_first,
            a_job_that_is_nacked_keeps_its_id_and_its_place,
            a_delayed_nack_lets_others_by_and_comes_back,
            the_last_attempt_and_a_rejection_go_to_the_dead,
            a_dropped_delivery_comes_again_and_is_counted,
            max_run_ends_a_delivery_and_extend_moves_that,
            a_consumer_that_vanishes_is_followed_within_its_ttl_and_cannot_ack,
            an_outage_shorter_than_the_term_loses_nothing,
            a_node_deleted_by_force_loses_the_deliveries_and_not_the_consumer,
            a_claim_that_somebody_ends_is_lost_at_once,
            what_is_done_is_never_delivered_again,
            jobs_of_plain_producers_are_delivered_in_order_whatever_they_hold,
            what_is_no_state_sets_its_job_aside_and_harms_no_other,
            many_consumers_share_the_jobs_and_none_comes_twice,
            closing_gives_back_uncounted_what_nobody_got,
            a_shutdown_ends_deliveries_and_the_stream,
            bad_options_are_refused_before_anything_is_sent,
            a_worker_does_jobs_retries_failures_and_buries_poison,
            a_delay_without_end_ends_no_consumer,
            only_ids_of_ones_own_are_remembered_for_longer,
            a_reason_of_any_length_buries_the_job,
            a_worker_that_is_stopped_ends_what_it_has_begun,
            a_handler_is_cancelled_when_its_job_is_lost_and_the_worker_goes_on,
        );
    };
    (@each $attributes:meta, $world:expr, $($check:ident,)*) => {
        $(
            #[$attributes]
            async fn $check() {
                let (world, _server) = $world.await;
                suite::$check(world).await;
            }
        )*
    };
}
