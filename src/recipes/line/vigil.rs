//! Watches over one key that is held, until it is gone or given up.
//!
//! ```text
//! Watching ──failed──▶ Recovering ──▶ Watching, from where it was seen last
//!    │ deleted             │ not there any more
//!    └─────────────────────┴──▶ the term is lost
//! ```
//!
//! By hand: there may be thousands, and an `async` block that can be ended from outside takes twice
//! as much room.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::Lines;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Instant;
use crate::session::{Loss, Term};
use crate::store::{Get, Store, Update, Updates, Watch};

/// The pause after a watch that failed, and the longest after one that does so again and again: one
/// that has lived for longer than that begins anew.
const SHORTEST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Ready when the key is gone or given up.
pub(super) struct Vigil {
    lines: Arc<Lines>,
    term: Arc<Term>,
    /// The index of its append.
    at: Index,
    /// The first index that was not told.
    from: Index,
    /// How many watches in a row failed soon.
    failures: u32,
    /// When the present one was asked for.
    began: Instant,
    step: Step,
}

enum Step {
    Watching(Updates),
    Recovering(BoxFuture<'static, Found>),
}

/// At which index the key is there, if it is; `None` if that was not asked, or not answered.
type Found = Option<Option<Index>>;

impl Vigil {
    pub(super) fn new(lines: Arc<Lines>, term: Arc<Term>, at: Index) -> Self {
        let from = at.next();
        Self {
            step: watch(&lines, &term, from),
            began: lines.runtime.clock.now(),
            lines,
            term,
            at,
            from,
            failures: 0,
        }
    }

    /// Takes in what the watch tells: whether the key is gone.
    fn hear(&mut self, update: Option<Result<Update>>) -> bool {
        let key = self.term.key();
        match update {
            Some(Ok(Update::Event(event))) if event.removes(key) => return true,
            Some(Ok(Update::Event(event))) => self.from = event.index.next(),
            Some(Ok(Update::Progress(index))) => self.from = index.next(),
            Some(Ok(Update::Open(_))) => {}
            Some(Err(error)) => self.recover(error),
            None => {
                let text = "a watch ended without an error";
                self.recover(Error::new(ErrorKind::Unavailable, text));
            }
        }
        false
    }

    fn recover(&mut self, error: Error) {
        let key = self.term.key().clone();
        tracing::debug!(target: "tenure::line", %key, %error, "cannot watch a key that is held");
        // One that lasted was worth its opening. That it said something would not do: it may say so
        // each time before it fails.
        if self
            .lines
            .runtime
            .clock
            .has_passed(self.began + LONGEST_PAUSE)
        {
            self.failures = 0;
        }
        let pause = SHORTEST_PAUSE * 2_u32.saturating_pow(self.failures);
        self.failures += 1;
        let (lines, at) = (self.lines.clone(), self.at);
        let recovery = recover(lines, key, at, error, pause.min(LONGEST_PAUSE));
        self.step = Step::Recovering(recovery.boxed());
    }

    /// Goes on after what was found: whether the key is gone.
    fn recovered(&mut self, found: Found) -> bool {
        match found {
            Some(None) => return true,
            Some(Some(index)) => self.from = index.next(),
            None => {}
        }
        self.step = watch(&self.lines, &self.term, self.from);
        self.began = self.lines.runtime.clock.now();
        false
    }
}

impl Future for Vigil {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        while this
            .lines
            .sentry
            .guards(this.term.key(), this.at, cx.waker())
        {
            let gone = match &mut this.step {
                Step::Watching(updates) => {
                    let update = ready!(updates.poll_next_unpin(cx));
                    this.hear(update)
                }
                Step::Recovering(found) => {
                    let found = ready!(found.poll_unpin(cx));
                    this.recovered(found)
                }
            };
            if gone {
                this.term.lose(Loss::Deleted);
                break;
            }
        }
        Poll::Ready(())
    }
}

fn watch(lines: &Lines, term: &Term, from: Index) -> Step {
    let watch = Watch::node(term.key().clone()).from(from).deletes_only();
    Step::Watching(lines.store.watch(watch))
}

/// Pauses; where the history is lost, or is another, looks whether what was appended `at` this index
/// is still there.
async fn recover(lines: Arc<Lines>, key: Key, at: Index, error: Error, pause: Duration) -> Found {
    let runtime = &lines.runtime;
    runtime.clock.sleep(runtime.entropy.jitter(pause)).await;
    if !matches!(
        error.kind(),
        ErrorKind::HistoryLost | ErrorKind::ClusterChanged
    ) {
        return None;
    }
    let view = lines.store.get(Get::node(key).keys_only()).await;
    let view = view.ok()?;
    let is_there = view.nodes.iter().any(|node| node.created == at);
    Some(is_there.then_some(view.index))
}
