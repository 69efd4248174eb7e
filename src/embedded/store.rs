//! The core seen through the [`Store`] trait.

use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use super::Embedded;
use super::core::{Action, Age, Code, Core, Interest, Node, NotCommitted, Refusal};
use super::watch::{Events, Told};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId, Ttl};
use crate::store::{
    About, Append, Appended, Change, Commit, Committed, Delete, Deleted, Freshness, Get, Grant,
    Granted, Naming, Page, Put, Renew, Renewed, Select, Store, Update, Updates, View, Watch,
    Withdraw, Withdrawn, Written,
};
use crate::store::{Event as StoreEvent, Node as StoreNode};

/// What errors and traces call this store.
const NAME: &str = "embedded";

#[async_trait]
impl Store for Embedded {
    fn about(&self) -> About {
        About::new(NAME, self.shared.layout)
            .with_commits()
            .with_cancels()
            .with_ranks()
    }

    async fn get(&self, get: Get) -> Result<View> {
        let view = self.shared.turn(|core| Ok(view(core, &get)));
        view.map_err(|refusal| error(&refusal, "get", &get.key))?
    }

    async fn put(&self, put: Put) -> Result<Written> {
        let fit = put.when.check_of_write();
        fit.map_err(|error| place(error, "put", &put.key))?;
        let written = self.shared.turn(|core| {
            let event = core.put(&put)?;
            Ok(Written::new(
                project(&event.node, core.age()),
                event
                    .previous
                    .as_ref()
                    .map(|node| project(node, core.age())),
            ))
        });
        written.map_err(|refusal| error(&refusal, "put", &put.key))
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        let appended = self.shared.turn(|core| {
            let node = core.append(&append)?.node.clone();
            let before = (append.naming == Naming::Ticket).then(|| {
                let before = core.tickets_before(&append.dir, &node.key);
                before
                    .iter()
                    .map(|node| project(node, core.age()))
                    .collect()
            });
            Ok(Appended::new(project(&node, core.age()), before))
        });
        appended.map_err(|refusal| match refusal.code {
            Code::InvalidField => as_kind(ErrorKind::InvalidKey, &refusal, "append", &append.dir),
            _ => error(&refusal, "append", &append.dir),
        })
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        withdraw.check(NAME)?;
        let withdrawn = self.shared.turn(|core| {
            let removed = core.withdraw(&withdraw)?;
            Ok(Withdrawn::new(core.index(), removed, true))
        });
        withdrawn.map_err(|refusal| match refusal.code {
            Code::InvalidField => {
                as_kind(ErrorKind::InvalidKey, &refusal, "withdraw", &withdraw.dir)
            }
            _ => error(&refusal, "withdraw", &withdraw.dir),
        })
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        let fit = delete.when.check_of_write();
        fit.map_err(|error| place(error, "delete", &delete.key))?;
        let deleted = self.shared.turn(|core| {
            let event = core.delete_if(&delete)?;
            let previous = event
                .previous
                .as_ref()
                .map(|node| project(node, core.age()));
            Ok(Deleted::new(event.index(), previous))
        });
        deleted.map_err(|refusal| match refusal.code {
            // Below a file there is nothing; and a deletion "if absent" contradicts itself.
            Code::NotADirectory => as_kind(ErrorKind::NotFound, &refusal, "delete", &delete.key),
            Code::AlreadyExists => {
                as_kind(ErrorKind::ConditionFailed, &refusal, "delete", &delete.key)
            }
            _ => error(&refusal, "delete", &delete.key),
        })
    }

    fn watch(&self, watch: Watch) -> Updates {
        let Watch { key, from, .. } = watch;
        let interest = Interest {
            key: key.clone(),
            scope: watch.scope,
            filter: watch.filter,
        };
        match Events::open(&self.shared, interest, from) {
            Err(refusal) => {
                let error = error(&refusal, "watch", &key);
                stream::once(async { Err(error) }).boxed()
            }
            Ok((index, events)) => stream::once(async move { Ok(Update::Open(index)) })
                .chain(events.map(move |next| match next {
                    Ok(told) => Ok(Update::Event(report(&told))),
                    Err(refusal) => Err(error(&refusal, "watch", &key)),
                }))
                .boxed(),
        }
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let fit = commit.check_operations();
        fit.map_err(|error| error.during("commit").on(NAME))?;
        let committed = self.shared.turn(|core| {
            let nodes = match core.commit(&commit) {
                Ok(nodes) => nodes,
                Err(refused) => return Ok(Err(refused)),
            };
            let age = core.age();
            let nodes = nodes
                .iter()
                .map(|node| node.as_ref().map(|node| project(node, age)));
            Ok(Ok(Committed::new(core.index(), nodes.collect())))
        });
        let root = Key::root();
        match committed {
            Ok(Ok(committed)) => Ok(committed),
            Ok(Err(NotCommitted::Condition(refusal))) => Err(as_kind(
                ErrorKind::ConditionFailed,
                &refusal,
                "commit",
                &root,
            )),
            Ok(Err(NotCommitted::Refused(refusal))) | Err(refusal) => {
                Err(error(&refusal, "commit", &root))
            }
        }
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        let granted = self
            .shared
            .turn(|core| Ok(core.grant(grant.lease, grant.ttl)));
        granted
            .map(|ttl| Granted::new(term(ttl)))
            .map_err(|refusal| lease_error(&refusal, "grant"))
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let renewed = self.shared.turn(|core| core.renew(renew.lease));
        renewed
            .map(|ttl| Renewed::new(term(ttl), renew.at))
            .map_err(|refusal| lease_error(&refusal, "renew"))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let revoked = self.shared.turn(|core| {
            core.revoke(lease);
            Ok(())
        });
        revoked.map_err(|refusal| lease_error(&refusal, "revoke"))
    }
}

