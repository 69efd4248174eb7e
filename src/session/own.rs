//! A session that belongs to one lock alone, so that its time-to-live can change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::key::Ttl;
use crate::session::Session;

/// The session of one lock, begun at its first use and begun anew when it was lost. It ends with
/// this value, and with the tickets that use it.
#[derive(Debug)]
pub(crate) struct OwnSession(Mutex<Own>);

#[derive(Debug)]
struct Own {
    ttl: Ttl,
    session: Option<Session>,
}

impl OwnSession {
    pub(crate) fn new(ttl: Ttl) -> Self {
        Self(Mutex::new(Own { ttl, session: None }))
    }

    /// The session, which `start` begins if there is none.
    pub(crate) fn get(&self, start: impl FnOnce(Ttl) -> Result<Session>) -> Result<Session> {
        let mut own = self.lock();
        if let Some(session) = own.session.as_ref().filter(|it| !it.is_over()) {
            return Ok(session.clone());
        }
        let session = start(own.ttl)?;
        own.session = Some(session.clone());
        Ok(session)
    }

    /// The time-to-live of the session, and of those to come.
    pub(crate) fn ttl(&self) -> Ttl {
        self.lock().ttl
    }

    /// A renewal begins: to be told how it ended.
    pub(crate) fn renewing(&self) -> Renewing<'_> {
        Renewing(Some(self))
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A renewal under way. When nobody waits for it any more it goes on in its session, which may then
/// move what hangs on it to another lease at any time: so the next ticket gets another session.
pub(crate) struct Renewing<'a>(Option<&'a OwnSession>);

impl Renewing<'_> {
    /// It was refused, or failed.
    pub(crate) fn failed(mut self) {
        self.0 = None;
    }

    /// This is the time-to-live now, and that of sessions to come.
    pub(crate) fn done(mut self, ttl: Ttl) {
        if let Some(own) = self.0.take() {
            own.lock().ttl = ttl;
        }
    }
}

impl Drop for Renewing<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.0 {
            // It ends with the ticket that uses it.
            own.lock().session = None;
        }
    }
}
