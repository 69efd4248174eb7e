//! Writes on several registers at once, where the store has commits.
//!
//! ```text
//!  ready at one moment ──▶ one commit ──▶ all written
//!                              └─ refused, or no answer ──▶ each by itself
//! ```
//!
//! A commit is all or nothing, so one claim that is over would fail the others: what a shared write
//! comes to counts only if it succeeded, and else each is tried by itself. That is safe whatever
//! became of the shared one, also if it comes late: it compares the same indexes as each does by
//! itself, so either it finds one of them changed and does nothing, or each finds its own value
//! there, with its own nonce.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};

use super::claim::Hand;
use crate::error::Result;
use crate::key::Index;
use crate::store::{Commit, Committed, Delete, Put, Store as _};

/// The most registers in one commit: each has up to two comparisons and two operations, and etcd v3
/// takes 128 of either unless it is told otherwise.
const MOST: usize = 64;

/// What one register needs of a commit: its own write, and the deletion of its job if that ends with
/// it. The put's condition is the only one.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) put: Put,
    pub(super) delete: Option<Delete>,
}

/// One's part of a commit that several wait for. Whoever is polled drives it; dropping some of them
/// does not end it for the others.
#[derive(Clone, Debug)]
pub(super) struct Together {
    commit: Shared<BoxFuture<'static, Result<Arc<Committed>>>>,
    /// Which of its operations is the put.
    put: usize,
}

/// When a part was written, and when all of its commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) put: Index,
    pub(super) all: Index,
}

impl Together {
    /// Waits for the commit.
    pub(super) async fn written(self) -> Result<Written> {
        let committed = self.commit.await?;
        let node = committed.nodes.get(self.put).and_then(Option::as_ref);
        let put = node.map_or(committed.index, |node| node.modified);
        let all = committed.index;
        Ok(Written { put, all })
    }
}

/// For each part its place in a commit; `None` where it is to go by itself, because there is no
/// other, or because the store has no commits.
pub(super) fn share(hand: &Arc<Hand>, parts: &[Part]) -> Vec<Option<Together>> {
    if parts.len() < 2 || !hand.core.store.about().commits {
        return parts.iter().map(|_| None).collect();
    }
    let chunks = parts.chunks(MOST);
    chunks.flat_map(|some| begin(hand.clone(), some)).collect()
}

fn begin(hand: Arc<Hand>, parts: &[Part]) -> Vec<Option<Together>> {
    if parts.len() < 2 {
        return vec![None];
    }
    let (mut commit, mut places) = (Commit::new(), Vec::with_capacity(parts.len()));
    for part in parts {
        places.push(commit.operations.len());
        commit = commit.put(part.put.clone());
        if let Some(delete) = &part.delete {
            commit = commit.delete(delete.clone());
        }
    }
    let commit = async move {
        let outcome = hand.core.store.commit(commit).await;
        if let Err(error) = &outcome {
            tracing::debug!(target: "tenure::queue", %error, "not written together");
        }
        outcome.map(Arc::new)
    };
    let commit = commit.boxed().shared();
    let place = |put| {
        let commit = commit.clone();
        Some(Together { commit, put })
    };
    places.into_iter().map(place).collect()
}
