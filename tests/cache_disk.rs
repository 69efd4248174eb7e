//! What a cache keeps on disk, on paused time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use tenure::{CacheSource, CacheState, Client, ErrorKind};

#[path = "cache_suite/mod.rs"]
#[allow(dead_code, unused_macros)]
mod suite;

use suite::{LONG, Scratch, World, Writer, eventually, soon};

#[tokio::test(start_paused = true)]
async fn values_that_are_not_text_come_back_as_they_were_also_from_disk() {
    const BYTES: &[u8] = &[0xff, 0x00, 0xfe, b'a', 0x80];
    let scratch = Scratch::new();
    let file = scratch.0.join("cache.json");
    let world = World::embedded();
    let (client, _link) = world.client_on_a_link();
    let begin = |client: &Client| client.cache("/config").disk(&file).start().unwrap();
    let cache = begin(&client);
    let writer = Writer((world.open)());
    let index = writer.set("raw", BYTES).await;
    soon("it", cache.caught_up_to(index)).await.unwrap();
    assert_eq!(*cache.get("raw").unwrap(), BYTES);
    client.shutdown(LONG).await;
    let (client, link) = world.client_on_a_link();
    link.set_down(true);
    let cache = begin(&client);
    assert_eq!(
        (cache.source(), &**cache.get("raw").unwrap()),
        (CacheSource::Disk, BYTES)
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_is_written_at_most_once_a_second_and_at_the_end() {
    let scratch = Scratch::new();
    let file = scratch.0.join("cache.json");
    let world = World::embedded();
    let (client, _link) = world.client_on_a_link();
    let cache = client.cache("/config").disk(&file).start().unwrap();
    let clock = &world.runtime.clock;
    soon("the list", cache.synced()).await.unwrap();
    let written = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("the first file", async || !written().is_empty()).await;
    let writer = Writer((world.open)());
    let (mut files, mut last) = (0, written());
    for round in 0..200 {
        let index = writer.set("a", format!("{round}")).await;
        cache.caught_up_to(index).await.unwrap();
        clock.sleep(Duration::from_millis(25)).await;
        let now = written();
        files += usize::from(now != last);
        last = now;
    }
    assert!((4..=6).contains(&files), "{files} files in 5 s");
    // Quiet: it is written again now and then, to say that it is still right.
    eventually("the last value", async || written().contains("199")).await;
    let before = written();
    clock.sleep(Duration::from_secs(290)).await;
    assert_eq!(written(), before);
    clock.sleep(Duration::from_secs(20)).await;
    eventually("a fresh file", async || written() != before).await;
    // With the last handle gone what is new is written at once.
    let index = writer.set("a", "end").await;
    cache.caught_up_to(index).await.unwrap();
    drop(cache);
    eventually("the end", async || written().contains("\"end\"")).await;
    let left = std::fs::read_dir(&scratch.0).unwrap();
    assert_eq!(left.count(), 1, "nothing stays beside it");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_damaged_is_not_taken_and_replaced() {
    let scratch = Scratch::new();
    let file = scratch.0.join("cache.json");
    std::fs::write(&file, "{\"format\":\"tenure cache\",\"version\":1,").unwrap();
    let world = World::embedded();
    let (client, link) = world.client_on_a_link();
    link.set_down(true);
    let cache = client.cache("/config").disk(&file).start().unwrap();
    let error = cache.disk_error().unwrap();
    assert!(error.to_string().contains("cache.json"), "{error}");
    assert_eq!(
        (cache.state(), cache.source()),
        (CacheState::Loading, CacheSource::Nothing)
    );
    link.set_down(false);
    soon("the list", cache.synced()).await.unwrap();
    eventually("a file", async || cache.disk_error().is_none()).await;
    client.shutdown(LONG).await;
    let (client, link) = world.client_on_a_link();
    link.set_down(true);
    let cache = client.cache("/config").disk(&file).start().unwrap();
    assert!(cache.disk_error().is_none());
    assert_eq!(cache.source(), CacheSource::Disk);
    // A file of another prefix is not taken either.
    let other = client.cache("/other").disk(&file).start().unwrap();
    assert_eq!(
        other.disk_error().unwrap().kind(),
        ErrorKind::InvalidOptions
    );
    assert_eq!(other.source(), CacheSource::Nothing);
}
