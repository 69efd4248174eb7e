//! What became of the attempts of one call, for the error at the end: each server with its reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::{Answer, Failure};
use crate::error::{Error, ErrorKind, Result};

/// What became of the attempts of one call.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// The last reason for each server, in the order of their names.
    reasons: BTreeMap<Arc<str>, String>,
    last_answer: Option<Answer>,
    last_failure: Option<Failure>,
    any_sent: bool,
    not_http: usize,
}

impl Attempts {
    pub(super) fn answered(&mut self, answer: Answer) {
        self.any_sent = true;
        let reason = format!("HTTP {}", answer.status.as_u16());
        self.reasons.insert(answer.server.clone(), reason);
        self.last_answer = Some(answer);
    }

    pub(super) fn failed(&mut self, server: &Arc<str>, failure: Failure) {
        self.any_sent |= failure.maybe_sent;
        self.not_http += usize::from(failure.not_http);
        self.reasons.insert(server.clone(), failure.reason.clone());
        self.last_failure = Some(failure);
    }

    /// Waiting does not turn another kind of server into the right one.
    pub(super) fn nobody_speaks_http(&self, servers: usize) -> bool {
        self.last_answer.is_none() && self.not_http >= servers
    }

    pub(super) fn give_up(self, whole: Duration) -> Result<Answer> {
        if let Some(answer) = self.last_answer {
            return Ok(answer);
        }
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(server, reason)| format!("{server}: {reason}"))
            .collect();
        let reasons = reasons.join("; ");
        let last = self.last_failure;
        let (kind, text) = if !self.any_sent {
            let text = format!("no server could be reached within {whole:?} ({reasons})");
            (ErrorKind::Unreachable, text)
        } else if last.as_ref().is_some_and(|it| it.not_http) {
            let text = format!("{reasons}: is this an etcd v2 endpoint?");
            (ErrorKind::Protocol, text)
        } else {
            let text = format!("no answer within {whole:?} ({reasons})");
            (ErrorKind::Timeout, text)
        };
        let error = Error::new(kind, text);
        Err(match last.and_then(|it| it.cause) {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}
