//! Writes: each condition as etcd v2 can say it, and each request sent at most once unless
//! repeating it is provably harmless.

use bytes::Bytes;
use http::Method;

use super::driver::{Driver, Reply};
use super::read::{Found, is_absence};
use super::request::{Params, fitting, text};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, Tag};
use crate::runtime::Instant;
use crate::store::{
    Append, Appended, Condition, Delete, Deleted, Expiry, Freshness, Layout, Naming, Node, Put,
    Withdraw, Withdrawn, Written,
};
use crate::transport::{Call, Repeat};

/// How often a condition is looked at anew when a renewal by somebody else gets in between.
const LOOKS: usize = 4;

impl Driver {
    pub(super) async fn put(&self, put: &Put) -> Result<Written> {
        let deadline = self.deadline();
        check_root(&put.key)?;
        let value = text(&put.value)?;
        let ttl = self.ttl_of(put.expiry)?;
        let mut params = Params::new().with("value", value);
        if let Some(ttl) = ttl {
            params = params.number("ttl", ttl);
        }
        let attaching = match put.expiry {
            Expiry::With(lease) => Some(self.leases.attaching(lease, &put.key, &put.value)),
            _ => None,
        };
        let outcome = self.put_when(put, params, deadline).await;
        if let Some(attaching) = attaching {
            match &outcome {
                Ok(written) => attaching.landed(written.node.modified),
                Err(error) if error.changed_nothing() => attaching.refused(),
                Err(_) => {}
            }
        }
        outcome
    }

    async fn put_when(&self, put: &Put, params: Params, deadline: Instant) -> Result<Written> {
        let key = &put.key;
        let make = |more: Params| self.form(Method::PUT, key, params.clone().and(&more));
        let plain = match &put.when {
            Condition::Any => Params::new(),
            Condition::Absent => Params::new().with("prevExist", "false"),
            // Of a directory etcd would take it as a new time-to-live.
            Condition::Present if put.value.is_empty() => {
                let reply = self.pinned(key, None, None, deadline, make).await?;
                return written(reply);
            }
            Condition::Present => Params::new().flag("prevExist"),
            Condition::Index(index) => Params::new().previous(None, Some(*index)),
            Condition::Value(value) => {
                let reply = self.compared(key, value, None, deadline, make).await?;
                return written(reply);
            }
            Condition::Both { value, index } => {
                let index = Some(*index);
                let reply = self.compared(key, value, index, deadline, make).await?;
                return written(reply);
            }
            Condition::Created(_) => return Err(no_created()),
            Condition::Empty => return Err(Condition::only_a_check()),
        };
        let call = make(plain)?;
        let reply = self.write(&call, Repeat::NeverSent, deadline).await?;
        written(reply)
    }

    pub(super) async fn append(&self, append: &Append) -> Result<Appended> {
        match append.naming {
            Naming::Tag => {
                let key = append.dir.join(&append.tag.to_string())?;
                let put = Put::new(key, append.body.clone(), append.expiry);
                let written = self.put(&put.when(Condition::Absent)).await?;
                Ok(Appended::new(written.node, None))
            }
            Naming::Ticket => {
                let value = Layout::Numbered.ticket_value(append.tag, &append.body);
                self.post(append, &value).await
            }
            Naming::Raw => self.post(append, &append.body).await,
        }
    }

    async fn post(&self, append: &Append, value: &Bytes) -> Result<Appended> {
        let deadline = self.deadline();
        let mut params = Params::new().with("value", text(value)?);
        if let Some(ttl) = self.ttl_of(append.expiry)? {
            params = params.number("ttl", ttl);
        }
        let call = self.form(Method::POST, &append.dir, params)?;
        // A second POST would be a second node.
        let reply = self.write(&call, Repeat::NeverSent, deadline).await?;
        let node = written(reply)?.node;
        if let Expiry::With(lease) = append.expiry {
            let attaching = self.leases.attaching(lease, &node.key, value);
            attaching.landed(node.modified);
        }
        Ok(Appended::new(node, None))
    }

