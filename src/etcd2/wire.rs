//! What an etcd v2 server says, and what it means in this crate's words.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::client::Action;
use super::time::unix_time;
use crate::key::{Index, Key};
use crate::store::{Change, Event, Node};

/// The body of a successful answer, and of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Body {
    #[serde(deserialize_with = "action")]
    pub(super) action: Action,
    pub(super) node: RawNode,
    #[serde(rename = "prevNode")]
    pub(super) previous: Option<RawNode>,
}

/// A node as it is written on the wire, where every zero is left out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawNode {
    pub(super) key: String,
    pub(super) value: Option<String>,
    pub(super) dir: bool,
    pub(super) nodes: Vec<Self>,
    pub(super) created_index: u64,
    pub(super) modified_index: u64,
    pub(super) ttl: i64,
    pub(super) expiration: Option<String>,
}

/// The body of a refusal. Those of the auth and members API have only the message.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(rename = "errorCode")]
    pub(super) code: Option<u16>,
    pub(super) message: String,
    #[serde(default)]
    pub(super) cause: String,
    #[serde(default)]
    pub(super) index: u64,
}

impl Body {
    /// As an event of a watch. `None` for a key that this crate cannot name.
    pub(super) fn event(self, index: Index) -> Option<Event> {
        let node = self.node.node(index)?;
        let key = node.key.clone();
        let change = if self.action.removes() {
            let expired = self.action == Action::Expire;
            Change::Delete { expired }
        } else {
            Change::Put(node)
        };
        Some(Event::new(index, key, change))
    }
}

fn action<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Action, D::Error> {
    let text = String::deserialize(from)?;
    let unknown = || serde::de::Error::custom(format_args!("an unknown action, {text:?}"));
    Action::from_name(&text).ok_or_else(unknown)
}

impl RawNode {
    /// As a node; `now` stands in for the indexes that the root does not have. `None` for a key
    /// that breaks this crate's rules: others may have written it.
    pub(super) fn node(self, now: Index) -> Option<Node> {
        let left = u64::try_from(self.ttl).unwrap_or(0);
        let ttl = self.expires().then(|| Duration::from_secs(left));
        let key = Key::new(self.path()).ok()?;
        let created = Index::new(self.created_index).unwrap_or(now);
        let modified = Index::new(self.modified_index).unwrap_or(now);
        let node = if self.dir {
            Node::dir(key, created, modified)
        } else {
            Node::file(
                key,
                Bytes::from(self.value.unwrap_or_default()),
                created,
                modified,
            )
        };
        Some(node.with_ttl(ttl))
    }

    /// Its key; the root's is left out on the wire.
    pub(super) fn path(&self) -> &str {
        if self.key.is_empty() { "/" } else { &self.key }
    }

    /// When its time runs out, as wall-clock time since the Unix epoch.
    pub(super) fn expiration(&self) -> Option<Duration> {
        unix_time(self.expiration.as_deref()?)
    }

    /// Whether its time has run out, though the server has not swept it yet: that takes up to
    /// half a second, in which a read still finds it.
    pub(super) fn is_expired(&self) -> bool {
        self.expires() && self.ttl <= 0
    }

    /// Whether it is there and no directory.
    pub(super) fn is_file(&self) -> bool {
        !self.dir && !self.is_expired()
    }

    /// Whether it has a time-to-live.
    pub(super) fn expires(&self) -> bool {
        self.expiration.is_some() || self.ttl != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Body {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_answer_is_read() {
        let body = body(
            r#"{"action":"compareAndSwap","node":{"key":"/b","value":"z","expiration":"2026-11-22T08:16:58.2Z","ttl":5,"modifiedIndex":13,"createdIndex":12},"prevNode":{"key":"/b","modifiedIndex":12,"createdIndex":12}}"#,
        );
        assert_eq!(body.action, Action::CompareAndSwap);
        assert!(!body.node.is_expired());
        let end = Duration::from_millis(1_795_335_418_200);
        assert_eq!(body.node.expiration(), Some(end));
        let node = body.node.node(Index::new(99).unwrap()).unwrap();
        assert_eq!((&node.value[..], node.created.get()), (&b"z"[..], 12));
        assert_eq!(node.ttl, Some(Duration::from_secs(5)));
        assert!(body.previous.is_some());
    }

    #[test]
    fn a_node_whose_time_has_run_out_is_known_as_such() {
        for ttl in ["", r#","ttl":-1"#] {
            let text = format!(
                r#"{{"action":"get","node":{{"key":"/b","value":"z","expiration":"2026-11-22T08:16:58Z"{ttl},"modifiedIndex":13,"createdIndex":12}}}}"#
            );
            assert!(body(&text).node.is_expired(), "{text}");
        }
    }

    #[test]
    fn the_root_has_neither_key_nor_indexes() {
        let body = body(r#"{"action":"get","node":{"dir":true}}"#);
        let node = body.node.node(Index::new(9).unwrap()).unwrap();
        assert!(node.is_dir && node.key.is_root());
        assert_eq!(node.modified.get(), 9);
    }

    #[test]
    fn an_expiry_is_a_deletion() {
        let body = body(
            r#"{"action":"expire","node":{"key":"/a","modifiedIndex":7,"createdIndex":5},"prevNode":{"key":"/a","value":"x"}}"#,
        );
        let event = body.event(Index::new(7).unwrap()).unwrap();
        assert_eq!(event.change, Change::Delete { expired: true });
    }
}
