//! What the semaphore promises, over any store: each check takes a [`World`] of clients that share
//! one store. `tests/semaphore_embedded.rs` and `tests/semaphore_etcd2.rs` run all of them.

use std::future::{Future, IntoFuture};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure::runtime::Runtime;
use tenure::store::{Append, Delete, Expiry, Layout, Put};
use tenure::testkit::{Faulty, cancel_after};
use tenure::{Client, ErrorKind, HoldState, Key, Loss, Permit, Store, StoreExt, Ttl};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
}

pub(crate) const TTL: Duration = Duration::from_secs(3);
/// How long after a TTL a server may take to remove what expired (etcd looks every 0.5 s).
const SWEEP: Duration = Duration::from_millis(700);
/// Far more than any step takes on a slow machine; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

impl World {
    pub(crate) fn client(&self) -> Client {
        self.over((self.open)())
    }

    /// A client whose link to the store can be cut.
    fn client_on_a_link(&self) -> (Client, Faulty<dyn Store>) {
        let link = Faulty::shared((self.open)(), 1);
        (self.over(link.clone()), link)
    }

    fn over(&self, store: impl Store) -> Client {
        Client::builder(store)
            .runtime(self.runtime.clone())
            .ttl(Ttl::new(TTL).unwrap())
            .build()
    }
}

fn key(rest: &str) -> Key {
    Key::new(format!("/_semaphores/{rest}")).unwrap()
}

/// Waits until a condition holds; fails when it does not within `limit`.
async fn eventually<F: Future<Output = bool>>(what: &str, limit: Duration, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(limit, wait).await.is_ok(),
        "{what}: not within {limit:?}"
    );
}

async fn soon<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(LONG, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

async fn line_length(client: &Client) -> usize {
    client.store().children(&key("a/line")).await.unwrap().len()
}

async fn line_has(client: &Client, length: usize) {
    eventually("the line is so long", LONG, || async {
        line_length(client).await == length
    })
    .await;
}

/// Deletes a key behind everybody's back.
async fn delete_by_force(client: &Client, key: &Key) {
    let delete = Delete::new(key.clone());
    client.store().delete(delete).await.unwrap();
}

type Waiter = tokio::task::JoinHandle<tenure::Result<Permit>>;

/// Queues in the background, and returns once its ticket is the `place`-th in line.
async fn waiter(client: &Client, weight: u32, place: usize) -> Waiter {
    let acquire = client.semaphore("a").acquire().weight(weight);
    let waiter = tokio::spawn(acquire.into_future());
    line_has(client, place).await;
    waiter
}

/// That somebody still waits can only be told by giving them some time.
async fn still_waits(waiter: &Waiter) {
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!waiter.is_finished(), "admitted, and should wait");
}

async fn outcome(what: &str, waiter: Waiter) -> tenure::Result<Permit> {
    soon(what, waiter).await.unwrap()
}

