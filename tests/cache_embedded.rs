//! The cache suite over the embedded store, on paused time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::{CacheState, Client, ErrorKind};

#[path = "cache_suite/mod.rs"]
#[macro_use]
mod suite;

use suite::{Follower, LONG, World, Writer, eventually, soon};

async fn world() -> (World, ()) {
    (World::embedded(), ())
}

cache_suite!(tokio::test(start_paused = true), world());

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_the_subscribers_and_no_cache_begins_after_it() {
    let world = World::embedded();
    let (client, _link) = world.client_on_a_link();
    let cache = suite::started(&client).await;
    let mut changes = cache.changes();
    let outcome = client.shutdown(LONG).await;
    assert_eq!(outcome.tasks_left, 0);
    assert!(soon("the end", changes.next()).await.is_none());
    assert_eq!(cache.state(), CacheState::Stale);
    assert_eq!(cache.last_error().unwrap().kind(), ErrorKind::Closed);
    let error = client.cache("/config").start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let error = client.cache("config").start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidKey);
}

#[tokio::test(start_paused = true)]
async fn hidden_keys_are_not_seen_and_a_prefix_can_be_the_root_or_a_file() {
    let world = World::embedded();
    let writer = Writer((world.open)());
    writer.set("a", "1").await;
    writer.set("_hidden/b", "1").await;
    let (client, _link) = world.client_on_a_link();
    let root = client.cache("/").start().unwrap();
    let file = client.cache("/config/a").start().unwrap();
    let hidden = client.cache("/config/_hidden").start().unwrap();
    for cache in [&root, &file, &hidden] {
        soon("the list", cache.synced()).await.unwrap();
        assert_eq!(cache.len(), 1);
    }
    writer.set("_hidden/c", "1").await;
    let index = writer.set("a", "2").await;
    soon("it", root.caught_up_to(index)).await.unwrap();
    assert_eq!(root.get("config/a").as_deref().unwrap(), "2");
    assert_eq!(root.len(), 1);
    soon("it", file.caught_up_to(index)).await.unwrap();
    assert_eq!(file.get("/config/a").as_deref().unwrap(), "2");
    eventually("the hidden one", async || hidden.get("c").is_some()).await;
}

/// In KiB.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages
        .split(' ')
        .nth(1)
        .and_then(|it| it.parse::<usize>().ok());
    pages.unwrap_or_default() * 4
}

#[tokio::test]
async fn a_hundred_thousand_keys_load_and_follow() {
    const KEYS: usize = 100_000;
    let runtime = Runtime::default();
    let clock = runtime.clock.clone();
    let store = Embedded::new();
    let writer = Writer(Arc::new(store.clone()));
    for number in 0..KEYS {
        writer
            .set(&format!("d{}/k{number}", number % 100), format!("{number}"))
            .await;
    }
    let client = Client::new(store);
    let (memory, start) = (resident(), clock.now());
    let cache = suite::started(&client).await;
    let took = clock.now().since(start);
    println!(
        "{KEYS} keys: listed in {took:?}, {} bytes a key",
        (resident().saturating_sub(memory)) * 1024 / KEYS
    );
    assert_eq!(cache.len(), KEYS);
    let (reads, start) = (200_000, clock.now());
    for number in 0..reads {
        let number = number * 7 % KEYS;
        assert!(cache.get(format!("d{}/k{number}", number % 100)).is_some());
    }
    println!(
        "a read: {:?}",
        clock.now().since(start) / u32::try_from(reads).unwrap()
    );
    let mut follower = Follower::new(&cache);
    let (start, before) = (clock.now(), cache.snapshot());
    let mut last = None;
    for number in 0..500 {
        last = Some(writer.set(&format!("d0/k{}", number * 100), "new").await);
    }
    follower.follow_to(last.unwrap()).await;
    println!("a change: {:?}", clock.now().since(start) / 500);
    assert_eq!((follower.updates, follower.resyncs), (500, 0));
    assert_eq!(
        before.get("d0/k100").as_deref().unwrap(),
        "100",
        "a snapshot stays"
    );
    assert_eq!(cache.get("d0/k100").as_deref().unwrap(), "new");
}
