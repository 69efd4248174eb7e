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

    /// Changes that of those to come.
    pub(crate) fn set_ttl(&self, ttl: Ttl) {
        self.lock().ttl = ttl;
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
