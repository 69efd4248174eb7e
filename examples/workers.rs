//! Three workers, one lock; the holder is killed, the next takes over.
//!
//! ```sh
//! cargo run --example workers                             # embedded store, workers are threads
//! cargo run --example workers -- etcd://127.0.0.1:2379    # etcd, workers are processes
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::Clock;
use tenure::{Client, Result};

const TTL: Duration = Duration::from_secs(3);
const WORKERS: usize = 3;

/// What a service would contain: take the lock, work while it is held, give it back.
async fn work(client: Client, mut report: impl FnMut(u64)) -> Result<()> {
    let lock = client.lock("reports/nightly").ttl(TTL);
    loop {
        let guard = lock.acquire().await?;
        report(guard.token());
        // Stops at once when the lock is lost; the token goes to whatever the work writes to.
        guard
            .run(tokio::time::sleep(Duration::from_millis(200)))
            .await?;
        guard.release().await?;
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] | ["embedded:"] => {
            println!("embedded store, {WORKERS} threads, TTL {TTL:?}");
            let store = Embedded::new();
            tell_story(|number, reports| Ok(Worker::thread(number, store.clone(), reports)))
        }
        ["--worker", url] => {
            let runtime = tokio::runtime::Runtime::new()?;
            let outcome = runtime.block_on(async {
                work(Client::connect(url).await?, |token| {
                    println!("{token}");
                    // The parent is gone when this fails, and then so are we.
                    let _ = std::io::stdout().flush();
                })
                .await
            });
            Ok(outcome?)
        }
        [url] => {
            println!("{url}, {WORKERS} processes, TTL {TTL:?}");
            tell_story(|number, reports| Worker::process(number, url, reports))
        }
        _ => Err("usage: workers [etcd://host:port]".into()),
    }
}

/// Watches six handoffs, kills the seventh holder, and watches three more.
fn tell_story(
    start: impl Fn(
        usize,
        Sender<(usize, u64)>,
    ) -> std::result::Result<Worker, Box<dyn std::error::Error>>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (reports, inbox) = channel();
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(Some(start(number, reports.clone())?));
    }
    drop(reports);
    for _ in 0..6 {
        next_holder(&inbox)?;
    }
    let (victim, last) = next_holder(&inbox)?;
    println!("worker {victim} is killed while it holds token {last}");
    if let Some(worker) = workers.get_mut(victim).and_then(Option::take) {
        worker.kill();
    }
    let clock = Clock::boot();
    let killed = clock.now();
    let (_, token) = next_holder(&inbox)?;
    println!(
        "taken over after {:.1} s",
        clock.now().since(killed).as_secs_f64()
    );
    assert!(token > last, "tokens rise");
    next_holder(&inbox)?;
    next_holder(&inbox)?;
    workers.into_iter().flatten().for_each(Worker::kill);
    Ok(())
}

fn next_holder(
    inbox: &Receiver<(usize, u64)>,
) -> std::result::Result<(usize, u64), Box<dyn std::error::Error>> {
    let (worker, token) = inbox
        .recv_timeout(TTL * 3)
        .map_err(|_| "nobody takes the lock")?;
    println!("worker {worker} holds the lock, token {token}");
    Ok((worker, token))
}

/// A worker that can be killed: nothing is released, nothing is cleaned up.
enum Worker {
    Thread(tokio::runtime::Runtime),
    Process(Child),
}

impl Worker {
    fn thread(number: usize, store: Embedded, reports: Sender<(usize, u64)>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no thread for a worker: {error}"));
        runtime.spawn(async move {
            let client = Client::new(store);
            let outcome = work(client, |token| {
                // The story is over when nobody listens any more.
                let _ = reports.send((number, token));
            })
            .await;
            eprintln!("worker {number}: {outcome:?}");
        });
        Self::Thread(runtime)
    }

    fn process(
        number: usize,
        url: &str,
        reports: Sender<(usize, u64)>,
    ) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(["--worker", url])
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let tokens = BufReader::new(stdout)
                    .lines()
                    .map_while(std::result::Result::ok);
                for token in tokens.filter_map(|line| line.parse().ok()) {
                    if reports.send((number, token)).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self::Process(child))
    }

    fn kill(self) {
        match self {
            Self::Thread(runtime) => runtime.shutdown_background(),
            Self::Process(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
