//! How a line's tickets are named and read back. The driver decides; recipes ask.
//!
//! | layout | key of a ticket | value | sequence |
//! |---|---|---|---|
//! | [`Numbered`](Layout::Numbered): embedded, etcd v2 | `dir/<20 digits>` | the tag, then a space and the body if there is one | the 20 digits |
//!
//! `Numbered` is python-etcd's line: order by the name, never by an index, because python's
//! renewal is a plain `set` that makes the created index new. Other numbers are strangers: a server
//! before etcd 2.2 did not pad them, none since names an append so, and who counted them would wait
//! for ever on what such a server left behind.

use bytes::Bytes;

use crate::error::Result;
use crate::key::{Key, Position, Sequence, Tag};
use crate::store::Node;

/// How a store names the tickets of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// In the order of 20-digit names that the store counts up.
    Numbered,
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
            Self::Numbered if body.is_empty() => tag.to_string().into(),
            Self::Numbered => [tag.to_string().as_bytes(), b" ", body].concat().into(),
        }
    }

    /// Reads a node as a ticket of the line `dir`. `None` for anything else that lies there:
    /// directories, hidden nodes, names that are no number, nodes deeper down.
    pub fn ticket(self, dir: &Key, node: &Node) -> Option<Ticket> {
        match self {
            Self::Numbered => {
                let sequence = Self::numbered(node.key.below(dir)?)?;
                if node.is_dir {
                    return None;
                }
                let (tag, body) = split_tag(&node.value);
                Some(Ticket {
                    position: Position::new(sequence, node.key.clone()),
                    tag,
                    body,
                })
            }
        }
    }

    /// The place in line `dir` that a key stands for, without its value.
    pub fn position(self, dir: &Key, key: &Key) -> Option<Position> {
        match self {
            Self::Numbered => {
                let sequence = Self::numbered(key.below(dir)?)?;
                Some(Position::new(sequence, key.clone()))
            }
        }
    }

    /// Where what is said about the line `dir`, and is no ticket, is kept. Never taken for a
    /// ticket, by us or by others that stand in the line.
    ///
    /// # Errors
    /// `InvalidKey` when there is no room for a longer key.
    pub fn meta(self, dir: &Key) -> Result<Key> {
        match self {
            // Hidden from whoever lists the line.
            Self::Numbered => dir.join("_meta"),
        }
    }

    fn numbered(name: &str) -> Option<Sequence> {
        let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .then(|| name.parse().ok().map(Sequence::new))
            .flatten()
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
    use crate::key::{Index, LeaseId};

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
}
