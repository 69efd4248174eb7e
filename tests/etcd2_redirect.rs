//! The etcd v2 driver and redirects: what it follows, what it tells instead, and whom it shows the
//! password.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::fake::{Fake, Say, answer, chunks, node, poll_head, redirect};
use common::words::{key, tag};
use futures_util::StreamExt;
use tenure::etcd2::{Builder, Etcd2};
use tenure::store::{Append, Condition, Delete, Expiry, Put, Update, Watch};
use tenure::{ErrorKind, Store, StoreExt};

fn options(endpoints: &str) -> Builder {
    Etcd2::builder(endpoints).timeout(Duration::from_secs(9))
}

fn open(endpoints: &str) -> Etcd2 {
    options(endpoints).build().unwrap()
}

fn put() -> Put {
    Put::new(key("/k"), "v", Expiry::Never)
}

fn created() -> Say {
    let body = node("create", "/k/00000000000000000009", "v", 9);
    Say::Raw(answer(201, 9, &body))
}

async fn fixed(say: Say) -> Fake {
    Fake::new(move |_, _| say.clone()).await
}

/// A server that sends everything on to the same path and query on another.
async fn pointing_to(url: String, status: u16) -> Fake {
    Fake::new(move |_, request| {
        let path = request.split(' ').nth(1).unwrap();
        Say::Raw(redirect(status, &format!("{url}{path}")))
    })
    .await
}

/// The method, path and body of a request.
fn sent(request: &str) -> (String, String) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let line = head.lines().next().unwrap();
    (line.replace(" HTTP/1.1", ""), body.to_owned())
}

#[tokio::test]
async fn a_redirect_keeps_the_method_the_query_and_the_body() {
    for status in [301, 302, 307, 308] {
        let there = fixed(created()).await;
        let here = pointing_to(there.url(), status).await;
        let store = open(&here.url());
        store.put(put()).await.unwrap();
        let ticket = Append::ticket(key("/k"), tag(1), Expiry::Never);
        store.append(ticket).await.unwrap();
        let delete = Delete::new(key("/k")).when(Condition::Value("a b".into()));
        store.delete(delete).await.unwrap();
        store.node(&key("/k")).await.unwrap();
        let (asked, followed) = (here.requests(), there.requests());
        assert_eq!(asked.len(), 4, "{status}: each is sent on once");
        let [asked, followed] =
            [asked, followed].map(|it| it.iter().map(|it| sent(it)).collect::<Vec<_>>());
        assert_eq!(asked, followed, "{status}");
        assert_eq!(followed[0], ("PUT /v2/keys/k".into(), "value=v".into()));
        assert_eq!(followed[1].0, "POST /v2/keys/k");
        assert_eq!(followed[1].1, format!("value={}", tag(1)));
        assert_eq!(followed[2].0, "DELETE /v2/keys/k?prevValue=a%20b");
        for request in there.requests().iter().take(2) {
            assert!(request.contains("application/x-www-form-urlencoded"));
        }
    }
}

#[tokio::test]
async fn a_relative_location_is_resolved_against_the_request() {
    let fake = Fake::new(|number, _| match number {
        0 => Say::Raw(redirect(301, "../keys/k?from=here")),
        _ => Say::Raw(answer(200, 9, &node("get", "/k", "v", 7))),
    })
    .await;
    open(&fake.url()).node(&key("/k")).await.unwrap().unwrap();
    assert_eq!(
        fake.lines(),
        ["GET /v2/keys/k?quorum=true", "GET /v2/keys/k?from=here"]
    );
}

