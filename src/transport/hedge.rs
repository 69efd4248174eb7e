//! A question that takes longer than is normal is asked of a second server too, and whoever answers
//! properly first counts. Only for what changes nothing.

use std::future::Future;
use std::pin::pin;

/// Which of two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    First,
    Second,
}

/// The outcome of `first`; if `pause` ends before that, of whichever of both is good first. If
/// neither is, that of the one that ended last. `second` is not begun before.
pub(crate) async fn hedged<T>(
    first: impl Future<Output = T>,
    pause: impl Future<Output = ()>,
    second: impl Future<Output = T>,
    is_good: impl Fn(&T) -> bool,
) -> (Who, T) {
    let mut first = pin!(first);
    tokio::select! {
        biased;
        outcome = &mut first => return (Who::First, outcome),
        () = pause => {}
    }
    let mut second = pin!(second);
    tokio::select! {
        biased;
        outcome = &mut first => if is_good(&outcome) {
            (Who::First, outcome)
        } else {
            (Who::Second, second.await)
        },
        outcome = &mut second => if is_good(&outcome) {
            (Who::Second, outcome)
        } else {
            (Who::First, first.await)
        },
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    async fn after(millis: u64, outcome: u8) -> u8 {
        sleep(Duration::from_millis(millis)).await;
        outcome
    }

    async fn race(first: (u64, u8), second: (u64, u8)) -> (Who, u8) {
        let pause = sleep(Duration::from_millis(100));
        let second = after(second.0, second.1);
        hedged(after(first.0, first.1), pause, second, |it| *it > 0).await
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_answers_properly_first_counts() {
        assert_eq!(race((50, 1), (0, 2)).await, (Who::First, 1));
        assert_eq!(race((50, 0), (0, 2)).await, (Who::First, 0), "in time");
        assert_eq!(race((500, 1), (10, 2)).await, (Who::Second, 2));
        assert_eq!(race((150, 1), (500, 2)).await, (Who::First, 1));
        assert_eq!(race((150, 0), (500, 2)).await, (Who::Second, 2));
        assert_eq!(race((500, 1), (10, 0)).await, (Who::First, 1));
        assert_eq!(race((150, 0), (500, 0)).await, (Who::Second, 0));
    }

    #[tokio::test]
    async fn nobody_else_is_asked_while_the_first_is_in_time() {
        let second = async { panic!("asked") };
        assert_eq!(
            hedged(ready(1), pending(), second, |_| true).await,
            (Who::First, 1)
        );
    }
}
