//! Reads: of one key, of one level, of a tree.
//!
//! etcd v3 knows no directories: they are what the names of keys look like. A list is a walk over
//! the keys in order that jumps over what it does not show: the inside of a directory it has named,
//! what is hidden, siblings with longer names (`/a-b` lies between `/a` and `/a/x`). It goes page by
//! page, all of them at the revision of the first, so it is the state at one index however long it
//! takes. If that revision is compacted away meanwhile, the walk begins anew.
//!
//! A page has as many keys as, by those before them, come to [`PAGE_BYTES`]: many, because a server
//! before 3.5 looks at all keys that are left to give some, and not too many bytes, because it
//! gathers them in memory first.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::driver::{Driver, after, bytes, node, prefix, prefix_end};
use super::proto::{KeyValue, RangeRequest, Rpc};
use super::rpc::{Ask, Reply};
use super::txn::{first, number};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{self, Index, Key};
use crate::runtime::Instant;
use crate::store::{Freshness, Get, Node, Select, View};

/// How many keys the first request asks for.
const FIRST_PAGE: usize = 1_000;
/// How many any request asks for.
const LARGEST_PAGE: usize = 20_000;
/// What a page should come to.
const PAGE_BYTES: usize = 4 << 20;
/// What the wire adds to a key and its value, at most.
const PAIR_BYTES: usize = 48;
/// How often a walk begins anew.
const MOST_WALKS: usize = 5;

impl Driver {
    pub(super) async fn get(&self, get: &Get) -> Result<View> {
        let deadline = self.deadline();
        match get.select {
            Select::Node => self.one(get, deadline).await,
            Select::Children | Select::Tree => self.list(get, deadline).await,
        }
    }

