//! A store seen through a prefix: what is `/a` here is `/team/a` there.
//!
//! Every key is mapped, in both directions: requests, answers, events, checks, attached keys and
//! the keys that errors name. What happens *to* the prefix or above it is told as happening to
//! `/`, so that a watcher inside learns that all is gone.
//!
//! Leases are not mapped. A lease belongs to the whole store, and so do its id and its end:
//! revoking it deletes whatever hangs on it, inside the prefix or not.

use async_trait::async_trait;
use futures_util::{StreamExt, future, stream};

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId};
use crate::store::{
    About, Append, Appended, Change, Commit, Committed, Delete, Deleted, Event, Get, Grant,
    Granted, Node, Operation, Put, Renew, Renewed, Store, Update, Updates, View, Watch, Withdraw,
    Withdrawn, Written,
};

/// A store seen through a prefix. Its root is the prefix; it cannot be written or deleted.
///
/// The prefix and a key together must fit into [`Key::MAX_LEN`]; a longer one is refused with
/// [`InvalidKey`](ErrorKind::InvalidKey) and nothing is sent. Everything else costs and fails as
/// it does in the store behind.
///
/// Two services that share a store are kept apart by different prefixes, as long as neither
/// revokes the other's leases.
#[derive(Clone, Debug)]
pub struct Prefixed<S> {
    store: S,
    paths: Paths,
    about: About,
}

impl<S: Store> Prefixed<S> {
    /// Shows `store` from `prefix` downwards. With the prefix `/` nothing changes.
    pub fn new(store: S, prefix: Key) -> Self {
        let mut about = store.about();
        if !prefix.is_root() {
            about.name = format!("{} under {prefix}", about.name).into();
            // What has no `/` in front cannot lie below anything.
            about.verbatim = false;
        }
        Self {
            store,
            paths: Paths { prefix },
            about,
        }
    }

    /// The prefix.
    pub fn prefix(&self) -> &Key {
        &self.paths.prefix
    }

