//! Recipes on three real members of etcd v3, of which one is stopped, killed, cut off or slow.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/peers.rs"]
mod peers;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::etcd::Etcd;
use common::wait::{LONG, until};
use common::words::{key, value};
use futures_util::StreamExt;
use futures_util::future::join_all;
use gate::{Gate, Pass};
use peers::Peers;
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Instant};
use tenure::store::{Change, Expiry, Update, Watch};
use tenure::{Client, ErrorKind, HoldState, Key, LockGuard, Store, StoreExt, Ttl};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const MS: Duration = Duration::from_millis(1);
/// How long after the deletion of its key a guard may still believe.
const PROMPT: Duration = Duration::from_millis(100);

async fn three() -> [Etcd; 3] {
    let members = tokio::task::spawn_blocking(Etcd::start_three);
    members.await.unwrap()
}

/// The number of the member that leads. All must answer.
fn leader(members: &[Etcd; 3]) -> usize {
    loop {
        let leads = |it: &Etcd| it.metric("etcd_server_is_leader") > 0.0;
        if let Some(found) = members.iter().position(leads) {
            return found;
        }
        std::thread::sleep(MS * 10);
    }
}

fn others(members: &[Etcd; 3], but: usize) -> Vec<&Etcd> {
    let rest = members.iter().enumerate().filter(|(n, _)| *n != but);
    rest.map(|(_, it)| it).collect()
}

fn client(members: &[&Etcd], ttl: u64) -> Client {
    let urls: Vec<String> = members.iter().map(|it| it.url()).collect();
    let store = Etcd3::new(urls.join(",")).unwrap();
    let ttl = Ttl::new(Duration::from_secs(ttl)).unwrap();
    Client::builder(store).ttl(ttl).build()
}

/// When somebody else, on a connection of its own to this member, is told that a key was deleted.
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

/// The lease that a ticket hangs on, as its name says.
fn lease(guard: &LockGuard) -> i64 {
    let name = guard.key().name();
    i64::from_str_radix(name.split('-').next().unwrap(), 16).unwrap()
}

/// Leases that nobody renews. Who finds many expired at once revokes 16 at a time, so that the last
/// of them are revoked even if the first were found too late.
fn idle_leases(etcd: &Etcd, number: usize) {
    for _ in 0..number {
        let (status, answer) = etcd.json("POST", "/v3/lease/grant", "{\"TTL\":1}").unwrap();
        assert_eq!(status, 200, "{answer}");
    }
}

/// A lock that is held, and a watch of somebody else that tells when its key was deleted.
struct Witnessed {
    guard: LockGuard,
    data: Key,
    gone: JoinHandle<Instant>,
    client: Client,
}

/// Locks of clients of their own on `members`, each with its key watched.
async fn hold(members: &[&Etcd], count: usize, ttl: u64) -> Vec<Witnessed> {
    let taken = (0..count).map(async |n| {
        let client = client(members, ttl);
        let guard = client.lock(format!("n{n}")).acquire().await.unwrap();
        let gone = deletion(members[n % members.len()], guard.key()).await;
        let data = key(&format!("/data/{n}"));
        guard.put(&data, "before", Expiry::Never).await.unwrap();
        Witnessed {
            guard,
            data,
            gone,
            client,
        }
    });
    let held = join_all(taken).await;
    let watched = || {
        let watchers = |it: &&Etcd| it.metric("etcd_debugging_mvcc_watcher_total");
        members.iter().map(watchers).sum::<f64>() >= 2.0 * count as f64
    };
    until("their own keys are watched", watched).await;
    held
}

impl Witnessed {
    /// Looks on until `end`. When its key was deleted: that it was lost soon enough after that, and
    /// writes nothing. Else that it is held, and does.
    async fn judge(mut self, end: Instant) -> Option<Instant> {
        let clock = Clock::boot();
        let lost = tokio::select! {
            biased;
            _ = self.guard.lost() => clock.now(),
            () = clock.sleep_until(end) => {
                assert!(!self.gone.is_finished(), "deleted, and the guard does not know");
                self.guard.put(&self.data, "after", Expiry::Never).await.unwrap();
                self.guard.release().await.unwrap();
                return None;
            }
        };
        let gone = tokio::time::timeout(LONG, &mut self.gone).await;
        let late = lost.since(gone.expect("lost, and its key is there").unwrap());
        assert!(late < PROMPT, "lost {late:?} after its key was deleted");
        assert_eq!(self.guard.state(), HoldState::Lost);
        let refused = self.guard.put(&self.data, "after", Expiry::Never).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
        let data = value(self.client.store(), self.data.as_str()).await;
        assert_eq!(data.as_deref(), Some("before"));
        Some(lost)
    }
}

