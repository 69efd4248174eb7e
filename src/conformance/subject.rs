//! What a check works on: a store, a directory of its own, and words for what checks often do.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::Failure;
use crate::error::{Error, ErrorKind};
use crate::key::{Index, Key, LeaseId, Tag, Ttl};
use crate::runtime::{Clock, Entropy, Instant};
use crate::store::{
    Append, Appended, Change, Condition, Event, Expiry, Grant, Node, Put, Store, StoreExt, Update,
    Updates, Watch, Written,
};

pub(super) type Checked<T = ()> = Result<T, Failure>;

/// The shortest time-to-live, and what checks wait for most.
pub(super) const TTL: Ttl = Ttl::MIN;

/// How long after its end an expired key may still be there: sweeping is not instant.
pub(super) const SWEEP: Duration = Duration::from_secs(1);

/// How long a key that has ended may still be read: clocks are read at different moments. What
/// hangs on a lease is there for all until the server has ended that.
pub(super) fn read_grace(node: &Node) -> Duration {
    if node.lease.is_some() {
        SWEEP
    } else {
        Duration::from_millis(100)
    }
}

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(10);

/// How long to wait between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A store and a directory of it. Clones share both.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    pub(super) dir: Key,
    pub(super) clock: Clock,
    entropy: Entropy,
}

impl Deref for Subject {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

impl Subject {
    /// Writes a node that was last modified at `index`.
    pub(super) async fn replace(
        &self,
        key: &Key,
        value: Bytes,
        index: Index,
        expiry: Expiry,
    ) -> Result<Written, Error> {
        let put = Put::new(key.clone(), value, expiry);
        self.put(put.when(Condition::Index(index))).await
    }

    pub(super) fn new(store: Arc<dyn Store>, dir: Key) -> Self {
        Self {
            store,
            dir,
            clock: Clock::tokio(),
            entropy: Entropy::os(),
        }
    }

    /// The key `path` below the check's directory.
    pub(super) fn key(&self, path: &str) -> Checked<Key> {
        Ok(Key::new(format!("{}/{path}", self.dir))?)
    }

    /// Writes a permanent file, whatever was there.
    pub(super) async fn write(&self, path: &str, value: &str) -> Checked<Written> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let put = Put::new(self.key(path)?, value, Expiry::Never);
        Ok(self.put(put).await?)
    }

    /// The node at `path`.
    pub(super) async fn read(&self, path: &str) -> Checked<Option<Node>> {
        Ok(self.store.node(&self.key(path)?).await?)
    }

    /// The text at `path`, if there is a node.
    pub(super) async fn text(&self, path: &str) -> Checked<Option<String>> {
        let node = self.read(path).await?;
        Ok(node.map(|node| String::from_utf8_lossy(&node.value).into_owned()))
    }

    /// The names of the children of `path`.
    pub(super) async fn list(&self, path: &str) -> Checked<Vec<String>> {
        let nodes = self.children(&self.key(path)?).await?;
        Ok(names(&nodes))
    }

    /// The name of a lease that nobody has used.
    pub(super) fn new_lease(&self) -> LeaseId {
        loop {
            if let Some(lease) = LeaseId::new(self.entropy.u64() >> 1) {
                return lease;
            }
        }
    }

    /// A lease that has been granted for the shortest term, and its term.
    pub(super) async fn lease(&self) -> Checked<(LeaseId, Ttl)> {
        let lease = self.new_lease();
        let granted = self.grant(Grant::new(lease, TTL)).await?;
        Ok((lease, granted.ttl))
    }

    /// A tag that nobody has used.
    pub(super) fn tag(&self) -> Tag {
        Tag::new(self.new_lease(), self.entropy.u64())
    }

    /// Adds a permanent ticket to the line `path`.
    pub(super) async fn ticket(&self, path: &str, tag: Tag) -> Checked<Appended> {
        let append = Append::ticket(self.key(path)?, tag, Expiry::Never);
        Ok(self.append(append).await?)
    }

    /// Waits until there is nothing at `path`, which must not be before `earliest`, and must be
    /// for a read that begins after `latest`.
    pub(super) async fn gone(&self, path: &str, earliest: Instant, latest: Instant) -> Checked {
        loop {
            let asked = self.clock.now();
            let node = self.read(path).await?;
            let heard = self.clock.now();
            let Some(node) = node else {
                let early = earliest.since(heard);
                ensure!(early.is_zero(), "{path} is gone {early:?} before its time");
                return Ok(());
            };
            let late = asked.since(latest);
            ensure!(
                late.is_zero(),
                "{path} is still read {late:?} too late: {node:?}"
            );
            self.clock.sleep(LOOK_AGAIN).await;
        }
    }

