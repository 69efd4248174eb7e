//! What the lock by hand promises, over any store: each check takes a [`World`] of clients that
//! share one store.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tenure::runtime::Runtime;
use tenure::store::{Delete, Expiry, Layout};
use tenure::testkit::{Faulty, cancel_after};
use tenure::{Client, ErrorKind, HandLock, HoldState, Key, Store, StoreExt};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    /// The same, with the faults below whatever makes leases of single keys.
    pub(crate) linked: Box<dyn Fn() -> (Arc<dyn Store>, Link) + Send + Sync>,
    pub(crate) runtime: Runtime,
}

/// What can go wrong between a client and the store.
pub(crate) type Link = Faulty<dyn Store>;

pub(crate) const SHORT: Duration = Duration::from_secs(3);
const MIDDLE: Duration = Duration::from_secs(5);
const LONGER: Duration = Duration::from_secs(7);
/// How long after a TTL a server may take to remove what expired.
const SWEEP: Duration = Duration::from_millis(700);
/// Far more than any step takes on a slow machine; only a hang reaches it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

impl World {
    pub(crate) fn client(&self) -> Client {
        let builder = Client::builder((self.open)());
        builder.runtime(self.runtime.clone()).build()
    }

    pub(crate) fn client_on_a_link(&self) -> (Client, Link) {
        let (store, link) = (self.linked)();
        let builder = Client::builder(store);
        (builder.runtime(self.runtime.clone()).build(), link)
    }

    fn lock(&self) -> HandLock {
        self.client().get_lock("/customer1", SHORT)
    }
}

fn dir() -> Key {
    Key::new("/_locks/customer1").unwrap()
}

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}

async fn line_length(client: &Client) -> usize {
    client.store().children(&dir()).await.unwrap().len()
}

async fn delete_by_force(client: &Client, lock: &HandLock) {
    let key = lock.guard().unwrap().key().clone();
    client.store().delete(Delete::new(key)).await.unwrap();
}

pub(crate) async fn it_is_taken_renewed_and_given_back(world: World) {
    let mut lock = world.lock();
    assert!(!lock.is_locked().await.unwrap());
    assert_eq!(lock.token(), None);
    lock.acquire().await.unwrap();
    assert!(lock.is_locked().await.unwrap());
    let token = lock.token().unwrap();
    lock.renew(SHORT).await.unwrap();
    lock.renew(LONGER).await.unwrap();
    assert!(lock.is_locked().await.unwrap());
    assert_eq!(lock.token(), Some(token), "a renewal is no new hold");
    assert!(lock.release().await.unwrap());
    assert!(!lock.is_locked().await.unwrap());
    assert!(!lock.release().await.unwrap(), "what is not held");
    assert_eq!(line_length(&world.client()).await, 0);
    lock.acquire().await.unwrap();
    assert!(lock.token().unwrap() > token);
    lock.release().await.unwrap();
}

pub(crate) async fn it_excludes_and_is_excluded_by_the_lock_with_a_guard(world: World) {
    let (a, b) = (world.client(), world.client());
    let mut by_hand = a.get_lock("customer1", SHORT);
    by_hand.acquire().await.unwrap();
    assert!(b.lock("customer1").try_acquire().await.unwrap().is_none());
    let mut other = world.lock();
    assert!(!other.try_acquire().await.unwrap());
    let limit = Duration::from_millis(200);
    let error = other.acquire().timeout(limit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let error = by_hand.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyHeld);
    let error = by_hand.try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyHeld);
    assert!(by_hand.is_locked().await.unwrap(), "the refusals cost it");
    by_hand.release().await.unwrap();
    let guard = soon("the lock", async { b.lock("customer1").acquire().await })
        .await
        .unwrap();
    let error = by_hand.acquire().timeout(limit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    guard.release().await.unwrap();
}

pub(crate) async fn it_is_held_longer_than_its_ttl_without_renewing(world: World) {
    let mut lock = world.lock();
    lock.acquire().await.unwrap();
    world.runtime.clock.sleep(SHORT * 2).await;
    assert!(lock.is_locked().await.unwrap());
    lock.renew(LONGER).await.unwrap();
    world.runtime.clock.sleep(LONGER + SHORT).await;
    assert!(lock.is_locked().await.unwrap());
    lock.release().await.unwrap();
}