/// Pauses the leader for longer than the leases of `count` locks last, while they are renewed
/// through the others, and lets it run on. How many were deleted all the same.
async fn pause_the_leader(members: &[Etcd; 3], count: usize) -> usize {
    let clock = Clock::boot();
    let old = leader(members);
    let rest = others(members, old);
    let held = hold(&rest, count, 2).await;
    idle_leases(rest[0], 40);
    members[old].pause();
    let resumed = clock.now() + MS * 2_500;
    let end = resumed + MS * 1_500;
    let judged = join_all(held.into_iter().map(|it| it.judge(end)));
    let resume = async {
        clock.sleep_until(resumed).await;
        members[old].resume();
    };
    let (judged, ()) = tokio::join!(judged, resume);
    let lost: Vec<_> = judged.into_iter().flatten().collect();
    assert!(
        lost.iter().all(|at| *at > resumed),
        "lost while others renew"
    );
    lost.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_comes_back_and_revokes_what_was_renewed_is_noticed_at_once() {
    let members = three().await;
    let rounds = std::env::var("TENURE_ROUNDS")
        .ok()
        .and_then(|it| it.parse().ok());
    let mut seen = Vec::new();
    for _ in 0..rounds.unwrap_or(4) {
        seen.push(pause_the_leader(&members, 8).await);
        if rounds.is_none() && seen.ends_with(&[8]) {
            break;
        }
    }
    let some = seen.iter().filter(|it| **it > 0).count();
    println!(
        "renewed leases were revoked in {some} of {} rounds: {seen:?}",
        seen.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_revoked_on_a_cluster_is_noticed_at_once_and_fences() {
    let members = three().await;
    let all: Vec<&Etcd> = members.iter().collect();
    let held = hold(&all, 8, 5).await;
    for Witnessed { guard, .. } in &held[..4] {
        let done = std::process::Command::new("etcdctl")
            .args(["--endpoints", &members[1].url(), "lease", "revoke"])
            .arg(format!("{:x}", lease(guard)))
            .env("ETCDCTL_API", "3")
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let end = Clock::boot().now() + MS * 1_000;
    let judged = join_all(held.into_iter().map(|it| it.judge(end))).await;
    let judged: Vec<_> = judged.iter().map(Option::is_some).collect();
    assert_eq!(judged, [true, true, true, true, false, false, false, false]);
}

/// How long it was, at worst, from one success to the next.
#[derive(Clone)]
struct Gauge {
    name: &'static str,
    state: Arc<Mutex<(Instant, Duration, u64)>>,
}

impl Gauge {
    fn new(name: &'static str) -> Self {
        let state = (Clock::boot().now(), Duration::ZERO, 0);
        let state = Arc::new(Mutex::new(state));
        Self { name, state }
    }

    fn tick(&self) {
        let now = Clock::boot().now();
        let mut state = self.state.lock().unwrap();
        *state = (now, state.1.max(now.since(state.0)), state.2 + 1);
    }

    /// The worst so far, and begins anew.
    fn take(&self) -> Duration {
        let mut state = self.state.lock().unwrap();
        let open = Clock::boot().now().since(state.0);
        std::mem::take(&mut state.1).max(open)
    }

    fn count(&self) -> u64 {
        self.state.lock().unwrap().2
    }
}

/// Takes and gives back one lock until told to stop. Nothing may be lost, and no wait may be longer
/// than was said.
async fn cycle(client: Client, gauge: Gauge, stop: CancellationToken) {
    let (clock, limit) = (Clock::boot(), Duration::from_secs(4));
    while !stop.is_cancelled() {
        let asked = clock.now();
        let outcome = client.lock("busy").acquire().timeout(limit).await;
        let waited = clock.now().since(asked);
        assert!(
            waited < limit + MS * 500,
            "an acquire for {limit:?} took {waited:?}"
        );
        match outcome {
            Ok(guard) => {
                gauge.tick();
                guard.run(clock.sleep(MS * 5)).await.unwrap();
                guard.release().await.unwrap();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Timeout, "{error}"),
        }
    }
}

/// Pushes jobs until told to stop; how many.
async fn produce(client: Client, stop: CancellationToken) -> usize {
    let (clock, queue) = (Clock::boot(), client.queue("work"));
    let mut pushed = 0;
    while !stop.is_cancelled() {
        while let Err(error) = queue.push("x").id(format!("job{pushed}")).await {
            assert!(
                error.is_ambiguous() || error.is_transient() || error.kind() == ErrorKind::Timeout,
                "{error}"
            );
        }
        pushed += 1;
        clock.sleep(MS * 20).await;
    }
    pushed
}

/// Does jobs until told to stop; the ids of those that were surely done.
async fn consume(client: Client, gauge: Gauge, stop: CancellationToken) -> Vec<String> {
    let mut consumer = client.queue("work").consumer(4);
    let mut done = Vec::new();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = consumer.next() => next,
        };
        let delivery = next.unwrap().unwrap();
        let id = delivery.id().to_string();
        delivery
            .ack()
            .await
            .unwrap_or_else(|error| panic!("{id}: {error}"));
        done.push(id);
        gauge.tick();
    }
    consumer.close().await;
    done
}

/// Writes one number after the other, and waits for each to be seen through a cache.
async fn configure(writer: Client, reader: Client, gauge: Gauge, stop: CancellationToken) {
    let clock = Clock::boot();
    let cache = reader.cache("/config").start().unwrap();
    cache.synced().await.unwrap();
    let mut number = 0_u64;
    while !stop.is_cancelled() {
        number += 1;
        let text = number.to_string();
        while let Err(error) = writer
            .store()
            .set(&key("/config/n"), text.clone().into(), Expiry::Never)
            .await
        {
            assert!(error.is_ambiguous() || error.is_transient(), "{error}");
        }
        let end = clock.now() + LONG;
        let sees = || {
            cache
                .get("n")
                .is_some_and(|it| it.as_ref() == text.as_bytes())
        };
        while !sees() {
            assert!(!clock.has_passed(end), "{number} was never seen");
            clock.sleep(MS).await;
        }
        gauge.tick();
        clock.sleep(MS * 20).await;
    }
}

/// Which member is behind the gate that can be slow.
const GATED: usize = 0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_one_member_nothing_is_lost_and_all_goes_on() {
    let peers = Peers::default();
    let gates = peers.clone();
    let members = tokio::task::spawn_blocking(move || {
        Etcd::start_three_behind(|number, port| gates.gate(number, port))
    });
    let mut members = members.await.unwrap();
    let gate = Gate::start(members[GATED].client_port()).await;
    let urls = [gate.url(), members[1].url(), members[2].url()];
    // Each begins with another member, so that whichever is hit, somebody is on it.
    let begin = |first: usize| {
        let order = [0, 1, 2].map(|n| urls[(first + n) % 3].as_str());
        let store = Etcd3::new(order.join(",")).unwrap();
        let ttl = Ttl::new(Duration::from_secs(5)).unwrap();
        Client::builder(store).ttl(ttl).build()
    };
    let clock = Clock::boot();
    let clients: Vec<Client> = (0..9).map(begin).collect();
    let mut held = Vec::new();
    for (n, client) in clients[..3].iter().enumerate() {
        held.push(client.lock(format!("held{n}")).acquire().await.unwrap());
    }
    let waits = |n: usize| {
        let lock = clients[3 + n].lock(format!("held{n}"));
        tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            (Clock::boot().now(), guard)
        })
    };
    let waiters: Vec<_> = (0..3).map(waits).collect();
    let (stop, stop_pushing) = (CancellationToken::new(), CancellationToken::new());
    let gauges = ["lock", "queue", "cache"].map(Gauge::new);
    let cycles: Vec<_> = (3..6)
        .map(|n| tokio::spawn(cycle(clients[n].clone(), gauges[0].clone(), stop.clone())))
        .collect();
    let pushed = tokio::spawn(produce(clients[6].clone(), stop_pushing.clone()));
    let consumers: Vec<_> = (7..9)
        .map(|n| tokio::spawn(consume(clients[n].clone(), gauges[1].clone(), stop.clone())))
        .collect();
    let configured = tokio::spawn(configure(
        clients[7].clone(),
        clients[8].clone(),
        gauges[2].clone(),
        stop.clone(),
    ));
    let outage = MS * 2_500;
    for event in [
        "nothing",
        "a member is slow",
        "the leader is killed",
        "the leader hangs",
        "a follower is killed",
        "a follower hangs",
        "the leader is cut off",
        "a follower is cut off",
    ] {
        let lead = leader(&members);
        let hit = if event.contains("leader") {
            lead
        } else {
            busiest(&members, lead)
        };
        for gauge in &gauges {
            gauge.take();
        }
        match event {
            "nothing" => clock.sleep(MS * 500).await,
            "the leader is killed" | "a follower is killed" => {
                members[hit].stop();
                clock.sleep(outage).await;
                let mut back = members;
                let restarted = tokio::task::spawn_blocking(move || {
                    back[hit].restart();
                    back
                });
                members = restarted.await.unwrap();
            }
            "the leader hangs" | "a follower hangs" => {
                // Shorter than the term: a leader that hangs for longer may revoke what was renewed.
                members[hit].pause();
                clock.sleep(outage).await;
                members[hit].resume();
            }
            "the leader is cut off" | "a follower is cut off" => {
                peers.cut(hit, &id(&members[hit]));
                clock.sleep(outage).await;
                peers.heal();
            }
            _ => {
                gate.set(Pass::Late(MS * 250));
                clock.sleep(outage).await;
                gate.set(Pass::All);
            }
        }
        clock.sleep(MS * 1_000).await;
        let worst = gauges.each_ref().map(|it| (it.name, it.take()));
        println!("{event}: worst {worst:.1?}");
        for guard in &held {
            assert_eq!(guard.state(), HoldState::Held, "{event}: {guard:?}");
        }
        for (name, worst) in worst {
            assert!(
                worst < Duration::from_secs(6),
                "{event}: {name} stood still for {worst:?}"
            );
        }
    }
    for (guard, waiter) in held.into_iter().zip(waiters) {
        let released = clock.now();
        guard.release().await.unwrap();
        let (at, next) = tokio::time::timeout(LONG, waiter).await.unwrap().unwrap();
        assert!(at > released && at.since(released) < Duration::from_secs(1));
        next.release().await.unwrap();
    }
    stop_pushing.cancel();
    let pushed = pushed.await.unwrap();
    let queue = clients[6].queue("work");
    let end = clock.now() + LONG;
    while !queue.jobs().await.unwrap().is_empty() {
        assert!(!clock.has_passed(end), "jobs are stuck");
        clock.sleep(MS * 20).await;
    }
    stop.cancel();
    for task in cycles.into_iter().chain([configured]) {
        task.await.unwrap();
    }
    let mut done = Vec::new();
    for consumer in consumers {
        done.extend(consumer.await.unwrap());
    }
    done.sort();
    let delivered = done.len();
    done.dedup();
    assert_eq!(done.len(), delivered, "nothing was done twice");
    assert_eq!(pushed, delivered, "nothing was lost");
    println!(
        "{} turns of the lock, {delivered} jobs, {} settings",
        gauges[0].count(),
        gauges[2].count()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_costs_no_hold_however_short_its_term_is() {
    let members = three().await;
    let leader = leader(&members);
    let hangs = (0..3).find(|it| *it != leader).unwrap();
    let mut order = vec![&members[hangs]];
    order.extend(others(&members, hangs));
    // A third of what is left of such a term is less than an attempt may take.
    let client = client(&order, 3);
    let guard = client.lock("a").acquire().await.unwrap();
    // All that is said once has been said: only renewals and the watch's silence are left.
    let watches = || members[hangs].metric("etcd_debugging_mvcc_watcher_total") > 0.0;
    until("its key is watched", watches).await;
    let known = guard.deadline().unwrap();
    guard.extended(known).await.unwrap();
    members[hangs].pause();
    let lost = tokio::time::timeout(Duration::from_secs(7), guard.lost()).await;
    members[hangs].resume();
    assert!(lost.is_err(), "{lost:?}");
}

/// The member that most watches are on, but for this one.
fn busiest(members: &[Etcd; 3], but: usize) -> usize {
    let watches = |n: &usize| members[*n].metric("etcd_debugging_mvcc_watcher_total") as u64;
    let rest = (0..3).filter(|n| *n != but);
    rest.max_by_key(watches).unwrap()
}

/// What its peers call it.
fn id(member: &Etcd) -> String {
    let (_, about) = member.http("/v2/stats/self").unwrap();
    let id = about.split("\"id\":\"").nth(1).unwrap();
    id.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_write_that_is_given_up_early_again_and_again_gets_to_another_member() {
    let members = three().await;
    let hangs = others(&members, leader(&members))[0];
    let next = members.iter().find(|it| it.url() != hangs.url()).unwrap();
    let store = Etcd3::new(format!("{},{}", hangs.url(), next.url())).unwrap();
    let set = || {
        let (store, key) = (store.clone(), key("/k"));
        tokio::time::timeout(MS * 500, async move {
            store.set(&key, "1".into(), Expiry::Never).await
        })
    };
    set().await.unwrap().unwrap();
    hangs.pause();
    assert!(set().await.is_err(), "it hangs");
    let written = set().await;
    hangs.resume();
    written.expect("the next is asked").unwrap();
}
