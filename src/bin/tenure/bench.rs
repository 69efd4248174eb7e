//! `tenure bench`: closed loops of some tasks of some clients for some seconds.

use std::iter::repeat_n;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::json;
use tenure::runtime::{Clock, Instant};
use tenure::store::Expiry;
use tenure::{Client, Key, Name, Result, Store, StoreExt};
use tokio::task::JoinSet;

use crate::args::{Bench, BenchArgs};
use crate::exit;
use crate::signals::Signals;
use crate::store::Opened;

/// One closed loop.
struct Lane {
    clock: Clock,
    until: Instant,
    latencies: Vec<Duration>,
}

impl Lane {
    fn new(until: Instant) -> Self {
        Self {
            clock: Clock::boot(),
            until,
            latencies: Vec::new(),
        }
    }

    /// When the next round begins; `None` when the time is over.
    async fn round(&self) -> Option<Instant> {
        // The embedded store never makes anybody wait: the others want to run, too.
        tokio::task::yield_now().await;
        Some(self.clock.now()).filter(|now| *now < self.until)
    }

    fn done(&mut self, began: Instant) {
        self.latencies.push(self.clock.now().since(began));
    }
}

/// One lock for all: who holds, and which tokens there were.
#[derive(Default)]
struct Referee {
    held: AtomicBool,
    token: AtomicU64,
    violations: AtomicU64,
    /// When the last leader began to resign.
    resigned: Mutex<Option<Instant>>,
}

