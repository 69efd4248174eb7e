//! A queue across processes that are killed, with answers that are lost and requests that come
//! late: nothing is lost, nothing is stuck, and the referee sees no rule broken.
//!
//! A consumer process is this test binary again, told by its environment to be one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure::runtime::{Clock, Entropy};
use tenure::testkit::{Call, Faulty, Odds};
use tenure::{Client, Key, StoreExt, Ttl};

#[path = "common/api.rs"]
mod api;
mod common;
#[path = "common/ledger.rs"]
mod ledger;

use api::Api;
use ledger::Ledger;

const URL: &str = "TENURE_CONSUMER_URL";
const SEED: &str = "TENURE_CONSUMER_SEED";
const TTL: Duration = Duration::from_secs(3);
const PRODUCERS: usize = 4;
const CONSUMERS: usize = 4;
const SLOTS: usize = 8;

/// How many jobs, by each API: about 80 a second on two busy cores. The whole storm is 20,000.
fn jobs() -> usize {
    std::env::var("TENURE_QUEUE_JOBS").map_or(1_500, |it| it.parse().unwrap())
}

/// A client on which a few answers of a hundred are lost, and a few requests come late.
fn client(url: &str, seed: u64) -> Client {
    let link = Faulty::shared(api::open(url), seed);
    let mut odds = Odds::default();
    odds.lost_reply = 0.005;
    odds.lost_request = 0.005;
    odds.late_commit = 0.005;
    odds.longest = Duration::from_secs(2);
    let calls = [
        Call::Put,
        Call::Delete,
        Call::Append,
        Call::Renew,
        Call::Commit,
    ];
    for call in calls {
        link.set_odds(call, odds);
    }
    Client::builder(link).ttl(Ttl::new(TTL).unwrap()).build()
}

async fn consume(url: &str, seed: u64) {
    let client = client(url, seed);
    let worker = client.queue("storm").worker().concurrency(SLOTS);
    let outcome = worker
        .run(async |_job| {
            tokio::time::sleep(Duration::from_millis(3)).await;
            Ok::<_, std::io::Error>(())
        })
        .await;
    panic!("a worker ends when it is killed: {outcome:?}");
}

struct Consumer(Child);

impl Consumer {
    fn start(url: &str, seed: u64) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "four_producers_and_four_consumers_that_are_killed_lose_no_job",
            ])
            .env(URL, url)
            .env(SEED, seed.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn produce(
    client: Client,
    producer: usize,
    count: usize,
    pushed: Arc<AtomicUsize>,
) -> Vec<String> {
    let queue = client.queue("storm");
    let mut ids = Vec::new();
    for number in 0..count {
        // An id of its own, so that a push whose outcome is unknown can be repeated.
        let id = format!("{producer}-{number}");
        loop {
            match queue.push(id.clone()).id(&id).await {
                Ok(push) => {
                    ids.push(push.id.as_str().to_owned());
                    pushed.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(error) if error.is_ambiguous() || error.is_transient() => {}
                Err(error) => panic!("{id}: {error}"),
            }
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_producers_and_four_consumers_that_are_killed_lose_no_job() {
    if let Ok(url) = std::env::var(URL) {
        return consume(&url, std::env::var(SEED).unwrap().parse().unwrap()).await;
    }
    storm(Api::V2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_they_lose_none_either() {
    storm(Api::V3).await;
}

/// One at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn storm(api: Api) {
    let _alone = ALONE.lock().await;
    let server = api.start();
    let (url, jobs) = (api.address(&server), jobs());
    let root = Key::new("/_queues/storm").unwrap();
    let store = api.open(&server);
    let clock = Clock::boot();
    let began = clock.now();

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let referee = tokio::spawn(Ledger::follow(store.clone(), root.clone(), async {
        stopped.await.unwrap();
    }));
    let pushed = Arc::new(AtomicUsize::new(0));
    let mut producers = tokio::task::JoinSet::new();
    for producer in 0..PRODUCERS {
        let client = client(&url, producer as u64);
        producers.spawn(produce(client, producer, jobs / PRODUCERS, pushed.clone()));
    }
    let mut consumers: Vec<Consumer> = (0..CONSUMERS)
        .map(|it| Consumer::start(&url, 100 + it as u64))
        .collect();

    // Each second one consumer is killed and another started, until all jobs are gone.
    let entropy = Entropy::seeded(11);
    let (mut kills, mut ids, mut pushing) = (0, Vec::new(), Duration::ZERO);
    let limit = clock.now() + Duration::from_secs(60) + Duration::from_millis(30) * jobs as u32;
    loop {
        clock.sleep(Duration::from_secs(1)).await;
        while let Some(done) = producers.try_join_next() {
            ids.extend(done.unwrap());
            pushing = clock.now().since(began);
        }
        // Cheap: of a directory only that it is empty.
        let left = store
            .children(&root.join("jobs").unwrap())
            .await
            .unwrap_or_default()
            .len();
        if producers.is_empty() && left == 0 {
            break;
        }
        assert!(
            !clock.has_passed(limit),
            "{left} of {jobs} jobs are left after {kills} kills"
        );
        let victim = (entropy.u64() % CONSUMERS as u64) as usize;
        consumers[victim] = Consumer::start(&url, 1_000 + kills);
        kills += 1;
    }
    let took = clock.now().since(began);
    consumers.clear();

    // The books: each job is done, nothing else is left but that.
    let limit = clock.now() + TTL + Duration::from_secs(5);
    loop {
        let left = store
            .children(&root.join("consumers").unwrap())
            .await
            .unwrap();
        if left.is_empty() {
            break;
        }
        assert!(!clock.has_passed(limit), "consumers are left: {left:?}");
        clock.sleep(Duration::from_millis(50)).await;
    }
    let registers = store.children(&root.join("state").unwrap()).await.unwrap();
    // A list leaves out what has expired; etcd takes that away, and tells of it, twice a second.
    clock.sleep(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    let ledger = referee.await.unwrap();
    println!(
        "{api:?}: {jobs} jobs in {:.0} s, pushed in {:.0} s, {kills} kills, {} claims, {} taken over, {} of {} slots passed over at most, {} snapshots",
        took.as_secs_f64(),
        pushing.as_secs_f64(),
        ledger.claims,
        ledger.takeovers,
        ledger.passed_over,
        ledger.slots,
        ledger.snapshots,
    );
    ledger.check();
    let registers: BTreeMap<String, String> = registers
        .iter()
        .map(|node| {
            (
                node.key.name().to_owned(),
                String::from_utf8_lossy(&node.value).into_owned(),
            )
        })
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(
        ids.len(),
        jobs / PRODUCERS * PRODUCERS,
        "each push is a job of its own"
    );
    let not_done: Vec<_> = ids
        .iter()
        .filter(|id| !registers.get(*id).is_some_and(|it| it.starts_with("done")))
        .map(|id| (id, registers.get(id)))
        .take(10)
        .collect();
    assert!(not_done.is_empty(), "not acknowledged: {not_done:?}");
    assert_eq!(registers.len(), ids.len(), "registers without a job");
    assert!(kills > 3 && ledger.takeovers > 0, "a storm without storms");
}
