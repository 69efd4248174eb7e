//! What the lock promises, over any store: each check takes a [`World`] of clients that share
//! one store. `tests/lock_embedded.rs` and `tests/lock_etcd2.rs` run all of them.

use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tenure::runtime::Runtime;
use tenure::store::{Delete, Expiry};
use tenure::testkit::{Faulty, cancel_after};
use tenure::{Client, ErrorKind, HoldState, Key, Loss, Store, StoreExt, Ttl};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
}

pub(crate) const TTL: Duration = Duration::from_secs(3);
/// How long after a TTL a server may take to remove what expired (etcd looks every 0.5 s).
pub(crate) const SWEEP: Duration = Duration::from_millis(700);
/// Far more than any step takes on a slow machine; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

impl World {
    pub(crate) fn client(&self) -> Client {
        let ttl = Ttl::new(TTL).unwrap();
        Client::builder((self.open)())
            .runtime(self.runtime.clone())
            .ttl(ttl)
            .build()
    }
}

impl World {
    /// A client whose link to the store can be cut.
    pub(crate) fn client_on_a_link(&self) -> (Client, Faulty<dyn Store>) {
        let link = Faulty::shared((self.open)(), 1);
        let ttl = Ttl::new(TTL).unwrap();
        (
            Client::builder(link.clone())
                .runtime(self.runtime.clone())
                .ttl(ttl)
                .build(),
            link,
        )
    }
}

pub(crate) fn dir(name: &str) -> Key {
    Key::new(format!("/_locks/{name}")).unwrap()
}

