//! How a write is sent.
//!
//! | write | requests |
//! |---|---|
//! | append | POST |
//! | one that cannot cost an older key its time-to-live, and whose conditions etcd can say | PUT |
//! | any other of a file | look (GET, quorum), then PUT on the index seen, or where nothing was |
//! | a directory's lifetime | look, then PUT |
//!
//! A look and its PUT are done again when somebody came between, until the deadline. Nothing but
//! the PUT changes anything, and it is sent once in each round and only if the round before was
//! refused by the server: no write is repeated whose outcome is unknown.

use std::time::Duration;

use http::Method;

use super::super::request::Params;
use super::super::wire::RawNode;
use super::super::write::check_root;
use super::{Lifetime, Response, Write};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Instant;
use crate::transport::Repeat;

/// How often it is looked whether etcd has swept a key whose time has run out.
const SWEEP_POLL: Duration = Duration::from_millis(50);

/// What a look found.
enum Seen {
    /// Nothing: etcd's own words for it.
    Nothing(Error),
    /// A key whose time has run out.
    Expired(Index),
    Dir,
    File(File),
}

struct File {
    value: String,
    modified: Index,
    /// What is left of its time-to-live, in seconds.
    left: Option<u64>,
}

impl Write {
    pub(super) async fn send(&self, key: &Key) -> Result<Response> {
        let deadline = self.client.deadline(self.timeout);
        if self.append {
            return self
                .request(Method::POST, key, self.body(None), deadline)
                .await;
        }
        check_root(key)?;
        if self.dir && self.prev_exist == Some(true) {
            return self.change_dir(key, deadline).await;
        }
        if self.needs_look() {
            return self.look_and_put(key, deadline).await;
        }
        let mut conditions = Params::new();
        if self.refresh || self.prev_exist == Some(true) {
            conditions = conditions.flag("prevExist");
        } else if self.dir || self.prev_exist == Some(false) {
            // Of a directory without it etcd would replace a file.
            conditions = conditions.with("prevExist", "false");
        }
        let conditions = conditions.previous(self.prev_value.as_deref(), self.prev_index);
        self.put(key, self.body(None).and(&conditions), deadline)
            .await
    }

    fn needs_look(&self) -> bool {
        let creates = self.dir || self.prev_exist == Some(false);
        let keeps = self.lifetime == Lifetime::Keep && !creates;
        // etcd cannot compare with the empty value.
        let empty = self.prev_value.as_deref() == Some("");
        // Of a directory etcd would take an empty value as a new time-to-live.
        let blank = self.value.as_deref().unwrap_or_default().is_empty()
            && !self.refresh
            && self.prev_exist == Some(true)
            && self.prev_value.is_none()
            && self.prev_index.is_none();
        keeps || empty || blank
    }

    /// What is written; `left` is the time-to-live that a lifetime of `Keep` keeps.
    fn body(&self, left: Option<u64>) -> Params {
        let params = if self.refresh {
            Params::new().flag("refresh")
        } else if self.dir {
            Params::new().flag("dir")
        } else {
            Params::new().with("value", self.value.as_deref().unwrap_or_default())
        };
        let ttl = match self.lifetime {
            Lifetime::Keep => left,
            // Checked before anything is sent.
            Lifetime::Ttl(ttl) => Lifetime::seconds(ttl).ok(),
            Lifetime::Permanent => None,
        };
        match ttl {
            Some(ttl) => params.number("ttl", ttl),
            None => params,
        }
    }

    async fn look_and_put(&self, key: &Key, deadline: Instant) -> Result<Response> {
        let compares = self.prev_value.is_some() || self.prev_index.is_some();
        let must_be_there = compares || self.refresh || self.prev_exist == Some(true);
        let clock = &self.client.driver.runtime.clock;
        loop {
            let (left, condition) = match self.look(key, deadline).await? {
                Seen::Nothing(error) if must_be_there => return Err(error),
                Seen::Nothing(_) => (None, Params::new().with("prevExist", "false")),
                Seen::Expired(index) if must_be_there => return Err(expired(index)),
                Seen::Expired(_) => {
                    clock
                        .sleep_until(deadline.min(clock.now() + SWEEP_POLL))
                        .await;
                    if clock.has_passed(deadline) {
                        let text = "its time has run out, and the server does not sweep it";
                        return Err(Error::new(ErrorKind::Unavailable, text));
                    }
                    continue;
                }
                Seen::Dir => {
                    let text = "this is a directory";
                    return Err(Error::new(ErrorKind::NotAFile, text));
                }
                Seen::File(file) => {
                    self.compare(&file)?;
                    (file.left, Params::new().previous(None, Some(file.modified)))
                }
            };
            let error = match self
                .put(key, self.body(left).and(&condition), deadline)
                .await
            {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let overtaken = match error.kind() {
                ErrorKind::ConditionFailed => self.prev_index.is_none(),
                ErrorKind::NotFound | ErrorKind::AlreadyExists => !must_be_there,
                _ => false,
            };
            if !overtaken {
                return Err(error);
            }
            if clock.has_passed(deadline) {
                let text = "others kept changing the key between the look at it and the write";
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
        }
    }

    /// The conditions, where etcd is not asked.
    fn compare(&self, file: &File) -> Result<()> {
        let text = if self.prev_value.as_ref().is_some_and(|it| *it != file.value) {
            "it holds another value"
        } else if self.prev_index.is_some_and(|it| it != file.modified) {
            "it was modified since"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::ConditionFailed, text).seen_at(file.modified))
    }

    async fn change_dir(&self, key: &Key, deadline: Instant) -> Result<Response> {
        match self.look(key, deadline).await? {
            Seen::Nothing(error) => return Err(error),
            Seen::Expired(index) => return Err(expired(index)),
            Seen::File(file) => {
                let text = "this is a file, which etcd would empty";
                let error = Error::new(ErrorKind::NotADirectory, text);
                return Err(error.seen_at(file.modified));
            }
            Seen::Dir => {}
        }
        self.put(key, self.body(None).flag("prevExist"), deadline)
            .await
    }

    /// What is there now, linearizably.
    async fn look(&self, key: &Key, deadline: Instant) -> Result<Seen> {
        let driver = &self.client.driver;
        let call = driver.query(Method::GET, key, &Params::new().flag("quorum"))?;
        match driver.read(&call, 0, deadline).await {
            Ok(reply) => Ok(seen(reply.body.node, reply.index)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Seen::Nothing(error)),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, key: &Key, params: Params, deadline: Instant) -> Result<Response> {
        self.request(Method::PUT, key, params, deadline).await
    }

    async fn request(
        &self,
        method: Method,
        key: &Key,
        params: Params,
        deadline: Instant,
    ) -> Result<Response> {
        let driver = &self.client.driver;
        let call = driver.form(method, key, params)?;
        let reply = driver.write(&call, Repeat::NeverSent, deadline).await?;
        Ok(Response::of(reply))
    }
}

fn seen(node: RawNode, index: Index) -> Seen {
    let modified = Index::new(node.modified_index).unwrap_or(index);
    if node.is_expired() {
        return Seen::Expired(index);
    }
    if node.dir {
        return Seen::Dir;
    }
    Seen::File(File {
        left: u64::try_from(node.ttl).ok().filter(|it| *it > 0),
        value: node.value.unwrap_or_default(),
        modified,
    })
}

fn expired(index: Index) -> Error {
    let text = "its time has run out, and it is about to be swept";
    Error::new(ErrorKind::NotFound, text).seen_at(index)
}
