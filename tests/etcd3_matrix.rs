//! Every call that the recipes make on etcd v3, lost, late or slow in turn.
//!
//! In each story one client takes something, keeps it over a renewal and gives it back; another
//! waits for it; a third comes after. One call of one of the first two goes wrong. Checked: no two
//! hold at a time, tokens rise in the order of acquiring, the line goes on, and then nothing is left
//! in it, and no lease. Then the same with four calls at once.
//!
//! By default a sample that differs from call to call and fault to fault; all of it with
//! `TENURE_MATRIX=all`.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/grpc.rs"]
mod grpc;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::words::key;
use grpc::{Client as Caller, Fault, Grpc, Which};
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Entropy, Instant};
use tenure::store::Node;
use tenure::{Client, Hold, StoreExt, Ttl};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const TTL: Duration = Duration::from_secs(3);
/// Over a renewal, which comes after a third of a term.
const KEPT: Duration = Duration::from_millis(1_300);
/// A late request comes this long after the caller was told.
const LATE: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// Far more than a step of a story takes.
const HANG: Duration = Duration::from_secs(60);
/// How many stories run at once.
const AT_ONCE: usize = 48;

const FAULTS: [Fault; 7] = [
    Fault::LoseRequest(Caller::IsReset),
    Fault::LoseRequest(Caller::Hangs),
    Fault::LoseReply(Caller::IsReset),
    Fault::LoseReply(Caller::Hangs),
    Fault::Late(LATE),
    Fault::Delay(LATE),
    Fault::Slow(LATE),
];

/// What was held, from when to when at the latest.
#[derive(Clone, Debug)]
struct Held {
    what: String,
    token: u64,
    from: Instant,
    to: Instant,
}

/// One of the first two clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    First,
    Second,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lock,
    /// The same for a user, whose tokens live for a second.
    UsersLock,
    /// Three locks at once.
    Several,
    Election,
    Permits,
    Queue,
}

/// What is planned to go wrong, and with which call of whom.
type Plan = Vec<(Who, Which, Fault)>;

/// The calls of both, by name.
type Calls = BTreeMap<String, u64>;

/// Where a story takes place.
struct Scene {
    kind: Kind,
    name: String,
    what: String,
    port: u16,
    clock: Clock,
    direct: Etcd3,
    held: Mutex<Vec<Held>>,
    /// Jobs that were surely pushed, and how often each was surely done.
    pushed: Mutex<BTreeSet<String>>,
    done: Mutex<BTreeMap<String, u32>>,
}

/// A client, and what lies between it and the server.
struct Actor {
    client: Client,
    proxy: Grpc,
}

/// What the servers of [`Kind::UsersLock`] know of users.
const USER: (&str, &str) = ("root", "secret");

fn store(kind: Kind, url: &str) -> Etcd3 {
    let store = Etcd3::builder(url);
    let store = match kind {
        Kind::UsersLock => store.user(USER.0, USER.1),
        _ => store,
    };
    store.build().unwrap()
}

async fn actor(kind: Kind, port: u16) -> Actor {
    let proxy = Grpc::start(port).await;
    let store = store(kind, &proxy.url());
    let client = Client::builder(store).ttl(Ttl::new(TTL).unwrap()).build();
    Actor { client, proxy }
}

impl Scene {
    async fn within<T>(&self, step: &str, future: impl Future<Output = T>) -> T {
        let outcome = tokio::time::timeout(HANG, future).await;
        outcome.unwrap_or_else(|_| panic!("{}: {step} hangs", self.what))
    }

    /// Believes in a hold for so long, or as long as it lasts, and writes down for how long it
    /// was believed in.
    async fn keep(&self, hold: &Hold, length: Duration) {
        self.keep_one("", hold, length).await;
    }

    async fn keep_one(&self, what: &str, hold: &Hold, length: Duration) {
        let from = self.clock.now();
        let mut deadline = hold.deadline().unwrap_or(from);
        let mut kept = std::pin::pin!(hold.run(self.clock.sleep(length)));
        loop {
            tokio::select! {
                biased;
                Some(later) = hold.extended(deadline) => deadline = later,
                _ = &mut kept => break,
            }
        }
        let to = self.clock.now().min(deadline);
        self.note(what, hold.token(), from, to);
    }

    fn note(&self, what: &str, token: u64, from: Instant, to: Instant) {
        let what = what.to_owned();
        let held = Held {
            what,
            token,
            from,
            to,
        };
        self.held.lock().unwrap().push(held);
    }

