//! The election on a real etcd, through its v3 API: the whole suite, what it costs by the server's own
//! counters, sessions that an operator ends, and history that is forgotten.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture as _;
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Runtime};
use tenure::store::{Commit, Delete, Expiry, Grant, Put};
use tenure::{Client, Contender, ErrorKind, Key, Leaders, LeaseId, Store, Ttl};

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "election_suite/mod.rs"]
#[macro_use]
mod suite;

use common::etcd::Etcd;
use common::v3::{self, TTL, announced};
use common::wait::LONG;
use gate::{Gate, Pass};

async fn world() -> (suite::World, Etcd) {
    let server = Etcd::start();
    let world = suite::World {
        open: Box::new(v3::stores(&server)),
        runtime: Runtime::default(),
    };
    (world, server)
}

election_suite!(
    tokio::test(flavor = "multi_thread", worker_threads = 2),
    world()
);

fn client(etcd: &Etcd) -> Client {
    v3::client(&etcd.url(), TTL)
}

fn dir() -> Key {
    Key::new("/_elections/a").unwrap()
}

async fn next(leaders: &mut Leaders) -> Option<(u64, String)> {
    let item = tokio::time::timeout(LONG, leaders.next()).await;
    let leader = item.expect("an item").unwrap().unwrap()?;
    let proposal = String::from_utf8(leader.proposal().to_vec()).unwrap();
    Some((leader.token(), proposal))
}

