//! What somebody reads at three in the morning on etcd v3: what happened, to which key, on which
//! server, and what to do about it; in time, and without a password.
#![cfg(all(
    feature = "etcd2",
    feature = "etcd3",
    any(feature = "tls-ring", feature = "tls-aws-lc")
))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::words::{key, write};
use tenure::etcd3::Etcd3;
use tenure::runtime::Clock;
use tenure::store::{Expiry, Put};
use tenure::{Client, Error, ErrorKind, LeaseId, Store, StoreExt};
use tls::{Authority, Directory};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The driver's limit for an operation, and the time in which a task is woken on a busy machine.
const LIMIT: Duration = Duration::from_millis(5_500);

/// Whether this is of that kind, and says all of this.
#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    println!("{text}");
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(!text.contains("pass-word"), "{text}");
}

async fn connecting(url: &str) -> Error {
    let clock = Clock::boot();
    let began = clock.now();
    let error = Client::connect(url).await.unwrap_err();
    let took = clock.now().since(began);
    assert!(took <= LIMIT, "{took:?}");
    assert_eq!(error.operation(), Some("connect"), "{error}");
    error
}

fn url(etcd: &Etcd) -> String {
    etcd.url().replace("http", "etcd")
}

/// A server that answers whatever it is asked with these bytes and hangs up; with none it stays
/// silent.
async fn server(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if answer.is_empty() {
                kept.push(stream);
                continue;
            }
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_server_that_is_dead_or_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let server_ = format!("http://{addr}");
    let advice = "check the address and that the server runs";
    let words = ["connect", &*server_, "refused", advice];
    let error = connecting(&format!("etcd://me:pass-word@{addr}")).await;
    says(&error, ErrorKind::Unreachable, &words);
    let client = Client::open(format!("etcd://{addr}")).unwrap();
    let error = client.lock("a").acquire().await.unwrap_err();
    let words = ["/_locks/a", &*server_, "refused", advice];
    says(&error, ErrorKind::Unreachable, &words);
    let addr = server(b"").await;
    let words = [&*format!("http://{addr}"), "no answer within"];
    let error = connecting(&format!("etcd://{addr}")).await;
    says(&error, ErrorKind::Timeout, &words);
}

#[tokio::test]
async fn a_server_that_is_something_else() {
    let old = b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n";
    for other in [&old[..], b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"] {
        let addr = server(other).await;
        let error = connecting(&format!("etcd://{addr}")).await;
        let words = [&*addr.to_string(), "not HTTP/2", "etcd v3 endpoint?"];
        says(&error, ErrorKind::Protocol, &words);
    }
    // What a server that speaks gRPC only says to HTTP/1.1: settings, and good bye.
    let settings = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\x01";
    let addr = server(settings).await;
    let error = connecting(&format!("etcd2://{addr}")).await;
    let words = [&*addr.to_string(), "not HTTP", "etcd v2 endpoint?"];
    says(&error, ErrorKind::Protocol, &words);
    let etcd = Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    });
    let error = connecting(&etcd.url().replace("http", "etcd2")).await;
    says(
        &error,
        ErrorKind::Unsupported,
        &[&etcd.url(), "--enable-v2", "etcd://"],
    );
}

#[tokio::test]
async fn the_wrong_scheme_and_a_stranger_by_tls() {
    let (ours, another) = (Authority::new(), Authority::new());
    let files = Directory::new();
    let etcd = tls::etcd(&files, &ours.vouch("127.0.0.1"), None);
    let host = etcd.tls_host();
    let error = connecting(&format!("etcd://{host}")).await;
    let words = [&*format!("http://{host}"), "speaks TLS", "etcds://"];
    says(&error, ErrorKind::Protocol, &words);
    let ca = files.write("ca.pem", &ours.pem);
    let plain = format!("127.0.0.1:{}", etcd.client_port());
    let error = connecting(&format!("etcds://{plain}?ca={}", ca.display())).await;
    let words = [&*plain, "plain HTTP", "etcd://"];
    says(&error, ErrorKind::Untrusted, &words);
    let other = files.write("other.pem", &another.pem);
    let error = connecting(&format!("etcds://{host}?ca={}", other.display())).await;
    let words = [
        &*format!("https://{host}"),
        "certificate",
        "check",
        "the CA",
    ];
    says(&error, ErrorKind::Untrusted, &words);
    let error = Client::open(format!("etcds://{host}?ca=/no/such/file")).unwrap_err();
    says(&error, ErrorKind::InvalidOptions, &["/no/such/file"]);
}

