//! The queue across processes: a consumer that is killed between claim and ack, and one that is
//! stopped for longer than its term and then acks.
//!
//! A worker process is this test binary again, told by its environment to be one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tenure::runtime::Clock;
use tenure::store::Expiry;
use tenure::{Client, Consumer, Delivery, ErrorKind, Key, StoreExt, Ttl};

#[path = "common/api.rs"]
mod api;
mod common;

use api::Api;

const TTL: Duration = Duration::from_secs(3);
const SWEEP: Duration = Duration::from_millis(700);
const LONG: Duration = Duration::from_secs(30);
const URL: &str = "TENURE_CONSUMER_URL";

fn client(url: &str) -> Client {
    Client::builder(api::open(url))
        .ttl(Ttl::new(TTL).unwrap())
        .build()
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let item = tokio::time::timeout(LONG, consumer.next()).await;
    item.expect("in time").expect("it goes on").unwrap()
}

fn say(text: &str) {
    println!("\nWORKER {text}");
    std::io::stdout().flush().unwrap();
}

/// Takes a job, and acks it when it is told to.
async fn work(client: Client, told: impl Future<Output = ()>) {
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    say(&format!("holds {}", delivery.id()));
    told.await;
    let text = match delivery.ack().await {
        Ok(()) => "acked".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    say(&text);
}

/// Started by itself it shows that a worker works; started by the tests below it is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_worker_takes_a_job_and_acks_it() {
    if let Ok(url) = std::env::var(URL) {
        let told = async {
            let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
            drop(line.await);
        };
        return work(client(&url), told).await;
    }
    let client = Client::connect("embedded:").await.unwrap();
    push(&client, "a").await;
    work(client.clone(), async {}).await;
    let state = Key::new("/_queues/q/state/a").unwrap();
    let state = client.store().node(&state).await.unwrap().unwrap();
    assert!(state.text().unwrap().starts_with("done 1 "));
}

async fn push(client: &Client, name: &str) {
    let key = Key::new(format!("/_queues/q/jobs/{name}")).unwrap();
    client
        .store()
        .create(&key, name.to_owned().into(), Expiry::Never)
        .await
        .unwrap();
}

struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(url: &str) -> Self {
        let name = "a_worker_takes_a_job_and_acks_it";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", name])
            .env(URL, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing that it says.
    fn hear(&mut self) -> String {
        loop {
            let line = self.lines.next().expect("the worker ended").unwrap();
            if let Some(said) = line.strip_prefix("WORKER ") {
                return said.to_owned();
            }
        }
    }

    fn tell(&mut self) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"go\n")
            .unwrap();
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args([signal, &pid]).status();
        assert!(killed.unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_consumer_held_is_delivered_again() {
    killed(Api::V2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_what_a_killed_consumer_held_is_delivered_again() {
    killed(Api::V3).await;
}

async fn killed(api: Api) {
    let server = api.start();
    let client = client(&api.address(&server));
    push(&client, "a").await;
    let mut worker = Worker::start(&api.address(&server));
    assert_eq!(worker.hear(), "holds a");
    let mut consumer = client.queue("q").consumer(1);
    let (clock, early) = (Clock::boot(), Duration::from_millis(200));
    assert!(
        tokio::time::timeout(early, consumer.next()).await.is_err(),
        "it is held"
    );
    worker.signal("-KILL");
    let killed = clock.now();
    let delivery = next(&mut consumer).await;
    let took = clock.now().since(killed);
    println!("redelivered {took:?} after the kill");
    assert!(took <= TTL + SWEEP, "{took:?}");
    assert_eq!((delivery.id().as_str(), delivery.attempt()), ("a", 2));
    delivery.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_was_stopped_cannot_ack_what_another_holds() {
    stopped(Api::V2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_v3_a_consumer_that_was_stopped_cannot_ack_what_another_holds() {
    stopped(Api::V3).await;
}

async fn stopped(api: Api) {
    let server = api.start();
    let client = client(&api.address(&server));
    push(&client, "a").await;
    let mut worker = Worker::start(&api.address(&server));
    assert_eq!(worker.hear(), "holds a");
    worker.signal("-STOP");
    let mut consumer = client.queue("q").consumer(1);
    let delivery = next(&mut consumer).await;
    assert_eq!((delivery.id().as_str(), delivery.attempt()), ("a", 2));
    worker.tell();
    worker.signal("-CONT");
    assert_eq!(worker.hear(), format!("{:?}", ErrorKind::ClaimLost));
    assert!(delivery.is_held());
    delivery.ack().await.unwrap();
}
