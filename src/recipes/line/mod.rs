//! Lines: first come, first served, across processes.
//!
//! One [`Line`] per directory and client: one view of the line for all tickets of this process, and
//! a task that keeps it. Where watches are cheap the task begins with the first ticket that waits;
//! what is held without one, however many they are, is the [`sentry`]'s. [`machine`] decides what to
//! read and watch and who is admitted; [`driver`] does it; [`ticket`] is one place in the line, from
//! before its append leaves until nothing of it is left, [`attempt`] one that does not wait, [`leave`]
//! how a place is given up, and [`volley`] several at once. Who is admitted is the line's [`Rule`];
//! that of [`shared`] lines has a machine and a driver of its own.

mod attempt;
mod driver;
mod leave;
mod machine;
mod newcomers;
mod recheck;
mod rule;
mod sentry;
pub(crate) mod shared;
mod ticket;
mod vigil;
mod volley;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub(crate) use rule::{Refusal, Rule, Shared};
use sentry::{Charge, Sentry};
pub(crate) use ticket::Ticket;
pub(crate) use volley::{MOST, Volley};

use crate::error::Result;
use crate::key::{Index, Key, Position, Ttl};
use crate::runtime::{Runtime, Tasks};
use crate::session::{Announcer, Term};
use crate::store::{Store, View, Withdrawn};

/// How many keys of our own a client watches at once where watches are not cheap. Beyond that a
/// loss is noticed at the next renewal: on etcd v2 each watch is a connection.
const OWN_WATCHES: usize = 64;

/// All lines of a client.
pub(crate) struct Lines {
    store: Arc<dyn Store>,
    runtime: Runtime,
    tasks: Tasks,
    open: Mutex<BTreeMap<(Key, Rule), Weak<Line>>>,
    own_watches: Arc<Semaphore>,
    sentry: Sentry,
    /// Whether appends tell who is before, and watches are cheap.
    ranks: bool,
    closed: CancellationToken,
}

impl Lines {
    pub(crate) fn new(store: Arc<dyn Store>, runtime: Runtime, tasks: Tasks) -> Arc<Self> {
        let ranks = store.about().ranks;
        let own_watches = if ranks {
            Semaphore::MAX_PERMITS
        } else {
            OWN_WATCHES
        };
        Arc::new(Self {
            store,
            runtime,
            tasks,
            open: Mutex::default(),
            own_watches: Arc::new(Semaphore::new(own_watches)),
            sentry: Sentry::default(),
            ranks,
            closed: CancellationToken::new(),
        })
    }

    /// Whether this process has tickets in the line at `dir`.
    pub(crate) fn are_occupied(&self, dir: &Key) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let line = open.get(&(dir.clone(), Rule::Exclusive));
        let line = line.and_then(Weak::upgrade);
        // This may be its last handle by now, and then it takes itself out.
        drop(open);
        line.is_some_and(|line| line.is_occupied())
    }

    /// Ends the tasks of all lines, whoever still has a handle.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// The line at `dir`. Its task ends with the last ticket.
    pub(crate) fn line(self: &Arc<Self>, dir: &Key, ttl: Ttl, rule: Rule) -> Arc<Line> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (dir.clone(), rule.clone());
        if let Some(line) = open.get(&name).and_then(Weak::upgrade) {
            return line;
        }
        let rests = self.ranks && rule == Rule::Exclusive;
        let line = Arc::new(Line {
            dir: dir.clone(),
            rule,
            ttl,
            inbox: Mutex::new(Inbox::Resting(None)),
            tickets: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            lines: Arc::downgrade(self),
        });
        if !rests {
            line.start(self);
        }
        open.insert(name, Arc::downgrade(&line));
        line
    }
}

/// A handle on a line. With the last one gone the line's task ends.
pub(crate) struct Line {
    dir: Key,
    rule: Rule,
    ttl: Ttl,
    inbox: Mutex<Inbox>,
    /// How many tickets of this process have joined and not left; the task counts for one while it
    /// keeps its view without any.
    tickets: AtomicUsize,
    /// How many appends are under way, or answered and have not joined.
    pending: AtomicUsize,
    lines: Weak<Lines>,
}

