//! How a line's tickets are named and read back. The driver decides; recipes ask.
//!
//! | layout | key of a ticket | value | sequence |
//! |---|---|---|---|
//! | [`Numbered`](Layout::Numbered): etcd v2, embedded | `dir/<20 digits>` | the tag, then a space and the body if there is one | the 20 digits |
//! | [`Leased`](Layout::Leased): etcd v3, embedded [on demand](crate::embedded::Builder::layout) | `dir/<lease>-<nonce>`, both hexadecimal and without leading zeros: the tag | the body alone | the index of its creation |
//!
//! `Numbered` is python-etcd's line: order by the name, never by an index, because python's
//! renewal is a plain `set` that makes the created index new. Other numbers are strangers: a server
//! before etcd 2.2 did not pad them, none since names an append so, and who counted them would wait
//! for ever on what such a server left behind.
//!
//! `Leased` is the line of etcd's own `concurrency.Mutex` and `Election`, of `etcdctl lock` and of
//! the lock service: the earliest created is first, and the lease is in the name. They name a ticket
//! `<lease>`, so one lease has one ticket in a line; ours has as many as it has nonces. Names that
//! are neither are strangers.

use bytes::Bytes;

use crate::error::Result;
use crate::key::{Index, Key, LeaseId, Name, Position, Sequence, Tag};
use crate::store::Node;

/// How a store names the tickets of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// In the order of 20-digit names that the store counts up.
    Numbered,
    /// In the order of creation, under names that say whose they are.
    Leased,
}

/// A ticket, as read back from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ticket {
    /// Its place in line.
    pub position: Position,
    /// Its tag, if it is one of ours.
    pub tag: Option<Tag>,
    /// What it says besides; the whole value if it has no tag.
    pub body: Bytes,
}

impl Layout {
    /// The value that a ticket is stored with.
    pub fn ticket_value(self, tag: Tag, body: &[u8]) -> Bytes {
        match self {
            Self::Leased => Bytes::copy_from_slice(body),
            Self::Numbered if body.is_empty() => tag.to_string().into(),
            Self::Numbered => [tag.to_string().as_bytes(), b" ", body].concat().into(),
        }
    }

    /// Reads a node as a ticket of the line `dir`. `None` for anything else that lies there:
    /// directories, hidden nodes, strangers, nodes deeper down.
    pub fn ticket(self, dir: &Key, node: &Node) -> Option<Ticket> {
        if node.is_dir {
            return None;
        }
        let position = self.position(dir, &node.key, node.created)?;
        let (tag, body) = match self {
            Self::Numbered => split_tag(&node.value),
            Self::Leased => (lease_and_nonce(node.key.name())?, node.value.clone()),
        };
        Some(Ticket {
            position,
            tag,
            body,
        })
    }

    /// The place in line `dir` that a key stands for that was created at this index, without its
    /// value.
    pub fn position(self, dir: &Key, key: &Key, created: Index) -> Option<Position> {
        let name = key.below(dir)?;
        let sequence = match self {
            Self::Numbered => Self::numbered(name)?,
            Self::Leased => lease_and_nonce(name).map(|_| Sequence::from(created))?,
        };
        Some(Position::new(sequence, key.clone()))
    }

    /// The name of the ticket of this tag, where the tag is in the name.
    pub(crate) fn leased_name(tag: Tag) -> String {
        format!("{:x}-{:x}", tag.session(), tag.nonce())
    }

    /// Where what is said about the line `dir`, and is no ticket, is kept. Never taken for a
    /// ticket, by us or by others that stand in the line.
    ///
    /// # Errors
    /// `InvalidKey` when there is no room for a longer key; `InvalidName` when a name that
    /// another program made up is longer than [`Name::MAX_LEN`].
    pub fn meta(self, dir: &Key) -> Result<Key> {
        match self {
            // Hidden from whoever lists the line.
            Self::Numbered => dir.join("_meta"),
            // Whatever lies below the line counts as an owner to Go's programs: so elsewhere.
            Self::Leased if dir.is_plain() => Key::new(format!("/_meta{dir}")),
            Self::Leased => Key::new("/_meta_raw")?.join(Name::new(dir)?.segment()),
        }
    }

    fn numbered(name: &str) -> Option<Sequence> {
        let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .then(|| name.parse().ok().map(Sequence::new))
            .flatten()
    }
}

