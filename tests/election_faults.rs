//! The election under faults that a test plans: each call of a run hit in turn by each fault, and
//! seeded storms of all of them with many candidates and observers. Over the embedded store on
//! paused time, so that a failing seed replays; and over the same store with no more than etcd v2
//! has.
//!
//! Checked on what was recorded: no two leaderships overlap, terms rise in the order of winning,
//! each observer's terms rise, and so do the proposals of one term; what was proclaimed and
//! acknowledged is what everybody reads. After everything is healed the line moves, and is empty
//! within the bound.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::{Clock, Entropy, Instant, Runtime, TimeSource};
use tenure::testkit::{Fault, Faulty, Odds, cancel_after};
use tenure::{Client, ErrorKind, Key, Leader, Leadership, StoreExt};
use tokio::task::JoinSet;

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

const TTL: Duration = Duration::from_secs(3);
/// A late commit comes this long after the caller was told.
const LATE: Duration = Duration::from_secs(1);

/// What somebody led, from when to when at the latest.
#[derive(Clone, Debug)]
struct Reign {
    term: u64,
    from: Instant,
    to: Instant,
}

#[derive(Clone)]
struct Scene {
    kind: Kind,
    runtime: Runtime,
    store: Embedded,
    reigns: Arc<Mutex<Vec<Reign>>>,
}

impl Scene {
    fn new(kind: Kind, seed: u64) -> Self {
        let runtime = Runtime::on_tokio_time(seed);
        let store = kind.store(&runtime);
        Self {
            kind,
            runtime,
            store,
            reigns: Arc::default(),
        }
    }

    fn clock(&self) -> &Clock {
        &self.runtime.clock
    }

    fn client(&self, seed: u64) -> (Client, Faulty<Embedded>) {
        self.kind.client(&self.store, &self.runtime, seed, TTL)
    }

    /// Leads for a while, as far as it lasts, and proclaims 1, 2, … meanwhile; writes down for how
    /// long it was believed to lead. What is acknowledged is what everybody reads, as long as it
    /// is still led after the reading.
    async fn reign(&self, what: &str, leadership: &Leadership, pauses: &[Duration]) {
        let (term, from) = (leadership.token(), self.clock().now());
        let reader = Client::builder(self.store.clone()).runtime(self.runtime.clone());
        let reader = reader.build().election("a");
        let work = async {
            for (number, pause) in pauses.iter().enumerate() {
                self.clock().sleep(*pause).await;
                let proposal = (number + 1).to_string();
                match leadership.proclaim(proposal.clone()).await {
                    Ok(()) => {
                        let seen = reader.leader().await.unwrap();
                        if leadership.is_held() {
                            let seen = seen.as_ref().map(told);
                            assert_eq!(seen, Some((term, number as u64 + 1)), "{what}");
                            assert_eq!(leadership.proposal(), proposal, "{what}");
                        }
                    }
                    Err(error) => {
                        // The outcome is definite, or the leadership is lost.
                        assert_eq!(error.kind(), ErrorKind::Lost, "{what}: {error}");
                        assert!(!leadership.is_held(), "{what}: {error}");
                    }
                }
            }
        };
        let _ = leadership.run(work).await;
        let to = self.clock().now();
        self.reigns.lock().unwrap().push(Reign { term, from, to });
    }

    fn check_reigns(&self, what: &str) -> usize {
        let mut reigns = self.reigns.lock().unwrap().clone();
        reigns.sort_by_key(|reign| (reign.from, reign.term));
        for pair in reigns.windows(2) {
            let [one, two] = pair else { unreachable!() };
            assert!(one.to <= two.from, "{what}: two lead: {one:?} and {two:?}");
            assert!(one.term < two.term, "{what}: {one:?}, then {two:?}");
        }
        reigns.len()
    }