#[tokio::test]
async fn five_redirects_are_followed_and_the_sixth_is_an_error_that_says_where_it_points() {
    for (hops, followed) in [(5, true), (6, false)] {
        let fake = Fake::new(move |number, _| {
            if number < hops {
                Say::Raw(redirect(307, &format!("/hop/{number}")))
            } else {
                created()
            }
        })
        .await;
        let outcome = open(&fake.url()).put(put()).await;
        assert_eq!(fake.requests().len(), 6);
        if followed {
            outcome.unwrap();
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
            assert!(error.detail().contains("/hop/5"), "{error}");
            assert!(error.detail().contains("sixth"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_redirect_that_cannot_be_followed_is_told_and_not_tried_elsewhere() {
    let missing = answer(301, 9, "");
    let garbled = redirect(301, "http://[half/");
    let scheme = redirect(302, "https://127.0.0.1:1/v2/keys/k");
    let cycle = redirect(308, "/v2/keys/k");
    for (said, hint) in [
        (missing, "without a readable Location"),
        (garbled, "http://[half/"),
        (scheme, "another scheme"),
        (cycle, "a loop"),
    ] {
        let (here, other) = (fixed(Say::Raw(said)).await, fixed(created()).await);
        let store = open(&format!("{},{}", here.url(), other.url()));
        let error = store.put(put()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.detail().contains(hint), "{error}");
        assert_eq!(error.server(), Some(here.url().as_str()));
        let seen = (here.requests().len(), other.requests().len());
        assert_eq!(seen, (1, 0), "{hint}");
    }
}

#[tokio::test]
async fn with_redirects_forbidden_the_error_names_the_target() {
    let there = fixed(created()).await;
    let here = pointing_to(there.url(), 307).await;
    let store = options(&here.url()).allow_redirect(false).build().unwrap();
    let error = store.put(put()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    let target = format!("{}/v2/keys/k", there.url());
    assert!(error.detail().contains(&target), "{error}");
    assert_eq!((here.requests().len(), there.requests().len()), (1, 0));
}

#[tokio::test]
async fn credentials_follow_a_redirect_only_to_a_server_that_they_were_given_for() {
    let there = fixed(created()).await;
    let here = pointing_to(there.url(), 307).await;
    let stranger = options(&here.url()).user("me", "secret");
    stranger.build().unwrap().put(put()).await.unwrap();
    let known = options(&format!("{},{}", here.url(), there.url())).user("me", "secret");
    known.build().unwrap().put(put()).await.unwrap();
    let shown = |fake: &Fake| -> Vec<bool> {
        let requests = fake.requests();
        let shown = requests.iter().map(|it| it.contains("authorization: "));
        shown.collect()
    };
    assert_eq!(shown(&here), [true, true]);
    assert_eq!(shown(&there), [false, true]);
}

#[tokio::test]
async fn a_write_that_was_redirected_and_then_lost_is_ambiguous_and_sent_once() {
    let there = fixed(Say::Close).await;
    let here = pointing_to(there.url(), 307).await;
    let other = fixed(created()).await;
    let store = open(&format!("{},{}", here.url(), other.url()));
    let error = store.put(put()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert!(error.detail().contains(&there.url()), "{error}");
    let seen = [&here, &there, &other].map(|it| it.requests().len());
    assert_eq!(seen, [1, 1, 0]);
}

#[tokio::test]
async fn a_write_that_was_redirected_to_nobody_goes_to_the_next_endpoint() {
    let nobody = {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (here, other) = (pointing_to(nobody, 307).await, fixed(created()).await);
    let store = open(&format!("{},{}", here.url(), other.url()));
    store.put(put()).await.unwrap();
    assert_eq!((here.requests().len(), other.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_watch_follows_a_redirect_or_says_why_not() {
    let event = chunks(&node("set", "/k", "v", 12));
    let there = fixed(Say::Raw(poll_head(11) + &event)).await;
    let here = pointing_to(there.url(), 307).await;
    let mut updates = open(&here.url()).watch(Watch::node(key("/k")));
    let open_at = updates.next().await.unwrap().unwrap();
    assert!(matches!(open_at, Update::Open(index) if index.get() == 11));
    let event = updates.next().await.unwrap().unwrap();
    assert!(matches!(event, Update::Event(event) if event.index.get() == 12));
    assert_eq!(there.lines()[0], "GET /v2/keys/k?wait=true");

    let strict = options(&here.url()).allow_redirect(false).build().unwrap();
    let error = strict.watch(Watch::node(key("/k"))).next().await;
    let error = error.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.detail().contains(&there.url()), "{error}");
}
