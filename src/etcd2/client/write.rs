//! Writes: one request type with all options, and the shorthands for what is common.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use super::{Client, IntoKey, Lifetime, Node, Response};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};

impl Client {
    /// A write with all options: of a file, unless [`dir`](Write::dir) or
    /// [`append`](Write::append) say otherwise. Directories above it are made, permanent ones.
    ///
    /// Costs what its [`Lifetime`] says: by default a linearizable read and a write, with a
    /// time-to-live or [`permanent`](Write::permanent) the write alone.
    ///
    /// # Errors
    /// `ConditionFailed`, `AlreadyExists`, `NotFound`: a condition does not hold. `NotAFile`,
    /// `NotADirectory`: there is something of the other kind at the key, or above it.
    /// `RootReadOnly`. `Ambiguous`: no answer came, and it may have been done or may still be.
    /// `Unavailable`: nothing was written, for instance because others kept changing the key.
    /// `InvalidKey`, `InvalidTtl`, `InvalidValue` (the request has more than 10 MiB) and
    /// `InvalidOptions` (see the methods) before anything is sent.
    ///
    /// # Cancel safety
    /// A write that is dropped half-way may have been done, or may still be.
    pub fn write(&self, key: impl IntoKey) -> Write {
        self.writing("write", key)
    }

    /// Writes a value, whatever is there; the time-to-live of what is there stays, unless another
    /// one is given: see [`Lifetime`].
    ///
    /// Cost, errors and cancel safety as [`write`](Self::write).
    pub fn set(&self, key: impl IntoKey, value: impl Into<String>) -> Write {
        self.writing("set", key).value(value)
    }

    /// Writes a value where nothing is. One write.
    ///
    /// Errors (`AlreadyExists`) and cancel safety as [`write`](Self::write).
    pub fn create(&self, key: impl IntoKey, value: impl Into<String>) -> Write {
        let write = self.writing("create", key).value(value);
        write.prev_exist(false)
    }

    /// Writes a value where a file is; its time-to-live stays, unless another one is given.
    ///
    /// Cost, errors (`NotFound`) and cancel safety as [`write`](Self::write).
    pub fn replace(&self, key: impl IntoKey, value: impl Into<String>) -> Write {
        let write = self.writing("replace", key).value(value);
        write.prev_exist(true)
    }

    /// Writes a value if this is what the file holds; its time-to-live stays, unless another one
    /// is given.
    ///
    /// Cost, errors (`NotFound`, `ConditionFailed`) and cancel safety as [`write`](Self::write).
    pub fn test_and_set(
        &self,
        key: impl IntoKey,
        value: impl Into<String>,
        prev_value: impl Into<String>,
    ) -> Write {
        let write = self.writing("test_and_set", key).value(value);
        write.prev_value(prev_value)
    }

    /// Writes back a file that was read, with the value that `node` has now, if nobody has
    /// modified it since (a refresh of its time-to-live counts as that). What is left of its
    /// time-to-live stays, unless another one is given.
    ///
    /// Costs one write, and for a file with a time-to-live one linearizable read. A directory has
    /// no value to write back: `InvalidOptions`. To change its time-to-live, use
    /// `write(key).dir().prev_exist(true).ttl(..)`.
    ///
    /// Other errors (`NotFound`, `ConditionFailed`) and cancel safety as [`write`](Self::write).
    pub fn update(&self, node: &Node) -> Write {
        let write = self.writing("update", node);
        let write = write.value(node.value.as_deref().unwrap_or_default());
        let write = write.prev_index(node.modified_index);
        if node.dir {
            // Refused for having a value.
            write.dir()
        } else if node.ttl.is_none() && node.expiration.is_none() {
            // A time-to-live given since would have been a modification.
            write.permanent()
        } else {
            write
        }
    }

    /// Creates a file in a directory (made if need be), under the next number: 20 digits, in the
    /// order of the calls, with gaps. One write.
    ///
    /// # Errors
    /// As [`write`](Self::write). After `Ambiguous` there may be such a file: find it by its value,
    /// if that is unique.
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub fn append(&self, dir: impl IntoKey, value: impl Into<String>) -> Write {
        self.writing("append", dir).value(value).append()
    }

    /// Makes a directory where nothing is. One write.
    ///
    /// Errors (`AlreadyExists`) and cancel safety as [`write`](Self::write).
    pub fn make_dir(&self, key: impl IntoKey) -> Write {
        self.writing("make_dir", key).dir()
    }

    /// Gives a file or directory this time-to-live from now on and leaves all else: its value
    /// stays, no watch wakes. One write.
    ///
    /// Its index of modification moves, though: a condition on an index read before fails.
    ///
    /// Errors (`NotFound`) and cancel safety as [`write`](Self::write).
    pub fn refresh(&self, key: impl IntoKey, ttl: impl Into<Duration>) -> Write {
        self.writing("refresh", key).refresh().ttl(ttl)
    }

