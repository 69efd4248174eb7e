//! Reads.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use http::Method;

use super::super::request::Params;
use super::{Client, IntoKey, Response, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};

impl Client {
    /// Reads a key: a file with its value, a directory with its children (those whose name begins
    /// with `_` are hidden).
    ///
    /// Costs one local read of the server that is asked, which may lag behind the others: see
    /// [`quorum`](Read::quorum).
    ///
    /// # Errors
    /// `NotFound`, also for a key whose time has run out; `NotADirectory` below a file;
    /// `Unavailable`, `Unreachable` and `Timeout` when nobody answers; `InvalidKey` and
    /// `InvalidOptions` before anything is sent.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub fn read(&self, key: impl IntoKey) -> Read {
        Read {
            client: self.clone(),
            key: key.into_key(),
            recursive: false,
            sorted: false,
            quorum: false,
            wait: false,
            wait_index: None,
            timeout: None,
        }
    }

    /// The same as [`read`](Self::read).
    pub fn get(&self, key: impl IntoKey) -> Read {
        self.read(key)
    }

    /// Whether there is something at the key. One local read.
    ///
    /// # Errors
    /// As [`read`](Self::read), but `NotFound` and `NotADirectory` are a plain no.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn contains(&self, key: impl IntoKey) -> Result<bool> {
        match self.read(key).run("contains").await {
            Ok(_) => Ok(true),
            Err(error) if is_absence(error.kind()) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_absence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A read that is sent when awaited: see [`Client::read`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Read {
    client: Client,
    key: Result<Key>,
    recursive: bool,
    sorted: bool,
    quorum: bool,
    wait: bool,
    wait_index: Option<Index>,
    timeout: Option<Duration>,
}

impl Read {
    /// With everything below it, not only its children. With [`wait`](Self::wait): changes below
    /// it count too.
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// With the children of each directory in the order of their keys. Default: no order at all,
    /// another one each time.
    pub fn sorted(mut self) -> Self {
        self.sorted = true;
        self
    }

    /// As fresh as the last write that anybody was told of: linearizable. Costs a proposal, as a
    /// write does. Not with [`wait`](Self::wait).
    pub fn quorum(mut self) -> Self {
        self.quorum = true;
        self
    }

    /// Not what is there, but the next change: as [`Client::watch`].
    pub fn wait(mut self) -> Self {
        self.wait = true;
        self
    }

    /// With [`wait`](Self::wait), and only with it: the first change at or after this index.
    pub fn wait_index(mut self, index: Index) -> Self {
        self.wait_index = Some(index);
        self
    }

    /// How long it may take, all attempts together. Default: [`Client::timeout`]; with
    /// [`wait`](Self::wait), for ever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self, operation: &'static str) -> Result<Response> {
        let key = self.key.clone().map_err(|it| it.during(operation))?;
        let outcome = match self.check() {
            Err(error) => Err(error),
            Ok(()) if self.wait => self.into_watch(key.clone()).next().await,
            Ok(()) => self.fetch(&key).await,
        };
        outcome.map_err(|it| it.during(operation).at(&key))
    }

    fn check(&self) -> Result<()> {
        let text = match self {
            Self {
                wait: true,
                quorum: true,
                ..
            } => "quorum and wait exclude each other: etcd would answer at once with a plain read",
            Self {
                wait: true,
                sorted: true,
                ..
            } => "a change has no order: leave sorted out",
            Self {
                wait: false,
                wait_index: Some(_),
                ..
            } => "wait_index needs wait: etcd would ignore it",
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::InvalidOptions, text))
    }

    fn into_watch(self, key: Key) -> Watch {
        let mut watch = self.client.watch(key);
        if let Some(index) = self.wait_index {
            watch = watch.index(index);
        }
        if self.recursive {
            watch = watch.recursive();
        }
        match self.timeout {
            Some(timeout) => watch.timeout(timeout),
            None => watch,
        }
    }

    async fn fetch(&self, key: &Key) -> Result<Response> {
        let mut params = Params::new();
        for (name, set) in [
            ("recursive", self.recursive),
            ("sorted", self.sorted),
            ("quorum", self.quorum),
        ] {
            if set {
                params = params.flag(name);
            }
        }
        let driver = &self.client.driver;
        let deadline = self.client.deadline(self.timeout);
        let call = driver.query(Method::GET, key, &params)?;
        let reply = driver.read(&call, 0, deadline).await?;
        let mut response = Response::of(reply);
        if response.node.is_expired() {
            let text = "its time has run out, and it is about to be swept";
            let error = Error::new(ErrorKind::NotFound, text).seen_at(response.etcd_index);
            return Err(error.on(&*response.server));
        }
        response.node.prune();
        Ok(response)
    }
}

impl IntoFuture for Read {
    type Output = Result<Response>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run("read"))
    }
}
