//! The semaphore under faults that a test plans: each call of a run hit in turn by each fault, and
//! seeded storms of all of them with kills, outages and resizes. Over the embedded store on paused
//! time, so that a failing seed replays; and over the same store with no more than etcd v2 has.
//!
//! Checked on what was recorded: see `Record`. After everything is healed each client gets its
//! turn, all permits can be had at once, and the line is empty within the bound.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::{Clock, Entropy, Runtime};
use tenure::store::{Change, Expiry, Update, Watch};
use tenure::testkit::{Call, Fault, Faulty, Odds, Outage};
use tenure::{Client, ErrorKind, Key, Permit, Store, StoreExt};
use tokio::task::JoinSet;

#[path = "common/kinds.rs"]
mod kinds;
#[path = "semaphore_suite/record.rs"]
mod record;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

use record::Record;

const TTL: Duration = Duration::from_secs(3);
/// A late commit comes this long after the caller was told.
const LATE: Duration = Duration::from_secs(1);

const FAULTS: [Fault; 8] = [
    Fault::LostRequest,
    Fault::LostReply,
    Fault::LateCommit(LATE),
    Fault::Delay(LATE),
    Fault::SlowReply(LATE),
    Fault::SlowReply(Duration::from_secs(6)),
    Fault::Unavailable,
    Fault::Unreachable,
];

fn key(rest: &str) -> Key {
    Key::new(format!("/_semaphores/{rest}")).unwrap()
}

#[derive(Clone)]
struct Scene {
    kind: Kind,
    runtime: Runtime,
    store: Embedded,
    record: Arc<Record>,
}

impl Scene {
    /// A store with a limit, whose every change is written down.
    async fn new(kind: Kind, seed: u64, limit: u32) -> Self {
        let runtime = Runtime::on_tokio_time(seed);
        let store = kind.store(&runtime);
        let record = Arc::new(Record::new(runtime.clock.clone()));
        let permits = key("a/permits");
        let mut updates = store.watch(Watch::node(permits.clone()));
        assert!(matches!(updates.next().await, Some(Ok(Update::Open(_)))));
        let (writer, clock) = (record.clone(), runtime.clock.clone());
        tokio::spawn(async move {
            while let Some(Ok(update)) = updates.next().await {
                if let Update::Event(event) = update
                    && let Change::Put(node) = event.change
                {
                    let number = node.text().unwrap().parse().unwrap();
                    writer.limit(number, clock.now());
                }
            }
        });
        let value = limit.to_string();
        store
            .create(&permits, value.into(), Expiry::Never)
            .await
            .unwrap();
        Self {
            kind,
            runtime,
            store,
            record,
        }
    }

    fn clock(&self) -> &Clock {
        &self.runtime.clock
    }

    fn client(&self, seed: u64) -> (Client, Faulty<Embedded>) {
        self.kind.client(&self.store, &self.runtime, seed, TTL)
    }

    /// Holds for a while, as far as the permit lasts, and writes down for how long it was believed
    /// to be held.
    async fn hold(&self, asked: tenure::runtime::Instant, permit: Permit, length: Duration) {
        let held = self.record.acquired(asked, &permit);
        let _ = permit.run(self.clock().sleep(length)).await;
        drop(held);
        let _ = permit.release().await;
    }