    async fn check_empties(&self, what: &str, limit: Duration) {
        let dir = Key::new("/_elections/a").unwrap();
        let end = self.clock().now() + limit;
        loop {
            let left = self.store.children(&dir).await.unwrap();
            if left.is_empty() {
                return;
            }
            let over = self.clock().has_passed(end);
            assert!(!over, "{what}: left after {limit:?}: {left:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Observes until it is dropped; what was told is in the list.
    fn observe(&self, client: &Client) -> Observer {
        let told = Told::default();
        let mut leaders = client.election("a").observe();
        let (list, clock) = (told.clone(), self.clock().clone());
        let task = tokio::spawn(async move {
            while let Some(item) = leaders.next().await {
                let leader = item.unwrap().as_ref().map(self::told);
                list.lock().unwrap().push((clock.now(), leader));
            }
        });
        Observer { told, task }
    }
}

/// Who led, by an observer: the term and the number that was proclaimed.
type Told = Arc<Mutex<Vec<(Instant, Option<(u64, u64)>)>>>;

struct Observer {
    told: Told,
    task: tokio::task::JoinHandle<()>,
}

impl Observer {
    /// Terms rise, and numbers within a term; nothing is told twice in a row.
    fn check(&self, what: &str) -> usize {
        assert!(!self.task.is_finished(), "{what}: the observer has ended");
        let told = self.told.lock().unwrap();
        let mut last = None;
        for pair in told.windows(2) {
            assert_ne!(pair[0].1, pair[1].1, "{what}: told twice");
        }
        for (_, leader) in told.iter() {
            if let Some(leader) = leader {
                assert!(last < Some(*leader), "{what}: goes back: {told:?}");
                last = Some(*leader);
            }
        }
        told.len()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn told(leader: &Leader) -> (u64, u64) {
    let proposal = std::str::from_utf8(leader.proposal()).unwrap();
    (leader.token(), proposal.parse().unwrap())
}

/// One client wins, proclaims, leads over a renewal, proclaims again and resigns; another one waits
/// for it and does the same, and a third comes after. Returns how many calls each of the first two
/// made.
async fn story(
    kind: Kind,
    what: &str,
    plan: impl Fn(&Faulty<Embedded>, &Faulty<Embedded>),
) -> (u64, u64) {
    let (scene, what) = (Scene::new(kind, 1), format!("{kind:?}: {what}"));
    let what = what.as_str();
    let ((a, a_link), (b, b_link), (c, _)) = (scene.client(1), scene.client(2), scene.client(3));
    plan(&a_link, &b_link);
    let observers = [scene.observe(&a), scene.observe(&c)];
    let mut tasks = JoinSet::new();
    for (client, wait) in [(a, 1), (b, 100)] {
        let (scene, what) = (scene.clone(), what.to_owned());
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // A refused or unanswered campaign is an outcome too; what it leaves is looked at below.
            if let Ok(leadership) = client.election("a").campaign("0").await {
                let pauses = [TTL / 10, TTL / 2];
                scene.reign(&what, &leadership, &pauses).await;
                let _ = leadership.resign().await;
            }
            client.idle().await;
            client
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.unwrap());
    }
    let limit = TTL + LATE + Duration::from_secs(1);
    let next = c.election("a").campaign("0").timeout(limit).await;
    let next = next.unwrap_or_else(|error| panic!("{what}: nobody can win: {error}"));
    scene.reign(what, &next, &[Duration::from_millis(10)]).await;
    next.resign().await.unwrap();
    a_link.quiesce().await;
    b_link.quiesce().await;
    scene.check_empties(what, TTL + LATE).await;
    scene.check_reigns(what);
    let end = scene.clock().now() + TTL * 3;
    for (observer, least) in observers.iter().zip([1, 3]) {
        let nobody = |told: &Vec<(Instant, Option<_>)>| matches!(told.last(), Some((_, None)));
        while !nobody(&observer.told.lock().unwrap()) {
            let over = scene.clock().has_passed(end);
            assert!(!over, "{what}: not told that nobody leads");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(observer.check(what) >= least, "{what}");
    }
    (a_link.all_calls(), b_link.all_calls())
}

#[tokio::test(start_paused = true)]
async fn whichever_call_is_hit_by_whichever_fault_one_leads_and_nothing_is_left() {
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
            a_calls >= 10 && b_calls >= 9,
            "append, announce, look, proclaim, renew, withdraw: {a_calls}, {b_calls}"
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

/// A machine whose wall clock is five minutes off, another way at each look.
#[derive(Debug)]
struct WrongWall {
    clock: Clock,
    looks: AtomicU64,
}

impl TimeSource for WrongWall {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn wall(&self) -> Duration {
        let minutes = [1_000, 1_005, 995];
        let look = self.looks.fetch_add(1, Ordering::SeqCst) as usize;
        self.clock.wall() + Duration::from_secs(60) * minutes[look % minutes.len()]
    }
}

#[tokio::test(start_paused = true)]
async fn wall_clocks_that_are_wrong_decide_nothing() {
    for kind in Kind::ALL {
        let mut scene = Scene::new(kind, 1);
        let right = scene.client(1).0;
        scene.runtime.clock = Clock::from_source(WrongWall {
            clock: scene.clock().clone(),
            looks: AtomicU64::new(0),
        });
        let (wrong, link) = scene.client(2);
        let mut terms = Vec::new();
        for turn in 0..6 {
            let clients = [&right, &wrong];
            let (leads, waits) = (clients[turn % 2], clients[(turn + 1) % 2]);
            let leadership = leads.election("a").campaign("0").await.unwrap();
            let next = tokio::spawn(waits.election("a").campaign("0").into_future());
            while leads.election("a").candidates().await.unwrap().len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            scene.clock().sleep(TTL * 2).await;
            assert!(leadership.is_held() && !next.is_finished(), "{kind:?}");
            terms.push(leadership.token());
            let cut = scene.clock().now();
            if turn == 5 {
                link.set_down(true);
            } else {
                leadership.resign().await.unwrap();
            }
            let won = next.await.unwrap().unwrap();
            let took = scene.clock().now().since(cut);
            assert!(took <= if turn == 5 { TTL } else { TTL / 10 }, "{took:?}");
            terms.push(won.token());
            won.resign().await.unwrap();
        }
        assert!(terms.is_sorted_by(|one, two| one < two), "{terms:?}");
    }
}

/// Every answer takes a moment, so that each call is a poll of its own at which it can be dropped.
#[tokio::test(start_paused = true)]
async fn on_a_slow_link_a_future_dropped_at_any_poll_leaves_nothing() {
    for kind in Kind::ALL {
        let scene = Scene::new(kind, 1);
        let ((a, link), (b, _)) = (scene.client(1), scene.client(2));
        let mut slow = Odds::none();
        (slow.slow_reply, slow.longest) = (1.0, Duration::from_millis(4));
        link.set_all_odds(slow);
        let mut most = 0;
        for polls in 0.. {
            let what = format!("{kind:?}, after {polls} polls");
            let election = a.election("a");
            let cycle = async {
                let leadership = election.campaign("0").await.unwrap();
                leadership.proclaim("1").await.unwrap();
                leadership.resign().await.unwrap();
            };
            let done = cancel_after(cycle, polls).await.is_some();
            a.idle().await;
            link.quiesce().await;
            scene.check_empties(&what, Duration::ZERO).await;
            if done {
                break;
            }
            most = polls;
        }
        assert!(most >= 3, "{kind:?}: {most} polls");
        for polls in 0.. {
            let what = format!("{kind:?}, several locks, after {polls} polls");
            let locks = a.lock_all(["x", "y", "z"]);
            let cycle = async { locks.acquire().await.unwrap().release().await.unwrap() };
            let done = cancel_after(cycle, polls).await.is_some();
            a.idle().await;
            for name in ["x", "y", "z"] {
                let line = b.lock(name).contenders().await.unwrap();
                assert!(line.is_empty(), "{what}: {line:?}");
            }
            if done {
                // One step to take them and one to give them back, where the store has commits.
                let least = if kind == Kind::V2Like { 6 } else { 2 };
                assert!(polls >= least, "{what}");
                break;
            }
        }
        // What was dropped may have been proclaimed, but not after the next one.
        let leadership = a.election("a").campaign("0").await.unwrap();
        for polls in 0.. {
            let dropped = leadership.proclaim(format!("1{polls}"));
            let done = cancel_after(dropped, polls).await.is_some();
            leadership.proclaim(format!("2{polls}")).await.unwrap();
            let leader = b.election("a").leader().await.unwrap().unwrap();
            assert_eq!(leader.proposal(), &format!("2{polls}"));
            if done {
                break;
            }
        }
        leadership.resign().await.unwrap();
    }
}

/// Storms: many candidates campaign for a minute while everything goes wrong now and then; then
/// all is healed, and each must win again.
async fn storm(kind: Kind, seed: u64) -> (usize, usize) {
    let what = format!("{kind:?}, seed {seed}");
    let scene = Scene::new(kind, seed);
    let dice = Entropy::seeded(seed ^ 0x5eed);
    let end = scene.clock().now() + Duration::from_secs(60);
    let mut tasks = JoinSet::new();
    let (mut links, mut observers) = (Vec::new(), Vec::new());
    for number in 0..6 {
        let (client, link) = scene.client(seed * 10 + number);
        link.set_all_odds(Odds::network(0.01, TTL * 2));
        links.push(link.clone());
        if number % 2 == 0 {
            observers.push(scene.observe(&client));
        }
        let (scene, what) = (scene.clone(), what.clone());
        let dice = Entropy::seeded(dice.u64());
        tasks.spawn(async move {
            while !scene.clock().has_passed(end) {
                let limit = Duration::from_millis(dice.u64() % 8_000);
                let election = client.election("a");
                match election.campaign("0").timeout(limit).await {
                    Ok(leadership) => {
                        let pauses = (0..dice.u64() % 5)
                            .map(|_| Duration::from_millis(dice.u64() % 800))
                            .collect::<Vec<_>>();
                        scene.reign(&what, &leadership, &pauses).await;
                        if dice.u64().is_multiple_of(2) {
                            let _ = leadership.resign().await;
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(dice.u64() % 200)).await,
                }
                if dice.u64().is_multiple_of(16) {
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
        let won = client.election("a").campaign("0").timeout(TTL * 4).await;
        let won = won.unwrap_or_else(|error| panic!("{what}: no progress after healing: {error}"));
        scene.reign(&what, &won, &[]).await;
        won.resign().await.unwrap();
    }
    scene.check_empties(&what, TTL * 2).await;
    let items = observers.iter().map(|observer| observer.check(&what)).sum();
    (scene.check_reigns(&what), items)
}

#[test]
fn in_seeded_storms_one_leads_terms_rise_and_all_recover() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let seeds: u64 = number("TENURE_SEEDS").unwrap_or(60);
    let first = number("TENURE_FIRST_SEED").unwrap_or(1);
    for kind in Kind::ALL {
        let (mut reigns, mut items) = (0, 0);
        for seed in first..first + seeds {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let (led, told) = runtime.block_on(storm(kind, seed));
            (reigns, items) = (reigns + led, items + told);
        }
        assert!(
            reigns as u64 > seeds * 10 && items as u64 > seeds * 20,
            "{kind:?}: {reigns} reigns and {items} items in {seeds} storms: too few"
        );
        println!("{kind:?}: {seeds} storms of 60 s: {reigns} reigns, none shared; {items} items");
    }
}
