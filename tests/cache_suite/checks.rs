//! The checks.

use std::sync::Arc;
use std::time::Duration;

use tenure::store::Delete;
use tenure::testkit::{Call, Fault};
use tenure::{Cache, CacheSource, CacheState, Change, Client, ErrorKind, Index, Key};

use super::{Follower, LONG, Scratch, World, at, eventually, is, number, soon, started, values};

pub(crate) async fn a_cache_has_what_is_there_and_takes_every_change_in_order(world: World) {
    let writer = world.writer();
    writer.set("a", "1").await;
    writer.set("deep/er/b", "1").await;
    let (client, _link) = world.client_on_a_link();
    let cache = started(&client).await;
    assert_eq!(cache.state(), CacheState::Live);
    assert_eq!(cache.source(), CacheSource::Store);
    assert_eq!(cache.age(), Some(Duration::ZERO));
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
    assert_eq!(cache.get("/config/deep/er/b").as_deref().unwrap(), "1");
    assert_eq!(cache.get("deep"), None, "directories are no entries");
    assert_eq!(cache.len(), 2);

    let mut follower = Follower::new(&cache);
    let before = cache.snapshot();
    for round in 0..10 {
        let index = writer
            .set(&format!("a{}", round % 3), format!("{round}"))
            .await;
        let change = follower.next().await;
        assert!(
            matches!(&*change, Change::Update(diff) if diff.to == index && diff.changed.len() == 1)
        );
    }
    let gone = writer.delete("a").await;
    follower.next().await;
    assert_eq!((follower.updates, follower.resyncs), (11, 0));
    soon("the deletion", cache.caught_up_to(gone))
        .await
        .unwrap();
    assert_eq!(values(&cache.snapshot()), writer.all().await);
    assert_eq!(follower.values, writer.all().await);
    // A snapshot stays what it was.
    assert_eq!(before.get("a").as_deref().unwrap(), "1");
    assert_eq!(before.len(), 2);
    let below: Vec<_> = before
        .below(&at("deep"))
        .map(|(key, _)| key.clone())
        .collect();
    assert_eq!(below, [at("deep/er/b")]);
}

pub(crate) async fn who_writes_can_wait_to_see_it(world: World) {
    let writer = world.writer();
    let (client, _link) = world.client_on_a_link();
    let cache = started(&client).await;
    for round in 0..20 {
        let index = writer.set("a", format!("{round}")).await;
        soon("its own write", cache.caught_up_to(index))
            .await
            .unwrap();
        assert!(cache.snapshot().index() >= Some(index));
        assert_eq!(*cache.get("a").unwrap(), format!("{round}"));
    }
}

pub(crate) async fn a_directory_that_goes_is_one_item_for_all_in_it(world: World) {
    let writer = world.writer();
    for name in ["d/a", "d/b/c", "d-e", "da", "d0"] {
        writer.set(name, "x").await;
    }
    let (client, _link) = world.client_on_a_link();
    let cache = started(&client).await;
    let mut follower = Follower::new(&cache);
    let deleted = writer.0.delete(Delete::tree(at("d"))).await.unwrap();
    let change = follower.next().await;
    let Change::Update(diff) = &*change else {
        panic!("{change:?}")
    };
    let keys: Vec<&Key> = diff.changed.iter().map(|it| &it.key).collect();
    assert_eq!(keys, [&at("d/a"), &at("d/b/c")]);
    assert_eq!(diff.to, deleted.index);
    assert_eq!(follower.values, writer.all().await);
    assert_eq!(cache.len(), 3);
}