    /// The key; and if there is none, whether it is a directory, which takes another request. (One
    /// transaction could tell both. But etcd 3.5 before 3.5.7 can end itself when a transaction that
    /// only reads is given up, as by a dropped future.)
    async fn one(&self, get: &Get, deadline: Instant) -> Result<View> {
        let ask = |serializable| RangeRequest {
            key: bytes(&get.key),
            keys_only: get.keys_only,
            serializable,
            ..RangeRequest::default()
        };
        let mut looks = 1;
        loop {
            let reply = self.fresh(get.freshness, deadline, ask).await?;
            if let Some(kv) = reply.body.kvs.first() {
                let found = node(&get.key, kv);
                return Ok(View::new(reply.index, Vec::from_iter(found)));
            }
            let below = RangeRequest {
                revision: number(reply.index),
                serializable: true,
                ..any_below(&get.key)
            };
            let below = match self.wire.call(&below, Ask::LOCAL, deadline).await {
                Ok(below) => first(below.body),
                // These credentials may be good for the key and not for what is below it.
                Err(error) if error.kind() == ErrorKind::Forbidden => None,
                // Compacted meanwhile: nobody has been told of that index yet.
                Err(error) if error.kind() == ErrorKind::HistoryLost && looks < MOST_WALKS => {
                    looks += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let found = below.and_then(|it| directory(&get.key, &it));
            return Ok(View::new(reply.index, Vec::from_iter(found)));
        }
    }

    /// Asks for what is as fresh as it must be; `request` makes the question, which any server may
    /// answer from what it knows, or not.
    async fn fresh<Q: Rpc>(
        &self,
        freshness: Freshness,
        deadline: Instant,
        request: impl Fn(bool) -> Q,
    ) -> Result<Reply<Q::Reply>> {
        let at_least = match freshness {
            Freshness::Linearizable => None,
            Freshness::Any => return self.wire.call(&request(true), Ask::LOCAL, deadline).await,
            Freshness::AtLeast(index) => {
                let reply = self.wire.call(&request(true), Ask::LOCAL, deadline).await?;
                if reply.index >= index {
                    return Ok(reply);
                }
                Some(index)
            }
        };
        let reply = self.wire.call(&request(false), Ask::READ, deadline).await?;
        match at_least {
            Some(index) if reply.index < index => {
                Err(gone_back(index, reply.index).on(&*reply.server))
            }
            _ => Ok(reply),
        }
    }

    async fn list(&self, get: &Get, deadline: Instant) -> Result<View> {
        let asked = get.page.as_ref().and_then(|page| page.at);
        let mut walks = 1;
        loop {
            match self.walk(get, asked, deadline).await {
                // Nobody has been told of its index yet.
                Err(error)
                    if error.kind() == ErrorKind::HistoryLost
                        && asked.is_none()
                        && walks < MOST_WALKS =>
                {
                    walks += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn walk(&self, get: &Get, mut at: Option<Index>, deadline: Instant) -> Result<View> {
        let mut walk = Walk::new(get)?;
        let most = walk.limit.saturating_add(1).max(16);
        let mut size = FIRST_PAGE.min(most);
        loop {
            let limit = i64::try_from(size).unwrap_or(i64::MAX);
            let ask = |serializable| RangeRequest {
                key: walk.next.clone(),
                range_end: walk.end.clone(),
                limit,
                revision: at.map_or(0, number),
                keys_only: get.keys_only,
                serializable,
                ..RangeRequest::default()
            };
            let reply = match at {
                // What was at a revision is the same everywhere.
                Some(_) => self.wire.call(&ask(true), Ask::LOCAL, deadline).await,
                None => self.fresh(get.freshness, deadline, ask).await,
            };
            let reply = match reply {
                Err(error) if error.detail().starts_with(super::error::TOO_LARGE) && size > 1 => {
                    size = (size / 64).max(1);
                    continue;
                }
                reply => reply?,
            };
            let index = *at.get_or_insert(reply.index);
            let full = !walk.take(&reply.body.kvs);
            if full || !reply.body.more || walk.next >= walk.end {
                return Ok(walk.view(index));
            }
            size = next_page(&reply.body.kvs).min(most);
        }
    }
}

/// The error for a store that is at `now` and so was never at an index that was seen in it.
pub(super) fn gone_back(index: Index, now: Index) -> Error {
    let text = format!(
        "this store has never been at index {index}: it is another one, or restored from a backup"
    );
    Error::new(ErrorKind::ClusterChanged, text).seen_at(now)
}

/// How many keys like these come to a page.
fn next_page(kvs: &[KeyValue]) -> usize {
    let bytes: usize = kvs
        .iter()
        .map(|kv| kv.key.len() + kv.value.len() + PAIR_BYTES)
        .sum();
    let fit = PAGE_BYTES.saturating_mul(kvs.len()) / bytes.max(1);
    fit.clamp(1, LARGEST_PAGE)
}

/// The first key of a directory: is there any?
pub(super) fn any_below(key: &Key) -> RangeRequest {
    RangeRequest {
        key: prefix(key).into(),
        range_end: prefix_end(key),
        limit: 1,
        keys_only: true,
        ..RangeRequest::default()
    }
}

/// A directory, as its first key shows it.
fn directory(key: &Key, first: &KeyValue) -> Option<Node> {
    let created = super::rpc::index(first.create_revision)?;
    Some(Node::dir(key.clone(), created, created))
}

/// A walk over the keys.
struct Walk<'a> {
    get: &'a Get,
    /// What the bytes of all keys below begin with.
    prefix: String,
    /// The first bytes not seen yet.
    next: Bytes,
    end: Bytes,
    /// At most so many nodes.
    limit: usize,
    /// Whether this is a page: those hold no directories, whose place in the order of the keys is
    /// before that where they are found.
    paged: bool,
    nodes: BTreeMap<Key, Node>,
    /// The directory whose ancestors were noted last.
    noted: Option<Key>,
    more: bool,
}

impl<'a> Walk<'a> {
    fn new(get: &'a Get) -> Result<Self> {
        let prefix = prefix(&get.key);
        let mut next = match get.select {
            Select::Tree if !get.key.is_root() => bytes(&get.key),
            _ => Bytes::copy_from_slice(prefix.as_bytes()),
        };
        let last = get.page.as_ref().and_then(|page| page.after.as_ref());
        if let Some(last) = last {
            if get.select == Select::Children && last.below(&get.key).is_none() {
                let key = &get.key;
                let text = format!("a page of the children of {key} cannot begin after {last}");
                return Err(Error::new(ErrorKind::InvalidOptions, text));
            }
            next = next.max(format!("{last}\0").into());
        }
        Ok(Self {
            get,
            next,
            end: prefix_end(&get.key),
            prefix,
            limit: get.page.as_ref().map_or(usize::MAX, |it| it.limit.get()),
            paged: get.page.is_some(),
            nodes: BTreeMap::new(),
            noted: None,
            more: false,
        })
    }

    /// Takes keys in, in order; whether it wants more.
    fn take(&mut self, kvs: &[KeyValue]) -> bool {
        for kv in kvs {
            if kv.key < self.next {
                continue;
            }
            let Some((node, next)) = self.step(kv) else {
                self.next = behind(&kv.key);
                continue;
            };
            if let Some(node) = node {
                if self.nodes.len() >= self.limit {
                    self.more = true;
                    return false;
                }
                // Where there is a file too, that comes first.
                self.nodes.entry(node.key.clone()).or_insert(node);
            }
            self.next = next;
        }
        true
    }

    /// What a pair adds, and where the walk goes on; `None` for a key that breaks the rules.
    fn step(&mut self, kv: &KeyValue) -> Option<(Option<Node>, Bytes)> {
        let node = node(&self.get.key, kv)?;
        if node.key == self.get.key {
            return Some((Some(node), behind(&kv.key)));
        }
        let Some(below) = node.key.as_str().strip_prefix(&*self.prefix) else {
            // A sibling with a longer name: none of them is wanted.
            return Some((None, Bytes::copy_from_slice(self.prefix.as_bytes())));
        };
        if let Some(hidden) = hidden_at(below) {
            self.directories(&node.key, kv, below.get(..hidden)?);
            // Names that begin so are side by side.
            let visible = node.key.as_str().len() - below.len() + hidden;
            let hidden = node.key.as_str().get(..=visible)?;
            return Some((None, after(hidden)));
        }
        match (self.get.select, below.split_once('/')) {
            (Select::Children, Some((name, _))) => {
                let inside = format!("{}{name}/", self.prefix);
                self.directories(&node.key, kv, name);
                Some((None, after(&inside)))
            }
            _ => {
                self.directories(&node.key, kv, below);
                Some((Some(node), behind(&kv.key)))
            }
        }
    }

    /// Notes the directories that a key shows to be there: the top, and those in the part of the
    /// path `below` it that lie above the key.
    fn directories(&mut self, key: &Key, kv: &KeyValue, below: &str) {
        if self.paged || self.noted.is_some() && self.noted == key.parent() {
            return;
        }
        // Only of what is shown: else the ancestors of a hidden key would hide those of the next.
        self.noted = key.parent().filter(|_| key.as_str().ends_with(below));
        let top = (self.get.select == Select::Tree).then(|| self.get.key.clone());
        let ancestors = std::iter::successors(key.parent(), Key::parent);
        let shown = self.prefix.len() + below.len();
        let ancestors = ancestors
            .take_while(|it| it.below(&self.get.key).is_some())
            .filter(|it| it.as_str().len() <= shown)
            .filter(|it| {
                let deep = it.below(&self.get.key).is_some_and(|it| it.contains('/'));
                self.get.select == Select::Tree || !deep
            });
        for dir in ancestors.chain(top).collect::<Vec<_>>() {
            if let Some(node) = directory(&dir, kv) {
                self.nodes.entry(dir).or_insert(node);
            }
        }
    }

    fn view(self, index: Index) -> View {
        let nodes = self.nodes.into_values().collect();
        View::new(index, nodes).and_more(self.more)
    }
}

/// Where the first hidden segment of a path begins.
fn hidden_at(below: &str) -> Option<usize> {
    if !key::is_hidden(below) {
        return None;
    }
    if below.starts_with('_') {
        return Some(0);
    }
    below.find("/_").map(|at| at + 1)
}

/// The first bytes after these.
fn behind(key: &Bytes) -> Bytes {
    [key, &b"\0"[..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_as_many_keys_as_fit() {
        let page = |count: usize, size: usize| {
            let kv = KeyValue {
                key: "/config/k".into(),
                value: vec![0; size].into(),
                ..KeyValue::default()
            };
            next_page(&vec![kv; count])
        };
        assert_eq!(page(1_000, 0), LARGEST_PAGE);
        assert_eq!(page(1_000, 1_000), 3_968);
        assert_eq!(page(10, 1 << 20), 3);
        assert_eq!(page(1, 100 << 20), 1);
        assert_eq!(page(0, 0), 1, "that is not asked");
    }
}