pub(crate) async fn one_that_was_lost_knows_it_and_can_be_acquired_again(world: World) {
    let other = world.client();
    let mut lock = world.lock();
    lock.acquire().await.unwrap();
    let token = lock.token().unwrap();
    delete_by_force(&other, &lock).await;
    assert!(!lock.is_locked().await.unwrap(), "freshly asked");
    assert_eq!(lock.token(), None, "and known from then on");
    assert_eq!(lock.guard().unwrap().state(), HoldState::Lost);
    for ttl in [SHORT, LONGER] {
        let error = lock.renew(ttl).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost);
    }
    assert!(!lock.release().await.unwrap());
    lock.acquire().await.unwrap();
    assert!(lock.token().unwrap() > token);
    // Lost, and acquired again without a release.
    delete_by_force(&other, &lock).await;
    assert!(!lock.is_locked().await.unwrap());
    lock.acquire().await.unwrap();
    assert!(lock.is_locked().await.unwrap());
    lock.release().await.unwrap();
}

pub(crate) async fn a_renewal_finds_out_that_it_was_lost(world: World) {
    let other = world.client();
    for ttl in [LONGER, MIDDLE] {
        let mut lock = other.get_lock("/customer1", SHORT);
        lock.acquire().await.unwrap();
        delete_by_force(&other, &lock).await;
        let error = lock.renew(ttl).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        assert_eq!(lock.token(), None);
        assert!(!lock.release().await.unwrap());
    }
    let lock = world.lock();
    let error = lock.renew(SHORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "it never was");
    assert_eq!(line_length(&other).await, 0);
}

pub(crate) async fn it_is_not_locked_behind_a_ticket_that_came_back(world: World) {
    let other = world.client();
    let mut lock = world.lock();
    lock.acquire().await.unwrap();
    // What python-etcd's renewal does to a ticket that has expired.
    let first = dir().join("00000000000000000001").unwrap();
    let value = "0123456789abcdef0123456789abcdef".into();
    other
        .store()
        .set(&first, value, Expiry::Never)
        .await
        .unwrap();
    // Where the place is that of the creation, nobody comes back before another.
    let numbered = other.store().about().layout == Layout::Numbered;
    assert_eq!(lock.is_locked().await.unwrap(), !numbered);
    other.store().remove(&first).await.unwrap();
    assert!(
        lock.is_locked().await.unwrap(),
        "its own ticket is still there"
    );
    lock.release().await.unwrap();
}

/// A ticket of another program: python-etcd's, or on etcd v3 Go's.
async fn stranger(client: &Client, line: &Key) -> Key {
    let value = "0123456789abcdef0123456789abcdef".into();
    let store = client.store();
    if store.about().layout == Layout::Leased {
        let key = line.join("694d5f2b1c3a4e07").unwrap();
        store.create(&key, value, Expiry::Never).await.unwrap();
        return key;
    }
    let appended = store.append_value(line, value, Expiry::Never).await;
    appended.unwrap().node.key
}

pub(crate) async fn a_ticket_of_another_program_before_it_is_waited_for(world: World) {
    let other = world.client();
    for name in ["/customer1", "customer1", "team/customer1"] {
        let line = Key::new(format!("/_locks/{}", name.trim_start_matches('/'))).unwrap();
        let ticket = stranger(&other, &line).await;
        let mut lock = world.client().get_lock(name, SHORT);
        let acquired = AtomicBool::new(false);
        let acquire = async {
            lock.acquire().await.unwrap();
            acquired.store(true, Ordering::SeqCst);
        };
        let python = async {
            eventually("it is in line", || async {
                other.store().children(&line).await.unwrap().len() == 2
            })
            .await;
            let renewed = "0123456789abcdef0123456789abcdef".into();
            let set = other.store().set(&ticket, renewed, Expiry::Never).await;
            set.unwrap();
            world.runtime.clock.sleep(Duration::from_millis(200)).await;
            assert!(
                !acquired.load(Ordering::SeqCst),
                "{name}: over python's head"
            );
            other.store().remove(&ticket).await.unwrap().unwrap();
        };
        soon("both", async { tokio::join!(acquire, python) }).await;
        assert!(lock.is_locked().await.unwrap());
        assert_eq!(lock.guard().unwrap().key().parent(), Some(line.clone()));
        lock.release().await.unwrap();
    }
}

