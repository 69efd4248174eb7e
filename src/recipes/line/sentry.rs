//! Watches over what is held and has no line's task to do so: each key by itself, once it has been
//! held for a while.
//!
//! ```text
//! held ──SHORT_HOLD──▶ watched ──deleted──▶ the term is lost
//!   └───── released ──────┴──▶ forgotten
//! ```
//!
//! One task for all lines of a client, while anything is held: a short hold costs two turns at a
//! mutex, a long one a watch, and many together a [look](super::recheck) each TTL/2. For stores whose
//! watches share a connection.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Notify;

use super::machine::SHORT_HOLD;
use super::vigil::Vigil;
use super::{Lines, recheck};
use crate::key::{Index, Key, Ttl};
use crate::runtime::Instant;
use crate::session::{Announcer, Loss, Term};
use crate::store::Store;

/// All that is watched over for one client.
#[derive(Default)]
pub(super) struct Sentry {
    roster: Mutex<Roster>,
    news: Notify,
}

#[derive(Default)]
pub(super) struct Roster {
    pub(super) charges: BTreeMap<Key, Charge>,
    /// In the order of time; some may be gone by now.
    newcomers: VecDeque<(Instant, Key, Index)>,
    /// The shortest time-to-live of what was held since the last look.
    shortest: Option<Ttl>,
    /// Whether the task runs.
    attended: bool,
}

/// A ticket that is held.
pub(super) struct Charge {
    /// The index of its append.
    pub(super) at: Index,
    pub(super) term: Arc<Term>,
    pub(super) announcer: Announcer,
    /// For how long it is held at a time.
    pub(super) ttl: Ttl,
    /// Wakes its [`Vigil`], once that has begun.
    vigil: Option<Waker>,
}

impl Charge {
    pub(super) fn new(at: Index, term: Arc<Term>, announcer: Announcer, ttl: Ttl) -> Self {
        Self {
            at,
            term,
            announcer,
            ttl,
            vigil: None,
        }
    }

    /// Whether it has been held for a while, and still is.
    pub(super) fn is_settled(&self) -> bool {
        self.vigil.is_some() && self.term.check().is_ok()
    }
}

impl Sentry {
    /// Watches over a key from now on.
    pub(super) fn guard(&self, lines: &Arc<Lines>, key: Key, charge: Charge) {
        let due = lines.runtime.clock.now() + SHORT_HOLD;
        let mut roster = self.lock();
        if roster.newcomers.is_empty() {
            self.news.notify_one();
        }
        roster.come(due, key, charge);
        if !std::mem::replace(&mut roster.attended, true) {
            lines.tasks.spawn(attend(lines.clone()));
        }
    }

    /// Stops watching over a key: it is given up, or somebody else's business.
    pub(super) fn dismiss(&self, key: &Key) -> Option<Charge> {
        let mut charge = self.lock().charges.remove(key)?;
        if let Some(vigil) = charge.vigil.take() {
            vigil.wake();
        }
        Some(charge)
    }

