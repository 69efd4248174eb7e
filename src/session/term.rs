//! What a ticket or a guard knows about its own key: until when it is surely held, and whether
//! it is lost.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind};
use crate::key::{Index, Key};
use crate::runtime::{Clock, Instant};
use crate::store::Node;

/// Whether what a guard stands for is still held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldState {
    /// Surely held until the deadline, and the last renewal was answered.
    Held,
    /// Surely held until the deadline, but the last renewal was not answered.
    Suspect,
    /// Not held any more; for good.
    Lost,
}

/// Why something is not held any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// The deadline passed before a renewal was acknowledged.
    Expired,
    /// The key was seen deleted, or taken over by somebody else.
    Deleted,
    /// The client was shut down, or it gave the key up.
    Closed,
}

impl Loss {
    pub(crate) fn into_error(self) -> Error {
        let text = match self {
            Self::Expired => "no renewal was acknowledged before the deadline",
            Self::Deleted => "the key was deleted or taken over on the server",
            Self::Closed => "the client was shut down",
        };
        Error::new(ErrorKind::Lost, text)
    }
}

/// The term of one key. Shared by the session, which extends it, and the key's owner.
pub(crate) struct Term {
    key: Key,
    content: Mutex<Content>,
    clock: Clock,
    /// No `watch` channel: it takes ten times as much room, and thousands may be held.
    standing: Mutex<Standing>,
    changed: Notify,
}

/// What a key has, as far as answers tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// What was written last.
    pub(crate) value: Bytes,
    /// When, if nothing was sent since then that could have written it again.
    pub(crate) index: Option<Index>,
}

impl From<Bytes> for Content {
    fn from(value: Bytes) -> Self {
        Self { value, index: None }
    }
}

