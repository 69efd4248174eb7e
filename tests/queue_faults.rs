//! The queue under faults that a test plans: each call of a run hit in turn by each fault, and
//! seeded storms of all of them. Over the embedded store on paused time, so that a failing seed
//! replays; and over the same store with no more than etcd v2 has.
//!
//! Checked on what the store was told, change by change: a job that is done is never claimed again,
//! attempts rise one by one, and at the end every job is done, and nothing is left but that. Checked
//! on what the consumers believed: no two held one job at a time, and its tokens rise.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::{Clock, Entropy, Instant, Runtime};
use tenure::store::{Change, Condition, Event, Expiry, Put, Update, Watch};
use tenure::testkit::{Call, Fault, Faulty, Odds, cancel_after, cancel_at_every_poll};
use tenure::{Client, Consumer, Delivery, Index, Key, Store, StoreExt};
use tokio::task::JoinSet;

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

const TTL: Duration = Duration::from_secs(3);
/// A late commit comes this long after the caller was told.
const LATE: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// What was held, from when to when at the latest.
#[derive(Clone, Debug)]
struct Hold {
    id: String,
    token: u64,
    from: Instant,
    to: Instant,
}

#[derive(Clone)]
struct Scene {
    kind: Kind,
    runtime: Runtime,
    store: Embedded,
    holds: Arc<Mutex<Vec<Hold>>>,
    /// Everything that the store was told about the queue.
    log: Arc<Mutex<Vec<Event>>>,
}

fn key(text: impl AsRef<str>) -> Key {
    Key::new(text).unwrap()
}

impl Scene {
    fn new(kind: Kind, seed: u64) -> Self {
        let runtime = Runtime::on_tokio_time(seed);
        let store = kind.store(&runtime);
        let log: Arc<Mutex<Vec<Event>>> = Arc::default();
        let from = Index::new(1).unwrap();
        let mut updates = store.watch(Watch::tree(key("/_queues/q")).from(from));
        tokio::spawn({
            let log = log.clone();
            async move {
                while let Some(Ok(update)) = updates.next().await {
                    if let Update::Event(event) = update {
                        log.lock().unwrap().push(event);
                    }
                }
            }
        });
        Self {
            kind,
            runtime,
            store,
            holds: Arc::default(),
            log,
        }
    }

    fn clock(&self) -> &Clock {
        &self.runtime.clock
    }

    fn client(&self, seed: u64) -> (Client, Faulty<Embedded>) {
        self.kind.client(&self.store, &self.runtime, seed, TTL)
    }

    async fn push(&self, name: &str) {
        let put = Put::new(key(format!("/_queues/q/jobs/{name}")), "x", Expiry::Never);
        self.store.put(put.when(Condition::Absent)).await.unwrap();
    }

    /// Works on a delivery as long as it is held, and writes down for how long it was believed to
    /// be.
    async fn hold(&self, delivery: &Delivery, length: Duration) {
        let from = self.clock().now();
        let _ = delivery.run(self.clock().sleep(length)).await;
        let hold = Hold {
            id: delivery.id().to_string(),
            token: delivery.token(),
            from,
            to: self.clock().now(),
        };
        self.holds.lock().unwrap().push(hold);
    }

    fn check_holds(&self, what: &str) -> usize {
        let mut by_id: BTreeMap<String, Vec<Hold>> = BTreeMap::new();
        let holds = self.holds.lock().unwrap().clone();
        for hold in &holds {
            by_id.entry(hold.id.clone()).or_default().push(hold.clone());
        }
        for holds in by_id.values_mut() {
            holds.sort_by_key(|hold| (hold.from, hold.token));
            for pair in holds.windows(2) {
                let [one, two] = pair else { unreachable!() };
                assert!(
                    one.to <= two.from,
                    "{what}: held by two: {one:?} and {two:?}"
                );
                assert!(
                    one.token < two.token,
                    "{what}: tokens fall: {one:?}, {two:?}"
                );
            }
        }
        holds.len()
    }

