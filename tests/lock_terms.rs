//! From when a term counts, and that nothing is done after its end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tenure::runtime::{Clock, Entropy, Instant, Runtime, TimeSource};
use tenure::store::Delete;
use tenure::testkit::{Call, Fault, Faulty, Odds};
use tenure::{Client, ErrorKind, Loss, Store, Ttl};

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
async fn a_ticket_that_came_during_a_renewal_is_held_for_as_long_as_what_was_renewed() {
    // The first put says whose session it is.
    for (renews, nth) in [(Call::Renew, 1), (Call::Put, 2)] {
        let scene = scene();
        let link = Faulty::new(scene.store.clone(), 1);
        let client = match renews {
            Call::Renew => scene.client(link.clone()),
            _ => scene.client(V2Like::new(link.clone())),
        };
        let early = client.lock("a").acquire().await.unwrap();
        link.nth(renews, nth, Fault::SlowReply(Duration::from_millis(100)));
        let under_way = async {
            while link.calls(renews) < nth {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let under_way = tokio::time::timeout(TTL, under_way).await;
        under_way.expect("no renewal was sent in time");
        let late = client.lock("b").acquire().await.unwrap();
        let sent = scene.runtime.clock.now();
        link.set_odds(renews, refused());
        assert_eq!(late.lost().await, Loss::Expired);
        let held = scene.runtime.clock.now().since(sent);
        assert!(held < TTL, "{renews:?}: the server ended it first");
        assert!(held > TTL - TTL / 20, "{renews:?}: {held:?} of its {TTL:?}");
        assert!(!early.is_held());
    }
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
async fn one_key_whose_renewals_nobody_answers_costs_the_others_nothing() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(V2Like::new(link.clone()));
    // Longer than any attempt has.
    link.set_patience(TTL);
    let lucky = client.lock("a").acquire().await.unwrap();
    let unlucky = client.lock("b").acquire().await.unwrap();
    // The first put says whose session it is. Then come three in each attempt: at first in the order
    // of keys, and then what ends first comes first.
    for nth in [3].into_iter().chain((5..300).step_by(3)) {
        link.nth(Call::Put, nth, Fault::LostRequest);
    }
    let lost = tokio::time::timeout(TTL * 2, unlucky.lost()).await;
    assert_eq!(lost, Ok(Loss::Expired));
    assert!(lucky.is_held());
    let left = lucky.deadline().unwrap().since(scene.runtime.clock.now());
    assert!(left > TTL / 2, "{left:?}");
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
    assert_eq!(link.calls(Call::Commit), 12);
    link.set_odds(Call::Commit, Odds::none());
    let index = scene.store.delete(Delete::new(held[128].key().clone()));
    index.await.unwrap();
    assert_eq!(held[128].lost().await, Loss::Deleted);
    assert!(held[..128].iter().all(|guard| guard.is_held()));
}

#[tokio::test(start_paused = true)]
async fn what_is_held_for_another_time_by_now_is_looked_at_each_half_of_that() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    let (long, short) = (Duration::from_secs(600), Duration::from_secs(4));
    let mut lock = client.get_lock("/a", long);
    lock.acquire().await.unwrap();
    let looks = async |call, length| {
        let before = link.calls(call);
        scene.sleep(length).await;
        link.calls(call) - before
    };
    let minute = Duration::from_secs(60);
    assert_eq!(looks(Call::Commit, minute).await, 0);
    for _ in 0..2 {
        lock.renew(short).await.unwrap();
        let number = looks(Call::Commit, minute).await;
        assert!((29..=31).contains(&number), "{number} in a minute");
        lock.renew(long).await.unwrap();
        let number = looks(Call::Commit, minute * 2).await;
        assert!(number <= 1, "{number} in two minutes");
    }
    // Nobody waits until it is done: what may be in force counts.
    let renewed = tokio::time::timeout(Duration::ZERO, lock.renew(short)).await;
    assert!(renewed.is_err());
    assert!(looks(Call::Commit, minute).await >= 29);
    lock.release().await.unwrap();

    // While somebody of the same client waits the line's task looks.
    lock.acquire().await.unwrap();
    lock.renew(long).await.unwrap();
    let other = client.lock("a").ttl(long);
    let waiting = tokio::spawn(other.acquire().into_future());
    scene.line_has("a", 2).await;
    scene.sleep(minute).await;
    assert_eq!(looks(Call::Get, minute).await, 0);
    lock.renew(short).await.unwrap();
    assert!(looks(Call::Get, minute).await >= 29);
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_failed_often_long_ago_is_opened_again_at_once_and_one_that_fails_is_not() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    // Nothing else looks in between.
    let long = Ttl::new(Duration::from_secs(3_600)).unwrap();
    let client = Client::builder(link.clone()).runtime(scene.runtime.clone());
    let client = client.ttl(long).build();
    let guard = client.lock("a").acquire().await.unwrap();
    for _ in 0..12 {
        scene.sleep(Duration::from_secs(10)).await;
        link.break_watches();
    }
    let gone = Delete::new(guard.key().clone());
    scene.store.delete(gone).await.unwrap();
    let loss = tokio::time::timeout(Duration::from_millis(100), guard.lost()).await;
    assert_eq!(loss, Ok(Loss::Deleted));

    let guard = client.lock("b").acquire().await.unwrap();
    scene.sleep(Duration::from_secs(1)).await;
    let watches = link.calls(Call::Watch);
    link.set_odds(Call::Watch, refused());
    link.break_watches();
    scene.sleep(Duration::from_secs(120)).await;
    let opened = link.calls(Call::Watch) - watches;
    assert!((20..=60).contains(&opened), "{opened} in 120 s");
    assert!(guard.is_held());
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