    /// Checks again and again until `until` that `path` can be read.
    pub(super) async fn stays(&self, path: &str, until: Instant) -> Checked {
        while !self.clock.has_passed(until) {
            let node = self.read(path).await?;
            ensure!(
                node.is_some(),
                "{path} went away, and it should have stayed"
            );
            self.clock.sleep(5 * LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Opens a watch and waits until it is.
    pub(super) async fn follow(&self, watch: Watch) -> Checked<Following> {
        let mut updates = self.watch(watch);
        match item(&mut updates).await?.transpose()? {
            Some(Update::Open(opened)) => Ok(Following {
                updates,
                told: None,
                progress: None,
                opened,
            }),
            other => Err(Failure::new(format!(
                "a watch begins with Open, not {other:?}"
            ))),
        }
    }
}

/// An open watch.
pub(super) struct Following {
    updates: Updates,
    /// The index of the last event.
    told: Option<Index>,
    /// The index up to which all has been told.
    progress: Option<Index>,
    /// The index at which it was open.
    pub(super) opened: Index,
}

impl Following {
    /// The next change. The writes of one commit may share an index; nothing goes back.
    pub(super) async fn event(&mut self) -> Checked<Event> {
        loop {
            match self.next().await? {
                Update::Open(_) => return Err(Failure::new("a watch opens once".into())),
                Update::Progress(index) => self.progress = self.progress.max(Some(index)),
                Update::Event(event) => {
                    let told = Some(event.index);
                    ensure!(told >= self.told, "{event:?} comes after {:?}", self.told);
                    let progress = self.progress;
                    ensure!(
                        told > progress,
                        "{event:?} comes after progress to {progress:?}"
                    );
                    self.told = told;
                    return Ok(event);
                }
            }
        }
    }

    /// The next change must be this write.
    pub(super) async fn sees_put(&mut self, written: &Node) -> Checked {
        let event = self.event().await?;
        let Change::Put(node) = &event.change else {
            return Err(Failure::new(format!(
                "wanted the write of {written:?}, got {event:?}"
            )));
        };
        let told = (
            &event.key,
            event.index,
            &node.key,
            &node.value,
            node.modified,
            node.created,
        );
        let wanted = (
            &written.key,
            written.modified,
            &written.key,
            &written.value,
            written.modified,
            written.created,
        );
        ensure_eq!(told, wanted, "the next event is this write");
        Ok(())
    }

    /// The next change must be the deletion of this key; returns its index and whether it
    /// expired.
    pub(super) async fn sees_delete(&mut self, key: &Key) -> Checked<(Index, bool)> {
        let event = self.event().await?;
        match event.change {
            Change::Delete { expired } if event.key == *key => Ok((event.index, expired)),
            _ => Err(Failure::new(format!(
                "wanted the deletion of {key}, got {event:?}"
            ))),
        }
    }

    /// The next changes must be the deletion of a tree with these files in it: one event, or, where
    /// there are no directories, one for each, all at one index. That index.
    pub(super) async fn sees_tree_deleted(
        &mut self,
        on: &Subject,
        top: &Key,
        files: &[Key],
    ) -> Checked<Index> {
        if on.about().directories {
            return Ok(self.sees_delete(top).await?.0);
        }
        let mut told = Vec::new();
        for _ in files {
            told.push(self.event().await?);
        }
        told.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let mut files: Vec<&Key> = files.iter().collect();
        files.sort_unstable();
        let keys: Vec<&Key> = told.iter().map(|event| &event.key).collect();
        ensure_eq!(keys, files, "what was deleted with {top}");
        let Some(first) = told.first() else {
            return Err(Failure::new("a tree without files".into()));
        };
        let deleted = |it: &Event| matches!(it.change, Change::Delete { .. });
        let as_one = told.iter().all(|it| deleted(it) && it.index == first.index);
        ensure!(as_one, "wanted the deletion of {top}, got {told:?}");
        Ok(first.index)
    }

    /// The next item, as it comes.
    pub(super) async fn item(&mut self) -> Checked<Option<Result<Update, Error>>> {
        item(&mut self.updates).await
    }

    async fn next(&mut self) -> Checked<Update> {
        match self.item().await? {
            Some(update) => Ok(update?),
            None => Err(Failure::new("a watch ends only after an error".into())),
        }
    }
}

async fn item(updates: &mut Updates) -> Checked<Option<Result<Update, Error>>> {
    let next = tokio::time::timeout(SOON, updates.next()).await;
    next.map_err(|_| Failure::new(format!("the watch said nothing for {SOON:?}")))
}

/// The call must have been refused, and so.
pub(super) fn refused<T: std::fmt::Debug>(
    answer: Result<T, Error>,
    kind: ErrorKind,
    what: &str,
) -> Checked<Error> {
    match answer {
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::new(format!(
            "{what}: wanted {kind:?}, found {:?}: {error}",
            error.kind()
        ))),
        Ok(answer) => Err(Failure::new(format!(
            "{what}: wanted {kind:?}, found {answer:?}"
        ))),
    }
}

/// The last segments of the nodes' keys.
pub(super) fn names(nodes: &[Node]) -> Vec<String> {
    nodes
        .iter()
        .map(|node| node.key.name().to_owned())
        .collect()
}
