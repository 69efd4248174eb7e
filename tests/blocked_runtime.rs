//! A runtime that is blocked for longer than a term, on a real etcd: without a thread of their
//! own for renewals its locks are lost, and know it; with one they are held.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tenure::runtime::Runtime;
use tenure::{Client, ErrorKind, HoldState};

mod common;

use common::etcd::Etcd;

const TTL: Duration = Duration::from_secs(2);

async fn after_blocking(runtime: Runtime) -> (Client, tenure::LockGuard, Etcd) {
    let server = Etcd::start();
    let url = format!("etcd2://127.0.0.1:{}", server.client_port());
    let client = Client::connect_with(url, runtime).await.unwrap();
    let guard = client.lock("a").ttl(TTL).acquire().await.unwrap();
    // This is what is tested: nothing on this runtime runs.
    std::thread::sleep(TTL * 2);
    (client, guard, server)
}

#[tokio::test]
async fn a_lock_on_a_blocked_runtime_is_lost_and_knows_it_at_once() {
    let (_client, guard, _server) = after_blocking(Runtime::default()).await;
    assert_eq!((guard.state(), guard.is_held()), (HoldState::Lost, false));
    let error = guard
        .run(async { panic!("acts without the lock") })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn renewals_on_a_thread_of_their_own_keep_it() {
    let runtime = Runtime::default().with_own_thread().unwrap();
    let (client, guard, _server) = after_blocking(runtime).await;
    assert_eq!((guard.state(), guard.is_held()), (HoldState::Held, true));
    assert!(client.lock("a").try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    let end = client.shutdown(TTL).await;
    assert_eq!((end.left_to_ttl, end.tasks_left), (0, 0));
}

#[test]
fn a_lock_outlives_the_runtime_that_acquired_it_if_its_client_was_made_elsewhere() {
    let new = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
    };
    let (home, passing) = (new().unwrap(), new().unwrap());
    let client = home.block_on(Client::connect("embedded:")).unwrap();
    let ttl = Duration::from_secs(1);
    let lock = client.lock("a").ttl(ttl);
    let guard = passing.block_on(async { lock.acquire().await }).unwrap();
    drop(passing);
    home.block_on(async {
        let clock = tenure::runtime::Clock::boot();
        let end = clock.now() + ttl * 2;
        while !clock.has_passed(end) {
            assert!(
                guard.is_held(),
                "its renewals ended with a runtime that only passed by"
            );
            clock.sleep(ttl / 20).await;
        }
        guard.release().await.unwrap();
    });
}
