//! When the store is read beside the watch: now and then, and for who waits for an index that the
//! watch does not tell of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::audit::{Audit, Verdict};
use super::board::State;
use super::fold::Stored;
use crate::error::Result;
use crate::key::{Index, Key};
use crate::runtime::{Instant, Runtime};
use crate::store::{Freshness, Get, Store, View};

/// Each pause between two looks is drawn between half of this and all.
const EVERY: Duration = Duration::from_secs(600);
/// At least so many times as long as the last one took: a large tree is a burden to read.
const REST: u32 = 1_000;
/// For how long the watch may be behind what was read.
const PATIENCE: Duration = Duration::from_secs(10);

/// What somebody waits for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    index: AtomicU64,
    news: Notify,
}

impl Wanted {
    pub(super) fn ask(&self, index: Index) {
        self.index.fetch_max(index.get(), Ordering::AcqRel);
        self.news.notify_one();
    }

    /// The latest index that is waited for, when it is asked for again.
    pub(super) async fn next(&self) -> Option<Index> {
        self.news.notified().await;
        // Who still waits asks again.
        Index::new(self.index.swap(0, Ordering::AcqRel))
    }
}

/// Looks.
pub(super) struct Looks {
    runtime: Runtime,
    due: Instant,
    /// How long the last one took.
    took: Duration,
    now: Option<Look>,
}

/// One that is under way.
struct Look {
    audit: Audit,
    began: Instant,
    reading: Option<BoxFuture<'static, Result<View>>>,
    /// When the watch must have come to what was read.
    until: Instant,
}

/// What is to be done.
pub(super) enum Event {
    /// A look is due.
    Due,
    /// Ask for the verdict.
    Read,
}

impl Looks {
    pub(super) fn new(runtime: Runtime) -> Self {
        let mut looks = Self {
            due: runtime.clock.now(),
            runtime,
            took: Duration::ZERO,
            now: None,
        };
        looks.end();
        looks
    }

    /// Begins to read, unless that is under way.
    pub(super) fn begin(
        &mut self,
        (store, prefix): (&Arc<dyn Store>, &Key),
        freshness: Freshness,
        state: &State<Stored>,
    ) {
        if self.now.is_some() {
            return;
        }
        let (store, get) = (store.clone(), Get::tree(prefix.clone()).fresh(freshness));
        let began = self.runtime.clock.now();
        self.now = Some(Look {
            audit: Audit::new(state),
            began,
            reading: Some(Box::pin(async move { store.get(get).await })),
            until: began + PATIENCE,
        });
    }

    /// Ends the one that is under way.
    pub(super) fn end(&mut self) {
        self.now = None;
        let pause = EVERY.max(self.took.saturating_mul(REST));
        self.due = self.runtime.clock.now() + self.runtime.entropy.jitter(pause);
    }

    /// The watch has led to this state.
    pub(super) fn note(&mut self, state: &State<Stored>) {
        if let Some(look) = &mut self.now {
            look.audit.note(state);
        }
    }

    /// What comes of the one that is under way; ends it if that is known.
    pub(super) fn verdict(&mut self) -> Verdict {
        let Some(look) = &self.now else {
            return Verdict::Open;
        };
        let waited = look.reading.is_none() && self.runtime.clock.has_passed(look.until);
        let verdict = look.audit.verdict(waited);
        if verdict != Verdict::Open {
            self.end();
        }
        verdict
    }

    /// What is to be done next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Event {
        let clock = self.runtime.clock.clone();
        let Some(look) = &mut self.now else {
            clock.sleep_until(self.due).await;
            return Event::Due;
        };
        let Some(reading) = &mut look.reading else {
            clock.sleep_until(look.until).await;
            return Event::Read;
        };
        let outcome = reading.await;
        look.reading = None;
        let now = clock.now();
        (self.took, look.until) = (now.since(look.began), now + PATIENCE);
        match outcome {
            Ok(view) => look.audit.read(view),
            Err(error) => {
                // What is wrong shows in the watch; else the next look will do.
                tracing::debug!(target: "tenure::cache", %error, "not compared");
                self.end();
            }
        }
        Event::Read
    }
}