    async fn log(&self) -> Vec<Event> {
        // On paused time whoever can read has read before the clock moves.
        tokio::time::sleep(MS).await;
        self.log.lock().unwrap().clone()
    }

    /// Checks every change of every register; returns how many deliveries there were.
    async fn check_log(&self, what: &str) -> usize {
        let (state, mut last) = (key("/_queues/q/state"), BTreeMap::<String, String>::new());
        let mut claims = 0;
        for event in self.log().await {
            let Some(name) = event.key.below(&state).map(str::to_owned) else {
                continue;
            };
            let before = last
                .get(&name)
                .cloned()
                .unwrap_or_else(|| "ready 0 0".into());
            let Change::Put(node) = event.change else {
                panic!("{what}: {name}: its register was deleted after {before:?}");
            };
            let after = node.text().unwrap().to_owned();
            let word = |text: &str, n: usize| text.split(' ').nth(n).unwrap().to_owned();
            let (from, to) = (word(&before, 0), word(&after, 0));
            let attempts = |text: &str| word(text, 1).parse::<u64>().unwrap();
            let change = format!("{what}: {name}: {before:?} became {after:?}");
            match (from.as_str(), to.as_str()) {
                ("ready" | "claimed", "claimed") => {
                    claims += 1;
                    assert_eq!(attempts(&after), attempts(&before) + 1, "{change}");
                }
                ("claimed", "ready") => {
                    let (n, m) = (attempts(&before), attempts(&after));
                    assert!(m == n || m + 1 == n, "{change}");
                }
                ("claimed", "done") => {
                    assert_eq!(word(&before, 3), word(&after, 2), "{change}");
                    assert_eq!(attempts(&after), attempts(&before), "{change}");
                }
                _ => panic!("{change}"),
            }
            last.insert(name, after);
        }
        claims
    }

    /// Waits until nothing is left but what is done, of which there is so much.
    async fn check_books(&self, what: &str, jobs: usize, limit: Duration) {
        let (root, end) = (key("/_queues/q"), self.clock().now() + limit);
        loop {
            let left = self.store.leaves(&root).await.unwrap();
            let done = |node: &&tenure::store::Node| node.text().unwrap().starts_with("done ");
            if left.len() == jobs && left.iter().filter(done).count() == jobs {
                return;
            }
            assert!(
                !self.clock().has_passed(end),
                "{what}: left after {limit:?}: {left:#?}"
            );
            tokio::time::sleep(MS * 10).await;
        }
    }

    async fn all_done(&self, jobs: usize) -> bool {
        let state = key("/_queues/q/state");
        let done = self.store.children(&state).await.unwrap();
        done.iter()
            .filter(|node| node.text().unwrap().starts_with("done "))
            .count()
            == jobs
    }
}

const STORY: [&str; 4] = ["d", "c", "b", "a"];

