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
use tenure::runtime::{Clock, Instant};
use tenure::{Hold, Job, Key};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::exit;
use crate::guardian::{GUARDIAN, LEAD, Order, Report, hand_over};
use crate::process::{End, adopt_orphans, all_gone, reap, signal_strays, this_binary};
use crate::signals::Signals;

/// What a grace leaves of half a TTL: a renewal is due after a third of it, and takes its time; the
/// end has a margin, and before it the kill a lead.
const SLACK: Duration = Duration::from_millis(500);
/// How long the guardian has for what it was told, before its work is done from here.
const GUARDIAN_PATIENCE: Duration = Duration::from_millis(100);
/// How often it is looked whether the deadline has moved otherwise than by a renewal of a lock.
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

    /// The deadline once it is another than `known`: later, or nearer, as it is when the servers'
    /// clocks turn out to differ by more than before. `None` once it is lost.
    async fn moved(&self, known: Instant) -> Option<Instant> {
        loop {
            let deadline = self.deadline()?;
            if deadline != known {
                return Some(deadline);
            }
            let news = async {
                match self {
                    Self::Hold(hold) => drop(hold.extended(known).await),
                    Self::Job(job) => drop(job.lost().await),
                }
            };
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep(GLANCE) => {}
            }
        }
    }

    /// The grace for a command that begins now. Waits for a renewal, if the command would be asked
    /// to end before the next one can have come; what does not fit even after that is cut. `None`
    /// once it is lost.
    async fn room(&self, grace: Duration) -> Option<Duration> {
        let clock = Clock::boot();
        let mut is_final = false;
        loop {
            let deadline = self.deadline()?;
            let left = deadline.since(clock.now());
            let longest = longest(left);
            if grace <= longest {
                return Some(grace);
            }
            if is_final {
                eprintln!(
                    "tenure: {} is held for {left:?} at a time: the grace is {longest:?}, not {grace:?}",
                    self.key()
                );
                return Some(longest);
            }
            is_final = match self {
                Self::Hold(_) => self.moved(deadline).await? > deadline,
                // No renewal moves the end of what a job may take.
                Self::Job(_) => {
                    let moved = tokio::time::timeout(left / 2, self.moved(deadline)).await;
                    moved
                        .ok()
                        .is_none_or(|it| it.is_some_and(|it| it > deadline))
                }
            };
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

/// The same for a command that may take so long: the grace is a part of that.
pub(crate) fn grace_within(
    max_run: Duration,
    ttl: Duration,
    asked: Option<Duration>,
) -> Result<Duration, u8> {
    let longest = (max_run / 2).saturating_sub(LEAD);
    let grace = match asked {
        Some(_) => grace(ttl, asked)?,
        None => grace(ttl, None)?.min(longest).min(max_run / 5),
    };
    if grace > longest {
        eprintln!(
            "tenure: of {max_run:?} that a command may run the grace is at most {longest:?}, not \
             {grace:?}"
        );
        return Err(exit::USAGE);
    }
    Ok(grace)
}

/// The longest grace that begins no sooner than the next renewal is due, which is when a third of what
/// is left is over at the latest.
fn longest(left: Duration) -> Duration {
    (left - left / 3).saturating_sub(LEAD)
}

/// Runs a command until it has ended.
pub(crate) async fn run(term: &Term<'_>, task: &Task<'_>, orders: Orders<'_>) -> Outcome {
    let Some(grace) = term.room(task.grace).await else {
        return Outcome::Lost(NOT_STARTED);
    };
    match Running::start(term, task, grace) {
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
    fn start(term: &Term<'_>, task: &Task<'_>, grace: Duration) -> io::Result<Self> {
        adopt_orphans();
        let deadline = term.deadline().ok_or(io::ErrorKind::TimedOut)?;
        let (ours, theirs) = StdUnixStream::pair()?;
        let guardian = this_binary()?
            .arg(GUARDIAN)
            .arg(grace.as_millis().to_string())
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
                moved = term.moved(self.told) => match moved {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_grace_begins_before_a_renewal_is_due_however_wide_the_margin_of_a_term() {
        let ttl = Duration::from_secs(10);
        let asked = grace(ttl, Some(Duration::from_millis(4_500))).unwrap();
        for skew in [0, 500, 2_000, 4_900].map(Duration::from_millis) {
            // What is left after a renewal.
            let left = ttl - ttl / 200 - Duration::from_millis(20) - skew;
            let grace = asked.min(longest(left));
            assert!(left - LEAD - grace >= left / 3, "{skew:?}");
            assert!(grace == asked || skew > Duration::from_secs(1));
        }
    }

    #[test]
    fn a_grace_is_a_part_of_what_a_command_may_take() {
        let secs = Duration::from_secs;
        assert_eq!(grace_within(secs(300), secs(10), None), Ok(secs(2)));
        assert_eq!(grace_within(secs(5), secs(60), None), Ok(secs(1)));
        assert_eq!(grace_within(secs(5), secs(60), Some(secs(2))), Ok(secs(2)));
        assert_eq!(
            grace_within(secs(5), secs(60), Some(secs(3))),
            Err(exit::USAGE)
        );
        let tiny = grace_within(Duration::from_millis(100), secs(10), None);
        assert_eq!(tiny, Ok(Duration::ZERO));
    }
}
