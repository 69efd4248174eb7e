//! The writes on one job's register: claim, ack, and the ways back. Each is a compare-and-swap on
//! the value and the index it was seen with, so repeating one, or one that arrives late, is
//! harmless: it finds another index.

use std::sync::Arc;

use super::class::Seen;
use super::consumer::DEDUPE;
use super::job::JobId;
use super::paths::Paths;
use super::register::Register;
use super::step::{Outcome, Want};
use super::together::{Part, Together, Written};
use crate::client::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, Tag, Ttl};
use crate::runtime::Retry;
use crate::session::Term;
use crate::store::{
    Commit, Condition, Delete, Expiry, Freshness, Get, Node, Put, Store as _, StoreExt as _,
};

/// Who writes: one registration of one consumer.
#[derive(Debug)]
pub(super) struct Hand {
    pub(super) core: Arc<Core>,
    pub(super) paths: Paths,
    pub(super) tag: Tag,
    pub(super) term: Arc<Term>,
    /// How long it is remembered that a job is done.
    pub(super) dedupe: Ttl,
}

/// A claim as it was written.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) id: JobId,
    pub(super) attempts: u32,
    pub(super) nonce: u64,
    /// When the claim was written.
    pub(super) index: Index,
    /// When the job was.
    pub(super) job: Index,
}

/// What became of a claim.
pub(super) enum Taking {
    /// The job is this consumer's.
    Taken(Claimed, Node),
    /// It is not.
    Not(Outcome, Option<Error>),
}

impl Hand {
    /// Claims a job, with others if it is to be, and reads it.
    pub(super) async fn take(
        &self,
        id: &JobId,
        job: Index,
        from: Option<Seen>,
        to: Register,
        together: Option<Together>,
    ) -> Taking {
        let outcome = match shared(together).await {
            Some(Ok(written)) => Ok(Ok(written.put)),
            Some(Err(_)) | None => self.claim(id, job, from, &to).await,
        };
        let index = match outcome {
            Ok(Ok(index)) => index,
            Ok(Err(outcome)) => return Taking::Not(outcome, None),
            Err(error) => return Taking::Not(Outcome::Failed, Some(error)),
        };
        let Register::Claimed {
            attempts, claim, ..
        } = to
        else {
            return Taking::Not(Outcome::Failed, None);
        };
        match self.read(id, index).await {
            Ok(Some(node)) => {
                let claimed = Claimed {
                    id: id.clone(),
                    attempts,
                    nonce: claim,
                    index,
                    job: node.modified,
                };
                Taking::Taken(claimed, node)
            }
            // It vanished; nothing is to be done any more.
            Ok(None) => Taking::Not(self.forget(id, index).await, None),
            Err(error) => Taking::Not(Outcome::Failed, Some(error)),
        }
    }

    /// Does what is no claim.
    pub(super) async fn tidy(&self, want: Want) -> Outcome {
        let outcome = match want {
            Want::Claim { .. } => return Outcome::Failed,
            Want::Write { id, from, to } => self.write(&id, from.as_ref(), &to).await,
            Want::DeleteJob { id, index } => match self.delete_job(&id, index).await {
                Ok(_) => return Outcome::Cleared,
                Err(error) => Err(error),
            },
            Want::DeleteRegister { id, index } => return self.forget(&id, index).await,
        };
        match outcome {
            Ok(node) => Outcome::Written(node.modified),
            Err(error) => {
                tracing::debug!(target: "tenure::queue", %error, "not tidied yet");
                match may_pass(&error) || is_refusal(&error) {
                    true => Outcome::Failed,
                    false => Outcome::Stuck,
                }
            }
        }
    }

