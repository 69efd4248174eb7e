//! The lock across processes and across failures of the server: a holder that is stopped, a
//! holder that is killed, an etcd that restarts, an etcd that stays away.
//!
//! A worker process is this test binary again, told by its environment to be one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tenure::runtime::{Clock, Runtime};
use tenure::{Client, ErrorKind, HoldState, Key, LockGuard, Loss, StoreExt, StoreUrl, Ttl};

mod common;

use common::etcd::Etcd;

const TTL: Duration = Duration::from_secs(3);
const SWEEP: Duration = Duration::from_millis(700);
const LONG: Duration = Duration::from_secs(30);
const URL: &str = "TENURE_WORKER_URL";

fn client(url: &str) -> Client {
    let url = StoreUrl::parse(url).unwrap();
    let store = url.store(&Runtime::default()).unwrap();
    Client::builder(store).ttl(Ttl::new(TTL).unwrap()).build()
}

/// Each check on both of etcd's APIs, given as the scheme of the store's URL.
macro_rules! on_both {
    ($($check:ident,)*) => {
        mod v2 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                super::$check("etcd2").await;
            })*
        }
        mod v3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                super::$check("etcd").await;
            })*
        }
    };
}

on_both!(
    a_stopped_holder_knows_that_it_lost_before_it_does_anything_else,
    a_killed_holder_is_followed_within_its_ttl_and_leaves_nothing,
    a_server_that_restarts_within_the_ttl_loses_no_lock_and_no_place_in_line,
    when_the_server_stays_away_all_learn_it_in_time_and_nobody_hangs,
);

fn url(scheme: &str, server: &Etcd) -> String {
    format!("{scheme}://127.0.0.1:{}", server.client_port())
}

async fn acquire(client: &Client) -> LockGuard {
    client.lock("a").acquire().timeout(LONG).await.unwrap()
}

async fn line_length(client: &Client) -> usize {
    client
        .store()
        .children(&Key::new("/_locks/a").unwrap())
        .await
        .unwrap()
        .len()
}

/// Milliseconds on the clock that all processes of this machine share.
fn boot_millis() -> u128 {
    Clock::boot()
        .now()
        .since(tenure::runtime::Instant::new(Duration::ZERO))
        .as_millis()
}

fn say(text: std::fmt::Arguments<'_>) {
    println!("\nWORKER {text}");
    std::io::stdout().flush().unwrap();
}