    fn writing(&self, operation: &'static str, key: impl IntoKey) -> Write {
        Write {
            client: self.clone(),
            operation,
            key: key.into_key(),
            value: None,
            lifetime: Lifetime::default(),
            prev_exist: None,
            prev_value: None,
            prev_index: None,
            dir: false,
            append: false,
            refresh: false,
            timeout: None,
        }
    }
}

/// A write that is sent when awaited: see [`Client::write`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Write {
    pub(super) client: Client,
    operation: &'static str,
    key: Result<Key>,
    pub(super) value: Option<String>,
    pub(super) lifetime: Lifetime,
    pub(super) prev_exist: Option<bool>,
    pub(super) prev_value: Option<String>,
    pub(super) prev_index: Option<Index>,
    pub(super) dir: bool,
    pub(super) append: bool,
    pub(super) refresh: bool,
    pub(super) timeout: Option<Duration>,
}

impl Write {
    /// What to write. Default: the empty value. Not with [`dir`](Self::dir) or
    /// [`refresh`](Self::refresh).
    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// How long it lives. Default: [`Lifetime::Keep`].
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// It lives this long from now on: 1 s to a hundred years, in whole seconds rounded up. Another
    /// value is reported as `InvalidTtl` when it is awaited.
    pub fn ttl(self, ttl: impl Into<Duration>) -> Self {
        self.lifetime(Lifetime::Ttl(ttl.into()))
    }

    /// It lives for ever, even if what is there now does not.
    pub fn permanent(self) -> Self {
        self.lifetime(Lifetime::Permanent)
    }

    /// Only if there is something at the key, or only if there is nothing. With nothing asked for,
    /// no previous value or index can be.
    pub fn prev_exist(mut self, exists: bool) -> Self {
        self.prev_exist = Some(exists);
        self
    }

    /// Only if the file holds this. For the empty value this costs a linearizable read, if none is
    /// done anyway: etcd cannot be asked for it.
    pub fn prev_value(mut self, value: impl Into<String>) -> Self {
        self.prev_value = Some(value.into());
        self
    }

    /// Only if this was the file's last modification, a refresh included.
    pub fn prev_index(mut self, index: Index) -> Self {
        self.prev_index = Some(index);
        self
    }

    /// A directory. It must not be there yet; with [`prev_exist(true)`](Self::prev_exist) it must,
    /// and gets another lifetime, which has to be said. That costs a linearizable read, because
    /// etcd would take a file for it and empty that. (A file that takes the directory's place
    /// between the read and the write can still be met: etcd has no condition against it.)
    pub fn dir(mut self) -> Self {
        self.dir = true;
        self
    }

    /// Not the key itself, but a new one in the directory that it names: see [`Client::append`].
    /// Takes no condition.
    pub fn append(mut self) -> Self {
        self.append = true;
        self
    }

    /// Not a new value, but a new time-to-live, which has to be given: see [`Client::refresh`].
    pub fn refresh(mut self) -> Self {
        self.refresh = true;
        self
    }

    /// How long it may take, all requests and attempts together. Default: [`Client::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<Response> {
        let operation = self.operation;
        let key = self.key.clone().map_err(|it| it.during(operation))?;
        let outcome = match self.check() {
            Ok(()) => self.send(&key).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|it| it.during(operation).at(&key))
    }

    /// Refuses what etcd would ignore or take for something else.
    fn check(&self) -> Result<()> {
        if let Lifetime::Ttl(ttl) = self.lifetime {
            Lifetime::seconds(ttl)?;
        }
        let compares = self.prev_value.is_some() || self.prev_index.is_some();
        let conditional = compares || self.prev_exist.is_some();
        let keeps = self.lifetime == Lifetime::Keep;
        let text = if self.append && (conditional || self.refresh) {
            "append makes a new key: it takes no condition and is no refresh"
        } else if self.dir && self.value.is_some() {
            "a directory has no value"
        } else if self.dir && compares {
            "a directory has no value or index to compare; etcd takes prev_exist only"
        } else if self.refresh && self.value.is_some() {
            "a refresh leaves the value: leave it out"
        } else if self.refresh && self.dir {
            "a refresh takes files and directories alike: leave dir out"
        } else if self.refresh && !matches!(self.lifetime, Lifetime::Ttl(_)) {
            "a refresh needs a time-to-live"
        } else if self.refresh && self.prev_exist == Some(false) {
            "a refresh of what is not there would create it empty"
        } else if self.prev_exist == Some(false) && compares {
            "where nothing is there is no value or index to compare: etcd would ignore them"
        } else if self.dir && self.prev_exist == Some(true) && keeps {
            "of a directory that is there only the lifetime can be written: say which"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidOptions, text))
    }
}

impl IntoFuture for Write {
    type Output = Result<Response>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
