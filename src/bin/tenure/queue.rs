//! `tenure queue`: pushing jobs, and looking after those that are there.

use std::io::{BufRead as _, BufReader, Read as _, Stdin};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tenure::runtime::Clock;
use tenure::{Client, Error, ErrorKind, JobId, JobInfo, JobState, Pushed, Queue, Result, Who};

use crate::args::{Chosen, Format, Pushing, QueueArgs, QueueCommand, QueueName};
use crate::exit;
use crate::out::{date, millis, one_line, print, say, table};
use crate::signals::Signals;
use crate::work;

/// So many lines are read before they are pushed.
const LINES: usize = 1_024;

/// Carries out a verb; the exit code.
pub(crate) async fn run(
    client: &Client,
    args: &QueueArgs,
    format: Format,
    signals: &mut Signals,
) -> u8 {
    if let QueueCommand::Work(working) = &args.command {
        return work::run(client, working, signals).await;
    }
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        outcome = verb(client, &args.command, format) => outcome,
    };
    exit::reported(outcome)
}

pub(crate) fn open(client: &Client, name: &QueueName) -> Queue {
    if name.raw {
        client.raw_queue(&name.name)
    } else {
        client.queue(&name.name)
    }
}

async fn verb(client: &Client, command: &QueueCommand, format: Format) -> Result<u8> {
    match command {
        QueueCommand::Push(args) if args.lines => return push_lines(client, args, format).await,
        QueueCommand::Push(args) => {
            let payload = match &args.payload {
                Some(payload) => payload.clone().into_bytes(),
                None => read_all().await?,
            };
            let push = open(client, &args.queue).push(payload);
            let push = push.priority(args.priority);
            let push = match &args.id {
                Some(id) => push.id(id),
                None => push,
            };
            let push = match args.delay {
                Some(delay) => push.delay(delay),
                None => push,
            };
            tell_pushed(&push.await?, format);
        }
        QueueCommand::Ls(name) => tell_jobs(&open(client, name).jobs().await?, format),
        QueueCommand::Dead(name) => tell_jobs(&open(client, name).dead().await?, format),
        QueueCommand::Stats(name) => {
            let stats = open(client, name).stats().await?;
            let age = stats.oldest_age;
            match format {
                Format::Json => print(&json!({
                    "ready": stats.ready, "claimed": stats.claimed, "delayed": stats.delayed,
                    "dead": stats.dead, "oldest_age_ms": age.map(millis),
                })),
                Format::Human => {
                    let counts = [stats.ready, stats.claimed, stats.delayed, stats.dead];
                    let [ready, claimed, delayed, dead] = counts.map(|it| it.to_string());
                    let head = ["READY", "CLAIMED", "DELAYED", "DEAD", "OLDEST"];
                    table(head, &[[ready, claimed, delayed, dead, since(age)]]);
                }
            }
        }
        QueueCommand::Requeue(chosen) => return each(client, chosen, format, true).await,
        QueueCommand::Purge(chosen) => return each(client, chosen, format, false).await,
        QueueCommand::Work(_) => {}
    }
    Ok(exit::DONE)
}

/// Requeues or purges; 1 if one of those that were named is not dead.
async fn each(client: &Client, chosen: &Chosen, format: Format, requeue: bool) -> Result<u8> {
    let queue = open(client, &chosen.queue);
    let word = if requeue { "requeued" } else { "purged" };
    let (mut count, mut code) = (0, exit::DONE);
    let clock = Clock::boot();
    let end = chosen.timeout.map(|limit| clock.now() + limit);
    if chosen.all {
        let all = if requeue {
            queue.requeue_all()
        } else {
            queue.purge_dead()
        };
        count = match chosen.timeout {
            Some(limit) => all.timeout(limit).await?,
            None => all.await?,
        };
    }
    for id in &chosen.ids {
        let id: JobId = id.parse()?;
        let one = if requeue {
            queue.requeue(&id)
        } else {
            queue.purge(&id)
        };
        let outcome = match end {
            Some(end) => one.timeout(end.since(clock.now())).await,
            None => one.await,
        };
        match outcome {
            Ok(()) => count += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("tenure: {error}");
                code = exit::FALSE;
            }
            Err(error) => return Err(error),
        }
    }
    match format {
        Format::Human => say(&format!("{count} {word}")),
        Format::Json => print(&json!({word: count})),
    }
    Ok(code)
}

