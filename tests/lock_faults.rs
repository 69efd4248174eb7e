//! The lock under faults that a test plans: each call of a run hit in turn by each fault, and
//! seeded storms of all of them. Over the embedded store on paused time, so that a failing seed
//! replays; and over the same store with no more than etcd v2 has.
//!
//! Checked on the recorded holds: no two overlap, tokens rise in the order of acquiring, and
//! after everything is healed the line moves and then is empty within the bound.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::{Clock, Entropy, Instant, Runtime};
use tenure::testkit::{Call, Fault, Faulty, Odds};
use tenure::{Client, Key, LockGuard, StoreExt};
use tokio::task::JoinSet;

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

const TTL: Duration = Duration::from_secs(3);
/// A late commit comes this long after the caller was told.
const LATE: Duration = Duration::from_secs(1);

/// What was held, from when to when at the latest.
#[derive(Clone, Debug)]
struct Hold {
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
}

impl Scene {
    fn new(kind: Kind, seed: u64) -> Self {
        let runtime = Runtime::on_tokio_time(seed);
        let store = kind.store(&runtime);
        Self {
            kind,
            runtime,
            store,
            holds: Arc::default(),
        }
    }

    fn clock(&self) -> &Clock {
        &self.runtime.clock
    }

    fn client(&self, seed: u64) -> (Client, Faulty<Embedded>) {
        self.kind.client(&self.store, &self.runtime, seed, TTL)
    }

    /// Holds for a while, as far as the lock lasts, and writes down for how long it was believed
    /// to be held.
    async fn hold(&self, guard: LockGuard, length: Duration) {
        let (token, from) = (guard.token(), self.clock().now());
        let _ = guard.run(self.clock().sleep(length)).await;
        // A guard that is still held is believed in until its release is asked for; one that is
        // not was believed in at most until now.
        let to = self.clock().now();
        self.holds.lock().unwrap().push(Hold { token, from, to });
        let _ = guard.release().await;
    }

    fn check_holds(&self, what: &str) -> usize {
        let mut holds = self.holds.lock().unwrap().clone();
        holds.sort_by_key(|hold| (hold.from, hold.token));
        for pair in holds.windows(2) {
            let [one, two] = pair else { unreachable!() };
            assert!(
                one.to <= two.from,
                "{what}: two holders: {one:?} and {two:?}"
            );
            assert!(
                one.token < two.token,
                "{what}: tokens fall: {one:?}, then {two:?}"
            );
        }
        holds.len()
    }

