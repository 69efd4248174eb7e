//! The stream of a watch.
//!
//! There is no task behind it. It waits for its waker, which a mutation calls, or for the time of
//! the next expiry, which it then makes happen itself.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::BoxFuture;

use super::Shared;
use super::core::{Age, Event, Interest, Look, Outcome, WatcherId};
use crate::key::Index;
use crate::runtime::Instant;

/// An event, whether the next one is ready and of the same commit, and the age of the store when
/// it was taken.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) event: Arc<Event>,
    pub(crate) more: bool,
    pub(crate) age: Age,
}

/// Events from when it was made, and the age of the store when each was taken. Ends after an
/// error. Dropping it frees everything.
pub(crate) struct Events {
    shared: Arc<Shared>,
    /// `None` once it has ended.
    id: Option<WatcherId>,
    nap: Option<(Instant, BoxFuture<'static, ()>)>,
}

impl Events {
    /// Begins to follow; also the store's index at that moment.
    pub(crate) fn open(
        shared: &Arc<Shared>,
        interest: Interest,
        from: Option<Index>,
    ) -> Outcome<(Index, Self)> {
        let (index, id) = shared.turn(|core| Ok((core.index(), core.watch(interest, from)?)))?;
        let events = Self {
            shared: Arc::clone(shared),
            id: Some(id),
            nap: None,
        };
        Ok((index, events))
    }

    fn leave(&mut self) {
        self.nap = None;
        if let Some(id) = self.id.take() {
            let waker = self.shared.lock().leave(id);
            drop(waker); // not under the lock
        }
    }
}

impl Stream for Events {
    type Item = Outcome<Told>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(id) = this.id else {
            return Poll::Ready(None);
        };
        loop {
            let look = |core: &mut super::core::Core| Ok((core.look(id, cx.waker())?, core.age()));
            let wake_at = match this.shared.turn(look) {
                Err(refusal) => {
                    this.leave();
                    return Poll::Ready(Some(Err(refusal)));
                }
                Ok((Look::Event(event, more), age)) => {
                    return Poll::Ready(Some(Ok(Told { event, more, age })));
                }
                Ok((Look::Nothing(None), _)) => {
                    this.nap = None;
                    return Poll::Pending;
                }
                Ok((Look::Nothing(Some(wake_at)), _)) => wake_at,
            };
            let (_, mut nap) = match this.nap.take() {
                Some(nap) if nap.0 == wake_at => nap,
                _ => {
                    let clock = this.shared.clock.clone();
                    let nap = Box::pin(async move { clock.sleep_until(wake_at).await });
                    (wake_at, nap as BoxFuture<'static, ()>)
                }
            };
            if nap.as_mut().poll(cx).is_pending() {
                this.nap = Some((wake_at, nap));
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