    pub(super) async fn delete(&self, delete: &Delete) -> Result<Deleted> {
        if delete.recursive && delete.when != Condition::Any {
            let text = "a recursive deletion takes no condition";
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        check_root(&delete.key)?;
        match self.delete_when(delete).await {
            Ok(reply) => {
                self.leases.removed(&delete.key);
                Ok(deleted(reply))
            }
            // Below a file there is nothing.
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                Err(error.of_kind(ErrorKind::NotFound))
            }
            Err(error) => Err(error),
        }
    }

    async fn delete_when(&self, delete: &Delete) -> Result<Reply> {
        let deadline = self.deadline();
        let key = &delete.key;
        let make = |params: Params| self.query(Method::DELETE, key, &params);
        let plain = match &delete.when {
            Condition::Any if delete.recursive => Params::new().flag("recursive"),
            Condition::Any | Condition::Present => Params::new(),
            Condition::Index(index) => Params::new().previous(None, Some(*index)),
            Condition::Value(value) => {
                return self.compared(key, value, None, deadline, make).await;
            }
            Condition::Both { value, index } => {
                let index = Some(*index);
                return self.compared(key, value, index, deadline, make).await;
            }
            Condition::Absent => {
                let node = self.file(key, deadline).await?;
                let text = "there is something at the key";
                return Err(Error::new(ErrorKind::ConditionFailed, text).seen_at(node.modified));
            }
            Condition::Created(_) => return Err(no_created()),
            Condition::Empty => return Err(Condition::only_a_check()),
        };
        let call = make(plain)?;
        self.write(&call, Repeat::NeverSent, deadline).await
    }

    /// Sends a write on the condition that the node holds `value`, and was last modified at
    /// `index` if one is given.
    ///
    /// An empty value cannot be sent as a condition, nor can one too long for a query: then the
    /// node is read, compared here, and written on the condition of the index that was read. That
    /// costs one linearizable read more, and another round whenever the node was refreshed in
    /// between.
    pub(super) async fn compared(
        &self,
        key: &Key,
        value: &Bytes,
        index: Option<Index>,
        deadline: Instant,
        make: impl Fn(Params) -> Result<Call>,
    ) -> Result<Reply> {
        let said = Params::new().previous(Some(text(value)?), index);
        if !value.is_empty()
            && let Some(call) = fitting(make(said))?
        {
            return self.write(&call, Repeat::NeverSent, deadline).await;
        }
        self.pinned(key, Some(value), index, deadline, make).await
    }

    /// Reads a file, compares it here with what is given, and sends the write on the condition of
    /// the index that was read.
    async fn pinned(
        &self,
        key: &Key,
        value: Option<&Bytes>,
        index: Option<Index>,
        deadline: Instant,
        make: impl Fn(Params) -> Result<Call>,
    ) -> Result<Reply> {
        for _ in 0..LOOKS {
            let node = self.file(key, deadline).await?;
            let failed = |text: &'static str| {
                Err(Error::new(ErrorKind::ConditionFailed, text).seen_at(node.modified))
            };
            if value.is_some_and(|value| *value != node.value) {
                return failed("it holds another value");
            }
            if index.is_some_and(|index| index != node.modified) {
                return failed("it was modified since");
            }
            let call = make(Params::new().previous(None, Some(node.modified)))?;
            match self.write(&call, Repeat::NeverSent, deadline).await {
                Err(error) if error.kind() == ErrorKind::ConditionFailed => {}
                outcome => return outcome,
            }
        }
        let text = "the node kept changing while it was being compared";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// The file at `key`, or why there is none.
    async fn file(&self, key: &Key, deadline: Instant) -> Result<Node> {
        let node = self.there(key, deadline).await?;
        if node.is_dir {
            let text = "this is a directory";
            return Err(Error::new(ErrorKind::NotAFile, text).seen_at(node.modified));
        }
        Ok(node)
    }

    pub(super) async fn withdraw(&self, withdraw: &Withdraw) -> Result<Withdrawn> {
        let withdrawn = self.take_back(withdraw).await?;
        if let Some(node) = withdraw.node.as_ref().filter(|_| withdrawn.settled) {
            self.leases.removed(&node.key);
        }
        Ok(withdrawn)
    }

