//! One change.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;

use super::super::watch::{Report, Target, follow};
use super::{Client, IntoKey, Response};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};

impl Client {
    /// Waits for the next change of a key, which need not be there yet.
    ///
    /// The wait survives broken connections, restarts of the server and proxies that cut what is
    /// idle: quiet polls are renewed ([`Builder::poll_period`](super::super::Builder::poll_period)).
    /// A refresh of a time-to-live is no change. To wait on, name the index after the change's:
    /// `response.node.modified_index.next()`; or use [`eternal_watch`](Self::eternal_watch).
    ///
    /// Costs one request for each poll, and a connection while it waits.
    ///
    /// # Errors
    /// `Timeout`; `HistoryLost` when the index is no longer kept (etcd's code 401), or when the
    /// cluster has not come to it: it was restored from a backup; `ClusterChanged`; `Unreachable`
    /// or `Unavailable` when no server could be reached for
    /// [`Builder::watch_patience`](super::super::Builder::watch_patience).
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait. A wait from now on that is begun again misses what
    /// happened in between; one with an index does not.
    pub fn watch(&self, key: impl IntoKey) -> Watch {
        Watch {
            client: self.clone(),
            key: key.into_key(),
            index: None,
            recursive: false,
            timeout: None,
        }
    }
}

/// A wait that begins when awaited: see [`Client::watch`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Watch {
    client: Client,
    key: Result<Key>,
    index: Option<Index>,
    recursive: bool,
    timeout: Option<Duration>,
}

impl Watch {
    /// The first change at or after this index, which may already have happened. Default: from now
    /// on.
    pub fn index(mut self, index: Index) -> Self {
        self.index = Some(index);
        self
    }

    /// Of everything below the key too, except what is hidden there (a name that begins with `_`).
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// How long to wait. Default: for ever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(super) async fn next(self) -> Result<Response> {
        let driver = self.client.driver;
        let target = Target {
            key: self.key?,
            tree: self.recursive,
            from: self.index,
            patience: Some(driver.watch_patience),
        };
        let key = target.key.clone();
        let clock = driver.runtime.clock.clone();
        let mut reports = follow(driver, target);
        let change = async {
            while let Some(report) = reports.next().await {
                if let Report::Event(index, reply) = report? {
                    return Ok(Response::event(index, *reply));
                }
            }
            // The machine ends in an error only.
            Err(Error::new(ErrorKind::Closed, "the watch has ended"))
        };
        let outcome = match self.timeout {
            None => change.await,
            Some(timeout) => tokio::select! {
                biased;
                change = change => change,
                () = clock.sleep(timeout) => {
                    let text = format!("no change within {timeout:?}");
                    Err(Error::new(ErrorKind::Timeout, text))
                }
            },
        };
        outcome.map_err(|it| it.during("watch").at(&key))
    }
}

impl IntoFuture for Watch {
    type Output = Result<Response>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.next().await.map_err(|it| it.during("watch")) })
    }
}