    async fn check_empties(&self, what: &str, limit: Duration) {
        let dir = Key::new("/_locks/a").unwrap();
        let end = self.clock().now() + limit;
        loop {
            let left = self.store.children(&dir).await.unwrap();
            if left.is_empty() {
                return;
            }
            assert!(
                !self.clock().has_passed(end),
                "{what}: left after {limit:?}: {left:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// One client takes the lock, keeps it over a renewal and gives it back; another waits for it,
/// and a third comes after. Returns how many calls each of the first two made.
async fn story(
    kind: Kind,
    what: &str,
    plan: impl Fn(&Faulty<Embedded>, &Faulty<Embedded>),
) -> (u64, u64) {
    let (scene, what) = (Scene::new(kind, 1), format!("{kind:?}: {what}"));
    let what = what.as_str();
    let ((a, a_link), (b, b_link)) = (scene.client(1), scene.client(2));
    plan(&a_link, &b_link);
    let mut tasks = JoinSet::new();
    for (client, wait) in [(a, 0), (b, 100)] {
        let scene = scene.clone();
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // A refused or unanswered acquire is an outcome too; what it leaves is looked at below.
            if let Ok(guard) = client.lock("a").acquire().await {
                scene.hold(guard, TTL / 2).await;
            }
            client.idle().await;
            client
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.unwrap());
    }
    let (c, _) = scene.client(3);
    let next = c
        .lock("a")
        .acquire()
        .timeout(TTL + LATE + Duration::from_secs(1))
        .await;
    let guard = next.unwrap_or_else(|error| panic!("{what}: the lock is stuck: {error}"));
    scene.hold(guard, Duration::from_millis(10)).await;
    a_link.quiesce().await;
    b_link.quiesce().await;
    scene.check_empties(what, TTL + LATE).await;
    scene.check_holds(what);
    (a_link.all_calls(), b_link.all_calls())
}

#[tokio::test(start_paused = true)]
async fn whichever_call_is_hit_by_whichever_fault_nobody_shares_the_lock_and_nothing_is_left() {
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
            a_calls >= 4 && b_calls >= 4,
            "append, renew, withdraw and what goes with them: {a_calls}, {b_calls}"
        );
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

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_any_call_does_not_keep_the_lock_from_its_taker() {
    for call in Call::ALL {
        let scene = Scene::new(Kind::Embedded, 1);
        let (client, link) = scene.client(1);
        link.next(*call, Fault::LostReply);
        let guard = client
            .lock("a")
            .acquire()
            .await
            .unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let kept = guard.run(scene.clock().sleep(TTL)).await;
        kept.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        guard
            .release()
            .await
            .unwrap_or_else(|error| panic!("{call:?}: {error}"));
        client.idle().await;
        scene.check_empties("a lost reply", Duration::ZERO).await;
    }
}

/// Storms: several clients cycle for a minute while everything goes wrong now and then; then all
/// is healed, and each must get the lock again.
async fn storm(kind: Kind, seed: u64) -> usize {
    let what = format!("{kind:?}, seed {seed}");
    let scene = Scene::new(kind, seed);
    let dice = Entropy::seeded(seed ^ 0x5eed);
    let end = scene.clock().now() + Duration::from_secs(60);
    let mut tasks = JoinSet::new();
    let mut links = Vec::new();
    for number in 0..4 {
        let (client, link) = scene.client(seed * 10 + number);
        link.set_all_odds(Odds::network(0.01, TTL * 2));
        links.push(link.clone());
        let (scene, dice) = (scene.clone(), Entropy::seeded(dice.u64()));
        tasks.spawn(async move {
            while !scene.clock().has_passed(end) {
                let lock = client.lock("a");
                let limit = Duration::from_millis(dice.u64() % 8_000);
                match lock.acquire().timeout(limit).await {
                    Ok(guard) => {
                        let length = Duration::from_millis(dice.u64() % 2_500);
                        scene.hold(guard, length).await;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(dice.u64() % 200)).await,
                }
                if dice.u64() % 16 == 0 {
                    link.set_down(true);
                    tokio::time::sleep(Duration::from_millis(dice.u64() % 4_000)).await;
                    link.set_down(false);
                }
            }
            client
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.unwrap());
    }
    for link in &links {
        link.heal();
        link.quiesce().await;
    }
    for client in &clients {
        let guard = client.lock("a").acquire().timeout(TTL * 4).await;
        let guard =
            guard.unwrap_or_else(|error| panic!("{what}: no progress after healing: {error}"));
        scene.hold(guard, Duration::from_millis(1)).await;
    }
    scene.check_empties(&what, TTL * 2).await;
    scene.check_holds(&what)
}

/// Short holds, so that names are used again where they can be, while withdrawals come twice, late
/// or unheard of. Nobody deletes anything by force, so nothing is lost.
async fn echoes(seed: u64) -> (usize, usize) {
    let scene = Scene::new(Kind::V3Like, seed);
    let end = scene.clock().now() + Duration::from_secs(20);
    let mut tasks = JoinSet::new();
    for number in 0..3 {
        let (client, link) = scene.client(seed * 10 + number);
        let mut odds = Odds::network(0.02, Duration::from_millis(900));
        odds.echo = 0.5;
        link.set_patience(Duration::from_millis(200));
        link.set_odds(Call::Withdraw, odds);
        let (scene, dice) = (scene.clone(), Entropy::seeded(seed ^ number));
        tasks.spawn(async move {
            let (mut names, mut reused) = (BTreeSet::new(), 0);
            while !scene.clock().has_passed(end) {
                let guard = client.lock("a").acquire().await.unwrap();
                reused += usize::from(!names.insert(guard.key().clone()));
                let length = scene.clock().sleep(Duration::from_millis(dice.u64() % 60));
                let kept = guard.run(length).await;
                kept.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                scene.hold(guard, Duration::ZERO).await;
                let pause = Duration::from_millis(dice.u64() % 40);
                scene.clock().sleep(pause).await;
            }
            link.quiesce().await;
            (client, reused)
        });
    }
    let mut reused = 0;
    let mut clients = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (client, count) = done.unwrap();
        clients.push(client);
        reused += count;
    }
    let what = format!("echoes, seed {seed}");
    scene.check_empties(&what, TTL * 2).await;
    (scene.check_holds(&what), reused)
}

#[test]
fn withdrawals_that_come_twice_harm_nobody_who_has_the_name_by_then() {
    let (mut holds, mut reused) = (0, 0);
    for seed in 1..=40 {
        let (held, names) = paused(echoes(seed));
        (holds, reused) = (holds + held, reused + names);
    }
    println!("{holds} holds, {reused} of them under a name that was used before");
    assert!(
        reused > 1_000,
        "{reused} of {holds}: too few to mean anything"
    );
}

/// It was found in the line, but whatever repeated it on the way can do so again.
#[test]
fn the_name_of_an_append_that_was_not_answered_is_not_used_again() {
    paused(async {
        let scene = Scene::new(Kind::V3Like, 1);
        let (client, link) = scene.client(1);
        link.set_patience(Duration::from_millis(100));
        let mut before = None;
        for fault in [None, None, Some(Fault::LostReply), None] {
            if let Some(fault) = fault {
                // Now the name of before is taken from, and this one is put to, what is spared.
                link.next(Call::Append, fault);
            }
            let guard = client.lock("a").acquire().await.unwrap();
            let name = guard.key().clone();
            guard.release().await.unwrap();
            if let Some((named, was)) = before.replace((name.clone(), fault)) {
                assert_eq!(named == name, was.is_none(), "after {was:?}");
            }
        }
    });
}

fn paused<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(story)
}

#[test]
fn in_seeded_storms_nobody_shares_the_lock_and_all_recover() {
    let seeds = std::env::var("TENURE_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(100);
    let first = std::env::var("TENURE_FIRST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    for kind in Kind::ALL {
        let mut holds = 0;
        for seed in first..first + seeds {
            holds += paused(storm(kind, seed));
        }
        assert!(
            holds > seeds as usize * 10,
            "{kind:?}: {holds} holds in {seeds} storms: too few to mean anything"
        );
        println!("{kind:?}: {seeds} storms of 60 s: {holds} holds, none shared");
    }
}
