//! The janitor: takes back appends that were given up.
//!
//! A ticket that is dropped cannot talk to a server, so it hands its tag to the janitor, which
//! is one task per client. A chore is tried until the store says that it is settled, or until
//! nothing renews the ticket any more and its own time-to-live has ended it.
//!
//! Several at once can come with a commit that does all of them: that is tried first, once. It deletes
//! each ticket if it is still the one that was created then, so if it is not answered, or comes late,
//! it is in nobody's way when each is taken back by itself.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::key::{Key, Tag};
use crate::runtime::{Runtime, Tasks};
use crate::session::Fate;
use crate::store::{Commit, Committed, Store, Withdraw, Withdrawn};

/// How many withdrawals are under way at once. A chore that waits for its next try holds none.
const HANDS: usize = 32;

/// An append to take back.
pub(crate) struct Chore {
    /// Which.
    pub(crate) withdraw: Withdraw,
    /// How long it can live without being renewed.
    pub(crate) ttl: Duration,
    /// The session whose lease it hangs on. As long as that lives, so can the ticket.
    pub(crate) fate: Fate,
    /// Told what was found.
    pub(crate) done: Box<dyn FnOnce(Withdrawn) + Send>,
}

/// What is handed over at once.
struct Work {
    /// What does all of it in one step, if all of it is as it was.
    together: Option<Commit>,
    chores: Vec<Chore>,
}

/// A handle on a client's janitor. Handing over a chore never blocks and never fails; with the
/// last handle gone the janitor finishes what it has and ends.
#[derive(Clone)]
pub(crate) struct Janitor {
    work: mpsc::UnboundedSender<Work>,
    book: Arc<Book>,
}

/// What is still to be done, and what could not be done.
struct Book {
    open: watch::Sender<usize>,
    left: Mutex<Vec<Left>>,
    stop: CancellationToken,
    hands: Semaphore,
    /// Whether a withdrawn append can no longer take effect.
    cancels: bool,
}

/// An append that was not taken back. Its lease may be ended yet, with all that hangs on it.
struct Left {
    dir: Key,
    tag: Tag,
    fate: Fate,
    /// Whether it is there, or cannot come any more.
    is_bound: bool,
    told: bool,
}

impl Left {
    fn went_with_its_lease(&self) -> bool {
        self.is_bound && self.fate.is_revoked()
    }

    fn tell(&mut self) {
        if !self.went_with_its_lease() && !std::mem::replace(&mut self.told, true) {
            let Self { dir, tag, .. } = self;
            tracing::warn!(target: "tenure::janitor", %dir, %tag, "a ticket was left to its TTL");
        }
    }
}

impl Janitor {
    pub(crate) fn start(store: Arc<dyn Store>, runtime: Runtime, tasks: &Tasks) -> Self {
        let (work, inbox) = mpsc::unbounded_channel();
        let book = Arc::new(Book {
            open: watch::Sender::new(0),
            left: Mutex::default(),
            stop: CancellationToken::new(),
            hands: Semaphore::new(HANDS),
            cancels: store.about().cancels,
        });
        tasks.spawn(sweep(store, runtime, inbox, book.clone()));
        Self { work, book }
    }

    /// Takes a chore. For use in `Drop`: needs no runtime.
    pub(crate) fn hand_over(&self, chore: Chore) {
        self.take(Work {
            together: None,
            chores: vec![chore],
        });
    }

    /// Takes several chores, and a commit that settles all of them if it succeeds. As
    /// [`hand_over`](Self::hand_over).
    pub(crate) fn hand_over_all(&self, together: Commit, chores: Vec<Chore>) {
        self.take(Work {
            together: Some(together),
            chores,
        });
    }

    fn take(&self, work: Work) {
        self.book
            .open
            .send_modify(|open| *open += work.chores.len());
        if let Err(mpsc::error::SendError(work)) = self.work.send(work) {
            self.book.forget_all(work.chores);
        }
    }

    /// Returns once nothing is left to do.
    pub(crate) async fn idle(&self) {
        // The sender lives in the book, which this handle keeps.
        let _ = self.book.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// How many chores are open.
    pub(crate) fn open(&self) -> usize {
        *self.book.open.borrow()
    }

    /// How many appends were left to their time-to-live. Those whose lease was ended since are not
    /// among them.
    pub(crate) fn left(&self) -> usize {
        let mut left = self
            .book
            .left
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        left.retain(|it| !it.went_with_its_lease());
        left.iter_mut().for_each(Left::tell);
        left.len()
    }

    /// Ends the janitor, whatever is still to be done.
    pub(crate) fn stop(&self) {
        self.book.stop.cancel();
    }
}

impl fmt::Debug for Janitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Janitor")
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}

