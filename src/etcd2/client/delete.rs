//! Deletions.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use http::Method;

use super::super::request::Params;
use super::super::write::check_root;
use super::{Client, IntoKey, Node, Response};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::transport::Repeat;

impl Client {
    /// Deletes a file; with [`dir`](Delete::dir) an empty directory, with
    /// [`recursive`](Delete::recursive) one with all that is in it.
    ///
    /// Costs one write. A condition on an empty value, or on one too long for a URL (about 4,000
    /// bytes escaped), costs a linearizable read before it.
    ///
    /// # Errors
    /// `NotFound`; `NotAFile` for a directory; `DirectoryNotEmpty`; `ConditionFailed`;
    /// `RootReadOnly`; `Ambiguous` when no answer came: it may be gone, or may still go.
    /// `InvalidKey` and `InvalidOptions` before anything is sent.
    ///
    /// # Cancel safety
    /// A future that is dropped half-way may have deleted the key, or may still.
    pub fn delete(&self, key: impl IntoKey) -> Delete {
        Delete {
            client: self.clone(),
            key: key.into_key(),
            recursive: false,
            dir: false,
            prev_value: None,
            prev_index: None,
            timeout: None,
        }
    }

    /// Deletes a file and returns it as it was. One write.
    ///
    /// # Errors
    /// As [`delete`](Self::delete). With `Ambiguous` the file may be lost: to take work from a
    /// queue, claim it first.
    ///
    /// # Cancel safety
    /// As [`delete`](Self::delete).
    pub async fn pop(&self, key: impl IntoKey) -> Result<Node> {
        let response = self.delete(key).run("pop").await?;
        response.prev_node.ok_or_else(|| {
            let text = "the deletion was acknowledged without the node that was there";
            Error::new(ErrorKind::Protocol, text).on(&*response.server)
        })
    }
}

/// A deletion that is sent when awaited: see [`Client::delete`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Delete {
    client: Client,
    key: Result<Key>,
    recursive: bool,
    dir: bool,
    prev_value: Option<String>,
    prev_index: Option<Index>,
    timeout: Option<Duration>,
}

impl Delete {
    /// A directory and all that is in it, or a file. Not with a condition.
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// An empty directory, or a file. Not with a condition.
    pub fn dir(mut self) -> Self {
        self.dir = true;
        self
    }

    /// Only if it holds this.
    pub fn prev_value(mut self, value: impl Into<String>) -> Self {
        self.prev_value = Some(value.into());
        self
    }

    /// Only if this was its last modification.
    pub fn prev_index(mut self, index: Index) -> Self {
        self.prev_index = Some(index);
        self
    }

    /// How long it may take, all attempts together. Default: [`Client::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self, operation: &'static str) -> Result<Response> {
        let key = self.key.clone().map_err(|it| it.during(operation))?;
        let outcome = self.send(&key).await;
        outcome.map_err(|it| it.during(operation).at(&key))
    }

    async fn send(self, key: &Key) -> Result<Response> {
        let conditional = self.prev_value.is_some() || self.prev_index.is_some();
        if conditional && (self.dir || self.recursive) {
            let text = "etcd v2 deletes directories without conditions only";
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        check_root(key)?;
        let driver = &self.client.driver;
        let deadline = self.client.deadline(self.timeout);
        // In the query: in a body etcd would not see the conditions, and delete all the same.
        let make = |params: Params| driver.query(Method::DELETE, key, &params);
        let reply = match self.prev_value {
            Some(value) => {
                let value = value.into();
                let compared = driver.compared(key, &value, self.prev_index, deadline, make);
                compared.await?
            }
            None => {
                let mut params = Params::new().previous(None, self.prev_index);
                if self.dir {
                    params = params.flag("dir");
                }
                if self.recursive {
                    params = params.flag("recursive");
                }
                let call = make(params)?;
                driver.write(&call, Repeat::NeverSent, deadline).await?
            }
        };
        Ok(Response::of(reply))
    }
}

impl IntoFuture for Delete {
    type Output = Result<Response>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run("delete"))
    }
}
