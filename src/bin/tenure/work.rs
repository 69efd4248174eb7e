//! `tenure queue work`: a command for each job.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tenure::{Client, Job, Queue, Result};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::args::Working;
use crate::exit;
use crate::queue::open;
use crate::runner::{self, Orders, Outcome, Task, Term};
use crate::signals::Signals;

/// How long giving back may take.
const RELEASE: Duration = Duration::from_secs(5);
/// How often it is looked whether the queue is empty.
const LOOK: Duration = Duration::from_millis(250);

/// Does jobs until it is told to stop; the exit code.
pub(crate) async fn run(client: &Client, args: &Working, signals: &mut Signals) -> u8 {
    let grace = match runner::grace_within(args.max_run, args.ttl, args.grace) {
        Ok(grace) => grace,
        Err(code) => return code,
    };
    let queue = open(client, &args.queue).ttl(args.ttl);
    let (stop, mut stopped) = watch::channel(false);
    let (kill, killed) = watch::channel(false);
    let worker = queue
        .worker()
        .concurrency(args.concurrency.into())
        .max_attempts(args.max_attempts)
        .max_run(args.max_run)
        .until(async move {
            let _ = stopped.wait_for(|it| *it).await;
        });
    let worker = match args.retry_delay {
        Some(delay) => worker.retry_delay(move |_| delay),
        None => worker,
    };
    let mut progress = worker.progress();
    let command = Arc::new(Command {
        name: args.queue.name.clone(),
        command: args.command.clone(),
        grace,
        killed,
    });
    // A delivery that is lost drops its handler; what the handler began must be seen to its end.
    let tasks = TaskTracker::new();
    let started = tasks.clone();
    let running = worker.run(move |job| {
        let command = command.clone();
        let ended = started.spawn(async move { command.run(job).await });
        async move { ended.await.unwrap_or_else(|error| Err(error.to_string())) }
    });
    let mut running = std::pin::pin!(running);
    let mut empty = std::pin::pin!(emptied(&queue, args.until_empty));
    let line = std::io::stderr().is_terminal();
    let mut signal_heard = None;
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut running => break outcome,
            signal = signals.next() => {
                if signal_heard.replace(signal).is_some() {
                    kill.send_replace(true);
                } else if line {
                    eprintln!("\ntenure: waiting for the commands that run; once more kills them");
                }
                stop.send_replace(true);
            }
            outcome = &mut empty, if !*stop.borrow() => {
                if let Err(error) = outcome {
                    eprintln!("tenure: {error}");
                }
                stop.send_replace(true);
            }
            Some(report) = progress.changed() => {
                if line {
                    eprint!(
                        "\r{} done, {} failed, {} given up, {} lost, {} running ",
                        report.acked, report.nacked, report.dead, report.lost, report.running
                    );
                }
            }
        }
    };
    if line {
        eprintln!();
    }
    tasks.close();
    tasks.wait().await;
    client.shutdown(RELEASE).await;
    match (outcome, signal_heard) {
        (Err(error), _) => {
            eprintln!("tenure: {error}");
            exit::code(&error)
        }
        // It was asked to end, and has done what it had begun.
        (Ok(_), None | Some(_)) if !*kill.borrow() => exit::DONE,
        (Ok(_), signal) => (128 + signal.unwrap_or(0)) as u8,
    }
}

/// Returns when there is nothing to do and nothing is being done.
async fn emptied(queue: &Queue, wanted: bool) -> Result<()> {
    if !wanted {
        return std::future::pending().await;
    }
    loop {
        match queue.stats().await {
            Ok(stats) if stats.ready + stats.claimed + stats.delayed == 0 => return Ok(()),
            Ok(_) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What runs for each job.
struct Command {
    name: String,
    command: Vec<std::ffi::OsString>,
    grace: Duration,
    killed: watch::Receiver<bool>,
}

impl Command {
    async fn run(&self, job: Job) -> Result<(), String> {
        let io = |error: std::io::Error| format!("no pipe for the payload: {error}");
        let (stdin, payload) = std::io::pipe().map_err(io)?;
        let payload = pipe::Sender::from_owned_fd(OwnedFd::from(payload)).map_err(io)?;
        let environment = vec![
            ("TENURE_NAME", self.name.clone().into()),
            ("TENURE_JOB_ID", job.id().as_str().into()),
            ("TENURE_JOB_ATTEMPT", job.attempt().to_string().into()),
        ];
        let term = Term::Job(&job);
        let running = async {
            let task = Task {
                command: &self.command,
                grace: self.grace,
                environment,
                stdin: stdin.as_fd(),
            };
            runner::run(&term, &task, Orders::Kill(self.killed.clone())).await
        };
        let feeding = async {
            let mut payload = payload;
            // A command that does not read all of it has its reasons.
            let _ = payload.write_all(job.payload()).await;
        };
        let mut running = std::pin::pin!(running);
        let outcome = tokio::select! {
            biased;
            outcome = &mut running => outcome,
            () = feeding => running.await,
        };
        match outcome {
            Outcome::Ended(end) if end.code() == 0 => Ok(()),
            Outcome::Ended(end) => Err(format!("the command ended with {}", end.code())),
            Outcome::Asked => Err("the command was stopped before the job could be lost".into()),
            Outcome::Lost(then) => Err(format!("the job was lost; {then}")),
            Outcome::Killed => Err("the command was killed: this consumer was told to end".into()),
            Outcome::Bereft => Err("the guardian of the command was killed".into()),
            Outcome::NotStarted => Err("the guardian of the command did not start".into()),
        }
    }
}
