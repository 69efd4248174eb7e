//! What a consumer's task has begun and waits for: claims, endings, clearing away.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;

use super::claim::{Claimed, Hand, Taking};
use super::job::JobId;
use super::register::Register;
use super::registration::{Registered, Registration};
use super::step::{Outcome, Want};
use super::together::{Part, Together, share};
use crate::error::Result;
use crate::key::{Index, Key, Tag};
use crate::session::Loss;
use crate::watcher::{Follow, Watcher};

pub(super) type Registering = BoxFuture<'static, Result<Registered>>;

/// A registration, and who writes under it.
pub(super) struct Post {
    pub(super) registration: Registration,
    pub(super) hand: Arc<Hand>,
}

/// What is under way; each yields what has come of it.
pub(super) type Errands = FuturesUnordered<BoxFuture<'static, Done>>;

/// What has come of something that was begun under the registration of this tag.
pub(super) struct Done {
    pub(super) tag: Tag,
    pub(super) id: JobId,
    pub(super) what: What,
}

pub(super) enum What {
    /// A claim, and what it was to write.
    Took(Taking, Register),
    /// The end of one: when it was written, and whether the job is gone with it.
    Settled(Settling, Result<(Index, bool)>),
    Tidied(Outcome),
}

/// A claim that ends.
pub(super) struct Settling {
    pub(super) claimed: Claimed,
    pub(super) to: Register,
    /// Who waits for it.
    pub(super) answer: Option<oneshot::Sender<Result<bool>>>,
}

/// Begins what is wanted, the claims of it together.
pub(super) fn begin(hand: &Arc<Hand>, wants: Vec<Want>, errands: &Errands) {
    let claims = wants.iter().filter_map(|want| match want {
        Want::Claim { id, from, to, .. } => Some(hand.claim_part(id, from.as_ref(), to)),
        _ => None,
    });
    let mut shares = shares(hand, claims);
    for want in wants {
        let (hand, id) = (hand.clone(), want.id().clone());
        let together = match want {
            Want::Claim { .. } => shares.next().flatten(),
            _ => None,
        };
        errands.push(Box::pin(async move {
            let what = match want {
                Want::Claim { id, job, from, to } => {
                    let taking = hand.take(&id, job, from, to.clone(), together).await;
                    What::Took(taking, to)
                }
                want => What::Tidied(hand.tidy(want).await),
            };
            let tag = hand.tag;
            Done { tag, id, what }
        }));
    }
}

/// Ends claims, together.
pub(super) fn settle(hand: &Arc<Hand>, endings: Vec<Settling>, errands: &Errands) {
    let parts = endings
        .iter()
        .map(|it| hand.settle_part(&it.claimed, &it.to));
    let mut shares = shares(hand, parts);
    for ending in endings {
        let (hand, together) = (hand.clone(), shares.next().flatten());
        errands.push(Box::pin(async move {
            let outcome = hand.settle(&ending.claimed, &ending.to, together).await;
            let (tag, id) = (hand.tag, ending.claimed.id.clone());
            let what = What::Settled(ending, outcome);
            Done { tag, id, what }
        }));
    }
}

/// The end of the registration that is under way; never returns if there is none.
pub(super) fn in_flight(
    registering: &mut Option<Registering>,
) -> impl Future<Output = Result<Registered>> + '_ {
    poll_fn(|cx| match registering {
        Some(registering) => Pin::new(registering).poll(cx),
        None => Poll::Pending,
    })
}

/// The end of the registration; never returns if there is none.
pub(super) async fn lost(post: Option<&Post>) -> Loss {
    match post {
        Some(post) => post.hand.term.lost().await,
        None => std::future::pending().await,
    }
}

/// The next item of any watcher; never returns if there is none.
pub(super) fn next_item(
    watchers: &mut [Watcher],
) -> impl Future<Output = (Key, Option<Result<Follow>>)> + '_ {
    poll_fn(|cx| {
        for watcher in watchers.iter_mut() {
            if let Poll::Ready(item) = watcher.poll_next_unpin(cx) {
                return Poll::Ready((watcher.key().clone(), item));
            }
        }
        Poll::Pending
    })
}

/// The commit that each part is in. If one cannot be made all go by themselves, and that one fails.
fn shares(
    hand: &Arc<Hand>,
    parts: impl Iterator<Item = Result<Part>>,
) -> std::vec::IntoIter<Option<Together>> {
    let parts: Vec<Part> = parts.collect::<Result<_>>().unwrap_or_default();
    share(hand, &parts).into_iter()
}
