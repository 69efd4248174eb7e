//! The guardian: a small process between `tenure` and the command that it runs, so that the
//! command is dead before the lock can be another's, even when `tenure` was stopped or killed.
//!
//! ```text
//!  tenure ──deadlines, signals──▶ guardian ──▶ (starter, becomes) command and all it starts
//!     ▲ ◀──── how it ended ─────────┘
//!
//!  grace before the deadline   TERM to the command
//!  just before the deadline    KILL to all
//!  end of the pipe             KILL to all: `tenure` is gone
//! ```
//!
//! The guardian is this binary again. Its standard input is the pipe; the command's comes over the
//! pipe. It adopts orphans, so everything that descends from the command is found and ended. Should
//! the guardian itself be killed, the kernel kills the command (the starter asks it to before it
//! becomes the command), and `tenure` ends the rest.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tenure::runtime::{Clock, Instant};

use crate::exit;
use crate::process::{
    End, adopt_orphans, all_gone, reap, signal_descendants, signal_descendants_outside, this_binary,
};
use crate::signals::Signals;

/// What the binary is called with to be a guardian, and to be the command's starter.
pub(crate) const GUARDIAN: &str = "__guardian";
pub(crate) const STARTER: &str = "__starter";

/// How long before the deadline everything is killed.
pub(crate) const LEAD: Duration = Duration::from_millis(150);
/// How often the clock is read at least, and whenever something is due: timers stand still while a
/// machine sleeps.
const TICK: Duration = Duration::from_millis(100);
/// How often it is looked whether everything is gone.
const BUSY_TICK: Duration = Duration::from_millis(5);

/// What `tenure` tells the guardian, one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The lock is surely held until then: longer than was said before, or not so long.
    Deadline(Instant),
    /// Pass this signal on.
    Signal(i32),
    /// The lock is lost.
    Kill,
}

/// What the guardian tells `tenure`, one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The command has ended, and so has everything that it left behind.
    Ended(End),
    /// The same, after it was told to: the deadline was near, or the lock lost.
    Stopped(End),
}

impl Order {
    pub(crate) fn line(self) -> String {
        match self {
            Self::Deadline(at) => format!("deadline {}\n", nanos(at)),
            Self::Signal(number) => format!("signal {number}\n"),
            Self::Kill => "kill\n".to_owned(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "deadline" => Self::Deadline(Instant::new(Duration::from_nanos(rest.parse().ok()?))),
            "signal" => Self::Signal(rest.parse().ok()?),
            "kill" => Self::Kill,
            _ => return None,
        })
    }
}

impl Report {
    fn line(self) -> String {
        let (word, end) = match self {
            Self::Ended(end) => ("ended", end),
            Self::Stopped(end) => ("stopped", end),
        };
        match end {
            End::Code(code) => format!("{word} code {code}\n"),
            End::Signal(signal) => format!("{word} signal {signal}\n"),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (word, kind) = (words.next()?, words.next()?);
        let number = words.next()?.parse().ok()?;
        let end = match kind {
            "code" => End::Code(number),
            "signal" => End::Signal(number),
            _ => return None,
        };
        match word {
            "ended" => Some(Self::Ended(end)),
            "stopped" => Some(Self::Stopped(end)),
            _ => None,
        }
    }
}

/// Readings of the boot clock are the same in all processes of a machine.
fn nanos(at: Instant) -> u64 {
    let since = at.since(Instant::new(Duration::ZERO)).as_nanos();
    u64::try_from(since).unwrap_or(u64::MAX)
}

/// Hands over the first word and with it the command's standard input.
pub(crate) fn hand_over(pipe: &UnixStream, stdin: impl AsFd, order: Order) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut files = SendAncillaryBuffer::new(&mut space);
    let stdin = [stdin.as_fd()];
    files.push(SendAncillaryMessage::ScmRights(&stdin));
    let line = order.line();
    let sent = sendmsg(
        pipe,
        &[IoSlice::new(line.as_bytes())],
        &mut files,
        SendFlags::NOSIGNAL,
    )?;
    let mut pipe = pipe;
    pipe.write_all(line.as_bytes().get(sent..).unwrap_or_default())
}

