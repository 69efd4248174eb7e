//! Everything of a client hangs on one session: a leadership that is proclaimed again and again, a
//! lock, permits and several locks at once, in seeded storms of faults. Over the embedded store on
//! paused time, and over the same store with no more than etcd v2 has, or as etcd v3 lays out lines.
//!
//! Checked: nothing is held twice, no more permits than there are; nothing is lost while no call
//! goes unanswered for long; after everything is healed each client gets its turn, and what was
//! given up is gone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure::runtime::{Clock, Instant, Runtime};
use tenure::store::Get;
use tenure::testkit::{Faulty, Odds};
use tenure::{Client, Error, ErrorKind, Key, Store};
use tokio::task::JoinSet;

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

const TTL: Duration = Duration::from_secs(9);
const LENGTH: Duration = Duration::from_secs(90);
const PERMITS: usize = 2;

/// From when to when.
type Span = (Instant, Instant);

/// What was held, and when: from the acquire to what ended it.
#[derive(Clone, Default)]
struct Book {
    held: Arc<Mutex<BTreeMap<String, Vec<Span>>>>,
    lost: Arc<Mutex<Vec<String>>>,
}

impl Book {
    fn note(&self, name: &str, from: Instant, to: Instant) {
        let mut held = self.held.lock().unwrap();
        held.entry(name.into()).or_default().push((from, to));
    }

    fn lost(&self, what: &str, error: &Error) {
        assert_eq!(error.kind(), ErrorKind::Lost, "{what}: {error}");
        self.lost.lock().unwrap().push(format!("{what}: {error}"));
    }

    /// How often each was held; panics if more than `most` held one at a time.
    fn check(&self, seed: u64) -> BTreeMap<String, usize> {
        let held = self.held.lock().unwrap();
        for (name, spans) in held.iter() {
            let most = if name == "s" { PERMITS } else { 1 };
            for (from, _) in spans {
                let at = spans.iter().filter(|it| it.0 <= *from && *from < it.1);
                let at: Vec<_> = at.collect();
                assert!(at.len() <= most, "seed {seed}: {name}: {at:?}");
            }
        }
        held.iter()
            .map(|(name, it)| (name.clone(), it.len()))
            .collect()
    }
}

async fn locks(client: Client, clock: Clock, book: Book, until: Instant) {
    let lock = client.lock("a");
    while !clock.has_passed(until) {
        if let Ok(guard) = lock.acquire().await {
            let from = clock.now();
            let outcome = guard.run(clock.sleep(Duration::from_millis(1_700))).await;
            book.note("a", from, clock.now());
            let _ = outcome.map_err(|error| book.lost("lock", &error));
            let _ = guard.release().await;
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
}

async fn several(client: Client, clock: Clock, book: Book, until: Instant) {
    let locks = client.lock_all(["a", "b"]);
    while !clock.has_passed(until) {
        if let Ok(guard) = locks.acquire().timeout(TTL * 2).await {
            let from = clock.now();
            let outcome = guard.run(clock.sleep(Duration::from_millis(400))).await;
            book.note("a", from, clock.now());
            book.note("b", from, clock.now());
            let _ = outcome.map_err(|error| book.lost("several", &error));
            let _ = guard.release().await;
        }
        clock.sleep(Duration::from_millis(500)).await;
    }
}

async fn permits(client: Client, clock: Clock, book: Book, until: Instant) {
    let semaphore = client.semaphore("s").permits(PERMITS as u32);
    while !clock.has_passed(until) {
        if let Ok(permit) = semaphore.acquire().await {
            let from = clock.now();
            let outcome = permit.run(clock.sleep(Duration::from_millis(2_300))).await;
            book.note("s", from, clock.now());
            let _ = outcome.map_err(|error| book.lost("permit", &error));
            let _ = permit.release().await;
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
}

async fn leads(client: Client, clock: Clock, book: Book, until: Instant) {
    let election = client.election("e");
    while !clock.has_passed(until) {
        if let Ok(leadership) = election.campaign("0").await {
            let from = clock.now();
            let work = async {
                for number in 1..40 {
                    clock.sleep(Duration::from_millis(150)).await;
                    if let Err(error) = leadership.proclaim(number.to_string()).await {
                        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
                        return;
                    }
                }
            };
            let outcome = leadership.run(work).await;
            book.note("e", from, clock.now());
            let _ = outcome.map_err(|error| book.lost("leadership", &error));
            let _ = leadership.resign().await;
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
}

async fn storm(kind: Kind, seed: u64, odds: Odds) -> (BTreeMap<String, usize>, Vec<String>) {
    let runtime = Runtime::on_tokio_time(seed);
    let clock = runtime.clock.clone();
    let store = kind.store(&runtime);
    let (book, mut tasks) = (Book::default(), JoinSet::new());
    let (mut clients, mut links) = (Vec::new(), Vec::new());
    let until = clock.now() + LENGTH;
    for number in 0..3 {
        let seed = seed * 10 + number;
        let (client, link) = kind.client(&store, &runtime, seed, TTL);
        link.set_patience(Duration::from_secs(1));
        let all = (client.clone(), clock.clone(), book.clone());
        let (one, two, three) = (all.clone(), all.clone(), all.clone());
        tasks.spawn(locks(one.0, one.1, one.2, until));
        tasks.spawn(several(two.0, two.1, two.2, until));
        tasks.spawn(permits(three.0, three.1, three.2, until));
        tasks.spawn(leads(all.0, all.1, all.2, until));
        link.set_all_odds(odds);
        clients.push(client);
        links.push(link);
    }
    clock.sleep(LENGTH).await;
    links.iter().for_each(Faulty::heal);
    let limit = TTL * 4;
    let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    let ended = tokio::time::timeout(limit, all).await;
    assert!(ended.is_ok(), "seed {seed}: somebody does not get a turn");
    for client in &clients {
        let ended = client.shutdown(TTL).await;
        assert_eq!((ended.left_to_ttl, ended.tasks_left), (0, 0), "seed {seed}");
    }
    for link in &links {
        link.quiesce().await;
    }
    clock.sleep(TTL + Duration::from_secs(1)).await;
    for dir in [
        "/_locks/a",
        "/_locks/b",
        "/_elections/e",
        "/_semaphores/s/line",
        "/_sessions",
    ] {
        let left = store
            .get(Get::children(Key::new(dir).unwrap()))
            .await
            .unwrap();
        assert_eq!(left.nodes, [], "seed {seed}");
    }
    let lost = book.lost.lock().unwrap().clone();
    (book.check(seed), lost)
}

fn kind(seed: u64) -> Kind {
    Kind::ALL[usize::try_from(seed % 3).unwrap()]
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().start_paused(true).build();
    runtime.unwrap().block_on(future)
}

#[test]
fn in_seeded_storms_nothing_that_hangs_on_one_session_is_held_twice_or_left() {
    for seed in 0..18 {
        let odds = Odds::network(0.02, Duration::from_secs(2));
        let (held, _) = run(storm(kind(seed), seed, odds));
        assert!(held.len() == 4, "seed {seed}: {held:?}");
    }
}

#[test]
fn what_hangs_on_one_session_outlasts_answers_that_are_lost() {
    for seed in 0..18 {
        let mut odds = Odds::none();
        odds.lost_reply = 0.04;
        odds.lost_request = 0.04;
        odds.unavailable = 0.04;
        let (held, lost) = run(storm(kind(seed), seed, odds));
        assert!(lost.is_empty(), "seed {seed}: {lost:?} of {held:?}");
    }
}
