//! Looks whether what is held is still there, beside the watches: a deletion that a server forgets
//! to tell would else go unnoticed until the next fenced write.
//!
//! One read tells of many: a commit of comparisons alone. It writes nothing, and is refused at the
//! first key that is not there, or was made since.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::Lines;
use super::sentry::Roster;
use crate::error::ErrorKind;
use crate::key::{Index, Key, Ttl};
use crate::store::{Commit, Condition};

/// How many keys a read tells of: as many comparisons as etcd takes at once unless it is told
/// otherwise.
const AT_ONCE: usize = 128;

/// How long a deletion that nobody told may go unnoticed.
pub(super) fn every(ttl: Ttl) -> Duration {
    ttl.get() / 2
}

/// What became of a look.
enum Look {
    Answered,
    /// The server takes fewer comparisons at once.
    TooMany,
    Unanswered,
}

/// Looks at all that has been held for a while, once. Who is not answered looks again the next time.
///
/// Not to be given up on the way: etcd 3.5 before 3.5.7 can end itself when a transaction that reads
/// is, and one whose comparisons fail reads to say why.
pub(super) async fn look_at_all(lines: Arc<Lines>) {
    let (mut last, mut at_once) = (None, AT_ONCE);
    loop {
        let some = lines.sentry.lock().after(last.as_ref(), at_once);
        let Some((key, _)) = some.last() else { return };
        match look_at(&lines, &some).await {
            Look::Answered if lines.closed.is_cancelled() => return,
            Look::Answered => last = Some(key.clone()),
            Look::TooMany if at_once > 1 => at_once /= 2,
            Look::TooMany | Look::Unanswered => return,
        }
    }
}

async fn look_at(lines: &Lines, mut some: &[(Key, Index)]) -> Look {
    while !some.is_empty() && !lines.closed.is_cancelled() {
        let created = |(key, at): &(Key, Index)| (key.clone(), Condition::Created(*at));
        let checks = some.iter().map(created);
        let commit = checks.fold(Commit::new(), |it, (key, when)| it.check(key, when));
        let Err(error) = lines.store.commit(commit).await else {
            return Look::Answered;
        };
        let place = some.iter().position(|(key, _)| Some(key) == error.key());
        let place = match (error.kind(), place) {
            (ErrorKind::ConditionFailed | ErrorKind::NotFound, Some(place)) => place,
            (ErrorKind::InvalidOptions, _) => return Look::TooMany,
            _ => {
                tracing::debug!(target: "tenure::line", %error, "cannot look at what is held");
                return Look::Unanswered;
            }
        };
        // It names the first: those before it are there.
        let Some(((key, at), rest)) = some.get(place..).and_then(<[_]>::split_first) else {
            return Look::Unanswered;
        };
        lines.sentry.lock().found_gone(key, *at);
        some = rest;
    }
    Look::Answered
}

impl Roster {
    /// The next keys that have been held for a while, and when each was appended.
    fn after(&self, last: Option<&Key>, number: usize) -> Vec<(Key, Index)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let charges = self.charges.range::<Key, _>((from, Bound::Unbounded));
        let settled = charges.filter(|(_, charge)| charge.is_settled());
        let some = settled.take(number);
        some.map(|(key, charge)| (key.clone(), charge.at)).collect()
    }
}