/// An append that is under way, until its ticket has joined or is given up.
pub(super) struct Pending(Arc<Line>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where what happens goes.
enum Inbox {
    /// Nobody waits, and no task runs: this is held, and the sentry watches over it.
    Resting(Option<Position>),
    Running(mpsc::UnboundedSender<Input>),
}

/// What the line's task is told.
enum Input {
    Join {
        ticket: Joining,
        role: Role,
    },
    Leaving(Position),
    Left(Position, Withdrawn),
    /// A ticket that joined is held for so long at a time from now on.
    Pace(Ttl),
}

/// A ticket of this process that joins the view.
struct Joining {
    position: Position,
    /// The index of its append.
    at: Index,
    term: Arc<Term>,
    /// The line at `at` or later, if it is known.
    known: Option<Box<View>>,
    /// Bounds how long a lost event can go unnoticed.
    ttl: Ttl,
    /// Says whose it is, once it has been here for a while.
    announcer: Announcer,
}

enum Role {
    /// It waits to be told under which limit it is admitted.
    Waiting(oneshot::Sender<Result<u32>>),
    /// It was found to be admitted.
    Holding,
}

impl Line {
    pub(crate) fn dir(&self) -> &Key {
        &self.dir
    }

    /// Whether the view is kept anyway: this process has tickets in the line, or had just now.
    fn is_occupied(&self) -> bool {
        self.tickets.load(Ordering::Acquire) > 0
    }

    /// To be called before an append is sent.
    fn expect(self: &Arc<Self>) -> Pending {
        self.pending.fetch_add(1, Ordering::SeqCst);
        Pending(self.clone())
    }

    /// Whether an append is under way, or answered and has not joined.
    fn expects(&self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    /// Joins the view and waits to be told.
    fn join_waiting(self: &Arc<Self>, ticket: Joining) -> oneshot::Receiver<Result<u32>> {
        let (admitted, admission) = oneshot::channel();
        self.join(ticket, Role::Waiting(admitted));
        admission
    }

    /// Joins the view as one that is admitted.
    fn join_holding(self: &Arc<Self>, ticket: Joining) {
        self.join(ticket, Role::Holding);
    }

    fn join(self: &Arc<Self>, ticket: Joining, role: Role) {
        self.tickets.fetch_add(1, Ordering::AcqRel);
        self.tell(Input::Join { ticket, role });
    }

    /// A ticket that joined is being taken back.
    fn leaving(self: &Arc<Self>, position: Position) {
        self.tell(Input::Leaving(position));
    }

    /// A ticket that joined is gone.
    fn left(self: &Arc<Self>, position: Position, withdrawn: Withdrawn) {
        self.tickets.fetch_sub(1, Ordering::AcqRel);
        self.tell(Input::Left(position, withdrawn));
    }

    /// A ticket that joined is held for so long at a time from now on: that bounds how long its loss
    /// can go unnoticed.
    fn pace(&self, position: &Position, ttl: Ttl) {
        match &*self.lock() {
            Inbox::Running(task) => {
                // Only a client that was shut down has stopped listening.
                let _ = task.send(Input::Pace(ttl));
            }
            Inbox::Resting(_) => {
                if let Some(lines) = self.lines.upgrade() {
                    lines.sentry.pace(&position.key, ttl);
                }
            }
        }
    }

    fn tell(self: &Arc<Self>, input: Input) {
        let mut inbox = self.lock();
        let input = match &mut *inbox {
            Inbox::Running(_) => Some(input),
            Inbox::Resting(held) => self.rest(held, input),
        };
        drop(inbox);
        let Some(input) = input else { return };
        if let Some(lines) = self.lines.upgrade() {
            self.start(&lines);
        }
        if let Inbox::Running(task) = &*self.lock() {
            // Only a client that was shut down has stopped listening; whoever waits for an answer
            // sees that by the answer's channel.
            let _ = task.send(input);
        }
    }

    /// Notes what is held or given back; what needs the task is returned.
    fn rest(&self, held: &mut Option<Position>, input: Input) -> Option<Input> {
        // A client that is gone watches over nothing.
        let lines = self.lines.upgrade()?;
        match input {
            Input::Join {
                ticket,
                role: Role::Holding,
            } if held.is_none() => {
                let charge = Charge::new(ticket.at, ticket.term, ticket.announcer, ticket.ttl);
                let key = ticket.position.key.clone();
                *held = Some(ticket.position);
                lines.sentry.guard(&lines, key, charge);
                None
            }
            Input::Leaving(position) | Input::Left(position, _) => {
                held.take_if(|it| *it == position);
                lines.sentry.dismiss(&position.key);
                None
            }
            // One more: the task can tell them apart.
            Input::Join { .. } | Input::Pace(_) => Some(input),
        }
    }

    /// Begins the task, if there is none, and hands it what is held.
    fn start(self: &Arc<Self>, lines: &Arc<Lines>) {
        let mut inbox = self.lock();
        let Inbox::Resting(held) = &mut *inbox else {
            return;
        };
        let held = held.take();
        let (task, inputs) = mpsc::unbounded_channel();
        if let Some(position) = held
            && let Some(charge) = lines.sentry.dismiss(&position.key)
        {
            let ticket = Joining {
                position,
                at: charge.at,
                term: charge.term,
                known: None,
                ttl: charge.ttl,
                announcer: charge.announcer,
            };
            let role = Role::Holding;
            let _ = task.send(Input::Join { ticket, role });
        }
        let line = Arc::downgrade(self);
        let ttl = self.ttl;
        match self.rule.clone() {
            Rule::Exclusive => {
                let drive = driver::drive(lines.clone(), line, self.dir.clone(), ttl, inputs);
                lines.tasks.spawn(drive);
            }
            Rule::Shared(place) => {
                let drive = shared::driver::drive(lines.clone(), line, place, ttl, inputs);
                lines.tasks.spawn(drive);
            }
        }
        *inbox = Inbox::Running(task);
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(lines) = self.lines.upgrade() else {
            return;
        };
        let mut open = lines.open.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (self.dir.clone(), self.rule.clone());
        if open.get(&name).is_some_and(|line| line.strong_count() == 0) {
            open.remove(&name);
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::Embedded;

    #[tokio::test]
    async fn a_line_is_shared_while_it_is_used_and_forgotten_with_its_last_handle() {
        let (tasks, ttl) = (Tasks::here(), Ttl::DEFAULT);
        let lines = Lines::new(Arc::new(Embedded::new()), Runtime::default(), tasks.clone());
        let dir = Key::new("/_locks/a").unwrap();
        let line = lines.line(&dir, ttl, Rule::Exclusive);
        assert!(Arc::ptr_eq(&line, &lines.line(&dir, ttl, Rule::Exclusive)));
        assert_eq!(lines.open.lock().unwrap().len(), 1);
        drop(line);
        assert_eq!(lines.open.lock().unwrap().len(), 0);
        tasks.ended().await;
    }
}
