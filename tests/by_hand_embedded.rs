//! The lock by hand over the embedded store, on paused time; and its renewals under faults, also
//! over a store that has no more than etcd v2 has.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::Layout;
use tenure::testkit::{Call, Fault, Faulty};
use tenure::{ErrorKind, Store, StoreExt};

#[path = "by_hand_suite/mod.rs"]
#[macro_use]
mod suite;
#[path = "common/v2like.rs"]
mod v2like;

use suite::{LONG, Link, World, soon};
use v2like::V2Like;

fn leased(seed: u64) -> World {
    laid_out(seed, Layout::Numbered)
}

/// As etcd v3 has it.
fn named_by_lease(seed: u64) -> World {
    laid_out(seed, Layout::Leased)
}

fn laid_out(seed: u64, layout: Layout) -> World {
    let runtime = Runtime::on_tokio_time(seed);
    let store = Embedded::builder().runtime(runtime.clone());
    let store = store.layout(layout).build();
    let behind = store.clone();
    World {
        open: Box::new(move || Arc::new(store.clone())),
        linked: Box::new(move || {
            let behind: Arc<dyn Store> = Arc::new(behind.clone());
            let link = Faulty::shared(behind, seed);
            (Arc::new(link.clone()), link)
        }),
        runtime,
    }
}

fn keyed(seed: u64) -> World {
    let runtime = Runtime::on_tokio_time(seed);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    let behind = store.clone();
    World {
        open: Box::new(move || Arc::new(V2Like::new(store.clone()))),
        linked: Box::new(move || {
            let behind: Arc<dyn Store> = Arc::new(behind.clone());
            let link = Faulty::shared(behind, seed);
            (Arc::new(V2Like::new(link.clone())), link)
        }),
        runtime,
    }
}

mod with_leases {
    use super::*;

    async fn world() -> (World, ()) {
        (leased(1), ())
    }

    by_hand_suite!(tokio::test(start_paused = true), world());
}

mod named_by_their_lease {
    use super::*;

    async fn world() -> (World, ()) {
        (named_by_lease(1), ())
    }

    by_hand_suite!(tokio::test(start_paused = true), world());
}

mod key_by_key {
    use super::*;

    async fn world() -> (World, ()) {
        (keyed(1), ())
    }

    by_hand_suite!(tokio::test(start_paused = true), world());
}

const KINDS: [fn(u64) -> World; 3] = [leased, keyed, named_by_lease];
const TTLS: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(20)];

/// Acquires, renews to another TTL with a fault at the `n`-th call of that, and looks at what
/// became of it. Says whether the fault hit.
async fn renewal_with(world: &World, n: u64, fault: Fault, [from, to]: [Duration; 2]) -> bool {
    let what = format!("call {n}, {fault:?}, {from:?} to {to:?}");
    let clock = &world.runtime.clock;
    let (client, link) = world.client_on_a_link();
    link.set_patience(Duration::from_millis(500));
    let mut lock = client.get_lock("/customer1", from);
    lock.acquire().await.unwrap();
    let before = link.all_calls();
    link.nth_of_all(before + n, fault);
    let outcome = soon(&what, lock.renew(to)).await;
    let hit = link.all_calls() >= before + n;
    link.heal();
    let kind = outcome.as_ref().err().map(tenure::Error::kind);
    assert_ne!(kind, Some(ErrorKind::Lost), "{what}");
    assert!(lock.is_locked().await.unwrap(), "{what}: {outcome:?}");
    // Later than any late commit of this, and with renewals in between.
    clock.sleep(from.min(to) * 2).await;
    link.quiesce().await;
    assert!(lock.is_locked().await.unwrap(), "{what}: {outcome:?}");
    let now = if outcome.is_ok() { to } else { from };
    let deadline = lock.guard().unwrap().deadline().unwrap();
    assert!(deadline.since(clock.now()) <= now, "{what}: {outcome:?}");
    assert!(
        deadline.since(clock.now()) >= now / 2,
        "{what}: {outcome:?}"
    );
    // The end, by a crash: nobody believes longer than the store keeps it.
    link.set_down(true);
    let cut = clock.now();
    let guard = lock.guard().unwrap();
    let other = world.client();
    let mut next = other.get_lock("/customer1", from);
    let (believed, followed) = soon(&what, async {
        tokio::join!(
            async {
                guard.lost().await;
                clock.now().since(cut)
            },
            async {
                next.acquire().await.unwrap();
                clock.now().since(cut)
            }
        )
    })
    .await;
    assert!(believed <= followed, "{what}: two holders");
    assert!(followed <= now, "{what}: {followed:?}");
    next.release().await.unwrap();
    link.heal();
    lock.release().await.unwrap();
    soon(&what, client.shutdown(LONG)).await;
    let dir = tenure::Key::new("/_locks/customer1").unwrap();
    assert_eq!(other.store().children(&dir).await.unwrap(), [], "{what}");
    hit
}

