//! A command that runs under something that can be lost, by way of a guardian.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tenure::runtime::Instant;
use tenure::{Hold, Job, Key};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::exit;
use crate::guardian::{GUARDIAN, Order, Report, hand_over};
use crate::process::{End, adopt_orphans, all_gone, reap, signal_strays, this_binary};
use crate::signals::Signals;

/// What a grace leaves of half a TTL: a renewal is due after a third of it, and takes its time; the
/// end has a margin, and before it the kill a lead.
const SLACK: Duration = Duration::from_millis(500);
/// How long the guardian has for what it was told, before its work is done from here.
const GUARDIAN_PATIENCE: Duration = Duration::from_millis(100);
/// How often it is looked whether the deadline of a job has moved.
const GLANCE: Duration = Duration::from_millis(50);
/// So often nothing is found before it is believed: a look can miss one whose parent ends.
const LOOKS: u32 = 10;

/// What a command runs under.
pub(crate) enum Term<'a> {
    /// A lock, a leadership, a permit.
    Hold(&'a Hold),
    /// The delivery of a job.
    Job(&'a Job),
}

impl Term<'_> {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Hold(hold) => hold.key(),
            Self::Job(job) => job.key(),
        }
    }

    fn token(&self) -> u64 {
        match self {
            Self::Hold(hold) => hold.token(),
            Self::Job(job) => job.token(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Hold(hold) => hold.deadline(),
            Self::Job(job) => job.deadline(),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        match self {
            Self::Hold(hold) => hold.is_held(),
            Self::Job(job) => job.is_held(),
        }
    }

    /// The deadline once it is later than `known`; `None` once it is lost.
    async fn extended(&self, known: Instant) -> Option<Instant> {
        let job = match self {
            Self::Hold(hold) => return hold.extended(known).await,
            Self::Job(job) => job,
        };
        loop {
            match job.deadline()? {
                deadline if deadline > known => return Some(deadline),
                _ => {}
            }
            tokio::select! {
                biased;
                _ = job.lost() => return None,
                () = tokio::time::sleep(GLANCE) => {}
            }
        }
    }
}

/// What is to run, and with what.
pub(crate) struct Task<'a> {
    pub(crate) command: &'a [OsString],
    /// How long before the deadline it is asked to end.
    pub(crate) grace: Duration,
    /// What it finds in its environment besides the key and the token.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// Its standard input.
    pub(crate) stdin: BorrowedFd<'a>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By itself, with all that it left behind.
    Ended(End),
    /// It was told that the deadline is near, and ended before it.
    Asked,
    /// What it ran under was lost: it was stopped, or had ended at that time.
    Lost(&'static str),
    /// It was told to end.
    Killed,
    /// Its guardian was killed, and it was, too.
    Bereft,
    /// There was no guardian.
    NotStarted,
}

/// Who gives orders while it runs.
pub(crate) enum Orders<'a> {
    /// Signals, which are passed on.
    Signals(&'a mut Signals),
    /// Whoever sets this ends it.
    Kill(watch::Receiver<bool>),
}

impl Orders<'_> {
    async fn next(&mut self) -> Order {
        match self {
            Self::Signals(signals) => Order::Signal(signals.next().await),
            Self::Kill(kill) => {
                // One that is dropped gives no orders.
                if kill.wait_for(|it| *it).await.is_err() {
                    std::future::pending::<()>().await;
                }
                Order::Kill
            }
        }
    }
}

/// The grace that goes with a TTL; `Err` is the exit code for one that does not.
pub(crate) fn grace(ttl: Duration, asked: Option<Duration>) -> Result<Duration, u8> {
    let longest = (ttl / 2).saturating_sub(SLACK);
    let grace = asked.unwrap_or(longest.min(ttl / 5));
    if grace > longest {
        eprintln!(
            "tenure: with a TTL of {ttl:?} the grace is at most {longest:?}, not {grace:?}: it would \
             begin before a renewal is late"
        );
        return Err(exit::USAGE);
    }
    Ok(grace)
}

/// Runs a command until it has ended.
pub(crate) async fn run(term: &Term<'_>, task: &Task<'_>, orders: Orders<'_>) -> Outcome {
    match Running::start(term, task) {
        Ok(running) => running.watch(term, orders).await,
        Err(_) if !term.is_held() => Outcome::Lost(NOT_STARTED),
        Err(error) => {
            eprintln!("tenure: the guardian cannot start: {error}");
            Outcome::NotStarted
        }
    }
}

/// The guardians of this process: what descends from one is its own to end.
static GUARDIANS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn guardians() -> MutexGuard<'static, BTreeSet<u32>> {
    GUARDIANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command, by way of its guardian.
