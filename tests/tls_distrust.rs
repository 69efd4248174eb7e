//! TLS that finds no trust: what is said of it, how soon, and that nothing was changed.
#![cfg(all(feature = "etcd2", any(feature = "tls-ring", feature = "tls-aws-lc")))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use futures_util::StreamExt;
use tenure::etcd2::Etcd2;
use tenure::runtime::{Clock, Runtime};
use tenure::store::{Expiry, Update, Watch};
use tenure::transport::Tls;
use tenure::{Error, ErrorKind, Store, StoreExt};

mod common;
#[path = "common/tls.rs"]
mod tls;

use common::etcd::Etcd;
use common::words::{key, value, write};
use tls::{Authority, Directory, Identity, etcd, url};

/// What a store may take in all. Whoever waits it out has retried what cannot change.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Far less, and far more than a handshake takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);

fn store(url: &str, tls: Tls) -> Etcd2 {
    let store = Etcd2::builder(url).tls(tls).timeout(TIMEOUT);
    store.build().unwrap()
}

/// The refusal of a write and of a watch, both at once; the write's.
async fn refusal(server: &Etcd, tls: Tls) -> Error {
    let clock: Clock = Runtime::default().clock;
    let started = clock.now();
    let store = store(&url(server), tls);
    let put = store.set(&key("/a"), "x".into(), Expiry::Never).await;
    let error = put.unwrap_err();
    let mut watch = store.watch(Watch::node(key("/a")));
    let told = watch.next().await.unwrap().unwrap_err();
    let took = clock.now().since(started);
    assert!(took < AT_ONCE, "{took:?}: {error}");
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    assert!(error.changed_nothing() && !error.is_transient(), "{error}");
    assert_eq!(told.kind(), ErrorKind::Untrusted, "{told}");
    assert!(
        told.to_string()
            .contains(error.detail().split_once(": ").unwrap().1),
        "{told}"
    );
    let plain = Etcd2::new(server.url()).unwrap();
    assert_eq!(value(&plain, "/a").await, None, "{error}");
    error
}

fn says(error: &Error, parts: &[&str]) {
    for part in parts {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn an_unknown_authority_is_named_as_such() {
    let files = Directory::new();
    let server = etcd(&files, &Authority::new().vouch("127.0.0.1"), None);
    let error = refusal(&server, Tls::new().ca_pem(Authority::new().pem)).await;
    says(
        &error,
        &[&url(&server), "signed by an authority that is not trusted"],
    );
}

#[tokio::test]
async fn an_authority_made_anew_under_its_old_name_is_told_as_such() {
    let files = Directory::new();
    let (old, new) = (Authority::named("ours"), Authority::named("ours"));
    let server = etcd(&files, &new.vouch("127.0.0.1"), None);
    let error = refusal(&server, Tls::new().ca_pem(old.pem)).await;
    says(&error, &["names a trusted authority that did not sign it"]);
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_told_with_both_times() {
    let (ours, files) = (Authority::new(), Directory::new());
    let tls = || Tls::new().ca_pem(&*ours.pem);
    let server = etcd(&files, &ours.vouch_during("127.0.0.1", (2020, 2021)), None);
    let error = refusal(&server, tls()).await;
    says(&error, &["expired at 2021-01-01T00:00:00Z (here it is 20"]);
    drop(server);
    let server = etcd(&files, &ours.vouch_during("127.0.0.1", (2090, 2100)), None);
    let error = refusal(&server, tls()).await;
    says(
        &error,
        &["not valid before 2090-01-01T00:00:00Z (here it is 20"],
    );
}

#[tokio::test]
async fn a_certificate_for_another_host_is_told_with_both_names() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("etcd.example"), None);
    let error = refusal(&server, Tls::new().ca_pem(&*ours.pem)).await;
    says(&error, &["is for etcd.example, not for 127.0.0.1"]);
}

#[tokio::test]
async fn a_client_without_the_certificate_that_the_server_wants_is_told_so() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    // The alert of TLS 1.3 races with the request, so there are many.
    for _ in 0..30 {
        let error = refusal(&server, Tls::new().ca_pem(&*ours.pem)).await;
        says(&error, &["wants a client certificate, and none was given"]);
    }
}

#[tokio::test]
async fn the_refusal_is_heard_even_by_a_request_too_large_to_be_sent_at_once() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    for _ in 0..20 {
        let store = store(&url(&server), Tls::new().ca_pem(&*ours.pem));
        let large = "x".repeat(8 << 20);
        let put = store.set(&key("/a"), large.into(), Expiry::Never).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
        says(&error, &["wants a client certificate, and none was given"]);
    }
}

#[tokio::test]
async fn a_client_with_a_strangers_certificate_is_told_so() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    let stranger = Authority::new().vouch("us");
    for _ in 0..30 {
        let tls = Tls::new().ca_pem(&*ours.pem);
        let error = refusal(&server, tls.identity_pem(stranger.combined())).await;
        says(&error, &["refuses our client certificate"]);
    }
}

#[tokio::test]
async fn a_client_certificate_out_of_its_time_is_refused_too() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    let old: Identity = ours.vouch_during("us", (2020, 2021));
    let tls = Tls::new().ca_pem(&*ours.pem);
    let error = refusal(&server, tls.identity_pem(old.combined())).await;
    says(&error, &["refuses our client certificate"]);
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gives_way_to_one_that_is() {
    let (ours, files) = (Authority::new(), Directory::new());
    let good = etcd(&files, &ours.vouch("127.0.0.1"), None);
    let more = Directory::new();
    let bad = etcd(&more, &Authority::new().vouch("127.0.0.1"), None);
    let both = format!("{},{}", url(&bad), url(&good));
    let open = || store(&both, Tls::new().ca_pem(&*ours.pem));
    let writer = open();
    write(&writer, "/a", "x").await;
    assert_eq!(value(&writer, "/a").await.as_deref(), Some("x"));
    let on_good = store(&url(&good), Tls::new().ca_pem(&*ours.pem));
    assert_eq!(value(&on_good, "/a").await.as_deref(), Some("x"));
    let watcher = open();
    let mut watch = watcher.watch(Watch::node(key("/a")));
    let first = watch.next().await.unwrap();
    assert!(matches!(first, Ok(Update::Open(_))), "{first:?}");
}

#[tokio::test]
async fn a_server_that_speaks_the_other_protocol_is_told_as_such() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), None);
    let https = server.url().replace("http://", "https://");
    let http = format!("http://{}", server.tls_host());
    let tls = Tls::new().ca_pem(&*ours.pem);
    let clock: Clock = Runtime::default().clock;
    for (url, tls, kind, words) in [
        (
            https,
            tls,
            ErrorKind::Untrusted,
            "is this an http:// endpoint?",
        ),
        (
            http,
            Tls::new(),
            ErrorKind::Protocol,
            "is this an https:// endpoint?",
        ),
    ] {
        let started = clock.now();
        let error = store(&url, tls.clone()).probe().await.unwrap_err();
        let took = clock.now().since(started);
        assert!(took < AT_ONCE, "{took:?}: {error}");
        assert_eq!(error.kind(), kind, "{error}");
        says(&error, &[&url, words]);
        let store = store(&url, tls);
        let put = store.set(&key("/a"), "x".into(), Expiry::Never).await;
        let error = put.unwrap_err();
        says(&error, &[&url, words]);
    }
}