async fn whichever_call_is_hit(world: fn(u64) -> World) -> u64 {
    let late = Duration::from_millis(700);
    let faults = [
        Fault::LostRequest,
        Fault::LostReply,
        Fault::LateCommit(Duration::ZERO),
        Fault::LateCommit(late),
        Fault::Delay(late),
        Fault::SlowReply(late),
        Fault::Unavailable,
        Fault::Unreachable,
        Fault::Hang,
    ];
    let mut most = 0;
    for ttls in [TTLS, [TTLS[1], TTLS[0]], [TTLS[0]; 2]] {
        for fault in faults {
            for n in 1..20 {
                if !renewal_with(&world(n), n, fault, ttls).await {
                    break;
                }
                most = most.max(n);
            }
        }
    }
    most
}

#[tokio::test(start_paused = true)]
async fn whichever_call_of_a_renewal_goes_wrong_it_stays_held_with_one_of_the_two() {
    assert!(whichever_call_is_hit(leased).await >= 4);
}

#[tokio::test(start_paused = true)]
async fn whichever_call_goes_wrong_where_each_key_has_a_ttl_of_its_own() {
    assert!(whichever_call_is_hit(keyed).await >= 2);
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(limit, future).await;
    outcome.expect("in time")
}

/// Renews from the longer to the shorter TTL, with an answer to the put that never comes, and
/// returns when the put has landed.
async fn unheard(world: &World) -> (tenure::Client, Link, tenure::HandLock) {
    let (client, link) = world.client_on_a_link();
    let mut lock = client.get_lock("/customer1", TTLS[1]);
    lock.acquire().await.unwrap();
    link.set_patience(Duration::from_secs(3));
    link.next(Call::Put, Fault::LostReply);
    let (key, watch) = (lock.guard().unwrap().key().clone(), world.client());
    let before = watch.store().node(&key).await.unwrap().unwrap();
    let landed = async {
        loop {
            let node = watch.store().node(&key).await.unwrap().unwrap();
            if (node.modified, node.lease) != (before.modified, before.lease) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        outcome = lock.renew(TTLS[0]) => panic!("{outcome:?}"),
        () = landed => {}
    }
    (client, link, lock)
}

#[tokio::test(start_paused = true)]
async fn a_shorter_ttl_that_was_not_heard_of_is_believed_no_longer_than_it_lasts() {
    for world in [leased(1), keyed(1), named_by_lease(1)] {
        let (_client, link, lock) = unheard(&world).await;
        link.set_down(true);
        let (clock, guard) = (&world.runtime.clock, lock.guard().unwrap());
        let other = world.client();
        let mut next = other.get_lock("/customer1", TTLS[0]);
        let (lost, followed) = soon("the next", async {
            tokio::join!(
                async {
                    guard.lost().await;
                    clock.now()
                },
                async {
                    next.acquire().await.unwrap();
                    clock.now()
                }
            )
        })
        .await;
        assert!(
            lost <= followed,
            "two holders for {:?}",
            lost.since(followed)
        );
    }
}

/// It goes on, and moves what it finds to a lease of the other length: which must not be the next
/// hold, nor may that hang on the lease that is left.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_nobody_waits_for_does_not_meet_the_next_hold() {
    const SLOW: Duration = Duration::from_secs(2);
    let mut left = 0;
    for make in KINDS {
        for [from, to] in [TTLS, [TTLS[1], TTLS[0]]] {
            for call in [Call::Grant, Call::Get, Call::Put, Call::Revoke] {
                for fault in [Fault::Delay(SLOW), Fault::SlowReply(SLOW)] {
                    let what = format!("{from:?} to {to:?}, {call:?}, {fault:?}");
                    let world = make(1);
                    let clock = &world.runtime.clock;
                    let (client, link) = world.client_on_a_link();
                    let mut lock = client.get_lock("/customer1", from);
                    lock.acquire().await.unwrap();
                    link.next(call, fault);
                    let renewal = tokio::time::timeout(Duration::from_millis(20), lock.renew(to));
                    left += usize::from(renewal.await.is_err());
                    assert!(soon(&what, lock.release()).await.unwrap(), "{what}");
                    lock.acquire().timeout(LONG).await.unwrap();

                    clock.sleep(SLOW + Duration::from_millis(500)).await;
                    assert!(lock.is_locked().await.unwrap(), "{what}");
                    clock.sleep(to.max(from) * 2).await;
                    assert!(lock.is_locked().await.unwrap(), "{what}");
                    // Nobody believes longer than the store keeps it.
                    link.set_down(true);
                    let guard = lock.guard().unwrap();
                    let other = world.client();
                    let mut next = other.get_lock("/customer1", TTLS[0]);
                    let (lost, followed) = soon(&what, async {
                        let lost = async {
                            guard.lost().await;
                            clock.now()
                        };
                        let followed = async {
                            next.acquire().await.unwrap();
                            clock.now()
                        };
                        tokio::join!(lost, followed)
                    })
                    .await;
                    assert!(lost <= followed, "{what}: two holders");
                }
            }
        }
    }
    assert!(left >= 36, "{left} renewals were left");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_in_the_middle_of_a_change_leaves_nothing() {
    for world in [leased(1), keyed(1), named_by_lease(1)] {
        let (client, link, lock) = unheard(&world).await;
        link.heal();
        // Less than either TTL: it has to be taken back, not to expire.
        client.shutdown(Duration::from_secs(1)).await;
        assert_eq!(lock.token(), None);
        let dir = tenure::Key::new("/_locks/customer1").unwrap();
        let left = world.client().store().children(&dir).await.unwrap();
        assert_eq!(left, [], "left to its TTL");
    }
}

/// Renewals of changing length on a bad link, while others want the lock.
#[tokio::test(start_paused = true)]
async fn in_a_storm_of_renewals_there_is_one_holder_at_a_time() {
    let mut renewed = 0;
    for (seed, make) in (1..=15).flat_map(|seed| KINDS.map(|make| (seed, make))) {
        let world = make(seed);
        let holder = Arc::new(std::sync::Mutex::new((None::<u64>, 0)));
        let mut tasks = tokio::task::JoinSet::new();
        let mut links: Vec<Link> = Vec::new();
        for who in 0..3 {
            let (client, link) = world.client_on_a_link();
            link.set_patience(Duration::from_millis(200));
            links.push(link.clone());
            let (clock, holder) = (world.runtime.clock.clone(), holder.clone());
            tasks.spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed * 10 + who);
                let mut lock = client.get_lock("/customer1", Duration::from_secs(3));
                let mut renewals = 0;
                let odds = tenure::testkit::Odds::network(0.04, Duration::from_millis(300));
                link.set_all_odds(odds);
                for _ in 0..6 {
                    if lock.acquire().timeout(LONG).await.is_err() {
                        continue;
                    }
                    let Some(token) = lock.token() else { continue };
                    for _ in 0..4 {
                        let ttl = Duration::from_secs(random.u64(2..12));
                        renewals += u64::from(lock.renew(ttl).await.is_ok());
                        clock
                            .sleep(Duration::from_millis(random.u64(..2_500)))
                            .await;
                        if lock.token() == Some(token) {
                            let mut held = holder.lock().unwrap();
                            assert!(token >= held.1, "seed {seed}: {token} after {}", held.1);
                            *held = (Some(who), token);
                        }
                    }
                    let _ = lock.release().await;
                }
                link.heal();
                renewals
            });
        }
        renewed += within(Duration::from_secs(3_600), async {
            let mut sum = 0;
            while let Some(done) = tasks.join_next().await {
                sum += done.unwrap();
            }
            sum
        })
        .await;
    }
    assert!(renewed > 300, "only {renewed} renewals");
}