/// Returns once so many are in line, the leader first.
async fn candidates(client: &Client, number: usize) -> Vec<Contender> {
    let election = client.election("a");
    v3::line_of(number, async || election.candidates().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_election_costs() {
    let etcd = v3::quiet();
    let (a, b) = (
        v3::client(&etcd.url(), Duration::from_secs(2)),
        client(&etcd),
    );
    let election = a.election("a");
    let first = election.campaign("0").await.unwrap();
    let session = candidates(&b, 1).await[0].session().unwrap();
    announced(&b, session).await;
    // The first renewal opens the stream that all share.
    let deadline = first.deadline().unwrap();
    first.extended(deadline).await.unwrap();
    let (spent, resigned) = v3::cost(&etcd, first.resign()).await;
    resigned.unwrap();
    assert_eq!(spent, (1, 1), "resign");
    let (spent, won) = v3::cost(&etcd, async { election.campaign("0").await }).await;
    let leadership = won.unwrap();
    assert_eq!(spent, (1, 1), "campaign");
    // Renewed or not: on v3 that touches no key.
    for number in 1..=3_u32 {
        let deadline = leadership.deadline().unwrap();
        leadership.extended(deadline).await.unwrap();
        let proclaim = leadership.proclaim(number.to_string());
        let (spent, proclaimed) = v3::cost(&etcd, proclaim).await;
        proclaimed.unwrap();
        assert_eq!(spent, (1, 1), "proclaim {number}");
    }
    let reads = async {
        for _ in 0..10 {
            let leader = b.election("a").leader().await.unwrap();
            assert_eq!(leader.unwrap().proposal(), "3");
            assert_eq!(b.election("a").candidates().await.unwrap().len(), 1);
        }
    };
    let (spent, ()) = v3::cost(&etcd, reads).await;
    v3::assert_cost("leader and candidates", spent, (0, 20));
    // A list and a stream, and nothing for each change.
    let observe = async {
        let mut observer = b.election("a").observe();
        assert_eq!(next(&mut observer).await.unwrap().1, "3");
        for number in 4..=20_u32 {
            leadership.proclaim(number.to_string()).await.unwrap();
            assert_eq!(next(&mut observer).await.unwrap().1, number.to_string());
        }
        observer
    };
    let (spent, mut observer) = v3::cost(&etcd, observe).await;
    v3::assert_cost("17 proclamations, and observing", spent, (17, 17 + 2));
    leadership.resign().await.unwrap();
    assert_eq!(next(&mut observer).await, None);
}

/// Eight candidates, each for itself, resign as soon as they lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_change_of_leader_costs() {
    const ROUNDS: u64 = 25;
    let etcd = v3::quiet();
    let clients: Vec<Client> = (0..8).map(|_| client(&etcd)).collect();
    for client in &clients {
        let leadership = client.election("a").campaign("0").await.unwrap();
        let leader = client.election("a").leader().await.unwrap().unwrap();
        announced(client, leader.session().unwrap()).await;
        leadership.resign().await.unwrap();
    }
    let clock = Clock::boot();
    let begun = clock.now();
    let all = clients.iter().map(|client| async move {
        let mut terms = Vec::new();
        for _ in 0..ROUNDS {
            let leadership = client.election("a").campaign("0").await.unwrap();
            terms.push(leadership.token());
            leadership.resign().await.unwrap();
        }
        terms
    });
    let ((proposals, calls), terms) = v3::cost(&etcd, futures_util::future::join_all(all)).await;
    let mut terms = terms.concat();
    let took = clock.now().since(begun);
    let number = terms.len() as f64;
    let (proposals, calls) = (proposals as f64 / number, calls as f64 / number);
    println!(
        "8 candidates: {:.0} changes of leader a second, {proposals:.2} proposals and {calls:.2} calls each",
        number / took.as_secs_f64()
    );
    assert!((proposals - 2.0).abs() <= 0.05, "{proposals}");
    assert!(calls <= 3.0, "append, delete, hardly a look: {calls}");
    terms.sort_unstable();
    terms.dedup();
    assert_eq!(terms.len() as u64, ROUNDS * 8, "a term of its own for each");
}

/// Puts tickets as another program could, all in one transaction.
fn tickets(names: &[&str], lease: LeaseId) -> Commit {
    let ticket = |name: &&str| {
        let key = dir().join(name).unwrap();
        Put::new(key, (*name).to_owned(), Expiry::With(lease))
    };
    names.iter().map(ticket).fold(Commit::new(), Commit::put)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_never_led_is_observed() {
    let etcd = v3::quiet();
    let (a, store) = (client(&etcd), Etcd3::new(etcd.url()).unwrap());
    let mut observer = a.election("a").observe();
    assert_eq!(next(&mut observer).await, None);
    let (one, two) = (LeaseId::new(0xaa1).unwrap(), LeaseId::new(0xaa2).unwrap());
    for lease in [one, two] {
        let ttl = Ttl::new(LONG * 2).unwrap();
        store.grant(Grant::new(lease, ttl)).await.unwrap();
    }
    // Of those that came in one transaction the first by key leads, however they were written.
    let written = store.commit(tickets(&["c", "b", "d"], one)).await.unwrap();
    let term = written.index.get();
    assert_eq!(next(&mut observer).await, Some((term, "b".into())));
    let read = a.election("a").leader().await.unwrap().unwrap();
    assert_eq!((read.token(), read.key().name()), (term, "b"));
    let third = store.commit(tickets(&["e", "a"], two)).await.unwrap();
    // With its lease all tickets of a candidate go in one revision: nobody of them led meanwhile.
    v3::revoke(&etcd, one);
    let third = third.index.get();
    assert_eq!(next(&mut observer).await, Some((third, "a".into())));
    // Deleted, and followed by another, in one transaction.
    let gone = |name: &str| Delete::new(dir().join(name).unwrap());
    let change = tickets(&["f"], two).delete(gone("a")).delete(gone("e"));
    let change = store.commit(change).await.unwrap().index.get();
    assert_eq!(next(&mut observer).await, Some((change, "f".into())));
    v3::revoke(&etcd, two);
    assert_eq!(next(&mut observer).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_whose_lease_is_revoked_is_told_at_once_and_never_wins() {
    let etcd = v3::quiet();
    let (a, b, clock) = (client(&etcd), client(&etcd), Clock::boot());
    let leadership = a.election("a").campaign("leads").await.unwrap();
    let mut observer = a.election("a").observe();
    assert_eq!(next(&mut observer).await.unwrap().1, "leads");
    let waits =
        |client: &Client| tokio::spawn(client.election("a").campaign("waits").into_future());
    let waiting = [waits(&b), waits(&b)];
    let line = candidates(&a, 3).await;
    let revoked = clock.now();
    v3::revoke(&etcd, LeaseId::new(line[1].session().unwrap()).unwrap());
    for candidate in waiting {
        let outcome = tokio::time::timeout(LONG, candidate)
            .await
            .unwrap()
            .unwrap();
        let told = clock.now().since(revoked);
        println!("told after {told:?}");
        assert!(told < Duration::from_secs(1), "{told:?}");
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    }
    assert!(leadership.is_held());
    // The next campaign has a session of its own.
    let waiting = waits(&b);
    candidates(&a, 2).await;
    leadership.resign().await.unwrap();
    let won = waiting.await.unwrap().unwrap();
    assert_eq!(next(&mut observer).await.unwrap().0, won.token());
    // A leader is told as soon, and whoever observes too.
    let revoked = clock.now();
    let own = candidates(&a, 1).await[0].session().unwrap();
    v3::revoke(&etcd, LeaseId::new(own).unwrap());
    won.lost().await;
    let told = clock.now().since(revoked);
    assert!(told < Duration::from_secs(1), "{told:?}");
    assert_eq!(next(&mut observer).await, None);
    let error = won.proclaim("late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

/// The connection is cut, history is forgotten meanwhile, and the connection comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidates_and_observers_go_on_after_a_compaction_and_do_not_poll() {
    let etcd = v3::quiet();
    let gate = Gate::start(etcd.client_port()).await;
    let (a, b, clock) = (client(&etcd), v3::client(&gate.url(), TTL), Clock::boot());
    let leadership = a.election("a").campaign("0").await.unwrap();
    let mut observer = b.election("a").observe();
    assert_eq!(next(&mut observer).await.unwrap().1, "0");
    let waiting = tokio::spawn(b.election("a").campaign("next").into_future());
    let line = candidates(&a, 2).await;
    announced(&a, line[1].session().unwrap()).await;
    gate.set(Pass::Nothing);
    for number in 1..=20_u32 {
        leadership.proclaim(number.to_string()).await.unwrap();
    }
    v3::compact(&etcd);
    gate.cut();
    gate.set(Pass::All);
    assert_eq!(
        next(&mut observer).await.unwrap().1,
        "20",
        "what is true now"
    );
    // It has found its way again when its session is renewed once more.
    tokio::time::sleep(TTL / 3).await;
    let (quiet, begun) = (TTL / 2, clock.now());
    let before = v3::counts(&etcd).1;
    clock.sleep(quiet).await;
    let calls = v3::counts(&etcd).1 - before;
    let a_second = calls as f64 / clock.now().since(begun).as_secs_f64();
    println!("{a_second:.2} calls a second while it waits after a compaction");
    assert!(a_second <= 1.0, "{a_second}");
    assert!(!waiting.is_finished() && leadership.is_held());
    leadership.resign().await.unwrap();
    let resigned = clock.now();
    let won = waiting.await.unwrap().unwrap();
    let took = clock.now().since(resigned);
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(
        next(&mut observer).await,
        Some((won.token(), "next".into()))
    );
}
