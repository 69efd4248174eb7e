//! What somebody sees who connects to the wrong place: a distinct, helpful error, in time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::runtime::Clock;
use tenure::{Client, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

mod common;

use common::etcd::{Etcd, Options};

/// The driver's limit for an operation, and the time in which a task is woken on a busy machine.
const LIMIT: Duration = Duration::from_millis(5_500);

/// A server that answers every request with these bytes and hangs up; with none it stays silent.
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
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    addr
}

/// Connects, and acquires without having connected: both must fail like this, in time.
async fn fails(host: impl std::fmt::Display, kind: ErrorKind, words: &[&str]) {
    let clock = Clock::boot();
    let start = clock.now();
    let error = Client::connect(format!("etcd2://{host}"))
        .await
        .unwrap_err();
    let took = clock.now().since(start);
    println!("{error}");
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.operation(), Some("connect"), "{error}");
    assert!(took <= LIMIT, "{took:?}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }

    let client = Client::new(Etcd2::new(format!("http://{host}")).unwrap());
    let start = clock.now();
    let error = client.lock("a").acquire().await.unwrap_err();
    let took = clock.now().since(start);
    println!("   {error}");
    // An append that may have been sent is followed by a look and by two more.
    assert!(took <= LIMIT * 6, "{took:?}");
    assert_eq!(
        error.key().map(ToString::to_string).as_deref(),
        Some("/_locks/a"),
        "{error}"
    );
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    fails(
        addr,
        ErrorKind::Unreachable,
        &[&addr.to_string(), "refused"],
    )
    .await;
}

#[tokio::test]
async fn a_host_that_does_not_exist() {
    fails(
        "no-such-host.invalid",
        ErrorKind::Unreachable,
        &["no-such-host.invalid"],
    )
    .await;
}

#[tokio::test]
async fn a_port_that_speaks_no_http() {
    let addr = server(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").await;
    fails(addr, ErrorKind::Protocol, &[&addr.to_string(), "HTTP"]).await;
}

#[tokio::test]
async fn a_server_that_answers_html() {
    let page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 32\r\n\r\n\
        <html><body>Welcome</body></html";
    let addr = server(page).await;
    fails(
        addr,
        ErrorKind::Protocol,
        &[&addr.to_string(), "<html>", "etcd"],
    )
    .await;
}

#[tokio::test]
async fn a_server_that_answers_garbage() {
    let garbage = b"HTTP/1.1 200 OK\r\nX-Etcd-Index: 7\r\nContent-Length: 8\r\n\r\n{\"acti\x00\xff";
    let addr = server(garbage).await;
    fails(addr, ErrorKind::Protocol, &[&addr.to_string()]).await;
}

#[tokio::test]
async fn a_server_that_never_answers() {
    let addr = server(b"").await;
    fails(addr, ErrorKind::Timeout, &[&addr.to_string()]).await;
}

#[tokio::test]
async fn an_etcd_whose_v2_api_is_off() {
    let options = Options {
        v2: false,
        ..Options::default()
    };
    let server = Etcd::start_with(&options);
    let host = format!("127.0.0.1:{}", server.client_port());
    fails(host, ErrorKind::Unsupported, &["--enable-v2"]).await;
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
#[tokio::test]
async fn tls_to_a_port_that_speaks_plain_http() {
    let server = Etcd::start();
    let url = format!("etcd2s://127.0.0.1:{}", server.client_port());
    let error = Client::connect(url).await.unwrap_err();
    println!("{error}");
    assert_eq!(
        error.kind(),
        ErrorKind::Untrusted,
        "the handshake comes before any request"
    );
    assert!(error.to_string().contains("plain HTTP"), "{error}");
}

#[tokio::test]
async fn a_url_that_names_no_store() {
    for url in [
        "",
        "localhost:2379",
        "http://localhost:2379",
        "etcd2://",
        "redis://h",
    ] {
        let error = Client::connect(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{url}: {error}");
        assert!(error.to_string().contains("etcd2://host:port"), "{error}");
    }
}

#[tokio::test]
async fn a_prefix_keeps_two_services_apart() {
    let server = Etcd::start();
    let url = |prefix: &str| format!("etcd2://127.0.0.1:{}{prefix}", server.client_port());
    let one = Client::connect(url("/one")).await.unwrap();
    let two = Client::connect(url("/two")).await.unwrap();
    let bare = Client::connect(url("")).await.unwrap();
    let guard = one.lock("a").acquire().await.unwrap();
    assert!(one.lock("a").try_acquire().await.unwrap().is_none());
    two.lock("a")
        .try_acquire()
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    assert!(
        bare.raw_lock("/one/_locks/a")
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    guard.release().await.unwrap();
}