pub(crate) async fn lost_history_is_one_diff_that_leads_to_what_is_there(world: World) {
    const KEYS: usize = 1_000;
    const WRITES: usize = 2_000;
    let writer = world.writer();
    writer.set_many(KEYS, |number| format!("k{number}")).await;
    let (client, link) = world.client_on_a_link();
    let cache = started(&client).await;
    assert_eq!(cache.len(), KEYS);
    let mut follower = Follower::new(&cache);
    let same = cache.get("k1").unwrap();

    link.set_down(true);
    is(&cache, CacheState::Stale).await;
    // Everything but k0 to k9: half of it written again, some new, some gone.
    writer
        .set_many(WRITES, |number| format!("k{}", 10 + number % 1_500))
        .await;
    writer.delete("k20").await;
    let last = writer.set("k2", "2").await;
    (world.forget)(last);
    assert_eq!(cache.len(), KEYS, "the last values stay");
    link.set_down(false);

    soon("the new list", cache.caught_up_to(last))
        .await
        .unwrap();
    is(&cache, CacheState::Live).await;
    let wanted = writer.all().await;
    assert_eq!(values(&cache.snapshot()), wanted);
    follower.follow_to(last).await;
    assert_eq!((follower.updates, follower.resyncs), (0, 1), "one diff");
    assert_eq!(follower.values, wanted);
    assert!(
        Arc::ptr_eq(&same, &cache.get("k1").unwrap()),
        "not decoded again"
    );

    let next = writer.set("k1", "after").await;
    follower.follow_to(next).await;
    assert_eq!((follower.updates, follower.resyncs), (1, 1));
    // By the watch, as before: nothing is asked again and again.
    let calls = (link.calls(Call::Get), link.calls(Call::Watch));
    for round in 0..20 {
        let next = writer.set("k1", format!("{round}")).await;
        follower.follow_to(next).await;
    }
    assert_eq!((link.calls(Call::Get), link.calls(Call::Watch)), calls);
}

pub(crate) async fn a_deletion_with_a_new_creation_is_seen_also_without_history(world: World) {
    let writer = world.writer();
    for name in ["again", "kept", "other"] {
        writer.set(name, "same").await;
    }
    let (client, link) = world.client_on_a_link();
    let cache = started(&client).await;
    let mut follower = Follower::new(&cache);
    link.set_down(true);
    is(&cache, CacheState::Stale).await;
    writer.delete("again").await;
    writer.set("again", "same").await;
    writer.set_many(1_100, |_| "other".to_owned()).await;
    let last = writer.set("other", "x").await;
    (world.forget)(last);
    link.set_down(false);
    let change = follower.next().await;
    let Change::Resync(diff) = &*change else {
        panic!("{change:?}")
    };
    let names: Vec<&str> = diff.changed.iter().map(|it| it.key.name()).collect();
    assert_eq!((names, diff.to >= last), (vec!["again", "other"], true));
    let again = &diff.changed[0];
    assert_eq!(
        (again.old.as_deref(), again.new.as_deref()),
        (Some(&"same".into()), Some(&"same".into()))
    );
}

pub(crate) async fn a_thousand_subscribers_cost_one_watch_and_all_get_everything(world: World) {
    const SUBSCRIBERS: usize = 1_000;
    let writer = world.writer();
    writer.set("a", "0").await;
    let (client, link) = world.client_on_a_link();
    let cache = started(&client).await;
    let mut followers: Vec<_> = (0..SUBSCRIBERS).map(|_| Follower::new(&cache)).collect();
    // Another cache of the prefix, of another type, is complete at once.
    let typed = client.cache("/config").decode(number).start().unwrap();
    assert_eq!(typed.get("a").as_deref(), Some(&0));
    assert_eq!(typed.state(), CacheState::Live);
    let copy = cache.clone();
    drop(cache);

    let mut last = None;
    for round in 1..=10 {
        last = Some(writer.set("a", format!("{round}")).await);
    }
    let last = last.unwrap();
    for follower in &mut followers {
        follower.follow_to(last).await;
        assert_eq!((follower.updates, follower.resyncs), (10, 0));
        assert_eq!(*follower.values[&at("a")], *b"10");
    }
    soon("the typed one", typed.caught_up_to(last))
        .await
        .unwrap();
    assert_eq!(typed.get("a").as_deref(), Some(&10));
    assert_eq!(copy.get("a").as_deref().unwrap(), "10");
    assert_eq!((link.calls(Call::Get), link.calls(Call::Watch)), (1, 1));

    // With the last of them gone its work ends; the next one begins anew.
    drop((followers, typed, copy));
    let again = started(&client).await;
    assert_eq!(again.len(), 1);
    assert_eq!((link.calls(Call::Get), link.calls(Call::Watch)), (2, 2));
}

