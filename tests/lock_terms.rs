//! From when a term counts, and that nothing is done after its end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tenure::runtime::{Clock, Entropy, Instant, Runtime, TimeSource};
use tenure::store::Delete;
use tenure::testkit::{Call, Fault, Faulty, Odds};
use tenure::{Client, ErrorKind, Loss, Store};

#[allow(dead_code)] // each test crate uses a part
#[path = "common/scene.rs"]
mod scene;
#[path = "common/v2like.rs"]
mod v2like;

use scene::{TTL, scene};
use v2like::V2Like;

/// Every call of a kind is refused.
fn refused() -> Odds {
    let mut odds = Odds::none();
    odds.unavailable = 1.0;
    odds
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_came_during_a_late_renewal_is_renewed_before_its_own_deadline() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    let early = client.lock("a").acquire().await.unwrap();
    let mut odds = Odds::none();
    odds.unavailable = 1.0;
    link.set_odds(Call::Renew, odds);
    scene.sleep(TTL - TTL / 5).await;
    link.set_odds(Call::Renew, Odds::none());
    for _ in 0..8 {
        link.next(Call::Renew, Fault::SlowReply(Duration::from_millis(100)));
    }
    // Until a renewal is under way.
    let renewals = link.calls(Call::Renew);
    let under_way = async {
        while link.calls(Call::Renew) == renewals {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let under_way = tokio::time::timeout(TTL, under_way).await;
    under_way.expect("no renewal was tried again in time");
    let late = client.lock("b").acquire().await.unwrap();
    scene.sleep(TTL * 2).await;
    assert!(early.is_held(), "the renewal came in time");
    assert!(late.is_held(), "its lease never ended");
}

#[tokio::test(start_paused = true)]
async fn a_term_counts_from_the_send_of_the_grant_and_of_the_renewal_however_late_the_answers() {
    let late = Duration::from_millis(500);
    let refused = {
        let mut odds = Odds::none();
        odds.unavailable = 1.0;
        odds
    };
    for slow in [Call::Grant, Call::Renew] {
        let scene = scene();
        let link = Faulty::new(scene.store.clone(), 1);
        let client = scene.client(link.clone());
        let start = scene.runtime.clock.now();
        link.next(slow, Fault::SlowReply(late));
        if slow == Call::Grant {
            link.set_odds(Call::Renew, refused);
        }
        let guard = client.lock("a").acquire().await.unwrap();
        let end = match slow {
            Call::Grant => start + TTL,
            _ => {
                // The first renewal has been sent and answered, the second not yet sent.
                scene.sleep(TTL / 3 + late + late / 2).await;
                assert_eq!(link.calls(Call::Renew), 1);
                start + TTL / 3 + TTL
            }
        };
        link.set_odds(Call::Renew, refused);
        assert_eq!(guard.lost().await, Loss::Expired);
        let lost = scene.runtime.clock.now();
        assert!(lost < end, "{slow:?}: the server ended it first");
        assert!(end.since(lost) < late / 2, "{slow:?}: given up too early");
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_is_answered_after_its_term_is_no_lock() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    client
        .lock("b")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    link.next(Call::Append, Fault::SlowReply(TTL * 2));
    let error = client.lock("a").acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

/// A clock that jumps without any timer knowing of it, as after a pause of the process.
#[derive(Clone, Debug)]
struct Jumping {
    steady: Clock,
    ahead: Arc<AtomicU64>,
}

impl TimeSource for Jumping {
    fn now(&self) -> Instant {
        self.steady.now() + Duration::from_secs(self.ahead.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        self.steady.wall() + Duration::from_secs(self.ahead.load(Ordering::SeqCst))
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_longer_than_the_term_run_takes_no_further_step() {
    let scene = scene();
    let time = Jumping {
        steady: scene.runtime.clock.clone(),
        ahead: Arc::default(),
    };
    let runtime = Runtime::new(Clock::from_source(time.clone()), Entropy::seeded(1));
    let client = Client::builder(scene.store.clone())
        .runtime(runtime)
        .build();
    let guard = client.lock("a").acquire().await.unwrap();
    let mut steps = 0;
    let work = async {
        steps += 1;
        tokio::task::yield_now().await;
        time.ahead.store(60, Ordering::SeqCst);
        tokio::task::yield_now().await;
        steps += 1;
    };
    let error = guard.run(work).await.unwrap_err();
    assert_eq!((error.kind(), steps), (ErrorKind::Lost, 1));
}

#[tokio::test(start_paused = true)]
async fn where_each_key_has_a_ttl_a_ticket_counts_from_its_own_send_whatever_was_renewed_meanwhile()
{
    for fault in [Fault::SlowReply(TTL / 8), Fault::LostReply] {
        let scene = scene();
        let below = Faulty::new(scene.store.clone(), 1);
        let link = Faulty::new(V2Like::new(below.clone()), 1);
        let client = scene.client(link.clone());
        let warm = client.lock("b").acquire().await.unwrap();
        warm.release().await.unwrap();
        let renewals = link.calls(Call::Renew);
        // Sent before the next renewal, which has no key to renew, and known after it.
        scene.sleep(TTL / 3 - TTL / 16).await;
        let sent = scene.runtime.clock.now();
        below.next(Call::Append, fault);
        below.set_odds(Call::Put, refused());
        link.next(Call::Renew, Fault::SlowReply(TTL / 8));
        let guard = client.lock("a").acquire().await.unwrap();
        assert!(link.calls(Call::Renew) > renewals);
        assert_eq!(guard.lost().await, Loss::Expired);
        let lost = scene.runtime.clock.now();
        assert!(lost < sent + TTL, "{fault:?}: the server ended it first");
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_finds_the_key_gone_is_a_loss_at_once() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(V2Like::new(link.clone()));
    // Nothing but the renewal can tell.
    link.set_odds(Call::Watch, refused());
    let guard = client.lock("a").acquire().await.unwrap();
    link.set_odds(Call::Get, refused());
    let gone = Delete::new(guard.key().clone());
    scene.store.delete(gone).await.unwrap();
    let loss = tokio::time::timeout(TTL / 2, guard.lost()).await;
    assert_eq!(loss, Ok(Loss::Deleted));
}

#[tokio::test(start_paused = true)]
async fn skew_that_a_renewal_tells_of_ends_the_hold_so_much_sooner() {
    for (skew, held_for) in [(0, 3_965), (1_000, 2_965), (60_000, 1_000)] {
        let scene = scene();
        let store = scene.v2like();
        let link = Faulty::new(store.clone(), 1);
        let client = scene.client(link.clone());
        let guard = client.lock("a").acquire().await.unwrap();
        let start = scene.runtime.clock.now();
        store.set_skew(Duration::from_millis(skew));
        // One renewal is answered, a third of a term after the grant.
        scene.sleep(TTL / 2).await;
        link.set_odds(Call::Renew, refused());
        let lost = guard.lost().await;
        assert_eq!(lost, Loss::Expired);
        let held = scene.runtime.clock.now().since(start);
        let expected = Duration::from_millis(held_for.max(1_500));
        let within = expected - Duration::from_millis(50)..=expected + Duration::from_millis(50);
        assert!(within.contains(&held), "{skew}: {held:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_held_costs_one_look_for_128_each_half_term_and_a_short_hold_none() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    for _ in 0..100 {
        let guard = client.lock("a").acquire().await.unwrap();
        scene.sleep(Duration::from_millis(100)).await;
        guard.release().await.unwrap();
    }
    // Until nobody watches over anything, so that the half terms begin anew.
    scene.sleep(Duration::from_millis(500)).await;
    assert_eq!(link.calls(Call::Commit), 0);
    let mut held = Vec::new();
    for number in 0..129 {
        let lock = client.lock(format!("{number}"));
        held.push(lock.acquire().await.unwrap());
    }
    scene.sleep(TTL * 2 + TTL / 4).await;
    assert_eq!(link.calls(Call::Commit), 8);
    // Who is not answered has lost nothing, and asks again.
    link.set_odds(Call::Commit, refused());
    scene.sleep(TTL).await;
    assert_eq!(link.calls(Call::Commit), 10);
    link.set_odds(Call::Commit, Odds::none());
    let index = scene.store.delete(Delete::new(held[128].key().clone()));
    index.await.unwrap();
    assert_eq!(held[128].lost().await, Loss::Deleted);
    assert!(held[..128].iter().all(|guard| guard.is_held()));
}

#[tokio::test(start_paused = true)]
async fn several_locks_whose_release_comes_after_their_term_were_lost_and_that_is_what_is_said() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    let guard = client.lock_all(["a", "b"]).acquire().await.unwrap();
    link.set_odds(Call::Renew, refused());
    scene.sleep(TTL - TTL / 10).await;
    assert!(guard.is_held());
    // The store has ended them by then, and somebody else may have held them.
    link.next(Call::Commit, Fault::Delay(TTL));
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_ticket_whose_append_took_most_of_a_term_is_renewed_before_its_own_deadline() {
    for leases in [true, false] {
        let scene = scene();
        let link = Faulty::new(scene.store.clone(), 1);
        let client = if leases {
            scene.client(link.clone())
        } else {
            scene.client(V2Like::new(link.clone()))
        };
        // Keeps the session, and is renewed while the append is under way.
        let first = client.lock("a").acquire().await.unwrap();
        scene.sleep(TTL / 12).await;
        link.next(Call::Append, Fault::SlowReply(TTL - TTL / 12));
        let late = client.lock("b").acquire().await.unwrap();
        let nearest = late.deadline().unwrap();
        assert!(
            nearest < first.deadline().unwrap(),
            "it counts from its own send"
        );
        scene.sleep(TTL * 3).await;
        assert!(first.is_held(), "with leases {leases}");
        assert!(late.is_held(), "with leases {leases}: nothing has failed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_took_most_of_its_term_to_come_is_asked_for_again() {
    // With the longest the first term is over before it begins.
    for late in [TTL / 3, TTL * 3 / 4, TTL * 2] {
        let scene = scene();
        let link = Faulty::new(scene.store.clone(), 1);
        let client = scene.client(link.clone());
        link.next(Call::Grant, Fault::SlowReply(late));
        // What is left is all there is for a while.
        link.set_odds(Call::Renew, refused());
        let guard = client.lock("a").acquire().await.unwrap();
        let left = guard.deadline().unwrap().since(scene.runtime.clock.now());
        assert!(left > TTL / 2, "{late:?}: {left:?} of {TTL:?}");
        assert_eq!(link.calls(Call::Grant), if late < TTL / 2 { 1 } else { 2 });
    }
}
