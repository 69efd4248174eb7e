//! What became of a write that was not answered, as far as that can be found out.
//!
//! ```text
//!          answered
//!  send ─────────────▶ done, or refused
//!   ▲ │ no answer
//!   │ ▼          as it was
//!  look ───────────────────▶ send again (of all that name one index, one takes effect)
//!     │ written since, or gone
//!     └────────────────────▶ nothing more comes. Never done: refused. Else unknown: it, or another
//! ```
//!
//! Only a write that names the index it replaces can be followed up: once the node has moved on from
//! that index, no copy of the write can take effect any more, and until then one more copy does no
//! harm. Any other condition can come true again after a look, so there the error says what may
//! happen, and how to find out.
//!
//! **An equal value is no proof.** Somebody else can have written the same (two that count from 5 to
//! 6), and to take that for one's own would lose a write. So what a look has shown never makes a write
//! succeed; only an answer does.

use futures_util::future::BoxFuture;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::store::{Condition, Delete, Deleted, Get, Put, Store, View, Written};

/// How often one write is sent. Each has the store's own time for an answer.
const SENDS: usize = 3;

/// What a look shows of a write that names an index.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is as it was: the write has not been done, and may come.
    Pending,
    /// It was never done, and cannot be any more.
    Never(Index),
    /// It cannot come any more; whether it was done is unknown. Why, in words.
    Unknown(String),
}

/// Writes, and finds out what became of it if it names an index.
pub(super) async fn put<S: Store + ?Sized>(store: &S, put: Put) -> Result<Written> {
    let Some(index) = pin(&put.when) else {
        let note = note_of_put(&put.when);
        return noted(store.put(put).await, note);
    };
    let send = || store.put(put.clone());
    let fate = |view: &View| fate_of_put(&put, index, view);
    settled(store, &put.key, send, fate).await
}

/// Deletes, and finds out what became of it if it names an index.
pub(super) async fn delete<S: Store + ?Sized>(store: &S, delete: Delete) -> Result<Deleted> {
    let Some(index) = pin(&delete.when) else {
        let note = note_of_delete(&delete.when);
        return noted(store.delete(delete).await, note);
    };
    let send = || store.delete(delete.clone());
    let fate = |view: &View| fate_of_delete(index, view);
    settled(store, &delete.key, send, fate).await
}

async fn settled<'a, S: Store + ?Sized, T>(
    store: &S,
    key: &Key,
    send: impl Fn() -> BoxFuture<'a, Result<T>> + Sync,
    fate: impl Fn(&View) -> Fate + Sync,
) -> Result<T> {
    let mut unanswered: Option<Error> = None;
    for _ in 0..SENDS {
        let error = match (send().await, unanswered.take()) {
            (Ok(done), _) => return Ok(done),
            (Err(error), None) if !error.is_ambiguous() => return Err(error),
            // What is said of this copy says nothing of the one before.
            (Err(error), Some(before)) if !error.is_ambiguous() => before.caused_by(error),
            (Err(error), _) => error,
        };
        let Ok(view) = store.get(Get::node(key.clone())).await else {
            let note = "it could not be read back either: it may have been done, or may still be, \
                        until the key is written again";
            return Err(error.into_kind(ErrorKind::Ambiguous, note));
        };
        match fate(&view) {
            Fate::Pending => unanswered = Some(error),
            Fate::Never(at) => {
                let text = format!("somebody else has written the key since, at index {at}");
                let refused = Error::new(ErrorKind::ConditionFailed, text).seen_at(view.index);
                let refused = match error.operation() {
                    Some(operation) => refused.during(operation),
                    None => refused,
                };
                return Err(refused.at(key).on(&*store.about().name).caused_by(error));
            }
            Fate::Unknown(note) => {
                let error = error.into_kind(ErrorKind::Ambiguous, &note);
                return Err(error.seen_at(view.index));
            }
        }
    }
    let note = "it was not done when it was last read, and may still be, until the key is written \
                again: to write it once more on the same index does no harm";
    let error = unanswered.unwrap_or_else(|| Error::new(ErrorKind::Ambiguous, "no answer"));
    Err(error.into_kind(ErrorKind::Ambiguous, note))
}

/// The index that a write replaces.
fn pin(when: &Condition) -> Option<Index> {
    match when {
        Condition::Index(index) | Condition::Both { index, .. } => Some(*index),
        _ => None,
    }
}