pub(crate) async fn a_bad_value_keeps_the_last_good_one_and_is_told(world: World) {
    let writer = world.writer();
    writer.set("a", "1").await;
    writer.set("never", "good").await;
    let (client, _link) = world.client_on_a_link();
    let cache = client.cache("/config").decode(number).start().unwrap();
    soon("the first list", cache.synced()).await.unwrap();
    let mut follower = Follower::new(&cache);
    assert_eq!(cache.get("never"), None);
    let bad = |cache: &Cache<u32>| -> Vec<Key> {
        let snapshot = cache.snapshot();
        snapshot.bad().map(|(key, _)| key.clone()).collect()
    };
    assert_eq!(bad(&cache), [at("never")]);

    for value in ["two", "panic", ""] {
        writer.set("a", value).await;
        let change = follower.next().await;
        let Change::Bad { key, error } = &*change else {
            panic!("{change:?}")
        };
        assert_eq!((key, error.kind()), (&at("a"), ErrorKind::InvalidValue));
        let text = error.to_string();
        assert_eq!(
            text.contains("panicked") && text.contains("as asked"),
            value == "panic",
            "{text}"
        );
        assert_eq!(cache.get("a").as_deref(), Some(&1), "the last good one");
        assert_eq!(bad(&cache), [at("a"), at("never")]);
    }
    writer.set("a", "2").await;
    let index = writer.delete("never").await;
    soon("the end", cache.caught_up_to(index)).await.unwrap();
    follower.next().await;
    assert_eq!((follower.values[&at("a")], follower.bad.len()), (2, 3));
    assert!(bad(&cache).is_empty());
    assert_eq!(cache.state(), CacheState::Live);
}

pub(crate) async fn a_slow_subscriber_gets_one_diff_from_what_it_read_last(world: World) {
    const WRITES: usize = 1_200;
    let writer = world.writer();
    for name in ["gone", "a"] {
        writer.set(name, "0").await;
    }
    let (client, _link) = world.client_on_a_link();
    let cache = started(&client).await;
    let (mut slow, mut quick) = (Follower::new(&cache), Follower::new(&cache));
    let first = writer.set("first", "x").await;
    slow.follow_to(first).await;
    let mut last = writer.delete("gone").await;
    for round in 0..WRITES {
        last = writer
            .set(&format!("k{}", round % 50), format!("{round}"))
            .await;
        if round % 100 == 0 {
            quick.follow_to(last).await;
        }
    }
    soon("the writes", cache.caught_up_to(last)).await.unwrap();
    quick.follow_to(last).await;
    assert_eq!((quick.updates, quick.resyncs), (WRITES + 2, 0));
    let change = slow.next().await;
    let Change::Resync(diff) = &*change else {
        panic!("lag is told: {change:?}")
    };
    assert_eq!((diff.from, diff.to), (Some(first), last));
    assert_eq!(diff.changed.len(), 51, "50 keys, and one that is gone");
    assert_eq!(slow.values, quick.values);
    assert_eq!(slow.values, writer.all().await);
    // And it goes on as if nothing had been.
    let next = writer.set("a", "1").await;
    slow.follow_to(next).await;
    assert_eq!((slow.updates, slow.resyncs), (2, 1));
}

pub(crate) async fn a_value_of_a_mebibyte_is_cached(world: World) {
    let writer = world.writer();
    let big = "é".repeat(1 << 19);
    let (client, _link) = world.client_on_a_link();
    let cache = started(&client).await;
    let index = writer.set("big", big.clone()).await;
    soon("the big one", cache.caught_up_to(index))
        .await
        .unwrap();
    assert_eq!(*cache.get("big").unwrap(), big);
    let (other, _link) = world.client_on_a_link();
    assert_eq!(*started(&other).await.get("big").unwrap(), big);
}

pub(crate) async fn an_outage_leaves_the_last_values_stale_with_their_age(world: World) {
    let writer = world.writer();
    writer.set("a", "1").await;
    let (client, link) = world.client_on_a_link();
    let cache = started(&client).await;
    let mut follower = Follower::new(&cache);
    for round in 0..2 {
        link.set_down(true);
        is(&cache, CacheState::Stale).await;
        let error = cache.last_error().unwrap();
        assert!(error.is_transient(), "{error}");
        assert_eq!(cache.get("a").as_deref().unwrap(), "1");
        let age = cache.age().unwrap();
        let clock = &world.runtime.clock;
        clock.sleep(Duration::from_millis(300)).await;
        assert!(
            cache.age().unwrap() >= age + Duration::from_millis(300),
            "round {round}"
        );
        link.set_down(false);
        // Nothing is written: that it follows again has to be seen without.
        is(&cache, CacheState::Live).await;
        assert_eq!(cache.age(), Some(Duration::ZERO));
        assert!(cache.last_error().is_none());
    }
    let index = writer.set("a", "2").await;
    follower.follow_to(index).await;
    assert_eq!(
        (follower.updates, follower.resyncs),
        (1, 0),
        "and nothing was invented"
    );
}

