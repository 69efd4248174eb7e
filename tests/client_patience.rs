//! How long the keys client waits for one answer, and what it says when it waits no longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::fake::{Fake, Say, answer, node, plain, refusal};
use tenure::ErrorKind;
use tenure::etcd2::Client;
use tenure::etcd2::client::Lifetime;

/// A server that takes this long for each answer.
async fn slow(pause: Duration) -> Fake {
    let told = answer(200, 9, &node("get", "/k", "v", 7));
    Fake::new(move |_, _| Say::After(pause, told.clone())).await
}

#[tokio::test]
async fn a_write_with_a_longer_timeout_waits_longer_for_its_answer() {
    let fake = slow(Duration::from_millis(1_200)).await;
    let client = Client::builder(fake.url())
        .timeout(Duration::from_millis(300))
        .build_client()
        .unwrap();
    let write = client.write("/k").value("v").lifetime(Lifetime::Permanent);
    let error = write.clone().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    write.timeout(Duration::from_secs(20)).await.unwrap();
    assert_eq!(fake.requests().len(), 2, "each was sent once");
}

#[tokio::test]
async fn a_read_that_takes_longer_than_an_attempt_succeeds_when_it_has_the_time() {
    let fake = slow(Duration::from_millis(1_500)).await;
    let client = Client::new(fake.url()).unwrap();
    let read = client.read("/k").timeout(Duration::from_secs(20));
    assert_eq!(read.await.unwrap().node.value.as_deref(), Some("v"));
}

#[tokio::test]
async fn an_error_names_the_time_that_was_really_waited() {
    let fake = Fake::new(|_, _| Say::Nothing).await;
    let client = Client::new(fake.url()).unwrap();
    let read = client.read("/k").timeout(Duration::from_millis(300));
    let error = read.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let detail = error.detail();
    assert!(detail.starts_with("no answer within 3"), "{error}");
    assert!(detail.contains("ms (http://127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_refused_watch_explains_itself_as_other_calls_do() {
    let fake = Fake::new(|_, request| {
        if request.contains("wait=true") {
            Say::Raw(answer(401, 0, &refusal(110, 0)))
        } else {
            Say::Raw(answer(200, 9, &node("get", "/k", "v", 7)))
        }
    })
    .await;
    let guest = Client::new(fake.url()).unwrap();
    let error = guest.watch("/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.detail().contains("no user was given"), "{error}");
    let user = Client::builder(fake.url()).user("me", "secret");
    let user = user.build_client().unwrap();
    let error = user.watch("/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.detail().contains("does not say which"), "{error}");
    user.read("/k").await.unwrap();
    let mut changes = user.eternal_watch("/k").changes();
    let error = changes.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert_eq!(error.key().map(tenure::Key::as_str), Some("/k"));
    assert_eq!(error.server(), Some(fake.url().as_str()));
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_told_at_once() {
    let value = "x".repeat(65 << 20);
    let told = answer(200, 9, &node("get", "/k", &value, 7));
    let fake = Fake::new(move |_, _| Say::Raw(told.clone())).await;
    let client = Client::builder(fake.url())
        .timeout(Duration::from_secs(60))
        .build_client()
        .unwrap();
    let error = client.read("/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.detail().contains("64 MiB"), "{error}");
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_write_that_others_always_overtake_is_tried_with_pauses_until_its_time_is_up() {
    let fake = Fake::new(|_, request| {
        if request.starts_with("PUT") {
            Say::Raw(answer(412, 9, &refusal(101, 9)))
        } else {
            Say::Raw(answer(200, 9, &node("get", "/k", "v", 7)))
        }
    })
    .await;
    let client = Client::new(fake.url()).unwrap();
    let write = client.set("/k", "w").timeout(Duration::from_millis(500));
    let error = write.await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let asked = fake.requests().len();
    assert!((4..60).contains(&asked), "{asked} requests");
}

#[tokio::test]
async fn a_page_that_is_no_list_of_machines_is_told_as_such() {
    let fake = Fake::new(|_, _| Say::Raw(plain(200, "", "<html>Welcome, friend</html>"))).await;
    let error = Client::new(fake.url())
        .unwrap()
        .machines()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}