    /// Whether this key is still to be watched over; the waker is woken once it is not.
    pub(super) fn guards(&self, key: &Key, at: Index, vigil: &Waker) -> bool {
        let mut roster = self.lock();
        let Some(charge) = roster.charges.get_mut(key).filter(|it| it.at == at) else {
            return false;
        };
        if !charge.vigil.as_ref().is_some_and(|it| it.will_wake(vigil)) {
            charge.vigil = Some(vigil.clone());
        }
        true
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roster {
    /// Will have been held for a while when it is due.
    fn come(&mut self, due: Instant, key: Key, charge: Charge) {
        let ttl = charge.ttl;
        self.shortest = Some(self.shortest.map_or(ttl, |it| it.min(ttl)));
        self.newcomers.push_back((due, key.clone(), charge.at));
        self.charges.insert(key, charge);
    }

    /// A look begins: what has been given up counts no more.
    fn reckon(&mut self) {
        self.shortest = self.charges.values().map(|it| it.ttl).min();
    }

    /// A look has not found this key, or one that was made since. What was given up meanwhile is
    /// nobody's loss.
    pub(super) fn found_gone(&self, key: &Key, at: Index) {
        if let Some(charge) = self.charges.get(key).filter(|it| it.at == at) {
            charge.term.lose(Loss::Deleted);
        }
    }

    /// Takes those that have been held for a while, and says when to come again.
    fn settle(&mut self, now: Instant, mut begin: impl FnMut(&Charge)) -> Option<Instant> {
        while let Some((due, key, at)) = self.newcomers.front() {
            // A name can be used again.
            match self.charges.get(key).filter(|it| it.at == *at) {
                Some(_) if *due > now => return Some(*due),
                Some(charge) => begin(charge),
                None => {}
            }
            self.newcomers.pop_front();
        }
        // It may have been long.
        self.newcomers = VecDeque::new();
        None
    }
}

/// Runs until nothing is held any more, or the client was shut down.
async fn attend(lines: Arc<Lines>) {
    let (clock, looks) = (&lines.runtime.clock, lines.store.about().commits);
    let mut vigils = FuturesUnordered::new();
    let (mut looking, mut looked) = (None, clock.now());
    loop {
        let mut begun = Vec::new();
        let (due, every) = {
            let mut roster = lines.sentry.lock();
            let due = roster.settle(clock.now(), |charge| {
                charge.announcer.announce();
                begun.push((charge.term.clone(), charge.at));
            });
            // A look that is under way is not given up.
            let idle = vigils.is_empty() && looking.is_none();
            if due.is_none() && begun.is_empty() && idle {
                (roster.attended, roster.shortest) = (false, None);
                return;
            }
            (due, roster.shortest.map(recheck::every))
        };
        for (term, at) in begun {
            vigils.push(Vigil::new(lines.clone(), term, at));
        }
        let look = every
            .filter(|_| looks && looking.is_none())
            .map(|every| looked + every);
        if look.is_some_and(|look| clock.has_passed(look)) {
            looked = clock.now();
            lines.sentry.lock().reckon();
            looking = Some(recheck::look_at_all(lines.clone()).boxed());
            continue;
        }
        let wake = async {
            match due.into_iter().chain(look).min() {
                Some(due) => clock.sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = lines.closed.cancelled() => break,
            Some(()) = vigils.next() => {}
            () = under_way(&mut looking) => looking = None,
            () = lines.sentry.news.notified() => {}
            () = wake => {}
        }
    }
    drop(vigils);
    if let Some(look) = looking {
        // What is read of a server just now, now that what was held ends there, is not given up either.
        look.await;
    }
}

/// The look that is under way; never returns if there is none.
fn under_way(looking: &mut Option<BoxFuture<'static, ()>>) -> impl Future<Output = ()> {
    poll_fn(|cx| match looking {
        Some(look) => look.poll_unpin(cx),
        None => Poll::Pending,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::Clock;

    fn at(millis: u64) -> Instant {
        Instant::new(Duration::from_millis(millis))
    }

    fn charge(key: &Key, index: u64, secs: u64) -> Charge {
        let term = Term::new(
            key.clone(),
            bytes::Bytes::new(),
            Clock::boot(),
            at(0),
            at(u64::MAX),
        );
        let ttl = Ttl::new(Duration::from_secs(secs)).unwrap();
        let index = Index::new(index).unwrap();
        Charge::new(index, Arc::new(term), Announcer::unheard(), ttl)
    }

    #[test]
    fn what_was_held_for_a_short_time_at_a_time_is_soon_forgotten_when_it_is_given_up() {
        let (short, long) = (Key::new("/_locks/s/7-1"), Key::new("/_locks/l/7-2"));
        let (short, long) = (short.unwrap(), long.unwrap());
        let mut roster = Roster::default();
        roster.come(at(0), short.clone(), charge(&short, 10, 1));
        roster.come(at(0), long.clone(), charge(&long, 11, 60));
        roster.reckon();
        assert_eq!(roster.shortest, Some(Ttl::MIN));
        roster.charges.remove(&short);
        roster.reckon();
        assert_eq!(roster.shortest, Ttl::new(Duration::from_secs(60)).ok());
        roster.charges.remove(&long);
        roster.reckon();
        assert_eq!(roster.shortest, None);
    }

    #[test]
    fn a_name_that_is_used_again_is_watched_when_its_new_ticket_has_been_held_for_a_while() {
        let key = Key::new("/_locks/a/7-1").unwrap();
        let mut roster = Roster::default();
        let hold = |roster: &mut Roster, due, index| {
            roster.come(at(due), key.clone(), charge(&key, index, 60));
        };
        hold(&mut roster, 250, 10);
        roster.charges.clear();
        hold(&mut roster, 350, 14);
        let mut watched = Vec::new();
        let due = roster.settle(at(250), |charge| watched.push(charge.at.get()));
        assert_eq!((due, &*watched), (Some(at(350)), &[][..]));
        let due = roster.settle(at(350), |charge| watched.push(charge.at.get()));
        assert_eq!((due, &*watched), (None, &[14][..]));
        assert!(roster.newcomers.is_empty());
    }
}