/// What a worker does: takes the lock, says so, acts every few milliseconds for as long as `run`
/// lets it, and says when it is told of the loss.
async fn work(client: Client) {
    let guard = acquire(&client).await;
    say(format_args!("holds {}", guard.token()));
    let acts = async {
        loop {
            say(format_args!("acts {}", boot_millis()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let outcome: tenure::Result<()> = guard.run(acts).await;
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!((guard.state(), guard.is_held()), (HoldState::Lost, false));
    say(format_args!("lost {}", boot_millis()));
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    client.idle().await;
    say(format_args!("done {}", boot_millis()));
}

/// Started by itself it shows that a worker works; started by the tests below it is one.
#[tokio::test(flavor = "current_thread")]
async fn a_worker_acts_while_it_holds_and_says_when_it_is_lost() {
    if let Ok(url) = std::env::var(URL) {
        return work(client(&url)).await;
    }
    let client = Client::connect("embedded:").await.unwrap();
    let (_, ()) = tokio::join!(work(client.clone()), async {
        let dir = Key::new("/_locks/a").unwrap();
        let ticket = loop {
            if let Some(ticket) = client.store().children(&dir).await.unwrap().pop() {
                break ticket;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.store().remove(&ticket.key).await.unwrap().unwrap();
    });
}

struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "a_worker_acts_while_it_holds_and_says_when_it_is_lost",
            ])
            .env(URL, url)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing that it says.
    fn hear(&mut self) -> (String, u128) {
        loop {
            let line = self.lines.next().expect("the worker ended").unwrap();
            if let Some(said) = line.strip_prefix("WORKER ") {
                let (word, number) = said.split_once(' ').unwrap();
                return (word.to_owned(), number.parse().unwrap());
            }
        }
    }

    fn hear_that_it(&mut self, word: &str) -> u128 {
        loop {
            let (said, number) = self.hear();
            if said == word {
                return number;
            }
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn a_stopped_holder_knows_that_it_lost_before_it_does_anything_else(scheme: &str) {
    let server = Etcd::start();
    let next = client(&url(scheme, &server));
    let mut worker = Worker::start(&url(scheme, &server));
    let token = worker.hear_that_it("holds");
    worker.hear_that_it("acts");
    worker.signal("-STOP");
    let stopped = boot_millis();
    let guard = acquire(&next).await;
    let taken = boot_millis();
    assert!(
        taken - stopped <= (TTL + SWEEP).as_millis(),
        "{} ms",
        taken - stopped
    );
    assert!(u128::from(guard.token()) > token);
    let clock = Clock::boot();
    clock
        .sleep((TTL * 2).saturating_sub(Duration::from_millis((taken - stopped) as u64)))
        .await;
    let resumed = boot_millis();
    worker.signal("-CONT");
    // Everything that it did, it did before it was stopped.
    let lost = loop {
        match worker.hear() {
            (word, at) if word == "acts" => {
                assert!(at <= stopped + 5, "acted at {at}, stopped at {stopped}");
            }
            (word, at) if word == "lost" => break at,
            (word, _) => panic!("{word}?"),
        }
    };
    assert!(lost >= resumed);
    worker.hear_that_it("done");
    assert!(guard.is_held(), "its clean-up took the successor's lock");
    assert_eq!(line_length(&next).await, 1);
    guard.release().await.unwrap();
}

async fn a_killed_holder_is_followed_within_its_ttl_and_leaves_nothing(scheme: &str) {
    let server = Etcd::start();
    let next = client(&url(scheme, &server));
    let mut worker = Worker::start(&url(scheme, &server));
    let token = worker.hear_that_it("holds");
    worker.hear_that_it("acts");
    worker.signal("-KILL");
    let killed = boot_millis();
    let guard = acquire(&next).await;
    let took = boot_millis() - killed;
    assert!(took <= (TTL + SWEEP).as_millis(), "{took} ms");
    assert!(u128::from(guard.token()) > token);
    guard.release().await.unwrap();
    assert_eq!(line_length(&next).await, 0);
}

async fn a_server_that_restarts_within_the_ttl_loses_no_lock_and_no_place_in_line(scheme: &str) {
    let mut server = Etcd::start();
    let (a, b) = (client(&url(scheme, &server)), client(&url(scheme, &server)));
    let guard = acquire(&a).await;
    let waiter = tokio::spawn({
        let b = b.clone();
        async move { acquire(&b).await }
    });
    while line_length(&a).await < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..3 {
        server.restart();
        assert!(guard.is_held());
        // Until a renewal has been answered by the new server.
        let renewed = async {
            let before = guard.deadline().unwrap();
            while guard.deadline().unwrap() == before || guard.state() != HoldState::Held {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TTL, renewed).await.unwrap();
    }
    assert!(!waiter.is_finished());
    let token = guard.token();
    guard.release().await.unwrap();
    let next = tokio::time::timeout(LONG, waiter).await.unwrap().unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
    assert_eq!(line_length(&a).await, 0);
}

async fn when_the_server_stays_away_all_learn_it_in_time_and_nobody_hangs(scheme: &str) {
    let mut server = Etcd::start();
    let (a, b) = (client(&url(scheme, &server)), client(&url(scheme, &server)));
    let guard = acquire(&a).await;
    let waiter = tokio::spawn({
        let lock = b.lock("a");
        async move { lock.acquire().await }
    });
    while line_length(&a).await < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.stop();
    let clock = Clock::boot();
    let away = clock.now();
    let loss = tokio::time::timeout(TTL, guard.lost())
        .await
        .expect("lost within a TTL");
    assert_eq!(loss, Loss::Expired);
    let outcome = tokio::time::timeout(TTL, waiter)
        .await
        .expect("told within a TTL")
        .unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    assert!(clock.now().since(away) <= TTL + TTL / 3);
    let release = tokio::time::timeout(TTL, guard.release())
        .await
        .expect("no hang");
    assert_eq!(release.unwrap_err().kind(), ErrorKind::Lost);
    let error = a.lock("a").acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    server.restart();
    acquire(&a).await.release().await.unwrap();
    acquire(&b).await.release().await.unwrap();
    tokio::time::timeout(LONG, async { tokio::join!(a.idle(), b.idle()) })
        .await
        .unwrap();
    assert_eq!(line_length(&a).await, 0);
}
