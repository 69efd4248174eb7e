//! `tenure lock`, `elect` and `semaphore`: a command while something is held.

use std::ffi::OsString;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::time::Duration;

use tenure::{Client, Error, ErrorKind, Hold, Leadership, LockGuard, Permit, Result};

use crate::args::{ElectArgs, LockArgs, RunArgs, SemaphoreArgs};
use crate::exit;
use crate::runner::{self, Orders, Outcome, Task, Term};
use crate::signals::Signals;

/// How long giving back may take once the command has ended.
const RELEASE: Duration = Duration::from_secs(5);

/// What is held.
enum Held {
    Lock(LockGuard),
    Leadership(Leadership),
    Permit(Permit),
}

impl Held {
    async fn give_back(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leadership(leadership) => leadership.resign().await,
            Self::Permit(permit) => permit.release().await,
        }
    }
}

impl Deref for Held {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        match self {
            Self::Lock(guard) => guard,
            Self::Leadership(leadership) => leadership,
            Self::Permit(permit) => permit,
        }
    }
}

/// What is asked for, in words.
struct Wanted<'a> {
    /// `the lock "jobs"`.
    what: String,
    name: &'a str,
    run: &'a RunArgs,
    /// What others see of the holder.
    value: Option<OsString>,
}

/// Runs the command under the lock; the exit code.
pub(crate) async fn lock(client: &Client, args: &LockArgs, signals: &mut Signals) -> u8 {
    let lock = if args.raw {
        client.raw_lock(&args.name)
    } else {
        client.lock(&args.name)
    };
    let lock = lock.ttl(args.run.ttl);
    let wanted = Wanted::new("lock", &args.name, &args.run, None);
    let acquiring = async {
        if args.run.try_once {
            return Ok(lock.try_acquire().await?.map(Held::Lock));
        }
        let acquire = lock.acquire();
        let acquire = match args.run.timeout {
            Some(timeout) => acquire.timeout(timeout),
            None => acquire,
        };
        Ok(Some(Held::Lock(acquire.await?)))
    };
    run(client, &wanted, acquiring, signals).await
}

/// Runs the command while leading; the exit code.
pub(crate) async fn elect(client: &Client, args: &ElectArgs, signals: &mut Signals) -> u8 {
    let election = if args.raw {
        client.raw_election(&args.name)
    } else {
        client.election(&args.name)
    };
    let election = election.ttl(args.run.ttl);
    let value = args.value.clone().unwrap_or_else(host);
    let wanted = Wanted::new(
        "election",
        &args.name,
        &args.run,
        Some(value.clone().into()),
    );
    let campaigning = async {
        if args.run.try_once {
            let leadership = election.try_campaign(value).await?;
            return Ok(leadership.map(Held::Leadership));
        }
        let campaign = election.campaign(value);
        let campaign = match args.run.timeout {
            Some(timeout) => campaign.timeout(timeout),
            None => campaign,
        };
        Ok(Some(Held::Leadership(campaign.await?)))
    };
    run(client, &wanted, campaigning, signals).await
}
/// Runs the command while holding permits; the exit code.
pub(crate) async fn semaphore(client: &Client, args: &SemaphoreArgs, signals: &mut Signals) -> u8 {
    let semaphore = client.semaphore(&args.name).ttl(args.run.ttl);
    let semaphore = match args.permits {
        Some(permits) => semaphore.permits(permits),
        None => semaphore,
    };
    let wanted = Wanted::new("semaphore", &args.name, &args.run, None);
    let acquiring = async {
        if args.run.try_once {
            let permit = semaphore.try_acquire_many(args.weight).await?;
            return Ok(permit.map(Held::Permit));
        }
        let acquire = semaphore.acquire().weight(args.weight);
        let acquire = match args.run.timeout {
            Some(timeout) => acquire.timeout(timeout),
            None => acquire,
        };
        Ok(Some(Held::Permit(acquire.await?)))
    };
    run(client, &wanted, acquiring, signals).await
}
impl<'a> Wanted<'a> {
    fn new(kind: &str, name: &'a str, run: &'a RunArgs, value: Option<OsString>) -> Self {
        Self {
            what: format!("the {kind} {name:?}"),
            name,
            run,
            value,
        }
    }
}

async fn run(
    client: &Client,
    wanted: &Wanted<'_>,
    acquiring: impl Future<Output = Result<Option<Held>>>,
    signals: &mut Signals,
) -> u8 {
    let grace = match runner::grace(wanted.run.ttl, wanted.run.grace) {
        Ok(grace) => grace,
        Err(code) => return code,
    };
    let acquired = tokio::select! {
        biased;
        signal = signals.next() => Err((128 + signal) as u8),
        outcome = acquiring => match outcome {
            Ok(Some(held)) => Ok(held),
            Ok(None) => {
                eprintln!("tenure: {} is taken", wanted.what);
                Err(exit::NOT_ACQUIRED)
            }
            Err(error) => Err(refused(&error)),
        },
    };
    let held = match acquired {
        Ok(held) => held,
        Err(code) => {
            // What the acquire left behind is taken back before we go.
            client.shutdown(RELEASE).await;
            return code;
        }
    };
    let mut environment = vec![("TENURE_NAME", wanted.name.into())];
    environment.extend(wanted.value.clone().map(|value| ("TENURE_VALUE", value)));
    let stdin = io::stdin();
    let task = Task {
        command: &wanted.run.command,
        grace,
        environment,
        stdin: stdin.as_fd(),
    };
    let outcome = runner::run(&Term::Hold(&held), &task, Orders::Signals(signals)).await;
    let code = code(outcome, &wanted.what, &held);
    let patience = if held.is_held() { RELEASE } else { RELEASE / 5 };
    give_back(held).await;
    client.shutdown(patience).await;
    code
}

/// The exit code, and on standard error what is behind it.
fn code(outcome: Outcome, what: &str, held: &Held) -> u8 {
    let key = held.key();
    match outcome {
        Outcome::Ended(end) => end.code(),
        // The command was told in time, and has ended before the deadline.
        Outcome::Asked => {
            eprintln!(
                "tenure: no renewal of {key} was answered in time: the command was stopped before \
                 {what} could be lost"
            );
            exit::LOST
        }
        Outcome::Lost(then) => {
            eprintln!("tenure: {what} was lost ({key}); {then}");
            exit::LOST
        }
        Outcome::Bereft | Outcome::Killed => {
            eprintln!("tenure: the guardian was killed; so was the command");
            exit::SOFTWARE
        }
        Outcome::NotStarted => exit::SOFTWARE,
    }
}

fn refused(error: &Error) -> u8 {
    eprintln!("tenure: {error}");
    match error.kind() {
        ErrorKind::Timeout | ErrorKind::Lost => exit::NOT_ACQUIRED,
        _ => exit::code(error),
    }
}

async fn give_back(held: Held) {
    if !held.is_held() {
        return;
    }
    let key = held.key().clone();
    match tokio::time::timeout(RELEASE, held.give_back()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("tenure: {error}"),
        Err(_) => eprintln!("tenure: {key} could not be deleted in time: it ends with its TTL"),
    }
}

fn host() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}
