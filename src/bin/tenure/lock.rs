//! `tenure lock NAME -- CMD`.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tenure::runtime::Instant;
use tenure::{Client, Error, ErrorKind, LockGuard};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::args::LockArgs;
use crate::exit;
use crate::guardian::{GUARDIAN, Order, Report, hand_over};
use crate::process::{adopt_orphans, all_gone, reap, signal_descendants, this_binary};
use crate::signals::Signals;

/// How long giving back may take once the command has ended.
const RELEASE: Duration = Duration::from_secs(5);
/// What a grace leaves of half a TTL: a renewal is due after a third of it, and takes its time; the
/// end has a margin, and before it the kill a lead.
const SLACK: Duration = Duration::from_millis(500);
/// How long the guardian has for what it was told, before its work is done from here.
const GUARDIAN_PATIENCE: Duration = Duration::from_millis(100);

/// Runs the command under the lock; the exit code.
pub(crate) async fn run(client: &Client, args: &LockArgs, signals: &mut Signals) -> u8 {
    let longest = (args.ttl / 2).saturating_sub(SLACK);
    let grace = args.grace.unwrap_or(longest.min(args.ttl / 5));
    if grace > longest {
        eprintln!(
            "tenure: with a TTL of {:?} the grace is at most {longest:?}, not {grace:?}: it would \
             begin before a renewal is late",
            args.ttl
        );
        return exit::USAGE;
    }
    let guard = match acquire(client, args, signals).await {
        Ok(guard) => guard,
        Err(code) => {
            // What the acquire left behind is taken back before we go.
            client.shutdown(RELEASE).await;
            return code;
        }
    };
    let code = match Running::start(&guard, args, grace) {
        Ok(running) => running.watch(&guard, signals).await,
        Err(_) if !guard.is_held() => lost(&guard, "the command was not started"),
        Err(error) => {
            eprintln!("tenure: the guardian cannot start: {error}");
            exit::SOFTWARE
        }
    };
    let patience = if guard.is_held() {
        RELEASE
    } else {
        RELEASE / 5
    };
    give_back(guard).await;
    client.shutdown(patience).await;
    code
}

async fn acquire(client: &Client, args: &LockArgs, signals: &mut Signals) -> Result<LockGuard, u8> {
    let lock = if args.raw {
        client.raw_lock(&args.name)
    } else {
        client.lock(&args.name)
    };
    let lock = lock.ttl(args.ttl);
    let name = &args.name;
    let acquiring = async {
        if args.try_once {
            return match lock.try_acquire().await {
                Ok(Some(guard)) => Ok(guard),
                Ok(None) => {
                    eprintln!("tenure: the lock {name:?} is taken");
                    Err(exit::NOT_ACQUIRED)
                }
                Err(error) => Err(refused(&error)),
            };
        }
        let acquire = lock.acquire();
        let acquire = match args.timeout {
            Some(timeout) => acquire.timeout(timeout),
            None => acquire,
        };
        acquire.await.map_err(|error| refused(&error))
    };
    tokio::select! {
        biased;
        signal = signals.next() => Err((128 + signal) as u8),
        outcome = acquiring => outcome,
    }
}

fn refused(error: &Error) -> u8 {
    eprintln!("tenure: {error}");
    match error.kind() {
        ErrorKind::Timeout | ErrorKind::Lost => exit::NOT_ACQUIRED,
        _ => exit::code(error),
    }
}

async fn give_back(guard: LockGuard) {
    if !guard.is_held() {
        return;
    }
    let key = guard.key().clone();
    match tokio::time::timeout(RELEASE, guard.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("tenure: {error}"),
        Err(_) => eprintln!("tenure: {key} could not be deleted in time: it ends with its TTL"),
    }
}

/// The command, by way of its guardian.
struct Running {
    guardian: Child,
    orders: OwnedWriteHalf,
    reports: Lines<BufReader<OwnedReadHalf>>,
    told: Instant,
}