struct Running {
    guardian: Child,
    orders: OwnedWriteHalf,
    reports: Lines<BufReader<OwnedReadHalf>>,
    told: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The end of the pipe is the guardian's order to kill.
        guardians().remove(&self.guardian.id());
    }
}

impl Running {
    fn start(term: &Term<'_>, task: &Task<'_>) -> io::Result<Self> {
        adopt_orphans();
        let deadline = term.deadline().ok_or(io::ErrorKind::TimedOut)?;
        let (ours, theirs) = StdUnixStream::pair()?;
        let guardian = this_binary()?
            .arg(GUARDIAN)
            .arg(task.grace.as_millis().to_string())
            .args(task.command)
            .env("TENURE_KEY", term.key().as_str())
            .env("TENURE_TOKEN", term.token().to_string())
            .envs(task.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("TENURE_PASSWORD")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // A terminal's signals and a kill of our group must not reach it.
            .process_group(0)
            .spawn()?;
        guardians().insert(guardian.id());
        hand_over(&ours, task.stdin, Order::Deadline(deadline))?;
        ours.set_nonblocking(true)?;
        let (reports, orders) = UnixStream::from_std(ours)?.into_split();
        Ok(Self {
            guardian,
            orders,
            reports: BufReader::new(reports).lines(),
            told: deadline,
        })
    }

    /// Until the command has ended.
    async fn watch(mut self, term: &Term<'_>, mut orders: Orders<'_>) -> Outcome {
        let mut killed = false;
        loop {
            tokio::select! {
                biased;
                line = self.reports.next_line() => {
                    let report = line.ok().flatten();
                    let report = report.as_deref().and_then(Report::parse);
                    let Some(report) = report else {
                        return self.bereft().await;
                    };
                    self.wait().await;
                    return match report {
                        _ if killed => Outcome::Killed,
                        Report::Ended(end) if term.is_held() => Outcome::Ended(end),
                        Report::Ended(_) => Outcome::Lost("the command ended at that time"),
                        Report::Stopped(_) if term.is_held() => Outcome::Asked,
                        Report::Stopped(_) => Outcome::Lost(STOPPED),
                    };
                }
                extended = term.extended(self.told) => match extended {
                    Some(deadline) => {
                        self.told = deadline;
                        self.order(Order::Deadline(deadline)).await;
                    }
                    None => {
                        self.stop().await;
                        return Outcome::Lost(STOPPED);
                    }
                },
                order = orders.next(), if !killed => {
                    killed = matches!(order, Order::Kill);
                    self.order(order).await;
                }
            }
        }
    }

    /// What it ran under is lost.
    async fn stop(mut self) {
        self.order(Order::Kill).await;
        let report = self.reports.next_line();
        let reported = tokio::time::timeout(GUARDIAN_PATIENCE, report).await;
        // The end of the pipe is no report: what the guardian had in its care may live.
        if matches!(reported, Ok(Ok(Some(_)))) {
            self.wait().await;
        } else {
            self.end_all().await;
        }
    }

    /// The guardian is gone without a word; the kernel has killed the command.
    async fn bereft(mut self) -> Outcome {
        let status = self.guardian.try_wait().ok().flatten();
        self.end_all().await;
        if status.and_then(|it| it.code()) == Some(exit::LOST.into()) {
            return Outcome::Lost(NOT_STARTED);
        }
        Outcome::Bereft
    }

    /// Kills the guardian, and everything else that descends from here and from no other guardian.
    async fn end_all(&mut self) {
        let others = {
            let mut guardians = guardians();
            guardians.remove(&self.guardian.id());
            guardians.clone()
        };
        let _ = self.guardian.kill();
        let mut empty = 0;
        while empty < LOOKS {
            let found = signal_strays(&others, Signal::KILL);
            if others.is_empty() {
                reap();
                if all_gone() {
                    return;
                }
            } else {
                // What has ended is still seen until somebody takes note; the kernel says when
                // there is nothing only while there are no others.
                let _ = self.guardian.try_wait();
                empty = if found { 0 } else { empty + 1 };
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes note of its end: it has said its last word.
    async fn wait(&mut self) {
        for _ in 0..LOOKS * 10 {
            if !matches!(self.guardian.try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn order(&mut self, order: Order) {
        // A guardian that is gone is noticed by its silence.
        let _ = self.orders.write_all(order.line().as_bytes()).await;
    }
}

const STOPPED: &str = "the command was stopped";
const NOT_STARTED: &str = "the command was not started";
