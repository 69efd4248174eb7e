//! What became of the attempts of one call, for the error at the end: each server with its reason.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use crate::error::{Error, ErrorKind, Result};

/// What became of the attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts<A> {
    /// What became of the last attempt on each server, in the order of their names.
    last: BTreeMap<Arc<str>, Attempt>,
    /// What the last server answered, if it could not do it.
    last_answer: Option<A>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    any_sent: bool,
}

/// What became of one attempt.
#[derive(Debug)]
struct Attempt {
    reason: String,
    hopeless: bool,
    untrusted: bool,
}

impl<A> Default for Attempts<A> {
    fn default() -> Self {
        Self {
            last: BTreeMap::new(),
            last_answer: None,
            cause: None,
            any_sent: false,
        }
    }
}

impl<A> Attempts<A> {
    pub(crate) fn answered(&mut self, server: &Arc<str>, reason: String, answer: A) {
        self.any_sent = true;
        let attempt = Attempt {
            reason,
            hopeless: false,
            untrusted: false,
        };
        self.last.insert(server.clone(), attempt);
        self.last_answer = Some(answer);
    }

    pub(crate) fn failed(&mut self, server: &Arc<str>, failure: Failure) {
        self.any_sent |= failure.maybe_sent;
        let attempt = Attempt {
            reason: failure.reason,
            hopeless: failure.hopeless,
            untrusted: failure.untrusted,
        };
        self.last.insert(server.clone(), attempt);
        self.cause = failure.cause;
    }

    /// Whether every server is of the wrong kind, or not to be trusted: waiting changes neither.
    pub(crate) fn waiting_is_vain(&self, servers: usize) -> bool {
        self.last_answer.is_none()
            && self.last.len() >= servers
            && self.last.values().all(|it| it.hopeless || it.untrusted)
    }

    /// What there is to say after so long.
    pub(crate) fn give_up(self, waited: Duration) -> Result<A> {
        let waited = Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        if let Some(answer) = self.last_answer {
            return Ok(answer);
        }
        let reasons: Vec<String> = self
            .last
            .iter()
            .map(|(server, attempt)| format!("{server}: {}", attempt.reason))
            .collect();
        let reasons = reasons.join("; ");
        let (kind, text) = if !self.any_sent && self.last.values().all(|it| it.untrusted) {
            (ErrorKind::Untrusted, reasons)
        } else if !self.any_sent {
            let text = format!("no server could be reached within {waited:?} ({reasons})");
            (ErrorKind::Unreachable, text)
        } else if self.last.values().any(|it| it.hopeless) {
            (ErrorKind::Protocol, reasons)
        } else {
            let text = format!("no answer within {waited:?} ({reasons})");
            (ErrorKind::Timeout, text)
        };
        let error = Error::new(kind, text);
        Err(match self.cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}