    async fn check_empties(&self, what: &str, limit: Duration) {
        let end = self.clock().now() + limit;
        loop {
            let left = self.store.children(&key("a/line")).await.unwrap();
            if left.is_empty() {
                return;
            }
            let late = self.clock().has_passed(end);
            assert!(!late, "{what}: left after {limit:?}: {left:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// One client takes 2 of 3 permits and keeps them over a renewal; another waits for 2; a third comes
/// after. Returns how many calls each of the first two made.
async fn story(
    kind: Kind,
    what: &str,
    plan: impl Fn(&Faulty<Embedded>, &Faulty<Embedded>),
) -> (u64, u64) {
    let (scene, what) = (Scene::new(kind, 1, 3).await, format!("{kind:?}: {what}"));
    let what = what.as_str();
    let ((a, a_link), (b, b_link)) = (scene.client(1), scene.client(2));
    plan(&a_link, &b_link);
    let mut tasks = JoinSet::new();
    for (client, wait) in [(a, 0), (b, 100)] {
        let scene = scene.clone();
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let (semaphore, asked) = (client.semaphore("a").permits(3), scene.clock().now());
            // A refused or unanswered acquire is an outcome too; what it leaves is looked at below.
            if let Ok(permit) = semaphore.acquire().weight(2).await {
                scene.hold(asked, permit, TTL / 2).await;
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
    let asked = scene.clock().now();
    let all = c.semaphore("a").acquire().weight(3);
    let next = all.timeout(TTL + LATE + Duration::from_secs(1)).await;
    let permit = next.unwrap_or_else(|error| panic!("{what}: permits are missing: {error}"));
    scene.hold(asked, permit, Duration::from_millis(10)).await;
    a_link.quiesce().await;
    b_link.quiesce().await;
    scene.check_empties(what, TTL + LATE).await;
    scene.record.check(what);
    (a_link.all_calls(), b_link.all_calls())
}

#[tokio::test(start_paused = true)]
async fn whichever_call_is_hit_by_whichever_fault_the_limit_holds_and_nothing_is_left() {
    for kind in Kind::ALL {
        let (a_calls, b_calls) = story(kind, "no fault", |_, _| {}).await;
        assert!(
            a_calls >= 6 && b_calls >= 6,
            "limit, append, look, follow, renew, withdraw: {a_calls}, {b_calls}"
        );
        for fault in FAULTS {
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
async fn a_lost_reply_to_any_call_does_not_keep_the_permit_from_its_taker() {
    for kind in Kind::ALL {
        for call in Call::ALL {
            let scene = Scene::new(kind, 1, 1).await;
            let (client, link) = scene.client(1);
            link.next(*call, Fault::LostReply);
            let acquired = async {
                let permit = client.semaphore("a").permits(1).acquire().await?;
                permit.run(scene.clock().sleep(TTL)).await?;
                permit.release().await
            };
            match acquired.await {
                Ok(()) => {}
                // A read that finds no answer is told, as long as nothing was queued for it.
                Err(error) => assert_eq!((*call, error.kind()), (Call::Get, ErrorKind::Timeout)),
            }
            client.idle().await;
            scene.check_empties("a lost reply", Duration::ZERO).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whichever_call_of_the_first_use_is_hit_the_limit_is_made_once_and_right() {
    for fault in FAULTS {
        for n in 1..=8 {
            let scene = Scene::new(Kind::Embedded, 1, 1).await;
            let (client, link) = scene.client(1);
            let other = scene.client(2).0;
            link.nth_of_all(n, fault);
            let _ = client.semaphore("b").permits(2).try_acquire().await;
            let what = format!("{fault:?} on call {n}");
            // Somebody else changes it at once, or makes it: what comes late must not undo that.
            let other = other.semaphore("b").permits(7);
            let before = other.resize(7).await.unwrap();
            assert!(before == 2 || before == 7, "{what}: {before}");
            link.quiesce().await;
            assert_eq!(other.limit().await.unwrap(), 7, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whichever_call_of_a_resize_is_hit_it_happens_once_and_never_over_a_later_one() {
    for fault in FAULTS {
        for n in 1..=4 {
            let what = format!("{fault:?} on call {n}");
            let scene = Scene::new(Kind::Embedded, 1, 3).await;
            let (client, link) = scene.client(1);
            let other = scene.client(2).0.semaphore("a");
            link.nth_of_all(n, fault);
            let resized = client.semaphore("a").resize(5).await;
            let refused = matches!(fault, Fault::Unavailable | Fault::Unreachable);
            // The second call is the write: whatever becomes of its answer, it is found out.
            assert!(resized.is_ok() || n == 1 || refused, "{what}: {resized:?}");
            let before = match resized {
                Ok(old) => {
                    assert_eq!(old, 3, "{what}");
                    assert_eq!(other.limit().await.unwrap(), 5, "{what}");
                    5
                }
                Err(_) => other.limit().await.unwrap(),
            };
            // To something else and back: what comes late must not take this 3 for the old one.
            assert_eq!(other.resize(9).await.unwrap(), before, "{what}");
            assert_eq!(other.resize(3).await.unwrap(), 9, "{what}");
            link.quiesce().await;
            assert_eq!(other.limit().await.unwrap(), 3, "{what}: a late resize");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tries_on_a_lossy_line_leave_no_ticket() {
    for kind in Kind::ALL {
        let scene = Scene::new(kind, 1, 2).await;
        let (client, link) = scene.client(1);
        let (rival, _) = scene.client(2);
        let (semaphore, rival) = (client.semaphore("a"), rival.semaphore("a"));
        link.set_all_odds(Odds::network(0.02, LATE));
        let mut taken = 0;
        for round in 0..1_000 {
            // Now and then there is no room.
            let hold = match round % 3 {
                0 => rival.try_acquire_many(2).await.unwrap(),
                _ => None,
            };
            let asked = scene.clock().now();
            if let Ok(Some(permit)) = semaphore.try_acquire().await {
                taken += 1;
                assert!(hold.is_none(), "no room, and yet taken");
                scene.record.acquired(asked, &permit);
            }
            if let Some(hold) = hold {
                hold.release().await.unwrap();
            }
        }
        println!("{kind:?}: {taken} of 1,000 tries took a permit");
        assert!(taken > 100, "{kind:?}: only {taken} tries took a permit");
        link.heal();
        link.quiesce().await;
        client.idle().await;
        // Without cancel marks a late append ends with its own TTL.
        let bound = if kind != Kind::V2Like {
            Duration::ZERO
        } else {
            TTL + LATE
        };
        scene.check_empties("after the tries", bound).await;
        let all = semaphore.acquire().weight(2).timeout(TTL).await;
        all.unwrap().release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_missed_more_than_the_store_remembers_is_admitted_by_what_is_there() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone());
    let store = store.history_limit(4).build();
    let link = Faulty::new(store.clone(), 1);
    let client = |store: Arc<dyn Store>| Client::builder(store).runtime(runtime.clone()).build();
    let (holder, waiter) = (
        client(Arc::new(store.clone())),
        client(Arc::new(link.clone())),
    );
    let permit = holder.semaphore("a").permits(1).acquire().await.unwrap();
    let waiting = tokio::spawn(waiter.semaphore("a").acquire().into_future());
    while store.children(&key("a/line")).await.unwrap().len() < 2 || link.calls(Call::Watch) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    link.set_outage(Outage::Silent);
    for _ in 0..9 {
        holder.semaphore("a").resize(9).await.unwrap();
        holder.semaphore("a").resize(1).await.unwrap();
    }
    permit.release().await.unwrap();
    link.heal();
    let healed = runtime.clock.now();
    let next = tokio::time::timeout(TTL, waiting).await;
    next.unwrap().unwrap().unwrap().release().await.unwrap();
    let took = runtime.clock.now().since(healed);
    assert!(
        took < Duration::from_millis(200),
        "by a look now and then only: {took:?}"
    );
}

const CLIENTS: u64 = 64;
const PERMITS: u32 = 5;

/// Clients cycle for half a minute while everything goes wrong now and then, some are killed and
/// replaced, and the limit is changed; then all is healed.
async fn storm(kind: Kind, seed: u64) -> usize {
    let what = format!("{kind:?}, seed {seed}");
    let scene = Scene::new(kind, seed, PERMITS).await;
    let dice = Entropy::seeded(seed ^ 0x5eed);
    let end = scene.clock().now() + Duration::from_secs(30);
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let (scene, dice) = (scene.clone(), Entropy::seeded(dice.u64()));
        tasks.spawn(async move {
            let mut life = seed * 10_000 + number * 100;
            let (mut client, mut link) = scene.client(life);
            link.set_all_odds(Odds::network(0.003, TTL * 2));
            while !scene.clock().has_passed(end) {
                let semaphore = client.semaphore("a");
                let asked = scene.clock().now();
                let weight = 1 + (dice.u64().is_multiple_of(8)) as u32;
                let limit = Duration::from_millis(dice.u64() % 20_000);
                match semaphore.acquire().weight(weight).timeout(limit).await {
                    Ok(permit) => {
                        let length = Duration::from_millis(dice.u64() % 800);
                        if dice.u64().is_multiple_of(16) {
                            // Killed in the middle of its work: nothing is given back.
                            let held = scene.record.acquired(asked, &permit);
                            let _ = permit.run(scene.clock().sleep(length)).await;
                            drop(held);
                            link.set_down(true);
                            drop(permit);
                            life += 1;
                            (client, link) = scene.client(life);
                            link.set_all_odds(Odds::network(0.003, TTL * 2));
                        } else if dice.u64().is_multiple_of(16) {
                            // Cut off, for longer than its term or not.
                            link.set_down(true);
                            scene.hold(asked, permit, length * 6).await;
                            link.set_down(false);
                        } else {
                            scene.hold(asked, permit, length).await;
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(dice.u64() % 200)).await,
                }
                if number == 0 && dice.u64() % 2 == 0 {
                    let _ = semaphore.resize(2 + (dice.u64() % 7) as u32).await;
                }
            }
            (client, link)
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.unwrap());
    }
    for (_, link) in &clients {
        link.heal();
        link.quiesce().await;
    }
    clients[0].0.semaphore("a").resize(PERMITS).await.unwrap();
    // Each gets its turn, all at once.
    let mut tasks = JoinSet::new();
    for (client, _) in clients.clone() {
        let (scene, what) = (scene.clone(), what.clone());
        tasks.spawn(async move {
            let asked = scene.clock().now();
            let turn = client.semaphore("a").acquire().timeout(TTL * 6).await;
            let permit = turn.unwrap_or_else(|error| panic!("{what}: no turn: {error}"));
            scene.hold(asked, permit, Duration::from_millis(20)).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let all = clients[0].0.semaphore("a").acquire().weight(PERMITS);
    let all = all.timeout(TTL * 2).await;
    let permit = all.unwrap_or_else(|error| panic!("{what}: permits are missing: {error}"));
    permit.release().await.unwrap();
    scene.check_empties(&what, TTL * 2).await;
    scene.record.check(&what)
}

#[test]
fn in_seeded_storms_the_limit_holds_everybody_gets_a_turn_and_no_permit_leaks() {
    let number = |name, default| {
        let set = std::env::var(name).ok().and_then(|it| it.parse().ok());
        set.unwrap_or(default)
    };
    let (seeds, first): (u64, u64) = (number("TENURE_SEEDS", 2), number("TENURE_FIRST_SEED", 1));
    for kind in Kind::ALL {
        let mut holds = 0;
        for seed in first..first + seeds {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            holds += runtime.block_on(storm(kind, seed));
        }
        println!("{kind:?}: {seeds} storms of 30 s: {holds} holds, never above the limit");
        assert!(
            holds > seeds as usize * 200,
            "{kind:?}: {holds} holds in {seeds} storms: too few to mean anything"
        );
    }
}
