//! The limit of a semaphore: one node, created once, changed by comparison with its index.
//!
//! A write whose answer is lost may come late. Creating is `if absent`; resizing compares the index
//! of the node that was read, so it takes effect once at most, and never over somebody else's later
//! resize, even one back to the same number.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::recipes::line::Refusal;
use crate::recipes::line::shared::picture::Limit;
use crate::store::{Condition, Expiry, Freshness, Get, Node, Put};

/// How often a resize begins anew because somebody else was faster.
const RESIZES: usize = 16;

/// How often the creation is sent while no answer comes.
const CREATES: usize = 3;

/// What one value of a semaphore knows and wants of the limit.
#[derive(Debug, Default)]
pub(super) struct LimitNode {
    /// What it must be at first use.
    declared: Option<u32>,
    /// What it was last seen to be, once it was right: 0 before that.
    seen: AtomicU64,
}

impl LimitNode {
    pub(super) fn declared(permits: u32) -> Self {
        Self {
            declared: Some(permits),
            seen: AtomicU64::new(0),
        }
    }

    /// Remembers what a view has shown.
    pub(super) fn saw(&self, limit: u32) {
        self.seen.store(u64::from(limit), Ordering::Release);
    }

    /// Makes sure, once for this value, that the limit is there and is the declared one; and that
    /// a weight does not exceed it, as far as that is known.
    pub(super) async fn verify(&self, core: &Core, key: &Key, weight: u32) -> Result<()> {
        if self.seen.load(Ordering::Acquire) >= u64::from(weight) {
            return Ok(());
        }
        let verified = self.seen.load(Ordering::Acquire) > 0;
        let limit = self.find(core, key, verified, weight).await?;
        self.saw(limit);
        if weight > limit {
            return Err(Refusal::TooHeavy { weight, limit }.into_error().at(key));
        }
        Ok(())
    }

    /// Reads the limit, and creates it if it is declared and not there. A read that might be old
    /// is believed only if it shows what is wanted.
    async fn find(&self, core: &Core, key: &Key, verified: bool, weight: u32) -> Result<u32> {
        let declared = self.declared.filter(|_| !verified);
        if declared == Some(0) {
            let text = "a semaphore of 0 permits admits nobody: the least is 1";
            return Err(Error::new(ErrorKind::InvalidOptions, text).at(key));
        }
        let quick = stored(core, key, Freshness::Any).await?;
        if let Limit::Number(limit) = quick
            && limit >= weight
            && declared.is_none_or(|declared| declared == limit)
        {
            return Ok(limit);
        }
        let mut limit = stored(core, key, Freshness::Linearizable).await?;
        if let (Limit::Missing, Some(declared)) = (&limit, declared) {
            limit = Limit::Number(create(core, key, declared).await?);
        }
        let limit = limit.number().map_err(|it| it.into_error().at(key))?;
        match declared {
            Some(declared) if declared != limit => {
                let text = format!(
                    "the semaphore has a limit of {limit}, and {declared} was given: leave `.permits` \
                     out to take it as it is, or change it with `resize`"
                );
                Err(Error::new(ErrorKind::LimitMismatch, text).at(key))
            }
            _ => Ok(limit),
        }
    }

    /// Sets the limit and returns the one before.
    pub(super) async fn resize(&self, core: &Core, key: &Key, permits: u32) -> Result<u32> {
        core.open()?;
        if permits == 0 || self.declared == Some(0) {
            let text = "a semaphore of 0 permits admits nobody: the least is 1";
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        let mut unanswered = None;
        let mut failure = None;
        for _ in 0..RESIZES {
            let node = match node(core, key, Freshness::Linearizable).await {
                Ok(node) => node,
                // What was sent may have taken effect, whatever reading back fails with.
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            let old = match (Limit::of(node.as_ref()), self.declared) {
                (Limit::Missing, Some(declared)) => {
                    create(core, key, declared).await?;
                    continue;
                }
                (limit, _) => limit.number().map_err(Refusal::into_error)?,
            };
            let Some(node) = node else {
                return Err(Refusal::NoLimit.into_error());
            };
            if old == permits {
                self.saw(permits);
                // What was sent without an answer has landed, unless somebody else set the same.
                return Ok(unanswered.unwrap_or(old));
            }
            let condition = Condition::Index(node.modified);
            let put = Put::new(key.clone(), permits.to_string(), Expiry::Never).when(condition);
            match core.store.put(put).await {
                Ok(written) => {
                    core.saw(written.index());
                    self.saw(permits);
                    return Ok(old);
                }
                Err(error) if error.kind() == ErrorKind::ConditionFailed => {}
                Err(error) if error.is_ambiguous() => {
                    unanswered = Some(old);
                    failure = Some(error);
                }
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
        let text = format!("somebody else resized it {RESIZES} times meanwhile");
        Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, text)))
    }
}

/// Creates the limit unless it is there; returns the one that is.
async fn create(core: &Core, key: &Key, permits: u32) -> Result<u32> {
    let mut last = None;
    for _ in 0..CREATES {
        let put = Put::new(key.clone(), permits.to_string(), Expiry::Never);
        match core.store.put(put.when(Condition::Absent)).await {
            Ok(written) => {
                core.saw(written.index());
                return Ok(permits);
            }
            // Somebody else was first; or it may be there, and if it comes late it does no harm.
            Err(error) if error.kind() == ErrorKind::AlreadyExists || error.is_ambiguous() => {
                last = Some(error);
            }
            Err(error) => return Err(error.at(key)),
        }
        match stored(core, key, Freshness::Linearizable).await?.number() {
            Ok(limit) => return Ok(limit),
            Err(Refusal::NoLimit) => {}
            Err(refusal) => return Err(refusal.into_error().at(key)),
        }
    }
    let text = "no answer to the creation of the limit, and it is not there";
    let error = Error::new(ErrorKind::Timeout, text).at(key);
    Err(match last {
        Some(last) => error.caused_by(last),
        None => error,
    })
}

/// What is stored as the limit.
pub(super) async fn stored(core: &Core, key: &Key, fresh: Freshness) -> Result<Limit> {
    Ok(Limit::of(node(core, key, fresh).await?.as_ref()))
}

async fn node(core: &Core, key: &Key, fresh: Freshness) -> Result<Option<Node>> {
    let view = core.store.get(Get::node(key.clone()).fresh(fresh)).await;
    let view = view.map_err(|error| error.during("read limit").at(key))?;
    // What is read next must not be older: there the limit may be another, or not yet.
    core.saw(view.index);
    Ok(view.nodes.into_iter().next())
}