/// What a name in a line of leases says: `<lease>-<nonce>` is a tag, `<lease>` alone that of another
/// program, and `None` a stranger. Go writes a negative lease as `-ff`.
fn lease_and_nonce(name: &str) -> Option<Option<Tag>> {
    let hex = |text: &str| {
        let lower = |it: u8| it.is_ascii_digit() || (b'a'..=b'f').contains(&it);
        let plain = !text.is_empty() && text.len() <= 16 && text.bytes().all(lower);
        plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    match name.split_once('-') {
        None => hex(name).map(|_| None),
        Some(("", negative)) => hex(negative).map(|_| None),
        Some((lease, nonce)) => {
            let (lease, nonce) = (hex(lease)?, hex(nonce)?);
            let tag = LeaseId::new(lease).map(|lease| Tag::new(lease, nonce));
            // Written otherwise than we would it is not ours.
            Some(tag.filter(|tag| name == format!("{:x}-{:x}", tag.session(), tag.nonce())))
        }
    }
}

/// The tag that a value begins with, and the rest after the space.
fn split_tag(value: &Bytes) -> (Option<Tag>, Bytes) {
    let tag = value
        .get(..Tag::TEXT_LEN)
        .and_then(|head| std::str::from_utf8(head).ok());
    match (tag.and_then(Tag::parse), value.get(Tag::TEXT_LEN)) {
        (Some(tag), None) => (Some(tag), Bytes::new()),
        (Some(tag), Some(b' ')) => (Some(tag), value.slice(Tag::TEXT_LEN + 1..)),
        _ => (None, value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(key: &str, value: &[u8]) -> Node {
        let at = Index::new(1).unwrap();
        Node::file(Key::new(key).unwrap(), value.to_vec(), at, at)
    }

    #[test]
    fn a_ticket_round_trips() {
        let dir = Key::new("/_locks/a").unwrap();
        let tag = Tag::new(LeaseId::new(9).unwrap(), 4);
        for body in [&b""[..], b"who", b" spaced"] {
            let value = Layout::Numbered.ticket_value(tag, body);
            let node = node("/_locks/a/00000000000000000042", &value);
            let ticket = Layout::Numbered.ticket(&dir, &node).unwrap();
            assert_eq!((ticket.tag, &ticket.body[..]), (Some(tag), body));
            assert_eq!(ticket.position.sequence.get(), 42);
        }
    }

    #[test]
    fn a_python_ticket_counts_and_strangers_do_not() {
        let dir = Key::new("/_locks/a").unwrap();
        let python = node("/_locks/a/00000000000000000007", b"not a tag");
        assert_eq!(Layout::Numbered.ticket(&dir, &python).unwrap().tag, None);
        for stranger in [
            "/_locks/a/_meta",
            "/_locks/a/7",
            "/_locks/a/x/00000000000000000007",
            "/_locks/b/00000000000000000007",
        ] {
            assert_eq!(
                Layout::Numbered.ticket(&dir, &node(stranger, b"")),
                None,
                "{stranger}"
            );
        }
    }

    #[test]
    fn a_leased_ticket_is_named_by_its_tag_and_placed_by_its_creation() {
        let (dir, layout) = (Key::new("/_locks/a").unwrap(), Layout::Leased);
        let tag = Tag::new(LeaseId::new(0x7f).unwrap(), 0xab);
        let name = format!("/_locks/a/{:x}-{:x}", tag.session(), tag.nonce());
        let at = |index| Index::new(index).unwrap();
        let node = |name: &str, created| {
            let key = Key::new(name).unwrap();
            Node::file(key, "body", at(created), at(created + 1))
        };
        let ticket = layout.ticket(&dir, &node(&name, 5)).unwrap();
        assert_eq!((ticket.tag, &ticket.body[..]), (Some(tag), &b"body"[..]));
        assert_eq!(ticket.position.sequence.get(), 5);
        assert!(layout.ticket(&dir, &node(&name, 9)).unwrap().position > ticket.position);
        assert_eq!(&layout.ticket_value(tag, b"body")[..], b"body");
    }

    #[test]
    fn what_is_said_about_a_line_is_in_nobodys_line() {
        let meta = |dir: &str| {
            let meta = Layout::Leased.meta(&Key::verbatim(dir).unwrap()).unwrap();
            meta.to_string()
        };
        assert_eq!(meta("/_locks/a"), "/_meta/_locks/a");
        assert_eq!(meta("my/app/lock"), "/_meta_raw/my%2Fapp%2Flock");
        assert_eq!(meta("/my-lock/"), "/_meta_raw/%2Fmy-lock%2F");
        let numbered = Layout::Numbered.meta(&Key::new("/_locks/a").unwrap());
        assert_eq!(numbered.unwrap().as_str(), "/_locks/a/_meta");
    }

    #[test]
    fn tickets_of_go_and_etcdctl_count_and_strangers_do_not() {
        let (dir, layout) = (Key::new("/_locks/a").unwrap(), Layout::Leased);
        for theirs in [
            "694d5f2b1c3a4e07",
            "ff",
            "-ff",
            "ffffffffffffffff-1",
            "0f-1",
            "0-1",
        ] {
            let node = node(&format!("/_locks/a/{theirs}"), b"x");
            assert_eq!(layout.ticket(&dir, &node).unwrap().tag, None, "{theirs}");
        }
        for stranger in [
            "_meta",
            "x",
            "FF",
            "1-",
            "-",
            "1-2-3",
            "12345678901234567",
            "1/2",
            "+1",
        ] {
            let node = node(&format!("/_locks/a/{stranger}"), b"x");
            assert_eq!(layout.ticket(&dir, &node), None, "{stranger}");
        }
    }
}
