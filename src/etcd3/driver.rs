//! What all operations of the driver share, and the bytes that keys are on the wire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::hub::Hub;
use super::keep::Keeper;
use super::proto::KeyValue;
use super::rpc::{Wire, index};
use super::shared::SharedLeases;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LeaseId};
use crate::runtime::Instant;
use crate::store::Node;

/// What every operation needs.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) wire: Arc<Wire>,
    pub(super) name: Arc<str>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) watches: Hub,
    /// Below which cancel marks are put.
    pub(super) marks: Key,
    pub(super) shared: SharedLeases,
}

impl Driver {
    pub(super) fn deadline(&self) -> Instant {
        self.wire.deadline()
    }

    /// The same for a caller who does not listen for longer than this.
    pub(super) fn deadline_within(&self, patience: Option<Duration>) -> Instant {
        let sooner = patience.map(|patience| self.wire.runtime.clock.now() + patience);
        sooner.map_or_else(|| self.deadline(), |sooner| sooner.min(self.deadline()))
    }
}

/// A key's own bytes.
pub(super) fn bytes(key: &Key) -> Bytes {
    Bytes::copy_from_slice(key.as_str().as_bytes())
}

/// What the bytes of all keys below this one begin with.
pub(super) fn prefix(key: &Key) -> String {
    if key.is_root() {
        "/".to_owned()
    } else {
        format!("{key}/")
    }
}

/// Where the keys below this one end, and those of its siblings with a longer name go on.
pub(super) fn prefix_end(key: &Key) -> Bytes {
    after(&prefix(key))
}

/// The first bytes that begin with none of `prefix`, which ends in ASCII.
pub(super) fn after(prefix: &str) -> Bytes {
    let mut bytes = prefix.as_bytes().to_vec();
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    bytes.into()
}

/// A stored pair as a node of what is seen under `top`; `None` where its key is none there.
pub(super) fn node(top: &Key, kv: &KeyValue) -> Option<Node> {
    let key = named(top, &kv.key)?;
    let (created, modified) = (index(kv.create_revision)?, index(kv.mod_revision)?);
    Some(Node::file(key, kv.value.clone(), created, modified).with_lease(lease(kv)))
}

/// The key that these bytes are under `top`: other programs' names that break the rules of keys are
/// shown only to whoever asks by such a name.
pub(super) fn named(top: &Key, bytes: &[u8]) -> Option<Key> {
    let text = std::str::from_utf8(bytes).ok()?;
    let key = if top.is_plain() {
        Key::new(text)
    } else {
        Key::verbatim(text)
    };
    key.ok()
}

/// The lease that a pair hangs on. Those of other programs can be negative: no [`LeaseId`].
fn lease(kv: &KeyValue) -> Option<LeaseId> {
    LeaseId::new(u64::try_from(kv.lease).ok()?)
}

/// A lease as the wire wants it: it has 63 bits.
pub(super) fn lease_number(lease: LeaseId) -> i64 {
    i64::try_from(lease.get()).unwrap_or(i64::MAX)
}

/// The root is a directory that is always there.
pub(super) fn check_root(key: &Key) -> Result<()> {
    if key.is_root() {
        let text = "the root is read only";
        return Err(Error::new(ErrorKind::RootReadOnly, text).at(key));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_siblings_with_longer_names() {
        let key = Key::new("/a/b").unwrap();
        let (from, to) = (prefix(&key), prefix_end(&key));
        let inside = |text: &str| text.as_bytes() >= from.as_bytes() && text.as_bytes() < &to[..];
        assert!(inside("/a/b/") && inside("/a/b/c") && inside("/a/b/\u{10ffff}"));
        assert!(!inside("/a/b") && !inside("/a/b-c") && !inside("/a/b0") && !inside("/a/bc"));
        assert_eq!(
            (prefix(&Key::root()), &prefix_end(&Key::root())[..]),
            ("/".into(), &b"0"[..])
        );
    }

    #[test]
    fn what_others_write_is_read_or_left_out_and_never_a_panic() {
        let kv = |key: &'static [u8], lease| KeyValue {
            key: Bytes::from_static(key),
            create_revision: 2,
            mod_revision: 3,
            value: Bytes::from_static(b"\xff"),
            lease,
        };
        let root = Key::root();
        let found = node(&root, &kv(b"/a", 7)).unwrap();
        assert_eq!((found.created.get(), found.modified.get()), (2, 3));
        assert_eq!(found.lease, LeaseId::new(7));
        assert_eq!(node(&root, &kv(b"/a", -7)).unwrap().lease, None);
        for key in [&b"/a//b"[..], b"a", b"/\xff", b"", b"/a/"] {
            assert_eq!(node(&root, &kv(key, 0)), None);
        }
        let theirs = Key::verbatim("a").unwrap();
        assert_eq!(node(&theirs, &kv(b"a//b", 0)).unwrap().key.as_str(), "a//b");
        for key in [&b"a/\xff"[..], b"a/\n", b""] {
            assert_eq!(node(&theirs, &kv(key, 0)), None);
        }
    }
}