#[tokio::test]
async fn a_user_who_is_missing_wrong_or_not_allowed() {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    });
    let error = connecting(&url(&etcd).replace("//", "//me:pass-word@")).await;
    says(
        &error,
        ErrorKind::InvalidOptions,
        &[&etcd.url(), "not enabled", "leave the user out"],
    );
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/add", r#"{"name":"team","password":"pass-word"}"#),
        ("role/add", r#"{"name":"team"}"#),
        (
            "role/grant",
            r#"{"name":"team","perm":{"permType":"READWRITE","key":"L3RlYW0v","range_end":"L3RlYW0w"}}"#,
        ),
        ("user/grant", r#"{"user":"team","role":"team"}"#),
        ("enable", "{}"),
    ] {
        let path = format!("/v3/auth/{path}");
        assert_eq!(etcd.json("POST", &path, body).unwrap().0, 200, "{path}");
    }
    let error = connecting(&url(&etcd)).await;
    let words = [&*etcd.url(), "user and a password", "check the user"];
    says(&error, ErrorKind::Unauthorized, &words);
    let error = connecting(&url(&etcd).replace("//", "//team:pass-word-2@")).await;
    let words = [
        &*etcd.url(),
        "password is wrong",
        "\"team\"",
        "check the user",
    ];
    says(&error, ErrorKind::Unauthorized, &words);
    let client = Client::connect(url(&etcd).replace("//", "//team:pass-word@"));
    let client = client.await.unwrap();
    let at = key("/k");
    let outcome = client.store().set(&at, "v".into(), Expiry::Never);
    let error = outcome.await.unwrap_err();
    let words = [
        "put /k on",
        &*etcd.url(),
        "\"team\"",
        "grant",
        "access to the key",
    ];
    says(&error, ErrorKind::Forbidden, &words);
    let error = client.lock("a").acquire().await.unwrap_err();
    let words = [
        "/_locks/a",
        &*etcd.url(),
        "\"team\"",
        "below /_cancelled",
        "grant",
    ];
    says(&error, ErrorKind::Forbidden, &words);
}

#[tokio::test]
async fn a_server_without_space() {
    let etcd = Etcd::start();
    let store = Etcd3::new(etcd.url()).unwrap();
    let id = store.members().await.unwrap()[0].id;
    let alarm = format!(r#"{{"action":"ACTIVATE","memberID":"{id}","alarm":"NOSPACE"}}"#);
    let (status, _) = etcd.json("POST", "/v3/maintenance/alarm", &alarm).unwrap();
    assert_eq!(status, 200);
    // etcd says the same of what it did with the last of its space: only who knows what was there
    // before can tell.
    let put = async || store.set(&key("/k"), "v".into(), Expiry::Never).await;
    let words = ["put /k on", &*etcd.url(), "NOSPACE", "compact, defragment"];
    let unsure = [&words[..], &["may have been done"]].concat();
    says(&put().await.unwrap_err(), ErrorKind::Ambiguous, &unsure);
    says(&put().await.unwrap_err(), ErrorKind::Unavailable, &words);
    let client = Client::connect(url(&etcd)).await.unwrap();
    let error = client.lock("a").acquire().await.unwrap_err();
    let words = ["/_locks/a", &*etcd.url(), "NOSPACE", "compact, defragment"];
    says(&error, ErrorKind::Unavailable, &words);
}

#[tokio::test]
async fn a_lease_that_is_gone_and_a_cluster_that_is_another() {
    let mut etcd = Etcd::start();
    let store = Etcd3::new(etcd.url()).unwrap();
    let lease = LeaseId::new(0xabc).unwrap();
    let put = Put::new(key("/k"), "v", Expiry::With(lease));
    let error = store.put(put).await.unwrap_err();
    says(
        &error,
        ErrorKind::NotFound,
        &["put /k on", &etcd.url(), "the lease is gone"],
    );
    for number in 0..3 {
        write(&store, &format!("/{number}"), "v").await;
    }
    etcd.rebuild();
    let error = store.node(&key("/k")).await.unwrap_err();
    let words = ["get /k on", &*etcd.url(), "this is cluster", "connect anew"];
    says(&error, ErrorKind::ClusterChanged, &words);
}
