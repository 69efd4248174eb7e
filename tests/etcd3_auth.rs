//! Users, passwords and tokens, and TLS, of the etcd v3 driver.
#![cfg(all(feature = "etcd3", any(feature = "tls-ring", feature = "tls-aws-lc")))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::words::{key, value, write};
use futures_util::{FutureExt, StreamExt};
use tenure::etcd3::Etcd3;
use tenure::store::{Expiry, Get, Put, Update, Updates, Watch};
use tenure::transport::Tls;
use tenure::{Client, ErrorKind, Store, StoreExt, StoreUrl};
use tls::{Authority, Directory};

/// With users: `root`, and `team` who may use `/team/` only. Tokens live for a second.
fn guarded() -> Etcd {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        args: vec!["--auth-token-ttl".into(), "1".into()],
        ..Options::default()
    });
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/add", r#"{"name":"team","password":"pass"}"#),
        ("role/add", r#"{"name":"team"}"#),
        (
            "role/grant",
            r#"{"name":"team","perm":{"permType":"READWRITE","key":"L3RlYW0v","range_end":"L3RlYW0w"}}"#,
        ),
        ("user/grant", r#"{"user":"team","role":"team"}"#),
        ("enable", "{}"),
    ] {
        let (status, answer) = etcd
            .json("POST", &format!("/v3/auth/{path}"), body)
            .unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
    }
    etcd
}

async fn next(updates: &mut Updates) -> tenure::Result<Update> {
    let next = tokio::time::timeout(Duration::from_secs(30), updates.next()).await;
    next.expect("an update in time").unwrap()
}

#[tokio::test]
async fn a_user_is_asked_for_known_and_kept_in_bounds() {
    let etcd = guarded();
    let root = Etcd3::builder(etcd.url())
        .user("root", "secret")
        .build()
        .unwrap();
    write(&root, "/k", "v").await;
    let kind = async |user: Option<(&str, &str)>, at: &str| {
        let mut builder = Etcd3::builder(etcd.url());
        if let Some((user, password)) = user {
            builder = builder.user(user, password);
        }
        let outcome = builder
            .build()
            .unwrap()
            .set(&key(at), "x".into(), Expiry::Never)
            .await;
        outcome.map_err(|error| (error.kind(), error.to_string()))
    };
    let (nobody, text) = kind(None, "/k").await.unwrap_err();
    assert_eq!(nobody, ErrorKind::Unauthorized, "{text}");
    let (wrong, text) = kind(Some(("root", "wrong-secret")), "/k")
        .await
        .unwrap_err();
    assert_eq!(wrong, ErrorKind::Unauthorized, "{text}");
    assert!(!text.contains("wrong-secret"), "{text}");
    let (outside, text) = kind(Some(("team", "pass")), "/k").await.unwrap_err();
    assert_eq!(outside, ErrorKind::Forbidden, "{text}");
    kind(Some(("team", "pass")), "/team/k").await.unwrap();
    let team = Etcd3::builder(etcd.url())
        .user("team", "pass")
        .build()
        .unwrap();
    team.probe().await.unwrap();
    let mut updates = team.watch(Watch::node(key("/k")));
    let error = next(&mut updates).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    let stranger = Etcd3::builder(etcd.url())
        .user("team", "wrong")
        .build()
        .unwrap();
    let mut updates = stranger.watch(Watch::node(key("/team/k")));
    let error = next(&mut updates).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
}

#[tokio::test]
async fn a_request_that_is_begun_and_left_does_not_keep_others_from_their_token() {
    let etcd = guarded();
    let builder = Etcd3::builder(etcd.url()).user("root", "secret");
    let store = builder.build().unwrap();
    let put = |text: &str| store.put(Put::new(key(text), "v", Expiry::Never));
    // Somebody's branch of a `select!`, say, that is not polled again for a long time.
    let mut left = put("/left");
    assert!((&mut left).now_or_never().is_none());
    put("/other").await.unwrap();
    left.await.unwrap();
}