    /// The store behind.
    pub fn inner(&self) -> &S {
        &self.store
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for Prefixed<S> {
    fn about(&self) -> About {
        self.about.clone()
    }

    async fn get(&self, mut get: Get) -> Result<View> {
        const OPERATION: &str = "get";
        get.key = self.paths.down(OPERATION, &get.key)?;
        if let Some(page) = &mut get.page
            && let Some(after) = &page.after
        {
            page.after = Some(self.paths.down(OPERATION, after)?);
        }
        let answer = self.store.get(get).await;
        let mut view = answer.map_err(|error| self.paths.error(error))?;
        view.nodes = self.paths.nodes(view.nodes)?;
        Ok(view)
    }

    async fn put(&self, put: Put) -> Result<Written> {
        let put = self.paths.put("put", put)?;
        let answer = self.store.put(put).await;
        let mut written = answer.map_err(|error| self.paths.error(error))?;
        written.node = self.paths.node(written.node)?;
        written.previous = self.paths.maybe(written.previous)?;
        Ok(written)
    }

    async fn append(&self, mut append: Append) -> Result<Appended> {
        append.dir = self.paths.down("append", &append.dir)?;
        let answer = self.store.append(append).await;
        let mut appended = answer.map_err(|error| self.paths.error(error))?;
        appended.node = self.paths.node(appended.node)?;
        if let Some(before) = appended.before.take() {
            appended.before = Some(self.paths.nodes(before)?);
        }
        Ok(appended)
    }

    async fn withdraw(&self, mut withdraw: Withdraw) -> Result<Withdrawn> {
        const OPERATION: &str = "withdraw";
        withdraw.dir = self.paths.down(OPERATION, &withdraw.dir)?;
        if let Some(node) = &mut withdraw.node {
            node.key = self.paths.down(OPERATION, &node.key)?;
        }
        let answer = self.store.withdraw(withdraw).await;
        answer.map_err(|error| self.paths.error(error))
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        let delete = self.paths.delete("delete", delete)?;
        let answer = self.store.delete(delete).await;
        let mut deleted = answer.map_err(|error| self.paths.error(error))?;
        deleted.previous = self.paths.maybe(deleted.previous)?;
        Ok(deleted)
    }

    fn watch(&self, mut watch: Watch) -> Updates {
        match self.paths.down("watch", &watch.key) {
            Ok(key) => watch.key = key,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        }
        let paths = self.paths.clone();
        let mapped = self.store.watch(watch).map(move |item| paths.update(item));
        // An answer that cannot be mapped is an error too, and an error ends the stream.
        mapped
            .scan(false, |ended, item| {
                let item = (!*ended).then_some(item);
                *ended = matches!(item, None | Some(Err(_)));
                future::ready(item)
            })
            .boxed()
    }

    async fn commit(&self, mut commit: Commit) -> Result<Committed> {
        const OPERATION: &str = "commit";
        for check in &mut commit.checks {
            check.key = self.paths.down(OPERATION, &check.key)?;
        }
        commit.operations = commit
            .operations
            .into_iter()
            .map(|operation| match operation {
                Operation::Put(put) => self.paths.put(OPERATION, put).map(Operation::Put),
                Operation::Delete(delete) => {
                    let delete = self.paths.delete(OPERATION, delete);
                    delete.map(Operation::Delete)
                }
                Operation::Append(mut append) => {
                    append.dir = self.paths.down(OPERATION, &append.dir)?;
                    Ok(Operation::Append(append))
                }
            })
            .collect::<Result<_>>()?;
        let answer = self.store.commit(commit).await;
        let mut committed = answer.map_err(|error| self.paths.error(error))?;
        committed.nodes = committed
            .nodes
            .into_iter()
            .map(|node| self.paths.maybe(node))
            .collect::<Result<_>>()?;
        Ok(committed)
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        let answer = self.store.grant(grant).await;
        answer.map_err(|error| self.paths.error(error))
    }

    async fn renew(&self, mut renew: Renew) -> Result<Renewed> {
        for attached in &mut renew.keys {
            attached.key = self.paths.down("renew", &attached.key)?;
        }
        let answer = self.store.renew(renew).await;
        let mut renewed = answer.map_err(|error| self.paths.error(error))?;
        for (key, _) in &mut renewed.keys {
            *key = self.paths.up(key)?;
        }
        Ok(renewed)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let answer = self.store.revoke(lease).await;
        answer.map_err(|error| self.paths.error(error))
    }
}

/// The way down, from a key seen here to the key stored there, and the way up again.
#[derive(Clone, Debug)]
struct Paths {
    prefix: Key,
}

impl Paths {
    fn down(&self, operation: &'static str, key: &Key) -> Result<Key> {
        if self.prefix.is_root() {
            return Ok(key.clone());
        }
        if key.is_root() {
            return Ok(self.prefix.clone());
        }
        let len = self.prefix.as_str().len() + key.as_str().len();
        if len > Key::MAX_LEN {
            let detail = format!(
                "with the prefix {} the key has {len} bytes, and at most {} are allowed",
                self.prefix,
                Key::MAX_LEN
            );
            let error = Error::new(ErrorKind::InvalidKey, detail);
            return Err(error.during(operation).at(key));
        }
        Key::new(format!("{}{key}", self.prefix))
            .map_err(|error| error.during(operation).relocate(Some(key.clone())))
    }

    /// A key that is going to be written: not the root, which is a directory for ever.
    fn target(&self, operation: &'static str, key: &Key) -> Result<Key> {
        if key.is_root() && !self.prefix.is_root() {
            let error = Error::new(ErrorKind::RootReadOnly, "the root cannot be written");
            return Err(error.during(operation).at(key));
        }
        self.down(operation, key)
    }

    fn put(&self, operation: &'static str, mut put: Put) -> Result<Put> {
        put.key = self.target(operation, &put.key)?;
        Ok(put)
    }

    fn delete(&self, operation: &'static str, mut delete: Delete) -> Result<Delete> {
        delete.key = self.target(operation, &delete.key)?;
        Ok(delete)
    }

    fn up(&self, key: &Key) -> Result<Key> {
        self.seen(key).ok_or_else(|| {
            let detail = format!("the store answered with {key}, not below {}", self.prefix);
            Error::new(ErrorKind::Protocol, detail)
        })
    }

    /// How a stored key looks from here; `None` for one that is out of sight.
    fn seen(&self, key: &Key) -> Option<Key> {
        if self.prefix.is_root() {
            return Some(key.clone());
        }
        if self.prefix.is_within(key) {
            return Some(Key::root());
        }
        Key::new(format!("/{}", key.below(&self.prefix)?)).ok()
    }

    fn node(&self, mut node: Node) -> Result<Node> {
        node.key = self.up(&node.key)?;
        Ok(node)
    }

    fn nodes(&self, nodes: Vec<Node>) -> Result<Vec<Node>> {
        nodes.into_iter().map(|node| self.node(node)).collect()
    }

    fn maybe(&self, node: Option<Node>) -> Result<Option<Node>> {
        node.map(|node| self.node(node)).transpose()
    }

    fn update(&self, item: Result<Update>) -> Result<Update> {
        match item {
            Ok(Update::Event(event)) => self.event(event).map(Update::Event),
            Ok(other) => Ok(other),
            Err(error) => Err(self.error(error)),
        }
    }

    fn event(&self, mut event: Event) -> Result<Event> {
        event.key = self.up(&event.key)?;
        event.change = match event.change {
            Change::Put(node) => Change::Put(self.node(node)?),
            deleted @ Change::Delete { .. } => deleted,
        };
        Ok(event)
    }

    fn error(&self, error: Error) -> Error {
        match error.key().map(|key| self.seen(key)) {
            Some(seen) => error.relocate(seen),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn paths(prefix: &str) -> Paths {
        Paths {
            prefix: key(prefix),
        }
    }

    #[test]
    fn a_key_goes_down_and_comes_up_again() {
        for (prefix, here, there) in [
            ("/team", "/a/b", "/team/a/b"),
            ("/team", "/", "/team"),
            ("/team/x", "/_locks/a", "/team/x/_locks/a"),
            ("/", "/a", "/a"),
            ("/", "/", "/"),
        ] {
            let paths = paths(prefix);
            assert_eq!(paths.down("get", &key(here)).unwrap(), key(there));
            assert_eq!(paths.up(&key(there)).unwrap(), key(here));
        }
    }

    #[test]
    fn what_happens_above_the_prefix_happens_to_the_root() {
        let paths = paths("/team/x");
        for above in ["/", "/team", "/team/x"] {
            assert_eq!(paths.up(&key(above)).unwrap(), Key::root(), "{above}");
        }
    }

    #[test]
    fn a_neighbour_of_the_prefix_is_never_taken_for_part_of_it() {
        let paths = paths("/team");
        for outside in ["/teams", "/teams/a", "/tea", "/other/team/a"] {
            let error = paths.up(&key(outside)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{outside}");
        }
    }

    #[test]
    fn a_key_that_gets_too_long_is_refused_by_its_own_name() {
        let here = key(&format!("/{}", "x".repeat(Key::MAX_LEN - 3)));
        let error = paths("/team").down("put", &here).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
        assert_eq!((error.key(), error.operation()), (Some(&here), Some("put")));
        assert!(error.detail().contains("/team"), "{error}");
        assert!(paths("/").down("put", &here).is_ok());
    }

    #[test]
    fn the_root_is_never_written() {
        let put = Put::new(Key::root(), "x", crate::store::Expiry::Never);
        let error = paths("/team").put("put", put).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RootReadOnly);
        let delete = Delete::tree(Key::root());
        assert!(paths("/team").delete("delete", delete).is_err());
    }

    #[test]
    fn an_error_names_the_key_as_seen_from_here_or_none() {
        let paths = paths("/team");
        let at = |text: &str| {
            let error = Error::new(ErrorKind::NotFound, "nothing there");
            paths.error(error.at(&key(text))).key().cloned()
        };
        assert_eq!(at("/team/a"), Some(key("/a")));
        assert_eq!(at("/team"), Some(Key::root()));
        assert_eq!(at("/other"), None);
    }
}
