//! What a held lock takes of the client's memory, on etcd v3: bytes and blocks that are allocated,
//! guards included. Both are the same on every machine, unlike what the process takes of the system,
//! which `tenure bench held` prints. Alone in its file, for it counts what the whole process allocates.
//!
//! `TENURE_HEAP_PROFILE=FILE` writes who has allocated what, for DHAT's viewer.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use dhat::{HeapStats, Profiler};
use tenure::etcd3::Etcd3;
use tenure::runtime::Clock;
use tenure::{Client, LockGuard};

mod common;

use common::etcd::Etcd;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// So many are held before it is measured.
const FIRST: usize = 200;

/// The most that a held lock may take. The allocator adds 8 to 24 bytes to each block.
const BYTES: usize = 1_450;
const BLOCKS: f64 = 10.0;

/// Locks, held and watched.
async fn hold(server: &Etcd, client: &Client, names: std::ops::Range<usize>) -> Vec<LockGuard> {
    let clock = Clock::boot();
    let held = names.end as f64;
    let mut guards = Vec::with_capacity(names.len());
    let names: Vec<usize> = names.collect();
    for some in names.chunks(50) {
        let acquires = some.iter().map(|name| client.lock(format!("held-{name}")));
        let acquires = acquires.map(|lock| async move { lock.acquire().await });
        guards.extend(futures_util::future::try_join_all(acquires).await.unwrap());
    }
    let limit = clock.now() + Duration::from_secs(120);
    let (mut last, mut quiet) = (0, 0);
    while quiet < 4 {
        clock.sleep(Duration::from_millis(250)).await;
        assert!(!clock.has_passed(limit), "it comes to no rest");
        let now = HeapStats::get().curr_bytes;
        let watched = server.metric("etcd_debugging_mvcc_watcher_total") >= held;
        quiet = if watched && now.abs_diff(last) < 4096 {
            quiet + 1
        } else {
            0
        };
        last = now;
    }
    guards
}

/// `TENURE_HELD_LOCKS=10000` for the figures in the documents.
#[tokio::test]
async fn a_held_lock_takes_little_memory() {
    let held = std::env::var("TENURE_HELD_LOCKS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(1_000_usize);
    let server = Etcd::start();
    let client = Client::new(Etcd3::new(server.url()).unwrap());
    let profiler = match std::env::var_os("TENURE_HEAP_PROFILE") {
        Some(path) => Profiler::builder().file_name(path).build(),
        None => Profiler::builder().testing().build(),
    };
    // What the first cost is not of each: buffers and queues keep the room that they once had.
    let first = hold(&server, &client, 0..FIRST).await;
    let before = HeapStats::get();
    let guards = hold(&server, &client, FIRST..FIRST + held).await;
    let after = HeapStats::get();
    drop(profiler);
    let bytes = (after.curr_bytes - before.curr_bytes) / held;
    let blocks = (after.curr_blocks - before.curr_blocks) as f64 / held as f64;
    println!("{held} locks held: {bytes} bytes in {blocks:.1} blocks a lock");
    assert!(first.iter().chain(&guards).all(|guard| guard.is_held()));
    assert!(bytes <= BYTES && blocks <= BLOCKS);
    // Each watch ends with its guard, not with the last.
    drop(first);
    let (clock, watches) = (Clock::boot(), "etcd_debugging_mvcc_watcher_total");
    let limit = clock.now() + Duration::from_secs(30);
    while server.metric(watches) > held as f64 {
        assert!(!clock.has_passed(limit), "what was given back is watched");
        clock.sleep(Duration::from_millis(50)).await;
    }
    assert!(guards.iter().all(|guard| guard.is_held()));
    drop(guards);
    client.shutdown(Duration::from_secs(30)).await;
}
