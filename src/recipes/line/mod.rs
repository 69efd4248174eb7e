//! Lines: first come, first served, across processes.
//!
//! One [`Line`] per directory and client: a task that shares one view of the line between all
//! tickets of this process. [`machine`] decides what to read and watch and who is admitted;
//! [`driver`] does it; [`ticket`] is one place in the line, from before its append leaves until
//! nothing of it is left, and [`leave`] how it is given up. Who is admitted is the line's [`Rule`];
//! that of [`shared`] lines has a machine and a driver of its own.

mod driver;
mod leave;
mod machine;
mod newcomers;
mod rule;
pub(crate) mod shared;
mod ticket;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub(crate) use rule::{Refusal, Rule, Shared};
pub(crate) use ticket::Ticket;

use crate::error::Result;
use crate::key::{Index, Key, Position, Ttl};
use crate::runtime::{Runtime, Tasks};
use crate::session::{Announcer, Term};
use crate::store::{Store, View, Withdrawn};

/// How many keys of our own a client watches at once. Beyond that a loss is noticed at the next
/// renewal: on etcd v2 each watch is a connection.
const OWN_WATCHES: usize = 64;

/// All lines of a client.
pub(crate) struct Lines {
    store: Arc<dyn Store>,
    runtime: Runtime,
    tasks: Tasks,
    open: Mutex<BTreeMap<(Key, Rule), Weak<Line>>>,
    own_watches: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Lines {
    pub(crate) fn new(store: Arc<dyn Store>, runtime: Runtime, tasks: Tasks) -> Arc<Self> {
        let own_watches = Arc::new(Semaphore::new(OWN_WATCHES));
        Arc::new(Self {
            store,
            runtime,
            tasks,
            open: Mutex::default(),
            own_watches,
            closed: CancellationToken::new(),
        })
    }

    /// The line at `dir`, if there is one.
    fn find(&self, dir: &Key, rule: &Rule) -> Option<Arc<Line>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&(dir.clone(), rule.clone()))?.upgrade()
    }

    /// Ends the tasks of all lines, whoever still has a handle.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// The line at `dir`. Its task starts with the first ticket and ends with the last.
    pub(crate) fn line(self: &Arc<Self>, dir: &Key, ttl: Ttl, rule: Rule) -> Arc<Line> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (dir.clone(), rule.clone());
        if let Some(line) = open.get(&name).and_then(Weak::upgrade) {
            return line;
        }
        let (inbox, inputs) = mpsc::unbounded_channel();
        let pending: Arc<AtomicUsize> = Arc::default();
        match rule.clone() {
            Rule::Exclusive => {
                let pending = pending.clone();
                let task = driver::drive(self.clone(), dir.clone(), ttl, pending, inputs);
                self.tasks.spawn(task);
            }
            Rule::Shared(place) => {
                let task = shared::driver::drive(self.clone(), place, ttl, inputs);
                self.tasks.spawn(task);
            }
        }
        let line = Arc::new(Line {
            dir: dir.clone(),
            rule,
            inbox,
            tickets: AtomicUsize::new(0),
            pending,
            lines: Arc::downgrade(self),
        });
        open.insert(name, Arc::downgrade(&line));
        line
    }
}

/// A handle on a line. With the last one gone the line's task ends.
pub(crate) struct Line {
    dir: Key,
    rule: Rule,
    inbox: mpsc::UnboundedSender<Input>,
    /// How many tickets of this process have joined and not left; the task counts for one while it
    /// keeps its view without any.
    tickets: AtomicUsize,
    /// How many appends are under way, or answered and have not joined.
    pending: Arc<AtomicUsize>,
    lines: Weak<Lines>,
}

/// An append that is under way, until its ticket has joined or is given up.
pub(super) struct Pending(Arc<AtomicUsize>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the line's task is told.
enum Input {
    Join { ticket: Joining, role: Role },
    Leaving(Position),
    Left(Position, Withdrawn),
}

/// A ticket of this process that joins the view.
struct Joining {
    position: Position,
    /// The index of its append.
    at: Index,
    term: Arc<Term>,
    /// The line at `at` or later, if it is known.
    known: Option<View>,
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
    fn expect(&self) -> Pending {
        self.pending.fetch_add(1, Ordering::SeqCst);
        Pending(self.pending.clone())
    }

    /// Joins the view and waits to be told.
    fn join_waiting(&self, ticket: Joining) -> oneshot::Receiver<Result<u32>> {
        let (admitted, admission) = oneshot::channel();
        self.join(ticket, Role::Waiting(admitted));
        admission
    }

    /// Joins the view as one that is admitted.
    fn join_holding(&self, ticket: Joining) {
        self.join(ticket, Role::Holding);
    }

    fn join(&self, ticket: Joining, role: Role) {
        self.tickets.fetch_add(1, Ordering::AcqRel);
        self.tell(Input::Join { ticket, role });
    }

    /// A ticket that joined is being taken back.
    fn leaving(&self, position: Position) {
        self.tell(Input::Leaving(position));
    }

    /// A ticket that joined is gone.
    fn left(&self, position: Position, withdrawn: Withdrawn) {
        self.tickets.fetch_sub(1, Ordering::AcqRel);
        self.tell(Input::Left(position, withdrawn));
    }

    fn tell(&self, input: Input) {
        // Only a client that was shut down has stopped listening; whoever waits for an answer
        // sees that by the answer's channel.
        let _ = self.inbox.send(input);
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
        assert_eq!((lines.open.lock().unwrap().len(), tasks.len()), (1, 1));
        drop(line);
        assert_eq!(lines.open.lock().unwrap().len(), 0);
        tasks.ended().await;
    }
}