/// Waits until a condition holds; fails when it does not within `limit`.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    limit: Duration,
    check: impl Fn() -> F,
) {
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

pub(crate) async fn line_length(client: &Client, name: &str) -> usize {
    client.store().children(&dir(name)).await.unwrap().len()
}

async fn line_empties(client: &Client, name: &str) {
    eventually("the line is empty", LONG, || async {
        line_length(client, name).await == 0
    })
    .await;
}

async fn soon<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(LONG, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

/// Deletes a ticket behind everybody's back.
async fn delete_by_force(client: &Client, key: &Key) {
    client
        .store()
        .delete(Delete::new(key.clone()))
        .await
        .unwrap();
}

pub(crate) async fn one_holder_at_a_time_and_tokens_rise(world: World) {
    let inside = Arc::new(AtomicBool::new(false));
    let last = Arc::new(std::sync::Mutex::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (client, inside, last) = (world.client(), inside.clone(), last.clone());
        tasks.spawn(async move {
            let lock = client.lock("a");
            for _ in 0..15 {
                let guard = lock.acquire().await.unwrap();
                assert!(!inside.swap(true, Ordering::SeqCst), "two holders");
                {
                    let mut last = last.lock().unwrap();
                    assert!(
                        guard.token() > *last,
                        "token {} after {}",
                        guard.token(),
                        *last
                    );
                    *last = guard.token();
                }
                tokio::task::yield_now().await;
                assert!(guard.is_held());
                assert!(inside.swap(false, Ordering::SeqCst));
                guard.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon("all cycles", tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(line_length(&world.client(), "a").await, 0);
}

pub(crate) async fn first_come_first_served_across_clients_and_inside_one(world: World) {
    let holder = world.client();
    let guard = holder.lock("a").acquire().await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    let (one, two) = (world.client(), world.client());
    for turn in 0..8 {
        let client = if turn % 3 == 0 {
            one.clone()
        } else {
            two.clone()
        };
        let order = order.clone();
        tasks.spawn(async move {
            let guard = client.lock("a").acquire().await.unwrap();
            order.lock().unwrap().push(turn);
            guard.release().await.unwrap();
        });
        eventually("the ticket is in line", LONG, || async {
            line_length(&holder, "a").await == turn + 2
        })
        .await;
    }
    guard.release().await.unwrap();
    while let Some(done) = soon("the line", tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
}

pub(crate) async fn try_takes_a_free_lock_and_leaves_nothing_at_a_taken_one(world: World) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").try_acquire().await.unwrap().expect("free");
    assert!(b.lock("a").try_acquire().await.unwrap().is_none());
    assert_eq!(line_length(&a, "a").await, 1);
    guard.release().await.unwrap();
    let guard = soon("the free lock", async {
        loop {
            // A local read may lag behind another client's write for a moment.
            if let Some(guard) = b.lock("a").try_acquire().await.unwrap() {
                break guard;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    guard.release().await.unwrap();
}

pub(crate) async fn a_timeout_is_one_budget_and_takes_its_ticket_back(world: World) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    let limit = Duration::from_millis(500);
    let start = world.runtime.clock.now();
    let error = b.lock("a").acquire().timeout(limit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.key(), Some(&dir("a")));
    let took = world.runtime.clock.now().since(start);
    assert!(took >= limit && took < limit * 3, "{took:?}");
    soon("the janitor", b.idle()).await;
    assert_eq!(line_length(&a, "a").await, 1);
    guard.release().await.unwrap();
}

pub(crate) async fn a_dropped_guard_frees_the_lock(world: World) {
    let (a, b) = (world.client(), world.client());
    drop(a.lock("a").acquire().await.unwrap());
    let guard = soon("the freed lock", b.lock("a").acquire()).await.unwrap();
    guard.release().await.unwrap();
}

pub(crate) async fn a_panic_under_the_lock_frees_it(world: World) {
    let (a, b) = (world.client(), world.client());
    let panicked = tokio::spawn(async move {
        let _guard = a.lock("a").acquire().await.unwrap();
        panic!("on purpose");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    soon("the freed lock", b.lock("a").acquire())
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

pub(crate) async fn a_ticket_deleted_by_force_is_lost_and_its_release_frees_nobody_elses(
    world: World,
) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    let key = guard.key().clone();
    // Longer than a short hold: from now on the key is watched.
    tokio::time::sleep(Duration::from_millis(300)).await;
    delete_by_force(&b, &key).await;
    let loss = tokio::time::timeout(TTL / 3, guard.lost())
        .await
        .expect("seen by the watch");
    assert_eq!(loss, Loss::Deleted);
    assert_eq!(
        (guard.state(), guard.deadline(), guard.is_held()),
        (HoldState::Lost, None, false)
    );
    let successor = soon("the freed lock", b.lock("a").acquire()).await.unwrap();
    assert!(successor.token() > guard.token());
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    soon("the janitor", a.idle()).await;
    assert!(successor.is_held());
    assert_eq!(line_length(&b, "a").await, 1);
    successor.release().await.unwrap();
}

pub(crate) async fn a_waiter_whose_ticket_is_deleted_is_told_while_the_holder_still_holds(
    world: World,
) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = b.lock("a");
        async move { lock.acquire().await }
    });
    eventually("it is in line", LONG, || async {
        line_length(&a, "a").await == 2
    })
    .await;
    // In the order of their names, which is not everywhere that of the line.
    let line = a.store().children(&dir("a")).await.unwrap();
    let ticket = line.iter().find(|node| node.key != *guard.key()).unwrap();
    delete_by_force(&a, &ticket.key).await;
    let outcome = tokio::time::timeout(TTL, waiter)
        .await
        .expect("told within a TTL")
        .unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

pub(crate) async fn one_value_holds_once_and_a_clone_queues(world: World) {
    let client = world.client();
    let lock = client.lock("a");
    let guard = lock.acquire().await.unwrap();
    assert_eq!(
        lock.acquire().await.unwrap_err().kind(),
        ErrorKind::AlreadyHeld
    );
    assert_eq!(
        lock.try_acquire().await.unwrap_err().kind(),
        ErrorKind::AlreadyHeld
    );
    let clone = lock.clone();
    let error = clone
        .acquire()
        .timeout(Duration::from_millis(200))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    guard.release().await.unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
    clone.acquire().await.unwrap().release().await.unwrap();
}

pub(crate) async fn names_never_touch_each_other(world: World) {
    let client = world.client();
    let mut guards = Vec::new();
    for name in ["a", "a/b", "a%2Fb", "ab", ".", "..", "_a", "ü 日?#+&=;:@"] {
        let acquire = client.lock(name).acquire().timeout(LONG);
        guards.push(
            acquire
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}")),
        );
    }
    for guard in guards {
        assert!(guard.is_held());
        guard.release().await.unwrap();
    }
}

pub(crate) async fn bad_names_and_ttls_are_refused_before_anything_is_sent(world: World) {
    let client = world.client();
    let long = "x".repeat(5 * 1024);
    for name in ["", "a\nb", "\u{0}", long.as_str()] {
        let error = client.lock(name).acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{name:?}");
        assert!(client.lock(name).try_acquire().await.is_err());
    }
    let decade = Duration::from_secs(10 * 365 * 86_400);
    for ttl in [Duration::ZERO, Duration::from_millis(1), decade] {
        let error = client.lock("a").ttl(ttl).acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTtl, "{ttl:?}");
    }
    assert_eq!(
        client.session_state(),
        None,
        "a session was started for nothing"
    );
}

pub(crate) async fn a_lock_held_or_waited_for_longer_than_its_ttl_stays(world: World) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = b.lock("a");
        async move { lock.acquire().await.unwrap() }
    });
    let clock = &world.runtime.clock;
    let end = clock.now() + TTL * 2;
    while !clock.has_passed(end) {
        assert!(guard.is_held());
        clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(line_length(&a, "a").await, 2, "the waiter's ticket expired");
    let token = guard.token();
    guard.release().await.unwrap();
    let next = soon("the waiter", waiter).await.unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
}

pub(crate) async fn run_is_cancelled_when_the_lock_is_lost(world: World) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    assert_eq!(guard.run(async { 7 }).await.unwrap(), 7);
    let steps = Arc::new(AtomicUsize::new(0));
    let work = {
        let steps = steps.clone();
        async move {
            loop {
                steps.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let key = guard.key().clone();
    let (outcome, ()) = tokio::join!(soon::<tenure::Result<()>>("run", guard.run(work)), async {
        eventually("it works", LONG, || async {
            steps.load(Ordering::SeqCst) > 20
        })
        .await;
        delete_by_force(&b, &key).await;
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    let done = steps.load(Ordering::SeqCst);
    assert_eq!(
        guard.run(async { 7 }).await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(steps.load(Ordering::SeqCst), done);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

pub(crate) async fn guarded_writes_are_refused_once_the_ticket_is_gone_or_are_unsupported(
    world: World,
) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    let key = Key::new("/data").unwrap();
    if !a.store().about().commits {
        let error = guard.put(&key, "1", Expiry::Never).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(b.store().node(&key).await.unwrap().is_none());
        return guard.release().await.unwrap();
    }
    guard.put(&key, "1", Expiry::Never).await.unwrap();
    assert_eq!(
        b.store().node(&key).await.unwrap().unwrap().text(),
        Some("1")
    );
    delete_by_force(&b, guard.key()).await;
    let error = guard.put(&key, "2", Expiry::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(
        guard.delete(&key).await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(
        b.store().node(&key).await.unwrap().unwrap().text(),
        Some("1")
    );
    assert!(!guard.is_held());
}

pub(crate) async fn a_future_dropped_at_any_poll_leaves_nothing(world: World) {
    let (a, b) = (world.client(), world.client());
    // Uncontended: acquire, then release.
    for polls in 0.. {
        let lock = a.lock("a");
        let cycle = async { lock.acquire().await.unwrap().release().await.unwrap() };
        let done = cancel_after(cycle, polls).await.is_some();
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b, "a").await, 0, "after {polls} polls");
        if done {
            assert!(polls > 1, "the future never waited");
            break;
        }
    }
    // Try.
    for polls in 0.. {
        let lock = a.lock("a");
        let attempt = async { drop(lock.try_acquire().await.unwrap()) };
        let done = cancel_after(attempt, polls).await.is_some();
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b, "a").await, 0, "try, after {polls} polls");
        if done {
            break;
        }
    }
    // Behind a holder, who is still there afterwards.
    let guard = b.lock("a").acquire().await.unwrap();
    for polls in 0..40 {
        let lock = a.lock("a");
        let limited = lock.acquire().timeout(Duration::from_millis(20));
        cancel_after(limited.into_future(), polls).await;
        soon("the janitor", a.idle()).await;
        assert_eq!(
            line_length(&b, "a").await,
            1,
            "waiting, after {polls} polls"
        );
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

pub(crate) async fn a_storm_of_cancelled_acquires_leaves_no_ticket_and_no_task(world: World) {
    let tasks = tokio::runtime::Handle::current().metrics();
    let (a, b) = (world.client(), world.client());
    let guard = b.lock("a").acquire().await.unwrap();
    for round in 0..200_u64 {
        let lock = a.lock("a");
        let _ = lock
            .acquire()
            .timeout(Duration::from_micros(round * 37 % 4_000))
            .await;
    }
    soon("the janitor", a.idle()).await;
    assert_eq!(line_length(&b, "a").await, 1);
    guard.release().await.unwrap();
    for client in [&a, &b] {
        let end = client.shutdown(LONG).await;
        assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
        let error = client.lock("a").acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
    drop((a, b));
    drop(world);
    eventually("all tasks end", LONG, || async {
        tasks.num_alive_tasks() == 0
    })
    .await;
}

pub(crate) async fn a_client_that_vanishes_knows_it_and_is_followed_within_its_ttl(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let guard = a.lock("a").acquire().await.unwrap();
    let token = guard.token();
    link.set_down(true);
    let cut = world.runtime.clock.now();
    let waiter = tokio::spawn({
        let lock = b.lock("a");
        async move { lock.acquire().await.unwrap() }
    });
    eventually("doubt", TTL, || async { guard.state() != HoldState::Held }).await;
    assert_eq!(
        guard.state(),
        HoldState::Suspect,
        "one missed renewal is no loss"
    );
    assert_eq!(soon("the loss", guard.lost()).await, Loss::Expired);
    let lost_after = world.runtime.clock.now().since(cut);
    assert!(lost_after <= TTL, "{lost_after:?}");
    let next = soon("the next holder", waiter).await.unwrap();
    let waited = world.runtime.clock.now().since(cut);
    assert!(waited <= TTL + SWEEP, "{waited:?}");
    assert!(waited >= lost_after, "two holders");
    assert!(next.token() > token);
    link.set_down(false);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    soon("the janitor", a.idle()).await;
    assert!(next.is_held());
    // A lost session is replaced by the next acquire.
    next.release().await.unwrap();
    let again = soon("a new session", a.lock("a").acquire()).await.unwrap();
    assert!(again.token() > token);
    again.release().await.unwrap();
}

pub(crate) async fn an_outage_shorter_than_the_term_loses_nothing(world: World) {
    let (a, link) = world.client_on_a_link();
    let guard = a.lock("a").acquire().await.unwrap();
    link.set_down(true);
    eventually("doubt", TTL, || async {
        guard.state() == HoldState::Suspect
    })
    .await;
    link.set_down(false);
    eventually("trust", TTL, || async { guard.state() == HoldState::Held }).await;
    guard.release().await.unwrap();
}

pub(crate) async fn a_shutdown_releases_what_is_held_and_ends_waiters(world: World) {
    let (a, b) = (world.client(), world.client());
    let guard = a.lock("a").acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = a.lock("a");
        async move { lock.acquire().await }
    });
    eventually("it is in line", LONG, || async {
        line_length(&b, "a").await == 2
    })
    .await;
    a.shutdown(LONG).await;
    assert_eq!(guard.state(), HoldState::Lost);
    let error = soon("the waiter", waiter).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    line_empties(&b, "a").await;
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! lock_suite {
    ($attributes:meta, $world:expr) => {
        $crate::lock_suite!(@each $attributes, $world,
            one_holder_at_a_time_and_tokens_rise,
            first_come_first_served_across_clients_and_inside_one,
            try_takes_a_free_lock_and_leaves_nothing_at_a_taken_one,
            a_timeout_is_one_budget_and_takes_its_ticket_back,
            a_dropped_guard_frees_the_lock,
            a_panic_under_the_lock_frees_it,
            a_ticket_deleted_by_force_is_lost_and_its_release_frees_nobody_elses,
            a_waiter_whose_ticket_is_deleted_is_told_while_the_holder_still_holds,
            one_value_holds_once_and_a_clone_queues,
            names_never_touch_each_other,
            bad_names_and_ttls_are_refused_before_anything_is_sent,
            a_lock_held_or_waited_for_longer_than_its_ttl_stays,
            run_is_cancelled_when_the_lock_is_lost,
            guarded_writes_are_refused_once_the_ticket_is_gone_or_are_unsupported,
            a_future_dropped_at_any_poll_leaves_nothing,
            a_storm_of_cancelled_acquires_leaves_no_ticket_and_no_task,
            a_client_that_vanishes_knows_it_and_is_followed_within_its_ttl,
            an_outage_shorter_than_the_term_loses_nothing,
            a_shutdown_releases_what_is_held_and_ends_waiters,
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
