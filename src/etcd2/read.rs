//! Reads: as fresh as asked for, and no proposal where a local answer is fresh enough.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::driver::{Driver, Reply};
use super::request::Params;
use super::wire::RawNode;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Instant;
use crate::store::{Freshness, Get, Node, Select, View};

impl Driver {
    pub(super) async fn get(&self, get: &Get) -> Result<View> {
        let deadline = self.deadline();
        let all = get.select == Select::Tree;
        match self.find(&get.key, all, get.freshness, deadline).await? {
            Found::Nothing(index) => Ok(View::new(index, Vec::new())),
            Found::Reply(reply) => view(get, *reply),
        }
    }

    /// The node as it is now, even if its time has run out and it is only not swept yet.
    pub(super) async fn look(&self, key: &Key, deadline: Instant) -> Result<Option<Node>> {
        match self.there(key, deadline).await {
            Ok(node) => Ok(Some(node)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, or the server's reason why there is none.
    pub(super) async fn there(&self, key: &Key, deadline: Instant) -> Result<Node> {
        let quorum = self.query(Method::GET, key, &Params::new().flag("quorum"))?;
        let reply = self.read(&quorum, 0, deadline).await?;
        reply.body.node.node(reply.index).ok_or_else(|| {
            let text = "the node that was asked for has a key that breaks the rules of keys";
            Error::new(ErrorKind::Protocol, text).on(&*reply.server)
        })
    }

    /// The node and its direct children.
    pub(super) async fn fetch(
        &self,
        key: &Key,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Found> {
        self.find(key, false, freshness, deadline).await
    }

    async fn find(
        &self,
        key: &Key,
        all_below: bool,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Found> {
        let params = if all_below {
            Params::new().flag("recursive")
        } else {
            Params::new()
        };
        let local = self.query(Method::GET, key, &params)?;
        let quorum = self.query(Method::GET, key, &params.flag("quorum"))?;
        let least = match freshness {
            Freshness::Any => return self.found(self.read(&local, 0, deadline).await),
            Freshness::Linearizable => return self.found(self.read(&quorum, 0, deadline).await),
            Freshness::AtLeast(index) => index,
        };
        // Replication is a matter of milliseconds: ask each server once, each but the first after
        // a breath, before paying for a proposal.
        for skip in 0..self.transport.endpoints().len().max(2) {
            if skip > 0 {
                self.runtime.clock.sleep(Duration::from_millis(2)).await;
            }
            let found = self.found(self.read(&local, skip, deadline).await)?;
            if found.index() >= least {
                return Ok(found);
            }
        }
        let found = self.found(self.read(&quorum, 0, deadline).await)?;
        if found.index() >= least {
            return Ok(found);
        }
        let text = format!(
            "the server's index is {}, but {least} has been seen: \
             it was restored from a backup, or is another cluster",
            found.index()
        );
        Err(Error::new(ErrorKind::ClusterChanged, text))
    }

    /// Turns "key not found" into an answer. So is "not a directory": what lies below a file is
    /// not there.
    fn found(&self, outcome: Result<Reply>) -> Result<Found> {
        match outcome {
            Ok(reply) => Ok(Found::Reply(Box::new(reply))),
            Err(error) => match error.index() {
                Some(index) if is_absence(&error) => Ok(Found::Nothing(index)),
                _ => Err(error),
            },
        }
    }
}

/// Whether the server says that there is nothing; below a file there is nothing either.
pub(super) fn is_absence(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What a GET found.
#[derive(Debug)]
pub(super) enum Found {
    Nothing(Index),
    Reply(Box<Reply>),
}

impl Found {
    pub(super) fn index(&self) -> Index {
        match self {
            Self::Nothing(index) => *index,
            Self::Reply(reply) => reply.index,
        }
    }
}

/// The view that was asked for.
fn view(get: &Get, reply: Reply) -> Result<View> {
    let index = reply.index;
    let top = reply.body.node;
    let nodes = match get.select {
        Select::Node => live(top, index).into_iter().collect(),
        Select::Tree => {
            let mut nodes = Vec::new();
            flatten(top, index, &mut nodes);
            part(get, nodes)
        }
        Select::Children => {
            if top.is_file() {
                let text = "this is a file and has no children";
                return Err(Error::new(ErrorKind::NotADirectory, text).seen_at(index));
            }
            let children = top.nodes.into_iter();
            part(get, children.filter_map(|it| live(it, index)).collect())
        }
    };
    let nodes = nodes.into_iter().map(|node| Node {
        value: if get.keys_only {
            Bytes::new()
        } else {
            node.value
        },
        ..node
    });
    Ok(View::new(index, nodes.collect()))
}

/// What of these was asked for, in order. All after a page's beginning: etcd v2 cannot page.
fn part(get: &Get, mut nodes: Vec<Node>) -> Vec<Node> {
    let after = get.page.as_ref().and_then(|page| page.after.as_ref());
    nodes.retain(|it| !it.key.is_hidden_below(&get.key));
    nodes.retain(|it| after.is_none_or(|after| it.key > *after));
    nodes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    nodes
}

/// The node and all below it, without what has run out of time. No deeper than JSON may be nested,
/// which the parser bounds.
fn flatten(mut top: RawNode, index: Index, into: &mut Vec<Node>) {
    if top.is_expired() {
        return; // and with a directory all in it
    }
    let below = std::mem::take(&mut top.nodes);
    into.extend(top.node(index));
    for node in below {
        flatten(node, index, into);
    }
}

/// The node, unless its time has run out.
fn live(raw: RawNode, index: Index) -> Option<Node> {
    (!raw.is_expired()).then(|| raw.node(index)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd2::wire::Body;

    /// The keys of a tree of `/t`, from an answer's body.
    fn tree(get: &Get, node: &str) -> Vec<String> {
        let body = format!(r#"{{"action":"get","node":{node}}}"#);
        let body: Body = serde_json::from_str(&body).unwrap();
        let index = Index::new(9).unwrap();
        let mut nodes = Vec::new();
        flatten(body.node, index, &mut nodes);
        let nodes = part(get, nodes).into_iter();
        nodes.map(|it| it.key.as_str().to_owned()).collect()
    }

    #[test]
    fn a_tree_has_nothing_of_a_directory_whose_time_has_run_out() {
        let get = Get::tree(Key::new("/t").unwrap());
        let file = |key: &str| {
            format!(r#"{{"key":"{key}","value":"","modifiedIndex":5,"createdIndex":5}}"#)
        };
        let dir = |key: &str, more: &str, nodes: &[String]| {
            let nodes = nodes.join(",");
            format!(
                r#"{{"key":"{key}","dir":true,{more}"modifiedIndex":5,"createdIndex":5,"nodes":[{nodes}]}}"#
            )
        };
        let over = r#""expiration":"2026-11-22T08:16:58Z","ttl":-1,"#;
        let left = r#""expiration":"2026-11-22T08:16:58Z","ttl":3,"#;
        let gone = dir(
            "/t/gone",
            over,
            &[
                file("/t/gone/a"),
                dir("/t/gone/b", "", &[file("/t/gone/b/c")]),
            ],
        );
        let there = dir("/t/there", left, &[file("/t/there/a")]);
        let all = dir("/t", "", &[there, gone, file("/t/a-b"), file("/t/a")]);
        let wanted = ["/t", "/t/a", "/t/a-b", "/t/there", "/t/there/a"];
        assert_eq!(tree(&get, &all), wanted);
    }

    #[test]
    fn a_page_of_a_tree_is_all_after_its_beginning() {
        let limit = std::num::NonZeroUsize::MIN;
        let (key, after) = (Key::new("/t").unwrap(), Key::new("/t/a").unwrap());
        let page = crate::store::Page::after(limit, after, Index::new(5).unwrap());
        let nodes = r#"{"key":"/t","dir":true,"modifiedIndex":5,"createdIndex":5,"nodes":[
            {"key":"/t/a","value":"","modifiedIndex":5,"createdIndex":5},
            {"key":"/t/b","value":"","modifiedIndex":5,"createdIndex":5},
            {"key":"/t/c","value":"","modifiedIndex":5,"createdIndex":5}]}"#;
        assert_eq!(tree(&Get::tree(key).page(page), nodes), ["/t/b", "/t/c"]);
    }
}
