//! What became of the attempts of one call, for the error at the end: each server with its reason.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::{Answer, Failure};
use crate::error::{Error, ErrorKind, Result};

/// What became of the attempts of one call.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// What became of the last attempt on each server, in the order of their names.
    last: BTreeMap<Arc<str>, Attempt>,
    last_answer: Option<Answer>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    any_sent: bool,
}

/// What became of one attempt.
#[derive(Debug)]
struct Attempt {
    reason: String,
    not_http: bool,
    untrusted: bool,
}

impl Attempts {
    pub(super) fn answered(&mut self, answer: Answer) {
        self.any_sent = true;
        let attempt = Attempt {
            reason: format!("HTTP {}", answer.status.as_u16()),
            not_http: false,
            untrusted: false,
        };
        self.last.insert(answer.server.clone(), attempt);
        self.last_answer = Some(answer);
    }

    pub(super) fn failed(&mut self, server: &Arc<str>, failure: Failure) {
        self.any_sent |= failure.maybe_sent;
        let attempt = Attempt {
            reason: failure.reason,
            not_http: failure.not_http,
            untrusted: failure.untrusted,
        };
        self.last.insert(server.clone(), attempt);
        self.cause = failure.cause;
    }

    /// Whether every server is of the wrong kind, or not to be trusted: waiting changes neither.
    pub(super) fn waiting_is_vain(&self, servers: usize) -> bool {
        self.last_answer.is_none()
            && self.last.len() >= servers
            && self.last.values().all(|it| it.not_http || it.untrusted)
    }

    pub(super) fn give_up(self, whole: Duration) -> Result<Answer> {
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
            let text = format!("no server could be reached within {whole:?} ({reasons})");
            (ErrorKind::Unreachable, text)
        } else if self.last.values().any(|it| it.not_http) {
            (ErrorKind::Protocol, reasons)
        } else {
            let text = format!("no answer within {whole:?} ({reasons})");
            (ErrorKind::Timeout, text)
        };
        let error = Error::new(kind, text);
        Err(match self.cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}
