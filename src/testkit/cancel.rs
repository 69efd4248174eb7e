//! Dropping a future at each of its awaits.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Polls `future` at most `polls` times, then drops it: when it is woken for one poll more, not
/// before, so what it waited for has happened and nobody looks.
///
/// Returns the output if the future finished in time. With 0 it is dropped unpolled. A future
/// that waits for ever is never dropped: put a timeout inside.
pub async fn cancel_after<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// Runs `attempt` with 0, 1, 2, … polls until it reports `true`, which means that its future
/// finished; returns with how many polls, or `None` if `limit` were not enough.
///
/// Each attempt makes a fresh world, drives the future under test through [`cancel_after`] with
/// the number that it is given, and asserts that a dropped one left nothing behind.
pub async fn cancel_at_every_poll<F>(
    limit: usize,
    mut attempt: impl FnMut(usize) -> F,
) -> Option<usize>
where
    F: Future<Output = bool>,
{
    for polls in 0..=limit {
        if attempt(polls).await {
            return Some(polls);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_future_is_dropped_at_each_of_its_awaits_in_turn() {
        let reached = Cell::new(0);
        let work = async || {
            for step in 1..=3 {
                reached.set(step);
                yield_now().await;
            }
            "done"
        };
        let seen = Cell::new(Vec::new());
        let polls = cancel_at_every_poll(100, async |polls| {
            reached.set(0);
            let done = cancel_after(work(), polls).await.is_some();
            let mut all = seen.take();
            all.push(reached.get());
            seen.set(all);
            done
        })
        .await;
        assert_eq!(polls, Some(4));
        assert_eq!(seen.take(), [0, 1, 2, 3, 3]);
    }

    #[tokio::test]
    async fn a_future_that_never_ends_within_the_limit_is_reported() {
        let attempt = |polls| async move {
            let endless = async {
                loop {
                    yield_now().await;
                }
            };
            cancel_after::<_>(endless, polls).await.is_some()
        };
        assert_eq!(cancel_at_every_poll(5, attempt).await, None);
    }
}
