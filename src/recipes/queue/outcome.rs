//! Writes whose answers can get lost, and what became of them.
//!
//! ```text
//!         made                     there
//!  Send ───────▶ Made       Look ───────▶ Found
//!   │ │ exists, no answer    ▲ │ │ not there, and once it was
//!   │ └──────────────────────┘ │ └─────▶ Gone
//!   │    ◀─────────────────────┘ not there: send again, under the same name
//!   └──▶ an error: nothing is there, nor will be; or, after a try without an answer, unknown
//! ```
//!
//! A name is created by one put that wants it absent, so of two tries, however late, one makes a
//! node. A register changes by a compare with the index it was read at, so of two tries one
//! changes it.

use crate::client::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::recipes::queue::register::Register;
use crate::runtime::Retry;
use crate::store::{Commit, Condition, Delete, Expiry, Freshness, Get, Node, Put, Store, View};

/// So often one thing is sent, looked for, or compared and swapped.
const TRIES: u32 = 6;

/// What became of a creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// It was made at this index; `again` if an earlier try had no answer.
    Made { at: Index, again: bool },
    /// This is there. `ours`: it may be, because an earlier try had no answer.
    Found { node: Node, ours: bool, at: Index },
    /// It was there, ours or not, and by this index no more.
    Gone { ours: bool, at: Index },
}

/// What to do next about a creation.
#[derive(Debug)]
pub(super) enum Step {
    /// Put it, if it is absent.
    Send,
    /// Read it, linearizably; after a pause or at once.
    Look {
        pause: bool,
    },
    Done(Created),
    Failed(Error),
}

/// A creation under way.
#[derive(Debug, Default)]
pub(super) struct Creation {
    /// What the last try without an answer said.
    unanswered: Option<Error>,
    /// Whether the name was found to be taken.
    taken: bool,
    tries: u32,
}

impl Creation {
    /// After a put, or a commit of which this is a part.
    pub(super) fn sent(&mut self, outcome: Result<Index>) -> Step {
        let error = match outcome {
            Ok(at) => {
                let again = self.unanswered.is_some();
                return Step::Done(Created::Made { at, again });
            }
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::ConditionFailed => {
                self.taken = true;
                Step::Look { pause: false }
            }
            _ if error.changed_nothing() => match &self.unanswered {
                None => Step::Failed(error),
                Some(_) => self.again(),
            },
            _ => {
                self.unanswered = Some(error);
                self.again()
            }
        }
    }

    /// After a read.
    pub(super) fn looked(&mut self, view: Result<View>) -> Step {
        let ours = self.unanswered.is_some();
        let mut view = match view {
            Ok(view) => view,
            Err(error) if self.taken || ours => {
                tracing::debug!(target: "tenure::queue", %error, "cannot look for it");
                return self.again();
            }
            Err(error) => return Step::Failed(error),
        };
        let at = view.index;
        match view.nodes.pop() {
            Some(node) => Step::Done(Created::Found { node, ours, at }),
            None if self.taken => Step::Done(Created::Gone { ours, at }),
            None => Step::Send,
        }
    }

    fn again(&mut self) -> Step {
        self.tries += 1;
        if self.tries >= TRIES {
            let lost = self.unanswered.take();
            let text = "it is there, and could not be read";
            return Step::Failed(lost.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, text)));
        }
        Step::Look {
            pause: self.tries > 1,
        }
    }
}

/// What makes a node, if it is absent.
#[derive(Clone, Debug)]
pub(super) enum Making {
    Put(Put),
    /// One of several that are made at once.
    Commit(Commit),
}

impl Making {
    async fn send(&self, core: &Core) -> Result<Index> {
        match self {
            Self::Put(put) => Ok(core.store.put(put.clone()).await?.index()),
            Self::Commit(commit) => Ok(core.store.commit(commit.clone()).await?.index),
        }
    }
}

/// Creates a node, and finds out what became of it.
///
/// # Errors
/// What a put fails with; `Ambiguous` (or a `Protocol` error): it may be there, or come.
pub(super) async fn create(core: &Core, put: Put) -> Result<Created> {
    let key = put.key.clone();
    let making = Making::Put(put.when(Condition::Absent));
    create_by(core, &key, &making).await
}