impl Book {
    fn close(&self) {
        self.open.send_modify(|open| *open = open.saturating_sub(1));
    }

    fn forget_all(&self, chores: Vec<Chore>) {
        chores.into_iter().for_each(|chore| self.forget(chore));
    }

    fn forget(&self, chore: Chore) {
        let Chore { withdraw, fate, .. } = chore;
        let Withdraw { dir, tag, node, .. } = withdraw;
        let mut left = Left {
            is_bound: node.is_some() || self.cancels,
            dir,
            tag,
            fate,
            told: false,
        };
        // While the client is being shut down its leases are still being ended.
        if !self.stop.is_cancelled() {
            left.tell();
        }
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|it| !it.went_with_its_lease());
        all.push(left);
        drop(all);
        self.close();
    }
}

async fn sweep(
    store: Arc<dyn Store>,
    runtime: Runtime,
    mut inbox: mpsc::UnboundedReceiver<Work>,
    book: Arc<Book>,
) {
    let mut busy = FuturesUnordered::new();
    let mut closed = false;
    while !closed || !busy.is_empty() {
        tokio::select! {
            biased;
            () = book.stop.cancelled(), if !closed => {
                closed = true;
                inbox.close();
                while let Ok(work) = inbox.try_recv() {
                    book.forget_all(work.chores);
                }
            }
            Some(()) = busy.next() => {}
            work = inbox.recv(), if !closed => match work {
                Some(work) => busy.push(do_all(&*store, &runtime, work, &book)),
                None => closed = true,
            },
        }
    }
}

/// Tries to do all of it in one step; what that has not done, one by one.
async fn do_all(store: &dyn Store, runtime: &Runtime, work: Work, book: &Book) {
    let Work {
        together,
        mut chores,
    } = work;
    if let Some(commit) = together {
        let attempt = async {
            let _hand = book.hands.acquire().await;
            store.commit(commit).await
        };
        let outcome = tokio::select! {
            biased;
            () = book.stop.cancelled() => return book.forget_all(chores),
            outcome = attempt => outcome,
        };
        match outcome {
            Ok(Committed { index, .. }) => {
                for chore in chores.drain(..) {
                    (chore.done)(Withdrawn::new(index, true, true));
                    book.close();
                }
            }
            Err(error) => {
                tracing::debug!(target: "tenure::janitor", %error, "not withdrawn together");
            }
        }
    }
    let each = |chore| settle(store, runtime, chore, book);
    join_all(chores.into_iter().map(each)).await;
}

/// Tries until it is settled, the store has ended it, or the janitor is stopped.
async fn settle(store: &dyn Store, runtime: &Runtime, chore: Chore, book: &Book) {
    // A server that is away costs little to ask again; a look for a late commit costs a
    // linearizable read, so these are further apart.
    let (mut pause, most) = (Duration::from_millis(25), Duration::from_secs(2));
    // When the store itself will have ended it.
    let mut until = runtime.clock.now() + chore.ttl;
    loop {
        let over = runtime.clock.has_passed(until);
        let attempt = async {
            let _hand = book.hands.acquire().await;
            store.withdraw(chore.withdraw.clone()).await
        };
        let outcome = tokio::select! {
            biased;
            () = book.stop.cancelled() => return book.forget(chore),
            outcome = attempt => outcome,
        };
        match outcome {
            Ok(withdrawn) if withdrawn.settled || over => {
                // Not settled, but nobody refreshes it: had it come, it would be over by now.
                (chore.done)(withdrawn);
                return book.close();
            }
            Ok(_) => pause = pause.max(Duration::from_millis(250)),
            Err(error) => {
                let Withdraw { dir, tag, .. } = &chore.withdraw;
                tracing::debug!(target: "tenure::janitor", %dir, %tag, %error, "withdrawal failed");
                if !chore.fate.is_over() {
                    // On a store with leases the session keeps the ticket alive with the rest.
                    until = runtime.clock.now() + chore.ttl;
                } else if over {
                    return book.forget(chore);
                }
            }
        }
        let left = until.since(runtime.clock.now());
        let nap = runtime
            .entropy
            .jitter(pause)
            .min(left.max(Duration::from_millis(1)));
        tokio::select! {
            biased;
            () = book.stop.cancelled() => return book.forget(chore),
            () = runtime.clock.sleep(nap) => {}
        }
        pause = (pause * 2).min(most);
    }
}
