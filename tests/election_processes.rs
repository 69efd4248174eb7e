//! The election on a real etcd, through both of its APIs: a leader whose process is killed or
//! stopped, a long row of proclamations. On v2 besides: single requests of a proclamation that go
//! wrong on the wire, and requests to give back beside python-etcd's line.
//!
//! A worker process is this test binary again, told by its environment to be one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::runtime::{Clock, Runtime};
use tenure::{Client, ErrorKind, Leader, Leaders, Leadership, StoreExt, StoreUrl, Ttl};

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use common::etcd::Etcd;
use proxy::{Client as Sees, Fault, Match, Proxy};

const TTL: Duration = Duration::from_secs(3);
const SWEEP: Duration = Duration::from_millis(700);
const LONG: Duration = Duration::from_secs(30);
const URL: &str = "TENURE_CANDIDATE_URL";

/// Which API of the server.
#[derive(Clone, Copy, Debug)]
enum Api {
    V2,
    V3,
}

impl Api {
    /// The store at this address, as a URL.
    fn url(self, address: &str) -> String {
        let host = address.strip_prefix("http://").unwrap();
        match self {
            Self::V2 => format!("etcd2://{host}"),
            Self::V3 => format!("etcd://{host}"),
        }
    }

    fn client(self, address: &str) -> Client {
        client(&self.url(address))
    }
}

/// Runs each of these through both APIs.
macro_rules! through_both {
    ($($check:ident,)*) => {
        mod etcd2 {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    super::$check(super::Api::V2).await;
                }
            )*
        }
        mod etcd3 {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    super::$check(super::Api::V3).await;
                }
            )*
        }
    };
}

through_both! {
    a_killed_leader_is_followed_within_its_ttl_and_nobody_leads_where_nobody_waits,
    a_stopped_leader_is_followed_and_leads_again_in_a_new_term_only,
    the_term_is_kept_through_a_long_row_of_proclamations,
}

fn client(url: &str) -> Client {
    let store = StoreUrl::parse(url).unwrap();
    let store = store.store(&Runtime::default()).unwrap();
    Client::builder(store).ttl(Ttl::new(TTL).unwrap()).build()
}

async fn proxy(server: &Etcd) -> Proxy {
    let upstream = ([127, 0, 0, 1], server.client_port()).into();
    Proxy::start(upstream).await.unwrap()
}

async fn next(leaders: &mut Leaders) -> Option<Leader> {
    let item = tokio::time::timeout(LONG, leaders.next()).await;
    item.expect("an item").unwrap().unwrap()
}

async fn proposal(client: &Client) -> String {
    let leader = client.election("a").leader().await.unwrap().unwrap();
    String::from_utf8(leader.proposal().to_vec()).unwrap()
}

/// Leads for as long as it can, and says so.
async fn work(client: Client) -> u64 {
    let work = async |leadership: &Leadership| {
        println!("\nWORKER {}", leadership.token());
        std::io::stdout().flush().unwrap();
        if std::env::var(URL).is_ok() {
            std::future::pending::<()>().await;
        }
        leadership.token()
    };
    client.election("a").lead("worker", work).await.unwrap()
}

/// Started by itself it shows that a worker leads; started by the tests below it is one.
#[tokio::test(flavor = "current_thread")]
async fn a_worker_leads_and_says_so() {
    let url = std::env::var(URL).unwrap_or_else(|_| "embedded:".into());
    let client = match &*url {
        "embedded:" => Client::connect("embedded:").await.unwrap(),
        url => client(url),
    };
    assert!(work(client).await > 0);
}

struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "a_worker_leads_and_says_so"])
            .env(URL, url)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Its next term.
    fn term(&mut self) -> u64 {
        loop {
            let line = self.lines.next().expect("the worker ended").unwrap();
            if let Some(term) = line.strip_prefix("WORKER ") {
                return term.parse().unwrap();
            }
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn a_killed_leader_is_followed_within_its_ttl_and_nobody_leads_where_nobody_waits(api: Api) {
    let server = Etcd::start();
    let (a, clock) = (api.client(&server.url()), Clock::boot());
    let mut observer = a.election("a").observe();
    assert!(next(&mut observer).await.is_none());
    for somebody_waits in [true, false] {
        let mut worker = Worker::start(&api.url(&server.url()));
        let term = worker.term();
        let leader = next(&mut observer).await.unwrap();
        assert_eq!(
            (leader.token(), &leader.proposal()[..]),
            (term, &b"worker"[..])
        );
        let who = loop {
            // It says who it is in the background.
            if let Some(who) = a.who(leader.session().unwrap()).await.unwrap() {
                break who;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(who.pid(), worker.child.id());
        let election = a.election("a");
        let waiting =
            somebody_waits.then(|| tokio::spawn(async move { election.campaign("next").await }));
        while a.election("a").candidates().await.unwrap().len() != 1 + usize::from(somebody_waits) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worker.signal("-KILL");
        let killed = clock.now();
        let follower = next(&mut observer).await;
        let seen = clock.now().since(killed);
        assert!(seen <= TTL + SWEEP, "{seen:?}");
        println!("seen after {seen:?}, with a TTL of {TTL:?}");
        let Some(waiting) = waiting else {
            assert!(follower.is_none());
            continue;
        };
        let won = waiting.await.unwrap().unwrap();
        let after = clock.now().since(killed);
        assert!(after <= TTL + SWEEP, "{after:?}");
        assert_eq!(follower.unwrap().token(), won.token());
        assert!(won.token() > term);
        won.resign().await.unwrap();
        assert!(next(&mut observer).await.is_none());
    }
}

async fn a_stopped_leader_is_followed_and_leads_again_in_a_new_term_only(api: Api) {
    let server = Etcd::start();
    let a = api.client(&server.url());
    let mut worker = Worker::start(&api.url(&server.url()));
    let term = worker.term();
    worker.signal("-STOP");
    let won = a.election("a").campaign("next").timeout(TTL + SWEEP).await;
    let won = won.unwrap();
    assert!(won.token() > term);
    worker.signal("-CONT");
    // It is back in line, behind us.
    while a.election("a").candidates().await.unwrap().len() != 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(won.is_held());
    won.resign().await.unwrap();
    let again = tokio::task::spawn_blocking(move || worker.term());
    let again = tokio::time::timeout(LONG, again).await.unwrap().unwrap();
    assert!(again > term);
}

/// Refreshes a ticket behind its session's back.
async fn refreshed(keys: &tenure::etcd2::Client, leadership: &Leadership) {
    let key = leadership.key().as_str();
    keys.refresh(key, TTL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_request_of_a_proclamation_goes_wrong_its_outcome_is_definite() {
    let (server, v2) = (Etcd::start(), Api::V2);
    let proxy = proxy(&server).await;
    let (a, b) = (v2.client(&proxy.url()), v2.client(&server.url()));
    let keys = tenure::etcd2::Client::new(server.url()).unwrap();
    let leadership = a.election("a").campaign("0").await.unwrap();
    let mut number = 0;
    for method in ["GET", "PUT"] {
        for fault in [
            Fault::LoseReply(Sees::Hangs),
            Fault::LoseReply(Sees::IsClosed),
            Fault::LoseRequest(Sees::Hangs),
            Fault::LoseRequest(Sees::IsClosed),
            Fault::Answer(503),
            Fault::Delay(TTL / 6),
        ] {
            number += 1;
            let what = format!("{method}, {fault:?}");
            if method == "GET" {
                // As a renewal would: what it knows of the key is too old, so it has to look.
                refreshed(&keys, &leadership).await;
            }
            let term = Match::method(method).and_path(leadership.key().name());
            proxy.inject(term, fault);
            let proclaimed = leadership.proclaim(number.to_string()).await;
            proclaimed.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(proxy.pending_faults(), 0, "{what}");
            assert_eq!(proposal(&b).await, number.to_string(), "{what}");
            assert_eq!(leadership.proposal(), number.to_string(), "{what}");
        }
    }
    assert!(leadership.is_held());
    leadership.resign().await.unwrap();
    assert!(b.election("a").leader().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proclamation_that_was_held_back_is_refused_when_it_comes() {
    let (server, v2) = (Etcd::start(), Api::V2);
    let proxy = proxy(&server).await;
    let (a, b) = (v2.client(&proxy.url()), v2.client(&server.url()));
    let leadership = a.election("a").campaign("old").await.unwrap();
    let put = || Match::method("PUT").and_path(leadership.key().name());
    let mut held = proxy.hold(put());
    leadership.proclaim("late").await.unwrap();
    let request = held.arrived().await;
    assert!(request.body.contains("late"), "{request:?}");
    // The value that it compares with is there again.
    leadership.proclaim("old").await.unwrap();
    assert_eq!(held.deliver().await, 412, "a late proclamation was let in");
    assert_eq!(proposal(&b).await, "old");
    // And one that comes when its leader has resigned.
    let mut held = proxy.hold(put());
    let cut = tokio::time::timeout(Duration::from_millis(100), leadership.proclaim("never"));
    assert!(cut.await.is_err());
    held.arrived().await;
    leadership.resign().await.unwrap();
    assert_eq!(held.deliver().await, 404);
    assert!(b.election("a").leader().await.unwrap().is_none());
}

async fn the_term_is_kept_through_a_long_row_of_proclamations(api: Api) {
    let server = Etcd::start();
    let (a, b) = (api.client(&server.url()), api.client(&server.url()));
    let leadership = a.election("a").campaign("0").await.unwrap();
    // Others of the same session are renewed meanwhile.
    let guard = a.lock("b").acquire().await.unwrap();
    let (clock, number) = (Clock::boot(), std::cell::Cell::new(0_u32));
    let end = clock.now() + TTL * 2;
    let begun = server.metrics().proposals;
    // Several at once, so that there is always one more to make.
    let rows = (0..3).map(|_| async {
        while !clock.has_passed(end) {
            number.set(number.get() + 1);
            let proposal = number.get().to_string();
            leadership.proclaim(proposal).await.unwrap();
            assert!(leadership.is_held() && guard.is_held());
        }
    });
    futures_util::future::join_all(rows).await;
    let number = number.get();
    let proposals = (server.metrics().proposals - begun) as f64;
    // v2's clock proposes twice a second.
    let own = TTL.as_secs_f64() * 2.0 * 2.0;
    let each = (proposals - own) / f64::from(number);
    println!("{number} proclamations, {each:.2} proposals each, renewals among them");
    assert!(number > 50, "{number} proclamations are too few");
    assert!(each < 1.1, "a write, after a renewal on v2 a look: {each}");
    assert_eq!(proposal(&b).await.as_bytes(), &leadership.proposal()[..]);
    leadership.resign().await.unwrap();
    guard.release().await.unwrap();
}

/// What python-etcd's lock reads is the directory, recursively and sorted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_line_is_not_disturbed_by_a_request_to_give_back() {
    let server = Etcd::start();
    let client = Api::V2.client(&server.url());
    let keys = tenure::etcd2::Client::new(server.url()).unwrap();
    let python = keys
        .append("/_locks/a", "0123456789abcdef0123456789abcdef")
        .await
        .unwrap();
    let lock = client.lock("a");
    let asked = lock.request_release("maintenance").await.unwrap();
    let number: u64 = python.node.key.rsplit('/').next().unwrap().parse().unwrap();
    assert_eq!(asked, Some(number));
    let there = keys.read("/_locks/a/_meta/revoke").await.unwrap();
    assert!(there.node.value.unwrap().contains("maintenance"));
    let listed = keys.read("/_locks/a").recursive().sorted().await.unwrap();
    let names: Vec<&str> = listed.node.nodes.iter().map(|node| &*node.key).collect();
    assert_eq!(names, [&*python.node.key]);
    // Nor is ours.
    assert_eq!(lock.contenders().await.unwrap().len(), 1);
    assert!(lock.try_acquire().await.unwrap().is_none());
    let late = lock.acquire().timeout(Duration::from_millis(200)).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    keys.delete(&python.node.key).await.unwrap();
    lock.acquire()
        .timeout(LONG)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let key = tenure::Key::new("/_locks/a").unwrap();
    assert!(client.store().children(&key).await.unwrap().is_empty());
}
