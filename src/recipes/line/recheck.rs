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

/// Looks at all that has been held for a while, once. Who is not answered looks again the next time.
pub(super) async fn look_at_all(lines: Arc<Lines>) {
    let mut last = None;
    loop {
        let some = lines.sentry.lock().after(last.as_ref());
        let Some((key, _)) = some.last() else { return };
        last = Some(key.clone());
        if !look_at(&lines, &some).await {
            return;
        }
    }
}

/// Whether it was answered.
async fn look_at(lines: &Lines, some: &[(Key, Index)]) -> bool {
    let mut pieces = vec![some];
    while let Some(piece) = pieces.pop() {
        let created = |(key, at): &(Key, Index)| (key.clone(), Condition::Created(*at));
        let checks = piece.iter().map(created);
        let commit = checks.fold(Commit::new(), |it, (key, when)| it.check(key, when));
        let Err(error) = lines.store.commit(commit).await else {
            continue;
        };
        if error.kind() == ErrorKind::InvalidOptions && piece.len() > 1 {
            // It was told otherwise.
            let (these, those) = piece.split_at(piece.len() / 2);
            pieces.extend([those, these]);
            continue;
        }
        let missing = matches!(
            error.kind(),
            ErrorKind::ConditionFailed | ErrorKind::NotFound
        );
        let place = piece.iter().position(|(key, _)| Some(key) == error.key());
        let (true, Some(place)) = (missing, place) else {
            tracing::debug!(target: "tenure::line", %error, "cannot look at what is held");
            return false;
        };
        // It names the first: those before it are there.
        let Some(((key, at), rest)) = piece.get(place..).and_then(<[_]>::split_first) else {
            return false;
        };
        lines.sentry.lock().found_gone(key, *at);
        if !rest.is_empty() {
            pieces.push(rest);
        }
    }
    true
}

impl Roster {
    /// The next keys that have been held for a while, and when each was appended.
    fn after(&self, last: Option<&Key>) -> Vec<(Key, Index)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let charges = self.charges.range::<Key, _>((from, Bound::Unbounded));
        let settled = charges.filter(|(_, charge)| charge.is_settled());
        let some = settled.take(AT_ONCE);
        some.map(|(key, charge)| (key.clone(), charge.at)).collect()
    }
}
