//! The cache suite over the embedded store, on paused time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::{Entropy, Runtime};
use tenure::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Expiry, Get, Grant, Granted, Put,
    Renew, Renewed, Updates, View, Watch, Withdraw, Withdrawn, Written,
};
use tenure::testkit::{Faulty, Odds};
use tenure::{CacheSource, CacheState, Change, Client, Error, ErrorKind, LeaseId, Store, Ttl};

#[path = "cache_suite/mod.rs"]
#[macro_use]
mod suite;

use suite::{Follower, LONG, Scratch, Writer, eventually, soon};

async fn world() -> (suite::World, ()) {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    (
        suite::World {
            open: Box::new(move || Arc::new(store.clone())),
            runtime,
        },
        (),
    )
}

cache_suite!(tokio::test(start_paused = true), world());

#[tokio::test(start_paused = true)]
async fn values_that_are_not_text_come_back_as_they_were_also_from_disk() {
    const BYTES: &[u8] = &[0xff, 0x00, 0xfe, b'a', 0x80];
    let scratch = Scratch::new();
    let file = scratch.0.join("cache.json");
    let (world, ()) = world().await;
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
    let (world, ()) = world().await;
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
    assert_eq!(scratch.names(), ["cache.json"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_damaged_is_not_taken_and_replaced() {
    let scratch = Scratch::new();
    let file = scratch.0.join("cache.json");
    std::fs::write(&file, "{\"format\":\"tenure cache\",\"version\":1,").unwrap();
    let (world, ()) = world().await;
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

/// Refuses reads with this kind of error, and can become another store.
#[derive(Clone, Debug)]
struct Moody {
    stores: [Embedded; 2],
    mood: Arc<Mutex<Mood>>,
}

#[derive(Debug, Default)]
struct Mood {
    second: bool,
    refuses: Option<ErrorKind>,
    gets: usize,
}

impl Moody {
    fn now(&self) -> Result<Embedded, Error> {
        let mood = self.mood.lock().unwrap();
        match mood.refuses {
            Some(kind) => Err(Error::new(kind, "on purpose")),
            None => Ok(self.stores[usize::from(mood.second)].clone()),
        }
    }
}

#[async_trait::async_trait]
impl Store for Moody {
    fn about(&self) -> About {
        self.stores[0].about()
    }
    async fn get(&self, get: Get) -> Result<View, Error> {
        self.mood.lock().unwrap().gets += 1;
        self.now()?.get(get).await
    }
    fn watch(&self, watch: Watch) -> Updates {
        match self.now() {
            Ok(store) => store.watch(watch),
            Err(error) => futures_util::stream::iter([Err(error)]).boxed(),
        }
    }
    async fn put(&self, put: Put) -> Result<Written, Error> {
        self.now()?.put(put).await
    }
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.now()?.append(append).await
    }
    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn, Error> {
        self.now()?.withdraw(withdraw).await
    }
    async fn delete(&self, delete: Delete) -> Result<Deleted, Error> {
        self.now()?.delete(delete).await
    }
    async fn commit(&self, commit: Commit) -> Result<Committed, Error> {
        self.now()?.commit(commit).await
    }
    async fn grant(&self, grant: Grant) -> Result<Granted, Error> {
        self.now()?.grant(grant).await
    }
    async fn renew(&self, renew: Renew) -> Result<Renewed, Error> {
        self.now()?.renew(renew).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.now()?.revoke(lease).await
    }
}

fn moody(runtime: &Runtime) -> Moody {
    let store = || Embedded::builder().runtime(runtime.clone()).build();
    Moody {
        stores: [store(), store()],
        mood: Arc::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_will_not_pass_is_told_and_tried_again_slowly() {
    let (world, ()) = world().await;
    let store = moody(&world.runtime);
    store.mood.lock().unwrap().refuses = Some(ErrorKind::Forbidden);
    let client = world.client(store.clone());
    let cache = client.cache("/config").start().unwrap();
    let mut follower = Follower::new(&cache);
    follower.next().await;
    assert_eq!(follower.troubles, [ErrorKind::Forbidden]);
    assert_eq!(cache.last_error().unwrap().kind(), ErrorKind::Forbidden);
    let clock = &world.runtime.clock;
    clock.sleep(Duration::from_secs(300)).await;
    let gets = store.mood.lock().unwrap().gets;
    assert!((10..=30).contains(&gets), "{gets} tries in 300 s");
    store.mood.lock().unwrap().refuses = None;
    let index = Writer(Arc::new(store.clone())).set("a", "1").await;
    let healed = clock.now();
    soon("the list", cache.caught_up_to(index)).await.unwrap();
    assert!(clock.now().since(healed) <= Duration::from_secs(30));
    assert_eq!(cache.state(), CacheState::Live);
    assert!(cache.last_error().is_none());

    // Later too, in the middle of a watch.
    follower.follow_to(index).await;
    store.mood.lock().unwrap().refuses = Some(ErrorKind::Unauthorized);
    Writer(Arc::new(store.stores[0].clone()))
        .set_many_there(1_100)
        .await;
    soon("the refusal", async {
        while cache.state() != CacheState::Stale {
            follower.next().await;
        }
    })
    .await;
    assert_eq!(cache.last_error().unwrap().kind(), ErrorKind::Unauthorized);
    assert_eq!(cache.get("a").as_deref().unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_back_is_told_and_listed_anew() {
    let (world, ()) = world().await;
    let store = moody(&world.runtime);
    let [first, second] = store.stores.clone().map(|it| Writer(Arc::new(it)));
    for round in 0..50 {
        first.set("a", format!("{round}")).await;
    }
    let client = world.client(store.clone());
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    second.set("b", "1").await;
    store.mood.lock().unwrap().second = true;
    // The open watch ends as history lost; the new list is that of the other store.
    first.set_many_there(1_100).await;
    eventually("the other store", async || cache.get("b").is_some()).await;
    while !follower.values.contains_key(&suite::at("b")) {
        follower.next().await;
    }
    assert_eq!(follower.troubles, [ErrorKind::ClusterChanged]);
    assert_eq!(follower.values, second.all().await);
    assert_eq!(cache.state(), CacheState::Live);
    let index = second.set("c", "1").await;
    follower.follow_to(index).await;
    assert_eq!(follower.values, second.all().await);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_the_subscribers_and_no_cache_begins_after_it() {
    let (world, ()) = world().await;
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
    let (world, ()) = world().await;
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

/// Writes, deletions, directories that go and keys that expire, while the client's link is bad; at
/// the end all is healed. Returns how many updates and resyncs the subscribers got.
async fn storm(seed: u64) -> (usize, usize) {
    let runtime = Runtime::on_tokio_time(seed);
    let store = Embedded::builder()
        .runtime(runtime.clone())
        .history_limit(40)
        .build();
    let writer = Writer(Arc::new(store.clone()));
    let link = Faulty::new(store.clone(), seed);
    link.set_all_odds(Odds::network(0.02, Duration::from_secs(3)));
    let client = Client::builder(link.clone())
        .runtime(runtime.clone())
        .build();
    let cache = client.cache("/config").start().unwrap();
    let typed = client
        .cache("/config")
        .decode(suite::number)
        .start()
        .unwrap();
    let (mut quick, mut slow) = (Follower::new(&cache), Follower::new(&cache));
    let mut numbers = Follower::new(&typed);
    let end = suite::at("end");
    let quick_one = tokio::spawn(async move {
        while !quick.values.contains_key(&suite::at("end")) {
            quick.next().await;
        }
        quick
    });
    let watched = cache.clone();
    let observer = tokio::spawn(async move {
        let (mut last, mut changes) = (None, watched.changes());
        while watched.get("end").is_none() {
            let index = watched.snapshot().index();
            assert!(last <= index, "from {last:?} back to {index:?}");
            last = index;
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
        }
    });
    let dice = Entropy::seeded(seed ^ 0x5eed);
    let die = |sides: u64| dice.u64() % sides;
    for _ in 0..400 {
        let name = format!("d{}/k{}", die(4), die(6));
        let key = suite::at(&name);
        let value: tenure::store::Put = match die(20) {
            0 => Put::new(key.clone(), "bad", Expiry::Never),
            1..3 => Put::new(key.clone(), "7", Expiry::After(Ttl::MIN)),
            _ => Put::new(key.clone(), format!("{}", die(5)), Expiry::Never),
        };
        // Some of these find nothing to do.
        match die(10) {
            0 => drop(store.delete(Delete::new(key)).await),
            1 => drop(
                store
                    .delete(Delete::tree(suite::at(&format!("d{}", die(4)))))
                    .await,
            ),
            2 => {
                let both = Commit::new().put(value);
                let other = Put::new(suite::at("other"), "1", Expiry::Never);
                drop(store.commit(both.put(other)).await);
            }
            _ => drop(store.put(value).await),
        }
        if die(30) == 0 {
            link.set_down(true);
            runtime.clock.sleep(Duration::from_millis(die(3_000))).await;
            link.set_down(false);
        }
        if die(8) == 0 {
            runtime.clock.sleep(Duration::from_millis(die(400))).await;
        }
        if die(100) == 0 {
            slow.next().await;
        }
    }
    link.heal();
    link.quiesce().await;
    // What still expires does so now.
    runtime.clock.sleep(Duration::from_secs(2)).await;
    let last = writer.set("end", "1").await;
    let all = writer.all().await;
    soon("the cache", cache.caught_up_to(last)).await.unwrap();
    soon("the typed one", typed.caught_up_to(last))
        .await
        .unwrap();
    assert_eq!(suite::values(&cache.snapshot()), all, "seed {seed}");
    let quick = soon("the quick one", quick_one).await.unwrap();
    soon("the observer", observer).await.unwrap();
    assert_eq!(quick.values, all, "seed {seed}");
    slow.follow_to(last).await;
    assert_eq!(slow.values, all, "seed {seed}");
    numbers.follow_to(last).await;
    assert_eq!(
        numbers.values,
        suite::values(&typed.snapshot()),
        "seed {seed}"
    );
    for (key, value) in &all {
        let bad = typed.snapshot().bad().any(|(it, _)| it == key);
        let right = typed
            .get(key)
            .is_some_and(|it| value == it.to_string().as_bytes());
        assert!(right != bad, "seed {seed}: {key}");
    }
    assert!(all.contains_key(&end));
    assert_eq!(cache.state(), CacheState::Live, "seed {seed}");
    (quick.updates, quick.resyncs)
}

#[test]
fn in_seeded_storms_nothing_is_missed_and_nothing_invented() {
    let number = |name: &str, default: u64| {
        let value = std::env::var(name).ok();
        value.and_then(|it| it.parse().ok()).unwrap_or(default)
    };
    let (first, seeds) = (number("TENURE_FIRST_SEED", 1), number("TENURE_SEEDS", 60));
    let (mut updates, mut resyncs) = (0, 0);
    for seed in first..first + seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (some, more) = runtime.block_on(storm(seed));
        updates += some;
        resyncs += more;
    }
    println!("{seeds} storms: {updates} updates, {resyncs} resyncs");
    assert!(updates > seeds as usize * 50 && resyncs > seeds as usize * 2);
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_one_item_and_no_snapshot_has_a_half_of_it() {
    let (world, ()) = world().await;
    let writer = Writer((world.open)());
    writer.set("b", "0").await;
    let (client, link) = world.client_on_a_link();
    let cache = suite::started(&client).await;
    // Breaks and delays in between must not tear it apart.
    link.set_odds(tenure::testkit::Call::Watch, {
        let mut odds = Odds::none();
        (odds.watch_ends, odds.watch_delay, odds.longest) = (0.2, 0.2, Duration::from_millis(50));
        odds
    });
    let mut follower = Follower::new(&cache);
    let watched = cache.clone();
    let observer = tokio::spawn(async move {
        let mut changes = watched.changes();
        while changes.next().await.is_some() {
            let snapshot = watched.snapshot();
            let all: Vec<_> = ["a", "b", "c"].map(|name| snapshot.get(name)).into();
            assert!(all.iter().all(|it| *it == all[0]), "{all:?}");
            if all[0].as_deref().is_some_and(|it| it == "49") {
                return;
            }
        }
    });
    for round in 0..50 {
        let put = |name| Put::new(suite::at(name), format!("{round}"), Expiry::Never);
        // The last write of the commit is none of the cache's.
        let other = Put::new(tenure::Key::new("/elsewhere").unwrap(), "x", Expiry::Never);
        let commit = Commit::new()
            .put(put("a"))
            .put(put("b"))
            .put(put("c"))
            .put(other);
        writer.0.commit(commit).await.unwrap();
        let change = follower.next().await;
        let Change::Update(diff) = &*change else {
            panic!("{change:?}")
        };
        assert_eq!(diff.changed.len(), 3, "{diff:?}");
    }
    soon("the observer", observer).await.unwrap();
    assert_eq!(follower.values, writer.all().await);
}
