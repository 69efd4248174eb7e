//! 64 clients at 5 permits on a real etcd, through each of its APIs, for some seconds: holders are
//! killed without giving back, links are cut, connections are closed or stall, and the limit is
//! changed under load. The record is checked at the end.
//!
//! `TENURE_SOAK_SECS` makes it longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Entropy};
use tenure::testkit::Faulty;
use tenure::{Client, Key, Store, StoreExt, Ttl};
use tokio::task::JoinSet;

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "semaphore_suite/record.rs"]
mod record;

use common::etcd::Etcd;
use gate::{Gate, Pass};
use record::Record;

const CLIENTS: u64 = 64;
const PERMITS: u32 = 5;
const TTL: Duration = Duration::from_secs(5);

/// Opens a store at an address.
type Open = fn(&str) -> Arc<dyn Store>;

fn client(open: Open, url: &str, seed: u64) -> (Client, Faulty<dyn Store>) {
    let link = Faulty::shared(open(url), seed);
    let ttl = Ttl::new(TTL).unwrap();
    (Client::builder(link.clone()).ttl(ttl).build(), link)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_etcd2_sixty_four_clients_share_five_permits_through_kills_cuts_and_resizes() {
    stress(|url| Arc::new(Etcd2::new(url).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_etcd3_sixty_four_clients_share_five_permits_through_kills_cuts_and_resizes() {
    stress(|url| Arc::new(Etcd3::new(url).unwrap())).await;
}

async fn stress(open: Open) {
    let soak = std::env::var("TENURE_SOAK_SECS").ok();
    let length = Duration::from_secs(soak.and_then(|it| it.parse().ok()).unwrap_or(8));
    let (server, clock) = (Etcd::start(), Clock::boot());
    let mut gates = Vec::new();
    for _ in 0..4 {
        gates.push(Gate::start(server.client_port()).await);
    }
    let urls: Vec<String> = gates.iter().map(Gate::url).collect();
    let record = Arc::new(Record::new(clock.clone()));
    let (operator, _) = client(open, &server.url(), 0);
    let asked = clock.now();
    let made = operator.semaphore("a").permits(PERMITS).try_acquire().await;
    record.limit(PERMITS, asked);
    made.unwrap().unwrap().release().await.unwrap();
    let end = clock.now() + length;
    let mut tasks = JoinSet::new();
    for number in 1..=CLIENTS {
        let url = urls[number as usize % urls.len()].clone();
        let (clock, record) = (clock.clone(), record.clone());
        let dice = Entropy::seeded(number);
        tasks.spawn(async move {
            let (mut own, mut link) = client(open, &url, number);
            let mut turns = 0;
            while !clock.has_passed(end) {
                let asked = clock.now();
                let weight = 1 + u32::from(dice.u64().is_multiple_of(8));
                let permit = own.semaphore("a").acquire().weight(weight).await;
                // Cut off while it waited, or the largest limit was less for a moment.
                let Ok(permit) = permit else { continue };
                turns += 1;
                let held = record.acquired(asked, &permit);
                let work = Duration::from_millis(dice.u64() % 60);
                let fate = dice.u64() % 40;
                if fate == 0 {
                    link.set_down(true);
                    // Half of the cuts are longer than the term.
                    let _ = permit
                        .run(clock.sleep(TTL / 2 * (1 + number as u32 % 2)))
                        .await;
                    drop(held);
                    link.set_down(false);
                    drop(permit);
                    continue;
                }
                let _ = permit.run(clock.sleep(work)).await;
                drop(held);
                if fate == 1 {
                    // Killed: nobody gives anything back.
                    link.set_down(true);
                    drop(permit);
                    (own, link) = client(open, &url, number + 100);
                } else {
                    let _ = permit.release().await;
                }
            }
            (own, turns)
        });
    }
    let mut resizes = 0_usize;
    let dice = Entropy::seeded(99);
    while !clock.has_passed(end) {
        let (asked, limit) = (clock.now(), 2 + (dice.u64() % 7) as u32);
        operator.semaphore("a").resize(limit).await.unwrap();
        record.limit(limit, asked);
        resizes += 1;
        let gate = &gates[resizes % gates.len()];
        // Half of the time connections are closed, else they stall, in one direction or both.
        match resizes % 6 {
            0 => gate.set(Pass::Nothing),
            2 => gate.set(Pass::Requests),
            4 => gate.set(Pass::Answers),
            _ => gate.cut(),
        }
        clock.sleep(Duration::from_millis(300)).await;
        gate.set(Pass::All);
    }
    let asked = clock.now();
    operator.semaphore("a").resize(PERMITS).await.unwrap();
    record.limit(PERMITS, asked);
    let finish = async {
        let mut all = 0;
        while let Some(done) = tasks.join_next().await {
            let (_, turns) = done.unwrap();
            assert!(turns > 0, "a client without a turn");
            all += turns;
        }
        // Every permit can be had.
        let all_permits = operator.semaphore("a").acquire().weight(PERMITS);
        all_permits.await.unwrap().release().await.unwrap();
        let dir = Key::new("/_semaphores/a/line").unwrap();
        while !operator.store().children(&dir).await.unwrap().is_empty() {
            clock.sleep(Duration::from_millis(20)).await;
        }
        all
    };
    let turns = tokio::time::timeout(TTL * 12, finish).await;
    let turns = turns.expect("each has its turn, and the line empties");
    let holds = record.check("the stress");
    println!("{turns} turns, {holds} holds, {resizes} resizes in {length:?}");
    assert!(holds > 64, "{holds} holds are too few to mean anything");
}