    /// Takes its turn. What is refused or gets no answer is an outcome too; what it leaves is
    /// looked at in the end.
    async fn turn(&self, client: &Client, length: Duration, limit: Duration) -> Result<(), String> {
        let text = |error: tenure::Error| format!("{:?}: {error}", error.kind());
        match self.kind {
            Kind::Lock | Kind::UsersLock => {
                let guard = client.lock(&self.name).acquire().timeout(limit).await;
                let guard = guard.map_err(text)?;
                self.keep(&guard, length).await;
                guard.release().await.map_err(text)
            }
            Kind::Several => {
                let locks = client.lock_all(self.names());
                let guard = match locks.try_acquire().await.map_err(text)? {
                    Some(guard) => guard,
                    None => locks.acquire().timeout(limit).await.map_err(text)?,
                };
                let kept = { guard.guards() }.map(|(name, it)| self.keep_one(name, it, length));
                futures_util::future::join_all(kept).await;
                guard.release().await.map_err(text)
            }
            Kind::Election => {
                let campaign = client.election(&self.name).campaign("one").timeout(limit);
                let leads = campaign.await.map_err(text)?;
                self.keep(&leads, length / 2).await;
                let _ = leads.proclaim("two").await;
                self.keep(&leads, length / 2).await;
                leads.resign().await.map_err(text)
            }
            Kind::Permits => {
                let permits = client.semaphore(&self.name).permits(2);
                let permit = permits.acquire().weight(2).timeout(limit).await;
                let permit = permit.map_err(text)?;
                self.keep(&permit, length).await;
                permit.release().await.map_err(text)
            }
            Kind::Queue => self.work(client, length, limit).await,
        }
    }

    /// Pushes a job, and does jobs until none is left.
    async fn work(&self, client: &Client, length: Duration, limit: Duration) -> Result<(), String> {
        let end = self.clock.now() + limit;
        let queue = client.queue(&self.name);
        let pushes = self.pushed.lock().unwrap().len() < 3;
        if pushes {
            for payload in ["x", "y"] {
                if let Ok(pushed) = queue.push(payload).await {
                    let id = pushed.id.to_string();
                    self.pushed.lock().unwrap().insert(id);
                }
            }
        }
        let mut consumer = queue.consumer(1);
        let outcome = loop {
            if self.clock.has_passed(end) {
                break Err("jobs are stuck".to_owned());
            }
            let next = tokio::time::timeout(Duration::from_millis(50), consumer.next()).await;
            match next {
                Err(_) if self.jobs().await.is_empty() => break Ok(()),
                Err(_) => {}
                Ok(None) => break Err("the consumer ended".to_owned()),
                Ok(Some(Err(error))) => break Err(error.to_string()),
                Ok(Some(Ok(delivery))) => {
                    let from = self.clock.now();
                    let deadline = delivery.deadline().unwrap_or(from);
                    let _ = delivery.run(self.clock.sleep(length / 3)).await;
                    let to = if delivery.is_held() {
                        self.clock.now()
                    } else {
                        deadline.min(self.clock.now())
                    };
                    let id = delivery.id().to_string();
                    self.note(&id, delivery.token(), from, to);
                    let first = delivery.attempt() == 1;
                    if first && id.ends_with('1') {
                        let _ = delivery.nack().await;
                    } else if delivery.ack().await.is_ok() {
                        *self.done.lock().unwrap().entry(id).or_default() += 1;
                    }
                }
            }
        };
        consumer.close().await;
        outcome
    }

    async fn jobs(&self) -> Vec<Node> {
        let dir = format!("/_queues/{}/jobs", self.name);
        self.children(&dir).await
    }

    async fn children(&self, dir: &str) -> Vec<Node> {
        let children = self.direct.children(&key(dir)).await;
        children.unwrap_or_default()
    }

    /// Of the locks that are taken at once.
    fn names(&self) -> [String; 3] {
        ["a", "b", "c"].map(|it| format!("{}-{it}", self.name))
    }

    /// What should not be there in the end.
    async fn left(&self) -> Vec<Node> {
        let name = &self.name;
        let mut left = match self.kind {
            Kind::Lock | Kind::UsersLock => self.children(&format!("/_locks/{name}")).await,
            Kind::Several => {
                let mut left = Vec::new();
                for name in self.names() {
                    left.extend(self.children(&format!("/_locks/{name}")).await);
                }
                left
            }
            Kind::Election => self.children(&format!("/_elections/{name}")).await,
            Kind::Permits => self.children(&format!("/_semaphores/{name}/line")).await,
            Kind::Queue => {
                let state = self.children(&format!("/_queues/{name}/state")).await;
                let undone = state
                    .into_iter()
                    .filter(|node| !node.text().unwrap().starts_with("done "));
                undone.collect()
            }
        };
        if self.kind == Kind::Queue {
            left.extend(self.jobs().await);
            left.extend(self.children(&format!("/_queues/{name}/consumers")).await);
        }
        left
    }

