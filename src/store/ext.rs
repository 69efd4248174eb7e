//! Short words for the common requests. Blanket-implemented: a store never overrides them.

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::key::{Index, Key};
use crate::store::{Condition, Delete, Deleted, Expiry, Get, Node, Put, Store, Written};

/// Verbs for every [`Store`]. Errors, cost and cancel safety are those of the method behind.
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

    /// Writes a node, whatever was there.
    async fn set(&self, key: &Key, value: Bytes, expiry: Expiry) -> Result<Written> {
        self.put(Put::new(key.clone(), value, expiry)).await
    }

    /// Writes a node where there was none.
    async fn create(&self, key: &Key, value: Bytes, expiry: Expiry) -> Result<Written> {
        self.put(Put::new(key.clone(), value, expiry).when(Condition::Absent))
            .await
    }

    /// Writes a node that was last modified at `index`.
    async fn replace(
        &self,
        key: &Key,
        value: Bytes,
        index: Index,
        expiry: Expiry,
    ) -> Result<Written> {
        self.put(Put::new(key.clone(), value, expiry).when(Condition::Index(index)))
            .await
    }

    /// Deletes a node; `None` if there was none.
    async fn remove(&self, key: &Key) -> Result<Option<Deleted>> {
        self.remove_if(key, Condition::Any).await
    }

    /// Deletes a node on a condition; `None` if there was none.
    async fn remove_if(&self, key: &Key, condition: Condition) -> Result<Option<Deleted>> {
        match self.delete(Delete::new(key.clone()).when(condition)).await {
            Ok(deleted) => Ok(Some(deleted)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
