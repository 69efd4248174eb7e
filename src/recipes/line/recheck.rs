//! Looks whether what is held is still there, beside the watches: a deletion that a server forgets
//! to tell would else go unnoticed until the next fenced write.
//!
//! One read tells of many: a commit of comparisons alone. It writes nothing, and is refused at the
//! first key that is not there, or was made since.
//!
//! ```text
//! some ──all are there──▶ the next ones
//!  │ ▲ ├─one is gone──▶ it is lost; then those behind it
//!  │ │ ├─too many──▶ the first half, from now on
//!  │ │ ├─forbidden──▶ each half by itself, down to the key that is: noted, and asked for no more
//!  │ │ └─not answered──▶ the next ones, once
//!  │ └── one that was noted is tried in each look: once it is not forbidden, none is
//! ```

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

/// What became of a look at some.
enum Look {
    Answered,
    /// The server takes fewer comparisons at once.
    TooMany,
    Unanswered,
}

/// What a server said.
enum Answer {
    There,
    /// The first that is not, or was made since.
    Gone(usize),
    /// One of them, and it does not say which.
    Forbidden,
    TooMany,
    None,
}

/// Looks at all that has been held for a while, once. Who is not answered looks again the next time.
///
/// Not to be given up on the way: etcd 3.5 before 3.5.7 can end itself when a transaction that reads
/// is, and one whose comparisons fail reads to say why.
pub(super) async fn look_at_all(lines: Arc<Lines>) {
    try_a_forbidden_one(&lines).await;
    let (mut last, mut at_once, mut was_answered) = (None, AT_ONCE, true);
    while !lines.closed.is_cancelled() {
        let some = lines.sentry.lock().after(last.as_ref(), at_once);
        let Some((key, _)) = some.last() else { return };
        was_answered = match look_at(&lines, &some).await {
            Look::Answered => true,
            Look::TooMany if at_once > 1 => {
                at_once /= 2;
                continue;
            }
            // Whatever it is that these are not answered for, it need not be so with the next ones.
            // Twice in a row the server is away.
            Look::Unanswered if was_answered => false,
            Look::TooMany | Look::Unanswered => return,
        };
        last = Some(key.clone());
    }
}

/// Rights can come back: then all that was forbidden is looked at again.
async fn try_a_forbidden_one(lines: &Lines) {
    let Some(one) = lines.sentry.lock().next_forbidden() else {
        return;
    };
    match ask(lines, std::slice::from_ref(&one)).await {
        Answer::There | Answer::Gone(_) => lines.sentry.lock().allow_all(),
        Answer::Forbidden | Answer::TooMany | Answer::None => {}
    }
}

async fn look_at(lines: &Lines, some: &[(Key, Index)]) -> Look {
    let mut parts = vec![some];
    while let Some(part) = parts.pop().filter(|_| !lines.closed.is_cancelled()) {
        match (ask(lines, part).await, part) {
            (Answer::There, _) => {}
            (Answer::Gone(place), _) => {
                // Those before it are there.
                let Some(((key, at), rest)) = part.get(place..).and_then(<[_]>::split_first) else {
                    return Look::Unanswered;
                };
                lines.sentry.lock().found_gone(key, *at);
                if !rest.is_empty() {
                    parts.push(rest);
                }
            }
            (Answer::Forbidden, [(key, at)]) => {
                tracing::debug!(target: "tenure::line", %key, "may not look at what is held");
                lines.sentry.lock().forbid(key, *at);
            }
            (Answer::Forbidden, _) => {
                let (front, back) = part.split_at(part.len() / 2);
                parts.extend([back, front]);
            }
            (Answer::TooMany, _) => return Look::TooMany,
            (Answer::None, _) => return Look::Unanswered,
        }
    }
    Look::Answered
}

async fn ask(lines: &Lines, some: &[(Key, Index)]) -> Answer {
    let created = |(key, at): &(Key, Index)| (key.clone(), Condition::Created(*at));
    let checks = some.iter().map(created);
    let commit = checks.fold(Commit::new(), |it, (key, when)| it.check(key, when));
    let Err(error) = lines.store.commit(commit).await else {
        return Answer::There;
    };
    let place = some.iter().position(|(key, _)| Some(key) == error.key());
    match (error.kind(), place) {
        (ErrorKind::ConditionFailed | ErrorKind::NotFound, Some(place)) => Answer::Gone(place),
        (ErrorKind::InvalidOptions, _) => Answer::TooMany,
        (ErrorKind::Forbidden, _) => Answer::Forbidden,
        _ => {
            tracing::debug!(target: "tenure::line", %error, "cannot look at what is held");
            Answer::None
        }
    }
}

impl Roster {
    /// The next keys that have been held for a while, and when each was appended.
    fn after(&self, last: Option<&Key>, number: usize) -> Vec<(Key, Index)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let charges = self.charges.range::<Key, _>((from, Bound::Unbounded));
        let settled = charges.filter(|(_, charge)| charge.is_settled() && !charge.forbidden);
        let some = settled.take(number);
        some.map(|(key, charge)| (key.clone(), charge.at)).collect()
    }
    /// The rights to it are missing.
    fn forbid(&mut self, key: &Key, at: Index) {
        if let Some(charge) = self.charges.get_mut(key).filter(|it| it.at == at) {
            charge.forbidden = true;
        }
    }

    fn allow_all(&mut self) {
        let charges = self.charges.values_mut();
        charges.for_each(|charge| charge.forbidden = false);
    }

    /// One after the other of those that are forbidden.
    fn next_forbidden(&mut self) -> Option<(Key, Index)> {
        let from = self.tried.as_ref();
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.charges.range::<Key, _>((from, Bound::Unbounded));
        let mut all = later.chain(&self.charges);
        let next = all.find(|(_, charge)| charge.forbidden && charge.is_settled());
        let next = next.map(|(key, charge)| (key.clone(), charge.at));
        self.tried = next.clone().map(|(key, _)| key);
        next
    }
}
