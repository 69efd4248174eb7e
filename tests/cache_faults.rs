//! The cache where things go wrong: a store that refuses, one that goes back, watches that break in
//! the middle of a commit, and seeded storms of all of it. On paused time, so that a seed replays.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::embedded::Embedded;
use tenure::runtime::{Entropy, Runtime};
use tenure::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Expiry, Get, Grant, Granted, Put,
    Renew, Renewed, Update, Updates, View, Watch, Withdraw, Withdrawn, Written,
};
use tenure::testkit::{Call, Faulty, Odds};
use tenure::{CacheState, Change, Client, Error, ErrorKind, LeaseId, Store, Ttl};

#[path = "cache_suite/mod.rs"]
#[allow(dead_code, unused_macros)]
mod suite;

use suite::{Follower, World, Writer, eventually, soon};

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
    /// Of this key watches tell nothing any more.
    forgets: Option<tenure::Key>,
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
            Ok(store) => {
                let mood = self.mood.clone();
                let told = move |update: &Result<Update, Error>| match update {
                    Ok(Update::Event(event)) => {
                        mood.lock().unwrap().forgets.as_ref() != Some(&event.key)
                    }
                    _ => true,
                };
                let updates = store.watch(watch);
                updates
                    .filter(move |it| std::future::ready(told(it)))
                    .boxed()
            }
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
    let world = World::embedded();
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
        .set_many(1_100, |_| "many".to_owned())
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
    let world = World::embedded();
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
    first.set_many(1_100, |_| "many".to_owned()).await;
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

/// etcd#18089: a server can lose a deletion, and never says so.
#[tokio::test(start_paused = true)]
async fn what_a_watch_never_told_is_found_by_a_look_beside_it() {
    let world = World::embedded();
    let store = moody(&world.runtime);
    let writer = Writer(Arc::new(store.stores[0].clone()));
    for name in ["gone", "kept", "stale"] {
        writer.set(name, "1").await;
    }
    let client = world.client(store.clone());
    let cache = suite::started(&client).await;
    let mut follower = Follower::new(&cache);
    let clock = &world.runtime.clock;
    for name in ["gone", "stale"] {
        store.mood.lock().unwrap().forgets = Some(suite::at(name));
        match name {
            "gone" => drop(writer.delete(name).await),
            _ => drop(writer.set(name, "2").await),
        }
        let last = writer.set("kept", name).await;
        follower.follow_to(last).await;
        let gets = store.mood.lock().unwrap().gets;
        clock.sleep(Duration::from_secs(290)).await;
        if name == "gone" {
            assert_eq!(store.mood.lock().unwrap().gets, gets, "too early");
            assert_ne!(suite::values(&cache.snapshot()), writer.all().await);
        }
        clock.sleep(Duration::from_secs(311)).await;
        let asked = store.mood.lock().unwrap().gets - gets;
        assert!(
            (2..=3).contains(&asked),
            "{asked}: a look, the list of a new watcher, perhaps the next look"
        );
        let change = follower.next().await;
        let Change::Resync(diff) = &*change else {
            panic!("{change:?}")
        };
        assert_eq!(
            (diff.changed.len(), &diff.changed[0].key),
            (1, &suite::at(name))
        );
        assert_eq!(follower.values, writer.all().await);
    }
    // What is as it should be costs one read each time, and is not told.
    let gets = store.mood.lock().unwrap().gets;
    clock.sleep(Duration::from_secs(3_000)).await;
    let asked = store.mood.lock().unwrap().gets - gets;
    assert!((4..=10).contains(&asked), "{asked} looks in 50 min");
    let last = writer.set("kept", "end").await;
    follower.follow_to(last).await;
    assert_eq!((follower.updates, follower.resyncs), (3, 2));
}

/// Events come while the store is read, before it and after it.
#[tokio::test(start_paused = true)]
async fn looks_beside_a_busy_watch_find_nothing_wrong() {
    let world = World::embedded();
    let writer = Writer((world.open)());
    let (client, link) = world.client_on_a_link();
    let cache = suite::started(&client).await;
    let (calls, mut follower) = (link.calls(Call::Get), Follower::new(&cache));
    let mut odds = Odds::none();
    (odds.watch_delay, odds.delay, odds.longest) = (0.2, 0.9, Duration::from_millis(300));
    link.set_all_odds(odds);
    let watched = cache.clone();
    let store = writer.0.clone();
    let looks = tokio::spawn(async move {
        while watched.get("end").is_none() {
            // Sometimes that of a change, sometimes that of another key.
            let now = store.get(Get::node(suite::at("x"))).await.unwrap().index;
            soon("it", watched.caught_up_to(now)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let other = tenure::Key::new("/elsewhere").unwrap();
    let dice = Entropy::seeded(7);
    let mut last = None;
    for round in 0..400_u64 {
        let name = format!("k{}", dice.u64() % 8);
        match dice.u64() % 4 {
            0 => drop(writer.0.delete(Delete::new(suite::at(&name))).await),
            1 => {
                let put = Put::new(other.clone(), "x", Expiry::Never);
                writer.0.put(put).await.unwrap();
            }
            // The same value too.
            _ => drop(writer.set(&name, format!("{}", round % 3)).await),
        }
        let pause = Duration::from_millis(dice.u64() % 200);
        world.runtime.clock.sleep(pause).await;
        last = Some(writer.set("last", format!("{round}")).await);
    }
    let end = writer.set("end", "").await;
    assert!(last.is_some());
    follower.follow_to(end).await;
    soon("the looks", looks).await.unwrap();
    assert_eq!(follower.resyncs, 0);
    assert!(follower.updates > 400, "{}", follower.updates);
    assert_eq!(follower.values, writer.all().await);
    assert!(
        link.calls(Call::Get) > calls + 20,
        "{} looks",
        link.calls(Call::Get) - calls
    );
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
    let (watched, direct) = (cache.clone(), store.clone());
    let looks = tokio::spawn(async move {
        while watched.get("end").is_none() {
            let get = Get::node(suite::at("end"));
            let index = direct.get(get).await.unwrap().index;
            watched.caught_up_to(index).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let dice = Entropy::seeded(seed ^ 0x5eed);
    let die = |sides: u64| dice.u64() % sides;
    for _ in 0..400 {
        let name = format!("d{}/k{}", die(4), die(6));
        let key = suite::at(&name);
        let value = match die(20) {
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
    soon("the looks", looks).await.unwrap();
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
    let world = World::embedded();
    let writer = Writer((world.open)());
    writer.set("b", "0").await;
    let (client, link) = world.client_on_a_link();
    let cache = suite::started(&client).await;
    // Breaks and delays in between must not tear it apart.
    link.set_odds(Call::Watch, {
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
