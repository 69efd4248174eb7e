//! Short words for the common requests. Blanket-implemented: a store never overrides them.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::store::{
    Append, Appended, Condition, Delete, Deleted, Event, Expiry, Get, Node, Put, Store, Update,
    Watch, Written, settle,
};

/// How often [`StoreExt::pop`] looks again at a node that others keep writing.
const POPS: usize = 8;

/// Verbs for every [`Store`], the same over all of them.
///
/// Errors and cancel safety are those of the method behind, and so is the cost (one call) unless
/// something else is said. After an `Ambiguous` outcome a write that names the index it replaces finds
/// out, as far as that is possible; of any other the error says what may have happened, what may
/// still, and how to find out. To follow a key or a tree for longer than one change, and through lost
/// connections and lost history, use a [`Watcher`](crate::watcher::Watcher).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> tenure::Result<()> {
/// use tenure::{ErrorKind, Key, StoreExt, embedded::Embedded, store::Expiry};
///
/// let store = Embedded::new();
/// let key = Key::new("/config/limit")?;
/// store.create(&key, "10".into(), Expiry::Never).await?;
///
/// // Optimistic: read, change, write back only if nobody came in between.
/// let mut node = store.node(&key).await?.expect("just written");
/// node.value = "20".into();
/// let keep = node.expiry()?;
/// store.update(&node, keep).await?;
/// let error = store.update(&node, keep).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::ConditionFailed);
///
/// store.append_value(&Key::new("/nodes/queue")?, "test".into(), Expiry::Never).await?;
/// assert_eq!(store.leaves(&Key::new("/nodes")?).await?.len(), 1);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait StoreExt: Store {
    /// The node at `key`, read linearizably.
    async fn node(&self, key: &Key) -> Result<Option<Node>> {
        Ok(self.get(Get::node(key.clone())).await?.nodes.pop())
    }

    /// The direct children of `key` in key order, read linearizably.
    async fn children(&self, key: &Key) -> Result<Vec<Node>> {
        Ok(self.get(Get::children(key.clone())).await?.nodes)
    }

    /// The node at `key` and all below it in key order, directories included, read linearizably
    /// and at one index.
    async fn tree(&self, key: &Key) -> Result<Vec<Node>> {
        Ok(self.get(Get::tree(key.clone())).await?.nodes)
    }

    /// The same without the directories. An empty directory has no leaves, and is none.
    async fn leaves(&self, key: &Key) -> Result<Vec<Node>> {
        let mut nodes = self.tree(key).await?;
        nodes.retain(|node| !node.is_dir);
        Ok(nodes)
    }

    /// Whether there is a node at `key`, read linearizably. A directory is one.
    async fn contains(&self, key: &Key) -> Result<bool> {
        let get = Get::node(key.clone()).keys_only();
        Ok(!self.get(get).await?.nodes.is_empty())
    }

    /// Writes a node, whatever was there.
    async fn set(&self, key: &Key, value: Bytes, expiry: Expiry) -> Result<Written> {
        settle::put(self, Put::new(key.clone(), value, expiry)).await
    }

    /// Writes a node where there was none.
    async fn create(&self, key: &Key, value: Bytes, expiry: Expiry) -> Result<Written> {
        let put = Put::new(key.clone(), value, expiry);
        settle::put(self, put.when(Condition::Absent)).await
    }

    /// Writes a node where there is one.
    async fn replace(&self, key: &Key, value: Bytes, expiry: Expiry) -> Result<Written> {
        let put = Put::new(key.clone(), value, expiry);
        settle::put(self, put.when(Condition::Present)).await
    }

    /// Writes back a node that was read, with the value that it has by now, unless it was modified
    /// since.
    ///
    /// An expiry has to be said: a write gives a node a new one. [`Node::expiry`] is the one it
    /// had.
    ///
    /// Without an answer the node is read back, and while it is as it was it is written again, 3
    /// times in all: of writes that name one index one takes effect.
    ///
    /// # Errors
    /// `ConditionFailed` when somebody else wrote it (on etcd v2 also: when its time-to-live was
    /// refreshed); `NotFound` when it is gone. Read it again, and decide again. `Ambiguous`: an answer
    /// was lost, and somebody has written the key since, this or another. The text says what is there;
    /// a value that nobody else writes tells whose it is.
    async fn update(&self, node: &Node, expiry: Expiry) -> Result<Written> {
        let put = Put::new(node.key.clone(), node.value.clone(), expiry);
        settle::put(self, put.when(Condition::Index(node.modified))).await
    }

    /// Writes `value` where `expected` is ("test and set").
    ///
    /// # Errors
    /// As [`put`](Store::put). `Ambiguous`: it may have been written, or may still be whenever the key
    /// holds `expected`; [`update`](Self::update) finds out by itself.
    async fn compare_and_swap(
        &self,
        key: &Key,
        expected: Bytes,
        value: Bytes,
        expiry: Expiry,
    ) -> Result<Written> {
        let put = Put::new(key.clone(), value, expiry);
        settle::put(self, put.when(Condition::Value(expected))).await
    }

    /// Adds a value to a directory under a name that the store makes, in the order of the appends.
    ///
    /// # Errors
    /// `Ambiguous`: it may have been added, and nothing tells ([`Naming::Raw`]). To append again
    /// may be to append twice.
    ///
    /// [`Naming::Raw`]: crate::store::Naming::Raw
    async fn append_value(&self, dir: &Key, value: Bytes, expiry: Expiry) -> Result<Appended> {
        let note = "nothing tells whether it was added: to append again may be to append twice";
        settle::noted(
            self.append(Append::raw(dir.clone(), value, expiry)).await,
            note,
        )
    }

    /// Deletes the node at `key` and returns it; `None` if there was none. Of several callers one
    /// gets it.
    ///
    /// Cost: a linearizable read and a write; both again whenever somebody writes in between.
    ///
    /// # Errors
    /// `NotAFile` for a directory. `Ambiguous`: an answer was lost and the node is gone, by this or by
    /// another; it may be that nobody has got it. `Unavailable` when it was written again and again in between.
    ///
    /// # Cancel safety
    /// Dropping the future can delete the node without anybody having got it.
    async fn pop(&self, key: &Key) -> Result<Option<Node>> {
        for _ in 0..POPS {
            let Some(node) = self.node(key).await? else {
                return Ok(None);
            };
            match self.remove_if(key, Condition::Index(node.modified)).await {
                Ok(Some(_)) => return Ok(Some(node)),
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::ConditionFailed => {}
                Err(error) => return Err(error),
            }
        }
        let text = "the node kept changing while it was being taken";
        let error = Error::new(ErrorKind::Unavailable, text).during("pop");
        Err(error.at(key).on(&*self.about().name))
    }

    /// Deletes a node; `None` if there was none.
    async fn remove(&self, key: &Key) -> Result<Option<Deleted>> {
        self.remove_if(key, Condition::Any).await
    }

    /// Deletes a node on a condition; `None` if there was none.
    ///
    /// With an [index](Condition::Index) the node is read back after a lost answer, and while it is
    /// as it was it is deleted again, 3 times in all.
    ///
    /// # Errors
    /// As [`delete`](Store::delete). `Ambiguous` with an index: it is gone, by this or by another; no
    /// more comes of this unless the text says so.
    async fn remove_if(&self, key: &Key, condition: Condition) -> Result<Option<Deleted>> {
        found(settle::delete(self, Delete::new(key.clone()).when(condition)).await)
    }

    /// Deletes a node, or a directory with all in it; `None` if there was none.
    async fn remove_tree(&self, key: &Key) -> Result<Option<Deleted>> {
        found(settle::delete(self, Delete::tree(key.clone())).await)
    }

    /// Waits for the next change that the watch tells. Put a timeout around it.
    ///
    /// From an index ([`Watch::from`]) nothing is missed between two calls: wait from the index
    /// after the last change seen, or after that of a view. Without one it is the next change
    /// after the watch is open.
    ///
    /// # Errors
    /// What ends the watch. After `HistoryLost` list again, and wait from the list's index; after
    /// any other, from the same index as before.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing if the next call gives an index.
    async fn wait(&self, watch: Watch) -> Result<Event> {
        let key = watch.key.clone();
        let mut updates = self.watch(watch);
        while let Some(update) = updates.next().await {
            if let Update::Event(event) = update? {
                return Ok(event);
            }
        }
        let text = "the watch ended without an error";
        let error = Error::new(ErrorKind::Unavailable, text).during("watch");
        Err(error.at(&key).on(&*self.about().name))
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// Turns "not found" into an answer.
fn found(outcome: Result<Deleted>) -> Result<Option<Deleted>> {
    match outcome {
        Ok(deleted) => Ok(Some(deleted)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