pub(crate) async fn it_is_ready_when_the_list_is_complete_and_not_before(world: World) {
    let writer = world.writer();
    writer.set("a", "1").await;
    let (client, link) = world.client_on_a_link();
    link.next(Call::Get, Fault::LostReply);
    link.next(Call::Get, Fault::Unavailable);
    let cache = client.cache("/config").start().unwrap();
    let mut follower = Follower::new(&cache);
    assert_eq!(cache.state(), CacheState::Loading);
    assert_eq!((cache.source(), cache.age()), (CacheSource::Nothing, None));
    assert_eq!(cache.snapshot().index(), None);
    eventually("an error", async || cache.last_error().is_some()).await;
    assert_eq!((cache.state(), cache.len()), (CacheState::Loading, 0));
    soon("the list", cache.synced()).await.unwrap();
    assert_eq!(cache.len(), 1);
    let change = follower.next().await;
    assert!(
        matches!(&*change, Change::Resync(diff) if diff.from.is_none() && diff.changed.len() == 1)
    );
}

pub(crate) async fn a_start_without_a_store_takes_what_is_on_disk(world: World) {
    let dir = Scratch::new();
    let file = dir.0.join("config.json");
    let writer = world.writer();
    for (name, value) in [
        ("same", "1"),
        ("changed", "1"),
        ("gone", "1"),
        ("worse", "1"),
    ] {
        writer.set(name, value).await;
    }
    let (client, _link) = world.client_on_a_link();
    let begin = |client: &Client| {
        let cache = client.cache("/config").decode(number).disk(&file);
        cache.start().unwrap()
    };
    let cache = begin(&client);
    soon("the list", cache.synced()).await.unwrap();
    let worse = writer.set("worse", "not a number").await;
    soon("the bad one", cache.caught_up_to(worse))
        .await
        .unwrap();
    soon("the end", client.shutdown(LONG)).await;
    assert!(cache.disk_error().is_none(), "{:?}", cache.disk_error());
    assert_eq!(
        soon("the end", cache.caught_up_to(Index::new(u64::MAX).unwrap()))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Closed
    );

    let (client, link) = world.client_on_a_link();
    link.set_down(true);
    let cache = begin(&client);
    assert!(cache.disk_error().is_none(), "{:?}", cache.disk_error());
    assert_eq!(
        (cache.state(), cache.source()),
        (CacheState::Stale, CacheSource::Disk)
    );
    assert!(
        cache.age().is_some_and(|age| age < LONG),
        "{:?}",
        cache.age()
    );
    assert_eq!((cache.len(), cache.snapshot().index()), (4, None));
    assert_eq!(cache.get("worse").as_deref(), Some(&1), "the last good one");
    let mut follower = Follower::new(&cache);
    eventually("an error", async || cache.last_error().is_some()).await;
    assert_eq!((cache.state(), cache.len()), (CacheState::Stale, 4));

    writer.set("changed", "2").await;
    writer.set("new", "2").await;
    let last = writer.delete("gone").await;
    link.set_down(false);
    soon("the list", cache.caught_up_to(last)).await.unwrap();
    assert_eq!(
        (cache.state(), cache.source()),
        (CacheState::Live, CacheSource::Store)
    );
    let change = follower.next().await;
    let Change::Resync(diff) = &*change else {
        panic!("{change:?}")
    };
    let names: Vec<&str> = diff.changed.iter().map(|it| it.key.name()).collect();
    assert_eq!(
        names,
        ["changed", "gone", "new"],
        "what is the same is no change"
    );
    assert_eq!(follower.values, values(&cache.snapshot()));
    assert_eq!(
        cache.get("worse").as_deref(),
        Some(&1),
        "still bad in the store"
    );
    soon("the end", client.shutdown(LONG)).await;
}
