//! One cache's task: decodes what its feed posts, posts it to the subscribers, keeps it on disk.

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::board::{Map, Read, State, Step, Writer, differing};
use super::changes::{Change, Changed, Diff, Items};
use super::disk::{self, Kept};
use super::feed::Reader;
use super::fold::{Stored, What};
use super::health::{CacheSource, CacheState, Health};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::{Instant, Runtime};

/// At most one write to disk in this time.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// A file without news is written again after this long, so that it tells that it is still right.
const SAVE_AGAIN: Duration = Duration::from_secs(300);

/// After how long a write that failed is tried again.
const SAVE_RETRY: Duration = Duration::from_secs(30);

/// Makes a value of what is stored; says why it cannot.
pub(super) type Decoder<T> =
    dyn Fn(&Key, &Bytes) -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

pub(super) type TypedWriter<T> = Writer<T, Items<T>>;

/// New values by key, in order; `None` where one is gone.
type News = Vec<(Key, Option<Arc<Stored>>)>;

pub(super) struct Typed<T> {
    pub(super) prefix: Key,
    pub(super) runtime: Runtime,
    pub(super) decoder: Arc<Decoder<T>>,
    /// What the values were made of.
    raw: Map<Stored>,
    state: State<T>,
    disk: Option<Disk>,
}

/// The file, and what is to be in it.
struct Disk {
    path: PathBuf,
    /// What the values that are given were made of: not those that are bad.
    good: Map<Stored>,
    saved: Option<Instant>,
    news: bool,
    writing: Option<JoinHandle<Result<()>>>,
}

impl<T: Send + Sync + 'static> Typed<T> {
    /// Begins with what the file has, if there is one.
    pub(super) fn new(
        prefix: Key,
        runtime: Runtime,
        decoder: Arc<Decoder<T>>,
        path: Option<PathBuf>,
    ) -> Self {
        let mut typed = Self {
            disk: path.map(Disk::new),
            prefix,
            runtime,
            decoder,
            raw: Map::new_sync(),
            state: State::new(Health::loading()),
        };
        typed.load();
        typed
    }

    /// Takes what a feed knows already.
    pub(super) fn begin(&mut self, feed: &State<Stored>) {
        self.state.health.follow(&feed.health);
        if feed.index.is_some() {
            self.resync(feed);
        }
    }

    pub(super) fn state(&self) -> State<T> {
        self.state.clone()
    }

    pub(super) async fn run(
        mut self,
        mut feed: Reader,
        writer: TypedWriter<T>,
        stop: CancellationToken,
    ) {
        let clock = self.runtime.clock.clone();
        loop {
            let due = self.disk.as_ref().and_then(|it| it.due(&self.state.health));
            let save = async {
                match due {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let items = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                outcome = written(&mut self.disk) => self.saved(outcome),
                read = feed.next() => match read {
                    Some(read) => self.take(read),
                    None => break,
                },
                () = save => {
                    self.save();
                    continue;
                }
            };
            writer.post(self.state.clone(), items);
        }
        let error = Error::new(
            ErrorKind::Closed,
            "the client was shut down, or the cache dropped",
        );
        self.state.health.failed(error.at(&self.prefix));
        writer.post(self.state.clone(), None);
        // What the last write does not have yet.
        if self
            .disk
            .as_ref()
            .is_some_and(|disk| disk.writing.is_some())
        {
            let outcome = written(&mut self.disk).await;
            self.saved(outcome);
        }
        if self.disk.as_ref().is_some_and(|disk| disk.news) {
            self.save();
            let outcome = written(&mut self.disk).await;
            self.saved(outcome);
        }
    }

    fn take(&mut self, read: Read<Stored, What>) -> Option<Items<T>> {
        let (after, what) = match read {
            Read::Step(Step { after, item }) => (after, item),
            Read::Lagged { after, .. } => (after, Some(What::Resync)),
        };
        self.state.health.follow(&after.health);
        match what {
            None => {
                self.state.index = after.index;
                None
            }
            Some(What::Trouble(error)) => {
                self.state.index = after.index;
                Some([Arc::new(Change::Trouble(error))].into())
            }
            Some(What::Update(changed)) => {
                let news = changed.iter();
                let news = news.map(|(key, new)| (key.clone(), new.clone())).collect();
                self.update(&after, news, |diff| {
                    (!diff.changed.is_empty()).then_some(Change::Update(diff))
                })
            }
            Some(What::Resync) if after.index.is_some() => self.resync(&after),
            Some(What::Resync) => None,
        }
    }

    fn resync(&mut self, after: &State<Stored>) -> Option<Items<T>> {
        let news = differing(&self.raw, &after.entries, Stored::same);
        self.update(after, news, |diff| Some(Change::Resync(diff)))
    }

    /// Goes on to a state of the feed.
    fn update(
        &mut self,
        after: &State<Stored>,
        news: News,
        tell: impl FnOnce(Diff<T>) -> Option<Change<T>>,
    ) -> Option<Items<T>> {
        let from = self.state.index;
        let (changed, bad) = self.decode(news);
        self.raw = after.entries.clone();
        self.state.index = after.index;
        if let Some(disk) = &mut self.disk {
            disk.news = true;
        }
        let diff = after.index.map(|to| Diff { from, to, changed });
        let told = diff.and_then(tell).map(Arc::new);
        let items: Items<T> = told.into_iter().chain(bad).collect();
        (!items.is_empty()).then_some(items)
    }

    /// Takes new values, the good ones in place of the old.
    fn decode(&mut self, news: News) -> (Vec<Changed<T>>, Vec<Arc<Change<T>>>) {
        let (mut changed, mut bad) = (Vec::new(), Vec::new());
        let state = &mut self.state;
        for (key, stored) in news {
            let new = match &stored {
                None => None,
                Some(stored) => match decoded(&*self.decoder, &key, &stored.value) {
                    Ok(value) => Some(Arc::new(value)),
                    Err(error) => {
                        let cause = error.source().map(tracing::field::display);
                        tracing::warn!(target: "tenure::cache", %key, %error, cause, "bad value");
                        state.bad.insert_mut(key.clone(), error.clone());
                        bad.push(Arc::new(Change::Bad { key, error }));
                        continue;
                    }
                },
            };
            state.bad.remove_mut(&key);
            let old = state.entries.get(&key).cloned();
            match &new {
                Some(value) => state.entries.insert_mut(key.clone(), value.clone()),
                None => drop(state.entries.remove_mut(&key)),
            }
            if let Some(disk) = &mut self.disk {
                match stored {
                    Some(stored) => disk.good.insert_mut(key.clone(), stored),
                    None => drop(disk.good.remove_mut(&key)),
                }
            }
            if old.is_some() || new.is_some() {
                changed.push(Changed { key, old, new });
            }
        }
        (changed, bad)
    }

    fn load(&mut self) {
        let Some(disk) = &self.disk else {
            return;
        };
        let kept = match disk::load(&disk.path, &self.prefix) {
            Ok(Some(kept)) => kept,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(target: "tenure::cache", %error, "not taken");
                self.state.health.disk_error = Some(error);
                return;
            }
        };
        let news = kept.entries.iter();
        let news = news.map(|(key, stored)| (key.clone(), Some(stored.clone())));
        self.decode(news.collect());
        self.raw = kept.entries;
        let clock = &self.runtime.clock;
        let age = clock.wall().saturating_sub(kept.confirmed);
        self.state.health.loaded(age, clock.now());
    }

    /// Begins to write the file.
    fn save(&mut self) {
        let clock = &self.runtime.clock;
        let Some(disk) = &mut self.disk else {
            return;
        };
        (disk.news, disk.saved) = (false, Some(clock.now()));
        let age = self.state.health.age(clock).unwrap_or_default();
        let kept = Kept {
            entries: disk.good.clone(),
            index: self.state.index,
            confirmed: clock.wall().saturating_sub(age),
        };
        let (path, prefix) = (disk.path.clone(), self.prefix.clone());
        let entropy = self.runtime.entropy.clone();
        let write = move || disk::save(&path, &prefix, &kept, &entropy);
        disk.writing = Some(tokio::task::spawn_blocking(write));
    }

    /// The file is written, or not; that is told by the state alone.
    fn saved(&mut self, outcome: Result<()>) -> Option<Items<T>> {
        if let Err(error) = &outcome {
            tracing::warn!(target: "tenure::cache", %error, "not kept");
            if let Some(disk) = &mut self.disk {
                disk.news = true;
                disk.saved = Some(self.runtime.clock.now() + (SAVE_RETRY - SAVE_EVERY));
            }
        }
        self.state.health.disk_error = outcome.err();
        None
    }
}