#[tokio::test(start_paused = true)]
async fn however_many_renewals_fail_the_background_renews_between_them() {
    let world = leased(1);
    let (client, link) = world.client_on_a_link();
    let mut lock = client.get_lock("/customer1", TTLS[0]);
    lock.acquire().await.unwrap();
    for _ in 0..40 {
        link.next(Call::Grant, Fault::Hang);
    }
    let renewals = (0..40).map(|_| lock.renew(TTLS[1]));
    let all = futures_util::future::join_all(renewals);
    let outcomes = within(LONG * 20, all).await;
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Timeout);
    }
    assert!(lock.is_locked().await.unwrap());
    assert_eq!(link.calls(Call::Grant), 41);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_ttl_that_a_slow_store_has_used_up_before_anything_moved_costs_no_lock() {
    let (long, short) = (Duration::from_secs(60), Duration::from_secs(2));
    for (world, slow) in KINDS
        .into_iter()
        .flat_map(|it| [(it, Call::Get), (it, Call::Grant)])
    {
        for late in [short * 2 / 3, short + short / 2] {
            let world = world(1);
            let (client, link) = world.client_on_a_link();
            let mut lock = client.get_lock("/customer1", long);
            lock.acquire().await.unwrap();
            link.next(slow, Fault::SlowReply(late));
            let calls = link.calls(slow);
            let renewed = lock.renew(short).await;
            assert_eq!(
                renewed.is_err(),
                link.calls(slow) > calls,
                "{slow:?}, {late:?}"
            );
            let kind = renewed.err().map(|it| it.kind());
            assert!(kind.is_none_or(|it| it == ErrorKind::Timeout), "{kind:?}");
            world.runtime.clock.sleep(long * 2).await;
            assert!(lock.is_locked().await.unwrap(), "{slow:?}, {late:?}");
        }
    }
}