fn view(core: &Core, get: &Get) -> Result<View> {
    if let Freshness::AtLeast(index) = get.freshness
        && index > core.index()
    {
        let text = format!("this store has never been at index {index}: it is another one");
        let error = Error::new(ErrorKind::ClusterChanged, text);
        return Err(place(error, "get", &get.key).seen_at(core.index()));
    }
    let (nodes, more) = match get.select {
        Select::Node => (core.peek(&get.key).into_iter().collect(), false),
        Select::Tree => tree(core, get),
        Select::Children => {
            let after = match &get.page {
                Some(Page {
                    after: Some(after), ..
                }) => Some(child_name(&get.key, after)?),
                _ => None,
            };
            let after = after.map_or(Bound::Unbounded, Bound::Excluded);
            let limit = get
                .page
                .as_ref()
                .map_or(usize::MAX, |page| page.limit.get());
            core.children(&get.key, after, limit)
        }
    };
    let nodes = nodes.into_iter().map(|mut node| {
        if get.keys_only {
            node.value = None;
        }
        project(&node, core.age())
    });
    Ok(View::new(core.index(), nodes.collect()).and_more(more))
}

/// The node and all below it, or a page of them, in key order; and whether there are more.
fn tree(core: &Core, get: &Get) -> (Vec<Node>, bool) {
    let mut nodes = Vec::new();
    if let Ok(top) = core.read(&get.key, true) {
        flatten(top, &mut nodes);
    }
    // The tree goes segment by segment, where `a/x` comes before `a-b`.
    nodes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let Some(page) = &get.page else {
        return (nodes, false);
    };
    if let Some(after) = &page.after {
        nodes.retain(|node| node.key > *after);
    }
    let more = nodes.len() > page.limit.get();
    nodes.truncate(page.limit.get());
    (nodes, more)
}

fn flatten(mut node: Node, into: &mut Vec<Node>) {
    let below = std::mem::take(&mut node.nodes);
    into.push(node);
    for node in below {
        flatten(node, into);
    }
}

/// The name of the child of `dir` that a page begins after.
fn child_name<'a>(dir: &Key, after: &'a Key) -> Result<&'a str> {
    match after.below(dir).and_then(|rest| rest.split('/').next()) {
        Some(name) => Ok(name),
        None => {
            let text = format!("a page of the children of {dir} cannot begin after {after}");
            Err(place(
                Error::new(ErrorKind::InvalidOptions, text),
                "get",
                dir,
            ))
        }
    }
}

/// A node as the trait shows it, in a store of this age.
fn project(node: &Node, age: Age) -> StoreNode {
    let (created, modified) = (node.created, node.modified);
    let shown = if node.dir {
        StoreNode::dir(node.key.clone(), created, modified)
    } else {
        let value = node.value.clone().unwrap_or_default();
        StoreNode::file(node.key.clone(), value, created, modified)
    };
    shown
        .with_ttl(node.expires.map(|end| end.saturating_sub(age)))
        .with_lease(node.lease)
}

fn report(told: &Told) -> StoreEvent {
    let Told { event, more, age } = told;
    let change = if event.action.removes() {
        Change::Delete {
            expired: event.action == Action::Expire,
        }
    } else {
        Change::Put(project(&event.node, *age))
    };
    StoreEvent::new(event.index(), event.node.key.clone(), change).and_more(*more)
}

/// A term of a lease; it was a [`Ttl`] when it was granted.
fn term(ttl: Duration) -> Ttl {
    Ttl::new(ttl).unwrap_or_default()
}

fn error(refusal: &Refusal, operation: &'static str, key: &Key) -> Error {
    let kind = match refusal.code {
        Code::KeyNotFound | Code::LeaseNotFound => ErrorKind::NotFound,
        Code::CompareFailed => ErrorKind::ConditionFailed,
        Code::NotAFile => ErrorKind::NotAFile,
        Code::NotADirectory => ErrorKind::NotADirectory,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::RootReadOnly => ErrorKind::RootReadOnly,
        Code::DirectoryNotEmpty => ErrorKind::DirectoryNotEmpty,
        Code::InvalidField | Code::RefreshNeedsTtl => ErrorKind::InvalidOptions,
        Code::HistoryCleared => ErrorKind::HistoryLost,
        Code::JournalFailed => ErrorKind::Ambiguous,
        Code::Stopped => ErrorKind::Unavailable,
    };
    as_kind(kind, refusal, operation, key)
}

fn as_kind(kind: ErrorKind, refusal: &Refusal, operation: &'static str, key: &Key) -> Error {
    let error = describe(kind, refusal);
    place(error, operation, refusal.key.as_ref().unwrap_or(key))
}

/// Leases have no key that could be named.
fn lease_error(refusal: &Refusal, operation: &'static str) -> Error {
    error(refusal, operation, &Key::root()).relocate(None)
}

/// The refusal in words; a cause that quotes a long value is cut.
fn describe(kind: ErrorKind, refusal: &Refusal) -> Error {
    let mut text = refusal.to_string();
    if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
        text.truncate(end);
        text.push('…');
    }
    Error::new(kind, text)
        .with_code(refusal.code.number())
        .seen_at(refusal.index)
}

fn place(error: Error, operation: &'static str, key: &Key) -> Error {
    error.during(operation).at(key).on(NAME)
}

/// How many characters of a refusal an error shows.
const LONGEST_TEXT: usize = 300;
