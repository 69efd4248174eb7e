//! What a consumer's machine asks to be done, and what it is told of it.

use super::class::Seen;
use super::job::JobId;
use super::register::Register;
use crate::key::Index;
use crate::runtime::Instant;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Claim it: write `to` where there is `from`. If it turns out to be done, delete the job as it
    /// was last written at `job`.
    Claim {
        id: JobId,
        job: Index,
        from: Option<Seen>,
        to: Register,
    },
    /// Write `to` where there is `from`: a stray claim back to ready, a poison job to dead.
    Write {
        id: JobId,
        from: Option<Seen>,
        to: Register,
    },
    /// Delete a job that is done, as it was last written at this index.
    DeleteJob { id: JobId, index: Index },
    /// Delete a register whose job is gone, as it was last written at this index.
    DeleteRegister { id: JobId, index: Index },
}

/// What became of something that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The register was written at this index, by us or before us: the view will show it.
    Written(Index),
    /// The job was deleted, or was gone already.
    Cleared,
    /// The register says that the job is done, which the view does not: the job came after it.
    IsDone(Seen),
    /// The store did not do it, or nobody knows.
    Failed,
    /// The store refuses, and will refuse again.
    Stuck,
}

/// What there is to do, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) wants: Vec<Want>,
    /// The nonces of claims that somebody else has ended.
    pub(super) lost: Vec<u64>,
    pub(super) wake: Option<Instant>,
}

impl Step {
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

impl Want {
    pub(super) fn id(&self) -> &JobId {
        match self {
            Self::Claim { id, .. }
            | Self::Write { id, .. }
            | Self::DeleteJob { id, .. }
            | Self::DeleteRegister { id, .. } => id,
        }
    }
}