/// The same for what shows at `key`.
pub(super) async fn create_by(core: &Core, key: &Key, making: &Making) -> Result<Created> {
    let mut creation = Creation::default();
    let mut retry = Retry::new();
    let mut step = Step::Send;
    loop {
        step = match step {
            Step::Send => creation.sent(making.send(core).await),
            Step::Look { pause } => {
                if pause {
                    let pause = retry.pause(&core.runtime.entropy);
                    core.runtime.clock.sleep(pause).await;
                }
                creation.looked(core.store.get(Get::node(key.clone())).await)
            }
            Step::Done(created) => return Ok(created),
            Step::Failed(error) => return Err(error),
        };
    }
}

/// What to do about a register.
#[derive(Debug)]
pub(super) enum Verdict<T> {
    /// Nothing (more).
    Leave(T),
    /// Write this, if the register is still the one that was read.
    Write(Register, Expiry, T),
    /// And delete that in the same step, which is for stores with commits.
    End(Register, Expiry, Delete, T),
}

/// What is known when a verdict is asked for.
pub(super) struct Seen {
    /// What is there.
    pub(super) register: Found,
    /// Whether a write of this swap had no answer: what is there can be its doing.
    pub(super) unanswered: bool,
}

/// What lies at a register's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Register(Register),
    /// Somebody else's writing.
    Unreadable,
}

impl Found {
    pub(super) fn in_node(node: Option<&Node>) -> Self {
        let Some(node) = node else {
            return Self::Nothing;
        };
        Register::parse(&node.value).map_or(Self::Unreadable, Self::Register)
    }
}

/// Reads a register, decides, and swaps it; again when somebody else was faster.
///
/// # Errors
/// What `decide` says; what the store fails with. `Ambiguous`: it may have been swapped.
pub(super) async fn swap<T>(
    core: &Core,
    key: &Key,
    mut fresh: Freshness,
    mut decide: impl FnMut(Seen) -> Result<Verdict<T>>,
) -> Result<T> {
    let mut retry = Retry::new();
    let mut unanswered: Option<Error> = None;
    for _ in 0..TRIES {
        let failed = match core.store.get(Get::node(key.clone()).fresh(fresh)).await {
            Ok(view) => {
                let node = view.nodes.first();
                let register = Found::in_node(node);
                let seen = Seen {
                    register,
                    unanswered: unanswered.is_some(),
                };
                let (register, expiry, delete, answer) = match decide(seen)? {
                    Verdict::Leave(answer) => return Ok(answer),
                    Verdict::Write(register, expiry, answer) => (register, expiry, None, answer),
                    Verdict::End(register, expiry, delete, answer) => {
                        (register, expiry, Some(delete), answer)
                    }
                };
                let when = node.map_or(Condition::Absent, |node| Condition::Index(node.modified));
                let put = Put::new(key.clone(), register.value(), expiry).when(when);
                let written = match delete {
                    None => core.store.put(put).await.map(drop),
                    Some(delete) => {
                        let commit = Commit::new().put(put).delete(delete);
                        core.store.commit(commit).await.map(drop)
                    }
                };
                match written {
                    Ok(()) => return Ok(answer),
                    Err(error) => error,
                }
            }
            Err(error) => {
                if unanswered.is_none() {
                    return Err(error);
                }
                error
            }
        };
        // From now on nothing older than this attempt helps.
        fresh = Freshness::Linearizable;
        if failed.is_ambiguous() || failed.kind() == ErrorKind::Protocol {
            unanswered = Some(failed);
        } else if !is_race(&failed) && unanswered.is_none() {
            return Err(failed);
        }
        let pause = retry.pause(&core.runtime.entropy);
        core.runtime.clock.sleep(pause).await;
    }
    Err(unanswered.unwrap_or_else(|| {
        let text = "the job's state kept changing";
        Error::new(ErrorKind::Unavailable, text).at(key)
    }))
}

