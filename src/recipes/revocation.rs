//! Asking a holder to give back: a request that it may honour, never a seizure.
//!
//! # Protocol
//! One node for each line, beside the tickets and hidden from whoever lists them
//! ([`Layout::meta`](crate::store::Layout::meta); `/_locks/N/_meta/revoke` on the embedded store and
//! etcd v2), says which **token** is asked back, by whom and why.
//!
//! 1. **Ask**: list the line; the first ticket's token is the one to ask back. Write the request,
//!    on the condition of the value and index of the request that was there, if any. So a write
//!    that was given up and lands late never takes the place of a later request.
//! 2. **Listen**: follow the node, only while somebody awaits it. A request for another token is
//!    not meant for this holder.
//!
//! Requests end by themselves after [10 minutes](EXPIRY): by then the holder has heard, or does not
//! listen. An empty `_meta` stays for each line that was ever asked.
//!
//! Cost: asking, 2 reads and 1 write; listening, a read and a watch.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::client::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Ttl};
use crate::recipes::contender;
use crate::session::{Loss, Term, Who};
use crate::store::{Change, Condition, Expiry, Get, Node, Put, Scope};
use crate::watcher::{Follow, Watcher};

/// How long a request stays.
pub const EXPIRY: Duration = Duration::from_secs(10 * 60);

/// How often it is looked anew at a line that changes between the look and the write.
const TRIES: usize = 5;

/// What a holder is asked, and by whom. From
/// [`LockGuard::revocation`](super::guard::LockGuard::revocation).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    token: u64,
    by: Who,
    reason: String,
}

impl Revocation {
    /// The token that is asked back.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Who asks.
    pub fn by(&self) -> &Who {
        &self.by
    }

    /// Why.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    fn parse(node: &Node) -> Option<Self> {
        serde_json::from_slice(&node.value).ok()
    }
}

/// Asks whoever holds the line at `dir` now to give back; the token that was asked, if anybody
/// holds.
pub(super) async fn request(core: &Core, dir: &Key, reason: &str) -> Result<Option<u64>> {
    let place = core.layout.meta(dir)?.join("revoke")?;
    let mut last = None;
    for _ in 0..TRIES {
        // Before the line: of two that ask, the one that saw the older line must not win.
        let view = core.store.get(Get::node(place.clone())).await?;
        let before = view.nodes.into_iter().next();
        let line = contender::in_line(core, dir).await?;
        let Some(token) = line.first().map(contender::Contender::token) else {
            return Ok(None);
        };
        let request = Revocation {
            token,
            by: core.who.clone(),
            reason: reason.to_owned(),
        };
        if last.is_some() && before.as_ref().and_then(Revocation::parse) == Some(request.clone()) {
            return Ok(Some(token));
        }
        let error = match ask(core, &place, before, &request).await {
            Ok(()) => return Ok(Some(token)),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::ConditionFailed
            | ErrorKind::AlreadyExists
            | ErrorKind::NotFound
            | ErrorKind::Ambiguous => last = Some(error),
            _ => return Err(error),
        }
    }
    let text = "the request was not seen to be written; asking again does no harm";
    let error = last.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, text));
    Err(error.into_kind(ErrorKind::Timeout, text))
}

async fn ask(core: &Core, place: &Key, before: Option<Node>, request: &Revocation) -> Result<()> {
    let condition = match before {
        Some(Node {
            value, modified, ..
        }) => Condition::Both {
            value,
            index: modified,
        },
        None => Condition::Absent,
    };
    // Two numbers and strings: there is nothing that could fail.
    let value: Bytes = serde_json::to_vec(request).unwrap_or_default().into();
    let expiry = Expiry::After(Ttl::new(EXPIRY)?);
    let put = Put::new(place.clone(), value, expiry).when(condition);
    core.store.put(put).await.map(|_| ())
}

/// Returns once the holder of `token` is asked to give back.
pub(super) async fn requested(
    core: &Core,
    dir: &Key,
    token: u64,
    term: &Term,
) -> Result<Revocation> {
    let place = core.layout.meta(dir)?.join("revoke")?;
    let mut follow = Watcher::new(core.store.clone(), place, Scope::Node, &core.runtime);
    loop {
        let item = tokio::select! {
            biased;
            loss = term.lost() => return Err(loss.into_error()),
            item = follow.next() => item,
        };
        let node = match item {
            Some(Ok(Follow::Snapshot(view))) => view.nodes.into_iter().next(),
            Some(Ok(Follow::Event(event))) => match event.change {
                Change::Put(node) => Some(node),
                Change::Delete { .. } => None,
            },
            Some(Ok(_)) => None,
            Some(Err(error)) => return Err(error),
            None => return Err(Loss::Closed.into_error()),
        };
        let request = node.as_ref().and_then(Revocation::parse);
        if let Some(request) = request.filter(|request| request.token == token) {
            return Ok(request);
        }
    }
}