    /// Writes `to` where the claim is, with others if it is to be, and deletes the job in the same
    /// step if `to` is its end and the store can. Returns when, and whether the job is gone with it.
    ///
    /// # Errors
    /// `ClaimLost`: somebody else has it, or can have it by now. `Ambiguous`: the term ended before
    /// there was an answer. Others that the store gives.
    pub(super) async fn settle(
        &self,
        claim: &Claimed,
        to: &Register,
        together: Option<Together>,
    ) -> Result<(Index, bool)> {
        let key = self.paths.register(&claim.id)?;
        let mut unsure = match shared(together).await {
            Some(Ok(written)) => return Ok((written.all, is_end(to))),
            Some(Err(error)) => Some(error).filter(Error::is_ambiguous),
            None => None,
        };
        let mut retry = Retry::new();
        loop {
            if let Err(cause) = self.term.check() {
                return Err(match unsure {
                    Some(error) => error,
                    None => claim_lost(&key).caused_by(cause),
                });
            }
            let error = match self.settle_once(claim, to).await {
                Ok(settled) => return Ok(settled),
                Err(error) => error,
            };
            if is_refusal(&error) {
                // An earlier try may have done it.
                match self.look(&claim.id).await {
                    Ok(Some(node)) if node.value == to.value() => {
                        return Ok((node.modified, self.core.store.about().commits));
                    }
                    Ok(_) => return Err(claim_lost(&key).caused_by(error)),
                    Err(error) if may_pass(&error) => {}
                    Err(error) => return Err(error),
                }
            } else if !may_pass(&error) {
                return Err(error);
            } else if error.is_ambiguous() {
                unsure = Some(error);
            }
            let pause = retry.pause(&self.core.runtime.entropy);
            self.core.runtime.clock.sleep(pause).await;
        }
    }

    /// Deletes a job that is done, until it is certain that it is gone or was written again.
    ///
    /// # Errors
    /// What will not pass, and the last one once the term is over.
    pub(super) async fn delete_job(&self, id: &JobId, index: Index) -> Result<Option<Index>> {
        let delete = Delete::new(self.paths.job(id)?).when(Condition::Index(index));
        let mut retry = Retry::new();
        loop {
            let error = match self.core.store.delete(delete.clone()).await {
                Ok(deleted) => return Ok(Some(deleted.index)),
                Err(error) if is_refusal(&error) => return Ok(None),
                Err(error) => error,
            };
            if !may_pass(&error) || self.term.check().is_err() {
                return Err(error);
            }
            let pause = retry.pause(&self.core.runtime.entropy);
            self.core.runtime.clock.sleep(pause).await;
        }
    }

    /// Writes the claim. What it says when the claim is not ours is for the machine.
    async fn claim(
        &self,
        id: &JobId,
        job: Index,
        from: Option<Seen>,
        to: &Register,
    ) -> Result<Result<Index, Outcome>> {
        let error = match self.write(id, from.as_ref(), to).await {
            Ok(node) => return Ok(Ok(node.modified)),
            Err(error) if error.is_ambiguous() || is_refusal(&error) => error,
            Err(error) => return Err(error),
        };
        let fresh = match error.index() {
            Some(index) if !error.is_ambiguous() => Freshness::AtLeast(index),
            _ => Freshness::Linearizable,
        };
        let get = Get::node(self.paths.register(id)?).fresh(fresh);
        let Some(node) = self.core.store.get(get).await?.nodes.pop() else {
            // What was sent may still come: then it is a stray, and put back.
            return Ok(Err(Outcome::Failed));
        };
        if node.value == to.value() {
            return Ok(Ok(node.modified));
        }
        if error.is_ambiguous() {
            return Ok(Err(Outcome::Failed));
        }
        let index = node.modified;
        match Register::parse(&node.value) {
            Some(done @ Register::Done { .. }) => {
                let register = Some(done);
                self.delete_job(id, job).await?;
                Ok(Err(Outcome::IsDone(Seen { register, index })))
            }
            _ => Ok(Err(Outcome::Written(index))),
        }
    }

    async fn write(&self, id: &JobId, from: Option<&Seen>, to: &Register) -> Result<Node> {
        let put = self.claim_part(id, from, to)?.put;
        Ok(self.core.store.put(put).await?.node)
    }

    /// The write that takes a register from what was seen to something else.
    pub(super) fn claim_part(
        &self,
        id: &JobId,
        from: Option<&Seen>,
        to: &Register,
    ) -> Result<Part> {
        let condition = match from {
            None => Condition::Absent,
            Some(Seen {
                register: Some(register),
                index,
            }) => unchanged(register, *index),
            Some(Seen {
                register: None,
                index,
            }) => Condition::Index(*index),
        };
        let put = Put::new(self.paths.register(id)?, to.value(), Expiry::Never).when(condition);
        Ok(Part { put, delete: None })
    }