pub(crate) async fn bad_names_and_ttls_are_told_by_the_first_acquire(world: World) {
    let client = world.client();
    for name in ["", "/", "//", "a//b", "a/../b", "a\nb"] {
        let mut lock = client.get_lock(name, SHORT);
        let error = lock.acquire().await.unwrap_err();
        let kinds = [ErrorKind::InvalidName, ErrorKind::InvalidKey];
        assert!(kinds.contains(&error.kind()), "{name:?}: {error}");
        assert!(lock.try_acquire().await.is_err());
    }
    let mut lock = client.get_lock("a", Duration::from_millis(10));
    assert_eq!(
        lock.acquire().await.unwrap_err().kind(),
        ErrorKind::InvalidTtl
    );
    let mut lock = client.get_lock("a", SHORT);
    lock.acquire().await.unwrap();
    let error = lock.renew(Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl);
    assert!(
        lock.is_locked().await.unwrap(),
        "a refused renewal costs nothing"
    );
    lock.release().await.unwrap();
}

pub(crate) async fn a_scope_gives_back_however_it_ends(world: World) {
    let other = world.client();
    let free = || async {
        eventually("the line is empty", || async {
            line_length(&other).await == 0
        })
        .await;
    };
    // It ends.
    let mut lock = world.lock();
    let answer = lock.scoped(async |held| {
        assert!(held.is_locked().await.unwrap());
        held.renew(LONGER).await.unwrap();
        held.token().unwrap()
    });
    let token = answer.await.unwrap();
    assert!(!lock.is_locked().await.unwrap());
    assert_eq!(line_length(&other).await, 0, "released before it returns");
    // It loses the lock.
    let outcome = lock.scoped(async |held| {
        assert!(held.token().unwrap() > token);
        world.runtime.clock.sleep(Duration::from_millis(300)).await;
        delete_by_force(&other, held).await;
        std::future::pending::<()>().await;
    });
    let error = soon("the loss", outcome).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    free().await;
    // It is dropped.
    let forever = lock.scoped(async |_| std::future::pending::<()>().await);
    let dropped = tokio::time::timeout(Duration::from_millis(300), forever).await;
    assert!(dropped.is_err());
    free().await;
    assert!(!lock.is_locked().await.unwrap());
    // It panics, in a task of its own.
    let panicked = tokio::spawn(async move {
        lock.scoped(async |_| panic!("on purpose")).await.unwrap();
    });
    assert!(panicked.await.unwrap_err().is_panic());
    free().await;
}

pub(crate) async fn a_scope_at_a_taken_lock_waits(world: World) {
    let mut holder = world.lock();
    holder.acquire().await.unwrap();
    let mut lock = world.lock();
    let waiting = tokio::spawn(async move { lock.scoped(async |held| held.token()).await });
    let other = world.client();
    eventually("it is in line", || async { line_length(&other).await == 2 }).await;
    let token = holder.token();
    holder.release().await.unwrap();
    let next = soon("the scope", waiting).await.unwrap().unwrap();
    assert!(next > token);
}

/// Cuts the link of a holder and waits for the next one: how long that takes, and how long the
/// holder believed.
async fn crash(world: &World, lock: &HandLock, link: &Link) -> (Duration, Duration) {
    let clock = &world.runtime.clock;
    link.set_down(true);
    let cut = clock.now();
    let guard = lock.guard().unwrap();
    let believed = async {
        guard.lost().await;
        clock.now().since(cut)
    };
    let mut next = world.lock();
    let followed = async {
        next.acquire().await.unwrap();
        clock.now().since(cut)
    };
    let times = soon("the next holder", async {
        tokio::join!(followed, believed)
    })
    .await;
    assert!(times.1 <= times.0, "two holders: {times:?}");
    next.release().await.unwrap();
    times
}

pub(crate) async fn after_a_crash_the_last_ttl_counts(world: World) {
    for (from, to) in [(SHORT, LONGER), (LONGER, SHORT), (MIDDLE, MIDDLE)] {
        let (client, link) = world.client_on_a_link();
        let mut lock = client.get_lock("/customer1", from);
        lock.acquire().await.unwrap();
        lock.renew(to).await.unwrap();
        let left = lock
            .guard()
            .unwrap()
            .deadline()
            .unwrap()
            .since(world.runtime.clock.now());
        assert!(left <= to && left > to / 3, "{from:?} to {to:?}: {left:?}");
        let (followed, believed) = crash(&world, &lock, &link).await;
        assert!(followed <= to + SWEEP, "{from:?} to {to:?}: {followed:?}");
        assert!(
            believed > to / 2,
            "{from:?} to {to:?}: held for {believed:?}"
        );
        assert!(followed > to / 2, "{from:?} to {to:?}: {followed:?}");
        assert_eq!(lock.renew(to).await.unwrap_err().kind(), ErrorKind::Lost);
        link.heal();
        lock.release().await.unwrap();
        soon("the janitor", client.idle()).await;
    }
}