/// Deletes what was written at this index; nothing else, however late.
///
/// # Errors
/// What the last try failed with: it may still be there.
pub(super) async fn remove(core: &Core, key: &Key, at: Index) -> Result<()> {
    let mut retry = Retry::new();
    let mut tries = 0;
    loop {
        let delete = Delete::new(key.clone()).when(Condition::Index(at));
        let Err(error) = core.store.delete(delete).await else {
            return Ok(());
        };
        tries += 1;
        if is_race(&error) {
            return Ok(());
        }
        if tries == TRIES || !(error.is_ambiguous() || error.is_transient()) {
            return Err(error);
        }
        let pause = retry.pause(&core.runtime.entropy);
        core.runtime.clock.sleep(pause).await;
    }
}

/// Whether somebody else was faster.
fn is_race(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::ConditionFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Index {
        Index::new(index).unwrap()
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "x")
    }

    fn view(node: Option<&str>) -> Result<View> {
        let key = Key::new("/j").unwrap();
        let nodes = node.map(|value| Node::file(key, value.to_owned(), at(5), at(5)));
        Ok(View::new(at(9), nodes.into_iter().collect()))
    }

    #[test]
    fn what_is_answered_is_believed() {
        let mut creation = Creation::default();
        let step = creation.sent(Ok(at(3)));
        let made = Created::Made {
            at: at(3),
            again: false,
        };
        assert!(matches!(step, Step::Done(it) if it == made));
        for kind in [ErrorKind::Unreachable, ErrorKind::InvalidValue] {
            let step = Creation::default().sent(Err(error(kind)));
            assert!(matches!(step, Step::Failed(it) if it.kind() == kind));
        }
    }

    #[test]
    fn a_taken_name_is_looked_at() {
        let mut creation = Creation::default();
        let step = creation.sent(Err(error(ErrorKind::AlreadyExists)));
        assert!(matches!(step, Step::Look { pause: false }));
        let found = creation.looked(view(Some("a")));
        assert!(matches!(
            found,
            Step::Done(Created::Found { ours: false, .. })
        ));
        let gone = creation.looked(view(None));
        let expected = Created::Gone {
            ours: false,
            at: at(9),
        };
        assert!(matches!(gone, Step::Done(it) if it == expected));
    }

    #[test]
    fn without_an_answer_it_is_looked_for_and_sent_again_under_the_same_name() {
        let mut creation = Creation::default();
        let step = creation.sent(Err(error(ErrorKind::Ambiguous)));
        assert!(matches!(step, Step::Look { pause: false }));
        assert!(matches!(creation.looked(view(None)), Step::Send));
        // The first try has come late, between the look and the second.
        let step = creation.sent(Err(error(ErrorKind::AlreadyExists)));
        assert!(matches!(step, Step::Look { .. }));
        let step = creation.looked(view(Some("a")));
        assert!(matches!(
            step,
            Step::Done(Created::Found { ours: true, .. })
        ));
    }

    #[test]
    fn a_refusal_after_a_try_without_an_answer_says_nothing_about_that_try() {
        let mut creation = Creation::default();
        creation.sent(Err(error(ErrorKind::Ambiguous)));
        creation.looked(view(None));
        let step = creation.sent(Err(error(ErrorKind::Unreachable)));
        assert!(matches!(step, Step::Look { pause: true }));
        let mut last = Step::Send;
        for _ in 0..TRIES {
            last = creation.looked(Err(error(ErrorKind::Timeout)));
            if matches!(last, Step::Failed(_)) {
                break;
            }
        }
        assert!(matches!(last, Step::Failed(it) if it.kind() == ErrorKind::Ambiguous));
    }

    #[test]
    fn a_second_try_that_is_answered_says_that_there_was_a_first() {
        let mut creation = Creation::default();
        creation.sent(Err(error(ErrorKind::Ambiguous)));
        creation.looked(view(None));
        let step = creation.sent(Ok(at(7)));
        assert!(matches!(
            step,
            Step::Done(Created::Made { again: true, .. })
        ));
    }

    #[test]
    fn tries_are_bounded() {
        let mut creation = Creation::default();
        let mut sends = 0;
        let mut step = Step::Send;
        let failed = loop {
            step = match step {
                Step::Send => {
                    sends += 1;
                    creation.sent(Err(error(ErrorKind::Ambiguous)))
                }
                Step::Look { .. } => creation.looked(view(None)),
                Step::Failed(error) => break error,
                Step::Done(done) => panic!("{done:?}"),
            };
        };
        assert_eq!((sends, failed.kind()), (TRIES, ErrorKind::Ambiguous));
    }
}