/// The guardian's whole life. Its arguments: the grace in milliseconds, the command, its arguments.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let grace = arguments.next().and_then(|it| it.to_str()?.parse().ok());
    let Some(grace) = grace.map(Duration::from_millis) else {
        return ExitCode::from(64);
    };
    // A signal to all processes of a service, as its manager sends it, is for the command to heed:
    // here it is caught and dropped. Ignored, it would be so in the command, too.
    let deaf = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let listening = deaf
        .as_ref()
        .map(|it| it.block_on(async { Signals::listen() }));
    if let Err(error) | Ok(Err(error)) = listening.as_ref().map_err(|it| *it).map(Result::as_ref) {
        eprintln!("tenure: the guardian cannot start: {error}");
        return ExitCode::from(71);
    }
    match Guardian::start(grace, arguments) {
        Ok(mut guardian) => guardian.run(),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => ExitCode::from(exit::LOST),
        Err(error) => {
            eprintln!("tenure: the guardian cannot start: {error}");
            ExitCode::from(71)
        }
    }
}

/// Becomes the command, after asking the kernel to kill it when the guardian dies.
pub(crate) fn starter(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let guardian = arguments.next().and_then(|it| it.to_str()?.parse().ok());
    let Some(program) = arguments.next() else {
        return ExitCode::from(64);
    };
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // Had it died before that, nobody would kill us.
        let parent = rustix::process::getppid().map(|it| it.as_raw_nonzero().get());
        if parent != guardian {
            return ExitCode::from(71);
        }
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("tenure: {}: {error}", program.to_string_lossy());
    ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    })
}

struct Guardian {
    clock: Clock,
    pipe: UnixStream,
    events: Receiver<Event>,
    plan: Plan,
    command: Pid,
    ended: Option<End>,
    /// Whether the command was told to end.
    told: bool,
}

enum Event {
    Order(Order),
    /// `tenure` is gone, or talks nonsense.
    Orphaned,
    ChildEnded,
}

/// When to do what: pure.
#[derive(Clone, Copy, Debug)]
struct Plan {
    deadline: Instant,
    grace: Duration,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The command may run.
    Running,
    /// It has been asked to end.
    Asked,
    /// It is being killed, with all that descends from it.
    Killing,
}

impl Plan {
    /// What is due at `now`, if it is not done yet.
    fn due(&self, now: Instant) -> Stage {
        if now >= self.deadline - LEAD {
            Stage::Killing
        } else if now >= self.deadline - LEAD - self.grace {
            Stage::Asked.max(self.stage)
        } else {
            self.stage
        }
    }

    /// How long until the next stage is due.
    fn next(&self, now: Instant) -> Duration {
        let kill = self.deadline - LEAD;
        match self.stage {
            Stage::Running => (kill - self.grace).since(now),
            Stage::Asked | Stage::Killing => kill.since(now),
        }
    }
}

impl Guardian {
    fn start(grace: Duration, command: impl Iterator<Item = OsString>) -> io::Result<Self> {
        adopt_orphans();
        let pipe = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (first, stdin) = receive(&pipe)?;
        let (sender, events) = mpsc::channel();
        let reader = pipe.try_clone()?;
        let (orders, ends) = (sender.clone(), sender);
        std::thread::spawn(move || read_orders(first, reader, |event| orders.send(event).is_ok()));
        let Ok(Event::Order(Order::Deadline(deadline))) = events.recv() else {
            return Err(io::Error::other("no deadline came"));
        };
        let clock = Clock::boot();
        if clock.now() >= deadline - LEAD {
            // This process or `tenure` stood still for too long: the term is over.
            return Err(io::ErrorKind::TimedOut.into());
        }
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        // From the main thread, which lives as long as the process: the kernel takes the end of
        // the thread that started a child for the parent's.
        let child = this_binary()?
            .arg(STARTER)
            .arg(own)
            .args(command)
            .stdin(Stdio::from(stdin))
            .process_group(0)
            .spawn()?;
        let command = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let command = command.ok_or_else(|| io::Error::other("no process id"))?;
        std::thread::spawn(move || {
            // Looked at and not taken: the main thread takes note.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(command), options), Err(Errno::INTR)) {}
            let _ = ends.send(Event::ChildEnded);
        });
        Ok(Self {
            clock,
            pipe,
            events,
            plan: Plan {
                deadline,
                grace,
                stage: Stage::Running,
            },
            command,
            ended: None,
            told: false,
        })
    }