/// Two consumers do four jobs, of which they nack one first; a third comes at the end. Returns how
/// many calls each of the first two made.
async fn story(
    kind: Kind,
    what: &str,
    plan: impl Fn(&Faulty<Embedded>, &Faulty<Embedded>),
) -> (u64, u64) {
    let (scene, what) = (Scene::new(kind, 1), format!("{kind:?}: {what}"));
    let what = what.as_str();
    for name in STORY {
        scene.push(name).await;
    }
    let ((a, a_link), (b, b_link)) = (scene.client(1), scene.client(2));
    plan(&a_link, &b_link);
    let end = scene.clock().now() + TTL * 2;
    let mut tasks = JoinSet::new();
    for (client, slots, wait) in [(a, 1, 0), (b, 2, 100)] {
        let scene = scene.clone();
        tasks.spawn(async move {
            tokio::time::sleep(MS * wait).await;
            let mut consumer = client.queue("q").consumer(slots);
            while !scene.clock().has_passed(end) && !scene.all_done(STORY.len()).await {
                let Ok(item) = tokio::time::timeout(MS * 50, consumer.next()).await else {
                    continue;
                };
                // A stream that has ended is an outcome too; what it leaves is looked at below.
                let Some(Ok(delivery)) = item else { break };
                scene.hold(&delivery, MS * 400).await;
                let _ = match (delivery.id().as_str(), delivery.attempt()) {
                    ("c", 1) => delivery.nack().await,
                    _ => delivery.ack().await,
                };
            }
            consumer.close().await;
            client.idle().await;
            client
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.unwrap());
    }
    let (c, _) = scene.client(3);
    let mut consumer = c.queue("q").consumer(2);
    let limit = scene.clock().now() + TTL + LATE * 2;
    while !scene.all_done(STORY.len()).await {
        assert!(!scene.clock().has_passed(limit), "{what}: a job is stuck");
        let Ok(item) = tokio::time::timeout(MS * 50, consumer.next()).await else {
            continue;
        };
        let delivery = item.unwrap().unwrap();
        scene.hold(&delivery, MS * 10).await;
        delivery
            .ack()
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    a_link.quiesce().await;
    b_link.quiesce().await;
    // What the dead have left is cleared away by who is there.
    tokio::time::sleep(Duration::from_secs(5)).await;
    consumer.close().await;
    scene.check_books(what, STORY.len(), TTL + LATE).await;
    scene.check_log(what).await;
    scene.check_holds(what);
    (a_link.all_calls(), b_link.all_calls())
}

#[tokio::test(start_paused = true)]
async fn whichever_call_is_hit_by_whichever_fault_no_job_is_lost_or_held_by_two() {
    let faults = [
        Fault::LostRequest,
        Fault::LostReply,
        Fault::LateCommit(LATE),
        Fault::Delay(LATE),
        Fault::SlowReply(LATE),
        Fault::SlowReply(TTL * 2),
        Fault::Unavailable,
        Fault::Unreachable,
    ];
    for kind in Kind::ALL {
        let (a_calls, b_calls) = story(kind, "no fault", |_, _| {}).await;
        assert!(
            a_calls >= 8 && b_calls >= 8,
            "claims, reads, acks: {a_calls}, {b_calls}"
        );
        println!("{kind:?}: {a_calls} and {b_calls} calls");
        for fault in faults {
            for n in 1..=a_calls.max(b_calls) + 2 {
                let what = format!("{fault:?} on call {n} of the first");
                story(kind, &what, |a, _| a.nth_of_all(n, fault)).await;
                let what = format!("{fault:?} on call {n} of the second");
                story(kind, &what, |_, b| b.nth_of_all(n, fault)).await;
            }
        }
    }
}

/// What one client of a storm does until the end.
async fn suffer(
    scene: Scene,
    client: Client,
    link: Faulty<Embedded>,
    dice: Entropy,
    end: Instant,
) -> Client {
    while !scene.clock().has_passed(end) {
        let slots = 1 + dice.u64() as usize % 3;
        let queue = client.queue("q").consumer(slots).max_attempts(1_000);
        let mut consumer = queue.max_run(Duration::from_secs(2));
        for _ in 0..dice.u64() % 40 {
            let wait = MS * (dice.u64() % 500) as u32;
            match tokio::time::timeout(wait, consumer.next()).await {
                Ok(Some(Ok(delivery))) => {
                    let length = MS * (dice.u64() % 900) as u32;
                    scene.hold(&delivery, length).await;
                    let ending = async {
                        match dice.u64() % 10 {
                            0 => drop(delivery.nack().await),
                            1 => drop(delivery.nack_after(length).await),
                            2 => drop(delivery),
                            _ => drop(delivery.ack().await),
                        }
                    };
                    // Some are not waited for.
                    let polls = if dice.u64().is_multiple_of(8) {
                        1
                    } else {
                        usize::MAX
                    };
                    cancel_after(ending, polls).await;
                }
                Ok(Some(Err(error))) => panic!("{error}"),
                Ok(None) => panic!("it ended"),
                Err(_) => {}
            }
            if dice.u64().is_multiple_of(64) {
                link.set_down(true);
                tokio::time::sleep(MS * (dice.u64() % 5_000) as u32).await;
                link.set_down(false);
            }
        }
        if dice.u64().is_multiple_of(2) {
            drop(consumer);
        } else {
            consumer.close().await;
        }
    }
    client
}

/// Storms: several consumers for a minute while everything goes wrong now and then; then all is
/// healed, and what is left must be done.
async fn storm(kind: Kind, seed: u64) -> usize {
    const JOBS: usize = 60;
    let what = format!("{kind:?}, seed {seed}");
    let scene = Scene::new(kind, seed);
    let dice = Entropy::seeded(seed ^ 0x5eed);
    let end = scene.clock().now() + Duration::from_secs(40);
    let mut tasks = JoinSet::new();
    let mut links = Vec::new();
    for number in 0..4 {
        let (client, link) = scene.client(seed * 10 + number);
        link.set_all_odds(Odds::network(0.01, TTL * 2));
        links.push(link.clone());
        let dice = Entropy::seeded(dice.u64());
        tasks.spawn(suffer(scene.clone(), client, link, dice, end));
    }
    for number in 0..JOBS {
        scene.push(&format!("{:03}", 999 - number)).await;
        tokio::time::sleep(MS * (dice.u64() % 1_000) as u32).await;
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.unwrap());
    }
    for link in &links {
        link.heal();
        link.quiesce().await;
    }
    let mut consumer = clients[0].queue("q").consumer(3).max_attempts(1_000);
    let limit = scene.clock().now() + TTL * 4;
    while !scene.all_done(JOBS).await {
        assert!(!scene.clock().has_passed(limit), "{what}: a job is stuck");
        let Ok(item) = tokio::time::timeout(MS * 50, consumer.next()).await else {
            continue;
        };
        let delivery = item.unwrap().unwrap();
        scene.hold(&delivery, MS).await;
        delivery.ack().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    consumer.close().await;
    scene.check_books(&what, JOBS, TTL * 2).await;
    scene.check_holds(&what);
    scene.check_log(&what).await
}

#[test]
fn in_seeded_storms_no_job_is_lost_or_held_by_two_and_all_are_done() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let seeds = number("TENURE_SEEDS").unwrap_or(40);
    let first = number("TENURE_FIRST_SEED").unwrap_or(1);
    for kind in Kind::ALL {
        let mut claims = 0;
        for seed in first..first + seeds {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            claims += runtime.block_on(storm(kind, seed));
        }
        assert!(
            claims > seeds as usize * 60,
            "{kind:?}: {claims} claims in {seeds} storms: nothing came twice"
        );
        println!(
            "{kind:?}: {seeds} storms of 40 s: {claims} claims, all jobs done, none held by two"
        );
    }
}

/// With nothing wrong: a job is first claimed only while fewer older ones are open than there are
/// slots.
#[tokio::test(start_paused = true)]
async fn the_order_is_kept_up_to_the_number_of_slots() {
    const JOBS: usize = 300;
    const SLOTS: usize = 2;
    const CONSUMERS: usize = 3;
    for kind in Kind::ALL {
        let scene = Scene::new(kind, 7);
        let mut tasks = JoinSet::new();
        for number in 0..CONSUMERS as u64 {
            let (scene, (client, _)) = (scene.clone(), scene.client(number));
            let dice = Entropy::seeded(number);
            tasks.spawn(async move {
                let mut consumer = client.queue("q").consumer(SLOTS);
                while !scene.all_done(JOBS).await {
                    let next = tokio::time::timeout(MS * 50, consumer.next());
                    let Ok(item) = next.await else { continue };
                    let delivery = item.unwrap().unwrap();
                    scene.hold(&delivery, MS * (dice.u64() % 20) as u32).await;
                    delivery.ack().await.unwrap();
                }
                consumer.close().await;
            });
        }
        for number in 0..JOBS {
            scene.push(&format!("{:04}", JOBS - number)).await;
            if number % 50 == 0 {
                tokio::time::sleep(MS * 100).await;
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let (jobs, state) = (key("/_queues/q/jobs"), key("/_queues/q/state"));
        let (mut open, mut worst) = (BTreeSet::new(), 0);
        let mut created = BTreeMap::new();
        for event in scene.log().await {
            let is_put = matches!(event.change, Change::Put(_));
            if let Some(name) = event.key.below(&jobs).filter(|_| is_put) {
                open.insert((event.index, name.to_owned()));
                created.insert(name.to_owned(), event.index);
            }
            if let Some(name) = event.key.below(&state).map(str::to_owned) {
                let place = (created[&name], name);
                let older = open.iter().take_while(|it| **it < place).count();
                if open.remove(&place) {
                    worst = worst.max(older);
                }
            }
        }
        println!("{kind:?}: at most {worst} older jobs were open");
        assert!(open.is_empty() && worst < SLOTS * CONSUMERS, "{worst}");
        assert!(worst > 0, "several consumers");
        assert_eq!(scene.check_log("calm").await, JOBS, "one claim each");
        scene.check_books("calm", JOBS, TTL).await;
    }
}

async fn take(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(TTL * 3, consumer.next()).await;
    next.expect("in time").expect("it goes on").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_next_dropped_at_any_poll_loses_no_job_and_no_attempt() {
    for kind in Kind::ALL {
        let polls = cancel_at_every_poll(500, |polls| async move {
            let scene = Scene::new(kind, 1);
            scene.push("a").await;
            let (client, _) = scene.client(1);
            let mut consumer = client.queue("q").consumer(1);
            let delivery = match cancel_after(consumer.next(), polls).await {
                Some(item) => (item.unwrap().unwrap(), true),
                None => (take(&mut consumer).await, false),
            };
            assert_eq!(delivery.0.attempt(), 1);
            delivery.0.ack().await.unwrap();
            consumer.close().await;
            scene.check_books("next", 1, TTL).await;
            delivery.1
        });
        assert!(polls.await.is_some());
        // And with the consumer.
        let polls = cancel_at_every_poll(500, |polls| async move {
            let scene = Scene::new(kind, 1);
            scene.push("a").await;
            let (client, _) = scene.client(1);
            let mut consumer = client.queue("q").consumer(1);
            let is_done = cancel_after(consumer.next(), polls).await.is_some();
            drop(consumer);
            let mut other = client.queue("q").consumer(1);
            let delivery = take(&mut other).await;
            assert_eq!(delivery.attempt(), 1 + u32::from(is_done));
            delivery.ack().await.unwrap();
            other.close().await;
            scene.check_books("next", 1, TTL).await;
            is_done
        });
        assert!(polls.await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_ack_or_a_nack_dropped_after_its_first_poll_is_done_in_the_background() {
    for kind in Kind::ALL {
        for is_ack in [true, false] {
            let polls = cancel_at_every_poll(100, |polls| async move {
                let scene = Scene::new(kind, 1);
                scene.push("a").await;
                let (client, _) = scene.client(1);
                let mut consumer = client.queue("q").consumer(1);
                let delivery = take(&mut consumer).await;
                let ending = async {
                    match is_ack {
                        true => delivery.ack().await.unwrap(),
                        false => delivery.nack().await.unwrap(),
                    }
                };
                let is_done = cancel_after(ending, polls).await.is_some();
                if is_ack && polls > 0 {
                    let done = async {
                        while !scene.all_done(1).await {
                            tokio::time::sleep(MS).await;
                        }
                    };
                    tokio::time::timeout(MS * 500, done)
                        .await
                        .expect("in the background");
                } else {
                    let again = take(&mut consumer).await;
                    assert_eq!(again.attempt(), 2);
                    again.ack().await.unwrap();
                }
                consumer.close().await;
                scene.check_books("ack", 1, TTL).await;
                is_done
            });
            assert!(polls.await.is_some());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_commits_late_is_put_back_and_comes_uncounted() {
    for kind in Kind::ALL {
        let scene = Scene::new(kind, 1);
        scene.push("a").await;
        let (client, link) = scene.client(1);
        link.next(Call::Put, Fault::LateCommit(LATE / 2));
        let mut consumer = client.queue("q").consumer(1);
        let delivery = take(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1);
        let words: Vec<String> = scene.log().await.iter().filter_map(said).collect();
        assert_eq!(words, ["claimed", "ready", "claimed"], "{kind:?}");
        delivery.ack().await.unwrap();
        consumer.close().await;
        scene.check_books("late", 1, TTL).await;
    }
}

/// The first word that a register was written with.
fn said(event: &Event) -> Option<String> {
    event.key.below(&key("/_queues/q/state"))?;
    match &event.change {
        Change::Put(node) => node.text()?.split(' ').next().map(str::to_owned),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_dropped_at_any_poll_loses_no_job() {
    for kind in Kind::ALL {
        let polls = cancel_at_every_poll(500, |polls| async move {
            let scene = Scene::new(kind, 1);
            for name in STORY {
                scene.push(name).await;
            }
            let (client, _) = scene.client(1);
            let worker = client.queue("q").worker().concurrency(2);
            let worker = worker.retry_delay(|_| MS * 10);
            let (clock, all) = (scene.clock().clone(), scene.clone());
            let worker = worker.until(async move {
                while !all.all_done(STORY.len()).await {
                    tokio::time::sleep(MS).await;
                }
            });
            let running = worker.run(move |job: tenure::Job| {
                let clock = clock.clone();
                async move {
                    clock.sleep(MS * 20).await;
                    match (job.id().as_str(), job.attempt()) {
                        ("c", 1) => panic!("on purpose"),
                        ("b", 1) => Err("on purpose"),
                        _ => Ok(()),
                    }
                }
            });
            let is_done = match cancel_after(running, polls).await {
                Some(report) => {
                    assert_eq!(report.unwrap().acked, STORY.len() as u64);
                    true
                }
                None => false,
            };
            let (other, _) = scene.client(2);
            let mut consumer = other.queue("q").consumer(1);
            let end = scene.clock().now() + TTL;
            while !scene.all_done(STORY.len()).await {
                assert!(!scene.clock().has_passed(end), "{kind:?}, {polls}: stuck");
                let next = tokio::time::timeout(MS * 50, consumer.next());
                let Ok(item) = next.await else { continue };
                item.unwrap().unwrap().ack().await.unwrap();
            }
            consumer.close().await;
            scene.check_log("a dropped worker").await;
            scene
                .check_books("a dropped worker", STORY.len(), TTL * 2)
                .await;
            is_done
        });
        assert!(polls.await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_long_outage_the_queue_goes_on() {
    for kind in Kind::ALL {
        let scene = Scene::new(kind, 1);
        let (client, link) = scene.client(1);
        scene.push("first").await;
        let mut consumer = client.queue("q").consumer(1);
        let held = take(&mut consumer).await;
        link.set_down(true);
        for number in 0..3_000 {
            scene.push(&format!("{number:04}")).await;
        }
        tokio::time::sleep(Duration::from_secs(12 * 60)).await;
        assert!(!held.is_held());
        link.set_down(false);
        let again = take(&mut consumer).await;
        assert_eq!((again.id().as_str(), again.attempt()), ("first", 2));
        again.ack().await.unwrap();
        for number in 0..3_000 {
            let delivery = take(&mut consumer).await;
            assert_eq!(delivery.id().as_str(), format!("{number:04}"));
            delivery.ack().await.unwrap();
        }
        consumer.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_nacks_change_neither_the_job_nor_its_place() {
    let scene = Scene::new(Kind::V2Like, 1);
    for name in ["b", "a"] {
        scene.push(name).await;
    }
    let before = scene.store.node(&key("/_queues/q/jobs/b")).await.unwrap();
    let (client, _) = scene.client(1);
    let mut consumer = client.queue("q").consumer(1).max_attempts(2_000);
    for attempt in 1..=1_000 {
        let delivery = take(&mut consumer).await;
        assert_eq!((delivery.id().as_str(), delivery.attempt()), ("b", attempt));
        delivery.nack().await.unwrap();
    }
    assert_eq!(
        scene.store.node(&key("/_queues/q/jobs/b")).await.unwrap(),
        before
    );
    for name in ["b", "a"] {
        let delivery = take(&mut consumer).await;
        assert_eq!(delivery.id().as_str(), name);
        delivery.ack().await.unwrap();
    }
}