/// Each line a job, in their order; ends with the first that is not pushed.
async fn push_lines(client: &Client, args: &Pushing, format: Format) -> Result<u8> {
    let queue = open(client, &args.queue);
    let mut input = BufReader::new(std::io::stdin());
    let mut number = 0_u64;
    loop {
        let batch;
        (input, batch) = apart(move || read_lines(&mut input).map(|lines| (input, lines))).await?;
        if batch.is_empty() {
            return Ok(exit::DONE);
        }
        let answers = queue.push_all(batch).priority(args.priority).await;
        let mut failed = None;
        for answer in answers {
            number += 1;
            match answer {
                Ok(pushed) => tell_pushed(&pushed, format),
                Err(error) => {
                    eprintln!("tenure: line {number}: {error}");
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            return Ok(exit::code(&error));
        }
    }
}

fn read_lines(input: &mut BufReader<Stdin>) -> std::io::Result<Vec<Bytes>> {
    let mut lines = Vec::new();
    while lines.len() < LINES {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        line.pop_if(|last| *last == b'\n');
        lines.push(line.into());
        // What is there goes out together, and does not wait for what comes later.
        if input.buffer().is_empty() {
            break;
        }
    }
    Ok(lines)
}

async fn read_all() -> Result<Vec<u8>> {
    apart(|| {
        let mut payload = Vec::new();
        std::io::stdin().read_to_end(&mut payload)?;
        Ok(payload)
    })
    .await
}

/// Reads on a thread of its own: who writes may take its time, and signals are heard meanwhile.
async fn apart<T: Send + 'static>(
    read: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let read = tokio::task::spawn_blocking(read).await;
    let read = read.map_err(std::io::Error::other).and_then(|it| it);
    read.map_err(unreadable)
}

fn unreadable(cause: std::io::Error) -> Error {
    Error::new(ErrorKind::InvalidValue, "standard input cannot be read").caused_by(cause)
}

fn tell_pushed(pushed: &Pushed, format: Format) {
    match format {
        Format::Human if pushed.duplicate => say(&format!("{} (there already)", pushed.id)),
        Format::Human => say(pushed.id.as_str()),
        Format::Json => print(&json!({
            "id": pushed.id.as_str(), "index": pushed.index.get(), "duplicate": pushed.duplicate,
        })),
    }
}

fn tell_jobs(jobs: &[JobInfo], format: Format) {
    match format {
        Format::Json => jobs.iter().for_each(|job| print(&job_json(job))),
        Format::Human if jobs.is_empty() => {}
        Format::Human => {
            let rows: Vec<_> = jobs.iter().map(row).collect();
            table(["JOB", "STATE", "ATTEMPTS", "AGE", "BYTES", "WHY"], &rows);
        }
    }
}

fn row(job: &JobInfo) -> [String; 6] {
    let (state, why) = match &job.state {
        JobState::Ready => ("ready", String::new()),
        JobState::Delayed { until } => ("delayed", format!("until {}", date(*until))),
        JobState::Claimed { by } => (
            "claimed",
            by.who.as_ref().map_or_else(
                || format!("by {:016x}", by.session),
                |who| format!("by {who}"),
            ),
        ),
        JobState::Dead { reason } => ("dead", reason.clone()),
        _ => ("?", String::new()),
    };
    [
        job.id.to_string(),
        state.to_owned(),
        job.attempts.to_string(),
        since(job.age),
        job.size.to_string(),
        one_line(&why),
    ]
}

fn job_json(job: &JobInfo) -> Value {
    let mut line = json!({
        "id": job.id.as_str(), "attempts": job.attempts, "age_ms": job.age.map(millis),
        "bytes": job.size,
    });
    let more = match &job.state {
        JobState::Ready => json!({"state": "ready"}),
        JobState::Delayed { until } => json!({"state": "delayed", "until_ms": millis(*until)}),
        JobState::Claimed { by } => json!({
            "state": "claimed", "session": format!("{:016x}", by.session),
            "host": by.who.as_ref().map(Who::host), "pid": by.who.as_ref().map(Who::pid),
        }),
        JobState::Dead { reason } => json!({"state": "dead", "reason": reason}),
        _ => json!({}),
    };
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    line
}

/// How long ago, for people.
fn since(age: Option<Duration>) -> String {
    age.map_or_else(
        || "-".to_owned(),
        |age| humantime::format_duration(Duration::from_secs(age.as_secs())).to_string(),
    )
}