impl Running {
    fn start(guard: &LockGuard, args: &LockArgs, grace: Duration) -> io::Result<Self> {
        adopt_orphans();
        let deadline = guard.deadline().ok_or(io::ErrorKind::TimedOut)?;
        let (ours, theirs) = StdUnixStream::pair()?;
        let guardian = this_binary()?
            .arg(GUARDIAN)
            .arg(grace.as_millis().to_string())
            .args(&args.command)
            .env("TENURE_NAME", &args.name)
            .env("TENURE_KEY", guard.key().as_str())
            .env("TENURE_TOKEN", guard.token().to_string())
            .env_remove("TENURE_PASSWORD")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // A terminal's signals and a kill of our group must not reach it.
            .process_group(0)
            .spawn()?;
        hand_over(&ours, io::stdin(), Order::Deadline(deadline))?;
        ours.set_nonblocking(true)?;
        let (reports, orders) = UnixStream::from_std(ours)?.into_split();
        Ok(Self {
            guardian,
            orders,
            reports: BufReader::new(reports).lines(),
            told: deadline,
        })
    }

    /// Until the command has ended; the exit code.
    async fn watch(mut self, guard: &LockGuard, signals: &mut Signals) -> u8 {
        loop {
            tokio::select! {
                biased;
                line = self.reports.next_line() => {
                    let report = line.ok().flatten();
                    return match report.as_deref().and_then(Report::parse) {
                        Some(Report::Ended(end)) if guard.is_held() => end.code(),
                        Some(Report::Ended(_)) => lost(guard, "the command ended at that time"),
                        Some(Report::Stopped(_)) if guard.is_held() => asked(guard),
                        Some(Report::Stopped(_)) => lost(guard, STOPPED),
                        None => self.bereft(guard).await,
                    };
                }
                extended = guard.extended(self.told) => match extended {
                    Some(deadline) => {
                        self.told = deadline;
                        self.order(Order::Deadline(deadline)).await;
                    }
                    None => return self.stop(guard).await,
                },
                signal = signals.next() => self.order(Order::Signal(signal)).await,
            }
        }
    }

    /// The lock is lost.
    async fn stop(mut self, guard: &LockGuard) -> u8 {
        self.order(Order::Kill).await;
        let report = self.reports.next_line();
        let reported = tokio::time::timeout(GUARDIAN_PATIENCE, report).await;
        // The end of the pipe is no report: what the guardian had in its care may live.
        if !matches!(reported, Ok(Ok(Some(_)))) {
            self.end_all().await;
        }
        lost(guard, STOPPED)
    }

    /// The guardian is gone without a word; the kernel has killed the command.
    async fn bereft(mut self, guard: &LockGuard) -> u8 {
        let status = self.guardian.try_wait().ok().flatten();
        self.end_all().await;
        if status.and_then(|it| it.code()) == Some(exit::LOST.into()) {
            return lost(guard, "the command was not started");
        }
        eprintln!("tenure: the guardian was killed; so was the command");
        exit::SOFTWARE
    }

    /// Kills the guardian and everything else that descends from here.
    async fn end_all(&mut self) {
        let _ = self.guardian.kill();
        loop {
            signal_descendants(Signal::KILL);
            reap();
            if all_gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn order(&mut self, order: Order) {
        // A guardian that is gone is noticed by its silence.
        let _ = self.orders.write_all(order.line().as_bytes()).await;
    }
}

const STOPPED: &str = "the command was stopped";

fn lost(guard: &LockGuard, then: &str) -> u8 {
    eprintln!("tenure: the lock {} was lost; {then}", guard.key());
    exit::LOST
}

/// The command was told in time, and has ended before the deadline.
fn asked(guard: &LockGuard) -> u8 {
    eprintln!(
        "tenure: no renewal of the lock {} was answered in time: the command was stopped before \
         the lock could be lost",
        guard.key()
    );
    exit::LOST
}
