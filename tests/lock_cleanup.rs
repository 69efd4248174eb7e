//! What is given up is taken back: by the janitor, for as long as it takes, and by a shutdown.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::IntoFuture;
use std::time::Duration;

use tenure::ErrorKind;
use tenure::testkit::{Call, Fault, Faulty, Odds, cancel_after};

#[allow(dead_code)] // each test crate uses a part
#[path = "common/scene.rs"]
mod scene;
#[path = "common/v2like.rs"]
mod v2like;

use scene::{LONG, TTL, scene};
use v2like::V2Like;

#[tokio::test(start_paused = true)]
async fn a_ticket_that_cannot_be_taken_back_within_its_ttl_is_not_left_to_a_lease_that_lives_on() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let (a, b) = (
        scene.client(link.clone()),
        scene.client(scene.store.clone()),
    );
    let kept = a.lock("kept").acquire().await.unwrap();
    let dropped = a.lock("a").acquire().await.unwrap();
    let mut odds = Odds::none();
    odds.unavailable = 1.0;
    link.set_odds(Call::Withdraw, odds);
    drop(dropped);
    scene.sleep(TTL * 3).await;
    assert!(kept.is_held(), "the session lives on");
    link.heal();
    let next = b.lock("a").acquire().timeout(TTL).await;
    next.expect("the dropped lock is stuck")
        .release()
        .await
        .unwrap();
    assert!(kept.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_release_is_not_kept_waiting_by_clean_ups_that_wait_for_late_commits() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let a = scene.client(V2Like::new(link.clone()));
    let b = scene.client(scene.v2like());
    let guard = a.lock("a").acquire().await.unwrap();
    for number in 0..40 {
        link.next(Call::Append, Fault::LostRequest);
        let lock = a.lock(format!("other {number}"));
        // Dropped while it waits for the answer.
        let acquire = lock.acquire().timeout(Duration::from_millis(1));
        assert!(acquire.await.is_err());
    }
    drop(guard);
    let limit = Duration::from_millis(500);
    let next = b.lock("a").acquire().timeout(limit).await;
    next.expect("the dropped guard's ticket waits behind the others")
        .release()
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_revokes_even_when_the_janitor_cannot_finish_in_time() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let a = scene.client(V2Like::new(link.clone()));
    let b = scene.client(scene.v2like());
    let guard = a.lock("a").acquire().await.unwrap();
    link.next(Call::Append, Fault::LostRequest);
    let lock = a.lock("b");
    cancel_after(
        lock.acquire()
            .timeout(Duration::from_millis(1))
            .into_future(),
        2,
    )
    .await;
    let limit = Duration::from_millis(500);
    let end = a.shutdown(limit).await;
    assert_eq!(end.left_to_ttl, 1, "an append that may still come");
    assert!(!guard.is_held());
    let next = b
        .lock("a")
        .acquire()
        .timeout(Duration::from_millis(100))
        .await;
    next.expect("it was not revoked").release().await.unwrap();
    let idle = tokio::time::timeout(LONG, a.idle()).await;
    idle.expect("what was left is nobody's business any more");
}

#[tokio::test(start_paused = true)]
async fn waiters_that_a_shutdown_ends_are_not_counted_as_left_behind() {
    let scene = scene();
    let (a, b) = (
        scene.client(scene.store.clone()),
        scene.client(scene.store.clone()),
    );
    let guard = b.lock("a").acquire().await.unwrap();
    let lock = a.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await });
    scene.line_has("a", 2).await;
    let end = a.shutdown(TTL).await;
    assert!(waiting.await.unwrap().is_err());
    assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
    assert_eq!(scene.line("a").await.len(), 1);
    assert_eq!(a.shutdown(TTL).await.left_to_ttl, 0);
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_a_try_is_refused_whether_or_not_the_lock_is_free() {
    let scene = scene();
    let (a, b) = (
        scene.client(scene.store.clone()),
        scene.client(scene.store.clone()),
    );
    let guard = b.lock("a").acquire().await.unwrap();
    a.shutdown(TTL).await;
    let error = a.lock("a").try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_ticket_that_cannot_be_deleted_is_renewed_no_more() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let a = scene.client(V2Like::new(link.clone()));
    let kept = a.lock("kept").acquire().await.unwrap();
    let dropped = a.lock("a").acquire().await.unwrap();
    let mut odds = Odds::none();
    odds.unavailable = 1.0;
    link.set_odds(Call::Delete, odds);
    drop(dropped);
    let b = scene.client(scene.v2like());
    let next = b.lock("a").acquire().timeout(TTL * 3 / 2).await;
    next.expect("it is kept alive").release().await.unwrap();
    assert!(kept.is_held());
}
