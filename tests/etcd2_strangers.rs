//! The etcd v2 driver against servers that lie, hang, break off or are something else.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::fake::{Fake, Say, answer, chunks, node, poll_head, refusal};
use futures_util::StreamExt;
use tenure::etcd2::Etcd2;
use tenure::runtime::Instant;
use tenure::store::{
    Append, Attached, Condition, Delete, Expiry, Freshness, Get, Grant, KeyRenewal, Naming, Node,
    Put, Renew, Update, Watch, Withdraw,
};
use tenure::{ErrorKind, Index, Key, LeaseId, Store, StoreExt, Tag, Ttl};

const TIMEOUT: Duration = Duration::from_millis(600);

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn open(endpoints: &str) -> Etcd2 {
    Etcd2::builder(endpoints).timeout(TIMEOUT).build().unwrap()
}

fn lease() -> LeaseId {
    LeaseId::new(0xabc).unwrap()
}

fn at(millis: u64) -> Instant {
    Instant::new(Duration::from_millis(millis))
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

async fn fixed(say: Say) -> Fake {
    Fake::new(move |_, _| say.clone()).await
}

#[tokio::test]
async fn a_write_that_may_have_been_sent_is_never_sent_again() {
    for say in [
        Say::Close,
        Say::Nothing,
        Say::Raw(answer(500, 0, &refusal(300, 0))),
    ] {
        let fake = fixed(say.clone()).await;
        let other = fixed(Say::Raw(answer(201, 9, &node("set", "/k", "v", 9)))).await;
        let store = open(&format!("{},{}", fake.url(), other.url()));
        let put = Put::new(key("/k"), "v", Expiry::Never);
        let error = store.put(put.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ambiguous, "{say:?}: {error}");
        assert_eq!(error.server(), Some(fake.url().as_str()));
        assert_eq!(
            (fake.requests().len(), other.requests().len()),
            (1, 0),
            "{say:?}"
        );
    }
    let fake = fixed(Say::Close).await;
    let store = open(&fake.url());
    let tag = Tag::new(lease(), 1);
    let append = store
        .append(Append::ticket(key("/l"), tag, Expiry::Never))
        .await;
    assert!(append.unwrap_err().is_ambiguous());
    let delete = Delete::new(key("/k")).when(Condition::Value("v".into()));
    assert!(store.delete(delete).await.unwrap_err().is_ambiguous());
    assert_eq!(
        fake.lines(),
        ["POST /v2/keys/l", "DELETE /v2/keys/k?prevValue=v"]
    );
}

#[tokio::test]
async fn a_write_that_was_not_sent_goes_to_the_next_endpoint() {
    let fake = fixed(Say::Raw(answer(201, 9, &node("set", "/k", "v", 9)))).await;
    let store = open(&format!("{},{}", nobody(), fake.url()));
    for _ in 0..2 {
        store
            .put(Put::new(key("/k"), "v", Expiry::Never))
            .await
            .unwrap();
    }
    assert_eq!(fake.requests().len(), 2);
}

#[tokio::test]
async fn a_server_that_cannot_serve_a_write_is_left_by_the_next_one() {
    let sick = fixed(Say::Raw(answer(503, 0, ""))).await;
    let well = fixed(Say::Raw(answer(201, 9, &node("set", "/k", "v", 9)))).await;
    let store = open(&format!("{},{}", sick.url(), well.url()));
    let put = || Put::new(key("/k"), "v", Expiry::Never);
    let error = store.put(put()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    for _ in 0..2 {
        store.put(put()).await.unwrap();
    }
    assert_eq!((sick.requests().len(), well.requests().len()), (1, 2));
}

#[tokio::test]
async fn a_watch_whose_refusal_stops_half_way_is_given_up_in_time() {
    let stalled = "HTTP/1.1 400 Bad Request\r\nX-Etcd-Index: 9\r\nContent-Length: 99\r\n\r\n{\"err";
    let fake = fixed(Say::Later(stalled.into(), usize::MAX, String::new())).await;
    let store = Etcd2::builder(fake.url())
        .watch_patience(Duration::from_millis(1))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    let first = tokio::time::timeout(Duration::from_secs(20), updates.next()).await;
    let error = first.expect("it hangs").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_read_is_asked_again_elsewhere_and_stays_with_who_answers() {
    let good = Say::Raw(answer(200, 9, &node("get", "/k", "v", 7)));
    let cut = answer(200, 9, &node("get", "/k", "v", 7)).replace("\"createdIndex\":1}}", "");
    for bad in [
        Say::Close,
        Say::Nothing,
        Say::Raw(answer(503, 0, "")),
        Say::Raw(cut),
        Say::Raw(format!("{}6\r\n{{\"acti", poll_head(9))),
        Say::Raw("SSH-2.0-OpenSSH_9.2\r\n".into()),
    ] {
        let (bad, good) = (fixed(bad).await, fixed(good.clone()).await);
        let store = open(&format!("{},{}", bad.url(), good.url()));
        for _ in 0..3 {
            let found = store.node(&key("/k")).await.unwrap().unwrap();
            assert_eq!(found.text(), Some("v"));
        }
        assert_eq!((bad.requests().len(), good.requests().len()), (1, 3));
    }
}

#[tokio::test]
async fn a_read_that_takes_unusually_long_is_asked_elsewhere_too() {
    let good = || Say::Raw(answer(200, 9, &node("get", "/k", "v", 7)));
    let slow = Fake::new(move |number, _| if number < 20 { good() } else { Say::Nothing }).await;
    let other = fixed(good()).await;
    let endpoints = format!("{},{}", slow.url(), other.url());
    // One attempt may take 10 s here: it is not the end of it that helps.
    let store = Etcd2::builder(endpoints)
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap();
    for _ in 0..20 {
        store.node(&key("/k")).await.unwrap().unwrap();
    }
    assert!(other.requests().is_empty());
    let hedged = tokio::time::timeout(Duration::from_millis(900), store.node(&key("/k"))).await;
    assert!(
        hedged
            .expect("long before the attempt ends")
            .unwrap()
            .is_some()
    );
    store.node(&key("/k")).await.unwrap();
    assert_eq!(
        (slow.requests().len(), other.requests().len()),
        (21, 2),
        "it stays there"
    );
}

#[tokio::test]
async fn a_withdrawal_may_be_sent_again_because_the_tag_is_unique() {
    let fake = Fake::new(|number, _| match number {
        0 => Say::Close,
        _ => Say::Raw(answer(404, 12, &refusal(100, 12))),
    })
    .await;
    let tag = Tag::new(lease(), 1);
    let index = Index::new(9).unwrap();
    let ticket = Node::file(
        key("/l/00000000000000000009"),
        tag.to_string(),
        index,
        index,
    );
    let withdraw = Withdraw::new(key("/l"), tag, Naming::Ticket).node(ticket);
    let done = open(&fake.url()).withdraw(withdraw).await.unwrap();
    assert!(done.settled && done.index.get() == 12);
    let line = format!("DELETE /v2/keys/l/00000000000000000009?prevValue={tag}");
    assert_eq!(fake.lines(), [line.clone(), line]);
}

#[tokio::test]
async fn a_stale_server_is_not_believed_by_who_knows_better() {
    let fresh = |index| Say::Raw(answer(200, index, &node("get", "/k", "v", index)));
    let (stale, good) = (fixed(fresh(5)).await, fixed(fresh(9)).await);
    let store = open(&format!("{},{}", stale.url(), good.url()));
    let least = Freshness::AtLeast(Index::new(8).unwrap());
    let view = store.get(Get::node(key("/k")).fresh(least)).await.unwrap();
    assert_eq!(view.index.get(), 9);
    assert_eq!(good.lines(), ["GET /v2/keys/k"]);
    // With nobody better the last word is the quorum's.
    let lagging = Fake::new(move |number, _| fresh(5 + 2 * number as u64)).await;
    let store = open(&lagging.url());
    store.get(Get::node(key("/k")).fresh(least)).await.unwrap();
    assert_eq!(lagging.lines()[2], "GET /v2/keys/k?quorum=true");
}

#[tokio::test]
async fn whoever_is_no_etcd_is_told_from_one() {
    let html = "HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n<html>Welcome!</html>\n";
    let bare = answer(200, 9, &node("get", "/k", "v", 7)).replace("X-Etcd-Index: 9\r\n", "");
    for (say, kind, hint) in [
        (Say::Raw(html.into()), ErrorKind::Protocol, "<html>Welcome!"),
        (
            Say::Raw(answer(200, 9, "{\"action\":")),
            ErrorKind::Protocol,
            "is this an etcd v2",
        ),
        (
            Say::Raw(answer(200, 9, "")),
            ErrorKind::Protocol,
            "an empty body",
        ),
        (Say::Raw(bare), ErrorKind::Protocol, "X-Etcd-Index"),
        (
            Say::Raw(answer(301, 9, "")),
            ErrorKind::Protocol,
            "HTTP 301",
        ),
        (
            Say::Raw("220 mail ESMTP\r\n".into()),
            ErrorKind::Protocol,
            "not HTTP",
        ),
        (
            Say::Raw(answer(404, 0, "404 page not found\n")),
            ErrorKind::Unsupported,
            "--enable-v2",
        ),
        (
            Say::Raw(answer(503, 0, "busy")),
            ErrorKind::Unavailable,
            "HTTP 503",
        ),
        (Say::Raw(poll_head(9)), ErrorKind::Timeout, "cut short"),
        (Say::Nothing, ErrorKind::Timeout, "no answer within"),
    ] {
        let fake = fixed(say.clone()).await;
        let store = open(&fake.url());
        let tried = tokio::time::timeout(Duration::from_secs(5), store.probe());
        let error = tried.await.expect("bounded").unwrap_err();
        assert_eq!(error.kind(), kind, "{say:?}: {error}");
        assert!(error.to_string().contains(hint), "{say:?}: {error}");
    }
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_are_all_named() {
    let (one, two) = (nobody(), nobody());
    let error = open(&format!("{one},{two}")).probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let text = error.to_string();
    for server in [one, two] {
        assert!(text.contains(&format!("{server}: no connection")), "{text}");
    }
    assert!(text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_success_that_cannot_be_read_leaves_a_write_ambiguous() {
    let fake = fixed(Say::Raw(answer(200, 9, "<html>"))).await;
    let put = Put::new(key("/k"), "v", Expiry::Never);
    let error = open(&fake.url()).put(put).await.unwrap_err();
    assert!(
        error.is_ambiguous() && error.detail().contains("<html>"),
        "{error}"
    );
}

#[tokio::test]
async fn credentials_are_sent_with_every_request_and_shown_in_no_error() {
    let fake = fixed(Say::Raw(answer(401, 0, &refusal(110, 0)))).await;
    let url = fake.url().replace("://", "://me:hidden@");
    let error = open(&url).probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error:?} {error}").contains("hidden"), "{error}");
    assert!(fake.requests()[0].contains("authorization: Basic bWU6aGlkZGVu"));
}

/// A lease with one key, `/k` = `own`, last known at index 10, on a scripted server.
async fn leased(script: impl Fn(usize, &str) -> Say + Send + Sync + 'static) -> (Fake, Etcd2) {
    let fake = Fake::new(move |number, request| match number {
        0 => Say::Raw(answer(201, 10, &node("set", "/k", "own", 10))),
        _ => script(number, request),
    })
    .await;
    let store = open(&fake.url());
    store
        .grant(Grant::new(lease(), Ttl::DEFAULT))
        .await
        .unwrap();
    store
        .set(&key("/k"), "own".into(), Expiry::With(lease()))
        .await
        .unwrap();
    (fake, store)
}

async fn renew(store: &Etcd2, label: u64) -> tenure::Result<KeyRenewal> {
    let keys = vec![Attached::new(key("/k"), "own".into())];
    let renewed = store.renew(Renew::new(lease(), at(label), keys)).await?;
    Ok(renewed.keys[0].1)
}

fn live(label: u64) -> KeyRenewal {
    KeyRenewal::Live { since: at(label) }
}

#[tokio::test]
async fn a_renewal_names_the_value_and_the_last_index() {
    let (fake, store) = leased(|number, _| {
        let index = 10 + number as u64;
        Say::Raw(answer(
            200,
            index,
            &node("compareAndSwap", "/k", "own", index),
        ))
    })
    .await;
    assert_eq!(renew(&store, 1).await.unwrap(), live(1));
    assert_eq!(renew(&store, 2).await.unwrap(), live(2));
    let requests = fake.requests();
    for (request, index) in [(1, 10), (2, 11)] {
        let form = format!("refresh=true&ttl=10&prevValue=own&prevIndex={index}");
        assert!(requests[request].ends_with(&form), "{}", requests[request]);
    }
}

#[tokio::test]
async fn a_term_that_an_unanswered_attempt_began_counts_from_the_oldest() {
    // The attempts of labels 1 and 2 get no answer. One of them landed: 101, own value, index 20.
    // The attempt that follows gets no answer either.
    let (_fake, store) = leased(|_, request| {
        if request.starts_with("GET") {
            Say::Raw(answer(200, 20, &node("get", "/k", "own", 20)))
        } else if request.ends_with("prevIndex=10") && request.contains("ttl=10") {
            Say::Raw(answer(412, 20, &refusal(101, 20)))
        } else {
            Say::Nothing
        }
    })
    .await;
    // No attempt has gone unanswered before: nothing shows whose write that was.
    assert_eq!(
        renew(&store, 1).await.unwrap_err().kind(),
        ErrorKind::Timeout
    );

    let (fake, store) = leased(|number, request| {
        if number <= 6 {
            Say::Nothing
        } else if request.starts_with("GET") {
            Say::Raw(answer(200, 20, &node("get", "/k", "own", 20)))
        } else if request.ends_with("prevIndex=10") {
            Say::Raw(answer(412, 20, &refusal(101, 20)))
        } else {
            Say::Nothing
        }
    })
    .await;
    let mut label = 0;
    while fake.requests().len() <= 6 {
        label += 1;
        assert!(renew(&store, label).await.is_err());
    }
    assert_eq!(renew(&store, 100).await.unwrap(), live(1));
}

#[tokio::test]
async fn a_renewal_that_was_dropped_half_way_is_remembered() {
    let (fake, store) = leased(|number, request| match number {
        1 => Say::Nothing,
        _ if request.starts_with("GET") => Say::Raw(answer(200, 20, &node("get", "/k", "own", 20))),
        _ if request.ends_with("prevIndex=10") => Say::Raw(answer(412, 20, &refusal(101, 20))),
        _ => Say::Nothing,
    })
    .await;
    {
        let renewal = std::pin::pin!(renew(&store, 1));
        let sent = async {
            while fake.requests().len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            done = renewal => panic!("{done:?}"),
            () = sent => {}
        }
    }
    assert_eq!(renew(&store, 2).await.unwrap(), live(1));
}

#[tokio::test]
async fn a_renewal_that_finds_an_older_one_landed_makes_the_term_certain_again() {
    let (_fake, store) = leased(|_, request| {
        if request.starts_with("GET") {
            Say::Raw(answer(200, 20, &node("get", "/k", "own", 20)))
        } else if request.ends_with("prevIndex=20") {
            Say::Raw(answer(200, 21, &node("compareAndSwap", "/k", "own", 21)))
        } else {
            Say::Raw(answer(412, 20, &refusal(101, 20)))
        }
    })
    .await;
    assert_eq!(renew(&store, 7).await.unwrap(), live(7));
}

#[tokio::test]
async fn a_poll_that_speaks_while_it_is_replaced_is_heard_first() {
    // 0: the first poll, open at index 10. 1: its successor's history is gone. 2: so one from now
    // on, at index 5000. Only then does the first one speak, of index 4000.
    let fake = Fake::new(|number, _| match number {
        0 => Say::Later(poll_head(10), 3, chunks(&node("set", "/k", "late", 4_000))),
        1 => Say::Raw(answer(400, 5_000, &refusal(401, 5_000))),
        2 => Say::Later(poll_head(5_000), 99, String::new()),
        3 => Say::Raw(format!(
            "{}{}",
            poll_head(5_000),
            chunks(&node("set", "/k", "next", 4_500))
        )),
        _ => Say::Nothing,
    })
    .await;
    let store = Etcd2::builder(fake.url())
        .poll_period(Duration::from_millis(20))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    let mut told = Vec::new();
    while told.len() < 3 {
        match updates.next().await.unwrap().unwrap() {
            Update::Open(index) => told.push(format!("open {index}")),
            Update::Event(event) => told.push(format!("event {}", event.index)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, ["open 10", "event 4000", "event 4500"]);
    let watch = "GET /v2/keys/k?wait=true";
    let expected = [
        watch.to_owned(),
        format!("{watch}&waitIndex=11"),
        watch.to_owned(),
        format!("{watch}&waitIndex=4001"),
    ];
    assert_eq!(fake.lines()[..4], expected);
}

#[tokio::test]
async fn a_poll_that_breaks_off_is_resumed_and_what_came_twice_is_told_once() {
    let event = |index| chunks(&node("set", "/k", "v", index));
    let fake = Fake::new(move |number, _| match number {
        // Ends without an event; is cut short; speaks; says it again; goes on.
        0 => Say::Raw(format!("{}0\r\n\r\n", poll_head(10))),
        1 => Say::Raw(format!("{}40\r\n{{\"action\":\"set\",", poll_head(10))),
        2 | 3 => Say::Raw(poll_head(12) + &event(12)),
        4 => Say::Raw(poll_head(13) + &event(13)),
        _ => Say::Nothing,
    })
    .await;
    let store = open(&fake.url());
    let mut updates = store.watch(Watch::node(key("/k")));
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(match updates.next().await.unwrap().unwrap() {
            Update::Open(index) => format!("open {index}"),
            Update::Event(event) => format!("event {}", event.index),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(told, ["open 10", "event 12", "event 13"]);
    let from: Vec<String> = fake.lines()[1..5]
        .iter()
        .map(|line| line.rsplit('=').next().unwrap().to_owned())
        .collect();
    assert_eq!(from, ["11", "11", "13", "13"]);
}