impl Referee {
    fn resigning(&self, now: Instant) {
        *self.resigned.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn resigned(&self) -> Option<Instant> {
        let mut resigned = self.resigned.lock().unwrap_or_else(PoisonError::into_inner);
        resigned.take()
    }

    fn enter(&self, token: u64) {
        let was_held = self.held.swap(true, Ordering::SeqCst);
        let older = self.token.swap(token, Ordering::SeqCst);
        if was_held || older >= token {
            self.violations.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn leave(&self) {
        self.held.store(false, Ordering::SeqCst);
    }
}

/// Measures and prints; the exit code.
pub(crate) async fn run(opened: &Opened, args: &BenchArgs, signals: &mut Signals) -> u8 {
    let measured = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        measured = measure(opened, args) => measured,
    };
    match measured {
        Ok(0) => exit::DONE,
        Ok(_) => exit::SOFTWARE,
        Err(error) => {
            eprintln!("tenure: {error}");
            exit::code(&error)
        }
    }
}

/// The memory that locks take which are held, guards included. They are held for the time given.
async fn held(opened: &Opened, args: &BenchArgs) -> Result<u64> {
    let clock = Clock::boot();
    let client = opened.another().await?;
    // What the first costs is not of each.
    client.lock("bench-held").acquire().await?.release().await?;
    let before = resident();
    let mut guards = Vec::with_capacity(args.tasks as usize);
    let numbers: Vec<u32> = (0..args.tasks).collect();
    for some in numbers.chunks(50) {
        let acquires = some
            .iter()
            .map(|number| client.lock(format!("bench-held-{number}")));
        let acquires = acquires.map(|lock| async move { lock.acquire().await });
        guards.extend(try_join_all(acquires).await?);
    }
    clock.sleep(Duration::from_secs(args.secs)).await;
    let bytes = resident().saturating_sub(before);
    let lost = guards.iter().filter(|guard| !guard.is_held()).count();
    let line = json!({
        "what": "held",
        "store": &*opened.client.store().about().name,
        "locks": guards.len(),
        "bytes_per_lock": bytes / guards.len().max(1) as u64,
        "lost": lost,
        "secs": args.secs,
    });
    println!("{line}");
    drop(guards);
    client.shutdown(Duration::from_secs(30)).await;
    Ok(lost as u64)
}

/// How many bytes of memory this process uses; 0 where that cannot be told.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|it| it.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// The number of violations.
async fn measure(opened: &Opened, args: &BenchArgs) -> Result<u64> {
    if args.what == Bench::Held {
        return held(opened, args).await;
    }
    let referee = Arc::new(Referee::default());
    let root = Key::new(format!("/tenure-bench-{}", std::process::id()))?;
    let mut clients = Vec::new();
    for _ in 0..args.clients {
        clients.push(opened.another().await?);
    }
    let clock = Clock::boot();
    let began = clock.now();
    let until = began + Duration::from_secs(args.secs);
    let what = args.what;
    let contenders = args.clients * args.tasks;
    let mut lanes = JoinSet::new();
    for (number, client) in clients
        .iter()
        .flat_map(|it| repeat_n(it, args.tasks as usize))
        .enumerate()
    {
        let (client, root, referee) = (client.clone(), root.clone(), referee.clone());
        lanes.spawn(async move {
            let client = &client;
            match what {
                Bench::Put | Bench::Get => keys(client, what, &root, number, until).await,
                Bench::Lock => locks(client, &format!("bench-{number}"), None, until).await,
                Bench::Held => Ok(Lane::new(until)),
                Bench::Contend => locks(client, "bench", Some(&referee), until).await,
                Bench::Elect => terms(client, number, &referee, until).await,
                Bench::Semaphore => permits(client, contenders.div_ceil(2), until).await,
                Bench::Push => pushes(client, &root, until).await,
                Bench::Queue => jobs(client, &root, until).await,
            }
        });
    }
    let lanes: Result<Vec<Lane>> = lanes.join_all().await.into_iter().collect();
    let took = clock.now().since(began);
    if let Some(client) = clients.first() {
        client.store().remove_tree(&root).await?;
        if matches!(args.what, Bench::Push | Bench::Queue) {
            // The books of the raw queue, whose jobs were below the root.
            let books = Key::root()
                .join("_queues")?
                .join(Name::new(root.as_str())?.segment())?;
            client.store().remove_tree(&books).await?;
        }
    }
    for client in &clients {
        client.shutdown(Duration::from_secs(5)).await;
    }
    let lanes = lanes?;
    let violations = referee.violations.load(Ordering::SeqCst);
    report(opened, args, &lanes, took, violations);
    Ok(violations)
}

async fn keys(
    client: &Client,
    what: Bench,
    root: &Key,
    number: usize,
    until: Instant,
) -> Result<Lane> {
    let key = root.join(&number.to_string())?;
    let value = vec![b'x'; 100];
    let store = client.store();
    store.set(&key, value.clone().into(), Expiry::Never).await?;
    let mut lane = Lane::new(until);
    while let Some(began) = lane.round().await {
        if what == Bench::Put {
            store.set(&key, value.clone().into(), Expiry::Never).await?;
        } else {
            store.node(&key).await?;
        }
        lane.done(began);
    }
    Ok(lane)
}

async fn locks(
    client: &Client,
    name: &str,
    referee: Option<&Arc<Referee>>,
    until: Instant,
) -> Result<Lane> {
    let lock = client.lock(name);
    let mut lane = Lane::new(until);
    while let Some(began) = lane.round().await {
        let guard = lock.acquire().await?;
        if let Some(referee) = referee {
            referee.enter(guard.token());
            referee.leave();
        }
        guard.release().await?;
        lane.done(began);
    }
    Ok(lane)
}

/// Each candidate leads in turn; what counts is how long nobody does.
async fn terms(client: &Client, number: usize, referee: &Referee, until: Instant) -> Result<Lane> {
    let election = client.election("bench");
    let mut lane = Lane::new(until);
    while lane.round().await.is_some() {
        let leadership = election.campaign(number.to_string()).await?;
        if let Some(began) = referee.resigned() {
            lane.done(began);
        }
        referee.enter(leadership.token());
        referee.leave();
        referee.resigning(lane.clock.now());
        leadership.resign().await?;
    }
    Ok(lane)
}
async fn permits(client: &Client, permits: u32, until: Instant) -> Result<Lane> {
    let semaphore = client
        .semaphore(format!("bench-{permits}"))
        .permits(permits);
    let mut lane = Lane::new(until);
    while let Some(began) = lane.round().await {
        semaphore.acquire().await?.release().await?;
        lane.done(began);
    }
    Ok(lane)
}

async fn pushes(client: &Client, root: &Key, until: Instant) -> Result<Lane> {
    let queue = client.raw_queue(root.join("jobs")?);
    let mut lane = Lane::new(until);
    while let Some(began) = lane.round().await {
        queue.push(vec![b'x'; 100]).await?;
        lane.done(began);
    }
    Ok(lane)
}

/// Each round is a push, and the claim and the ack of some job.
async fn jobs(client: &Client, root: &Key, until: Instant) -> Result<Lane> {
    let queue = client.raw_queue(root);
    let mut consumer = queue.consumer(1);
    let mut lane = Lane::new(until);
    while let Some(began) = lane.round().await {
        queue.push(vec![b'x'; 100]).await?;
        let delivery = tokio::select! {
            biased;
            delivery = consumer.next() => delivery,
            // Others have taken what is left.
            () = lane.clock.sleep_until(until) => break,
        };
        let Some(delivery) = delivery else {
            break;
        };
        delivery?.ack().await?;
        lane.done(began);
    }
    consumer.close().await;
    Ok(lane)
}

fn report(opened: &Opened, args: &BenchArgs, lanes: &[Lane], took: Duration, violations: u64) {
    let counts = lanes.iter().map(|lane| lane.latencies.len());
    let (min, max) = (counts.clone().min(), counts.max());
    let mut all: Vec<Duration> = lanes.iter().flat_map(|it| it.latencies.clone()).collect();
    all.sort_unstable();
    let percentile = |share: usize| {
        let at = (all.len() * share).div_ceil(100).saturating_sub(1);
        all.get(at).map_or(0, Duration::as_micros) as u64
    };
    let what = match args.what {
        Bench::Put => "put",
        Bench::Get => "get",
        Bench::Lock => "lock",
        Bench::Held => "held",
        Bench::Contend => "contend",
        Bench::Elect => "elect",
        Bench::Semaphore => "semaphore",
        Bench::Push => "push",
        Bench::Queue => "queue",
    };
    let mut line = json!({
        "what": what,
        "store": &*opened.client.store().about().name,
        "clients": args.clients,
        "tasks": args.tasks,
        "ops": all.len(),
        "ops_s": (all.len() as f64 / took.as_secs_f64() * 10.0).round() / 10.0,
        "p50_us": percentile(50),
        "p99_us": percentile(99),
        "secs": (took.as_secs_f64() * 1000.0).round() / 1000.0,
    });
    if let (Bench::Contend | Bench::Elect, Some(line)) = (args.what, line.as_object_mut()) {
        line.insert("min".into(), min.unwrap_or(0).into());
        line.insert("max".into(), max.unwrap_or(0).into());
        line.insert("violations".into(), violations.into());
    }
    println!("{line}");
}
