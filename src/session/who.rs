//! Who is who: one leased node for each session, `/_sessions/<16 hex digits of its id>`, with a JSON
//! object that says whose it is.
//!
//! It is for people, and decides nothing. So it is written late: when a ticket of the session has
//! stood in line or been held for a while, or when somebody asks for it ([`Session::announce`]); a
//! short lock pays nothing. The session keeps it alive with its other keys, and it goes with them.
//!
//! [`Session::announce`]: super::Session::announce

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Core, Order, SessionState};
use crate::error::Result;
use crate::key::{Key, LeaseId};
use crate::store::{Expiry, Put};

/// Whose session it is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    #[serde(default)]
    host: String,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    app: String,
}

impl Who {
    /// This process.
    pub(crate) fn here(app: Option<String>) -> Self {
        Self {
            host: host(),
            pid: std::process::id(),
            app: app.unwrap_or_else(executable),
        }
    }

    /// The host's name; empty where the system has none.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the client was [told](crate::ClientBuilder::app) to call itself, or the executable's
    /// file name.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// Reads a node's value; `None` for what is none of ours.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    fn to_json(&self) -> Bytes {
        // Strings and a number: there is nothing that could fail.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, pid, app } = self;
        write!(f, "{app} (process {pid} on {host})")
    }
}

/// The directory of all sessions.
pub(crate) fn sessions() -> Result<Key> {
    Key::root().join("_sessions")
}

/// What is written about a session, and where.
#[derive(Debug)]
pub(super) struct Card {
    /// There is one: the name is 16 digits.
    key: Option<Key>,
    value: Bytes,
}

impl Card {
    pub(super) fn new(session: LeaseId, who: &Who) -> Self {
        let name = format!("{:016x}", session.get());
        let key = sessions().and_then(|dir| dir.join(&name)).ok();
        Self {
            key,
            value: who.to_json(),
        }
    }

    pub(super) fn is_at(&self, key: &Key) -> bool {
        self.key.as_ref() == Some(key)
    }
}

/// Asks a session to say whose it is, without keeping it alive.
#[derive(Clone)]
pub(crate) struct Announcer(mpsc::UnboundedSender<Order>);

impl Announcer {
    pub(super) fn new(orders: mpsc::UnboundedSender<Order>) -> Self {
        Self(orders)
    }

    /// One that nobody listens to.
    #[cfg(test)]
    pub(crate) fn unheard() -> Self {
        Self(mpsc::unbounded_channel().0)
    }

    pub(crate) fn announce(&self) {
        // A session that is over has stopped listening.
        let _ = self.0.send(Order::Announce);
    }
}

/// Writes it, if it is wanted and not there, and if there is time before the next renewal: nothing
/// that decides waits for it. A failure is tried again after that.
pub(super) async fn announce(core: &Core) {
    let Card { key, value } = &core.card;
    let Some(key) = key else { return };
    let (lease, due) = {
        let shared = core.lock();
        let is_live = shared.machine.state() == SessionState::Live;
        if !shared.announced || !is_live || shared.terms.contains_key(key) {
            return;
        }
        let Some(due) = shared.machine.due() else {
            return;
        };
        (shared.lease, due)
    };
    // The name is the session's own, so nobody is overwritten. What lands late, after the session
    // has ended, hangs on nothing that is renewed.
    let put = Put::new(key.clone(), value.clone(), Expiry::With(lease));
    let sent = core.runtime.clock.now();
    let written = tokio::select! {
        biased;
        () = core.closing.cancelled() => return,
        written = core.store.put(put) => written,
        () = core.runtime.clock.sleep_until(due) => return,
    };
    match written {
        Ok(_) => {
            core.attach(key.clone(), value.clone().into(), sent);
        }
        Err(error) => {
            tracing::debug!(target: "tenure::session", %key, %error, "not announced");
        }
    }
}

#[cfg(unix)]
fn host() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    String::new()
}

fn executable() -> String {
    let path = std::env::current_exe().ok();
    let name = path.as_deref().and_then(std::path::Path::file_name);
    name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_says_of_itself_is_read_back_and_strangers_words_are_not() {
        let who = Who::here(Some("reports".into()));
        assert_eq!(Who::parse(&who.to_json()), Some(who.clone()));
        assert_eq!(who.pid(), std::process::id());
        assert!(!who.host().is_empty() && !Who::here(None).app().is_empty());
        assert_eq!(Who::parse(b"not json"), None);
        assert_eq!(Who::parse(br#"{"host":"h","more":1}"#).unwrap().host(), "h");
    }
}
