//! A consumer's node: what shows that it lives, and what its claims hang on.
//!
//! As a ticket of a line it is appended under a fresh tag, found by it when no answer comes, and
//! taken back by the janitor when it is dropped.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::client::{Core, Keep};
use crate::error::{ErrorKind, Result};
use crate::key::{Index, Key, Tag};
use crate::runtime::Instant;
use crate::session::{Chore, Session, Term};
use crate::store::{Append, Expiry, Get, Naming, Node, Store as _, Withdraw};

/// The most claims that one consumer can have at once.
pub(super) const MAX_SLOTS: usize = 1_000;

/// What a consumer's node says, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Card {
    /// How many jobs it takes at once.
    pub(super) slots: usize,
    /// Where it runs: for people to read.
    #[serde(default)]
    pub(super) host: String,
    /// As which process.
    #[serde(default)]
    pub(super) pid: u32,
}

/// The node of one consumer. Dropping it takes the node away.
pub(super) struct Registration {
    core: Arc<Core>,
    dir: Key,
    session: Session,
    tag: Tag,
    state: State,
}

enum State {
    /// The append may or may not have been sent.
    Armed,
    /// It is there.
    There(Node, Arc<Term>),
    /// Nothing is left to take back.
    Disarmed,
}

/// A registration that is there.
pub(super) struct Registered {
    pub(super) registration: Registration,
    pub(super) term: Arc<Term>,
    pub(super) tag: Tag,
    /// When it was made.
    pub(super) at: Index,
}

impl Registration {
    /// Appends a node to the consumers of a queue.
    ///
    /// # Errors
    /// Whatever the lease or the append is refused with; what may have been sent is being taken
    /// back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing: the janitor takes back what was sent.
    pub(super) async fn take(
        core: &Arc<Core>,
        dir: &Key,
        keep: &Keep,
        slots: usize,
    ) -> Result<Registered> {
        let session = core.session(keep)?;
        let ready = session.ready().await;
        ready.map_err(|error| error.during("register a consumer").at(dir))?;
        let mut registration = Self {
            core: core.clone(),
            dir: dir.clone(),
            tag: session.tag(),
            session,
            state: State::Armed,
        };
        let sent = core.runtime.clock.now();
        let node = match registration.append(slots).await {
            Ok(node) => node,
            Err(error) => {
                if error.kind() == ErrorKind::NotFound {
                    // The lease is gone; the next session has one of its own.
                    registration.state = State::Disarmed;
                    registration.session.lose();
                } else if error.changed_nothing() {
                    registration.state = State::Disarmed;
                } else if let Ok(Some(node)) = registration.look().await {
                    return Ok(registration.enter(node, sent));
                }
                return Err(error.during("register a consumer").at(dir));
            }
        };
        Ok(registration.enter(node, sent))
    }

    /// Takes the node away: nothing hangs on it any more. What cannot be done now is the janitor's.
    pub(super) async fn release(mut self) {
        self.step_back();
        match self.core.store.withdraw(self.withdrawal()).await {
            Ok(withdrawn) => {
                self.core.saw(withdrawn.index);
                self.state = State::Disarmed;
            }
            Err(error) => {
                tracing::debug!(target: "tenure::queue", dir = %self.dir, %error, "not taken away yet");
            }
        }
    }

    /// Leaves the node to the end of its session, which takes it away.
    pub(super) fn abandon(mut self) {
        self.state = State::Disarmed;
    }

    async fn append(&self, slots: usize) -> Result<Node> {
        let expiry = Expiry::With(self.session.lease());
        let append = Append::tagged(self.dir.clone(), self.tag, card(slots), expiry);
        Ok(self.core.store.append(append).await?.node)
    }

    /// Looks whether the unanswered append has made its node by now.
    async fn look(&self) -> Result<Option<Node>> {
        let key = self.dir.join(&self.tag.to_string())?;
        Ok(self.core.store.get(Get::node(key)).await?.nodes.pop())
    }

    fn enter(mut self, node: Node, sent: Instant) -> Registered {
        self.core.saw(node.created);
        let (key, value) = (node.key.clone(), node.value.clone());
        let (term, at) = (self.session.attach(key, value, sent), node.created);
        self.state = State::There(node, term.clone());
        Registered {
            tag: self.tag,
            term,
            at,
            registration: self,
        }
    }

    fn withdrawal(&self) -> Withdraw {
        let withdraw = Withdraw::new(self.dir.clone(), self.tag, Naming::Tag);
        let withdraw = withdraw.lease(self.session.lease());
        match &self.state {
            State::There(node, _) => withdraw.node(node.clone()),
            State::Armed | State::Disarmed => withdraw,
        }
    }

    /// From now on nobody keeps it alive.
    fn step_back(&self) {
        if let State::There(_, term) = &self.state {
            self.session.detach(term);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if matches!(self.state, State::Disarmed) {
            return;
        }
        self.step_back();
        let core = Arc::downgrade(&self.core);
        self.core.janitor.hand_over(Chore {
            withdraw: self.withdrawal(),
            ttl: self.session.ttl().get(),
            fate: self.session.fate(),
            done: Box::new(move |withdrawn| {
                if let Some(core) = core.upgrade() {
                    core.saw(withdrawn.index);
                }
            }),
        });
    }
}

/// What the node says.
fn card(slots: usize) -> Bytes {
    let host = std::env::var("HOSTNAME");
    let host = host.or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"));
    let card = Card {
        slots,
        host: host.unwrap_or_default().trim().to_owned(),
        pid: std::process::id(),
    };
    serde_json::to_vec(&card).unwrap_or_default().into()
}