    fn check(&self) {
        let what = &self.what;
        let mut held = self.held.lock().unwrap().clone();
        held.sort_by_key(|held| (held.what.clone(), held.from, held.token));
        for pair in held.windows(2) {
            let [one, two] = pair else { unreachable!() };
            if one.what == two.what {
                let overlap = one.to.since(two.from);
                assert!(overlap.is_zero(), "{what}: held by two: {one:?}, {two:?}");
                // A leader's is kept in two parts.
                let rises = one.token < two.token
                    || (self.kind == Kind::Election && one.token == two.token);
                assert!(rises, "{what}: tokens fall: {one:?}, {two:?}");
            }
        }
        for (id, times) in &*self.done.lock().unwrap() {
            assert_eq!(*times, 1, "{what}: {id} was done {times} times");
        }
        let waiting = self.held.lock().unwrap();
        for id in &*self.pushed.lock().unwrap() {
            let seen = waiting.iter().any(|held| held.what == *id);
            assert!(seen, "{what}: {id} was never delivered");
        }
    }
}

/// How a story went.
struct Played {
    /// Of the first two.
    calls: [Calls; 2],
    /// How many calls went wrong: the planned one may not have come.
    hits: usize,
    /// How long it took until nothing was left.
    emptied: Duration,
}

async fn story(port: u16, kind: Kind, number: usize, plan: Plan) -> Played {
    let scene = Arc::new(Scene {
        kind,
        name: format!("n{number}"),
        what: format!("{kind:?}, {plan:?}"),
        port,
        clock: Clock::boot(),
        direct: store(kind, &format!("http://127.0.0.1:{port}")),
        held: Mutex::default(),
        pushed: Mutex::default(),
        done: Mutex::default(),
    });
    let what = scene.what.clone();
    let actors = [actor(kind, port).await, actor(kind, port).await];
    for (who, which, fault) in plan {
        actors[who as usize].proxy.inject(which, fault);
    }
    let [a, b] = actors;
    let play = async |actor: &Actor, wait: u64| {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let turn = scene.turn(&actor.client, KEPT, TTL * 4);
        let _ = scene.within("a turn", turn).await;
        scene.within("cleaning up", actor.client.idle()).await;
    };
    tokio::join!(play(&a, 0), play(&b, 100));
    let c = actor(kind, scene.port).await;
    let next = scene.turn(&c.client, Duration::from_millis(30), TTL + LATE + SECOND);
    if let Err(error) = scene.within("the third turn", next).await {
        panic!("{what}: it is stuck: {error}: {:?}", scene.left().await);
    }
    scene.within("what is late", a.proxy.quiesce()).await;
    scene.within("what is late", b.proxy.quiesce()).await;
    let since = scene.clock.now();
    loop {
        let left = scene.left().await;
        if left.is_empty() {
            break;
        }
        let waited = scene.clock.now().since(since);
        assert!(
            waited < TTL + SECOND,
            "{what}: left after {waited:?}: {left:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let emptied = scene.clock.now().since(since);
    scene.check();
    let ends = [&a, &b, &c].map(|it| it.client.shutdown(SECOND * 5));
    for end in futures_util::future::join_all(ends).await {
        assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0), "{what}");
    }
    Played {
        calls: [a.proxy.calls(), b.proxy.calls()],
        hits: a.proxy.hits().len() + b.proxy.hits().len(),
        emptied,
    }
}