impl Disk {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            good: Map::new_sync(),
            saved: None,
            news: false,
            writing: None,
        }
    }

    /// When to write; `None` while it is being written, or has no reason to be.
    fn due(&self, health: &Health) -> Option<Instant> {
        if self.writing.is_some() || health.source != CacheSource::Store {
            return None;
        }
        let Some(saved) = self.saved else {
            return self.news.then_some(Instant::new(Duration::ZERO));
        };
        let again = health.state == CacheState::Live;
        let wait = match self.news {
            true => Some(SAVE_EVERY),
            false => again.then_some(SAVE_AGAIN),
        };
        wait.map(|wait| saved + wait)
    }
}

/// Waits for the write that is under way.
async fn written(disk: &mut Option<Disk>) -> Result<()> {
    let Some((writing, place)) = disk
        .as_mut()
        .and_then(|disk| disk.writing.as_mut().map(|it| (it, &disk.path)))
    else {
        return std::future::pending().await;
    };
    let outcome = writing.await.unwrap_or_else(|cause| {
        let error = Error::new(ErrorKind::InvalidValue, "the file was not written");
        Err(error.on(place.display().to_string()).caused_by(cause))
    });
    if let Some(disk) = disk {
        disk.writing = None;
    }
    outcome
}

fn decoded<T>(decoder: &Decoder<T>, key: &Key, value: &Bytes) -> Result<T> {
    // Nothing of the decoder is used again that a panic could have left half done, unless it
    // shares something itself; and that is what it would do anywhere else.
    let outcome = catch_unwind(AssertUnwindSafe(|| decoder(key, value)));
    let error = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(cause)) => {
            Error::new(ErrorKind::InvalidValue, "the decoder refuses the value").caused_by(cause)
        }
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(|it| (*it).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            let said = said.unwrap_or_else(|| "and said nothing".to_owned());
            let text = format!("the decoder panicked: {said}");
            Error::new(ErrorKind::InvalidValue, text)
        }
    };
    Err(error.during("decode").at(key))
}
