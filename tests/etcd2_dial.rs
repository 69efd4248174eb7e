//! The seam to the network: other ways to connect, and ways that do not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{answer, node};
use futures_util::future::BoxFuture;
use tenure::etcd2::Etcd2;
use tenure::runtime::Runtime;
use tenure::store::{Expiry, Put};
use tenure::transport::{Dial, Io, Tcp};
use tenure::{ErrorKind, Key, Store, StoreExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Never connects to the host `hole`, and by TCP to any other.
#[derive(Debug)]
struct Holes(Arc<AtomicUsize>);

impl Dial for Holes {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        if host == "hole" {
            self.0.fetch_add(1, Ordering::Relaxed);
            return Box::pin(pending());
        }
        Tcp::new().dial(host, port)
    }
}

#[tokio::test]
async fn a_write_that_never_got_a_connection_goes_to_the_next_endpoint() {
    let etcd = Etcd::start();
    let tried = Arc::new(AtomicUsize::new(0));
    let store = Etcd2::builder(format!("http://hole,{}", etcd.url()))
        .dialer(Holes(tried.clone()))
        .timeout(Duration::from_millis(1_500))
        .build()
        .unwrap();
    for _ in 0..3 {
        store
            .put(Put::new(key("/k"), "v", Expiry::Never))
            .await
            .unwrap();
    }
    assert_eq!(
        tried.load(Ordering::Relaxed),
        1,
        "the one that works is kept"
    );
}

/// Answers every connection from memory.
#[derive(Debug)]
struct Memory;

impl Dial for Memory {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        assert_eq!((host, port), ("::1", 2379));
        let (ours, mut theirs) = duplex(4_096);
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                if theirs.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let answer = answer(200, 9, &node("get", "/k", "from memory", 7));
            let _ = theirs.write_all(answer.as_bytes()).await;
        });
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Io>) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipe_in_memory_is_network_enough() {
    let store = Etcd2::builder("http://[::1]")
        .dialer(Memory)
        .runtime(Runtime::on_tokio_time(1))
        .build()
        .unwrap();
    let found = store.node(&key("/k")).await.unwrap().unwrap();
    assert_eq!(found.text(), Some("from memory"));
}

/// Connects to nobody.
#[derive(Debug)]
struct Deaf;

impl Dial for Deaf {
    fn dial(&self, _: &str, _: u16) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        Box::pin(async { Err(io::Error::other("deaf")) })
    }
}

#[tokio::test(start_paused = true)]
async fn all_attempts_together_take_no_longer_than_the_operation_may() {
    let runtime = Runtime::on_tokio_time(1);
    let clock = runtime.clock.clone();
    let store = Etcd2::builder("http://a,http://b,http://c")
        .dialer(Deaf)
        .runtime(runtime)
        .build()
        .unwrap();
    let start = clock.now();
    let put = Put::new(key("/k"), "v", Expiry::Never);
    let error = store.put(put).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(clock.now().since(start), Duration::from_secs(5));
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
#[tokio::test]
async fn a_tls_handshake_with_a_plain_server_sends_nothing() {
    let etcd = Etcd::start();
    let url = etcd.url().replace("http://", "https://");
    let store = Etcd2::new(url).unwrap();
    let put = Put::new(key("/k"), "v", Expiry::Never);
    let error = store.put(put).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    assert_eq!(etcd.metrics().http_requests, 0);
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
#[test]
fn https_without_tls_says_which_feature_is_missing() {
    let error = Etcd2::new("https://h").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions);
    assert!(error.to_string().contains("tls-ring"), "{error}");
}