pub(crate) async fn permits_are_held_up_to_the_limit_and_tokens_rise(world: World) {
    let clients: Vec<_> = (0..3).map(|_| world.client()).collect();
    let inside = Arc::new(Mutex::new((0, 0)));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (client, inside) = (clients[number % 3].clone(), inside.clone());
        tasks.spawn(async move {
            let semaphore = client.semaphore("a").permits(2);
            let mut last = 0;
            for _ in 0..10 {
                let permit = semaphore.acquire().await.unwrap();
                assert!(permit.token() > last, "tokens of one client rise");
                last = permit.token();
                {
                    let (now, most) = &mut *inside.lock().unwrap();
                    *now += 1;
                    *most = (*most).max(*now);
                    assert!(*now <= 2, "{now} hold 2 permits");
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(permit.is_held());
                inside.lock().unwrap().0 -= 1;
                permit.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon("all cycles", tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(inside.lock().unwrap().1, 2, "never two at once");
    assert_eq!(line_length(&clients[0]).await, 0);
}

pub(crate) async fn one_value_holds_many_and_a_permit_says_what_it_is(world: World) {
    let client = world.client();
    let semaphore = client.semaphore("a").permits(4);
    let one = semaphore.acquire().await.unwrap();
    let two = semaphore.try_acquire_many(2).await.unwrap().expect("room");
    let three = semaphore.try_acquire().await.unwrap().expect("room");
    assert_eq!((one.weight(), two.weight(), three.weight()), (1, 2, 1));
    assert_eq!((one.limit(), two.limit(), three.limit()), (4, 4, 4));
    assert!(one.token() < two.token() && two.token() < three.token());
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    let node = client.store().node(two.key()).await.unwrap().unwrap();
    let said = node.text().unwrap().rsplit(' ').next();
    assert_eq!(said, Some("{\"weight\":2}"), "{node:?}");
    let limit = client.store().node(&key("a/permits")).await.unwrap();
    assert_eq!(limit.unwrap().text(), Some("4"));
    for permit in [one, two, three] {
        permit.release().await.unwrap();
    }
    assert_eq!(line_length(&client).await, 0);
}

pub(crate) async fn a_heavy_head_is_not_overtaken_by_light_ones(world: World) {
    let (a, b) = (world.client(), world.client());
    let semaphore = a.semaphore("a").permits(3);
    let one = semaphore.acquire().await.unwrap();
    let two = semaphore.acquire().weight(2).await.unwrap();
    let heavy = waiter(&b, 3, 3).await;
    one.release().await.unwrap();
    let light = waiter(&a, 1, 3).await;
    assert!(b.semaphore("a").try_acquire().await.unwrap().is_none());
    still_waits(&heavy).await;
    still_waits(&light).await;
    two.release().await.unwrap();
    let heavy = outcome("the heavy one", heavy).await.unwrap();
    still_waits(&light).await;
    let token = heavy.token();
    heavy.release().await.unwrap();
    let light = outcome("the light one", light).await.unwrap();
    assert!(light.token() > token);
    light.release().await.unwrap();
}

pub(crate) async fn two_that_want_all_permits_take_turns(world: World) {
    let (a, b) = (world.client(), world.client());
    let mut tasks = tokio::task::JoinSet::new();
    for client in [&a, &b] {
        let semaphore = client.semaphore("a").permits(3);
        tasks.spawn(async move {
            for _ in 0..10 {
                let permit = semaphore.acquire().weight(3).await.unwrap();
                tokio::task::yield_now().await;
                permit.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon("both", tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(line_length(&a).await, 0);
}

pub(crate) async fn what_makes_no_sense_is_refused_before_anything_is_written(world: World) {
    let client = world.client();
    let kind = |outcome: tenure::Result<Permit>| outcome.unwrap_err().kind();
    let none = client.semaphore("a").acquire().await;
    assert_eq!(kind(none), ErrorKind::NotFound);
    let zero = client.semaphore("a").permits(0);
    assert_eq!(kind(zero.acquire().await), ErrorKind::InvalidOptions);
    assert_eq!(
        zero.resize(3).await.unwrap_err().kind(),
        ErrorKind::InvalidOptions
    );
    let semaphore = client.semaphore("a").permits(2);
    let weightless = semaphore.acquire().weight(0).await;
    assert_eq!(kind(weightless), ErrorKind::InvalidOptions);
    assert!(semaphore.try_acquire_many(0).await.is_err());
    let short = semaphore.clone().ttl(Duration::ZERO).acquire().await;
    assert_eq!(kind(short), ErrorKind::InvalidTtl);
    assert_eq!(
        kind(client.semaphore("").permits(1).acquire().await),
        ErrorKind::InvalidName
    );
    assert_eq!(
        semaphore.limit().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        client.semaphore("a").resize(2).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(client.store().tree(&key("a")).await.unwrap().is_empty());
    // The limit is made, but no ticket.
    let error = semaphore.acquire().weight(3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooHeavy, "{error}");
    assert!(
        error.detail().contains('3') && error.detail().contains('2'),
        "{error}"
    );
    let error = semaphore.try_acquire_many(3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooHeavy);
    assert!(client.store().node(&key("a/line")).await.unwrap().is_none());
    assert_eq!(
        client.session_state(),
        None,
        "a session was started for nothing"
    );
}

pub(crate) async fn another_limit_is_told_by_both_numbers_before_anything_is_queued(world: World) {
    let (a, b) = (world.client(), world.client());
    let permit = a.semaphore("a").permits(2).acquire().await.unwrap();
    let other = b.semaphore("a").permits(7);
    for _ in 0..2 {
        let error = other.acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitMismatch);
        assert!(
            error.detail().contains('2') && error.detail().contains('7'),
            "{error}"
        );
    }
    assert_eq!(
        other.try_acquire().await.unwrap_err().kind(),
        ErrorKind::LimitMismatch
    );
    assert_eq!(line_length(&a).await, 1);
    // Without a number whatever is stored counts.
    let second = b.semaphore("a").acquire().await.unwrap();
    assert_eq!(second.limit(), 2);
    // What was right once is not asked again: a resize later is no mismatch.
    let semaphore = b.semaphore("a").permits(2);
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    assert_eq!(a.semaphore("a").resize(3).await.unwrap(), 2);
    let third = soon("the third", semaphore.acquire()).await.unwrap();
    assert_eq!(third.limit(), 3);
    for permit in [permit, second, third] {
        permit.release().await.unwrap();
    }
}

pub(crate) async fn growing_wakes_waiters_and_shrinking_revokes_nobody(world: World) {
    let (a, b) = (world.client(), world.client());
    let semaphore = a.semaphore("a").permits(1);
    let first = semaphore.acquire().await.unwrap();
    let (second, third) = (waiter(&b, 1, 2).await, waiter(&a, 1, 3).await);
    still_waits(&second).await;
    assert_eq!(semaphore.resize(3).await.unwrap(), 1);
    let start = world.runtime.clock.now();
    let second = outcome("the second", second).await.unwrap();
    let third = outcome("the third", third).await.unwrap();
    let woken = world.runtime.clock.now().since(start);
    assert!(woken < TTL / 3, "by a look now and then only: {woken:?}");
    assert_eq!((first.limit(), second.limit(), third.limit()), (1, 3, 3));
    // Three are held, and shall be one.
    assert_eq!(semaphore.resize(1).await.unwrap(), 3);
    assert_eq!(semaphore.limit().await.unwrap(), 1);
    let fourth = waiter(&b, 1, 4).await;
    still_waits(&fourth).await;
    first.release().await.unwrap();
    second.release().await.unwrap();
    still_waits(&fourth).await;
    assert!(third.is_held());
    third.release().await.unwrap();
    let fourth = outcome("the fourth", fourth).await.unwrap();
    assert_eq!(fourth.limit(), 1);
    fourth.release().await.unwrap();
}

pub(crate) async fn a_waiter_that_has_become_too_heavy_is_told_and_leaves_the_line(world: World) {
    let (a, b) = (world.client(), world.client());
    let semaphore = a.semaphore("a").permits(3);
    let one = semaphore.acquire().await.unwrap();
    let heavy = waiter(&b, 3, 2).await;
    let light = waiter(&b, 1, 3).await;
    still_waits(&light).await;
    assert_eq!(semaphore.resize(2).await.unwrap(), 3);
    let error = outcome("the heavy one", heavy).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooHeavy, "{error}");
    let light = outcome("the light one", light).await.unwrap();
    assert_eq!(light.limit(), 2);
    light.release().await.unwrap();
    // One that this value remembers as light enough, and that is not.
    let late = b.semaphore("a");
    let free = soon("the free permit", late.acquire()).await.unwrap();
    free.release().await.unwrap();
    assert_eq!(semaphore.resize(1).await.unwrap(), 2);
    let error = soon("the answer", late.acquire().weight(2))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooHeavy, "{error}");
    soon("the janitor", b.idle()).await;
    assert_eq!(line_length(&a).await, 1);
    drop(one);
}

pub(crate) async fn a_limit_deleted_by_hand_is_told_to_waiters(world: World) {
    let (a, b) = (world.client(), world.client());
    let permit = a.semaphore("a").permits(1).acquire().await.unwrap();
    let waiting = waiter(&b, 1, 2).await;
    delete_by_force(&a, &key("a/permits")).await;
    let error = outcome("the waiter", waiting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(error.key(), Some(&key("a/permits")));
    assert!(error.detail().contains("permits(n)"), "{error}");
    // Nonsense in its place is no limit either.
    let store = a.store();
    store
        .set(&key("a/permits"), "many".into(), Expiry::Never)
        .await
        .unwrap();
    let error = b.semaphore("a").acquire().await.unwrap_err();
    assert!(error.detail().contains("many"), "{error}");
    assert!(permit.is_held());
    permit.release().await.unwrap();
    line_has(&a, 0).await;
}

pub(crate) async fn a_strangers_ticket_counts_one(world: World) {
    let client = world.client();
    let semaphore = client.semaphore("a").permits(2);
    semaphore.acquire().await.unwrap().release().await.unwrap();
    let expiry = Expiry::After(Ttl::new(TTL * 9).unwrap());
    let stranger = match client.store().about().layout {
        // As Go's programs name theirs.
        Layout::Leased => {
            let put = Put::new(key("a/line/7fa"), "who am I", expiry);
            client.store().put(put).await.unwrap().node.key
        }
        _ => {
            let append = Append::raw(key("a/line"), "who am I", expiry);
            client.store().append(append).await.unwrap().node.key
        }
    };
    assert!(semaphore.try_acquire_many(2).await.unwrap().is_none());
    let one = semaphore
        .try_acquire()
        .await
        .unwrap()
        .expect("room for one");
    let waiting = waiter(&client, 1, 3).await;
    still_waits(&waiting).await;
    let contenders = semaphore.contenders().await.unwrap();
    let of_stranger = &contenders[0];
    assert_eq!((of_stranger.weight(), of_stranger.session()), (1, None));
    delete_by_force(&client, &stranger).await;
    let permit = outcome("the waiter", waiting).await.unwrap();
    drop((one, permit));
}

pub(crate) async fn contenders_and_holders_are_listed_in_order(world: World) {
    let (a, b) = (world.client(), world.client());
    let semaphore = a.semaphore("a").permits(3);
    assert_eq!(
        semaphore.contenders().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let permit = semaphore.acquire().weight(2).await.unwrap();
    let (heavy, light) = (waiter(&b, 2, 2).await, waiter(&b, 1, 3).await);
    let all = semaphore.contenders().await.unwrap();
    let seen: Vec<_> = all.iter().map(|it| (it.weight(), it.holds())).collect();
    assert_eq!(seen, [(2, true), (2, false), (1, false)]);
    assert_eq!(
        (all[0].key(), all[0].token()),
        (permit.key(), permit.token())
    );
    assert!(all[0].token() < all[1].token() && all[1].token() < all[2].token());
    assert!(all[0].session() != all[1].session() && all[1].session() == all[2].session());
    assert!(
        all.iter()
            .all(|it| it.session().is_some() && it.since().is_some())
    );
    assert_eq!(&all[1].body()[..], b"{\"weight\":2}");
    assert_eq!(semaphore.holders().await.unwrap(), all[..1]);
    permit.release().await.unwrap();
    let heavy = outcome("the heavy one", heavy).await.unwrap();
    let light = outcome("the light one", light).await.unwrap();
    assert_eq!(semaphore.holders().await.unwrap().len(), 2);
    drop((heavy, light));
}

pub(crate) async fn a_timeout_is_one_budget_over_ten_handoffs(world: World) {
    let (a, b) = (world.client(), world.client());
    let first = a.semaphore("a").permits(1).acquire().await.unwrap();
    let mut before = Vec::new();
    for place in 2..=12 {
        before.push(waiter(&a, 1, place).await);
    }
    let (limit, start) = (Duration::from_millis(1_500), world.runtime.clock.now());
    let late = b.semaphore("a").acquire().timeout(limit);
    let late = tokio::spawn(late.into_future());
    line_has(&a, 13).await;
    let mut held = first;
    for waiting in before {
        held.release().await.unwrap();
        held = outcome("the next", waiting).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!late.is_finished(), "it saw fewer than all handoffs");
    let error = outcome("the late one", late).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.key(), Some(&key("a")));
    let took = world.runtime.clock.now().since(start);
    assert!(took >= limit && took < limit + limit / 2, "{took:?}");
    soon("the janitor", b.idle()).await;
    assert_eq!(line_length(&a).await, 1);
    held.release().await.unwrap();
}

pub(crate) async fn a_dropped_permit_and_a_panic_under_one_give_it_back(world: World) {
    let (a, b) = (world.client(), world.client());
    drop(a.semaphore("a").permits(1).acquire().await.unwrap());
    let semaphore = b.semaphore("a");
    let permit = soon("the dropped permit", semaphore.acquire())
        .await
        .unwrap();
    let panicked = tokio::spawn(async move {
        let _permit = permit;
        panic!("on purpose");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    let permit = soon("after the panic", semaphore.acquire()).await.unwrap();
    permit.release().await.unwrap();
}

pub(crate) async fn a_ticket_deleted_by_force_is_lost_and_its_release_frees_nobody_elses(
    world: World,
) {
    let (a, b) = (world.client(), world.client());
    let permit = a.semaphore("a").permits(1).acquire().await.unwrap();
    // Longer than a short hold: from now on the line is followed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    delete_by_force(&b, permit.key()).await;
    let loss = tokio::time::timeout(TTL / 3, permit.lost()).await;
    assert_eq!(loss.expect("seen by the watch"), Loss::Deleted);
    assert_eq!((permit.state(), permit.is_held()), (HoldState::Lost, false));
    let next = soon("the free permit", b.semaphore("a").acquire())
        .await
        .unwrap();
    assert!(next.token() > permit.token());
    assert_eq!(permit.release().await.unwrap_err().kind(), ErrorKind::Lost);
    soon("the janitor", a.idle()).await;
    assert!(next.is_held());
    assert_eq!(line_length(&b).await, 1);
    next.release().await.unwrap();
}

pub(crate) async fn a_waiter_whose_ticket_is_deleted_is_told_while_others_hold(world: World) {
    let (a, b) = (world.client(), world.client());
    let permit = a.semaphore("a").permits(1).acquire().await.unwrap();
    let waiting = waiter(&b, 1, 2).await;
    let mut tickets = a.store().children(&key("a/line")).await.unwrap();
    tickets.retain(|ticket| ticket.key != *permit.key());
    delete_by_force(&a, &tickets[0].key).await;
    let told = tokio::time::timeout(TTL, waiting)
        .await
        .expect("told within a TTL");
    assert_eq!(told.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    assert!(permit.is_held());
    permit.release().await.unwrap();
}

pub(crate) async fn permits_held_or_waited_for_longer_than_the_ttl_stay(world: World) {
    let (a, b) = (world.client(), world.client());
    let permit = a.semaphore("a").permits(1).acquire().await.unwrap();
    let waiting = waiter(&b, 1, 2).await;
    let clock = &world.runtime.clock;
    let end = clock.now() + TTL * 2;
    while !clock.has_passed(end) {
        assert!(permit.is_held());
        clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(line_length(&a).await, 2, "the waiter's ticket expired");
    permit.release().await.unwrap();
    let next = outcome("the waiter", waiting).await.unwrap();
    next.release().await.unwrap();
}

pub(crate) async fn a_client_that_vanishes_knows_it_and_its_permits_are_free_within_its_ttl(
    world: World,
) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let semaphore = a.semaphore("a").permits(3);
    let lost = [
        semaphore.acquire().await.unwrap(),
        semaphore.acquire().await.unwrap(),
    ];
    let waiting_there = waiter(&a, 2, 3).await;
    link.set_down(true);
    let cut = world.runtime.clock.now();
    let waiting = waiter(&b, 3, 4).await;
    for permit in &lost {
        assert_eq!(soon("the loss", permit.lost()).await, Loss::Expired);
    }
    let known = world.runtime.clock.now().since(cut);
    assert!(known <= TTL, "{known:?}");
    let error = outcome("the waiter that vanished", waiting_there)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let told = world.runtime.clock.now().since(cut);
    assert!(
        told <= TTL + SWEEP,
        "a waiter whose session died was told after {told:?}"
    );
    let next = outcome("the waiter", waiting).await.unwrap();
    let waited = world.runtime.clock.now().since(cut);
    assert!(waited >= known, "admitted while others believed to hold");
    assert!(waited <= TTL + SWEEP * 2, "{waited:?}");
    link.set_down(false);
    soon("the janitor", a.idle()).await;
    assert!(next.is_held());
    next.release().await.unwrap();
    let again = soon("a new session", semaphore.acquire().weight(3))
        .await
        .unwrap();
    again.release().await.unwrap();
}

pub(crate) async fn names_never_touch_each_other_nor_a_lock(world: World) {
    let client = world.client();
    let lock = client.lock("a").acquire().await.unwrap();
    let mut permits = Vec::new();
    for name in [
        "a",
        "a/b",
        "a%2Fb",
        "ab",
        ".",
        "..",
        "_a",
        "ü 日?#+&=;:@",
        "line",
        "permits",
    ] {
        let acquire = client.semaphore(name).permits(1).acquire().timeout(LONG);
        permits.push(
            acquire
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}")),
        );
    }
    for permit in permits {
        assert!(permit.is_held());
        permit.release().await.unwrap();
    }
    lock.release().await.unwrap();
}

pub(crate) async fn a_future_dropped_at_any_poll_leaves_nothing(world: World) {
    let (a, b) = (world.client(), world.client());
    // Free: acquire, then release.
    for polls in 0.. {
        let semaphore = a.semaphore("a").permits(2);
        let cycle = async { semaphore.acquire().await.unwrap().release().await.unwrap() };
        let done = cancel_after(cycle, polls).await.is_some();
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b).await, 0, "after {polls} polls");
        if done {
            assert!(polls > 1, "the future never waited");
            break;
        }
    }
    // Try.
    for polls in 0.. {
        let semaphore = a.semaphore("a");
        let attempt = async { drop(semaphore.try_acquire_many(2).await.unwrap()) };
        let done = cancel_after(attempt, polls).await.is_some();
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b).await, 0, "try, after {polls} polls");
        if done {
            break;
        }
    }
    // Behind a holder, who is still there afterwards.
    let permit = b.semaphore("a").acquire().await.unwrap();
    for polls in 0..30 {
        let limited = a.semaphore("a").acquire().weight(2);
        let limited = limited.timeout(Duration::from_millis(20));
        cancel_after(limited.into_future(), polls).await;
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b).await, 1, "waiting, after {polls} polls");
    }
    assert!(permit.is_held());
    permit.release().await.unwrap();
    // A resize: done, or not.
    let semaphore = a.semaphore("a");
    for polls in 0.. {
        let before = semaphore.limit().await.unwrap();
        let done = cancel_after(semaphore.resize(before + 1), polls)
            .await
            .is_some();
        let after = semaphore.limit().await.unwrap();
        assert!(after == before + 1 || after == before && !done);
        if done {
            break;
        }
    }
}

pub(crate) async fn a_storm_of_cancelled_acquires_leaves_no_ticket_and_no_task(world: World) {
    let tasks = tokio::runtime::Handle::current().metrics();
    let (a, b) = (world.client(), world.client());
    let permit = b.semaphore("a").permits(1).acquire().await.unwrap();
    for round in 0..200_u64 {
        let limit = Duration::from_micros(round * 37 % 4_000);
        let _ = a.semaphore("a").acquire().timeout(limit).await;
    }
    soon("the janitor", a.idle()).await;
    assert_eq!(line_length(&b).await, 1);
    permit.release().await.unwrap();
    for client in [&a, &b] {
        let end = client.shutdown(LONG).await;
        assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
        let error = client.semaphore("a").acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
    drop((a, b));
    drop(world);
    eventually("all tasks end", LONG, || async {
        tasks.num_alive_tasks() == 0
    })
    .await;
}

pub(crate) async fn a_shutdown_gives_back_what_is_held_and_ends_waiters(world: World) {
    let (a, b) = (world.client(), world.client());
    let permit = a.semaphore("a").permits(1).acquire().await.unwrap();
    let waiting = waiter(&a, 1, 2).await;
    a.shutdown(LONG).await;
    assert_eq!(permit.state(), HoldState::Lost);
    let error = outcome("the waiter", waiting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    line_has(&b, 0).await;
}

pub(crate) async fn resizes_at_the_same_time_come_one_after_the_other(world: World) {
    let semaphore = world.client().semaphore("a").permits(1);
    semaphore.acquire().await.unwrap().release().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 2..=9 {
        let semaphore = world.client().semaphore("a");
        tasks.spawn(async move { (semaphore.resize(number).await.unwrap(), number) });
    }
    let mut steps = Vec::new();
    while let Some(step) = soon("all", tasks.join_next()).await {
        steps.push(step.unwrap());
    }
    // Each has one before it: they make a chain from the first limit to the last.
    let (mut at, mut length) = (1, 0);
    while let Some((_, next)) = steps.iter().find(|(old, _)| *old == at) {
        (at, length) = (*next, length + 1);
    }
    assert_eq!(length, 8, "{steps:?}");
    assert_eq!(semaphore.limit().await.unwrap(), at);
    assert_eq!(semaphore.resize(at).await.unwrap(), at);
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! semaphore_suite {
    ($attributes:meta, $world:expr) => {
        $crate::semaphore_suite!(@each $attributes, $world,
            permits_are_held_up_to_the_limit_and_tokens_rise,
            one_value_holds_many_and_a_permit_says_what_it_is,
            a_heavy_head_is_not_overtaken_by_light_ones,
            two_that_want_all_permits_take_turns,
            what_makes_no_sense_is_refused_before_anything_is_written,
            another_limit_is_told_by_both_numbers_before_anything_is_queued,
            growing_wakes_waiters_and_shrinking_revokes_nobody,
            a_waiter_that_has_become_too_heavy_is_told_and_leaves_the_line,
            a_limit_deleted_by_hand_is_told_to_waiters,
            a_strangers_ticket_counts_one,
            contenders_and_holders_are_listed_in_order,
            a_timeout_is_one_budget_over_ten_handoffs,
            a_dropped_permit_and_a_panic_under_one_give_it_back,
            a_ticket_deleted_by_force_is_lost_and_its_release_frees_nobody_elses,
            a_waiter_whose_ticket_is_deleted_is_told_while_others_hold,
            permits_held_or_waited_for_longer_than_the_ttl_stay,
            a_client_that_vanishes_knows_it_and_its_permits_are_free_within_its_ttl,
            names_never_touch_each_other_nor_a_lock,
            a_future_dropped_at_any_poll_leaves_nothing,
            a_storm_of_cancelled_acquires_leaves_no_ticket_and_no_task,
            a_shutdown_gives_back_what_is_held_and_ends_waiters,
            resizes_at_the_same_time_come_one_after_the_other,
        );
    };
    (@each $attributes:meta, $world:expr, $($check:ident,)*) => {
        $(
            #[$attributes]
            async fn $check() {
                let (world, _server) = $world.await;
                suite::$check(world).await;
            }
        )*
    };
}