/// The leases of terms like ours that the server has.
fn leases(etcd: &Etcd) -> Vec<String> {
    let ask = |path: &str, body: &str| {
        let (status, answer) = etcd.json("POST", path, body).unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let all = ask("/v3/lease/leases", "{}");
    let all = all["leases"].as_array().cloned().unwrap_or_default();
    let ids = all.iter().map(|lease| lease["ID"].as_str().unwrap());
    let told = ids.map(|id| {
        ask(
            "/v3/lease/timetolive",
            &format!("{{\"ID\":\"{id}\",\"keys\":true}}"),
        )
    });
    let ours = told.filter(|it| {
        let granted = it["grantedTTL"].as_str().unwrap_or("0");
        (1..60).contains(&granted.parse::<u64>().unwrap())
    });
    ours.map(|it| it.to_string()).collect()
}

/// Several calls of both go wrong.
fn storm(seed: u64) -> Plan {
    let dice = Entropy::seeded(seed);
    let roll = |sides: u64| dice.u64() % sides;
    let one = |_| {
        let who = [Who::First, Who::Second][roll(2) as usize];
        let fault = FAULTS[roll(FAULTS.len() as u64) as usize];
        (who, Which::of_all(1 + roll(14)), fault)
    };
    (0..4).map(one).collect()
}

fn ctl(etcd: &Etcd, args: &[&str]) {
    let done = std::process::Command::new("etcdctl")
        .args(["--endpoints", &etcd.url()])
        .args(args)
        .env("ETCDCTL_API", "3")
        .output()
        .unwrap();
    assert!(done.status.success(), "{args:?}: {done:?}");
}

async fn matrix(kind: Kind) {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        args: ["--auth-token-ttl", "1", "--bcrypt-cost", "4"]
            .map(String::from)
            .into(),
        ..Options::default()
    });
    if kind == Kind::UsersLock {
        ctl(&etcd, &["user", "add", "root:secret"]);
        ctl(&etcd, &["user", "grant-role", "root", "root"]);
        ctl(&etcd, &["auth", "enable"]);
    }
    let port = etcd.client_port();
    let clock = Clock::boot();
    let began = clock.now();
    let [first, second] = story(port, kind, 0, Vec::new()).await.calls;
    println!("{kind:?}: calls of the first: {first:?}, of the second: {second:?}");
    let whole = std::env::var("TENURE_MATRIX").is_ok_and(|it| it == "all");
    let mut plans = Vec::new();
    for (who, calls) in [(Who::First, first), (Who::Second, second)] {
        for (name, count) in calls {
            for n in 1..=count + 1 {
                for fault in FAULTS {
                    plans.push((who, name.clone(), n, fault));
                }
            }
        }
    }
    if kind == Kind::UsersLock {
        plans.retain(|(_, name, ..)| name == "Authenticate");
    }
    let all = plans.len();
    if !whole {
        // Writes that come late are what most goes wrong with. Of the rest every fifth: prime to the
        // number of faults, so that each call meets another of them.
        let mut number = 0;
        plans.retain(|(_, name, _, fault)| {
            number += 1;
            number % 5 == 1
                || name == "Authenticate"
                || (name == "Txn" && *fault == Fault::Late(LATE))
        });
    }
    let mut plans: Vec<Plan> = plans
        .into_iter()
        .map(|(who, name, n, fault)| vec![(who, Which::of(&name, n), fault)])
        .collect();
    let storms = if whole { 200 } else { 10 };
    plans.extend((1..=storms).map(storm));
    let hands = Arc::new(Semaphore::new(AT_ONCE));
    let (mut stories, played) = (JoinSet::new(), plans.len());
    for (number, plan) in plans.into_iter().enumerate() {
        let hands = hands.clone();
        stories.spawn(async move {
            let _hand = hands.acquire().await;
            story(port, kind, number + 1, plan).await
        });
    }
    let (mut slowest, mut hits, mut failures) = (Duration::ZERO, 0, 0);
    while let Some(outcome) = stories.join_next().await {
        match outcome {
            Ok(it) => {
                slowest = slowest.max(it.emptied);
                hits += it.hits;
            }
            // It has said what.
            Err(_) => failures += 1,
        }
    }
    let took = clock.now().since(began);
    println!(
        "{kind:?}: {played} stories ({storms} with several faults, of the others there are {all}) in {took:.1?}, {hits} went wrong; empty within {slowest:?}"
    );
    assert_eq!(failures, 0, "of {played} stories");
    assert!(hits * 3 > played, "the plans miss the calls");
    if kind == Kind::UsersLock {
        ctl(&etcd, &["--user", "root:secret", "auth", "disable"]);
    }
    let since = clock.now();
    loop {
        let left = leases(&etcd);
        if left.is_empty() {
            break;
        }
        assert!(
            clock.now().since(since) < TTL + SECOND,
            "leases are left: {left:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_of_a_lock_goes_wrong_nobody_shares_it_and_nothing_is_left() {
    matrix(Kind::Lock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_of_several_locks_goes_wrong_nobody_shares_one_and_nothing_is_left() {
    matrix(Kind::Several).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_of_an_election_goes_wrong_one_leads_and_nothing_is_left() {
    matrix(Kind::Election).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_of_a_semaphore_goes_wrong_the_limit_holds_and_nothing_is_left() {
    matrix(Kind::Permits).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_of_a_queue_goes_wrong_no_job_is_lost_or_held_by_two() {
    matrix(Kind::Queue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_login_goes_wrong_nobody_shares_a_lock_and_nothing_is_left() {
    matrix(Kind::UsersLock).await;
}