    /// The write that ends a claim; of its end also the deletion of the job, which is for stores
    /// with commits.
    pub(super) fn settle_part(&self, claim: &Claimed, to: &Register) -> Result<Part> {
        let held = Register::Claimed {
            attempts: claim.attempts,
            consumer: self.tag,
            claim: claim.nonce,
        };
        let expiry = match is_end(to) {
            true => Expiry::After(self.window(&claim.id)),
            false => Expiry::Never,
        };
        let put = Put::new(self.paths.register(&claim.id)?, to.value(), expiry);
        let job = is_end(to).then(|| self.paths.job(&claim.id)).transpose()?;
        Ok(Part {
            put: put.when(unchanged(&held, claim.index)),
            delete: job.map(Delete::new),
        })
    }

    async fn settle_once(&self, claim: &Claimed, to: &Register) -> Result<(Index, bool)> {
        let Part { put, delete } = self.settle_part(claim, to)?;
        match delete {
            Some(delete) if self.core.store.about().commits => {
                let commit = Commit::new().put(put).delete(delete);
                Ok((self.core.store.commit(commit).await?.index, true))
            }
            _ => Ok((self.core.store.put(put).await?.index(), false)),
        }
    }

    /// How long a job's end is remembered. Nobody pushes an id again that nobody has chosen, and all
    /// that is remembered is in every list of the queue.
    fn window(&self, id: &JobId) -> Ttl {
        match id.is_generated() {
            true => Ttl::new(DEDUPE).unwrap_or(self.dedupe),
            false => self.dedupe,
        }
    }

    /// Reads a job, as it is now that it was claimed; `None` if it is gone.
    async fn read(&self, id: &JobId, index: Index) -> Result<Option<Node>> {
        let get = Get::node(self.paths.job(id)?).fresh(Freshness::AtLeast(index));
        let mut retry = Retry::new();
        loop {
            let error = match self.core.store.get(get.clone()).await {
                Ok(mut view) => return Ok(view.nodes.pop().filter(|node| !node.is_dir)),
                Err(error) => error,
            };
            if !may_pass(&error) || self.term.check().is_err() {
                return Err(error);
            }
            let pause = retry.pause(&self.core.runtime.entropy);
            self.core.runtime.clock.sleep(pause).await;
        }
    }

    /// Deletes the register of a job that is gone.
    async fn forget(&self, id: &JobId, index: Index) -> Outcome {
        let Ok(key) = self.paths.register(id) else {
            return Outcome::Failed;
        };
        let delete = Delete::new(key).when(Condition::Index(index));
        match self.core.store.delete(delete).await {
            Ok(deleted) => Outcome::Written(deleted.index),
            Err(_) => Outcome::Failed,
        }
    }

    async fn look(&self, id: &JobId) -> Result<Option<Node>> {
        self.core.store.node(&self.paths.register(id)?).await
    }
}

/// What became of the commit that a write is in, if it is in one.
async fn shared(together: Option<Together>) -> Option<Result<Written>> {
    Some(together?.written().await)
}

/// The register is as it was written at this index. The value too, for a store that is restored from
/// a backup gives an index to another one.
fn unchanged(register: &Register, index: Index) -> Condition {
    Condition::Both {
        value: register.value(),
        index,
    }
}

/// Whether a job with this register is to be deleted.
fn is_end(to: &Register) -> bool {
    matches!(to, Register::Done { .. })
}

/// What a settlement is told whose claim is over.
pub(super) fn claim_lost(key: &Key) -> Error {
    let text = "this claim is over: the job has been, or is being, given to a consumer again";
    Error::new(ErrorKind::ClaimLost, text).at(key)
}

/// Whether the store compared, and found something else.
fn is_refusal(error: &Error) -> bool {
    let kinds = [
        ErrorKind::ConditionFailed,
        ErrorKind::AlreadyExists,
        ErrorKind::NotFound,
    ];
    kinds.contains(&error.kind())
}

/// Whether trying again may help.
pub(super) fn may_pass(error: &Error) -> bool {
    error.is_transient() || error.is_ambiguous()
}
