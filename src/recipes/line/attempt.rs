//! A place that is taken only if it is the first: who only tries waits for nobody.

use std::sync::Arc;

use bytes::Bytes;

use super::ticket::Ticket;
use crate::client::{Core, Keep};
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::store::{Freshness, Get, Store};

impl Ticket {
    /// Takes the first place if nobody is seen in line: looks, and appends only then. `None` when
    /// somebody is there, or came between the look and the append.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    ///
    /// # Cancel safety
    /// As [`take`](Self::take).
    pub(crate) async fn try_take(
        core: &Arc<Core>,
        dir: &Key,
        keep: &Keep,
        body: &Bytes,
    ) -> Result<Option<Self>> {
        if Self::is_seen_in(core, dir).await? {
            return Ok(None);
        }
        Self::take(core, dir, keep, body)
            .await?
            .admitted_now()
            .await
    }

    /// Whether anybody is seen in line: a look at what this client has seen, or later.
    pub(crate) async fn is_seen_in(core: &Core, dir: &Key) -> Result<bool> {
        let seen = core.seen().map_or(Freshness::Any, Freshness::AtLeast);
        let look = Get::children(dir.clone()).fresh(seen).keys_only();
        let view = core.store.get(look).await.inspect_err(|error| {
            if error.kind() == ErrorKind::ClusterChanged {
                // Told once; what this client has seen counts for nothing there.
                core.forget_seen();
            }
        })?;
        let mut nodes = view.nodes.iter();
        Ok(nodes.any(|node| core.layout.ticket(dir, node).is_some()))
    }

    /// Takes the place if the line's rule admits it now, and gives it up otherwise.
    pub(crate) async fn admitted_now(mut self) -> Result<Option<Self>> {
        self.look().await?;
        if let Some(limit) = self.admission()? {
            self.hold(limit)?;
            return Ok(Some(self));
        }
        self.release().await?;
        Ok(None)
    }
}