    async fn take_back(&self, withdraw: &Withdraw) -> Result<Withdrawn> {
        let deadline = self.deadline();
        let known = withdraw.node.is_some();
        if withdraw.naming == Naming::Tag {
            let key = withdraw.dir.join(&withdraw.tag.to_string())?;
            let call = self.query(Method::DELETE, &key, &Params::new())?;
            // The name is the tag: nobody else's node can be there.
            return match self.write(&call, Repeat::Harmless, deadline).await {
                Ok(reply) => Ok(Withdrawn::new(deleted(reply).index, true, true)),
                Err(error) => absent(error, known),
            };
        }
        let mut node = withdraw.node.clone();
        for _ in 0..LOOKS {
            let ticket = match node.take() {
                Some(ticket) => ticket,
                None => match self.ticket(&withdraw.dir, withdraw.tag, deadline).await? {
                    (_, Some(ticket)) => ticket,
                    (index, None) => return Ok(Withdrawn::new(index, false, known)),
                },
            };
            let by_value = Params::new().previous(Some(text(&ticket.value)?), None);
            let by_index = Params::new().previous(None, Some(ticket.modified));
            let call = match fitting(self.query(Method::DELETE, &ticket.key, &by_value))? {
                Some(call) => call,
                None => self.query(Method::DELETE, &ticket.key, &by_index)?,
            };
            // Repeating is harmless: a value that begins with our tag was written by nobody else,
            // and is never written twice.
            match self.write(&call, Repeat::Harmless, deadline).await {
                Ok(reply) => return Ok(Withdrawn::new(deleted(reply).index, true, true)),
                Err(error) if error.kind() == ErrorKind::ConditionFailed => {}
                Err(error) => return absent(error, true),
            }
            // It says something else by now. If that still begins with our tag it is ours (a
            // proclamation, a refresh): the next round finds it by the tag.
        }
        let text = "the node kept changing while it was being withdrawn";
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// The ticket with this tag in this line.
    async fn ticket(
        &self,
        dir: &Key,
        tag: Tag,
        deadline: Instant,
    ) -> Result<(Index, Option<Node>)> {
        let reply = match self.fetch(dir, Freshness::Linearizable, deadline).await? {
            Found::Nothing(index) => return Ok((index, None)),
            Found::Reply(reply) => reply,
        };
        let mut nodes = reply.body.node.nodes.into_iter();
        let found = nodes.find_map(|raw| {
            let node = raw.node(reply.index)?;
            let ticket = Layout::Numbered.ticket(dir, &node)?;
            (ticket.tag == Some(tag)).then_some(node)
        });
        Ok((reply.index, found))
    }

    /// The whole seconds that an expiry is asked for with.
    fn ttl_of(&self, expiry: Expiry) -> Result<Option<u64>> {
        Ok(match expiry {
            Expiry::Never => None,
            Expiry::After(ttl) => Some(ttl.whole_secs()),
            Expiry::With(lease) => Some(self.leases.ttl(lease)?.whole_secs()),
        })
    }
}

fn written(reply: Reply) -> Result<Written> {
    let previous = reply.body.previous;
    let previous = previous.and_then(|it| it.node(reply.index));
    let node = reply.body.node.node(reply.index).ok_or_else(|| {
        let text = "the write was acknowledged for a key that breaks the rules of keys";
        Error::new(ErrorKind::Protocol, text).on(&*reply.server)
    })?;
    Ok(Written::new(node, previous))
}

fn deleted(reply: Reply) -> Deleted {
    let node = reply.body.node.node(reply.index);
    let index = node.map_or(reply.index, |it| it.modified);
    let previous = reply.body.previous;
    Deleted::new(index, previous.and_then(|it| it.node(reply.index)))
}

/// The answer to a withdrawal that found nothing.
fn absent(error: Error, settled: bool) -> Result<Withdrawn> {
    match error.index() {
        // A directory there is none of ours.
        Some(index) if is_absence(&error) || error.kind() == ErrorKind::NotAFile => {
            Ok(Withdrawn::new(index, false, settled))
        }
        _ => Err(error),
    }
}

/// etcd refuses some writes of the root as the root's and some as a directory's.
pub(super) fn check_root(key: &Key) -> Result<()> {
    if key.is_root() {
        let text = "the root is read only";
        return Err(Error::new(ErrorKind::RootReadOnly, text));
    }
    Ok(())
}

fn no_created() -> Error {
    let text = "etcd v2 cannot compare the index of creation: compare the last modification";
    Error::new(ErrorKind::Unsupported, text)
}