    fn run(&mut self) -> ExitCode {
        loop {
            self.advance();
            if let Some(end) = self.ended
                && self.rest_is_gone()
            {
                return self.report(end);
            }
            // Ending what is left is done by looking again and again.
            let busy = self.ended.is_some() || self.plan.stage == Stage::Killing;
            let tick = if busy {
                BUSY_TICK
            } else {
                // A grace can be shorter than a tick, and is to be one all the same.
                TICK.min(self.plan.next(self.clock.now()))
            };
            match self.events.recv_timeout(tick) {
                Ok(Event::Order(Order::Deadline(deadline))) => {
                    // A term that has ended stays ended, and what a command left behind has its
                    // grace and no more.
                    if self.plan.stage != Stage::Killing && self.ended.is_none() {
                        self.plan.deadline = deadline;
                    }
                }
                Ok(Event::Order(Order::Signal(number))) => self.pass_on(number),
                Ok(Event::Order(Order::Kill) | Event::Orphaned)
                | Err(RecvTimeoutError::Disconnected) => {
                    self.enter(Stage::Killing);
                    // Both threads are done: nothing is left to wake up for.
                    std::thread::sleep(BUSY_TICK);
                }
                Ok(Event::ChildEnded) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn advance(&mut self) {
        self.take_note();
        let due = self.plan.due(self.clock.now());
        self.enter(due);
    }

    fn enter(&mut self, stage: Stage) {
        if stage <= self.plan.stage && stage != Stage::Killing {
            return;
        }
        self.plan.stage = self.plan.stage.max(stage);
        self.told |= self.ended.is_none() && stage > Stage::Running;
        match stage {
            Stage::Running => {}
            Stage::Asked => self.send(Signal::TERM),
            Stage::Killing => self.send(Signal::KILL),
        }
    }

    /// Once the command has ended: whether everything that it left behind has, too. What is left
    /// is asked to end, and killed when the grace is over.
    fn rest_is_gone(&mut self) -> bool {
        if all_gone() {
            return true;
        }
        if self.plan.stage == Stage::Running {
            let end = self.clock.now() + self.plan.grace + LEAD;
            self.plan.deadline = self.plan.deadline.min(end);
            self.enter(Stage::Asked);
        }
        false
    }

    fn send(&self, signal: Signal) {
        // Each once: many programs take a second TERM for impatience.
        let group = self.ended.is_none().then_some(self.command);
        if let Some(group) = group {
            let _ = kill_process_group(group, signal);
        }
        signal_descendants_outside(group, signal);
        if signal == Signal::TERM {
            // One that is stopped could not heed it.
            signal_descendants(Signal::CONT);
        }
    }

    fn pass_on(&self, number: i32) {
        if let (Some(signal), None) = (Signal::from_named_raw(number), self.ended) {
            let _ = kill_process_group(self.command, signal);
            // As above: whoever sent it waits for the end.
            let _ = kill_process_group(self.command, Signal::CONT);
        }
    }

    fn take_note(&mut self) {
        for (pid, end) in reap() {
            if pid == self.command {
                self.ended = Some(end);
            }
        }
    }

    fn report(&mut self, end: End) -> ExitCode {
        let report = if self.told {
            Report::Stopped(end)
        } else {
            Report::Ended(end)
        };
        // Nobody may be there to read it.
        let _ = self.pipe.write_all(report.line().as_bytes());
        ExitCode::from(end.code())
    }
}

/// The first bytes, and the file that comes with them.
fn receive(pipe: &UnixStream) -> io::Result<(Vec<u8>, OwnedFd)> {
    let mut bytes = vec![0; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut files = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(pipe, &mut parts, &mut files, RecvFlags::CMSG_CLOEXEC)?;
    let mut stdin = None;
    for message in files.drain() {
        if let RecvAncillaryMessage::ScmRights(mut all) = message {
            stdin = all.next();
        }
    }
    bytes.truncate(received.bytes);
    let stdin = stdin.ok_or_else(|| io::Error::other("no standard input came"))?;
    Ok((bytes, stdin))
}

/// Reads orders until the end.
fn read_orders(mut text: Vec<u8>, mut pipe: UnixStream, send: impl Fn(Event) -> bool) {
    let mut more = [0; 256];
    loop {
        while let Some(at) = text.iter().position(|it| *it == b'\n') {
            let line: Vec<u8> = text.drain(..=at).collect();
            let order = std::str::from_utf8(&line).ok();
            let order = order.and_then(|it| Order::parse(it.trim_end()));
            let event = order.map_or(Event::Orphaned, Event::Order);
            if !send(event) {
                return;
            }
        }
        match pipe.read(&mut more) {
            Ok(0) | Err(_) => {
                send(Event::Orphaned);
                return;
            }
            Ok(number) => text.extend_from_slice(more.get(..number).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
#[path = "guardian_tests.rs"]
mod tests;