pub(crate) async fn the_new_ttl_is_that_of_the_next_hold_too(world: World) {
    let (client, link) = world.client_on_a_link();
    let mut lock = client.get_lock("/customer1", LONGER);
    lock.acquire().await.unwrap();
    lock.renew(SHORT).await.unwrap();
    lock.release().await.unwrap();
    lock.acquire().await.unwrap();
    let (followed, _) = crash(&world, &lock, &link).await;
    assert!(followed <= SHORT + SWEEP, "{followed:?}");
    link.heal();
    // The session is a new one, after the loss.
    lock.acquire().await.unwrap();
    let (followed, _) = crash(&world, &lock, &link).await;
    assert!(followed <= SHORT + SWEEP, "{followed:?}");
}

pub(crate) async fn a_renewal_dropped_at_any_poll_leaves_it_held(world: World) {
    let (client, link) = world.client_on_a_link();
    let mut lock = client.get_lock("/customer1", MIDDLE);
    lock.acquire().await.unwrap();
    let ttls = [SHORT, MIDDLE, LONGER, LONGER];
    for (polls, ttl) in (0..40).zip(ttls.into_iter().cycle()) {
        cancel_after(lock.renew(ttl), polls % 10).await;
        assert!(lock.is_locked().await.unwrap(), "after {polls} polls");
    }
    // Whatever is still going on does not come in the way of the next.
    soon("a renewal", lock.renew(SHORT)).await.unwrap();
    let (followed, _) = crash(&world, &lock, &link).await;
    assert!(followed <= SHORT + SWEEP, "{followed:?}");
}

pub(crate) async fn a_renewal_that_nobody_answers_says_so_and_loses_nothing(world: World) {
    let (client, link) = world.client_on_a_link();
    let mut lock = client.get_lock("/customer1", LONGER);
    lock.acquire().await.unwrap();
    for ttl in [LONGER, SHORT] {
        link.set_down(true);
        let error = soon("an answer", lock.renew(ttl)).await.unwrap_err();
        assert!(error.kind() != ErrorKind::Lost, "{ttl:?}: {error}");
        assert!(lock.token().is_some());
        link.set_down(false);
        assert!(lock.is_locked().await.unwrap());
    }
    soon("an answer", lock.renew(SHORT)).await.unwrap();
    lock.release().await.unwrap();
}

pub(crate) async fn a_shutdown_ends_it(world: World) {
    let client = world.client();
    let mut lock = client.get_lock("/customer1", LONGER);
    lock.acquire().await.unwrap();
    let end = client.shutdown(LONG).await;
    assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
    assert_eq!(lock.token(), None);
    assert!(!lock.is_locked().await.unwrap());
    assert_eq!(
        lock.renew(LONGER).await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(lock.acquire().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(line_length(&world.client()).await, 0);
}

pub(crate) async fn dropped_it_is_given_back_and_its_task_ends(world: World) {
    let client = world.client();
    let mut lock = client.get_lock("/customer1", LONGER);
    lock.acquire().await.unwrap();
    lock.renew(SHORT).await.unwrap();
    drop(lock);
    let mut next = world.lock();
    soon("the next", async {
        next.acquire().timeout(SHORT / 2).await
    })
    .await
    .unwrap();
    next.release().await.unwrap();
    soon("the janitor", client.idle()).await;
    let end = client.shutdown(LONG).await;
    assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! by_hand_suite {
    ($attributes:meta, $world:expr) => {
        $crate::by_hand_suite!(@each $attributes, $world,
            it_is_taken_renewed_and_given_back,
            it_excludes_and_is_excluded_by_the_lock_with_a_guard,
            it_is_held_longer_than_its_ttl_without_renewing,
            one_that_was_lost_knows_it_and_can_be_acquired_again,
            a_renewal_finds_out_that_it_was_lost,
            it_is_not_locked_behind_a_ticket_that_came_back,
            a_ticket_of_another_program_before_it_is_waited_for,
            bad_names_and_ttls_are_told_by_the_first_acquire,
            a_scope_gives_back_however_it_ends,
            a_scope_at_a_taken_lock_waits,
            after_a_crash_the_last_ttl_counts,
            the_new_ttl_is_that_of_the_next_hold_too,
            a_renewal_dropped_at_any_poll_leaves_it_held,
            a_renewal_that_nobody_answers_says_so_and_loses_nothing,
            a_shutdown_ends_it,
            dropped_it_is_given_back_and_its_task_ends,
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