fn fate_of_put(put: &Put, index: Index, view: &View) -> Fate {
    let at = view.index;
    match view.nodes.first() {
        Some(node) if node.modified == index => Fate::Pending,
        Some(node) if node.value == put.value => {
            let written = node.modified;
            Fate::Unknown(format!(
                "as of index {at} the key holds this value, written at {written}: by this, or by \
                 somebody who wrote the same; no more comes of this"
            ))
        }
        Some(node) => {
            let written = node.modified;
            Fate::Unknown(format!(
                "as of index {at} the key holds something else, written at {written}: over this, or \
                 in its place; no more comes of this, and the changes after index {index} tell \
                 which, while the store keeps them"
            ))
        }
        None => Fate::Unknown(format!(
            "as of index {at} there is nothing at the key: it was deleted after this, or before; no \
             more comes of this"
        )),
    }
}

fn fate_of_delete(index: Index, view: &View) -> Fate {
    let at = view.index;
    match view.nodes.first() {
        Some(node) if node.modified == index => Fate::Pending,
        // It has been there all the time.
        Some(node) if node.created <= index => Fate::Never(node.modified),
        Some(node) => {
            let created = node.created;
            Fate::Unknown(format!(
                "the key was deleted, by this or by somebody else, and made anew at index \
                 {created}; no more comes of this"
            ))
        }
        None => Fate::Unknown(format!(
            "as of index {at} the key is gone: deleted by this, by somebody else, or expired; no \
             more comes of this"
        )),
    }
}

/// What is to be known of a put without an answer that names no index.
fn note_of_put(when: &Condition) -> &'static str {
    match when {
        Condition::Any => {
            "it may be written, or may still be, over whatever others write meanwhile: read it \
             back. What names the index it replaces (update) finds out by itself"
        }
        Condition::Absent => {
            "it may be there, or still come whenever there is nothing at the key: read it back. \
             Only a value that nobody else writes tells whose it is"
        }
        Condition::Value(_) => {
            "it may be written, or may still be whenever the key holds the expected value: read it \
             back. What names the index it replaces (update) finds out by itself"
        }
        _ => {
            "it may be written, or may still be whenever the condition holds: read it back. What \
             names the index it replaces (update) finds out by itself"
        }
    }
}

fn note_of_delete(when: &Condition) -> &'static str {
    match when {
        Condition::Any | Condition::Present => {
            "it may be deleted, or may still be, and so may what others put there meanwhile: read \
             it back. A deletion that names an index finds out by itself"
        }
        _ => {
            "it may be deleted, or may still be whenever the condition holds: read it back. A \
             deletion that names an index finds out by itself"
        }
    }
}

/// Says to an unknown outcome what it means.
pub(super) fn noted<T>(outcome: Result<T>, note: &str) -> Result<T> {
    outcome.map_err(|error| match error.is_ambiguous() {
        true => error.into_kind(ErrorKind::Ambiguous, note),
        false => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Expiry, Node};

    fn at(index: u64) -> Index {
        Index::new(index).unwrap()
    }

    fn view(node: Option<(&str, u64, u64)>) -> View {
        let key = Key::new("/k").unwrap();
        let node = node.map(|(value, created, modified)| {
            Node::file(key, value.to_owned(), at(created), at(modified))
        });
        View::new(at(20), node.into_iter().collect())
    }

    #[test]
    fn what_was_read_at_the_named_index_is_still_to_be_written() {
        let put = Put::new(Key::new("/k").unwrap(), "new", Expiry::Never);
        let fate = |node| fate_of_put(&put, at(5), &view(node));
        assert_eq!(fate(Some(("old", 3, 5))), Fate::Pending);
        // Also if it is the value that was there before.
        assert_eq!(fate(Some(("new", 3, 5))), Fate::Pending);
    }

    #[test]
    fn an_equal_value_is_not_taken_for_ones_own() {
        let put = Put::new(Key::new("/k").unwrap(), "new", Expiry::Never);
        for (node, word) in [
            (Some(("new", 3, 6)), "by this, or by somebody"),
            (Some(("other", 3, 6)), "over this, or in its place"),
            (Some(("new", 7, 7)), "by this, or by somebody"),
            (None, "deleted after this, or before"),
        ] {
            match fate_of_put(&put, at(5), &view(node)) {
                Fate::Unknown(note) => assert!(note.contains(word), "{note}"),
                fate => panic!("{node:?}: {fate:?}"),
            }
        }
    }

    #[test]
    fn a_deletion_of_what_is_still_there_was_never_done() {
        let fate = |node| fate_of_delete(at(5), &view(node));
        assert_eq!(fate(Some(("x", 3, 5))), Fate::Pending);
        assert_eq!(fate(Some(("y", 3, 6))), Fate::Never(at(6)));
        assert!(matches!(fate(Some(("y", 6, 6))), Fate::Unknown(_)));
        assert!(matches!(fate(None), Fate::Unknown(_)));
    }
}