#[tokio::test]
async fn a_lock_works_for_a_user_of_a_prefix_and_outlives_tokens() {
    let etcd = guarded();
    let url = etcd.url().replace("http://", "etcd://team:pass@") + "/team";
    let client = Client::connect(&url).await.unwrap();
    let guard = client.lock("a").acquire().await.unwrap();
    let mut updates = client.store().watch(Watch::node(key("/k")));
    assert!(matches!(next(&mut updates).await, Ok(Update::Open(_))));
    // Another user makes the server look for tokens that are too old.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(guard.is_held());
    write(client.store(), "/k", "v").await;
    assert!(matches!(next(&mut updates).await, Ok(Update::Event(_))));
    assert_eq!(value(client.store(), "/k").await.as_deref(), Some("v"));
    let mut late = client.store().watch(Watch::tree(key("/late")));
    assert!(matches!(next(&mut late).await, Ok(Update::Open(_))));
    let waiter = client.lock("a");
    let timeout = waiter.acquire().timeout(Duration::from_millis(300)).await;
    assert_eq!(timeout.unwrap_err().kind(), ErrorKind::Timeout);
    guard.release().await.unwrap();
    client.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_prefix_is_all_that_a_role_needs() {
    let etcd = guarded();
    let url = etcd.url().replace("http://", "etcd://team:pass@") + "/team";
    let holder = Client::connect(&url).await.unwrap();
    let other = Client::connect(&url).await.unwrap();
    let guard = holder.lock("a").acquire().await.unwrap();
    // A ticket that is given up leaves a mark; who waits says who it is.
    let waiting = other.lock("a");
    let late = waiting.acquire().timeout(Duration::from_millis(400)).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    other.idle().await;
    let said = async {
        while holder.sessions().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(20), said).await;
    said.expect("sessions are announced");
    other.lock("a").request_release("please").await.unwrap();
    guard.release().await.unwrap();
    let leadership = holder.election("e").campaign("me").await.unwrap();
    assert!(other.election("e").leader().await.unwrap().is_some());
    leadership.resign().await.unwrap();
    let permits = holder.semaphore("s").permits(2);
    permits.acquire().await.unwrap().release().await.unwrap();
    let queue = other.queue("q");
    queue.push("job").id("one").await.unwrap();
    let mut consumer = holder.queue("q").consumer(1);
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    consumer.close().await;
    let cache = holder.cache("/config").start().unwrap();
    cache.synced().await.unwrap();
    holder
        .lock_all(["x", "y"])
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    holder.shutdown(Duration::from_secs(5)).await;
    other.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_user_where_there_are_none_is_said_in_words() {
    let etcd = Etcd::start();
    let store = Etcd3::builder(etcd.url())
        .user("root", "secret")
        .build()
        .unwrap();
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
    assert!(error.to_string().contains("not enabled"), "{error}");
}

#[tokio::test]
async fn tls_is_believed_and_shown_as_told() {
    let (ours, another) = (Authority::new(), Authority::new());
    let files = Directory::new();
    let etcd = tls::etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    let (ca, me) = (files.write("ca.pem", &ours.pem), ours.vouch("me"));
    let me = files.write("me.pem", &me.combined());
    let host = etcd.tls_host();
    let url = format!("etcds://{host}/p?ca={}&cert={}", ca.display(), me.display());
    let client = Client::connect(&url).await.unwrap();
    client
        .lock("a")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();

    let refused = async |tls: Tls| {
        let store = Etcd3::builder(format!("https://{host}")).tls(tls);
        let store = store.timeout(Duration::from_secs(2)).build().unwrap();
        let error = store.get(Get::node(key("/k"))).await.unwrap_err();
        (error.kind(), error.to_string())
    };
    let (kind, text) = refused(Tls::new().ca_pem(another.pem.clone())).await;
    assert_eq!(kind, ErrorKind::Untrusted, "{text}");
    let (kind, text) = refused(Tls::new().ca_pem(ours.pem.clone())).await;
    assert_eq!(kind, ErrorKind::Untrusted, "{text}");
    assert!(text.contains("client certificate"), "{text}");
    let stranger = another.vouch("me").combined();
    let tls = Tls::new().ca_pem(ours.pem.clone()).identity_pem(stranger);
    let (kind, text) = refused(tls).await;
    assert_eq!(kind, ErrorKind::Untrusted, "{text}");
}

#[tokio::test]
async fn a_client_certificate_is_the_user_whose_name_it_bears() {
    let ours = Authority::new();
    let files = Directory::new();
    let etcd = tls::etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        (
            "user/add",
            r#"{"name":"team","options":{"no_password":true}}"#,
        ),
        ("role/add", r#"{"name":"team"}"#),
        (
            "role/grant",
            r#"{"name":"team","perm":{"permType":"READWRITE","key":"L3RlYW0v","range_end":"L3RlYW0w"}}"#,
        ),
        ("user/grant", r#"{"user":"team","role":"team"}"#),
        ("enable", "{}"),
    ] {
        let (status, answer) = etcd
            .json("POST", &format!("/v3/auth/{path}"), body)
            .unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
    }
    let ca = files.write("ca.pem", &ours.pem);
    let url = |name: &str, prefix: &str| {
        let file = files.write(
            &format!("{name}.pem"),
            &ours.vouch_for_user(name).combined(),
        );
        let (host, ca, file) = (etcd.tls_host(), ca.display(), file.display());
        format!("etcds://{host}{prefix}?ca={ca}&cert={file}")
    };
    let client = Client::connect(url("team", "/team")).await.unwrap();
    let guard = client.lock("a").acquire().await.unwrap();
    guard.release().await.unwrap();
    let outside = Client::connect(url("team", "/other")).await.unwrap();
    let error = outside.lock("a").acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    let error = Client::connect(url("stranger", "/team")).await;
    let error = match error {
        Ok(client) => client.lock("a").acquire().await.unwrap_err(),
        Err(error) => error,
    };
    let refused = [ErrorKind::Unauthorized, ErrorKind::Forbidden];
    assert!(refused.contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn the_wrong_scheme_is_found_out() {
    let ours = Authority::new();
    let files = Directory::new();
    let etcd = tls::etcd(&files, &ours.vouch("127.0.0.1"), None);
    let plain = format!("etcd://{}", etcd.tls_host());
    let error = Client::connect(&plain).await.unwrap_err();
    assert!(
        error.to_string().contains("https"),
        "{:?} {error}",
        error.kind()
    );
    let url = format!("etcds://127.0.0.1:{}", etcd.client_port());
    let url = StoreUrl::parse(&url).unwrap();
    let store = url
        .etcd3()
        .unwrap()
        .tls(Tls::new().ca_pem(ours.pem.clone()));
    let error = store.build().unwrap().probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
}