impl From<&Node> for Content {
    fn from(node: &Node) -> Self {
        Self {
            value: node.value.clone(),
            index: Some(node.modified),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Held {
        deadline: Instant,
        /// When the last request for this very key was sent that was answered.
        since: Instant,
        suspect: bool,
    },
    Lost(Loss),
}

impl Term {
    /// Of a key that was written by a request sent at `since`, until the deadline.
    pub(crate) fn new(
        key: Key,
        content: impl Into<Content>,
        clock: Clock,
        since: Instant,
        deadline: Instant,
    ) -> Self {
        let standing = Mutex::new(Standing::Held {
            deadline,
            since,
            suspect: false,
        });
        Self {
            key,
            content: Mutex::new(content.into()),
            clock,
            standing,
            changed: Notify::new(),
        }
    }

    /// What it is the term of.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// The value that the key has; of one that was sent and not answered the one before.
    pub(crate) fn value(&self) -> Bytes {
        self.lock().value.clone()
    }

    /// The value, and since when.
    pub(super) fn content(&self) -> Content {
        self.lock().clone()
    }

    /// The key is known to have this.
    pub(super) fn has(&self, content: Content) {
        *self.lock() = content;
    }

    /// The key may have been written again, with the value that it has.
    pub(super) fn touched(&self) {
        self.lock().index = None;
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state now, by the clock now.
    pub(crate) fn state(&self) -> HoldState {
        match self.standing() {
            Standing::Lost(_) => HoldState::Lost,
            Standing::Held { suspect: true, .. } => HoldState::Suspect,
            Standing::Held { suspect: false, .. } => HoldState::Held,
        }
    }

    /// Until when it is surely held; `None` once it is lost.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.standing() {
            Standing::Held { deadline, .. } => Some(deadline),
            Standing::Lost(_) => None,
        }
    }

    /// An error if it is not held any more.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.standing() {
            Standing::Held { .. } => Ok(()),
            Standing::Lost(loss) => Err(loss.into_error().at(&self.key)),
        }
    }

    /// Returns the deadline once it is later than `known`; `None` once it is lost.
    pub(crate) async fn extended(&self, known: Instant) -> Option<Instant> {
        loop {
            // Hears of what happens from here on.
            let changed = self.changed.notified();
            let deadline = self.deadline()?;
            if deadline > known {
                return Some(deadline);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.clock.sleep_until(deadline) => {}
            }
        }
    }

    /// Returns once it is lost.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn lost(&self) -> Loss {
        loop {
            // Hears of what happens from here on.
            let changed = self.changed.notified();
            let deadline = match self.standing() {
                Standing::Lost(loss) => return loss,
                Standing::Held { deadline, .. } => deadline,
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = self.clock.sleep_until(deadline) => {}
            }
        }
    }

    /// A request for this very key that was sent then was answered. What that is worth is reckoned
    /// next.
    pub(super) fn renewed(&self, sent: Instant) {
        self.update(|held, _| {
            if let Standing::Held { since, suspect, .. } = held {
                (*since, *suspect) = ((*since).max(sent), false);
            }
        });
    }

    /// The session's term has changed, and the margin has grown by `nearer`. It ends when a key
    /// ends whose own last answered request was sent at the given instant, and no sooner than it
    /// did. Comes too late if the deadline has passed.
    pub(super) fn reckon(&self, end: impl FnOnce(Instant) -> Instant, nearer: Duration) {
        self.update(|held, old| {
            if let Standing::Held {
                deadline, since, ..
            } = held
            {
                *deadline = end(*since).max(old - nearer);
            }
        });
    }

    /// It ends here, earlier or later than it seemed: what it hangs on may have changed, or has not.
    pub(crate) fn end_at(&self, to: Instant) {
        self.update(|held, _| {
            if let Standing::Held { deadline, .. } = held {
                *deadline = to;
            }
        });
    }

    /// It has a term of another length now, which counts from `since` and ends here.
    pub(super) fn replace(&self, since: Instant, deadline: Instant) {
        self.update(|held, _| {
            *held = Standing::Held {
                deadline,
                since,
                suspect: false,
            };
        });
    }

    /// A renewal was not answered.
    pub(super) fn doubt(&self) {
        self.update(|held, _| {
            if let Standing::Held { suspect, .. } = held {
                *suspect = true;
            }
        });
    }

    /// It is gone.
    pub(crate) fn lose(&self, loss: Loss) {
        self.update(|held, _| *held = Standing::Lost(loss));
    }

    fn standing(&self) -> Standing {
        // The deadline may have passed without anybody having written it down.
        self.update(|_, _| {});
        *self.known()
    }

    /// As it was written down last.
    fn known(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a standing that is still held; first writes down a deadline that has passed.
    fn update(&self, change: impl FnOnce(&mut Standing, Instant)) {
        let now = self.clock.now();
        let mut lost = None;
        let changed = {
            let mut standing = self.known();
            let before = *standing;
            if let Standing::Held { deadline, .. } = before {
                if now >= deadline {
                    *standing = Standing::Lost(Loss::Expired);
                } else {
                    change(&mut standing, deadline);
                }
            }
            if let (Standing::Held { .. }, Standing::Lost(loss)) = (before, *standing) {
                lost = Some(loss);
            }
            before != *standing
        };
        if changed {
            self.changed.notify_waiters();
        }
        if let Some(loss) = lost {
            tracing::debug!(target: "tenure::session", key = %self.key, ?loss, "lost");
        }
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Term")
            .field("key", &self.key)
            .field("standing", &*self.known())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn term(clock: &Clock, length: Duration) -> Term {
        let key = Key::new("/t").unwrap();
        let now = clock.now();
        Term::new(key, Bytes::new(), clock.clone(), now, now + length)
    }

    fn extend(term: &Term, to: Instant, nearer: Duration) {
        term.renewed(term.clock.now());
        term.reckon(|_| to, nearer);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_alone_ends_a_term() {
        let clock = Clock::tokio();
        let term = term(&clock, SECOND);
        assert_eq!(term.state(), HoldState::Held);
        assert_eq!(term.lost().await, Loss::Expired);
        assert_eq!((term.state(), term.deadline()), (HoldState::Lost, None));
        assert_eq!(term.check().unwrap_err().kind(), ErrorKind::Lost);
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_before_the_deadline_moves_it_and_one_after_does_not() {
        let clock = Clock::tokio();
        let start = clock.now();
        let term = term(&clock, SECOND);
        term.doubt();
        assert_eq!(term.state(), HoldState::Suspect);
        extend(&term, start + SECOND * 3, Duration::ZERO);
        assert_eq!(term.state(), HoldState::Held);
        tokio::time::advance(SECOND * 2).await;
        assert_eq!(term.state(), HoldState::Held);
        tokio::time::advance(SECOND).await;
        extend(&term, start + SECOND * 9, Duration::ZERO);
        assert_eq!(term.state(), HoldState::Lost);
    }

    #[tokio::test(start_paused = true)]
    async fn a_margin_that_grows_ends_a_term_sooner_unless_it_is_extended_beyond() {
        let clock = Clock::tokio();
        let start = clock.now();
        let term = term(&clock, SECOND * 5);
        term.reckon(|since| since, SECOND);
        assert_eq!(term.deadline(), Some(start + SECOND * 4));
        extend(&term, start + SECOND * 3, SECOND * 2);
        assert_eq!(term.deadline(), Some(start + SECOND * 3));
        extend(&term, start + SECOND * 6, SECOND * 9);
        assert_eq!(term.deadline(), Some(start + SECOND * 6));
        term.reckon(|since| since, SECOND * 6);
        assert_eq!(term.state(), HoldState::Lost);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_on_lost_sees_extensions_and_then_the_loss() {
        let clock = Clock::tokio();
        let start = clock.now();
        let term = term(&clock, SECOND);
        extend(&term, start + SECOND * 5, Duration::ZERO);
        assert_eq!(term.lost().await, Loss::Expired);
        assert_eq!(clock.now(), start + SECOND * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_loss_stays() {
        let term = term(&Clock::tokio(), SECOND);
        term.lose(Loss::Deleted);
        term.lose(Loss::Closed);
        assert_eq!(term.lost().await, Loss::Deleted);
    }
}
